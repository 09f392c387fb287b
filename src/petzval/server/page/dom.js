// Elements, icons, what is spoken, and what a browser remembers.
// Text always goes in as text: nothing here or elsewhere writes markup.

const SVG = "http://www.w3.org/2000/svg";

/**
 * The element that a selector names; the page is ours, so it is there.
 * @template {HTMLElement} [T=HTMLElement]
 * @param {string} selector
 * @returns {T}
 */
export function $(selector) {
  return /** @type {T} */ (document.querySelector(selector));
}

/**
 * An element with attributes, listeners (`onclick`) and children; empty children are left out.
 * @param {string} tag
 * @param {Record<string, any>} [attributes]
 * @param {...(Node | string | null | undefined | false)} children
 * @returns {any}
 */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "dataset") Object.assign(element.dataset, value);
    else if (name in element && typeof value !== "string") Reflect.set(element, name, value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.filter((each) => each || each === "").map((each) => /** @type {Node | string} */ (each)));
  return element;
}

/**
 * One of the drawings in index.html.
 * @param {string} name
 * @returns {SVGElement}
 */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#i-${name}`);
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  svg.append(use);
  return svg;
}

/**
 * A button with an icon and words; with `quiet` the words are spoken only.
 * @param {string} drawing
 * @param {string} label
 * @param {(event: Event) => void} onclick
 * @param {{quiet?: boolean, class?: string, pressed?: boolean, keys?: string}} [more]
 * @returns {HTMLButtonElement}
 */
export function button(drawing, label, onclick, more = {}) {
  return h(
    "button",
    {
      type: "button",
      class: more.class ?? (more.quiet ? "ghost" : "tool"),
      onclick,
      title: more.quiet ? label : undefined,
      "aria-label": more.quiet ? label : undefined,
      "aria-pressed": more.pressed === undefined ? undefined : String(more.pressed),
      "aria-keyshortcuts": more.keys,
    },
    icon(drawing),
    more.quiet ? null : h("span", {}, label),
  );
}

/**
 * Say something to a screen reader.
 * @param {string} text
 * @param {"polite" | "assertive"} [how]
 */
export function say(text, how = "polite") {
  const region = $(`#${how}`);
  region.textContent = "";
  requestAnimationFrame(() => (region.textContent = text));
}

/** What this browser keeps between visits; a browser that keeps nothing is no mistake. */
export const memory = {
  /**
   * @param {string} name
   * @param {any} [otherwise]
   */
  get(name, otherwise = null) {
    try {
      const text = localStorage.getItem(`petzval.${name}`);
      return text === null ? otherwise : JSON.parse(text);
    } catch {
      return otherwise;
    }
  },
  /**
   * @param {string} name
   * @param {any} value
   */
  set(name, value) {
    try {
      localStorage.setItem(`petzval.${name}`, JSON.stringify(value));
    } catch {
      // full, or forbidden
    }
  },
};

/**
 * A dialog that is gone when it is closed, and gives the focus back to where it was.
 * @param {string} name a class
 * @param {string} title
 * @param {string} closeLabel
 * @returns {{dialog: HTMLDialogElement, body: HTMLElement, close: () => void}}
 */
export function openDialog(name, title, closeLabel) {
  const before = /** @type {HTMLElement | null} */ (document.activeElement);
  const heading = h("h2", { id: `${name}-title` }, title);
  const body = h("div", { class: "body" });
  const dialog = h("dialog", { class: `dialog ${name}`, "aria-labelledby": `${name}-title` });
  const close = () => dialog.close();
  dialog.append(h("header", {}, heading, button("close", closeLabel, close, { quiet: true })), body);
  dialog.addEventListener("click", (/** @type {Event} */ event) => event.target === dialog && close());
  dialog.addEventListener("close", () => {
    dialog.remove();
    if (before?.isConnected) before.focus({ preventScroll: true });
  });
  document.body.append(dialog);
  dialog.showModal();
  return { dialog, body, close };
}
