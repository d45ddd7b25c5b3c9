/** Colours of values: the palettes that the service sends, as tables for the points and as texts for legends. */

export function rgbOf(hex) {
  return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
}

export function categoryHex(palettes, code) {
  return palettes.categories[code % palettes.categories.length];
}

/** Colours of categories; those that are hidden have no opacity, and all but the highlighted one are faint. */
export function categoryTable(palettes, n, { hidden, highlighted }) {
  const table = new Uint8Array(Math.max(1, n) * 4);
  for (let code = 0; code < n; code++) {
    const faint = highlighted !== null && highlighted !== code;
    table.set(faint ? rgbOf(palettes.missing) : rgbOf(categoryHex(palettes, code)), code * 4);
    table[code * 4 + 3] = hidden.has(code) ? 0 : faint ? 70 : 255;
  }
  return table;
}

export function rampTable(stops, n = 256) {
  const colors = stops.map(rgbOf);
  const table = new Uint8Array(n * 4);
  for (let at = 0; at < n; at++) {
    const place = (at / (n - 1)) * (colors.length - 1);
    const first = Math.min(colors.length - 2, Math.floor(place));
    const share = place - first;
    for (let channel = 0; channel < 3; channel++) {
      table[at * 4 + channel] = Math.round(colors[first][channel] * (1 - share) + colors[first + 1][channel] * share);
    }
    table[at * 4 + 3] = 255;
  }
  return table;
}

export function rampHex(stops, share) {
  const table = rampTable(stops);
  const at = 4 * Math.round(255 * Math.max(0, Math.min(1, share)));
  return `#${[0, 1, 2].map((channel) => table[at + channel].toString(16).padStart(2, "0")).join("")}`;
}

/** The palette of numbers: expression and its uncertainty must not be taken for each other. */
export function stopsOf(palettes, color) {
  return color?.uncertainty ? palettes.uncertainty : palettes.numbers;
}
