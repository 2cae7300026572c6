// The text of an answer as it grows: never as markup, a limited part of it in each frame.

const CHARACTERS_A_FRAME = 40_000;
const CHARACTERS_A_BLOCK = 4_000;
const FULL_BLOCK = 20_000;
const NEAR_END = 24;

export class Output {
  #element;
  #pieces = [];
  #unshown = "";
  #scheduled = false;
  #block = null;

  #following = true;
  #top = 0;

  constructor(element) {
    this.#element = element;
    // The end stays in view until the user scrolls up, and again from when the user is back at the end.
    element.addEventListener("scroll", () => {
      const left = element.scrollHeight - element.scrollTop - element.clientHeight;
      if (element.scrollTop < this.#top) this.#following = left < NEAR_END;
      else if (left < NEAR_END) this.#following = true;
      this.#top = element.scrollTop;
    });
  }

  get text() {
    return this.#pieces.join("");
  }

  clear() {
    this.#pieces = [];
    this.#unshown = "";
    this.#block = null;
    this.#following = true;
    this.#top = 0;
    this.#element.replaceChildren();
  }

  append(text) {
    if (!text) return;
    this.#pieces.push(text);
    this.#unshown += text;
    if (this.#scheduled) return;
    this.#scheduled = true;
    requestAnimationFrame(() => this.#draw());
  }

  #draw() {
    this.#scheduled = false;
    this.#show(this.#unshown.slice(0, CHARACTERS_A_FRAME));
    this.#unshown = this.#unshown.slice(CHARACTERS_A_FRAME);
    this.#follow();
    if (!this.#unshown) return;
    this.#scheduled = true;
    requestAnimationFrame(() => this.#draw());
  }

  #follow() {
    if (this.#following) this.#element.scrollTop = this.#element.scrollHeight;
  }

  /** Blocks end at line ends, so that the browser lays out the last one only; in endless lines, wherever they are full. */
  #show(text) {
    while (text) {
      this.#block ??= this.#newBlock();
      const held = this.#block.length;
      const lineEnd = text.indexOf("\n", Math.max(0, CHARACTERS_A_BLOCK - held)) + 1;
      const full = FULL_BLOCK - held + (isHighSurrogate(text, FULL_BLOCK - held - 1) ? 1 : 0);
      const end = lineEnd > 0 && lineEnd <= full ? lineEnd : full;
      this.#block.appendData(text.slice(0, end));
      if (text.length < end) return;
      text = text.slice(end);
      this.#block = null;
    }
  }

  #newBlock() {
    const element = document.createElement("div");
    element.dir = "auto";
    const node = document.createTextNode("");
    element.append(node);
    this.#element.append(element);
    return node;
  }
}

function isHighSurrogate(text, place) {
  const code = text.charCodeAt(place);
  return code >= 0xd800 && code < 0xdc00;
}
