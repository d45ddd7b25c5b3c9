/** Differential expression of the two groups: a volcano plot and a table, with intervals. */
import { html, useMemo, useRef, useState } from "./preact.js";
import { ask, rowsOf } from "./api.js";
import { cells, count, interval, number, percent, ticks } from "./format.js";
import { Empty, FigureButtons, JobProgress, Problem, Table, useAnswer } from "./ui.js";
import { groupBody } from "./groups.js";

const FDR = 0.05;
const NAMED = 10;
const UP = "#b3400a";
const DOWN = "#1f5fa8";

export function Compare({ state, atlas, map, sizes, onGene }) {
  const [delta, setDelta] = useState(0.25);
  const [picked, setPicked] = useState(null);
  const ready = state.groups.a && !sizes.a.error && !sizes.b.error;
  const body = ready && {
    group1: groupBody(state.groups.a, map, state.where),
    group2: groupBody(state.groups.b, map, state.where),
    where: state.groups.b || !state.where ? null : state.where,
    mode: "change",
    delta,
    fdr: FDR,
  };
  const answer = useAnswer(ready ? JSON.stringify([atlas, body]) : null, (options) => ask(atlas, "differential-expression", body, options));
  const rows = useMemo(() => answer.value && tidied(answer.value), [answer.value]);
  const svg = useRef(null);
  if (!state.groups.a)
    return html`<${Empty}>
      <h3>Compare two groups of cells</h3>
      <p>Choose <b>Lasso A</b> above the map and draw around some cells, or press <b>A</b> beside a category of the legend. Without a group B they are compared with all other cells.</p>
    <//>`;
  const { n_cells: n, engine, notes, query } = answer.value?.provenance ?? {};
  return html`<div class="panel">
    <div class="row">
      <label>Smallest difference, log2
        <select value=${delta} onChange=${(event) => setDelta(Number(event.target.value))}>
          ${[0.1, 0.25, 0.5, 1].map((one) => html`<option value=${one}>${one}</option>`)}
        </select>
      </label>
      ${answer.value && html`<${FigureButtons} svg=${() => svg.current} name="volcano" />`}
    </div>
    ${answer.error
      ? html`<${Problem} error=${answer.error} onRetry=${answer.retry} />`
      : !rows
        ? html`<${JobProgress} answer=${answer}>Comparing the groups<//>
            <div class="figure-room" aria-hidden="true"></div>`
        : html`<div class=${answer.loading ? "stale" : ""} data-query=${query}>
            <p class="summary" role="status">
              A: <b>${cells(n.group1)}</b>, B: <b>${cells(n.group2)}</b>. ${count(rows.filter((row) => row.flagged).length)} of ${count(rows.length)} genes differ at a false discovery rate of 5 %.
            </p>
            <details class="note"><summary>Engine: ${engine}${notes?.length ? `, ${notes.length} ${notes.length === 1 ? "note" : "notes"}` : ""}</summary>${notes?.map((one) => html`<p key=${one}>${one}.</p>`)}</details>
            <${Volcano} rows=${rows} delta=${delta} svgRef=${svg} picked=${picked} onPick=${setPicked} />
            <${Table}
              name="differential_expression"
              caption="Higher in A: positive. Intervals cover 95 %."
              rows=${rows}
              saved=${answer.value.columns}
              columns=${COLUMNS}
              picked=${(row) => row.gene === picked}
              onPick=${(row) => {
                setPicked(row.gene);
                onGene(row.gene);
              }}
            />
          </div>`}
  </div>`;
}

const COLUMNS = [
  { key: "gene", label: "Gene", left: true, text: (row) => row.gene },
  { key: "lfc_mean", label: "Log2 fold change", help: "Mean over pairs of cells, with its 95 % interval", text: (row) => html`${number(row.lfc_mean)} <span class="note">[${number(row.lfc_low)}, ${number(row.lfc_high)}]</span>` },
  { key: "proba_de", label: "P(DE)", help: "Probability that a cell of A differs from one of B by the smallest difference or more, with its standard error", text: (row) => html`${row.proba_de.toFixed(3)} <span class="note">± ${row.proba_de_se.toFixed(3)}</span>` },
  { key: "scale1", label: "Mean A", help: "Expected counts per 10,000 in A", text: (row) => number(1e4 * row.scale1) },
  { key: "scale2", label: "Mean B", help: "Expected counts per 10,000 in B", text: (row) => number(1e4 * row.scale2) },
  { key: "non_zeros_proportion1", label: "Detected A", help: "Share of cells with counts", text: (row) => percent(row.non_zeros_proportion1) },
  { key: "non_zeros_proportion2", label: "Detected B", help: "Share of cells with counts", text: (row) => percent(row.non_zeros_proportion2) },
];

function tidied(table) {
  const flag = table.columns.find((name) => name.startsWith("is_de_fdr"));
  const name = table.columns.includes("gene") ? "gene" : "index";
  return rowsOf(table).map((row) => {
    const [low, high] = interval(row.lfc_mean, row.lfc_mean_se);
    return { ...row, gene: row[name], lfc_low: low, lfc_high: high, flagged: Boolean(row[flag]) };
  });
}

