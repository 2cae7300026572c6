// One request to the server: some branches under one main, answered together.

import { ApiError, branchEvents, cancel, ServerGone } from "./api.js";

export class Run {
  id = null;
  firstMs = null;
  mainTokens = null;
  cachedTokens = null;
  #cards;
  #abort = new AbortController();
  #stopped = new Set();
  #on;

  /** `on` has `progress()`, called when something to show has changed, and `finished(card)`. */
  constructor(cards, on) {
    this.#cards = cards;
    this.#on = on;
    this.sent = performance.now();
    this.last = this.sent;
    for (const card of cards) {
      card.run = this;
      card.start();
    }
  }

  get tokens() {
    return this.#cards.reduce((sum, card) => sum + card.tokens, 0);
  }

  /** Resolves when every branch has ended, one way or another; true if the server was lost on the way. */
  async send(body) {
    try {
      for await (const event of branchEvents(body, this.#abort.signal)) this.#take(event);
      this.#endRest("error", "the server ended the answer without finishing this branch; run it again");
    } catch (error) {
      if (error.name === "AbortError") this.#endRest("cancelled");
      else if (error instanceof ServerGone) this.#endRest("lost", lost(error));
      else if (error instanceof ApiError) this.#endRest("error", explained(error));
      else {
        this.#endRest("error", "the server's answer could not be read");
        throw error;
      }
      return error instanceof ServerGone;
    }
    return false;
  }

  /** Ends one branch, or all of them; the others go on. */
  async stop(card = null) {
    const running = this.#cards.filter((each) => each.run === this && !this.#stopped.has(each));
    const stopping = card === null ? running : running.filter((each) => each === card);
    stopping.forEach((each) => this.#stopped.add(each));
    if (this.id === null) {
      // Nothing to name to the server yet: it notices that the connection is closed.
      if (stopping.length === running.length) this.#abort.abort();
      return;
    }
    try {
      await cancel(this.id, card === null ? undefined : this.#cards.indexOf(card));
    } catch (error) {
      if (!(error instanceof ApiError && error.status === 404)) this.#abort.abort();
    }
  }

  #take(event) {
    const card = this.#cards[event.index];
    switch (event.type) {
      case "start":
        this.id = event.id;
        this.mainTokens = event.main_tokens ?? null;
        this.cachedTokens = event.cached_main_tokens ?? null;
        for (const each of this.#stopped) this.#cancelLate(each);
        break;
      case "token":
        if (!card || card.run !== this) return;
        this.last = performance.now();
        this.firstMs ??= this.last - this.sent;
        card.token(event.text);
        break;
      case "finish":
        if (!card || card.run !== this) return;
        card.finish(event.finish_reason, event.error ?? "", event.usage?.completion_tokens ?? null);
        this.#on.finished(card);
        break;
      case "done":
        this.cachedTokens = event.usage?.cached_main_tokens ?? event.cached_main_tokens ?? this.cachedTokens;
        break;
      case "error":
        this.#endRest("error", event.error?.message ?? "the server failed");
        break;
    }
    this.#on.progress();
  }

  #cancelLate(card) {
    cancel(this.id, this.#cards.indexOf(card)).catch(() => this.#abort.abort());
  }

  #endRest(reason, problem = "") {
    for (const card of this.#cards) {
      if (card.run !== this) continue;
      card.finish(this.#stopped.has(card) ? "cancelled" : reason, this.#stopped.has(card) ? "" : problem);
      this.#on.finished(card);
    }
    this.#on.progress();
  }
}

function lost(error) {
  return `${error.message}; run it again when the server is back`;
}

function explained(error) {
  return error.retryAfter ? `${error.message} (in ${error.retryAfter} s)` : error.message;
}
