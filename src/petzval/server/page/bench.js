// The bench: what is being made now, large, step by step; and the last job that was finished.

import { $, button, h, say } from "./dom.js";
import { meaning, showIn } from "./server.js";
import { t } from "./words.js";

/** @typedef {import("./server.js").Job} Job */
/** @typedef {import("./server.js").Picture} Picture */
/** @typedef {import("./studio.js").Acts} Acts */

const MOST_SHOWN = 3;

/** @param {Job} job */
export const isOpen = (job) => job.status === "queued" || job.status === "running";

/** @param {Job} job @returns {number} 0 … 1 */
export function part(job) {
  if (job.status === "done") return 1;
  const total = job.request.n ?? 1;
  const { image = 0, step = 0, steps = 1 } = job.progress ?? {};
  return Math.min(1, (image + (steps ? step / steps : 0)) / total);
}

/** @param {Job} job @returns {string} how it stands, in words */
export function standing(job) {
  if (job.status === "queued") {
    return job.position ? t("job.position", { position: job.position }) : t("job.queued");
  }
  if (job.status === "running") {
    const { image = 0, step = 0, steps = 0 } = job.progress ?? {};
    const total = job.request.n ?? 1;
    if (!step) return t("job.starting");
    return total > 1 ? t("job.step.of", { image: image + 1, total, step, steps }) : t("job.step", { step, steps });
  }
  return t(`job.${job.status}`);
}

/** @param {Job} job @returns {string} what went wrong */
export function reason(job) {
  const error = job.error ?? "";
  return (typeof error === "string" ? error : meaning(error)) || t("job.failed");
}

/** @param {Job} job @returns {string} what was asked for, in a line */
function asked({ request }) {
  const size = String(request.size ?? "").replace("x", " × ");
  const steps = request.steps ? t("job.steps", { n: request.steps }) : "";
  return [size, request.model, steps, request.seed === undefined ? "" : t("grid.seed", { seed: request.seed })].filter(Boolean).join(" · ");
}

/** @param {string} label @returns {HTMLElement} */
export function bar(label) {
  return h("div", { class: "bar", role: "progressbar", "aria-label": label, "aria-valuemin": "0", "aria-valuemax": "100" }, h("i"));
}

/** @param {HTMLElement} element @param {number} share */
export function fill(element, share) {
  element.style.setProperty("--part", share.toFixed(3));
  element.setAttribute("aria-valuenow", String(Math.round(share * 100)));
}

/** One job on the bench. */
class Sheet {
  /** @param {Job} job @param {Acts} acts */
  constructor(job, acts) {
    this.acts = acts;
    this.job = job;
    const prompt = job.request.prompt;
    this.status = h("span", { class: "standing" });
    this.bar = bar(t("job.progress", { prompt }));
    this.cancel = button("close", t("cancel"), () => acts.cancel(job.id), { class: "tool cancel", keys: "x" });
    this.again = button("again", t("job.again"), () => acts.repeat({ ...job.request }));
    this.putAway = button("close", t("bench.away"), () => acts.putAway(job.id), { quiet: true });
    this.reason = h("p", { class: "error" });
    this.actions = h("div", { class: "actions" });
    this.frames = Array.from({ length: job.request.n ?? 1 }, () => h("li", { class: "frame" }));
    const line = h("div", { class: "line" }, this.status, this.cancel, this.again, this.putAway);
    const about = h("div", { class: "about" }, h("h3", { title: prompt }, prompt), h("p", { class: "asked" }, asked(job)), line, this.bar, this.reason, this.actions);
    const list = h("ul", { class: "frames" }, ...this.frames);
    this.element = h("article", { class: "sheet-of-job", dataset: { job: job.id } }, list, about);
    const { width, height } = acts.sizeOf(job.request);
    this.element.style.setProperty("--aspect", (width / height).toFixed(4));
    this.update(job);
  }

  /** @param {Job} job */
  update(job) {
    this.job = job;
    this.element.dataset.status = job.status;
    this.status.textContent = standing(job);
    const open = isOpen(job);
    this.cancel.hidden = !open;
    this.again.hidden = job.status !== "failed" && job.status !== "cancelled";
    this.putAway.hidden = open;
    this.bar.hidden = !open;
    this.reason.textContent = job.status === "failed" ? reason(job) : "";
    fill(this.bar, part(job));
    job.images.forEach((picture, place) => this.picture(picture, picture.index ?? place));
    if (job.status === "done" && job.images.length === 1 && !this.actions.firstChild) this.#offer(job.images[0]);
    if (!open) for (const frame of this.frames) if (!frame.dataset.id) frame.hidden = true;
    const current = job.status === "running" ? (job.progress?.image ?? 0) : -1;
    this.frames.forEach((frame, place) => frame.classList.toggle("current", place === current && !frame.dataset.id));
  }

