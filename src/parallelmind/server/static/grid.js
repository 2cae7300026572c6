// The token grid: every token with its position, and who sees whom.

import { postJson } from "./api.js";

const MAIN_COLOUR = "#64748b";
const COLOURS = ["#2f6fde", "#e0701b", "#1f9d6b", "#b4459f", "#7a5af0", "#c8901a", "#1496a8", "#d1435b"];
const MASK_SIZE = 400;
const MIN_CELL = 2;
const MAX_CELL = 14;
const EDGE = 8;

const byId = (id) => document.getElementById(id);
const cellSize = (tokens) => Math.max(MIN_CELL, Math.min(MAX_CELL, Math.floor(MASK_SIZE / tokens)));
const colourOf = (branch) => (branch === 0 ? MAIN_COLOUR : COLOURS[(branch - 1) % COLOURS.length]);

export class TokenGrid {
  #details = byId("grid");
  #tokens = byId("grid-tokens");
  #canvas = byId("grid-canvas");
  #row;
  #grid = null;
  #chips = [];
  #chosen = -1;
  #request = 0;

  /** `row()` gives the body of the request. */
  constructor(row) {
    this.#row = row;
    this.#details.addEventListener("toggle", () => this.#details.open && this.draw());
    byId("grid-refresh").addEventListener("click", () => this.draw());
    this.#tokens.addEventListener("pointerover", (event) => {
      const place = event.target.dataset.token;
      if (place !== undefined) this.#choose(Number(place));
    });
    this.#tokens.addEventListener("pointerleave", () => this.#choose(-1));
    this.#tokens.addEventListener("keydown", (event) => this.#key(event));
    this.#canvas.addEventListener("pointermove", (event) => this.#choose(this.#placeAt(event)));
    this.#canvas.addEventListener("pointerleave", () => this.#choose(-1));
    addEventListener("themechange", () => this.#drawMask());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#drawMask());
  }

  /** The texts have changed since the picture was drawn. */
  outdate() {
    if (this.#grid) byId("grid-note").textContent = "The texts have changed since.";
  }

  async draw() {
    const request = ++this.#request;
    const note = byId("grid-note");
    note.textContent = "drawing…";
    try {
      const grid = await postJson("v1/grid", this.#row());
      if (request !== this.#request) return;
      this.#grid = grid;
      this.#drawTokens();
      this.#drawMask();
      const size = grid.tokens.length;
      note.textContent = size ? `${size} tokens, visibility ${grid.visibility}` : "Nothing to draw yet.";
    } catch (error) {
      if (request !== this.#request) return;
      this.#grid = null;
      note.textContent = error.message;
    }
    byId("grid-view").hidden = !this.#grid?.tokens.length;
    this.#choose(-1);
  }

  #drawTokens() {
    const { tokens } = this.#grid;
    this.#chips = tokens.map((token, place) => this.#chip(token, place));
    const main = document.createElement("div");
    main.className = "grid-main";
    const columns = document.createElement("div");
    columns.className = "grid-columns";
    const first = Math.min(...tokens.filter(({ branch }) => branch > 0).map(({ time }) => time));
    const heads = new Map();
    tokens.forEach((token, place) => {
      if (token.branch === 0) {
        main.append(this.#chips[place]);
        return;
      }
      if (!heads.has(token.branch)) {
        heads.set(token.branch, heads.size + 1);
        columns.append(head(token, heads.size));
      }
      const chip = this.#chips[place];
      chip.style.gridColumn = heads.get(token.branch) + 1;
      chip.style.gridRow = token.time - first + 2;
      columns.append(chip);
    });
    const last = Math.max(first, ...tokens.map(({ time }) => time));
    for (let time = first; heads.size && time <= last; time++) columns.append(timeLabel(time, time - first + 2));
    this.#tokens.replaceChildren(main, columns);
  }

  #chip(token, place) {
    const chip = document.createElement("bdi");
    chip.className = "token";
    chip.textContent = token.text;
    chip.dataset.token = place;
    chip.title = `position (${token.position.join(", ")})`;
    chip.style.setProperty("--colour", colourOf(token.branch));
    return chip;
  }

  #drawMask() {
    if (!this.#grid?.tokens.length) return;
    const { tokens, visible } = this.#grid;
    const size = tokens.length;
    const cell = cellSize(size);
    const scale = devicePixelRatio || 1;
    const side = EDGE + cell * size;
    this.#canvas.width = this.#canvas.height = Math.round(side * scale);
    this.#canvas.style.width = `${side}px`;
    const context = this.#canvas.getContext("2d");
    context.scale(scale, scale);
    const style = getComputedStyle(document.documentElement);
    context.fillStyle = style.getPropertyValue("--mask-empty");
    context.fillRect(EDGE, EDGE, cell * size, cell * size);
    const gap = cell > 4 ? 1 : 0;
    visible.forEach((line, query) => {
      context.fillStyle = colourOf(tokens[query].branch);
      context.fillRect(0, EDGE + query * cell, EDGE - 3, cell);
      context.fillRect(EDGE + query * cell, 0, cell, EDGE - 3);
      line.forEach((seen, key) => {
        if (!seen) return;
        context.fillStyle = colourOf(tokens[key].branch);
        context.globalAlpha = this.#chosen < 0 || this.#chosen === query ? 0.9 : 0.3;
        context.fillRect(EDGE + key * cell, EDGE + query * cell, cell - gap, cell - gap);
        context.globalAlpha = 1;
      });
    });
    this.#canvas.setAttribute("aria-label", this.#description());
  }

  #description() {
    const { tokens, visible, visibility } = this.#grid;
    const branches = new Set(tokens.map(({ branch }) => branch).filter(Boolean)).size;
    const main = tokens.filter(({ branch }) => branch === 0).length;
    const seen = visible.flat().filter(Boolean).length;
    return (
      `Mask of ${tokens.length} tokens, ${main} of the shared text and the others in ${branches} branches; ` +
      `visibility ${visibility}; ${seen} of ${tokens.length ** 2} pairs see each other. ` +
      "Choose a token with the arrow keys to hear what it sees."
    );
  }

  #choose(place) {
    if (place === this.#chosen && this.#chips.length) return;
    this.#chosen = place;
    const chosen = this.#grid?.tokens[place];
    this.#tokens.classList.toggle("choosing", Boolean(chosen));
    this.#chips.forEach((chip, index) => {
      chip.classList.toggle("looks", index === place);
      chip.classList.toggle("seen", Boolean(chosen) && Boolean(this.#grid.visible[place][index]));
    });
    this.#drawMask();
    byId("grid-said").textContent = chosen ? this.#said(place) : "";
  }

  #said(place) {
    const { tokens, visible } = this.#grid;
    const { text, branch, time, position } = tokens[place];
    const seen = tokens.filter((_, index) => visible[place][index]);
    const counts = new Map();
    for (const each of seen) counts.set(each.branch, (counts.get(each.branch) ?? 0) + 1);
    const parts = [...counts].map(([of, count]) => `${count} of ${of === 0 ? "the shared text" : `branch ${of}`}`);
    const where = branch === 0 ? "shared text" : `branch ${branch}`;
    return `“${text}”: ${where}, time ${time}, position (${position.join(", ")}); sees ${parts.join(", ")}`;
  }

  #placeAt(event) {
    const box = this.#canvas.getBoundingClientRect();
    const size = this.#grid.tokens.length;
    const cell = cellSize(size);
    const drawn = EDGE + cell * size;
    const place = Math.floor((((event.clientY - box.top) / box.height) * drawn - EDGE) / cell);
    return place >= 0 && place < size ? place : -1;
  }

  #key(event) {
    const last = this.#chips.length - 1;
    const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
    let place = this.#chosen;
    if (event.key in steps) place = Math.min(last, Math.max(0, place + steps[event.key]));
    else if (event.key === "Home") place = 0;
    else if (event.key === "End") place = last;
    else if (event.key === "Escape" && place >= 0) place = -1;
    else return;
    event.preventDefault();
    this.#choose(place);
    this.#chips[place]?.scrollIntoView({ block: "nearest", inline: "nearest" });
  }
}

function head(token, column) {
  const element = document.createElement("b");
  element.className = "grid-head";
  element.textContent = `branch ${token.branch}`;
  const position = document.createElement("small");
  position.textContent = `position ${token.position[0]}`;
  element.append(position);
  element.style.setProperty("--colour", colourOf(token.branch));
  element.style.gridColumn = column + 1;
  element.style.gridRow = 1;
  return element;
}

function timeLabel(time, row) {
  const element = document.createElement("span");
  element.className = "grid-time";
  element.textContent = time;
  element.style.gridColumn = 1;
  element.style.gridRow = row;
  return element;
}
