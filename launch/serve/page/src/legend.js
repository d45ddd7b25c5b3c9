/** Legends on the page, where categories are buttons, and in figures. */
import { html } from "./preact.js";
import { categoryHex, rampHex, stopsOf } from "./colors.js";
import { count, number, ticks, title } from "./format.js";

export function legendTitle(color) {
  if (!color) return "";
  if (color.kind === "column") return title(color.name);
  return color.uncertainty ? `${color.name}: posterior SD` : color.name;
}

export function legendUnit(color) {
  if (color?.kind !== "gene") return "";
  return color.uncertainty ? "SD of log(1 + counts per 10,000) over posterior draws" : "log(1 + counts per 10,000), expected by the model";
}

/** Categories with their cells, to highlight, hide, and take as a group; or a bar of colours. */
export function Legend({ palettes, color, values, sizes, hidden, highlighted, onHide, onHighlight, onGroup }) {
  if (!values) return html`<div class="legend loading" aria-hidden="true">${[72, 90, 64, 80].map((width) => html`<span class=${`bone w${width}`}></span>`)}</div>`;
  if (values.kind === "numeric") return html`<${Ramp} palettes=${palettes} color=${color} values=${values} />`;
  return html`<div class="legend">
    ${hidden.size > 0 && html`<button class="quiet" onClick=${() => onHide(new Set())}>Show all categories</button>`}
    <ul aria-label=${`Categories of ${title(color.name)}`}>
      ${values.categories.map(
        (name, code) => html`<li
          key=${name}
          class=${hidden.has(code) ? "hidden" : ""}
          onMouseEnter=${() => onHighlight(code)}
          onMouseLeave=${() => onHighlight(null)}
        >
          <button
            class="category"
            aria-pressed=${!hidden.has(code)}
            title=${`${hidden.has(code) ? "Show" : "Hide"} ${name}`}
            onFocus=${() => onHighlight(code)}
            onBlur=${() => onHighlight(null)}
            onClick=${() => {
              const next = new Set(hidden);
              if (!next.delete(code)) next.add(code);
              onHide(next);
            }}
          >
            <svg viewBox="0 0 12 12" width="12" height="12" aria-hidden="true"><circle cx="6" cy="6" r="5" fill=${categoryHex(palettes, code)} /></svg>
            <span class="name">${name}</span>
            <span class="note">${sizes?.[name] === undefined ? "" : count(sizes[name])}</span>
          </button>
          <span class="as-group">
            ${["a", "b"].map((key) => html`<button key=${key} class=${`group-${key}`} title=${`Take ${name} as group ${key.toUpperCase()}`} onClick=${() => onGroup(key, name)}>${key.toUpperCase()}</button>`)}
          </span>
        </li>`,
      )}
    </ul>
  </div>`;
}

function Ramp({ palettes, color, values }) {
  const [low, high] = values.domain;
  const steps = Array.from({ length: 64 }, (_, at) => at / 63);
  const marks = ticks(low, high, 4);
  const at = (value) => 4 + 232 * ((value - low) / (high - low || 1));
  return html`<div class="legend">
    <svg class="ramp" viewBox="0 0 240 34" role="img" aria-label=${`Colours from ${number(low)} to ${number(high)}`}>
      ${steps.map((share, place) => html`<rect key=${place} x=${4 + (232 * place) / 64} y="0" width=${232 / 64 + 0.4} height="12" fill=${rampHex(stopsOf(palettes, color), share)} />`)}
      ${marks.map((value) => html`<g key=${value}><path d=${`M${at(value)} 12v4`} stroke="#6b7280" /><text x=${at(value)} y="29" font-size="12" text-anchor="middle" fill="#4b5563">${number(value)}</text></g>`)}
    </svg>
    <p class="note">${legendUnit(color)}${values.high > high * 1.001 ? `; up to ${number(values.high)}` : ""}</p>
  </div>`;
}

/** The legend of a figure as SVG, its top left at (x, y). */
export function FigureLegend({ palettes, color, values, hidden, x, y, height }) {
  if (!color || !values) return null;
  if (values.kind === "categorical") {
    const shown = values.categories.map((name, code) => ({ name, code })).filter(({ code }) => !hidden.has(code));
    const most = Math.floor((height - 40) / 18);
    return html`<g transform=${`translate(${x} ${y})`} font-size="12" fill="#1f2937">
      <text font-weight="600" font-size="14" y="12">${legendTitle(color)}</text>
      ${shown.slice(0, most).map(({ name, code }, place) => html`<g key=${code} transform=${`translate(0 ${28 + 18 * place})`}><circle cx="6" cy="-1" r="5" fill=${categoryHex(palettes, code)} /><text x="18" y="3">${name}</text></g>`)}
      ${shown.length > most && html`<text y=${28 + 18 * most} fill="#6b7280">and ${shown.length - most} more</text>`}
    </g>`;
  }
  const [low, high] = values.domain;
  const marks = ticks(low, high, 4);
  return html`<g transform=${`translate(${x} ${y})`} font-size="12" fill="#1f2937">
    <text font-weight="600" font-size="14" y="12">${legendTitle(color)}</text>
    ${Array.from({ length: 64 }, (_, at) => html`<rect key=${at} x="0" y=${28 + 150 - (150 * (at + 1)) / 64} width="14" height=${150 / 64 + 0.4} fill=${rampHex(stopsOf(palettes, color), at / 63)} />`)}
    ${marks.map((value) => html`<text key=${value} x="20" y=${32 + 150 * (1 - (value - low) / (high - low || 1))}>${number(value)}</text>`)}
    <text y="200" fill="#4b5563">${legendUnit(color).split(",")[0]}</text>
  </g>`;
}
