// Draw portraits: node portraits.mjs FOLDER STYLE NUM prints one JSON object a line.
// FOLDER holds node_modules/@dicebear; the seed alone decides a portrait.
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [folder, name, num] = process.argv.slice(2);
const require = createRequire(pathToFileURL(`${folder}/`));
const load = (module) => import(pathToFileURL(require.resolve(module)));
const { createAvatar } = await load("@dicebear/core");
const style = await load(`@dicebear/${name}`);
for (let index = 0; index < Number(num); index += 1) {
  const avatar = createAvatar(style, { seed: `petzval-${name}-${index}` }).toJson();
  console.log(JSON.stringify({ key: `${name}-${index}`, extra: avatar.extra, svg: avatar.svg }));
}
