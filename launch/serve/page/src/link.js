/** The state of the page as the fragment of its address, so that a link restores the view. */

const POLYGON_BASE = 36;

export function encodeState(state) {
  const found = new URLSearchParams();
  const put = (key, value) => value !== null && value !== undefined && value !== "" && found.set(key, value);
  put("atlas", state.atlas);
  put("color", state.color && `${state.color.kind}:${state.color.name}`);
  if (state.color?.uncertainty) found.set("uncertainty", "1");
  put("where", state.where);
  if (state.view) put("view", [state.view.x, state.view.y, state.view.span].map((one) => Math.round(one)).join(","));
  put("a", encodeGroup(state.groups.a));
  put("b", encodeGroup(state.groups.b));
  put("tab", state.tab === "compare" ? "" : state.tab);
  put("genes", state.genes.join(","));
  put("by", state.by);
  put("cell", state.cell);
  if (state.density !== "auto") put("draw", state.density);
  return found.toString();
}

export function decodeState(fragment) {
  const found = new URLSearchParams(fragment.replace(/^#/, ""));
  const [kind, ...name] = (found.get("color") ?? "").split(":");
  const view = (found.get("view") ?? "").split(",").map(Number);
  const cell = found.get("cell");
  return {
    atlas: found.get("atlas"),
    color: ["column", "gene"].includes(kind) && name.length ? { kind, name: name.join(":"), uncertainty: found.has("uncertainty") } : null,
    where: found.get("where") ?? "",
    view: view.length === 3 && view.every(Number.isFinite) && view[2] > 0 ? { x: view[0], y: view[1], span: view[2] } : null,
    groups: { a: decodeGroup(found.get("a")), b: decodeGroup(found.get("b")) },
    tab: found.get("tab") ?? "compare",
    genes: (found.get("genes") ?? "").split(",").filter(Boolean),
    by: found.get("by"),
    cell: cell !== null && /^\d+$/.test(cell) ? Number(cell) : null,
    density: ["points", "density"].includes(found.get("draw")) ? found.get("draw") : "auto",
  };
}

function encodeGroup(group) {
  if (!group) return "";
  if (group.where !== undefined) return `w${group.where}`;
  return `p${group.polygon.map(([x, y]) => `${Math.round(x).toString(POLYGON_BASE)}.${Math.round(y).toString(POLYGON_BASE)}`).join("_")}`;
}

function decodeGroup(text) {
  if (!text) return null;
  if (text[0] === "w") return { where: text.slice(1) };
  const polygon = text
    .slice(1)
    .split("_")
    .map((corner) => corner.split(".").map((one) => parseInt(one, POLYGON_BASE)));
  const valid = polygon.length >= 3 && polygon.every((corner) => corner.length === 2 && corner.every(Number.isFinite));
  return valid ? { polygon } : null;
}
