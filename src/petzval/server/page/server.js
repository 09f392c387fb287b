// The seam with the server: requests, errors in words, pictures behind a key, and the stream of events.

import { t } from "./words.js";

/**
 * @typedef {{id: string, job: string, index?: number, created: any, width: number, height: number, seed: any, prompt: string,
 *   model: string, steps: number, guidance: number, negative_prompt: string, favourite: boolean, deleted: boolean,
 *   url: string, thumbnail_url: string, recipe: Record<string, any>}} Picture
 * @typedef {{id: string, status: "queued" | "running" | "done" | "failed" | "cancelled", position?: number | null,
 *   created: any, request: Record<string, any>, progress?: {image: number, step: number, steps: number} | null,
 *   images: Picture[], error?: Told | string | null}} Job
 * @typedef {{message?: string, code?: string | null}} Told what the server says of a mistake
 */

const BASE = new URL("../", import.meta.url);
const FIRST_WAIT_MS = 500;
const LONGEST_WAIT_MS = 8000;
const SILENCE_MS = 45_000;

/** An answer that is no success, in words that can be shown. */
export class ServerError extends Error {
  /**
   * @param {string} message
   * @param {number} status 0 where there was no answer at all
   * @param {string} [code] the server's word for it
   */
  constructor(message, status, code = "") {
    super(message);
    this.status = status;
    this.code = code;
  }
}

/** The code of a picture that is too large for the server's memory. */
export const NO_ROOM = "does_not_fit";

/** @param {Told} told @returns {string} the page's own words where it has some, else the server's */
export const meaning = ({ message, code }) => (code === NO_ROOM ? t("error.room") : (message ?? ""));

/** @type {() => Promise<string>} */
let askForKey = async () => "";
/** @type {Promise<string> | null} */
let asking = null;

/** @param {() => Promise<string>} ask shows the dialog for the key */
export function onKeyNeeded(ask) {
  askForKey = ask;
}

function key() {
  try {
    return sessionStorage.getItem("petzval.key") ?? "";
  } catch {
    return "";
  }
}

async function newKey() {
  asking ??= askForKey().finally(() => (asking = null));
  const given = await asking;
  try {
    sessionStorage.setItem("petzval.key", given);
  } catch {
    // asked again with the next page
  }
}

/** @returns {Record<string, string>} */
const identity = () => (key() ? { Authorization: `Bearer ${key()}` } : {});

/**
 * Numbers above 2^53, which seeds may be, stay what was written.
 * @param {string} text
 */
export function parse(text) {
  return JSON.parse(text, function (_, value, /** @type {any} */ context = undefined) {
    return typeof value === "number" && Number.isInteger(value) && !Number.isSafeInteger(value) && context?.source ? context.source : value;
  });
}

/** @param {any} body */
function written(body) {
  const raw = /** @type {any} */ (JSON).rawJSON;
  return JSON.stringify(body, (name, value) =>
    name === "seed" && typeof value === "string" && /^\d+$/.test(value) ? (raw ? raw(value) : Number(value)) : value,
  );
}

/**
 * @param {string} path "v1/jobs"
 * @param {{method?: string, json?: any, body?: BodyInit, headers?: Record<string, string>, signal?: AbortSignal, raw?: boolean}} [options]
 * @returns {Promise<any>} the JSON of the answer; the answer itself with `raw`
 * @throws {ServerError}
 */
