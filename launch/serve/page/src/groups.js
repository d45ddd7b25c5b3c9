/** Two groups of cells: drawn on the map, taken from the legend, or written as filters. */
import { html, useState } from "./preact.js";
import { getJson } from "./api.js";
import { cells } from "./format.js";
import { useAnswer } from "./ui.js";

const STEPS = 65535;

/** Count cells of a group; with `by`, also for each category of this obs column, and all cells of it. */
export function countSelection(atlas, { group, map, within, by }, options) {
  const { where, polygon } = group.polygon ? groupBody(group, map, "") : group;
  const body = { where, polygon, within: within || null, by };
  return getJson(`/v1/${encodeURIComponent(atlas)}/map/select`, { ...options, body });
}

/** A group as the service takes it: the polygon in UMAP coordinates, within the filter. */
export function groupBody(group, map, where) {
  if (!group) return null;
  if (group.where !== undefined) return where ? `(${group.where}) and (${where})` : group.where;
  const scale = map.size / STEPS;
  const polygon = group.polygon.map(([x, y]) => [map.low[0] + x * scale, map.low[1] + y * scale]);
  return where ? { polygon, where } : { polygon };
}

export function useGroupSize(atlas, map, group, where) {
  const key = map && group && JSON.stringify([atlas, group, where]);
  return useAnswer(key, async (options) => (await countSelection(atlas, { group, map, within: where }, options)).n_cells);
}

export function Groups({ state, set, map, sizes }) {
  return html`<section class="groups" aria-label="Groups to compare">
    ${["a", "b"].map((key) => html`<${Group} key=${key} name=${key} group=${state.groups[key]} size=${sizes[key]} set=${set} other=${key === "b"} map=${map} />`)}
  </section>`;
}

function Group({ name, group, size, set, other }) {
  const [text, setText] = useState(null);
  const put = (value) => {
    set((old) => ({ groups: { ...old.groups, [name]: value } }));
    setText(null);
  };
  const label = name.toUpperCase();
  const described = !group ? (other ? "all other cells" : "nothing yet") : group.where !== undefined ? group.where : "lasso on the map";
  return html`<div class=${`group group-${name}`}>
    <span class="badge" aria-hidden="true">${label}</span>
    ${text === null
      ? html`<div class="group-text">
            <span class="described" title=${described}>${described}</span>
            <span class="note" role="status">${size.error ? html`<span class="bad">${size.error.message}</span>` : size.loading ? "counting" : size.value ? cells(size.value) : group ? "" : other ? "" : "draw a lasso, use the legend, or write a filter"}</span>
          </div>
          <button class="quiet" onClick=${() => setText(group?.where ?? "")} aria-label=${`Write a filter for group ${label}`}>Filter</button>
          ${group && html`<button class="quiet" onClick=${() => put(null)} aria-label=${`Clear group ${label}`}>Clear</button>`}`
      : html`<form
          class="group-form"
          onSubmit=${(event) => {
            event.preventDefault();
            put(text.trim() ? { where: text.trim() } : null);
          }}
        >
          <input type="text" aria-label=${`Filter of group ${label}`} value=${text} onInput=${(event) => setText(event.target.value)} placeholder="cell_type == 'B'" autofocus spellcheck=${false} />
          <button type="submit">Set</button>
          <button type="button" class="quiet" onClick=${() => setText(null)}>Cancel</button>
        </form>`}
  </div>`;
}
