// Petzval Studio: a page for making pictures. This file knows the others, and they know only `Acts`.

import { Bench, isOpen } from "./bench.js";
import { Compare } from "./compare.js";
import { Composer } from "./composer.js";
import { $, h, memory, say } from "./dom.js";
import { Gallery } from "./gallery.js";
import { Lattices } from "./lattice.js";
import { askForKey, note, showKeys } from "./notices.js";
import { Queue } from "./queue.js";
import { recipeOf, requestOf } from "./recipes.js";
import { ask, listen, onKeyNeeded, persist, ServerError, uniqueName } from "./server.js";
import { Viewer, readRecipe } from "./viewer.js";
import { LANGUAGES, preferred, speak, t } from "./words.js";

/** @typedef {import("./server.js").Job} Job */
/** @typedef {import("./server.js").Picture} Picture */
/** @typedef {Studio} Acts what the parts of the page may ask for */

const KEPT_JOBS = 200;
const NUM_VARIATIONS = 4;
const NUM_IDEAS_SHOWN = 4;
const SEARCH_WAIT_MS = 250;
const PLACES_WAIT_MS = 700;

class Studio {
  constructor() {
    /** @type {Map<string, Job>} in the order of their making */
    this.jobs = new Map();
    /** @type {Set<string>} jobs that this page asked for */
    this.own = new Set();
    /** @type {(() => void)[]} */
    this.undoing = [];
    this.asking = 0;
    this.composer = new Composer(this);
    this.compare = new Compare((ids) => this.gallery?.setPicked(ids));
    this.gallery = new Gallery(this);
    this.bench = new Bench(this);
    this.queue = new Queue(this);
    this.lattices = new Lattices(this);
    this.viewer = new Viewer(this, () => this.#row());
  }

  async start() {
    onKeyNeeded(askForKey);
    this.#wire();
    await Promise.all([this.#loadModels(), this.gallery.reload()]);
    listen({
      event: (name, data) => this.#hear(name, data),
      up: () => this.#connected(),
      down: (seconds) => this.#disconnected(seconds),
    });
  }

  // ── what the parts ask for ─────────────────────────────────────────────────────────────────────

  /** Ask for pictures. Asking twice with one name makes them once, so a broken line is no matter.
   * @param {Record<string, any>} request
   * @param {{quiet?: boolean}} [more] quiet: whoever asks says what went wrong
   * @returns {Promise<Job>} */
  async create(request, { quiet = false } = {}) {
    const name = uniqueName();
    try {
      const job = await persist(() => ask("v1/jobs", { method: "POST", json: request, headers: { "Idempotency-Key": name } }));
      this.own.add(job.id);
      this.#know(job);
      say(t("job.accepted"));
      return job;
    } catch (error) {
      if (!quiet) this.#complain(error);
      throw error;
    }
  }

  /** The same where nobody waits for the job. @param {Record<string, any>} request */
  repeat = (request) => this.create(request).catch(() => {});

  /** @param {Picture} picture */
  async again(picture) {
    this.#closeAll();
    await this.repeat(requestOf(recipeOf(picture)));
    window.scrollTo({ top: 0 });
  }

  /** @param {Picture} picture */
  async vary(picture) {
    this.#closeAll();
    this.composer.roll();
    const request = { ...requestOf(recipeOf(picture)), seed: this.composer.seed.value, n: Math.min(NUM_VARIATIONS, Number(this.composer.count.max)) };
    await this.repeat(request);
    window.scrollTo({ top: 0 });
  }

  /** @param {Record<string, any>} recipe */
  use(recipe) {
    this.#closeAll();
    $("#options").setAttribute("open", "");
    if (!this.composer.fill(requestOf(recipe))) note(t("model.absent", { model: recipe.model }));
    else note(t("used"));
  }

  /** @param {string} id */
  async cancel(id) {
    try {
      this.#know(await ask(`v1/jobs/${encodeURIComponent(id)}/cancel`, { method: "POST" }));
    } catch (error) {
      this.#complain(error);
    }
  }

  /** @param {string} id @returns {Promise<Job | null>} */
  async job(id) {
    const known = this.jobs.get(id);
    return known ?? ask(`v1/jobs/${encodeURIComponent(id)}`).catch(() => null);
  }

  /** @param {string} id */
  async open(id) {
    const picture = this.picture(id);
    if (picture) this.viewer.show(picture);
  }

  /** @param {Picture} picture */
  async favourite(picture) {
    const wanted = !picture.favourite;
    const show = (/** @type {boolean} */ favourite) => {
      picture.favourite = favourite;
      this.gallery.update(picture);
      this.viewer.update(picture);
    };
    show(wanted);
    try {
      await ask(`v1/pictures/${encodeURIComponent(picture.id)}`, { method: "PATCH", json: { favourite: wanted } });
      say(t(wanted ? "favourite.on" : "favourite.off"));
    } catch (error) {
      show(!wanted);
      this.#complain(error);
    }
  }

  /** @param {Picture} picture */
  async remove(picture) {
    this.viewer.close();
    const putBack = this.gallery.remove(picture.id);
    this.bench.forget(picture.id);
    const back = () => {
      putBack();
      this.bench.recall(picture.id);
    };
    const path = `v1/pictures/${encodeURIComponent(picture.id)}`;
    const deleted = ask(path, { method: "DELETE" });
    const forget = () => (this.undoing = this.undoing.filter((each) => each !== undo));
    const undo = () => {
      forget();
      leave();
      back();
      deleted.then(() => ask(`${path}/restore`, { method: "POST" })).then(
        () => say(t("restored")),
        (error) => this.#complain(error),
      );
    };
    const leave = note(t("deleted"), { label: t("undo"), act: undo, gone: forget });
    this.undoing.push(undo);
    try {
      await deleted;
    } catch (error) {
      if (!this.undoing.includes(undo)) return; // undone already, and complained of there
      forget();
      leave();
      back();
      this.#complain(error);
    }
  }

  /** @param {Picture} picture */
  async download(picture) {
    try {
      const answer = await ask(picture.url, { raw: true });
      const words = picture.prompt.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 60);
      const link = h("a", { href: URL.createObjectURL(await answer.blob()), download: `${words || "picture"}-${picture.seed}.png` });
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
    } catch (error) {
      this.#complain(error);
    }
  }

  /** @param {Picture} picture */
  pick(picture) {
    this.viewer.close();
    this.compare.pick(picture);
  }

  /** @param {string} id */
  isPicked(id) {
    return this.compare.has(id);
  }

  /** @param {string} id @returns {Picture | undefined} */
  picture(id) {
    return this.gallery.picture(id) ?? [...this.jobs.values()].flatMap((job) => job.images).find((each) => each.id === id);
  }

  /** @param {Record<string, any>} request @returns {{width: number, height: number}} */
  sizeOf(request) {
    const [width, height] = String(request.size ?? "").split("x").map(Number);
    if (width && height) return { width, height };
    for (const model of this.composer.models) {
      if (request.model && model.id !== request.model) continue;
      const base = model.petzval.bases.find((each) => each.base === (request.base ?? model.petzval.base));
      const found = base?.aspects.find((each) => each.aspect === (request.aspect ?? "1:1"));
      if (found) return found;
    }
    return { width: 1, height: 1 };
  }

  /** @param {string} id */
  putAway(id) {
    this.bench.putAway(id);
  }

  benchChanged() {
    this.gallery.setAway(this.bench.pictures);
  }

  showQueue() {
    this.queue.toggle(true);
  }

  busy() {
    return this.bench?.busy ?? false;
  }

  clearFilter() {
    /** @type {HTMLInputElement} */ ($("#search")).value = "";
    $("#favourites").setAttribute("aria-pressed", "false");
    this.bench.element.classList.remove("aside");
    this.gallery.show({ q: "", favourite: false });
  }

  /** What an empty wall shows: an invitation, and ideas to start from. */
  welcome() {
    const shown = Array.from({ length: NUM_IDEAS_SHOWN }, (_, place) => t(`idea.${place + 1}`));
    const ideas = shown.map((idea) => h("button", { type: "button", class: "idea", onclick: () => this.composer.suggest(idea) }, idea));
    const drawing = h("div", { class: "welcome-frames", "aria-hidden": "true" }, h("i"), h("i"), h("i"));
    return h("div", { class: "welcome" }, drawing, h("h3", {}, t("welcome.title")), h("p", {}, t("welcome.hint")), h("div", { class: "ideas" }, ...ideas));
  }

  // ── what the server says ───────────────────────────────────────────────────────────────────────

  async #loadModels() {
    try {
      const { data } = await persist(() => ask("v1/models"), 8);
      this.composer.offer(data);
    } catch (error) {
      this.composer.complain(error instanceof Error ? error.message : String(error));
    }
  }

  /** @param {string} name @param {any} data */
  #hear(name, data) {
    if (name === "status" || name === "end") this.#know(data);
    if (name === "picture") this.#finished(data);
    const job = this.jobs.get(data.job);
    if (!job) return;
    if (name === "progress") this.#know({ ...job, status: "running", progress: { image: data.image, step: data.step, steps: data.steps } });
    if (name === "preview") this.bench.preview(data.job, data.image, data.png);
  }

