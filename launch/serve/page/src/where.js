/** The filter: a text in the language of the service, and how many cells each of its clauses keeps. */
import { html, useEffect, useId, useState } from "./preact.js";
import { ask, rowsOf } from "./api.js";
import { cells, columnName, count } from "./format.js";
import { useAnswer } from "./ui.js";

export function WhereForm({ atlas, info, where, onWhere }) {
  const [text, setText] = useState(where);
  const id = useId();
  useEffect(() => setText(where), [where]);
  const answer = useAnswer(where ? JSON.stringify([atlas, where]) : null, async (options) => {
    const table = await ask(atlas, "where", { text: where }, options);
    return { n: table.provenance.n_cells.chosen, clauses: rowsOf(table) };
  });
  const columns = info.obs.map((one) => one.name).filter((name) => !/^(leaf|source_row|log_normalizer)$/.test(name));
  return html`<form
    class="where"
    onSubmit=${(event) => {
      event.preventDefault();
      onWhere(text.trim());
    }}
  >
    <label for=${`${id}-where`}>Filter</label>
    <div class="row">
      <input id=${`${id}-where`} type="text" value=${text} onInput=${(event) => setText(event.target.value)} placeholder=${example(info)} spellcheck=${false} autocomplete="off" aria-describedby=${`${id}-help`} />
      <button type="submit" disabled=${text.trim() === where}>Apply</button>
      ${where && html`<button type="button" class="quiet" onClick=${() => onWhere("")}>Clear</button>`}
    </div>
    <div id=${`${id}-help`} class="note" role="status">
      ${answer.error
        ? html`<span class="bad">${answer.error.message}</span>`
        : answer.value && where
          ? answer.value.clauses.length > 1
            ? html`<ul class="clauses">${answer.value.clauses.map((one) => html`<li key=${one.clause}><code>${one.clause}</code> ${count(one.kept)} left</li>`)}</ul>`
            : html`${cells(answer.value.n)} kept`
          : html`Columns: ${columns.slice(0, 6).map(columnName).join(", ")}${columns.length > 6 ? `, and ${columns.length - 6} more` : ""}`}
    </div>
  </form>`;
}

function example(info) {
  const first = info.obs.find((one) => one.kind === "categorical");
  return first ? `${columnName(first.name)} in ['…', '…']` : "column > 1";
}
