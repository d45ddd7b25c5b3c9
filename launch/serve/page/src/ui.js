/** Small parts of every panel: buttons to save, notes, errors, waiting, tables, and the search for genes. */
import { html, useEffect, useId, useMemo, useRef, useState } from "./preact.js";
import { number, title } from "./format.js";
import { saveCsv, savePng, saveSvg } from "./save.js";
import { getJson } from "./api.js";

export function Waiting({ children, onCancel }) {
  return html`<div class="waiting" role="status">
    <span class="spinner" aria-hidden="true"></span><span>${children}</span>
    ${onCancel && html`<button class="quiet" onClick=${onCancel}>Cancel</button>`}
  </div>`;
}

export function Problem({ error, onRetry }) {
  return html`<div class="problem" role="alert">
    <p>${error.message}</p>
    ${onRetry && html`<button onClick=${onRetry}>Try again</button>`}
  </div>`;
}

export function Empty({ children }) {
  return html`<div class="empty">${children}</div>`;
}

/** Ask once the inputs stop changing, and again when they change; the last answer stays until the next one is there. */
export function useAnswer(key, load) {
  const [state, setState] = useState({ key: null, value: null, error: null, job: null });
  const [turn, setTurn] = useState(0);
  const stop = useRef(null);
  useEffect(() => {
    if (key === null) {
      setState({ key: null, value: null, error: null, job: null });
      return undefined;
    }
    const controller = new AbortController();
    stop.current = controller;
    const asked = `${key}`;
    setState((old) => ({ ...old, key: null, error: null, job: null }));
    load({ signal: controller.signal, onProgress: (job) => setState((old) => ({ ...old, job })) })
      .then((value) => !controller.signal.aborted && setState({ key: asked, value, error: null, job: null }))
      .catch((error) => {
        if (error.name !== "AbortError" && !controller.signal.aborted) setState({ key: asked, value: null, error, job: null });
      });
    return () => controller.abort();
  }, [key, turn]);
  return {
    ...state,
    loading: key !== null && state.key !== key,
    retry: () => setTurn((old) => old + 1),
    cancel: () => {
      stop.current?.abort();
      setState({ key, value: null, error: new Error("Cancelled."), job: null });
    },
  };
}

export function JobProgress({ answer, children }) {
  const read = answer.job?.cells_read ? ` ${answer.job.cells_read.toLocaleString("en-US")} cells read` : "";
  return html`<${Waiting} onCancel=${answer.job ? answer.cancel : null}>${children}${read}<//>`;
}

/** Buttons that save a figure; `svg` returns its element, or a promise of it. */
export function FigureButtons({ svg, name }) {
  const [error, setError] = useState(null);
  const run = async (save) => {
    try {
      await save(await svg(), name);
    } catch (problem) {
      setError(problem);
    }
  };
  return html`<div class="buttons">
    <button class="quiet" onClick=${() => run(saveSvg)} aria-label=${`Save ${title(name)} as SVG`}>SVG</button>
    <button class="quiet" onClick=${() => run(savePng)} aria-label=${`Save ${title(name)} as PNG`}>PNG</button>
    ${error && html`<span role="alert">${error.message}</span>`}
  </div>`;
}

const SHOWN_ROWS = 200;

/**
 * A table that sorts by a click on a head and saves all its rows.
 *
 * Each column is {key, label, help, text, left}: `text` formats a row, `left` aligns words.
 */