  /** @param {Job} job */
  #know(job) {
    const known = this.jobs.get(job.id);
    if (known && !isOpen(known) && isOpen(job)) return; // an answer that was overtaken
    if (known && !job.images?.length) job = { ...job, images: known.images };
    this.jobs.set(job.id, job);
    for (const picture of job.images) if (!this.gallery.picture(picture.id)) this.gallery.add(picture);
    this.bench.update(job, this.own.has(job.id) && !known);
    this.lattices.update(job);
    this.#queueChanged();
    if (known?.status !== job.status && job.status !== "queued") this.#lineMoves();
  }

  /** Who waits is one place further: ask for the new places, once for a burst of news. */
  #lineMoves() {
    if (this.asking || ![...this.jobs.values()].some((job) => job.status === "queued")) return;
    this.asking = window.setTimeout(async () => {
      this.asking = 0;
      const waiting = await ask("v1/jobs?status=queued&limit=100").catch(() => ({ data: [] }));
      for (const job of waiting.data.reverse()) this.#know(job);
    }, PLACES_WAIT_MS);
  }

  /** @param {Picture} picture */
  #finished(picture) {
    this.gallery.add(picture);
    const job = this.jobs.get(picture.job);
    if (job && !job.images.some((each) => each.id === picture.id)) this.#know({ ...job, images: [...job.images, picture] });
  }

  #queueChanged() {
    const jobs = [...this.jobs.values()].reverse();
    for (const job of jobs.slice(KEPT_JOBS)) if (!isOpen(job)) this.jobs.delete(job.id);
    this.queue.update(jobs);
  }

  async #connected() {
    $("#link").hidden = true;
    try {
      const { data } = await ask("v1/jobs?limit=100");
      for (const job of [...data].reverse()) this.#know(job);
      const listed = new Set(data.map((/** @type {Job} */ job) => job.id));
      for (const job of [...this.jobs.values()]) {
        if (isOpen(job) && !listed.has(job.id)) this.#lost(job);
      }
      if (!this.composer.models.length) await this.#loadModels();
      await this.gallery.catchUp();
    } catch {
      // the stream breaks too, and all this is asked again
    }
  }

  /** @param {Job} job that we thought was waiting */
  async #lost(job) {
    try {
      this.#know(await ask(`v1/jobs/${encodeURIComponent(job.id)}`));
    } catch (error) {
      if (error instanceof ServerError && error.status === 404) this.#know({ ...job, status: "cancelled" });
    }
  }

  /** @param {number} seconds */
  #disconnected(seconds) {
    const link = $("#link");
    link.hidden = false;
    link.textContent = t("link.down", { n: seconds, seconds });
  }

  /** @param {unknown} error */
  #complain(error) {
    note(error instanceof Error ? error.message : String(error), { error: true });
  }

  // ── the page itself ────────────────────────────────────────────────────────────────────────────

  /** Pictures in the order in which they are seen: the bench, then the wall. */
  #row() {
    const bench = this.bench.pictures.map((id) => this.picture(id));
    const seen = new Set(this.bench.pictures);
    return /** @type {Picture[]} */ ([...bench, ...this.gallery.pictures.filter((each) => !seen.has(each.id))].filter(Boolean));
  }

  #closeAll() {
    for (const dialog of document.querySelectorAll("dialog[open]")) /** @type {HTMLDialogElement} */ (dialog).close();
  }

  /** The picture that a key is meant for: the one in the viewer, or the one with the focus. */
  get #current() {
    const frame = document.activeElement?.closest?.(".frame[data-id]");
    return this.viewer.picture ?? this.gallery.focused ?? (frame ? this.picture(/** @type {HTMLElement} */ (frame).dataset.id ?? "") : null) ?? null;
  }

  #wire() {
    this.#wireTools();
    this.#wireDrop();
    document.addEventListener("keydown", (event) => this.#key(event));
    const wide = matchMedia("(min-width: 56rem)");
    const fold = () => $("#options").toggleAttribute("open", wide.matches);
    wide.addEventListener("change", fold);
    fold();
    if (/Mac|iPhone|iPad/.test(navigator.userAgent)) $("#create-keys").textContent = "⌘ ↵";
  }

  #wireTools() {
    const search = /** @type {HTMLInputElement} */ ($("#search"));
    let timer = 0;
    const filter = (/** @type {{q?: string, favourite?: boolean}} */ change) => {
      const done = this.gallery.show(change);
      this.bench.element.classList.toggle("aside", this.gallery.filtered);
      return done;
    };
    search.addEventListener("input", () => {
      clearTimeout(timer);
      timer = window.setTimeout(() => filter({ q: search.value.trim() }), SEARCH_WAIT_MS);
    });
    $("#favourites").addEventListener("click", () => {
      const on = $("#favourites").getAttribute("aria-pressed") !== "true";
      $("#favourites").setAttribute("aria-pressed", String(on));
      filter({ favourite: on });
    });
    $("#grid-button").addEventListener("click", () => this.#grid());
    const file = /** @type {HTMLInputElement} */ ($("#recipe-file"));
    $("#recipe-button").addEventListener("click", () => file.click());
    file.addEventListener("change", () => {
      if (file.files?.[0]) readRecipe(file.files[0], this);
      file.value = "";
    });
    $("#help-button").addEventListener("click", showKeys);
    $("#theme-button").addEventListener("click", () => this.#nextTheme());
    const language = /** @type {HTMLSelectElement} */ ($("#language"));
    language.append(...Object.entries(LANGUAGES).map(([code, name]) => h("option", { value: code, lang: code }, name)));
    language.value = document.documentElement.lang;
    language.addEventListener("change", async () => {
      memory.set("language", language.value);
      await speak(language.value);
      this.composer.draw();
      this.queue.draw();
      await this.gallery.reload();
    });
  }

  #wireDrop() {
    const drop = $("#drop");
    const carries = (/** @type {DragEvent} */ event) => event.dataTransfer?.types.includes("Files");
    let depth = 0;
    document.addEventListener("dragenter", (event) => {
      if (carries(event)) drop.hidden = ++depth === 0;
    });
    document.addEventListener("dragleave", (event) => {
      if (carries(event)) drop.hidden = --depth <= 0;
    });
    document.addEventListener("dragover", (event) => {
      if (carries(event)) event.preventDefault();
    });
    document.addEventListener("drop", (event) => {
      depth = 0;
      drop.hidden = true;
      if (!carries(event)) return;
      event.preventDefault();
      const file = event.dataTransfer?.files[0];
      if (file) readRecipe(file, this);
    });
    document.addEventListener("paste", (event) => {
      const file = event.clipboardData?.files[0];
      if (file?.type.startsWith("image/")) readRecipe(file, this);
    });
  }

  #nextTheme() {
    const themes = ["system", "light", "dark"];
    const next = themes[(themes.indexOf(memory.get("theme", "system")) + 1) % themes.length];
    memory.set("theme", next);
    if (next === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = next;
    note(t(`theme.${next}`));
  }

  #grid() {
    this.lattices.ask(this.composer.request());
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    const target = /** @type {HTMLElement} */ (event.target);
    const typing = target.matches("input:not([type=range]):not([type=checkbox]), textarea, select");
    if (event.key === "Escape" && !document.querySelector("dialog[open]")) {
      if (!this.queue.sheet.hidden) this.queue.toggle(false);
      else if (typing) target.blur();
      return;
    }
    if (typing) return;
    if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "z" && this.undoing.length) {
      event.preventDefault();
      this.undoing[this.undoing.length - 1]();
      return;
    }
    if (event.ctrlKey || event.metaKey || event.altKey || !memory.get("keys", true)) return;
    if (this.#pictureKey(event.key)) event.preventDefault();
    else if (!document.querySelector("dialog[open]") && this.#pageKey(event.key)) event.preventDefault();
  }

  /** @param {string} key */
  #pictureKey(key) {
    const picture = this.#current;
    const dialogs = document.querySelectorAll("dialog[open]");
    if (!picture || (dialogs.length && !this.viewer.picture)) return false;
    /** @type {Record<string, () => void>} */
    const keys = {
      f: () => this.favourite(picture),
      r: () => this.again(picture),
      v: () => this.vary(picture),
      e: () => this.use(recipeOf(picture)),
      d: () => this.download(picture),
      c: () => this.pick(picture),
      delete: () => this.remove(picture),
      backspace: () => this.remove(picture),
    };
    const act = keys[key.toLowerCase()];
    act?.();
    return Boolean(act);
  }

  /** @param {string} key */
  #pageKey(key) {
    /** @type {Record<string, () => void>} */
    const keys = {
      p: () => this.composer.prompt.focus(),
      s: () => this.composer.roll(),
      l: () => this.composer.lock(),
      x: () => this.#cancelRunning(),
      "/": () => $("#search").focus(),
      g: () => this.#grid(),
      o: () => $("#recipe-file").click(),
      q: () => this.queue.toggle(),
      t: () => this.#nextTheme(),
      "?": showKeys,
    };
    const act = keys[key.toLowerCase()];
    act?.();
    return Boolean(act);
  }

  #cancelRunning() {
    const job = [...this.jobs.values()].find((each) => each.status === "running") ?? [...this.jobs.values()].find(isOpen);
    if (job) this.cancel(job.id);
  }
}

await speak(preferred());
await new Studio().start();
document.documentElement.dataset.ready = "";
