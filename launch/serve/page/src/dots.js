/** Dot plot: expected expression of genes by group of cells. */
import { html, useMemo, useRef, useState } from "./preact.js";
import { ask, rowsOf } from "./api.js";
import { rampHex } from "./colors.js";
import { cells, count, interval, number, percent, ticks, title } from "./format.js";
import { Empty, FigureButtons, GeneSearch, JobProgress, Problem, Table, useAnswer } from "./ui.js";

const MOST_GENES = 40;

export function Dots({ state, set, atlas, info, map, offers }) {
  const [scaled, setScaled] = useState(true);
  const columns = info.obs.filter((one) => one.kind === "categorical").map((one) => one.name);
  const by = state.by ?? (state.color?.kind === "column" && columns.includes(state.color.name) ? state.color.name : (info.leaves?.columns[0] ?? columns[0]));
  const genes = state.genes;
  const body = { genes, by: [by], where: state.where || null, library_size: 10_000 };
  const answer = useAnswer(genes.length && by ? JSON.stringify([atlas, body]) : null, (options) => ask(atlas, "expression", body, options));
  const rows = useMemo(() => answer.value && rowsOf(answer.value), [answer.value]);
  const svg = useRef(null);
  const setGenes = (next) => set({ genes: next.slice(0, MOST_GENES) });
  return html`<div class="panel">
    <div class="row">
      <${GeneSearch} atlas=${atlas} label="Add a gene" onChoose=${(gene) => setGenes([...genes.filter((one) => one !== gene), gene])} />
      <label>Groups
        <select value=${by} onChange=${(event) => set({ by: event.target.value })}>
          ${columns.map((one) => html`<option value=${one}>${title(one)}</option>`)}
        </select>
      </label>
      ${offers.markers && html`<${MarkerButton} atlas=${atlas} by=${by} where=${state.where} onGenes=${setGenes} />`}
    </div>
    ${genes.length > 0 &&
    html`<ul class="chips" aria-label="Genes of the dot plot">
      ${genes.map((gene) => html`<li key=${gene}><button onClick=${() => setGenes(genes.filter((one) => one !== gene))} aria-label=${`Remove ${gene}`}>${gene} <span aria-hidden="true">×</span></button></li>`)}
      <li><button class="quiet" onClick=${() => setGenes([])}>Remove all</button></li>
    </ul>`}
    ${!genes.length
      ? html`<${Empty}><h3>Expression by group</h3><p>Add genes by name or symbol${offers.markers ? ", or take the markers of each group" : ""}.</p><//>`
      : answer.error
        ? html`<${Problem} error=${answer.error} onRetry=${answer.retry} />`
        : !rows
          ? html`<${JobProgress} answer=${answer}>Computing expression<//><div class="figure-room" aria-hidden="true"></div>`
          : html`<div class=${answer.loading ? "stale" : ""}>
              <div class="row">
                <label class="check"><input type="checkbox" checked=${scaled} onChange=${() => setScaled(!scaled)} />Colours from 0 to the largest of each gene</label>
                <${FigureButtons} svg=${() => svg.current} name="dot_plot" />
              </div>
              <${DotPlot} rows=${rows} scaled=${scaled} by=${by} palettes=${map.palettes} svgRef=${svg} />
              <${Table}
                name="expression_by_group"
                caption=${`Counts per 10,000 expected by the model; ${cells(Object.values(answer.value.provenance.n_cells).reduce((a, b) => a + b, 0))}, engine ${answer.value.provenance.engine}`}
                rows=${rows.map((row) => ({ ...row, low: interval(row.mean, row.se)[0], high: interval(row.mean, row.se)[1] }))}
                saved=${answer.value.columns}
                columns=${[
                  { key: "group", label: title(by), left: true, text: (row) => row.group },
                  { key: "gene", label: "Gene", left: true, text: (row) => row.gene },
                  { key: "n", label: "Cells", text: (row) => count(row.n) },
                  { key: "mean", label: "Mean", help: "With its 95 % interval", text: (row) => html`${number(row.mean)} <span class="note">[${number(row.low)}, ${number(row.high)}]</span>` },
                  { key: "sd", label: "SD", help: "Over the cells of the group" },
                  ...(answer.value.columns.includes("detected") ? [{ key: "detected", label: "Detected", help: "Share of cells with counts", text: (row) => percent(row.detected) }] : []),
                ]}
              />
            </div>`}
  </div>`;
}

function MarkerButton({ atlas, by, where, onGenes }) {
  const [state, setState] = useState({ busy: false, error: null });
  const run = async () => {
    setState({ busy: true, error: null });
    try {
      const table = await ask(atlas, "markers", { by: [by], where: where || null, n_genes: 3 });
      onGenes([...new Set(rowsOf(table, ["gene"]).map((row) => row.gene))]);
      setState({ busy: false, error: null });
    } catch (error) {
      setState({ busy: false, error });
    }
  };
  return html`<button onClick=${run} disabled=${state.busy}>${state.busy ? "Finding markers" : "Markers of each group"}</button>
    ${state.error && html`<span class="bad" role="alert">${state.error.message}</span>`}`;
}

function DotPlot({ rows, scaled, by, palettes, svgRef }) {
  const { genes, groups, cell, most, largest } = useMemo(() => {
    const table = new Map(rows.map((row) => [`${row.group}\n${row.gene}`, row]));
    const names = [...new Set(rows.map((row) => row.gene))];
    return {
      genes: names,
      groups: [...new Set(rows.map((row) => row.group))],
      cell: (group, gene) => table.get(`${group}\n${gene}`),
      most: new Map(names.map((gene) => [gene, Math.max(...rows.filter((row) => row.gene === gene).map((row) => row.mean)) || 1])),
      largest: Math.max(...rows.map((row) => row.mean)) || 1,
    };
  }, [rows]);
  const sized = rows.some((row) => row.detected !== undefined && row.detected !== null);
  const step = 22;
  const left = 14 + 6.6 * Math.max(...groups.map((one) => Math.min(28, one.length)), 6);
  const top = 18 + 6.2 * Math.max(...genes.map((one) => one.length)) * 0.75;
  const [width, height] = [Math.max(left + step * genes.length + 128, 320), top + step * Math.max(groups.length, 7) + 30];
  const radius = (row) => (sized ? Math.max(1.2, 9 * Math.sqrt(row.detected ?? 0)) : 8);
  const share = (row) => (scaled ? row.mean / most.get(row.gene) : row.mean / largest);
  const legend = left + step * genes.length + 24;
  return html`<div class="chart-scroll" tabindex="0" role="region" aria-label="Dot plot">
    <svg ref=${svgRef} class="chart natural" viewBox=${`0 0 ${width} ${height}`} width=${width} height=${height} role="img" aria-label=${`Dot plot of ${genes.length} genes by ${title(by)}; the table has the same numbers`} font-size="12" fill="#1f2937">
      ${genes.map((gene, at) => html`<text key=${gene} transform=${`translate(${left + step * at + 15} ${top - 6}) rotate(-50)`}>${gene}</text>`)}
      ${groups.map(
        (group, row) => html`<g key=${group} transform=${`translate(0 ${top + step * row})`}>
          <text x=${left - 8} y="15" text-anchor="end"><title>${group}</title>${group.length > 28 ? `${group.slice(0, 27)}…` : group}</text>
          ${genes.map((gene, at) => {
            const found = cell(group, gene);
            return found && html`<circle key=${gene} cx=${left + step * at + 11} cy="11" r=${radius(found)} fill=${rampHex(palettes.numbers, share(found))} stroke="#9ca3af" stroke-width="0.5"><title>${`${gene} in ${group}: ${number(found.mean)} per 10,000${sized ? `, detected in ${percent(found.detected)}` : ""}, ${cells(found.n)}`}</title></circle>`;
          })}
        </g>`,
      )}
      <text x=${left + (step * genes.length) / 2} y=${top + step * groups.length + 20} text-anchor="middle" fill="#4b5563">Gene</text>
      <g transform=${`translate(${legend} ${top})`} fill="#4b5563">
        <text y="4">${scaled ? "Mean, of largest" : "Mean per 10,000"}</text>
        ${Array.from({ length: 40 }, (_, at) => html`<rect x=${at * 2} y="12" width="2.4" height="10" fill=${rampHex(palettes.numbers, at / 39)} />`)}
        <text y="36">0</text><text x="80" y="36" text-anchor="end">${scaled ? "1" : number(largest)}</text>
        ${sized &&
        html`<text y="62">Cells detected in</text>
          ${[0.1, 0.5, 1].map((one, at) => html`<g transform=${`translate(${10 + 32 * at} 82)`}><circle r=${9 * Math.sqrt(one)} fill="#9ca3af" /><text y="24" text-anchor="middle">${100 * one} %</text></g>`)}`}
      </g>
    </svg>
  </div>`;
}
