// The page's words: one file a language, English where a language has none.

import { memory } from "./dom.js";

/** @typedef {string | Record<string, string>} Entry a text, or one for each plural category */

export const LANGUAGES = { en: "English", zh: "中文", es: "Español", fr: "Français", ja: "日本語", de: "Deutsch" };

/** @type {Record<string, Entry>} */
let words = {};
/** @type {Record<string, Entry>} */
let english = {};
let plural = new Intl.PluralRules("en");

/** @returns {string} the language chosen before, or the browser's first that we speak */
export function preferred() {
  const wanted = [memory.get("language"), ...navigator.languages].filter(Boolean);
  return wanted.map((each) => String(each).slice(0, 2).toLowerCase()).find((each) => each in LANGUAGES) ?? "en";
}

/** @param {string} language */
export async function speak(language) {
  const fetched = (/** @type {string} */ name) =>
    fetch(new URL(`./locales/${name}.json`, import.meta.url)).then((answer) => (answer.ok ? answer.json() : {}));
  const [first, second] = await Promise.all([fetched("en"), language === "en" ? {} : fetched(language)]);
  english = first;
  words = { ...first, ...second };
  plural = new Intl.PluralRules(language);
  document.documentElement.lang = language;
  translate(document.body);
}

/**
 * A text with its `{places}` filled in; `n` chooses the plural form.
 * @param {string} key
 * @param {Record<string, string | number>} [values]
 * @returns {string}
 */
export function t(key, values = {}) {
  const entry = words[key] ?? english[key] ?? key;
  const text = typeof entry === "string" ? entry : (entry[plural.select(Number(values.n))] ?? entry.other ?? key);
  return text.replace(/\{(\w+)\}/g, (whole, name) => (name in values ? String(values[name]) : whole));
}

/** @param {ParentNode} root */
export function translate(root) {
  for (const element of root.querySelectorAll("[data-t]")) {
    const own = /** @type {HTMLElement} */ (element);
    own.textContent = t(own.dataset.t ?? "");
    own.closest(".tools .tool")?.setAttribute("title", own.textContent); // where only the icon is seen
  }
  for (const element of root.querySelectorAll("[data-t-label]")) {
    const text = t(/** @type {HTMLElement} */ (element).dataset.tLabel ?? "");
    element.setAttribute("aria-label", text);
    if (element.matches("button")) element.setAttribute("title", text);
  }
  for (const element of root.querySelectorAll("[data-t-placeholder]")) {
    element.setAttribute("placeholder", t(/** @type {HTMLElement} */ (element).dataset.tPlaceholder ?? ""));
  }
}
