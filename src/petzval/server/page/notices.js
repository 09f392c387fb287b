// What the page says beside its work: notes with an undo, the list of keys, the question for a key.

import { $, button, h, memory, openDialog, say } from "./dom.js";
import { t } from "./words.js";

const NOTE_MS = 8000;

/**
 * A note at the foot of the page; it stays while it is pointed at or has the focus.
 * @param {string} text
 * @param {{label?: string, act?: () => void, gone?: () => void, error?: boolean}} [more] a button, and what to do once the note is gone unused
 * @returns {() => void} takes the note away, the button unused
 */
export function note(text, more = {}) {
  let timer = 0;
  const leave = (used = false) => {
    clearTimeout(timer);
    if (!element.isConnected) return;
    element.remove();
    if (!used) more.gone?.();
  };
  const use = () => {
    leave(true);
    more.act?.();
  };
  const element = h("div", { class: more.error ? "toast error" : "toast" }, h("p", {}, text));
  if (more.label) element.append(h("button", { type: "button", class: "quiet", onclick: use }, more.label));
  element.append(button("close", t("close"), () => leave(), { quiet: true }));
  const wait = () => (timer = window.setTimeout(leave, NOTE_MS));
  for (const name of ["pointerenter", "focusin"]) element.addEventListener(name, () => clearTimeout(timer));
  for (const name of ["pointerleave", "focusout"]) element.addEventListener(name, wait);
  place().append(element);
  say(text, more.error ? "assertive" : "polite");
  wait();
  return () => leave();
}

/** Notes lie above an open dialog, which hides all that is outside of it. */
function place() {
  const open = document.querySelectorAll("dialog[open]");
  const toasts = $("#toasts");
  (open.length ? open[open.length - 1] : document.body).append(toasts);
  open[open.length - 1]?.addEventListener("close", () => document.body.append(toasts), { once: true });
  return toasts;
}

/** Key, and the word for what it does. */
const KEYS = [
  ["P", "keys.prompt"],
  ["Ctrl ↵", "keys.create"],
  ["S", "keys.dice"],
  ["L", "keys.lock"],
  ["X", "keys.cancel"],
  ["/", "keys.search"],
  ["← → ↑ ↓", "keys.move"],
  ["↵", "keys.open"],
  ["F", "keys.favourite"],
  ["R", "keys.again"],
  ["V", "keys.vary"],
  ["E", "keys.use"],
  ["D", "keys.download"],
  ["C", "keys.compare"],
  ["Del", "keys.delete"],
  ["Ctrl Z", "keys.undo"],
  ["G", "keys.grid"],
  ["O", "keys.recipe"],
  ["Q", "keys.queue"],
  ["T", "keys.theme"],
  ["?", "keys.help"],
  ["Esc", "keys.close"],
];

export function showKeys() {
  const { body } = openDialog("keys", t("keys.title"), t("close"));
  const list = h("dl", {}, ...KEYS.map(([key, word]) => h("div", {}, h("dt", {}, ...key.split(" ").map((each) => h("kbd", {}, each))), h("dd", {}, t(word)))));
  const single = h("input", { type: "checkbox", id: "single-keys" });
  single.checked = memory.get("keys", true);
  single.addEventListener("change", () => memory.set("keys", single.checked));
  body.append(list, h("label", { class: "check" }, single, h("span", {}, t("keys.single"))));
}

/** @returns {Promise<string>} the key that was typed */
export function askForKey() {
  return new Promise((resolve) => {
    const { body, dialog, close } = openDialog("key", t("key.title"), t("close"));
    const input = h("input", { id: "key-input", type: "password", autocomplete: "off", required: true });
    const form = h(
      "form",
      {},
      h("p", { class: "hint" }, t("key.hint")),
      h("div", { class: "field" }, h("label", { for: "key-input" }, t("key.label")), input),
      h("div", { class: "actions" }, h("button", { class: "primary", type: "submit" }, t("key.enter"))),
    );
    dialog.querySelector("header button")?.remove();
    dialog.addEventListener("cancel", (event) => event.preventDefault());
    form.addEventListener("submit", (/** @type {Event} */ event) => {
      event.preventDefault();
      resolve(input.value.trim());
      close();
    });
    body.append(form);
    input.focus();
  });
}
