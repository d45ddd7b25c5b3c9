/** What the map draws: points and their values, fetched again when filter, colour or the part in view change. */
import { getJson, getPicture, getTable } from "./api.js";
import { useAnswer } from "./ui.js";
import { useEffect, useState } from "./preact.js";

export const WHOLE_PART = [0, 0, 65535, 65535];
const MAKING_POLL_MS = 1500;

export function mapPath(atlas, what, parameters) {
  const query = new URLSearchParams();
  for (const [key, value] of Object.entries(parameters)) if (value !== null && value !== undefined && value !== "") query.set(key, value);
  return `/v1/${encodeURIComponent(atlas)}/map${what}?${query}`;
}

export function colorParameters(color) {
  if (!color) return {};
  return color.kind === "gene" ? { gene: color.name, uncertainty: color.uncertainty ? "true" : null } : { column: color.name };
}

/** The description of the map; while the service still makes it, its progress. */
export function useMapDescription(atlas) {
  const [state, setState] = useState({ value: null, progress: null, error: null });
  const [turn, setTurn] = useState(0);
  useEffect(() => {
    if (!atlas) return undefined;
    const controller = new AbortController();
    let timer = null;
    const look = async () => {
      try {
        const found = await getJson(`/v1/${encodeURIComponent(atlas)}/map`, { signal: controller.signal });
        if (found.state === "ready") setState({ value: found, progress: null, error: null });
        else {
          setState({ value: null, progress: found, error: null });
          timer = setTimeout(look, MAKING_POLL_MS);
        }
      } catch (error) {
        if (error.name !== "AbortError") setState({ value: null, progress: null, error });
      }
    };
    setState({ value: null, progress: null, error: null });
    look();
    return () => {
      controller.abort();
      clearTimeout(timer);
    };
  }, [atlas, turn]);
  return { ...state, retry: () => setTurn((old) => old + 1) };
}

/** Points of a part of the map; null as `asked` fetches nothing. */
export function usePoints(atlas, asked) {
  const path = asked && mapPath(atlas, "/points", asked);
  return useAnswer(path, async (options) => {
    const table = await getTable(path, options);
    const [x, y] = [table.column("x"), table.column("y")];
    const steps = new Uint16Array(2 * table.numRows);
    for (let at = 0; at < table.numRows; at++) {
      steps[2 * at] = x[at];
      steps[2 * at + 1] = y[at];
    }
    return { steps, n: table.numRows, nInView: table.provenance.n_in_view, asked: path };
  });
}

/** Values of the same points in the same order. */
export function useValues(atlas, asked, color) {
  const path = asked && color ? mapPath(atlas, "/values", { ...asked, ...colorParameters(color) }) : null;
  return useAnswer(path, async (options) => {
    const table = await getTable(path, options);
    return { ...table.provenance, array: table.column("value"), points: mapPath(atlas, "/points", asked) };
  });
}

/** The density as a picture, for more cells than are drawn one by one and for browsers without WebGL. */
export function usePicture(atlas, asked, color) {
  const path = asked && mapPath(atlas, "/picture", { ...asked, ...colorParameters(color) });
  const answer = useAnswer(path, async (options) => {
    const { blob, values } = await getPicture(path, options);
    return { url: URL.createObjectURL(blob), blob, values, part: asked.view.split(",").map(Number) };
  });
  useEffect(() => () => answer.value && URL.revokeObjectURL(answer.value.url), [answer.value]);
  return answer;
}
