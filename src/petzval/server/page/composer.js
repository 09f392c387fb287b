// The composer: what is asked for. Shapes and sizes are chosen by picture.

import { $, h, icon, memory } from "./dom.js";
import { NO_ROOM, ServerError } from "./server.js";
import { t } from "./words.js";

/**
 * @typedef {{base: number, aspects: {aspect: string, width: number, height: number}[]}} Base
 * @typedef {{id: string, petzval: {default?: boolean, steps: number, guidance: number, base: number, bases: Base[], loras: string[],
 *   max_pictures?: number, max_pixels?: number, max_steps?: number}}} Model
 */

const LARGEST_SEED = 2 ** 32;
const FRAME = 30;
const NUM_IDEAS = 8;

const randomSeed = () => crypto.getRandomValues(new Uint32Array(1))[0] % LARGEST_SEED;

export class Composer {
  /** @param {{create: (request: Record<string, any>, more?: {quiet?: boolean}) => Promise<any>}} acts */
  constructor(acts) {
    this.acts = acts;
    /** @type {Model[]} */
    this.models = [];
    /** What was chosen; null is the model's own. */
    this.chosen = {
      model: "",
      aspect: "1:1",
      base: /** @type {number | null} */ (null),
      steps: /** @type {number | null} */ (null),
      guidance: /** @type {number | null} */ (null),
      /** @type {{width: number, height: number} | null} a recipe's size that is no preset */
      free: null,
      /** @type {Record<string, number>} */
      loras: {},
      locked: false,
      ...memory.get("chosen", {}),
    };
    this.prompt = /** @type {HTMLTextAreaElement} */ ($("#prompt"));
    this.seed = /** @type {HTMLInputElement} */ ($("#seed"));
    this.count = /** @type {HTMLInputElement} */ ($("#count"));
    this.negative = /** @type {HTMLTextAreaElement} */ ($("#negative"));
    const draft = memory.get("draft", {});
    this.prompt.value = draft.prompt ?? "";
    this.negative.value = draft.negative ?? "";
    this.seed.value = draft.seed ?? "";
    this.count.value = draft.count ?? "1";
    this.#wire();
    this.#grow();
  }

  /** @returns {Model | undefined} */
  get model() {
    return this.models.find((each) => each.id === this.chosen.model) ?? this.models.find((each) => each.petzval.default) ?? this.models[0];
  }

  /** @param {Model[]} models what the server has, of which only what we may ask for is shown */
  offer(models) {
    for (const { petzval } of models) {
      const most = petzval.max_pixels ?? Infinity;
      petzval.bases = petzval.bases.filter((base) => base.aspects.every(({ width, height }) => width * height <= most));
    }
    this.models = models;
    this.draw();
  }

  /** @returns {{width: number, height: number}} */
  get size() {
    if (this.chosen.free) return this.chosen.free;
    const base = this.#base();
    return base?.aspects.find((each) => each.aspect === this.chosen.aspect) ?? base?.aspects[0] ?? { width: 1, height: 1 };
  }

  /** Everything as a request; the seed is drawn here unless it is locked or typed. */
  request() {
    if (!this.chosen.locked || this.seed.value === "") this.#roll();
    const { width, height } = this.size;
    const loras = Object.entries(this.chosen.loras)
      .filter(([name, weight]) => weight !== 0 && this.model?.petzval.loras.includes(name))
      .map(([name, weight]) => ({ name, weight }));
    return {
      prompt: this.prompt.value.trim(),
      negative_prompt: this.negative.value.trim() || undefined,
      n: this.#count(),
      seed: this.seed.value,
      size: `${width}x${height}`,
      steps: this.#steps(),
      guidance: this.#guidance(),
      model: this.model?.id,
      loras: loras.length ? loras : undefined,
    };
  }

