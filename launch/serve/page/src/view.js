/** The part of the map that is shown: its centre and the steps across the shorter side of the window. */
export const STEPS = 65535;
export const WHOLE = { x: STEPS / 2, y: STEPS / 2, span: STEPS };
const CLOSEST = 64;

/** Return the rectangle that a window of a width and a height in pixels shows. */
export function rectangle(view, width, height) {
  const step = view.span / Math.min(width, height);
  return { x0: view.x - (width * step) / 2, y0: view.y - (height * step) / 2, width: width * step, height: height * step, step };
}

/** Return the rectangle as the service takes it: whole numbers within the map; null if it shows no part of it. */
export function visiblePart(view, width, height, margin = 0) {
  const { x0, y0, width: w, height: h } = rectangle(view, width, height);
  const clip = (value) => Math.max(0, Math.min(STEPS, Math.round(value)));
  const part = [clip(x0 - margin * w), clip(y0 - margin * h), clip(x0 + (1 + margin) * w), clip(y0 + (1 + margin) * h)];
  return part[0] < part[2] && part[1] < part[3] ? part : null;
}

/** Zoom by a factor so that a point of the map stays where it is. */
export function zoomed(view, factor, at = view) {
  const span = Math.max(CLOSEST, Math.min(STEPS * 1.5, view.span / factor));
  const moved = span / view.span;
  return bounded({ x: at.x + (view.x - at.x) * moved, y: at.y + (view.y - at.y) * moved, span });
}

export function bounded(view) {
  const clip = (value) => Math.max(0, Math.min(STEPS, value));
  return { ...view, x: clip(view.x), y: clip(view.y) };
}

export function toMap(view, width, height, px, py) {
  const { x0, y0, step } = rectangle(view, width, height);
  return [x0 + px * step, y0 + (height - py) * step];
}

export function toScreen(view, width, height, x, y) {
  const { x0, y0, step } = rectangle(view, width, height);
  return [(x - x0) / step, height - (y - y0) / step];
}

/** Leave out corners of a line that are within `error` of the line without them (Douglas and Peucker). */
export function simplified(points, error) {
  if (points.length < 4) return points;
  const kept = new Uint8Array(points.length);
  kept[0] = kept[points.length - 1] = 1;
  const waiting = [[0, points.length - 1]];
  while (waiting.length) {
    const [first, last] = waiting.pop();
    let farthest = error;
    let found = -1;
    for (let at = first + 1; at < last; at++) {
      const apart = distanceToLine(points[at], points[first], points[last]);
      if (apart > farthest) [farthest, found] = [apart, at];
    }
    if (found > 0) {
      kept[found] = 1;
      waiting.push([first, found], [found, last]);
    }
  }
  return points.filter((_, at) => kept[at]);
}

function distanceToLine([x, y], [x0, y0], [x1, y1]) {
  const length = Math.hypot(x1 - x0, y1 - y0);
  if (!length) return Math.hypot(x - x0, y - y0);
  return Math.abs((x1 - x0) * (y0 - y) - (x0 - x) * (y1 - y0)) / length;
}

export function isInside([x, y], polygon) {
  let inside = false;
  for (let at = 0, last = polygon.length - 1; at < polygon.length; last = at++) {
    const [xa, ya] = polygon[at];
    const [xb, yb] = polygon[last];
    if (ya > y !== yb > y && x < xa + ((xb - xa) * (y - ya)) / (yb - ya)) inside = !inside;
  }
  return inside;
}
