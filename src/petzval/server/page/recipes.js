// Recipes: what a picture was made with, as rows to read and as a request to ask again.

import { h } from "./dom.js";
import { t } from "./words.js";

/** @typedef {Record<string, any>} Recipe */

/**
 * The request that asks for a recipe again; a job's own request has the same names.
 * @param {Recipe} recipe
 * @returns {Record<string, any>}
 */
export function requestOf(recipe) {
  const loras = (recipe.loras ?? []).map((/** @type {any} */ each) => ({
    name: each.name ?? String(each.file).replace(/\.safetensors$/, ""),
    weight: each.weight,
  }));
  return {
    prompt: recipe.prompt,
    negative_prompt: recipe.negative_prompt || undefined,
    size: recipe.size ?? (recipe.width ? `${recipe.width}x${recipe.height}` : undefined),
    steps: recipe.steps,
    guidance: recipe.guidance,
    seed: recipe.seed,
    model: recipe.model,
    n: 1,
    loras: loras.length ? loras : undefined,
  };
}

/**
 * @param {import("./server.js").Picture} picture
 * @returns {Recipe} the recipe in the file, or what the gallery knows of it
 */
export const recipeOf = (picture) => ({ ...picture, ...picture.recipe });

const ROWS = ["seed", "size", "model", "steps", "guidance", "negative", "loras", "mark", "solver", "dtype", "device", "petzval"];

/**
 * @param {Recipe} recipe
 * @returns {[string, string][]} name and value, of what is there
 */
export function rowsOf(recipe) {
  /** @type {Record<string, any>} */
  const values = {
    ...recipe,
    size: recipe.width ? `${recipe.width} × ${recipe.height}` : undefined,
    negative: recipe.negative_prompt,
    loras: (recipe.loras ?? []).map((/** @type {any} */ each) => `${each.file ?? each.name} × ${each.weight}`).join(", "),
  };
  return ROWS.filter((name) => values[name] !== undefined && values[name] !== null && values[name] !== "").map((name) => [
    name,
    String(values[name]),
  ]);
}

/**
 * @param {Recipe} recipe
 * @param {Set<string>} [different] rows to point out
 * @returns {HTMLElement}
 */
export function recipeList(recipe, different = new Set()) {
  const list = h("dl", { class: "recipe" });
  for (const [name, value] of rowsOf(recipe)) {
    list.append(
      h("div", { class: different.has(name) ? "different" : undefined }, h("dt", {}, t(`recipe.${name}`)), h("dd", {}, value)),
    );
  }
  return list;
}