export async function ask(path, options = {}) {
  const headers = { ...identity(), ...options.headers };
  let body = options.body;
  if (options.json !== undefined) {
    body = written(options.json);
    Object.assign(headers, { "Content-Type": "application/json" });
  }
  let answer;
  try {
    answer = await fetch(new URL(path.replace(/^\//, ""), BASE), {
      method: options.method ?? "GET",
      headers,
      body,
      signal: options.signal,
      cache: "no-store",
    });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new ServerError(t("error.unreachable"), 0);
  }
  if (answer.status === 401) {
    await newKey();
    return ask(path, options);
  }
  if (!answer.ok) throw await inWords(answer);
  if (options.raw) return answer;
  return answer.status === 204 ? null : parse(await answer.text());
}

/** @param {Response} answer */
async function inWords(answer) {
  const wait = Number(answer.headers.get("Retry-After") ?? 0);
  /** @type {Told} */
  let told = {};
  try {
    told = (await answer.json()).error ?? {};
  } catch {
    // a proxy's page, or no body
  }
  let message = meaning(told) || t("error.status", { status: answer.status });
  if (answer.status === 429) message = `${t("error.busy")} ${message}`;
  if (wait) message = `${message.replace(/([^.!?。])$/, "$1.")} ${t("error.wait", { n: wait, seconds: wait })}`;
  return new ServerError(message, answer.status, told.code ?? "");
}

/** @param {number} milliseconds */
const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

/**
 * Ask until there is an answer; for what may safely be asked twice.
 * @param {() => Promise<any>} attempt
 * @param {number} [times]
 */
export async function persist(attempt, times = 6) {
  for (let turn = 0; ; turn++) {
    try {
      return await attempt();
    } catch (error) {
      if (!(error instanceof ServerError) || error.status !== 0 || turn + 1 >= times) throw error;
      await pause(FIRST_WAIT_MS * 2 ** turn);
    }
  }
}

/** @returns {string} a name that nobody else gives */
export function uniqueName() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/**
 * Show a picture of the server's in an <img>; with a key it has to be fetched first.
 * @param {HTMLImageElement} image
 * @param {string} url
 */
export async function showIn(image, url) {
  if (!key()) {
    image.src = new URL(url.replace(/^\//, ""), BASE).href;
    return;
  }
  try {
    const answer = await ask(url, { raw: true });
    const local = URL.createObjectURL(await answer.blob());
    image.addEventListener("load", () => URL.revokeObjectURL(local), { once: true });
    image.src = local;
  } catch {
    image.dispatchEvent(new Event("error"));
  }
}

/**
 * Events of all jobs, for as long as the page lives: a lost connection is made again, at the place
 * where it broke, after a wait that doubles.
 * @param {{event: (name: string, data: any) => void, up: () => void, down: (seconds: number) => void}} listener
 */
export async function listen(listener) {
  let last = "";
  let wait = FIRST_WAIT_MS;
  for (;;) {
    const control = new AbortController();
    let alarm = 0;
    const alive = () => {
      clearTimeout(alarm);
      alarm = window.setTimeout(() => control.abort(), SILENCE_MS);
    };
    try {
      alive();
      const headers = { Accept: "text/event-stream", ...(last ? { "Last-Event-ID": last } : {}) };
      const answer = await ask("v1/events", { headers, signal: control.signal, raw: true });
      wait = FIRST_WAIT_MS;
      listener.up();
      for await (const { id, name, data } of events(answer.body, alive)) {
        if (id) last = id;
        if (data) listener.event(name, parse(data));
      }
    } catch (error) {
      if (!(error instanceof ServerError) && !(error instanceof DOMException) && !(error instanceof TypeError)) throw error;
    } finally {
      clearTimeout(alarm);
      control.abort();
    }
    listener.down(Math.ceil(wait / 1000));
    await Promise.race([pause(wait * (0.75 + Math.random() / 2)), comeback()]);
    wait = Math.min(wait * 2, LONGEST_WAIT_MS);
  }
}

/** The network is back, or somebody looks at the page again. */
function comeback() {
  return new Promise((resolve) => {
    window.addEventListener("online", resolve, { once: true });
    window.addEventListener("focus", resolve, { once: true });
  });
}

/**
 * Server-sent events out of bytes, as the HTML standard has them.
 * @param {ReadableStream<Uint8Array>} stream
 * @param {() => void} alive called with every piece, comments too
 */
async function* events(stream, alive) {
  /** @type {ReadableStreamDefaultReader<string>} */
  const reader = stream.pipeThrough(/** @type {any} */ (new TextDecoderStream())).getReader();
  let rest = "";
  let event = { id: "", name: "message", data: /** @type {string[]} */ ([]) };
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    alive();
    const lines = (rest + value).split(/\r\n|\n|\r(?!$)/);
    rest = lines.pop() ?? "";
    for (const line of lines) {
      if (line === "") {
        yield { id: event.id, name: event.name, data: event.data.join("\n") };
        event = { id: "", name: "message", data: [] };
        continue;
      }
      const [, field, text = ""] = /^([^:]*)(?:: ?(.*))?$/s.exec(line) ?? [];
      if (field === "id") event.id = text;
      else if (field === "event") event.name = text;
      else if (field === "data") event.data.push(text);
    }
  }
}
