/** The map: points or density, axes, lasso, hover, keyboard. */
import { html, useEffect, useLayoutEffect, useMemo, useRef, useState } from "./preact.js";
import { categoryTable, rampTable, rgbOf, stopsOf } from "./colors.js";
import { cells, count, number } from "./format.js";
import { createPointLayer } from "./point_layer.js";
import { STEPS, WHOLE, bounded, rectangle, simplified, toMap, toScreen, zoomed } from "./view.js";

const GROUP_COLORS = { a: "#b3400a", b: "#1f5fa8" };
const GREY = [214, 217, 222];
const HOVER_PX = 8;
const LABEL_CATEGORIES = 40;

export function useSize(ref) {
  const [size, setSize] = useState({ width: 0, height: 0 });
  useLayoutEffect(() => {
    const measure = () => {
      const { clientWidth: width, clientHeight: height } = ref.current;
      setSize((old) => (old.width === width && old.height === height ? old : { width, height }));
    };
    const observer = new ResizeObserver(measure);
    observer.observe(ref.current);
    measure();
    return () => observer.disconnect();
  }, []);
  return size;
}

/** Size and opacity of points so that few are seen and many do not cover each other. */
function pointStyle(n, view, { width, height }) {
  const room = Math.sqrt((width * height) / Math.max(n, 1));
  const zoom = Math.min(STEPS / view.span, 1e3) ** 0.55;
  const size = Math.max(1.5, Math.min(10, 0.62 * room * zoom));
  return { size, opacity: n > 300_000 ? 0.55 : n > 60_000 ? 0.7 : 0.85 };
}

/**
 * Draws what it is given and reports what people do; it fetches nothing.
 *
 * `base` are all cells, `focus` those that the filter keeps, both {points, values}; `picture` replaces them.
 */
