/** Abundance: the share of each sample's cells that is in a group, with its interval. */
import { html, useMemo, useRef } from "./preact.js";
import { cells, count, percent, ticks, title } from "./format.js";
import { Empty, FigureButtons, Problem, Table, Waiting, useAnswer } from "./ui.js";
import { countSelection } from "./groups.js";
import { GROUP_COLORS } from "./map.js";

const SAMPLE_NAMES = /donor|sample|patient|individual|batch|library|channel/i;

export function Abundance({ state, set, atlas, info, map }) {
  const columns = info.obs.filter((one) => one.kind === "categorical").map((one) => one.name);
  const by = columns.includes(state.sample) ? state.sample : (columns.find((name) => SAMPLE_NAMES.test(name)) ?? columns[0]);
  const keys = ["a", "b"].filter((key) => state.groups[key]);
  const answer = useAnswer(keys.length && by ? JSON.stringify([atlas, by, state.where, keys.map((key) => state.groups[key])]) : null, (options) =>
    Promise.all(keys.map((key) => countSelection(atlas, { group: state.groups[key], map, within: state.where, by }, options))),
  );
  const rows = useMemo(() => answer.value?.flatMap((found, at) => found.by.map((one) => shareOf(keys[at], one))), [answer.value]);
  const svg = useRef(null);
  if (!keys.length) return html`<${Empty}><h3>Abundance by sample</h3><p>Choose a group of cells: how large a share of each sample it is appears here.</p><//>`;
  return html`<div class="panel">
    <div class="row">
      <label>Samples
        <select value=${by} onChange=${(event) => set({ sample: event.target.value })}>${columns.map((one) => html`<option value=${one}>${title(one)}</option>`)}</select>
      </label>
      ${rows && html`<${FigureButtons} svg=${() => svg.current} name="abundance" />`}
    </div>
    ${answer.error
      ? html`<${Problem} error=${answer.error} onRetry=${answer.retry} />`
      : !rows
        ? html`<${Waiting}>Counting cells<//>`
        : html`<div class=${answer.loading ? "stale" : ""}>
            <p class="summary" role="status">${answer.value.map((found, at) => html`${at ? ", " : ""}${keys[at].toUpperCase()}: <b>${cells(found.n_cells)}</b>`)} in ${count(new Set(rows.map((row) => row.sample)).size)} samples${state.where ? ", of the cells that the filter keeps" : ""}.</p>
            <${Shares} rows=${rows} by=${by} svgRef=${svg} />
            <${Table}
              name="abundance"
              caption="Shares with their 95 % intervals (Wilson), which cover the sampling of cells only"
              rows=${rows}
              saved=${["sample", "group", "n", "total", "fraction", "low", "high"]}
              columns=${[
                { key: "sample", label: title(by), left: true, text: (row) => row.sample },
                { key: "group", label: "Group", left: true, text: (row) => row.group },
                { key: "n", label: "Cells", text: (row) => count(row.n) },
                { key: "total", label: "Of", text: (row) => count(row.total) },
                { key: "fraction", label: "Share", text: (row) => html`${percent(row.fraction)} <span class="note">[${percent(row.low)}, ${percent(row.high)}]</span>` },
              ]}
            />
          </div>`}
  </div>`;
}

/** The interval of Wilson (1927), as the question for abundance of the service has it. */
function shareOf(key, { name, n, total }) {
  const z = 1.959964;
  const fraction = total ? n / total : NaN;
  const middle = (n + (z * z) / 2) / (total + z * z);
  const half = (z / (total + z * z)) * Math.sqrt((n * (total - n)) / total + (z * z) / 4);
  return { sample: name, group: key.toUpperCase(), n, total, fraction, low: Math.max(0, middle - half), high: Math.min(1, middle + half) };
}

function Shares({ rows, by, svgRef }) {
  const samples = [...new Set(rows.map((row) => row.sample))].slice(0, 60);
  const shown = rows.filter((row) => samples.includes(row.sample) && row.total);
  const left = 16 + 6.6 * Math.max(6, ...samples.map((one) => Math.min(24, one.length)));
  const [width, step] = [440, 24];
  const bottom = 14 + step * samples.length;
  const most = Math.max(...shown.map((row) => row.high), 0.01);
  const x = (share) => left + (share / most) * (width - left - 24);
  const two = new Set(rows.map((row) => row.group)).size > 1;
  return html`<svg ref=${svgRef} class="chart" viewBox=${`0 0 ${width} ${bottom + 42}`} role="img" aria-label="Share of each sample in the group; the table has the same numbers" font-size="12" fill="#1f2937">
    ${ticks(0, most, 4).map((one) => html`<g key=${one}><path d=${`M${x(one)} 8V${bottom}`} stroke="#e5e7eb" /><text x=${x(one)} y=${bottom + 16} text-anchor="middle" fill="#4b5563">${percent(one)}</text></g>`)}
    ${samples.map((name, at) => html`<text key=${name} x=${left - 8} y=${14 + step * at + 12} text-anchor="end">${name.length > 24 ? `${name.slice(0, 23)}…` : name}</text>`)}
    ${shown.map((row) => {
      const y = 14 + step * samples.indexOf(row.sample) + 8 + (two ? (row.group === "A" ? -4 : 4) : 0);
      const color = GROUP_COLORS[row.group.toLowerCase()];
      return html`<g key=${`${row.sample}-${row.group}`} stroke=${color}><path d=${`M${x(row.low)} ${y}H${x(row.high)}`} stroke-width="1.75" /><circle cx=${x(row.fraction)} cy=${y} r="4" fill=${color} /></g>`;
    })}
    <path d=${`M${left} 8V${bottom}`} stroke="#6b7280" />
    <text x=${(left + width) / 2} y=${bottom + 36} text-anchor="middle" fill="#4b5563">Share of the cells of each ${title(by)}</text>
  </svg>`;
}
