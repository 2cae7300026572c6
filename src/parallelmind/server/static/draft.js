// What the user wrote and set: its shape, its place in localStorage, and its form in a link.

import { FIELDS } from "./fields.js";

const STORED = "parallelmind.draft";
const MAX_BRANCHES = 128;
const MAX_CHARACTERS = 4_000_000;

export const EXAMPLE = {
  main:
    "Story: The age of Dan is 26. The hat costs 91 dollars. Emma likes blue. Tina counted 36 coins. " +
    "小明住在北京。\n",
  branches: [
    { prompt: "How old is Dan?" },
    { prompt: "How much does the hat cost?" },
    { prompt: "What colour does Emma like?" },
    { prompt: "小明住在哪里?" },
  ],
  sampling: { temperature: 0, max_tokens: 64 },
};

export function emptyDraft() {
  return { main: "", branches: [], sampling: {}, visibility: "", adapter: "", form: "" };
}

/** A draft of only what a draft may hold, whatever a link or the storage says. */
export function cleanDraft(given) {
  const draft = emptyDraft();
  if (given === null || typeof given !== "object") return draft;
  draft.main = textOf(given.main);
  draft.sampling = cleanSampling(given.sampling);
  draft.visibility = textOf(given.visibility, 50);
  draft.adapter = textOf(given.adapter, 200);
  draft.form = textOf(given.form, 10);
  for (const branch of Array.isArray(given.branches) ? given.branches.slice(0, MAX_BRANCHES) : []) {
    draft.branches.push({
      prompt: textOf(branch?.prompt),
      sampling: cleanSampling(branch?.sampling),
      adapter: typeof branch?.adapter === "string" ? textOf(branch.adapter, 200) : null,
    });
  }
  return draft;
}

function textOf(value, longest = MAX_CHARACTERS) {
  return typeof value === "string" ? value.slice(0, longest) : "";
}

function cleanSampling(given) {
  const clean = {};
  for (const field of FIELDS) {
    const value = given?.[field.name];
    if (field.kind === "text" ? typeof value === "string" : Number.isFinite(value)) clean[field.name] = value;
  }
  return clean;
}

export function loadDraft() {
  try {
    const stored = localStorage.getItem(STORED);
    return stored === null ? null : cleanDraft(JSON.parse(stored));
  } catch {
    return null;
  }
}

/** False where the browser does not keep it: no room, or storage forbidden. */
export function storeDraft(draft) {
  try {
    localStorage.setItem(STORED, JSON.stringify(draft));
    return true;
  } catch {
    return false;
  }
}

/** "#s=…": the draft as JSON, compressed, in base64url. */
export async function toFragment(draft) {
  const bytes = new TextEncoder().encode(JSON.stringify(draft));
  const packed = await collect(new Blob([bytes]).stream().pipeThrough(new CompressionStream("deflate-raw")));
  let binary = "";
  for (const byte of packed) binary += String.fromCharCode(byte);
  return "#s=" + btoa(binary).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

/** The draft in a link's fragment; null if there is none. Throws if it cannot be read. */
export async function fromFragment(fragment) {
  if (!fragment.startsWith("#s=")) return null;
  const binary = atob(fragment.slice(3).replaceAll("-", "+").replaceAll("_", "/"));
  const packed = Uint8Array.from(binary, (character) => character.charCodeAt(0));
  const bytes = await collect(new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate-raw")));
  return cleanDraft(JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes)));
}

/** All bytes of a stream; throws when a small link unpacks to more than a draft can hold. */
async function collect(stream) {
  const parts = [];
  let size = 0;
  const reader = stream.getReader();
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return new Uint8Array(await new Blob(parts).arrayBuffer());
    size += value.length;
    if (size > MAX_CHARACTERS) {
      await reader.cancel();
      throw new Error("it holds too much text");
    }
    parts.push(value);
  }
}
