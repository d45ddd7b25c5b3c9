/** One cell: its columns of obs, its neighbours, and the probabilities of its labels. */
import { html } from "./preact.js";
import { ask, getJson, rowsOf } from "./api.js";
import { number, percent, title } from "./format.js";
import { Empty, Problem, Table, Waiting, useAnswer } from "./ui.js";
import { mapPath } from "./map_data.js";

const K = 15;
const SHOWN_LABELS = 8;
const OWN = /^(leaf|source_row|log_normalizer|library_factor)$/;

export function useCell(atlas, row) {
  const path = row === null ? null : mapPath(atlas, "/cell", { row });
  return useAnswer(path, (options) => getJson(path, options));
}

export function useNeighbors(atlas, row, where, offered) {
  const body = offered && row !== null ? { query: [row], k: K, where: where || null } : null;
  return useAnswer(body && JSON.stringify([atlas, body]), async (options) => {
    const table = await ask(atlas, "neighbors", body, options);
    const rows = rowsOf(table);
    const places = await getJson(`/v1/${encodeURIComponent(atlas)}/map/rows`, { ...options, body: { rows: rows.map((one) => one.row) } });
    return { table, rows, places: places.x.map((x, at) => [x, places.y[at]]) };
  });
}

export function CellPanel({ atlas, cell, neighbors, offers, onCell, color }) {
  const labels = useLabels(atlas, cell.value?.row ?? null, offers);
  if (cell.error) return html`<${Problem} error=${cell.error} />`;
  if (!cell.value && !cell.loading) return html`<${Empty}><h3>Look at one cell</h3><p>Click a cell of the map: its annotation${offers.neighbors ? ", its neighbours in the latent space" : ""}${offers.labels ? " and the probabilities of its labels" : ""} appear here.</p><//>`;
  if (!cell.value) return html`<${Waiting}>Reading the cell<//>`;
  const shown = Object.entries(cell.value.obs).filter(([key]) => !OWN.test(key));
  return html`<div class=${`panel ${cell.loading ? "stale" : ""}`}>
    <h3 class="cell-name">${cell.value.name}</h3>
    <dl class="facts">${shown.map(([key, value]) => html`<div key=${key}><dt>${title(key)}</dt><dd>${typeof value === "number" ? number(value) : String(value ?? "–")}</dd></div>`)}</dl>
    ${offers.labels && html`<${Labels} labels=${labels} />`}
    ${offers.neighbors &&
    html`<section aria-label="Neighbours">
      ${neighbors.error
        ? html`<${Problem} error=${neighbors.error} onRetry=${neighbors.retry} />`
        : !neighbors.value
          ? html`<${Waiting}>Searching neighbours<//>`
          : html`<${Table}
              name="neighbors"
              caption=${`The ${neighbors.value.rows.length} nearest cells in the latent space, circled on the map`}
              rows=${neighbors.value.rows}
              saved=${neighbors.value.table.columns}
              onPick=${(row) => onCell(row.row)}
              columns=${[
                { key: "cell", label: "Cell", left: true, text: (row) => row.cell },
                { key: "rank", label: "Rank" },
                { key: "distance", label: "Distance" },
              ]}
            />`}
    </section>`}
  </div>`;
}

/** Probabilities of labels from the question that the service has for cells of the atlas. */
function useLabels(atlas, row, offers) {
  const body = offers.labels && row !== null ? { where: [row], soft: true } : null;
  return useAnswer(body && JSON.stringify([atlas, body]), async (options) => {
    const [row] = rowsOf(await ask(atlas, "predict", body, options));
    return Object.entries(row)
      .filter(([, value]) => typeof value === "number")
      .map(([label, probability]) => ({ label, probability }))
      .sort((a, b) => b.probability - a.probability);
  });
}

function Labels({ labels }) {
  const rows = labels.value;
  if (labels.error) return html`<${Problem} error=${labels.error} />`;
  if (!rows) return html`<${Waiting}>Predicting labels<//>`;
  return html`<section aria-label="Labels">
    <p class="note">Probabilities of labels by the classifier of the model</p>
    <${LabelBars} rows=${rows} />
  </section>`;
}

export function LabelBars({ rows }) {
  return html`<ul class="bars" aria-label="Probabilities of labels">
    ${rows.slice(0, SHOWN_LABELS).map(
      (row) => html`<li key=${row.label}>
        <span class="name">${row.label}</span>
        <svg viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true"><rect width="100" height="10" fill="#eceef1" /><rect width=${100 * row.probability} height="10" fill="#0072b2" /></svg>
        <span>${percent(row.probability)}</span>
      </li>`,
    )}
  </ul>`;
}
