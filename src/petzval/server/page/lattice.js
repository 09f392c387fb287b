// The grid: some prompts down, some seeds across, a picture where they meet.

import { button, h, memory, openDialog } from "./dom.js";
import { isOpen, part, bar, fill, reason } from "./bench.js";
import { showIn } from "./server.js";
import { t } from "./words.js";

/** @typedef {import("./server.js").Job} Job */
/** @typedef {import("./studio.js").Acts} Acts */
/** @typedef {{prompts: string[], seeds: string[], jobs: string[], aspect: number}} Lattice */

const MOST_PROMPTS = 12;
const MOST_SEEDS = 8;

export class Lattices {
  /** @param {Acts} acts */
  constructor(acts) {
    this.acts = acts;
    /** @type {Lattice | null} */
    this.last = memory.get("lattice");
    /** @type {HTMLElement | null} */
    this.table = null;
  }

  /** @param {Record<string, any>} request what the composer has */
  ask(request) {
    const { body, close } = openDialog("lattice-form", t("grid.title"), t("close"));
    const prompts = h("textarea", { id: "grid-prompts", rows: "6" });
    prompts.value = request.prompt;
    const seeds = h("input", { id: "grid-seeds", type: "number", min: "1", max: String(MOST_SEEDS), value: "4" });
    const sum = h("p", { class: "hint", role: "status" });
    const error = h("p", { class: "error", role: "alert" });
    const read = () => ({
      lines: prompts.value.split("\n").map((/** @type {string} */ line) => line.trim()).filter(Boolean).slice(0, MOST_PROMPTS),
      count: Math.max(1, Math.min(MOST_SEEDS, Math.round(Number(seeds.value)) || 1)),
    });
    const count = () => {
      const { lines, count: across } = read();
      sum.textContent = t("grid.sum", { prompts: lines.length, seeds: across, n: lines.length * across });
    };
    const start = async () => {
      const { lines, count: across } = read();
      if (!lines.length) {
        error.textContent = t("prompt.missing");
        return;
      }
      try {
        await this.#start(request, lines, across);
        close();
        this.show();
      } catch (problem) {
        error.textContent = problem instanceof Error ? problem.message : String(problem);
      }
    };
    body.append(
      h("p", { class: "hint" }, t("grid.hint")),
      h("div", { class: "field" }, h("label", { for: "grid-prompts" }, t("grid.prompts")), prompts),
      h("div", { class: "field" }, h("label", { for: "grid-seeds" }, t("grid.seeds")), seeds),
      sum,
      error,
      h(
        "div",
        { class: "actions" },
        this.last && button("grid", t("grid.last"), () => {
          close();
          this.show();
        }),
        h("button", { type: "button", class: "primary", onclick: start }, t("create")),
      ),
    );
    prompts.addEventListener("input", count);
    seeds.addEventListener("input", count);
    count();
    prompts.focus();
  }

  /**
   * @param {Record<string, any>} request
   * @param {string[]} prompts
   * @param {number} across
   */
  async #start(request, prompts, across) {
    const seeds = Array.from({ length: across }, (_, place) => String(BigInt(request.seed) + BigInt(place)));
    const { width, height } = this.acts.sizeOf(request);
    /** @type {string[]} */
    const jobs = [];
    for (const prompt of prompts) jobs.push((await this.acts.create({ ...request, prompt, n: across })).id);
    this.last = { prompts, seeds, jobs, aspect: width / height };
    memory.set("lattice", this.last);
  }

  async show() {
    const lattice = this.last;
    if (!lattice) return;
    const { body, dialog } = openDialog("lattice", t("grid.title"), t("close"));
    const head = h("tr", {}, h("td"), ...lattice.seeds.map((seed) => h("th", { scope: "col" }, t("grid.seed", { seed }))));
    const rows = lattice.prompts.map((prompt, row) =>
      h("tr", { dataset: { job: lattice.jobs[row] } }, h("th", { scope: "row" }, prompt), ...lattice.seeds.map(() => h("td", {}, bar(t("job.progress", { prompt }))))),
    );
    const table = h("table", {}, h("thead", {}, head), h("tbody", {}, ...rows));
    table.style.setProperty("--aspect", lattice.aspect.toFixed(4));
    this.table = table;
    dialog.addEventListener("close", () => (this.table = null));
    body.append(h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": t("grid.title") }, table));
    for (const id of lattice.jobs) {
      const job = await this.acts.job(id);
      if (job) this.update(job);
    }
  }

  /** @param {Job} job */
  update(job) {
    const row = this.table?.querySelector(`tr[data-job="${CSS.escape(job.id)}"]`);
    if (!row) return;
    const cells = Array.from(row.querySelectorAll("td"));
    const { image = 0 } = job.progress ?? {};
    cells.forEach((cell, place) => {
      const progress = /** @type {HTMLElement | null} */ (cell.querySelector(".bar"));
      if (progress && place === image && isOpen(job)) fill(progress, (part(job) * cells.length) % 1);
      if (progress && !isOpen(job)) progress.remove();
      if (job.status === "failed" && !cell.textContent && !cell.querySelector("img")) cell.textContent = reason(job);
    });
    job.images.forEach((picture, order) => {
      const cell = cells[picture.index ?? order];
      if (!cell || cell.querySelector("img")) return;
      const image = h("img", { alt: t("wall.picture", { prompt: picture.prompt, seed: picture.seed }) });
      showIn(image, picture.thumbnail_url);
      cell.replaceChildren(h("button", { type: "button", class: "open", onclick: () => this.acts.open(picture.id) }, image));
    });
  }
}
