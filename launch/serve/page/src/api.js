/** Requests to the service: JSON, Arrow tables, long questions that become jobs, and the token. */
import { tableFromIPC } from "../vendor/flechette.mjs";

const ARROW = "application/vnd.apache.arrow.stream";
const TOKEN = "dist_scvi.token";
const POLL_MS = 500;

/** An answer of the service that is an error, with a message for people. */
export class ServiceError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export function keepToken(token) {
  sessionStorage.setItem(TOKEN, token);
}

async function send(path, { method, body, accept, type, signal } = {}) {
  const headers = { Accept: accept ?? "application/json" };
  const token = sessionStorage.getItem(TOKEN);
  if (token) headers.Authorization = `Bearer ${token}`;
  if (body !== undefined) headers["Content-Type"] = type ?? "application/json";
  let response;
  try {
    response = await fetch(path, {
      method: method ?? (body === undefined ? "GET" : "POST"),
      headers,
      body: body === undefined || type ? body : JSON.stringify(body),
      signal,
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServiceError(0, "The service cannot be reached. Is it still running?");
  }
  if (response.ok) return response;
  throw new ServiceError(response.status, await problemOf(response));
}

async function problemOf(response) {
  try {
    const { detail } = await response.json();
    if (typeof detail === "string") return detail;
    return detail.map((one) => `${one.loc.slice(1).join(".")}: ${one.msg}`).join("; ");
  } catch {
    return `The service answered with status ${response.status}.`;
  }
}

export async function getJson(path, options) {
  return (await send(path, options)).json();
}

/** Read an Arrow table: its columns, the JSON in its metadata, and the headers of the response. */
export async function getTable(path, options) {
  const response = await send(path, { accept: ARROW, ...options });
  return readTable(await response.arrayBuffer());
}

export async function getPicture(path, options) {
  const response = await send(path, { accept: "image/png", ...options });
  return { blob: await response.blob(), values: JSON.parse(response.headers.get("Map-Values") ?? "null") };
}

function readTable(buffer) {
  const table = tableFromIPC(buffer, { useProxy: false });
  const described = table.schema.metadata?.get("dist_scvi");
  const columns = table.schema.fields.map((field) => field.name);
  return {
    columns,
    numRows: table.numRows,
    provenance: described ? JSON.parse(described) : {},
    column: (name) => table.getChild(name)?.toArray(),
  };
}

/** Ask a question of an atlas; one that takes long is followed until it ends. */
export async function ask(atlas, question, body, { signal, onProgress, type } = {}) {
  const path = `/v1/${encodeURIComponent(atlas)}/${question}`;
  const response = await send(path, { body, type, accept: ARROW, signal });
  if (response.status !== 202) return readTable(await response.arrayBuffer());
  return follow(response.headers.get("Location"), { signal, onProgress });
}

async function follow(job, { signal, onProgress }) {
  const cancel = () => send(job, { method: "DELETE" }).catch(() => {});
  signal?.addEventListener("abort", cancel);
  try {
    for (;;) {
      const state = await getJson(job, { signal });
      onProgress?.(state);
      if (state.state === "done") return await getTable(state.answer, { signal });
      if (state.state !== "running") throw new ServiceError(500, state.problem ?? `The question was ${state.state}.`);
      await new Promise((resolve) => setTimeout(resolve, POLL_MS));
    }
  } finally {
    signal?.removeEventListener("abort", cancel);
  }
}

/** Rows of an answer as objects. */
export function rowsOf(table, columns = table.columns) {
  const arrays = columns.map((name) => table.column(name));
  return Array.from({ length: table.numRows }, (_, at) =>
    Object.fromEntries(columns.map((name, place) => [name, plain(arrays[place][at])])),
  );
}

function plain(value) {
  return typeof value === "bigint" ? Number(value) : value;
}