/** Effect against evidence. Points of one kind are one path: thousands of genes stay quick to draw and to save. */
function Volcano({ rows, delta, svgRef, picked, onPick }) {
  const [width, height, left, bottom, top] = [440, 300, 48, 44, 12];
  const { x, y, xTicks, yTicks } = useMemo(() => {
    const reach = Math.max(1, ...rows.map((row) => Math.abs(row.lfc_mean))) * 1.05;
    const [low, high] = [Math.min(0, ...rows.map((row) => row.bayes_factor)), Math.max(1, ...rows.map((row) => row.bayes_factor))];
    const pad = (high - low) * 0.04;
    return {
      x: (value) => left + ((value + reach) / (2 * reach)) * (width - left - 12),
      y: (value) => height - bottom - ((value - low + pad) / (high - low + 2 * pad)) * (height - bottom - top),
      xTicks: ticks(-reach, reach, 6),
      yTicks: ticks(low, high, 5),
    };
  }, [rows]);
  const path = (kept) => rows.filter(kept).map((row) => `M${x(row.lfc_mean).toFixed(1)} ${y(row.bayes_factor).toFixed(1)}h0`).join("");
  const named = useMemo(() => placeNames(rows.filter((row) => row.flagged).sort((a, b) => b.bayes_factor - a.bayes_factor || Math.abs(b.lfc_mean) - Math.abs(a.lfc_mean)), x, y), [rows]);
  const chosen = rows.find((row) => row.gene === picked);
  const onClick = (event) => {
    const box = svgRef.current.getBoundingClientRect();
    const at = [((event.clientX - box.left) * width) / box.width, ((event.clientY - box.top) * height) / box.height];
    const apart = (row) => Math.hypot(x(row.lfc_mean) - at[0], y(row.bayes_factor) - at[1]);
    const nearest = rows.reduce((best, row) => (apart(row) < apart(best) ? row : best));
    if (apart(nearest) < 14) onPick(nearest.gene);
  };
  return html`<svg ref=${svgRef} class="chart" viewBox=${`0 0 ${width} ${height}`} role="img" aria-label="Volcano plot: log2 fold change against Bayes factor; the table has the same numbers" onClick=${onClick} font-size="12">
    <g stroke="#e5e7eb">${yTicks.map((one) => html`<path d=${`M${left} ${y(one)}H${width - 12}`} />`)}</g>
    <g stroke="#9ca3af" stroke-dasharray="3 3"><path d=${`M${x(delta)} ${top}V${height - bottom}`} /><path d=${`M${x(-delta)} ${top}V${height - bottom}`} /></g>
    <g fill="none" stroke-linecap="round" stroke-width="4.5">
      <path d=${path((row) => !row.flagged)} stroke="#9aa1ab" stroke-opacity="0.55" />
      <path d=${path((row) => row.flagged && row.lfc_mean > 0)} stroke=${UP} stroke-opacity="0.8" />
      <path d=${path((row) => row.flagged && row.lfc_mean <= 0)} stroke=${DOWN} stroke-opacity="0.8" />
    </g>
    ${named.map(({ row, tx, ty, anchor }) => html`<text key=${row.gene} x=${tx} y=${ty} text-anchor=${anchor} fill="#1f2937" stroke="#ffffff" stroke-width="3" paint-order="stroke">${row.gene}</text>`)}
    ${chosen &&
    html`<g stroke="#111827" stroke-width="1.5" fill="none">
        <path d=${`M${x(chosen.lfc_low)} ${y(chosen.bayes_factor)}H${x(chosen.lfc_high)}`} />
        <circle cx=${x(chosen.lfc_mean)} cy=${y(chosen.bayes_factor)} r="5" />
      </g>
      <text x=${x(chosen.lfc_mean)} y=${y(chosen.bayes_factor) - 9} text-anchor="middle" font-weight="600" fill="#111827" stroke="#ffffff" stroke-width="3" paint-order="stroke">${chosen.gene}</text>`}
    <g stroke="#6b7280"><path d=${`M${left} ${height - bottom}H${width - 12}`} />${xTicks.map((one) => html`<path d=${`M${x(one)} ${height - bottom}v4`} />`)}</g>
    <g fill="#4b5563">
      ${xTicks.map((one) => html`<text x=${x(one)} y=${height - bottom + 17} text-anchor="middle">${number(one)}</text>`)}
      ${yTicks.map((one) => html`<text x=${left - 7} y=${y(one) + 4} text-anchor="end">${number(one)}</text>`)}
      <text x=${(left + width - 12) / 2} y=${height - 6} text-anchor="middle">Log2 fold change, A over B</text>
      <text transform=${`translate(13 ${(height - bottom + top) / 2}) rotate(-90)`} text-anchor="middle">Bayes factor, log</text>
    </g>
  </svg>`;
}

/** Name the most certain genes where their names do not cover each other. */
function placeNames(rows, x, y) {
  const placed = [];
  for (const row of rows.slice(0, 4 * NAMED)) {
    if (placed.length === NAMED) break;
    const anchor = row.lfc_mean > 0 ? "start" : "end";
    const width = 7 * row.gene.length;
    const tx = x(row.lfc_mean) + (anchor === "start" ? 6 : -6);
    const ty = y(row.bayes_factor) + 4;
    const [from, to] = anchor === "start" ? [tx, tx + width] : [tx - width, tx];
    if (to > 436 || from < 48) continue;
    if (placed.every((one) => Math.abs(one.ty - ty) > 12 || to < one.from || from > one.to)) placed.push({ row, tx, ty, anchor, from, to });
  }
  return placed;
}
