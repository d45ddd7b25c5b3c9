/** The map as a figure of its own: points as a picture, all else as lines and text, with a legend. */
import { html, render } from "./preact.js";
import { Overlay } from "./map.js";
import { FigureLegend } from "./legend.js";

const LEGEND_WIDTH = 230;

export async function mapFigure(drawn, properties) {
  const { image, width, height } = drawn;
  const picture = properties.picture && { ...properties.picture, url: await dataUrl(properties.picture.blob) };
  const host = document.createElement("div");
  render(
    html`<svg viewBox=${`0 0 ${width + LEGEND_WIDTH} ${height}`}>
      ${image && html`<image href=${image} x="0" y="0" width=${width} height=${height} />`}
      <${Overlay} ...${properties} picture=${picture} size=${{ width, height }} lasso=${null} hover=${null} />
      <text x=${width - 8} y=${height - 10} font-size="12" text-anchor="end" fill="#4b5563">${properties.caption}</text>
      <${FigureLegend} ...${properties} x=${width + 12} y="24" height=${height - 24} />
    </svg>`,
    host,
  );
  return host.firstElementChild;
}

function dataUrl(blob) {
  return new Promise((resolve) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.readAsDataURL(blob);
  });
}