export function MapCanvas(props) {
  const { view, onView, mode, groups, onLasso, onPick, picture, showLabels, onWebgl, figureRef } = props;
  const frame = useRef(null);
  const canvas = useRef(null);
  const layer = useRef(undefined);
  const size = useSize(frame);
  const [lasso, setLasso] = useState(null);
  const [hover, setHover] = useState(null);
  const colored = props.focus.points ? props.focus : props.base;

  useLayoutEffect(() => {
    try {
      layer.current = createPointLayer(canvas.current);
    } catch (error) {
      console.warn(error);  // a driver that cannot compile the shaders: the picture of the service is shown
      layer.current = null;
    }
    onWebgl(Boolean(layer.current));
    const lost = (event) => {
      event.preventDefault();
      layer.current = null;
      onWebgl(false);
    };
    canvas.current.addEventListener("webglcontextlost", lost);
  }, []);
  usePointSet(layer, "base", props.base, props);
  usePointSet(layer, "focus", props.focus, props);

  const draw = () => {
    if (!layer.current || !size.width) return;
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [Math.round(size.width * ratio), Math.round(size.height * ratio)];
    if (canvas.current.width !== width || canvas.current.height !== height) Object.assign(canvas.current, { width, height });
    layer.current.draw(rectangle(view, size.width, size.height), picture ? [] : layersOf(props, view, size, ratio));
  };
  useLayoutEffect(() => {
    const frameId = requestAnimationFrame(draw);
    return () => cancelAnimationFrame(frameId);
  });
  useEffect(() => {
    figureRef.current = () => {
      draw();
      return { image: layer.current && !picture ? canvas.current.toDataURL("image/png") : null, ...size };
    };
  });

  const pointers = usePointers({ frame, view, size, mode, onView, onPick, lasso, setLasso, onLasso, setHover, colored, hidden: props.hidden });
  useWheel(frame, view, size, onView);
  const onKeyDown = (event) => {
    const shift = view.span / 8;
    const moves = {
      ArrowLeft: () => bounded({ ...view, x: view.x - shift }),
      ArrowRight: () => bounded({ ...view, x: view.x + shift }),
      ArrowUp: () => bounded({ ...view, y: view.y + shift }),
      ArrowDown: () => bounded({ ...view, y: view.y - shift }),
      "+": () => zoomed(view, 1.5),
      "=": () => zoomed(view, 1.5),
      "-": () => zoomed(view, 1 / 1.5),
      0: () => WHOLE,
    };
    if (event.key === "Escape") setLasso(null);
    if (!moves[event.key] || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    onView(moves[event.key]());
  };

  return html`<div
    class=${`map-frame mode-${mode}`}
    ref=${frame}
    tabindex="0"
    role="application"
    aria-label=${`Map of ${cells(props.nCells)}. Arrow keys move, plus and minus zoom, 0 shows all.`}
    onKeyDown=${onKeyDown}
    ...${pointers}
  >
    <canvas ref=${canvas} aria-hidden="true"></canvas>
    ${size.width > 0 &&
    html`<svg class="overlay" viewBox=${`0 0 ${size.width} ${size.height}`} aria-hidden="true">
      <${Overlay} ...${props} size=${size} lasso=${lasso} hover=${hover} colored=${colored} showLabels=${showLabels} />
    </svg>`}
    ${hover && !lasso && html`<${Tooltip} hover=${hover} colored=${colored} size=${size} />`}
  </div>`;
}

/** Everything on the map that is no point: density, outlines, marks, labels, axes. */
export function Overlay({ view, size, picture, groups, lasso, mode, marks, query, colored, showLabels, hidden, hover }) {
  const at = ([x, y]) => toScreen(view, size.width, size.height, x, y);
  const line = (corners) => corners.map(at).map((one) => one.map((value) => value.toFixed(1)).join(",")).join(" ");
  const labels = useMemo(() => (showLabels ? labelPlaces(colored, hidden) : []), [showLabels, colored.points, colored.values, hidden]);
  return html`
    ${picture && html`<${Picture} picture=${picture} at=${at} />`}
    ${["a", "b"].map(
      (key) =>
        groups[key]?.polygon &&
        html`<g key=${key}>
          <polygon points=${line(groups[key].polygon)} fill=${GROUP_COLORS[key]} fill-opacity="0.08" stroke=${GROUP_COLORS[key]} stroke-width="1.75" stroke-linejoin="round" />
          <${Halo} x=${at(groups[key].polygon[0])[0]} y=${at(groups[key].polygon[0])[1] - 6} size="13" color=${GROUP_COLORS[key]}>${key.toUpperCase()}<//>
        </g>`,
    )}
    ${lasso && html`<polygon data-screen-only points=${line(lasso)} fill=${GROUP_COLORS[mode] ?? "#333"} fill-opacity="0.1" stroke=${GROUP_COLORS[mode] ?? "#333"} stroke-width="1.5" stroke-dasharray="4 3" />`}
    ${query &&
    html`<path d=${query.map(at).map(([x, y]) => `M${x.toFixed(1)} ${y.toFixed(1)}h0`).join("")} stroke="#ffffff" stroke-width="7" stroke-linecap="round" />
      <path d=${query.map(at).map(([x, y]) => `M${x.toFixed(1)} ${y.toFixed(1)}h0`).join("")} stroke="#111827" stroke-width="4.5" stroke-linecap="round" />`}
    ${marks.neighbors.map((one, place) => {
      const [x, y] = at(one);
      return html`<circle key=${place} cx=${x} cy=${y} r="4.5" fill="none" stroke="#111827" stroke-width="1.5" />`;
    })}
    ${marks.cell && html`<${Mark} at=${at(marks.cell)} />`}
    ${hover && html`<circle data-screen-only cx=${hover.px} cy=${hover.py} r="5" fill="none" stroke="#111827" stroke-width="1.5" />`}
    ${labels.map(({ name, place }) => {
      const [x, y] = at(place);
      return html`<${Halo} key=${name} x=${x} y=${y} size="13" color="#1f2937" middle>${name}<//>`;
    })}
    <${Axes} size=${size} />
  `;
}

function Picture({ picture, at }) {
  const [left, top] = at([picture.part[0], picture.part[3] + 1]);
  const [right, bottom] = at([picture.part[2] + 1, picture.part[1]]);
  return html`<image href=${picture.url} x=${left} y=${top} width=${right - left} height=${bottom - top} preserveAspectRatio="none" />`;
}

export function Halo({ x, y, size, color, middle, children }) {
  return html`<text x=${x} y=${y} font-size=${size} font-weight="600" fill=${color} stroke="#ffffff" stroke-width="3.5" stroke-linejoin="round" paint-order="stroke" text-anchor=${middle ? "middle" : "start"}>${children}</text>`;
}

function Mark({ at: [x, y] }) {
  return html`<g fill="none">
    <circle cx=${x} cy=${y} r="8" stroke="#ffffff" stroke-width="5" />
    <circle cx=${x} cy=${y} r="8" stroke="#111827" stroke-width="2" />
  </g>`;
}

function Axes({ size }) {
  const [x, y, length] = [18, size.height - 18, 56];
  return html`<g stroke="#6b7280" stroke-width="1.25" fill="none">
    <path d=${`M${x} ${y}h${length}m-5 -3l5 3l-5 3M${x} ${y}v${-length}m-3 5l3 -5l3 5`} />
    <g fill="#4b5563" stroke="none" font-size="12">
      <text x=${x + length + 6} y=${y + 4}>UMAP 1</text>
      <text transform=${`translate(${x + 4} ${y - length - 6}) rotate(-90)`}>UMAP 2</text>
    </g>
  </g>`;
}

function Tooltip({ hover, colored, size }) {
  const { values } = colored;
  const text = !values ? null : describeValue(values, hover.index);
  if (!text) return null;
  const left = hover.px > size.width - 220;
  const place = { top: `${Math.max(4, hover.py - 30)}px`, [left ? "right" : "left"]: `${left ? size.width - hover.px + 10 : hover.px + 10}px` };
  return html`<div class="tooltip" style=${place}>${text}</div>`;
}

export function describeValue(values, index) {
  const value = values.array[index];
  if (value === undefined) return null;
  if (value === 65535) return `${values.label}: missing`;
  if (values.kind === "categorical") return values.categories[value];
  return `${values.label}: ${number(values.low + (value / 65534) * (values.high - values.low))}`;
}

function usePointSet(layer, name, { points, values }, { palettes, hidden, highlighted, color }) {
  useLayoutEffect(() => {
    layer.current?.setPoints(name, points?.steps ?? null);
  }, [points]);
  const shown = values?.points === points?.asked ? values : null;
  useLayoutEffect(() => {
    if (!layer.current || !points) return;
    if (!shown || !color) layer.current.clearValues(name);
    else layer.current.setValues(name, padded(shown.array, points.n), shown.kind, shown.kind === "numeric" ? shareOfDomain(shown) : [0, 1]);
  }, [points, shown, color]);
  useLayoutEffect(() => {
    if (!layer.current || !shown) return;
    const table = shown.kind === "categorical" ? categoryTable(palettes, shown.categories.length, { hidden, highlighted }) : rampTable(stopsOf(palettes, color));
    layer.current.setColors(name, table);
  }, [points, shown, hidden, highlighted, color]);
}

/** Of an uncertainty the first cells have values; the others are drawn as missing. */
function padded(array, n) {
  if (array.length === n) return array;
  const full = new Uint16Array(n).fill(65535);
  full.set(array.subarray(0, n));
  return full;
}

function shareOfDomain({ low, high, domain }) {
  const width = high - low || 1;
  return [(domain[0] - low) / width, Math.max((domain[1] - low) / width, (domain[0] - low) / width + 1e-6)];
}

function layersOf({ base, focus, palettes, color }, view, size, ratio) {
  const missing = rgbOf(palettes.missing);
  const plain = color ? GREY : [74, 98, 138];
  const style = (points) => {
    const { size: px, opacity } = pointStyle(points.nInView < points.n ? points.n : Math.max(points.n, 1), view, size);
    return { size: px * ratio, opacity };
  };
  const layers = [];
  if (base.points) {
    const under = Boolean(focus.points);
    layers.push({ name: "base", ...style(base.points), flat: under ? GREY : plain, missing: under ? GREY : missing, grey: under });
    if (under) layers.at(-1).opacity *= 0.6;
  }
  if (focus.points) {
    const one = style(focus.points);
    layers.push({ name: "focus", ...one, size: Math.min(one.size, 2.2 * (layers[0]?.size ?? one.size)), flat: [74, 98, 138], missing });
  }
  return layers;
}

/** Where the names of categories stand: at the middle of their cells. */
function labelPlaces({ points, values }, hidden) {
  if (!points || values?.kind !== "categorical" || values.points !== points.asked || values.categories.length > LABEL_CATEGORIES) return [];
  const places = values.categories.map(() => [[], []]);
  const stride = Math.max(1, Math.floor(points.n / 100_000));
  for (let at = 0; at < points.n; at += stride) {
    const place = places[values.array[at]];
    if (place) {
      place[0].push(points.steps[2 * at]);
      place[1].push(points.steps[2 * at + 1]);
    }
  }
  const middle = (list) => list.sort((a, b) => a - b)[list.length >> 1];
  return values.categories
    .map((name, code) => ({ name, code, place: places[code] }))
    .filter(({ code, place }) => place[0].length >= 5 && !hidden.has(code))
    .map(({ name, place }) => ({ name, place: place.map(middle) }));
}

function nearestPoint({ points, values }, hidden, [x, y], radius) {
  if (!points) return null;
  const { steps } = points;
  let best = radius * radius;
  let found = -1;
  for (let at = 0; at < points.n; at++) {
    const dx = steps[2 * at] - x;
    if (dx > radius || dx < -radius) continue;
    const dy = steps[2 * at + 1] - y;
    const apart = dx * dx + dy * dy;
    if (apart < best && !(hidden.size && values?.kind === "categorical" && hidden.has(values.array[at]))) [best, found] = [apart, at];
  }
  return found < 0 ? null : found;
}

function useWheel(frame, view, size, onView) {
  const latest = useRef(null);
  latest.current = { view, size, onView };
  useEffect(() => {
    const onWheel = (event) => {
      event.preventDefault();
      const { view: now, size: room, onView: report } = latest.current;
      const box = frame.current.getBoundingClientRect();
      const at = toMap(now, room.width, room.height, event.clientX - box.left, event.clientY - box.top);
      report(zoomed(now, Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0016)), { x: at[0], y: at[1] }));
    };
    frame.current.addEventListener("wheel", onWheel, { passive: false });
  }, []);
}

/** Drag to move, two fingers to zoom, drag to draw a lasso, click for a cell, hover for a value. */
function usePointers({ frame, view, size, mode, onView, onPick, lasso, setLasso, onLasso, setHover, colored, hidden }) {
  const active = useRef(new Map());
  const moved = useRef(0);
  const hoverFrame = useRef(0);
  const place = (event) => {
    const box = frame.current.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  const onMap = ([px, py]) => toMap(view, size.width, size.height, px, py);
  const drawing = (event) => mode !== "pan" || event.shiftKey;
  return {
    onPointerDown: (event) => {
      if (event.button !== 0) return;
      frame.current.setPointerCapture(event.pointerId);
      active.current.set(event.pointerId, place(event));
      moved.current = 0;
      setHover(null);
      if (drawing(event) && active.current.size === 1) setLasso([onMap(place(event))]);
      else setLasso(null);
    },
    onPointerMove: (event) => {
      const now = place(event);
      const before = active.current.get(event.pointerId);
      if (!before) {
        if (event.pointerType === "touch") return;
        cancelAnimationFrame(hoverFrame.current);
        hoverFrame.current = requestAnimationFrame(() => {
          const step = rectangle(view, size.width, size.height).step;
          const index = nearestPoint(colored, hidden, onMap(now), HOVER_PX * step);
          if (index === null) return setHover(null);
          const [px, py] = toScreen(view, size.width, size.height, colored.points.steps[2 * index], colored.points.steps[2 * index + 1]);
          return setHover({ index, px, py });
        });
        return;
      }
      moved.current += Math.hypot(now[0] - before[0], now[1] - before[1]);
      if (lasso) setLasso([...lasso, onMap(now)]);
      else if (active.current.size === 2) {
        const other = [...active.current].find(([id]) => id !== event.pointerId)[1];
        const spread = (one) => Math.hypot(one[0] - other[0], one[1] - other[1]) || 1;
        const middle = onMap([(now[0] + other[0]) / 2, (now[1] + other[1]) / 2]);
        onView(zoomed(view, spread(now) / spread(before), { x: middle[0], y: middle[1] }));
      } else {
        const step = rectangle(view, size.width, size.height).step;
        onView(bounded({ ...view, x: view.x - (now[0] - before[0]) * step, y: view.y + (now[1] - before[1]) * step }));
      }
      active.current.set(event.pointerId, now);
    },
    onPointerUp: (event) => {
      if (!active.current.delete(event.pointerId)) return;
      const step = rectangle(view, size.width, size.height).step;
      if (lasso && moved.current > 12) {
        const corners = simplified(lasso, 1.5 * step);
        if (corners.length >= 3) onLasso(mode === "pan" ? "a" : mode, corners.map((corner) => corner.map(Math.round)));
      } else if (moved.current < 5) onPick(onMap(place(event)), 2 * HOVER_PX * step);
      setLasso(null);
    },
    onPointerCancel: (event) => {
      active.current.delete(event.pointerId);
      setLasso(null);
    },
    onPointerLeave: () => setHover(null),
  };
}

export function describeDrawn({ base, focus, picture, nCells }) {
  if (picture) return `Density of ${cells(picture.values?.n_in_view ?? nCells)}`;
  const points = focus.points ?? base.points;
  if (!points) return "";
  if (points.n < points.nInView) return `${count(points.n)} of ${cells(points.nInView)}, a uniform sample`;
  return focus.points ? `${count(points.n)} of ${cells(nCells)}` : cells(points.nInView);
}

export { GROUP_COLORS };
