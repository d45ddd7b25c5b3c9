/** The page: map in the middle, colours, filter and groups on its left, answers on its right. */
import { html, render, useCallback, useEffect, useMemo, useRef, useState } from "./preact.js";
import { getJson, keepToken } from "./api.js";
import { Abundance } from "./abundance.js";
import { Annotate } from "./annotate.js";
import { CellPanel, useCell, useNeighbors } from "./cell.js";
import { Compare } from "./compare.js";
import { Dots } from "./dots.js";
import { mapFigure } from "./figure.js";
import { columnName, count, quoted, title } from "./format.js";
import { Groups, useGroupSize } from "./groups.js";
import { Legend, legendTitle } from "./legend.js";
import { decodeState, encodeState } from "./link.js";
import { MapCanvas, describeDrawn } from "./map.js";
import { useMapDescription, usePicture, usePoints, useValues, WHOLE_PART } from "./map_data.js";
import { FigureButtons, GeneSearch, Problem, Waiting, useAnswer } from "./ui.js";
import { offersOf } from "./offers.js";
import { STEPS, WHOLE, visiblePart, zoomed } from "./view.js";
import { WhereForm } from "./where.js";

const MOST_POINTS = Number(new URLSearchParams(location.search).get("points")) || 1_000_000;
const SETTLE_MS = 250;
const PREFERRED = /^(cell_?type|label|celltype|annotation|cluster|leiden|louvain)/i;

function App() {
  const [state, setState] = useState(() => ({ ...decodeState(location.hash), sample: null }));
  const set = useCallback((change) => setState((old) => ({ ...old, ...(typeof change === "function" ? change(old) : change) })), []);
  const [turn, setTurn] = useState(0);
  const atlases = useAnswer(`atlases ${turn}`, (options) => getJson("/v1/atlases", options));
  useEffect(() => {
    const timer = setTimeout(() => history.replaceState(null, "", `#${encodeState(state)}`), 150);
    return () => clearTimeout(timer);
  }, [state]);
  useEffect(() => {
    const onHash = () => setState((old) => ({ ...old, ...decodeState(location.hash) }));
    addEventListener("hashchange", onHash);
    return () => removeEventListener("hashchange", onHash);
  }, []);
  if (atlases.error?.status === 401) return html`<${Token} onToken=${() => setTurn(turn + 1)} again=${turn > 0} />`;
  if (atlases.error) return html`<main class="alone"><${Problem} error=${atlases.error} onRetry=${atlases.retry} /></main>`;
  if (!atlases.value) return html`<main class="alone"><${Waiting}>Opening<//></main>`;
  const info = atlases.value.find((one) => one.name === state.atlas) ?? atlases.value[0];
  return html`<${AtlasPage} key=${info.name} info=${info} atlases=${atlases.value} state=${{ ...state, atlas: info.name }} set=${set} />`;
}

function Token({ onToken, again }) {
  const [text, setText] = useState("");
  return html`<main class="alone">
    <form
      class="token"
      onSubmit=${(event) => {
        event.preventDefault();
        keepToken(text.trim());
        onToken();
      }}
    >
      <h1>This service needs a token</h1>
      <label>Token<input type="password" autocomplete="off" value=${text} onInput=${(event) => setText(event.target.value)} /></label>
      ${again && html`<p class="bad" role="alert">The service does not accept this token.</p>`}
      <button type="submit" disabled=${!text.trim()}>Open</button>
      <p class="note">It is kept until this tab is closed.</p>
    </form>
  </main>`;
}