  /** @param {Record<string, any>} request see `requestOf`; fills the form in, and locks the seed */
  fill(request) {
    this.prompt.value = request.prompt ?? "";
    this.negative.value = request.negative_prompt ?? "";
    this.seed.value = String(request.seed ?? "");
    this.count.value = "1";
    const model = this.models.find((each) => each.id === request.model);
    const [width, height] = String(request.size ?? "").split("x").map(Number);
    const base = (model ?? this.model)?.petzval.bases.find((each) => each.aspects.some((a) => a.width === width && a.height === height));
    const aspect = base?.aspects.find((a) => a.width === width && a.height === height)?.aspect;
    Object.assign(this.chosen, {
      model: model?.id ?? this.chosen.model,
      base: base?.base ?? this.chosen.base,
      aspect: aspect ?? this.chosen.aspect,
      free: base || !width ? null : { width, height },
      steps: request.steps ?? null,
      guidance: request.guidance ?? null,
      loras: Object.fromEntries((request.loras ?? []).map((/** @type {any} */ each) => [each.name, each.weight])),
      locked: request.seed !== undefined,
    });
    this.draw();
    this.prompt.focus();
    return !request.model || Boolean(model);
  }

  /**
   * @param {string} message "" takes it away
   * @param {{prompt?: boolean, smaller?: boolean}} [more] whether the prompt is to blame, whether a smaller picture may help
   */
  complain(message, { prompt = false, smaller = false } = {}) {
    $("#composer-error").textContent = message;
    this.prompt.setAttribute("aria-invalid", String(prompt));
    const size = smaller ? this.#smaller() : undefined;
    const offer = $("#smaller");
    offer.hidden = !size;
    offer.textContent = size ? t("error.room.smaller", { size: `${size.width} × ${size.height}` }) : "";
    if (message) $(".told").scrollIntoView({ block: "nearest" });
  }

  /** @param {string} prompt */
  suggest(prompt) {
    this.prompt.value = prompt;
    this.complain("");
    this.#grow();
    this.#remember();
    $("#create").focus();
  }

  lock(locked = !this.chosen.locked) {
    this.chosen.locked = locked;
    if (locked && this.seed.value === "") this.#roll();
    this.draw();
  }

  roll() {
    this.#roll();
    this.#remember();
  }

