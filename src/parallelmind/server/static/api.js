// The server: requests with the key, server-sent events, and whether it is there.

const KEY = "parallelmind.key";

/** An answer that is not a success; `message` is the server's own. */
export class ApiError extends Error {
  constructor(status, message, retryAfter) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

/** The server cannot be reached, or the connection broke. */
export class ServerGone extends Error {}

let asking = null;
let askForKey = async () => null;

/** `ask(refused)` resolves to a key, or null if the user has none; `refused` is true for a wrong one. */
export function onKeyNeeded(ask) {
  askForKey = ask;
}

/** A successful response; asks for the key as often as it is missing or wrong. */
async function fetchOk(path, options) {
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    const headers = { ...(key && { Authorization: `Bearer ${key}` }) };
    if (options.body !== undefined) headers["Content-Type"] = "application/json";
    let response;
    try {
      response = await fetch(path, { ...options, headers, cache: "no-store", credentials: "omit", redirect: "error" });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ServerGone("the server cannot be reached");
    }
    if (response.ok) return response;
    const failed = await errorOf(response);
    if (response.status !== 401) throw failed;
    if (key !== sessionStorage.getItem(KEY)) continue; // another request has asked meanwhile
    asking ??= askForKey(Boolean(key)).finally(() => (asking = null));
    const given = await asking;
    if (given === null) throw failed;
    sessionStorage.setItem(KEY, given);
  }
}

async function errorOf(response) {
  let message = `the server answered ${response.status}`;
  try {
    const body = await response.json();
    if (typeof body?.error?.message === "string") message = body.error.message;
  } catch {
    // Not JSON: a proxy's page, say.
  }
  const retryAfter = Number(response.headers.get("Retry-After")) || null;
  return new ApiError(response.status, message, retryAfter);
}

export async function getJson(path) {
  return (await fetchOk(path, { method: "GET" })).json();
}

export async function postJson(path, body) {
  return (await fetchOk(path, { method: "POST", body: JSON.stringify(body) })).json();
}

export async function cancel(id, index) {
  const path = `v1/branches/${encodeURIComponent(id)}` + (index === undefined ? "" : `/${index}`);
  await fetchOk(path, { method: "DELETE" });
}

/** The events of `POST /v1/branches`, until the server has sent all of them. */
export async function* branchEvents(body, signal) {
  const response = await fetchOk("v1/branches", {
    method: "POST",
    body: JSON.stringify({ ...body, stream: true }),
    signal,
  });
  try {
    for await (const data of sseData(response.body)) {
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  } catch (error) {
    if (error.name === "AbortError" || error instanceof ServerGone) throw error;
    throw new ServerGone("the connection was lost");
  }
  throw new ServerGone("the connection was lost");
}

/** The data of each server-sent event; comments and other fields are passed over. */
export async function* sseData(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let pending = "";
  let lines = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const parts = (pending + value).split(/\r\n|\n/);
      pending = parts.pop();
      for (const line of parts) {
        if (line.startsWith("data:")) lines.push(line.slice(line[5] === " " ? 6 : 5));
        if (line === "" && lines.length) {
          yield lines.join("\n");
          lines = [];
        }
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

const READY_MS = 10_000;
const FIRST_RETRY_MS = 1_000;
const LONGEST_RETRY_MS = 8_000;

/** Asks `/health` now and then, more often while the server is not ready; calls `onState(state)` when it changes. */
export class HealthWatch {
  state = "unknown";
  #timer = null;
  #retry = FIRST_RETRY_MS;
  #onState;

  constructor(onState) {
    this.#onState = onState;
    document.addEventListener("visibilitychange", () => !document.hidden && this.check());
    addEventListener("online", () => this.check());
  }

  async check() {
    clearTimeout(this.#timer);
    const state = await this.#ask();
    this.#retry = state === "ready" ? FIRST_RETRY_MS : Math.min(this.#retry * 1.6, LONGEST_RETRY_MS);
    if (state !== this.state) {
      this.state = state;
      this.#onState(state);
    }
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.check(), state === "ready" ? READY_MS : this.#retry);
  }

  async #ask() {
    try {
      const response = await fetch("health", { cache: "no-store", signal: AbortSignal.timeout(5_000) });
      const body = await response.json().catch(() => ({}));
      return body.status ?? (response.ok ? "ready" : "failed");
    } catch {
      return "gone";
    }
  }
}
