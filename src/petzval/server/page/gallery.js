// The wall: every finished picture, newest first, fetched as one scrolls, in rows that fill the width.

import { $, button, h, icon, say } from "./dom.js";
import { ask, showIn } from "./server.js";
import { t } from "./words.js";

/** @typedef {import("./server.js").Picture} Picture */
/** @typedef {import("./studio.js").Acts} Acts */

const PAGE = 60;
const AHEAD = "900px";
const SKELETONS = 10;

export class Gallery {
  /** @param {Acts} acts */
  constructor(acts) {
    this.acts = acts;
    this.wall = $("#wall");
    this.note = $("#wall-note");
    /** @type {Map<string, {picture: Picture, tile: HTMLElement}>} */
    this.shown = new Map();
    /** @type {Set<string>} taken off here, while lists that still name them may be under way */
    this.gone = new Set();
    /** @type {Set<string>} pictures that lie on the bench */
    this.away = new Set();
    this.filter = { q: "", favourite: false };
    /** @type {string | null | undefined} where the next page begins; undefined before the first */
    this.cursor = undefined;
    this.turn = 0;
    this.loading = false;
    this.lazy = new IntersectionObserver((seen) => this.#fetchSeen(seen), { rootMargin: AHEAD });
    new IntersectionObserver((seen) => seen.some((each) => each.isIntersecting) && this.more(), { rootMargin: AHEAD }).observe($("#wall-end"));
    this.wall.addEventListener("keydown", (event) => this.#steer(event));
    this.wall.addEventListener("focusin", (event) => this.#rove(/** @type {HTMLElement} */ (event.target)));
  }

  get filtered() {
    return this.filter.q !== "" || this.filter.favourite;
  }

  /** @returns {Picture[]} in the order of the wall */
  get pictures() {
    return Array.from(this.wall.querySelectorAll(".tile:not([hidden])"), (tile) => this.picture(/** @type {HTMLElement} */ (tile).dataset.id ?? "")).filter(Boolean);
  }

  /** @param {string} id */
  picture(id) {
    return /** @type {Picture} */ (this.shown.get(id)?.picture);
  }

  /** The picture whose tile has the focus. */
  get focused() {
    const tile = /** @type {HTMLElement | null} */ (document.activeElement?.closest?.(".tile[data-id]") ?? null);
    return tile && this.wall.contains(tile) ? this.picture(tile.dataset.id ?? "") : null;
  }

  /** @param {{q?: string, favourite?: boolean}} change */
  show(change) {
    Object.assign(this.filter, change);
    return this.reload();
  }

  async reload() {
    const turn = ++this.turn;
    this.wall.setAttribute("aria-busy", "true");
    if (!this.shown.size) this.#skeletons();
    try {
      const page = await this.#page(null);
      if (turn !== this.turn) return;
      this.shown.clear();
      this.wall.replaceChildren();
      this.#append(page);
      if (this.filtered) say(t("wall.found", { n: page.data.length }));
    } catch (error) {
      if (turn === this.turn) this.#sayFailed(error);
    } finally {
      if (turn === this.turn) this.wall.setAttribute("aria-busy", "false");
    }
  }

  /** The next page, once the end comes near. */
  async more() {
    if (!this.cursor || this.loading) return;
    this.loading = true;
    const turn = this.turn;
    try {
      const page = await this.#page(this.cursor);
      if (turn === this.turn) this.#append(page);
    } catch (error) {
      if (turn === this.turn) this.#sayFailed(error);
    } finally {
      this.loading = false;
    }
  }

  /** What came while nobody was listening. */
  async catchUp() {
    if (this.filtered) return;
    const page = await this.#page(null);
    for (const picture of page.data.reverse()) this.add(picture);
  }

  /** @param {Picture} picture hung where its time has its place; nowhere, where that is not fetched yet */
  add(picture) {
    if (this.shown.has(picture.id)) return this.update(picture);
    if (this.filtered || picture.deleted || this.gone.has(picture.id) || this.cursor === undefined) return;
    const older = this.wall.querySelectorAll(".tile[data-id]");
    const place = Array.from(older).find((tile) => this.picture(/** @type {HTMLElement} */ (tile).dataset.id ?? "").created <= picture.created);
    if (place) place.before(this.#tile(picture));
    else if (!this.cursor) this.wall.append(this.#tile(picture));
    this.#settle();
  }

  /** @param {Picture} picture */
  update(picture) {
    const known = this.shown.get(picture.id);
    if (!known) return;
    Object.assign(known.picture, picture);
    const heart = known.tile.querySelector(".heart");
    heart?.setAttribute("aria-pressed", String(picture.favourite));
  }

  /**
   * Take a picture off the wall.
   * @param {string} id
   * @returns {() => void} puts it back where it hung
   */
  remove(id) {
    const known = this.shown.get(id);
    if (!known) return () => {};
    const next = /** @type {HTMLElement | null} */ (known.tile.nextElementSibling);
    const neighbour = next ?? known.tile.previousElementSibling;
    const focused = known.tile.contains(document.activeElement);
    known.tile.remove();
    this.shown.delete(id);
    this.gone.add(id);
    if (focused) /** @type {HTMLElement | null} */ (neighbour?.querySelector(".open"))?.focus();
    this.#settle();
    return () => {
      this.gone.delete(id);
      this.shown.set(id, known);
      if (next?.isConnected) next.before(known.tile);
      else this.wall.append(known.tile);
      this.lazy.observe(known.tile);
      this.#settle();
    };
  }

  /** @param {Iterable<string>} ids pictures that are shown large above the wall */
  setAway(ids) {
    this.away = new Set(ids);
    for (const [id, { tile }] of this.shown) tile.hidden = this.away.has(id) && !this.filtered;
    this.#settle();
  }

  /** @param {Set<string>} ids */
  setPicked(ids) {
    for (const [id, { tile }] of this.shown) tile.querySelector(".pick")?.setAttribute("aria-pressed", String(ids.has(id)));
  }

  /**
   * @param {string | null} cursor
   * @returns {Promise<{data: Picture[], next_cursor: string | null}>}
   */
  #page(cursor) {
    const query = new URLSearchParams({ limit: String(PAGE) });
    if (this.filter.q) query.set("q", this.filter.q);
    if (this.filter.favourite) query.set("favourite", "true");
    if (cursor) query.set("cursor", cursor);
    return ask(`v1/pictures?${query}`);
  }

  /** @param {{data: Picture[], next_cursor: string | null}} page */
  #append(page) {
    this.cursor = page.next_cursor;
    this.wall.querySelectorAll(".skeleton").forEach((each) => each.remove());
    const fresh = page.data.filter((picture) => !this.shown.has(picture.id) && !this.gone.has(picture.id));
    this.wall.append(...fresh.map((picture) => this.#tile(picture)));
    this.#settle();
  }

  /** @param {Picture} picture */
  #tile(picture) {
    const label = t("wall.picture", { prompt: picture.prompt, seed: picture.seed });
    const image = h("img", { alt: "", width: String(picture.width), height: String(picture.height), decoding: "async", draggable: "false" });
    image.addEventListener("load", () => image.classList.add("there"));
    image.addEventListener("error", () => tile.classList.add("broken"));
    const open = h("button", { type: "button", class: "open", "aria-label": label, tabindex: "-1", onclick: () => this.acts.open(picture.id) }, image, icon("alert"));
    const heart = button("heart", t("favourite"), () => this.acts.favourite(picture), { quiet: true, class: "ghost heart", pressed: picture.favourite });
    const pick = button("compare", t("compare.pick"), () => this.acts.pick(picture), { quiet: true, class: "ghost pick", pressed: this.acts.isPicked(picture.id) });
    heart.tabIndex = pick.tabIndex = -1;
    const tile = h("li", { class: "tile", dataset: { id: picture.id } }, open, h("div", { class: "over" }, h("p", { title: picture.prompt }, picture.prompt), pick, heart));
    const aspect = picture.width / picture.height;
    tile.style.setProperty("--aspect", aspect.toFixed(4));
    tile.hidden = this.away.has(picture.id) && !this.filtered;
    this.shown.set(picture.id, { picture, tile });
    this.lazy.observe(tile);
    return tile;
  }

  /** @param {IntersectionObserverEntry[]} seen */
  #fetchSeen(seen) {
    for (const { isIntersecting, target } of seen) {
      if (!isIntersecting) continue;
      this.lazy.unobserve(target);
      const known = this.shown.get(/** @type {HTMLElement} */ (target).dataset.id ?? "");
      const image = /** @type {HTMLImageElement | null} */ (target.querySelector("img"));
      if (known && image && !image.src) showIn(image, known.picture.thumbnail_url);
    }
  }

  #skeletons() {
    const aspects = [1, 1.5, 0.75, 1.33, 1, 0.67, 1.78, 1, 1.33, 0.75];
    this.wall.replaceChildren(
      ...aspects.slice(0, SKELETONS).map((aspect) => {
        const tile = h("li", { class: "tile skeleton", "aria-hidden": "true" });
        tile.style.setProperty("--aspect", String(aspect));
        return tile;
      }),
    );
  }

  /** One tile can be tabbed to, and an empty wall says what to do. */
  #settle() {
    const opens = /** @type {NodeListOf<HTMLElement>} */ (this.wall.querySelectorAll(".tile:not([hidden]) > .open"));
    if (opens.length && !this.wall.querySelector('.tile:not([hidden]) > .open[tabindex="0"]')) opens[0].tabIndex = 0;
    this.note.replaceChildren();
    if (opens.length || this.acts.busy()) return;
    if (this.filtered) {
      const clear = h("button", { type: "button", class: "quiet", onclick: () => this.acts.clearFilter() }, t("wall.clear"));
      this.note.append(h("h3", {}, t("wall.nothing")), h("p", {}, t("wall.nothing.hint")), clear);
    } else {
      this.note.append(this.acts.welcome());
    }
  }

  /** @param {unknown} error */
  #sayFailed(error) {
    this.wall.querySelectorAll(".skeleton").forEach((each) => each.remove());
    const message = error instanceof Error ? error.message : String(error);
    const again = h("button", { type: "button", class: "quiet", onclick: () => (this.shown.size ? this.more() : this.reload()) }, t("retry"));
    this.note.replaceChildren(h("h3", {}, t("wall.failed")), h("p", { role: "alert" }, message), again);
  }

