/** Bundle the page: `npm ci && npm run bundle`. The first line of the bundle names the sources that it was made of. */
import { createHash } from "node:crypto";
import { readFileSync, readdirSync } from "node:fs";
import { build } from "esbuild";

const sources = ["package.json", ...["src", "vendor"].flatMap((folder) => readdirSync(folder).map((name) => `${folder}/${name}`))].sort();
const hash = createHash("sha256");
for (const name of sources) hash.update(`${name}\n`).update(readFileSync(name));

await build({
  entryPoints: ["src/app.js"],
  bundle: true,
  format: "esm",
  target: "es2022",
  minify: true,
  legalComments: "none",
  banner: { js: `// sources ${hash.digest("hex")}` },
  outfile: "public/app.js",
});
