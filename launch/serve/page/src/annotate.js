/** Annotation of new cells: drop an h5ad, see labels and sets, and the cells on the map. */
import { html, useMemo, useRef, useState } from "./preact.js";
import { ask, getJson, rowsOf } from "./api.js";
import { cells, count, number, percent, title } from "./format.js";
import { Problem, Table, Waiting } from "./ui.js";

const H5AD = "application/x-hdf5";
const NEAREST = 5;

export function Annotate({ atlas, offers, annotation, setAnnotation }) {
  const [busy, setBusy] = useState(null);
  const [over, setOver] = useState(false);
  const input = useRef(null);
  const run = async (file) => {
    if (!file) return;
    const controller = new AbortController();
    setBusy({ name: file.name, stop: () => controller.abort(), job: null });
    setAnnotation(null);
    try {
      const found = await annotateFile(atlas, file, offers.places, { signal: controller.signal, onProgress: (job) => setBusy((old) => old && { ...old, job }) });
      setAnnotation({ ...found, file: file.name });
    } catch (error) {
      if (error.name !== "AbortError") setAnnotation({ error, file: file.name });
    }
    setBusy(null);
  };
  return html`<div class="panel">
    <div
      class=${`drop ${over ? "over" : ""}`}
      onDragOver=${(event) => {
        event.preventDefault();
        setOver(true);
      }}
      onDragLeave=${() => setOver(false)}
      onDrop=${(event) => {
        event.preventDefault();
        setOver(false);
        run(event.dataTransfer.files[0]);
      }}
    >
      ${busy
        ? html`<${Waiting} onCancel=${busy.stop}>Annotating ${busy.name}<//>`
        : html`<p><b>Drop an h5ad</b> with raw counts of new cells here, or</p>
            <button onClick=${() => input.current.click()}>Choose a file</button>
            <p class="note">It is sent to this service only and not kept. Genes are matched by name.</p>`}
      <input ref=${input} type="file" accept=".h5ad" hidden aria-label="h5ad with cells to annotate" onChange=${(event) => { run(event.target.files[0]); event.target.value = ""; }} />
    </div>
    ${annotation?.error && html`<${Problem} error=${annotation.error} />`}
    ${annotation?.rows && html`<${Annotated} annotation=${annotation} onClear=${() => setAnnotation(null)} />`}
  </div>`;
}

async function annotateFile(atlas, file, places, options) {
  const upload = { ...options, type: H5AD };
  const table = await ask(atlas, "annotate", file, upload);
  const found = { rows: rowsOf(table), columns: table.columns, provenance: table.provenance };
  return { ...found, places: places ? await placesOf(atlas, file, upload) : null };
}

/** Place new cells among their nearest cells of the atlas, with weights that fall with the fourth power of the distance. */
async function placesOf(atlas, file, upload) {
  const table = await ask(atlas, `neighbors-of-new-cells?k=${NEAREST}&names=false`, file, upload);
  const [rank, row, distance] = ["rank", "row", "distance"].map((name) => table.column(name));
  const rows = Array.from(row, Number);
  const at = await getJson(`/v1/${encodeURIComponent(atlas)}/map/rows`, { signal: upload.signal, body: { rows } });
  const found = [];
  let nearest = 0;
  for (let place = 0; place < rows.length; place++) {
    if (Number(rank[place]) === 1) {
      found.push([0, 0, 0]);
      nearest = distance[place];
    }
    const weight = distance[place] > 0 ? (nearest / distance[place]) ** 4 : 1;
    const sum = found.at(-1);
    sum[0] += weight * at.x[place];
    sum[1] += weight * at.y[place];
    sum[2] += weight;
  }
  return found.map(([x, y, weight]) => [x / weight, y / weight]);
}

function Annotated({ annotation, onClear }) {
  const { rows, columns, provenance } = annotation;
  const label = columns.includes("label") ? "label" : columns.find((name) => /label|predict/.test(name));
  const counts = useMemo(() => {
    const found = new Map();
    for (const row of rows) found.set(row[label], (found.get(row[label]) ?? 0) + 1);
    return [...found].sort((a, b) => b[1] - a[1]).map(([name, n]) => ({ label: String(name ?? "no label"), n, probability: n / rows.length }));
  }, [rows]);
  const shown = columns;
  const first = shown.find((name) => rows.length && typeof rows[0][name] === "string") ?? shown[0];
  return html`<div>
    <p class="summary" role="status"><b>${cells(rows.length)}</b> of ${annotation.file} annotated${annotation.places ? "; the dark points on the map" : ""}. <span class="note">${(provenance.notes ?? []).join("; ")}</span></p>
    <ul class="bars" aria-label="Labels found">
      ${counts.slice(0, 12).map((row) => html`<li key=${row.label}><span class="name">${row.label}</span><svg viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true"><rect width="100" height="10" fill="#eceef1" /><rect width=${100 * row.probability} height="10" fill="#0072b2" /></svg><span>${count(row.n)}</span></li>`)}
    </ul>
    <${Table}
      name="annotation"
      caption="Labels with calibrated probabilities and sets"
      rows=${rows}
      saved=${columns}
      columns=${shown.map((key) => ({
        key,
        label: title(key),
        left: typeof rows[0]?.[key] === "string" || key === first,
        text: (row) => (typeof row[key] === "number" ? (/proba/.test(key) ? percent(row[key]) : number(row[key])) : Array.isArray(row[key]) ? row[key].join(", ") : String(row[key] ?? "–")),
      }))}
    />
    <button class="quiet" onClick=${onClear}>Remove the new cells</button>
  </div>`;
}
