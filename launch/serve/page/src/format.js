/** Numbers and texts as people read them. */

export function count(n) {
  return Number(n).toLocaleString("en-US");
}

export function cells(n) {
  return `${count(n)} ${n === 1 ? "cell" : "cells"}`;
}

/** Three significant digits; very small and large numbers in powers of ten. */
export function number(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (typeof value !== "number") return String(value);
  if (Number.isInteger(value) && Math.abs(value) < 1e6) return value.toLocaleString("en-US").replace("-", "−");
  if (value === 0) return "0";
  const size = Math.abs(value);
  const text = size >= 1e5 || size < 1e-3 ? value.toExponential(1) : String(Number(value.toPrecision(3)));
  return text.replace("e+", "e").replaceAll("-", "−");
}

export function percent(share) {
  return share === null || share === undefined || Number.isNaN(share) ? "–" : `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %`;
}

/** Ends of an interval that covers the truth in 95 of 100 repetitions, by the normal distribution. */
export function interval(value, error) {
  return [value - 1.96 * error, value + 1.96 * error];
}

/** Round numbers for the ticks of an axis. */
export function ticks(low, high, wanted = 5) {
  const raw = (high - low) / wanted || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].find((one) => one * power >= raw) * power;
  const found = [];
  for (let at = Math.ceil(low / step); at * step <= high + step * 1e-9; at++) found.push(Number((at * step).toPrecision(12)));
  return found;
}

/** A name of a column as a title: "cell_type" is "cell type". */
export function title(name) {
  return name.replaceAll("_", " ");
}

/** Write a text in the language of filters. */
export function quoted(text) {
  return `'${text.replaceAll("\\", "\\\\").replaceAll("'", "\\'")}'`;
}

export function columnName(name) {
  return /^[\p{L}_][\p{L}\p{N}_.]*$/u.test(name) && !/^(and|or|not|in|is|None|True|False)$/.test(name) ? name : `\`${name}\``;
}
