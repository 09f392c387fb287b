// One picture, large, with its recipe; and the recipe of a picture that somebody dropped in.

import { button, h, icon, openDialog, say } from "./dom.js";
import { recipeList, recipeOf, requestOf } from "./recipes.js";
import { ask, showIn } from "./server.js";
import { t } from "./words.js";

/** @typedef {import("./server.js").Picture} Picture */
/** @typedef {import("./studio.js").Acts} Acts */

const LARGEST_FILE = 64 << 20;

/** @param {string} text */
async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    say(t("copied"));
    return true;
  } catch {
    return false;
  }
}

/** @param {string} prompt @returns {HTMLElement} the prompt, and a way to copy it */
function promptBlock(prompt) {
  const copying = button("copy", t("copy.prompt"), async () => {
    if (await copy(prompt)) copying.replaceChildren(icon("check"));
  }, { quiet: true });
  return h("div", { class: "said" }, h("blockquote", {}, prompt), copying);
}

export class Viewer {
  /** @param {Acts} acts @param {() => Picture[]} neighbours */
  constructor(acts, neighbours) {
    this.acts = acts;
    this.neighbours = neighbours;
    /** @type {Picture | null} */
    this.picture = null;
    /** @type {{dialog: HTMLDialogElement, body: HTMLElement, close: () => void} | null} */
    this.open = null;
  }

  /** @param {Picture} picture */
  show(picture) {
    if (!this.open) {
      this.open = openDialog("viewer", t("viewer.title"), t("close"));
      this.open.dialog.addEventListener("close", () => {
        this.open = this.picture = null;
      });
      this.open.dialog.addEventListener("keydown", (event) => this.#keys(event));
    }
    this.picture = picture;
    this.#draw();
  }

  close() {
    this.open?.close();
  }

  /** @param {Picture} picture what changed */
  update(picture) {
    if (this.open && this.picture?.id === picture.id) {
      this.picture = picture;
      this.open.body.querySelector(".heart")?.setAttribute("aria-pressed", String(picture.favourite));
    }
  }

  /** @param {1 | -1} way */
  step(way) {
    const all = this.neighbours();
    const next = all[all.findIndex((each) => each.id === this.picture?.id) + way];
    if (next) this.show(next);
  }

  /** @param {KeyboardEvent} event */
  #keys(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const way = /** @type {Record<string, 1 | -1>} */ ({ ArrowLeft: -1, ArrowRight: 1 })[event.key];
    if (way) this.step(way);
  }

  #draw() {
    const picture = /** @type {Picture} */ (this.picture);
    const body = /** @type {HTMLElement} */ (this.open?.body);
    const recipe = recipeOf(picture);
    const image = h("img", { alt: t("wall.picture", { prompt: picture.prompt, seed: picture.seed }), width: String(picture.width), height: String(picture.height) });
    image.style.setProperty("--width", `${picture.width}px`);
    image.addEventListener("load", () => image.classList.add("there"));
    showIn(image, picture.url);
    const all = this.neighbours();
    const place = all.findIndex((each) => each.id === picture.id);
    const before = button("left", t("viewer.before"), () => this.step(-1), { quiet: true, class: "ghost step before" });
    const after = button("right", t("viewer.after"), () => this.step(1), { quiet: true, class: "ghost step after" });
    before.hidden = place <= 0;
    after.hidden = place < 0 || place >= all.length - 1;
    const { acts } = this;
    const actions = h(
      "div",
      { class: "actions" },
      button("again", t("again"), () => acts.again(picture), { keys: "r" }),
      button("vary", t("vary"), () => acts.vary(picture), { keys: "v" }),
      button("edit", t("use"), () => acts.use(recipe), { keys: "e" }),
      button("download", t("download"), () => acts.download(picture), { keys: "d" }),
      button("compare", t("compare.pick"), () => acts.pick(picture), { keys: "c" }),
      button("heart", t("favourite"), () => acts.favourite(picture), { class: "tool heart", pressed: picture.favourite, keys: "f" }),
      button("trash", t("delete"), () => acts.remove(picture), { class: "tool danger", keys: "Delete" }),
    );
    const json = button("copy", t("copy.recipe"), () => copy(JSON.stringify(picture.recipe ?? recipe, null, 2)), { class: "quiet" });
    body.replaceChildren(
      h("figure", { class: "stage" }, before, image, after),
      h("div", { class: "facts" }, promptBlock(picture.prompt), actions, h("h3", {}, t("recipe.title")), recipeList(recipe), json),
    );
  }
}

/**
 * Read the recipe in a picture's file and offer it.
 * @param {File} file
 * @param {Acts} acts
 */
export async function readRecipe(file, acts) {
  const { body, close, dialog } = openDialog("dropped", t("recipe.read"), t("close"));
  const local = URL.createObjectURL(file);
  dialog.addEventListener("close", () => URL.revokeObjectURL(local));
  const facts = h("div", { class: "facts", "aria-live": "polite" }, h("p", { class: "hint" }, t("recipe.reading")));
  const image = h("img", { alt: file.name, src: local });
  image.addEventListener("error", () => (image.hidden = true));
  body.append(h("figure", { class: "stage" }, image), facts);
  try {
    if (file.size > LARGEST_FILE) throw new Error(t("recipe.large"));
    // What the file really is, the server sees for itself.
    const headers = { "Content-Type": /^image\/(png|jpeg|webp)$/.test(file.type) ? file.type : "image/png" };
    const { recipe } = await ask("v1/recipes/read", { method: "POST", body: file, headers });
    const actions = h(
      "div",
      { class: "actions" },
      button("again", t("again"), () => {
        close();
        acts.repeat(requestOf(recipe));
      }),
      button("edit", t("use"), () => {
        close();
        acts.use(recipe);
      }, { class: "tool strong" }),
    );
    facts.replaceChildren(promptBlock(recipe.prompt), actions, h("h3", {}, t("recipe.title")), recipeList(recipe));
  } catch (error) {
    facts.replaceChildren(h("h3", {}, t("recipe.none")), h("p", { class: "error", role: "alert" }, error instanceof Error ? error.message : String(error)), h("p", { class: "hint" }, t("recipe.none.hint")));
  }
}