function AtlasPage({ info, atlases, state, set }) {
  const atlas = info.name;
  const description = useMapDescription(atlas);
  const map = description.value;
  const offers = useMemo(() => offersOf(info), [info]);
  const color = state.color ?? defaultColor(info);
  const groupSizes = { a: useGroupSize(atlas, map, state.groups.a, state.where), b: useGroupSize(atlas, map, state.groups.b, state.where) };
  const cell = useCell(atlas, map ? state.cell : null);
  const neighbors = useNeighbors(atlas, map && state.tab === "cell" ? state.cell : null, state.where, offers.neighbors);
  const [annotation, setAnnotation] = useState(null);
  const shared = { state: { ...state, color }, set, atlas, info, map, offers };
  const setGroup = (key, group) => set((old) => ({ groups: { ...old.groups, [key]: group } }));
  return html`<div class="page">
    <header>
      <h1>${atlases.length > 1 ? html`<select aria-label="Atlas" value=${atlas} onChange=${(event) => set({ ...decodeState(""), atlas: event.target.value })}>${atlases.map((one) => html`<option value=${one.name}>${one.name}</option>`)}</select>` : atlas}</h1>
      <p>${count(info.n_cells)} cells <span aria-hidden="true">·</span> ${count(info.n_genes)} genes <span aria-hidden="true">·</span> ${info.model}</p>
      <${CopyLink} />
    </header>
    <main>
      <${MapSide} ...${shared} description=${description} cell=${cell} neighbors=${neighbors} annotation=${annotation} groupSizes=${groupSizes} setGroup=${setGroup} />
      <section class="answers" aria-label="Questions">
        <${Tabs} state=${state} set=${set} offers=${offers} />
        <div class="tab-panel" role="tabpanel" id="panel" aria-labelledby=${`tab-${state.tab}`} tabindex="-1">
          ${!map
            ? html`<${Waiting}>Waiting for the map<//>`
            : state.tab === "genes"
              ? html`<${Dots} ...${shared} />`
              : state.tab === "cell"
                ? html`<${CellPanel} ...${shared} cell=${cell} neighbors=${neighbors} onCell=${(row) => set({ cell: row })} />`
                : state.tab === "abundance"
                  ? html`<${Abundance} ...${shared} />`
                  : state.tab === "annotate"
                    ? html`<${Annotate} ...${shared} annotation=${annotation} setAnnotation=${setAnnotation} />`
                    : html`<${Compare} ...${shared} sizes=${groupSizes} onGene=${(gene) => set({ color: { kind: "gene", name: gene, uncertainty: false } })} />`}
        </div>
      </section>
    </main>
  </div>`;
}

function defaultColor(info) {
  const categorical = info.obs.filter((one) => one.kind === "categorical").map((one) => one.name);
  const name = categorical.find((one) => PREFERRED.test(one)) ?? info.leaves?.columns[0] ?? categorical[0];
  return name ? { kind: "column", name, uncertainty: false } : null;
}

const TABS = [
  ["compare", "Compare", "differential-expression"],
  ["genes", "Genes", "expression"],
  ["cell", "Cell", null],
  ["abundance", "Abundance", null],
  ["annotate", "Annotate", "annotate"],
];

function Tabs({ state, set, offers }) {
  const shown = TABS.filter(([, , question]) => !question || offers.has(question));
  const onKeyDown = (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const at = shown.findIndex(([key]) => key === state.tab);
    const [next] = shown[(at + step + shown.length) % shown.length];
    set({ tab: next });
    requestAnimationFrame(() => document.getElementById(`tab-${next}`)?.focus());
  };
  return html`<div role="tablist" aria-label="Questions" onKeyDown=${onKeyDown}>
    ${shown.map(([key, label]) => html`<button key=${key} id=${`tab-${key}`} role="tab" aria-selected=${state.tab === key} aria-controls="panel" tabindex=${state.tab === key ? 0 : -1} onClick=${() => set({ tab: key })}>${label}</button>`)}
  </div>`;
}

function CopyLink() {
  const [done, setDone] = useState(false);
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(location.href);
      setDone(true);
      setTimeout(() => setDone(false), 1500);
    } catch {
      prompt("Link to this view", location.href);
    }
  };
  return html`<button class="quiet copy" onClick=${copy}><span role="status">${done ? "Link copied" : "Copy link"}</span></button>`;
}

/** The view once it has not moved for a moment: what is fetched again. */
function useSettled(value) {
  const [settled, setSettled] = useState(value);
  useEffect(() => {
    const timer = setTimeout(() => setSettled(value), SETTLE_MS);
    return () => clearTimeout(timer);
  }, [value.x, value.y, value.span]);
  return settled;
}

function MapSide({ state, set, atlas, info, map, offers, description, cell, neighbors, annotation, groupSizes, setGroup }) {
  const { color } = state;
  const view = state.view ?? WHOLE;
  const settled = useSettled(view);
  const [mode, setMode] = useState("pan");
  const [webgl, setWebgl] = useState(true);
  const [hidden, setHidden] = useState(new Set());
  const [highlighted, setHighlighted] = useState(null);
  const [showLabels, setShowLabels] = useState(true);
  const figureRef = useRef(null);
  useEffect(() => {
    setHidden(new Set());
    setHighlighted(null);
  }, [color?.kind, color?.name]);

  const fits = info.n_cells <= MOST_POINTS;
  const part = fits || settled.span > 0.7 * STEPS ? WHOLE_PART : (visiblePart(settled, 1, 1, 0.6) ?? WHOLE_PART);
  const asked = map && webgl ? { view: part.join(","), most: MOST_POINTS } : null;
  const basePoints = usePoints(atlas, asked);
  const focusAsked = asked && state.where ? { ...asked, where: state.where } : null;
  const focusPoints = usePoints(atlas, focusAsked);
  const baseValues = useValues(atlas, focusAsked || !asked ? null : asked, color);
  const focusValues = useValues(atlas, focusAsked, color);
  const crowded = (basePoints.value?.nInView ?? 0) > MOST_POINTS;
  const drawsDensity = !webgl || state.density === "density" || (state.density === "auto" && crowded);
  const bins = Math.round(Math.max(96, Math.min(768, 4 * Math.sqrt(basePoints.value?.nInView ?? info.n_cells))));  // few cells make large dots
  const pictureAsked = map && drawsDensity ? { view: part.join(","), width: bins, height: bins, where: state.where || null } : null;
  const picture = usePicture(atlas, pictureAsked, color);
  const base = { points: basePoints.value, values: baseValues.value };
  const focus = { points: focusAsked ? focusPoints.value : null, values: focusValues.value };
  const shownPicture = drawsDensity ? picture.value : null;
  const values = shownPicture?.values?.kind ? shownPicture.values : focus.points ? focus.values : base.values;
  const sizes = useColumnSizes(atlas, color);
  const error = description.error ?? basePoints.error ?? focusPoints.error ?? baseValues.error ?? focusValues.error ?? picture.error;
  const loading = basePoints.loading || focusPoints.loading || baseValues.loading || focusValues.loading || picture.loading;
  const marks = { cell: cell.value && state.cell !== null ? [cell.value.x, cell.value.y] : null, neighbors: (state.cell !== null && neighbors.value?.places) || [] };
  const query = annotation?.places ?? null;
  const caption = describeDrawn({ base, focus, picture: shownPicture, nCells: info.n_cells });
  const drawn = { view, mode, groups: state.groups, marks, query, palettes: map?.palettes, color, hidden, highlighted, showLabels, picture: shownPicture };
  const colored = focus.points ? focus : base;
  const figure = () => mapFigure(figureRef.current(), { ...drawn, colored, values, caption });
  const asGroup = (key, name) => setGroup(key, { where: `${columnName(color.name)} == ${quoted(name)}` });

  return html`
    <section class="controls" aria-label="Colours, filter and groups">
      <${ColorBy} color=${color} set=${set} atlas=${atlas} info=${info} />
      <div class="legend-room">
        <h2>${legendTitle(color)}</h2>
        ${color?.kind === "gene" &&
        html`<div class="switch" role="group" aria-label="Value or uncertainty">
          ${[false, true].map((one) => html`<button key=${one} aria-pressed=${Boolean(color.uncertainty) === one} onClick=${() => set({ color: { ...color, uncertainty: one } })}>${one ? "Uncertainty" : "Expression"}</button>`)}
        </div>`}
        ${map && color && html`<${Legend} palettes=${map.palettes} color=${color} values=${describes(values, color) ? values : null} sizes=${sizes} hidden=${hidden} highlighted=${highlighted} onHide=${setHidden} onHighlight=${setHighlighted} onGroup=${asGroup} />`}
      </div>
      <${WhereForm} atlas=${atlas} info=${info} where=${state.where} onWhere=${(where) => set({ where })} />
      ${map && html`<${Groups} state=${state} set=${set} map=${map} sizes=${groupSizes} />`}
    </section>
    <section class="map" aria-label="Map of the cells">
      <div class="map-bar">
        <div class="switch" role="group" aria-label="What a drag does">
          ${[["pan", "Move"], ["a", "Lasso A"], ["b", "Lasso B"]].map(([key, label]) => html`<button key=${key} class=${key === "pan" ? "" : `group-${key}`} aria-pressed=${mode === key} onClick=${() => setMode(key)}>${label}</button>`)}
        </div>
        <div class="buttons">
          <button class="quiet icon" aria-label="Zoom in" onClick=${() => set({ view: zoomed(view, 1.6) })}>+</button>
          <button class="quiet icon" aria-label="Zoom out" onClick=${() => set({ view: zoomed(view, 1 / 1.6) })}>−</button>
          <button class="quiet" onClick=${() => set({ view: null })}>All</button>
          <button class="quiet" aria-pressed=${showLabels} onClick=${() => setShowLabels(!showLabels)}>Names</button>
          ${webgl && html`<button class="quiet" aria-pressed=${drawsDensity} onClick=${() => set({ density: drawsDensity ? "points" : "density" })}>Density</button>`}
        </div>
        ${map && html`<${FigureButtons} svg=${figure} name="map" />`}
      </div>
      <div class="map-room">
        ${map &&
        html`<${MapCanvas}
          ...${drawn}
          base=${base}
          focus=${focus}
          nCells=${info.n_cells}
          onView=${(next) => set({ view: next })}
          onWebgl=${setWebgl}
          onLasso=${(key, polygon) => {
            setGroup(key, { polygon });
            setMode(key === "a" && !state.groups.b && mode === "a" ? "b" : "pan");
            set({ tab: state.tab === "abundance" ? "abundance" : "compare" });
          }}
          onPick=${([x, y], radius) => pickCell(atlas, x, y, radius, state.where).then((row) => row !== null && set({ cell: row, tab: "cell" }))}
          figureRef=${figureRef}
        />`}
        ${!map && !description.error && html`<div class="over"><${Waiting}>${making(description.progress, info)}<//></div>`}
        ${error && html`<div class="over"><${Problem} error=${error} onRetry=${() => (description.error ? description.retry() : [basePoints, focusPoints, baseValues, focusValues, picture].forEach((one) => one.error && one.retry()))} /></div>`}
        ${map && loading && !error && html`<div class="corner"><${Waiting}>Loading<//></div>`}
        <p class="map-note" role="status">${caption}${!webgl && map ? ". Drawn by the service: this browser has no WebGL 2" : ""}${color?.uncertainty && colored.values ? `; uncertainty of ${count(colored.values.array?.length ?? 0)}` : ""}</p>
      </div>
    </section>
  `;
}

function describes(values, color) {
  return values && (color.kind === "column" ? values.label === color.name : true);
}

function making(progress, info) {
  if (!progress) return "Opening the map";
  if (!progress.placed) return `Making the map: UMAP of ${count(Math.min(progress.n_landmarks, info.n_cells))} cells. This is done once and takes up to some minutes`;
  return `Placing cells on the map: ${count(progress.placed)} of ${count(progress.n_cells)}`;
}

async function pickCell(atlas, x, y, radius, where) {
  const query = new URLSearchParams({ x: Math.round(x), y: Math.round(y), radius: Math.max(1, Math.round(radius)) });
  if (where) query.set("where", where);
  try {
    return (await getJson(`/v1/${encodeURIComponent(atlas)}/map/cell?${query}`)).row;
  } catch {
    return null;
  }
}

function useColumnSizes(atlas, color) {
  const path = color?.kind === "column" ? `/v1/${encodeURIComponent(atlas)}/obs/${encodeURIComponent(color.name)}` : null;
  const answer = useAnswer(path, (options) => getJson(path, options));
  return useMemo(() => answer.value?.categories && Object.fromEntries(answer.value.categories.map((one) => [one.name, one.n_cells])), [answer.value]);
}

function ColorBy({ color, set, atlas, info }) {
  const columns = info.obs.map((one) => one.name).filter((name) => !/^(leaf|source_row|log_normalizer)$/.test(name));
  return html`<div class="color-by">
    <label>Colour by
      <select value=${color?.kind === "column" ? color.name : ""} onChange=${(event) => event.target.value && set({ color: { kind: "column", name: event.target.value, uncertainty: false } })}>
        ${color?.kind === "gene" && html`<option value="">${color.name} (gene)</option>`}
        ${columns.map((name) => html`<option value=${name}>${title(name)}</option>`)}
      </select>
    </label>
    <${GeneSearch} atlas=${atlas} label="or a gene" onChoose=${(name) => set({ color: { kind: "gene", name, uncertainty: false } })} />
  </div>`;
}

render(html`<${App} />`, document.getElementById("app"));