export function Table({ columns, rows, name, caption, saved, onPick, picked }) {
  const [order, setOrder] = useState(null);
  const sorted = useMemo(() => {
    if (!order) return rows;
    const sign = order.down ? -1 : 1;
    const missing = (value) => value === null || value === undefined || Number.isNaN(value);
    return [...rows].sort((first, second) => {
      const [a, b] = [first[order.key], second[order.key]];
      if (missing(a) || missing(b)) return missing(a) - missing(b);
      return sign * (typeof a === "string" ? a.localeCompare(b) : a - b);
    });
  }, [rows, order]);
  const sort = (column) =>
    setOrder((old) => (old?.key === column.key ? (old.down ? { key: column.key, down: false } : null) : { key: column.key, down: true }));
  const shown = sorted.slice(0, SHOWN_ROWS);
  return html`<div class="table-block">
    <div class="table-bar">
      <span class="note">${caption}</span>
      <button class="quiet" onClick=${() => saveCsv(saved ?? columns.map((one) => one.key), sorted, `${name}.csv`)}>CSV</button>
    </div>
    <div class="table-scroll" tabindex="0" role="region" aria-label=${title(name)}>
      <table>
        <thead>
          <tr>
            ${columns.map(
              (column) => html`<th
                key=${column.key}
                scope="col"
                class=${column.left ? "left" : ""}
                aria-sort=${order?.key === column.key ? (order.down ? "descending" : "ascending") : "none"}
              >
                <button onClick=${() => sort(column)} title=${column.help ?? ""}>${column.label}<span class="arrow" aria-hidden="true"></span></button>
              </th>`,
            )}
          </tr>
        </thead>
        <tbody>
          ${shown.map(
            (row, at) => html`<tr key=${at} class=${picked?.(row) ? "picked" : ""}>
              ${columns.map(
                (column, place) => html`<td key=${column.key} class=${column.left ? "left" : ""}>
                  ${place === 0 && onPick
                    ? html`<button class="link" onClick=${() => onPick(row)}>${column.text ? column.text(row) : row[column.key]}</button>`
                    : column.text
                      ? column.text(row)
                      : number(row[column.key])}
                </td>`,
              )}
            </tr>`,
          )}
        </tbody>
      </table>
    </div>
    ${sorted.length > SHOWN_ROWS && html`<p class="note">The first ${SHOWN_ROWS} of ${sorted.length.toLocaleString("en-US")} rows; CSV has all.</p>`}
  </div>`;
}

/** Search for a gene by a part of its name or symbol: a combobox as ARIA describes it. */
export function GeneSearch({ atlas, label, onChoose, placeholder }) {
  const [text, setText] = useState("");
  const [found, setFound] = useState(null);
  const [active, setActive] = useState(0);
  const [open, setOpen] = useState(false);
  const id = useId();
  useEffect(() => {
    if (!text.trim()) {
      setFound(null);
      return undefined;
    }
    const controller = new AbortController();
    const timer = setTimeout(() => {
      getJson(`/v1/${encodeURIComponent(atlas)}/genes?limit=12&q=${encodeURIComponent(text.trim())}`, { signal: controller.signal })
        .then((genes) => {
          setFound(genes);
          setActive(0);
          setOpen(true);
        })
        .catch((error) => error.name !== "AbortError" && setFound([]));
    }, 120);
    return () => {
      clearTimeout(timer);
      controller.abort();
    };
  }, [text, atlas]);
  const choose = (gene) => {
    onChoose(gene.name);
    setText("");
    setFound(null);
    setOpen(false);
  };
  const onKeyDown = (event) => {
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      const n = found?.length ?? 0;
      if (n) setActive((active + (event.key === "ArrowDown" ? 1 : n - 1)) % n);
    } else if (event.key === "Enter" && found?.[active]) {
      event.preventDefault();
      choose(found[active]);
    } else if (event.key === "Escape") {
      setOpen(false);
    }
  };
  return html`<div class="search">
    <label for=${`${id}-input`}>${label}</label>
    <input
      id=${`${id}-input`}
      type="text"
      role="combobox"
      autocomplete="off"
      spellcheck=${false}
      placeholder=${placeholder ?? "name or symbol"}
      aria-expanded=${open && Boolean(found)}
      aria-controls=${`${id}-list`}
      aria-activedescendant=${open && found?.length ? `${id}-${active}` : undefined}
      value=${text}
      onInput=${(event) => setText(event.target.value)}
      onKeyDown=${onKeyDown}
      onBlur=${() => setTimeout(() => setOpen(false), 150)}
      onFocus=${() => found && setOpen(true)}
    />
    <ul id=${`${id}-list`} role="listbox" hidden=${!open || !found} aria-label="Genes found">
      ${found?.map(
        (gene, at) => html`<li
          key=${gene.name}
          id=${`${id}-${at}`}
          role="option"
          aria-selected=${at === active}
          onMouseDown=${(event) => {
            event.preventDefault();
            choose(gene);
          }}
        >
          <span>${gene.name}</span><span class="note">${symbolOf(gene)}</span>
        </li>`,
      )}
      ${found && !found.length && html`<li class="note" role="option" aria-selected="false" aria-disabled="true">No gene has this in its name.</li>`}
    </ul>
  </div>`;
}

export function symbolOf(gene) {
  const texts = Object.entries(gene).filter(([key, value]) => !["name", "index"].includes(key) && typeof value === "string");
  return texts.map(([, value]) => value).find((value) => value && value !== gene.name) ?? "";
}