  /** What one may want to do with the picture that has just been made. @param {Picture} picture */
  #offer(picture) {
    const { acts } = this;
    this.actions.append(
      button("vary", t("vary"), () => acts.vary(picture)),
      button("edit", t("use"), () => acts.use(picture.recipe)),
      button("download", t("download"), () => acts.download(picture)),
    );
  }

  /** @param {number} place @param {string} png base64 */
  preview(place, png) {
    const frame = this.frames[place];
    if (!frame || frame.dataset.id) return;
    let image = frame.querySelector("img");
    if (!image) {
      image = h("img", { class: "preview", alt: t("bench.preview") });
      frame.append(image);
    }
    image.src = `data:image/png;base64,${png}`;
    const { step = 0, steps = 1 } = this.job.progress ?? {};
    image.style.setProperty("--blur", `${(8 * (1 - step / steps)).toFixed(1)}px`);
  }

  /** @param {Picture} picture @param {number} place */
  picture(picture, place) {
    const frame = this.frames[place] ?? this.frames.find((each) => !each.dataset.id);
    if (!frame || frame.dataset.id) return;
    frame.dataset.id = picture.id;
    frame.hidden = false;
    const label = t("wall.picture", { prompt: picture.prompt, seed: picture.seed });
    const image = h("img", { alt: "", width: String(picture.width), height: String(picture.height) });
    const open = h("button", { type: "button", class: "open", "aria-label": label, onclick: () => this.acts.open(picture.id) }, image);
    image.addEventListener("load", () => {
      image.classList.add("there");
      frame.querySelector(".preview")?.remove();
    });
    frame.append(open);
    showIn(image, picture.url);
  }
}

export class Bench {
  /** @param {Acts} acts */
  constructor(acts) {
    this.acts = acts;
    this.element = $("#bench");
    this.rest = h("button", { type: "button", class: "quiet rest", onclick: () => acts.showQueue() });
    /** @type {Map<string, Sheet>} newest first in the page, oldest first here */
    this.sheets = new Map();
  }

  /** Pictures that lie here. */
  get pictures() {
    return Array.from(this.element.querySelectorAll(".frame[data-id]"), (frame) => /** @type {HTMLElement} */ (frame).dataset.id ?? "");
  }

  get busy() {
    return this.sheets.size > 0;
  }

  /**
   * @param {Job} job
   * @param {boolean} fresh whether it may come onto the bench although it is finished
   */
  update(job, fresh = false) {
    let sheet = this.sheets.get(job.id);
    if (!sheet && !isOpen(job) && !fresh) return;
    if (!sheet) {
      for (const [id, other] of this.sheets) if (!isOpen(other.job)) this.#drop(id);
      sheet = new Sheet(job, this.acts);
      this.sheets.set(job.id, sheet);
      this.element.prepend(sheet.element);
    }
    const before = sheet.job.status;
    sheet.update(job);
    if (before !== job.status) say(`${job.request.prompt}: ${standing(job)}`, job.status === "failed" ? "assertive" : "polite");
    if (job.status === "cancelled" && !job.images.length) this.#drop(job.id);
    this.#lay();
  }

  /** @param {string} id @param {number} place @param {string} png */
  preview(id, place, png) {
    this.sheets.get(id)?.preview(place, png);
  }

  /** @param {string} id */
  putAway(id) {
    this.#drop(id);
    this.#lay();
  }

  /** @param {string} id a picture that was deleted */
  forget(id) {
    const frame = /** @type {HTMLElement | null} */ (this.element.querySelector(`.frame[data-id="${CSS.escape(id)}"]`));
    if (frame) frame.hidden = true;
    const sheet = frame?.closest(".sheet-of-job");
    if (sheet && !sheet.querySelector(".frame:not([hidden])")) this.putAway(/** @type {HTMLElement} */ (sheet).dataset.job ?? "");
  }

  /** @param {string} id a picture that was given back */
  recall(id) {
    const frame = /** @type {HTMLElement | null} */ (this.element.querySelector(`.frame[data-id="${CSS.escape(id)}"]`));
    if (frame) frame.hidden = false;
  }

  /** @param {string} id */
  #drop(id) {
    this.sheets.get(id)?.element.remove();
    this.sheets.delete(id);
  }

  #lay() {
    const sheets = [...this.sheets.values()].reverse();
    sheets.forEach((sheet, place) => (sheet.element.hidden = place >= MOST_SHOWN));
    const others = Math.max(0, sheets.length - MOST_SHOWN);
    this.rest.hidden = !others;
    this.rest.textContent = t("bench.rest", { n: others });
    this.element.append(this.rest);
    this.element.hidden = !sheets.length;
    this.acts.benchChanged();
  }
}