  draw() {
    const model = this.model;
    this.#drawShapes();
    this.#drawModels();
    this.#drawLoras();
    const { width, height } = this.size;
    $("#pixels").textContent = `${width} × ${height}`;
    const steps = /** @type {HTMLInputElement} */ ($("#steps"));
    const guidance = /** @type {HTMLInputElement} */ ($("#guidance"));
    const { max_steps = 100, max_pictures = 16 } = model?.petzval ?? {};
    this.count.max = String(max_pictures);
    steps.max = String(Math.max(Math.min(60, max_steps), this.#steps()));
    guidance.max = String(Math.max(12, this.#guidance()));
    steps.value = String(this.#steps());
    guidance.value = String(this.#guidance());
    $("#steps-value").textContent = steps.value;
    $("#guidance-value").textContent = guidance.value;
    const lock = $("#lock");
    lock.setAttribute("aria-pressed", String(this.chosen.locked));
    lock.replaceChildren(icon(this.chosen.locked ? "lock" : "unlock"));
    $("#options-summary").textContent = [`${width} × ${height}`, t("count.n", { n: this.#count() }), model?.id ?? ""].filter(Boolean).join(" · ");
    $("#reset").hidden = this.chosen.steps === null && this.chosen.guidance === null && !this.negative.value && !Object.values(this.chosen.loras).some(Boolean);
    this.#grow();
    this.#remember();
  }

  #wire() {
    const form = /** @type {HTMLFormElement} */ ($("#composer"));
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#send();
    });
    form.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
        event.preventDefault();
        this.#send();
      }
    });
    this.prompt.addEventListener("input", () => {
      this.complain("");
      this.#grow();
      this.#remember();
    });
    this.negative.addEventListener("input", () => this.draw());
    this.seed.addEventListener("input", () => {
      this.seed.value = this.seed.value.replace(/\D/g, "");
      this.lock(this.seed.value !== "");
    });
    this.count.addEventListener("change", () => {
      this.count.value = String(this.#count());
      this.draw();
    });
    for (const step of document.querySelectorAll("[data-step]")) {
      step.addEventListener("click", () => {
        this.count.value = String(Number(this.count.value) + Number(/** @type {HTMLElement} */ (step).dataset.step));
        this.count.value = String(this.#count());
        this.draw();
      });
    }
    $("#dice").addEventListener("click", () => this.roll());
    $("#lock").addEventListener("click", () => this.lock());
    $("#smaller").addEventListener("click", () => {
      const size = this.#smaller();
      if (size) Object.assign(this.chosen, { base: size.base, aspect: size.aspect, free: null });
      $("#create").focus();
      this.draw();
      this.#send();
    });
    $("#inspire").addEventListener("click", () => this.suggest(this.idea()));
    $("#reset").addEventListener("click", () => {
      Object.assign(this.chosen, { steps: null, guidance: null, loras: {} });
      this.negative.value = "";
      this.draw();
    });
    for (const name of /** @type {const} */ (["steps", "guidance"])) {
      $(`#${name}`).addEventListener("input", (event) => {
        this.chosen[name] = Number(/** @type {HTMLInputElement} */ (event.target).value);
        this.draw();
      });
    }
  }

  /** @returns {string} something to draw, other than what stands there */
  idea() {
    const ideas = Array.from({ length: NUM_IDEAS }, (_, place) => t(`idea.${place + 1}`)).filter((each) => each !== this.prompt.value);
    return ideas[Math.floor(Math.random() * ideas.length)];
  }

  async #send() {
    if (!this.prompt.value.trim()) {
      this.complain(t("prompt.missing"), { prompt: true });
      this.prompt.focus();
      return;
    }
    this.complain("");
    const send = /** @type {HTMLButtonElement} */ ($("#create"));
    const focused = document.activeElement === send;
    send.disabled = true;
    try {
      await this.acts.create(this.request(), { quiet: true });
    } catch (error) {
      const smaller = error instanceof ServerError && error.code === NO_ROOM;
      this.complain(error instanceof Error ? error.message : String(error), { smaller });
    } finally {
      send.disabled = false;
      if (focused && document.activeElement === document.body) send.focus({ preventScroll: true });
    }
  }

  #roll() {
    this.seed.value = String(randomSeed());
  }

  #count() {
    const { min, max } = this.count;
    return Math.max(Number(min), Math.min(Number(max), Math.round(Number(this.count.value)) || 1));
  }

  #steps() {
    return this.chosen.steps ?? this.model?.petzval.steps ?? 20;
  }

  #guidance() {
    return this.chosen.guidance ?? this.model?.petzval.guidance ?? 5;
  }

