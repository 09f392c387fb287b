// Two pictures side by side, or one over the other with a line to draw across; and what differs.

import { $, button, h, openDialog } from "./dom.js";
import { recipeList, recipeOf, rowsOf } from "./recipes.js";
import { showIn } from "./server.js";
import { t } from "./words.js";

/** @typedef {import("./server.js").Picture} Picture */

export class Compare {
  /** @param {(ids: Set<string>) => void} changed */
  constructor(changed) {
    /** @type {Picture[]} at most two, in the order they were taken */
    this.picked = [];
    this.changed = changed;
    this.tray = $("#tray");
  }

  /** @param {string} id */
  has(id) {
    return this.picked.some((each) => each.id === id);
  }

  /** @param {Picture} picture taken, or put back; the second one opens the comparison */
  pick(picture) {
    const others = this.picked.filter((each) => each.id !== picture.id);
    const taken = others.length === this.picked.length;
    this.picked = taken ? [...others.slice(-1), picture] : others;
    this.#draw();
    if (taken && this.picked.length === 2) this.open();
  }

  clear() {
    this.picked = [];
    this.#draw();
  }

  #draw() {
    this.changed(new Set(this.picked.map((each) => each.id)));
    this.tray.hidden = this.picked.length === 0;
    const images = this.picked.map((picture) => {
      const image = h("img", { alt: picture.prompt });
      showIn(image, picture.thumbnail_url);
      return image;
    });
    const words = this.picked.length === 1 ? h("p", {}, t("compare.another")) : button("compare", t("compare.open"), () => this.open(), { class: "tool strong" });
    this.tray.replaceChildren(...images, words, button("close", t("compare.clear"), () => this.clear(), { quiet: true }));
  }

  open() {
    const [first, second] = this.picked;
    const { body, dialog } = openDialog("compare", t("compare.title"), t("close"));
    dialog.addEventListener("close", () => this.clear());
    const one = recipeOf(first);
    const other = recipeOf(second);
    const rows = [new Map(rowsOf(one)), new Map(rowsOf(other))];
    const different = new Set([...rows[0].keys(), ...rows[1].keys()].filter((name) => rows[0].get(name) !== rows[1].get(name)));
    const side = (/** @type {Picture} */ picture, /** @type {Record<string, any>} */ recipe) => {
      const image = h("img", { alt: t("wall.picture", { prompt: picture.prompt, seed: picture.seed }), width: String(picture.width), height: String(picture.height) });
      showIn(image, picture.url);
      return h("figure", {}, image, h("figcaption", {}, h("blockquote", {}, picture.prompt), recipeList(recipe, different)));
    };
    const pair = h("div", { class: "pair-of-pictures" }, side(first, one), side(second, other));
    const line = h("input", { type: "range", min: "0", max: "100", value: "50", "aria-label": t("compare.line") });
    line.addEventListener("input", () => pair.style.setProperty("--line", `${line.value}%`));
    line.hidden = true;
    const overlay = button("compare", t("compare.over"), () => {
      const over = pair.classList.toggle("over-each-other");
      overlay.setAttribute("aria-pressed", String(over));
      line.hidden = !over;
    }, { pressed: false });
    body.append(h("div", { class: "compare-tools" }, overlay, line), pair);
  }
}
