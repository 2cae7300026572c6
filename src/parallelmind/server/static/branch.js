// One branch: its prompt, its own settings, its answer, and how it is doing.

import { choose, fillForm, fillOptions, readForm, showInherited, writeForm } from "./fields.js";
import { Output } from "./output.js";

const COLOURS = 8;
const STATES = {
  idle: "ready", waiting: "waiting", running: "writing", done: "done", length: "cut: max tokens",
  cancelled: "stopped", error: "failed", lost: "connection lost", outdated: "prompt changed",
};

/** Values of the choice of an adapter, whose names may be anything. */
const INHERITED = "";
const CHOSEN = "=";

/** The states in which a branch is being answered. */
const BUSY = new Set(["waiting", "running"]);

export class BranchCard {
  /** The run it takes part in, and its index there. */
  run = null;
  #parts = {};
  #adapter;
  #asked = null;
  #tokens = 0;
  #sent = 0;
  #first = 0;
  #last = 0;

  /** `on` has `run(card)`, `stop(card)`, `remove(card)` and `changed()`. */
  constructor(template, on) {
    this.element = template.content.firstElementChild.cloneNode(true);
    for (const name of ["number", "state", "run", "stop", "tune", "remove", "overrides", "prompt", "problem", "output",
      "stats", "copy"]) {
      this.#parts[name] = this.element.querySelector(`.${name}`);
    }
    const { prompt, overrides, run, stop, tune, remove, copy, output } = this.#parts;
    this.output = new Output(output);
    const adapter = { name: "adapter", label: "Adapter", help: "LoRA adapter of this branch" };
    this.#adapter = document.createElement("select");
    this.offer([]);
    const tuned = () => {
      this.#markTuned();
      on.changed();
    };
    fillForm(overrides, tuned, [{ field: adapter, control: this.#adapter }]);
    prompt.addEventListener("input", () => {
      this.#showWhetherOutdated();
      on.changed();
    });
    run.addEventListener("click", () => on.run(this));
    stop.addEventListener("click", () => on.stop(this));
    remove.addEventListener("click", () => on.remove(this));
    tune.addEventListener("click", () => this.tune(overrides.hidden));
    copy.addEventListener("click", async () => {
      const copied = await navigator.clipboard?.writeText(this.output.text).then(() => true, () => false);
      copy.textContent = copied ? "Copied" : "No clipboard";
      setTimeout(() => (copy.textContent = "Copy"), 1500);
    });
  }

  get prompt() {
    return this.#parts.prompt.value;
  }

  set prompt(text) {
    this.#parts.prompt.value = text;
  }

  get sampling() {
    return readForm(this.#parts.overrides);
  }

  set sampling(sampling) {
    writeForm(this.#parts.overrides, sampling);
    this.#markTuned();
  }

  /** Name of an adapter, "" for the base model, null for the one of all branches. */
  get adapter() {
    return this.#adapter.value === INHERITED ? null : this.#adapter.value.slice(1);
  }

  set adapter(name) {
    choose(this.#adapter, name === null ? INHERITED : CHOSEN + name);
    this.#markTuned();
  }

  /** The adapters the server has. */
  offer(adapters) {
    const named = adapters.map((name) => [CHOSEN + name, name]);
    fillOptions(this.#adapter, [[INHERITED, "as for all"], [CHOSEN, "none: the base model"], ...named]);
  }

  get busy() {
    return BUSY.has(this.element.dataset.state);
  }

  get valid() {
    return this.#parts.overrides.checkValidity();
  }

  get tokens() {
    return this.#tokens;
  }

  /** Number from 1: it names the branch and chooses its colour. */
  number(number) {
    this.index = number - 1;
    this.element.dataset.colour = this.index % COLOURS;
    this.element.setAttribute("aria-label", `Branch ${number}`);
    const { number: badge, prompt, output, run, stop, tune, remove } = this.#parts;
    badge.textContent = number;
    prompt.setAttribute("aria-label", `Prompt of branch ${number}`);
    output.setAttribute("aria-label", `Answer of branch ${number}`);
    run.setAttribute("aria-label", `Run branch ${number}`);
    stop.setAttribute("aria-label", `Stop branch ${number}`);
    tune.setAttribute("aria-label", `Settings of branch ${number}`);
    remove.setAttribute("aria-label", `Remove branch ${number}`);
  }

  focus() {
    this.#parts.prompt.focus({ preventScroll: true });
    this.element.scrollIntoView({ block: "nearest", inline: "nearest" });
  }

  tune(open) {
    this.#parts.overrides.hidden = !open;
    this.#parts.tune.setAttribute("aria-expanded", String(open));
    if (open) this.#parts.overrides.elements[0].focus();
  }

  inherit(sampling) {
    showInherited(this.#parts.overrides, sampling);
  }

  reportInvalid() {
    this.tune(true);
    this.#parts.overrides.reportValidity();
  }

  /** The branch was sent to the server. */
  start() {
    this.output.clear();
    this.#asked = this.prompt;
    this.#tokens = this.#first = this.#last = 0;
    this.#sent = performance.now();
    this.#show("waiting");
  }

  token(text) {
    this.#last = performance.now();
    this.#first ||= this.#last;
    this.#tokens += 1;
    this.output.append(text);
    if (this.element.dataset.state !== "running") this.#show("running");
    this.#showStats();
  }

  /** `reason` is the server's finish_reason, or "lost". */
  finish(reason, problem = "", tokens = null) {
    if (tokens !== null) this.#tokens = tokens;
    this.run = null;
    this.#show(reason === "stop" ? "done" : reason, problem);
    this.#showStats();
    this.#showWhetherOutdated();
  }

  #show(state, problem = "") {
    const { state: label, run, stop, problem: said, copy, output } = this.#parts;
    this.element.dataset.state = state;
    label.textContent = STATES[state] ?? state;
    run.textContent = this.#asked === null ? "Run" : "Rerun";
    const focused = document.activeElement === run || document.activeElement === stop;
    run.hidden = this.busy;
    stop.hidden = !this.busy;
    if (focused) (this.busy ? stop : run).focus();
    output.setAttribute("aria-busy", String(this.busy));
    said.hidden = !problem;
    said.textContent = problem;
    copy.hidden = this.busy || !this.output.text;
  }

  #showWhetherOutdated() {
    const outdated = this.#asked !== null && !this.busy && this.#asked !== this.prompt;
    this.element.classList.toggle("outdated", outdated);
    const state = this.element.dataset.state;
    this.#parts.state.textContent = outdated ? STATES.outdated : (STATES[state] ?? state);
  }

  #showStats() {
    if (!this.#first) {
      this.#parts.stats.textContent = "";
      return;
    }
    const seconds = (this.#last - this.#sent) / 1000;
    const speed = this.#tokens / Math.max(seconds, 0.001);
    const count = this.#tokens === 1 ? "1 token" : `${this.#tokens} tokens`;
    this.#parts.stats.textContent =
      `${count} · ${speed.toFixed(speed < 10 ? 1 : 0)}/s · first ${Math.round(this.#first - this.#sent)} ms`;
  }

  #markTuned() {
    this.#parts.tune.classList.toggle("tuned", Object.keys(this.sampling).length > 0 || this.adapter !== null);
  }
}