  #base() {
    const model = this.model?.petzval;
    return model?.bases.find((each) => each.base === this.chosen.base) ?? model?.bases.find((each) => each.base === model.base) ?? model?.bases[0];
  }

  /** The next smaller size in the same shape, where the model has one. */
  #smaller() {
    const { width, height } = this.size;
    const bent = (/** @type {{width: number, height: number}} */ each) => Math.abs(Math.log((each.width * height) / (each.height * width)));
    const sizes = (this.model?.petzval.bases ?? []).map(({ base, aspects }) => ({ base, ...aspects.reduce((near, each) => (bent(each) < bent(near) ? each : near)) }));
    return sizes.filter((each) => each.width * each.height < width * height).sort((one, other) => other.width * other.height - one.width * one.height)[0];
  }

  #drawShapes() {
    const base = this.#base();
    const shapes = (base?.aspects ?? []).map(({ aspect, width, height }) => {
      const frame = h("i", { class: "shape" });
      frame.style.setProperty("width", `${Math.round((FRAME * width) / Math.max(width, height))}px`);
      frame.style.setProperty("height", `${Math.round((FRAME * height) / Math.max(width, height))}px`);
      const chosen = !this.chosen.free && aspect === this.chosen.aspect;
      return this.#radio(chosen, `${aspect}, ${width} × ${height}`, () => Object.assign(this.chosen, { aspect, free: null }), h("span", { class: "box" }, frame), h("small", {}, aspect));
    });
    replaceRadios($("#shapes"), shapes);
    const bases = this.model?.petzval.bases ?? [];
    const largest = Math.max(1, ...bases.map((each) => each.base));
    const sizes = bases.map((each) => {
      const frame = h("i", { class: "shape" });
      const side = `${Math.round(8 + (12 * each.base) / largest)}px`;
      frame.style.setProperty("width", side);
      frame.style.setProperty("height", side);
      const chosen = !this.chosen.free && each.base === base?.base;
      return this.#radio(chosen, t("size.name", { base: each.base }), () => Object.assign(this.chosen, { base: each.base, free: null }), frame, h("small", {}, String(each.base)));
    });
    replaceRadios($("#sizes"), sizes);
    $("#sizes").hidden = bases.length < 2;
  }

  #drawModels() {
    const radios = this.models.map((model) => {
      const { steps, guidance } = model.petzval;
      const wants = h("small", {}, t("model.wants", { n: steps, steps, guidance }));
      return this.#radio(model.id === this.model?.id, model.id, () => Object.assign(this.chosen, { model: model.id, base: null, steps: null, guidance: null, free: null }), h("b", {}, model.id), wants);
    });
    replaceRadios($("#models"), radios);
    $("#models-field").hidden = this.models.length < 2;
  }

  #drawLoras() {
    const names = this.model?.petzval.loras ?? [];
    $("#loras-field").hidden = !names.length;
    const list = $("#loras");
    if (list.contains(document.activeElement)) return;
    list.replaceChildren(
      ...names.map((name) => {
        const weight = this.chosen.loras[name] ?? 0;
        const value = h("output", { class: "value" }, weight ? String(weight) : t("loras.off"));
        const slider = h("input", { type: "range", min: "-1", max: "2", step: "0.05", "aria-label": t("loras.weight", { name }) });
        slider.value = String(weight);
        slider.addEventListener("input", () => {
          this.chosen.loras[name] = Number(slider.value);
          value.textContent = Number(slider.value) ? slider.value : t("loras.off");
          this.draw();
        });
        return h("div", { class: "lora" }, h("span", {}, name, " "), value, slider);
      }),
    );
  }

  /**
   * @param {boolean} checked
   * @param {string} label
   * @param {() => void} choose
   * @param {...Node} content
   */
  #radio(checked, label, choose, ...content) {
    const onclick = () => {
      this.complain("");
      choose();
      this.draw();
    };
    return h("button", { type: "button", role: "radio", "aria-checked": String(checked), "aria-label": label, title: label, onclick }, ...content);
  }

  /** The field is as high as what is written in it. */
  #grow() {
    this.prompt.style.height = "auto";
    this.prompt.style.height = `${this.prompt.scrollHeight + 2}px`;
  }

  #remember() {
    memory.set("chosen", this.chosen);
    memory.set("draft", { prompt: this.prompt.value, negative: this.negative.value, seed: this.chosen.locked ? this.seed.value : "", count: this.count.value });
  }
}

/**
 * Radio buttons drawn anew, with the focus where it was, and arrows that move it.
 * @param {HTMLElement} group
 * @param {HTMLElement[]} radios
 */
function replaceRadios(group, radios) {
  const place = Array.from(group.children).indexOf(/** @type {Element} */ (document.activeElement));
  group.replaceChildren(...radios);
  const checked = radios.find((each) => each.getAttribute("aria-checked") === "true") ?? radios[0];
  for (const radio of radios) radio.tabIndex = radio === checked ? 0 : -1;
  if (place >= 0) radios[place]?.focus();
  group.onkeydown = (event) => {
    const move = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const here = Array.from(group.children).indexOf(/** @type {Element} */ (document.activeElement));
    if (!move || here < 0) return;
    event.preventDefault();
    const next = /** @type {HTMLElement} */ (group.children[(here + move + group.children.length) % group.children.length]);
    next.focus();
    next.click();
  };
}