  /** @param {HTMLElement} target */
  #rove(target) {
    const open = target.closest(".tile")?.querySelector(".open");
    if (!open) return;
    for (const other of this.wall.querySelectorAll('.open[tabindex="0"]')) if (other !== open) other.setAttribute("tabindex", "-1");
    open.setAttribute("tabindex", "0");
  }

  /** @param {KeyboardEvent} event */
  #steer(event) {
    const tiles = /** @type {HTMLElement[]} */ (Array.from(this.wall.querySelectorAll(".tile:not([hidden])")));
    const here = tiles.indexOf(/** @type {HTMLElement} */ (document.activeElement?.closest(".tile")));
    if (here < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
    const moves = { ArrowLeft: here - 1, ArrowRight: here + 1, Home: 0, End: tiles.length - 1 };
    let next = /** @type {Record<string, number>} */ (moves)[event.key];
    if (event.key === "ArrowUp" || event.key === "ArrowDown") next = inTheNextRow(tiles, here, event.key === "ArrowUp" ? -1 : 1);
    if (next === undefined) return;
    event.preventDefault();
    /** @type {HTMLElement | null} */ (tiles[next]?.querySelector(".open"))?.focus();
  }
}

/**
 * @param {HTMLElement[]} tiles
 * @param {number} here
 * @param {1 | -1} way
 * @returns {number} the tile above or below that is nearest
 */
function inTheNextRow(tiles, here, way) {
  const { top, left, width } = tiles[here].getBoundingClientRect();
  const centre = left + width / 2;
  let best = here;
  let row = NaN;
  let distance = Infinity;
  for (let index = here + way; index >= 0 && index < tiles.length; index += way) {
    const box = tiles[index].getBoundingClientRect();
    if (Math.abs(box.top - top) < 2) continue;
    if (!Number.isNaN(row) && Math.abs(box.top - row) > 2) break;
    row = box.top;
    const away = Math.abs(box.left + box.width / 2 - centre);
    if (away < distance) [best, distance] = [index, away];
  }
  return best;
}
