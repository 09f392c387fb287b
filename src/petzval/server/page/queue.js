// The queue: every job of the last while, what it waits for, and a way to stop it.

import { $, button, h } from "./dom.js";
import { bar, fill, isOpen, part, reason, standing } from "./bench.js";
import { t } from "./words.js";

/** @typedef {import("./server.js").Job} Job */

const MOST_SHOWN = 60;

export class Queue {
  /** @param {import("./studio.js").Acts} acts */
  constructor(acts) {
    this.acts = acts;
    this.sheet = $("#queue");
    this.button = $("#queue-button");
    this.list = $("#queue-list");
    /** @type {Job[]} newest first */
    this.jobs = [];
    this.button.addEventListener("click", () => this.toggle());
    $("#queue-close").addEventListener("click", () => this.toggle(false));
  }

  toggle(open = this.sheet.hidden) {
    this.sheet.hidden = !open;
    this.button.setAttribute("aria-expanded", String(open));
    if (open) {
      this.draw();
      this.sheet.focus();
    } else {
      this.button.focus();
    }
  }

  /** @param {Iterable<Job>} jobs newest first */
  update(jobs) {
    this.jobs = [...jobs];
    const open = this.jobs.filter(isOpen).length;
    const badge = $("#queue-count");
    badge.hidden = !open;
    badge.textContent = String(open);
    document.title = open ? `(${open}) Petzval Studio` : "Petzval Studio";
    if (!this.sheet.hidden) this.draw();
  }

  draw() {
    const focused = /** @type {HTMLElement | null} */ (document.activeElement)?.closest?.("[data-job]")?.getAttribute("data-job");
    const ordered = [...this.jobs.filter(isOpen), ...this.jobs.filter((job) => !isOpen(job))].slice(0, MOST_SHOWN);
    $("#queue-empty").hidden = ordered.length > 0;
    this.list.replaceChildren(...ordered.map((job) => this.#row(job)));
    if (focused) /** @type {HTMLElement | null} */ (this.list.querySelector(`[data-job="${CSS.escape(focused)}"] button`))?.focus();
  }

  /** @param {Job} job */
  #row(job) {
    const prompt = job.request.prompt;
    const row = h("li", { class: "row", dataset: { job: job.id, status: job.status } }, h("p", { title: prompt }, prompt));
    row.append(h("span", { class: "standing" }, job.status === "failed" ? reason(job) : standing(job)));
    if (isOpen(job)) {
      const progress = bar(t("job.progress", { prompt }));
      fill(progress, part(job));
      row.append(progress, button("close", t("cancel"), () => this.acts.cancel(job.id), { quiet: true }));
    } else if (job.images.length) {
      row.append(button("right", t("queue.show"), () => this.acts.open(job.images[0].id), { quiet: true }));
    } else {
      row.append(button("again", t("job.again"), () => this.acts.repeat({ ...job.request }), { quiet: true }));
    }
    return row;
  }
}
