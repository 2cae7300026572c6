// Settings that hold for all branches: sampling, presets, visibility, adapter, the form of the prompt.

import {
  choose,
  fillForm,
  fillOptions,
  readForm,
  showInherited,
  summary,
  takeDefaults,
  toRequest,
  writeForm,
} from "./fields.js";

const VISIBILITIES = {
  isolated: "a branch sees the shared text and itself",
  columnar: "a branch sees the shared text, itself, and what the others wrote before",
  strict: "a branch sees itself only",
};

export class Settings {
  #form = document.getElementById("settings-form");
  #preset = document.getElementById("preset");
  #visibility = select();
  #adapter = select();
  #promptForm = select();
  #presets = {};
  #changed;
  #info = null;

  constructor(changed) {
    this.#changed = () => {
      this.#show();
      changed();
    };
    fillOptions(this.#visibility, [["", "the model's own"]]);
    fillOptions(this.#adapter, [["", "none: the base model"]]);
    fillOptions(this.#promptForm, [
      ["", "automatic"],
      ["text", "as it is: a branch continues the shared text"],
      ["chat", "a chat: the shared text is the system message"],
    ]);
    fillForm(this.#form, this.#changed, [
      { field: { name: "visibility", label: "Visibility", help: "what a branch sees" }, control: this.#visibility },
      { field: { name: "adapter", label: "Adapter", help: "LoRA adapter of the server" }, control: this.#adapter },
      {
        field: { name: "form", label: "Prompt", help: "automatic: a chat if the model has a chat template" },
        control: this.#promptForm,
      },
    ]);
    this.#preset.addEventListener("change", () => {
      const chosen = this.#presets[this.#preset.value];
      if (!chosen) return;
      writeForm(this.#form, { ...readForm(this.#form), ...chosen });
      this.#changed();
    });
    this.#show();
  }

  /** What the server offers. */
  offer(info, presets) {
    this.#info = info;
    this.#presets = presets;
    takeDefaults(info.sampling ?? {});
    showInherited(this.#form, {});
    fillOptions(this.#preset, [["", "custom"], ...Object.keys(presets).map((name) => [name, name])]);
    const own = info.visibility ? `the model's own: ${info.visibility}` : "the model's own";
    const known = info.visibilities ?? Object.keys(VISIBILITIES);
    fillOptions(this.#visibility, [["", own], ...known.map((name) => [name, `${name}: ${VISIBILITIES[name] ?? ""}`])]);
    fillOptions(this.#adapter, [["", "none: the base model"], ...this.adapters.map((name) => [name, name])]);
    this.#adapter.disabled = this.adapters.length === 0;
    this.#show();
  }

  get adapters() {
    return this.#info?.adapters ?? [];
  }

  get sampling() {
    return readForm(this.#form);
  }

  get visibility() {
    return this.#visibility.value;
  }

  get adapter() {
    return this.#adapter.value;
  }

  get draft() {
    return {
      sampling: this.sampling,
      visibility: this.visibility,
      adapter: this.adapter,
      form: this.#promptForm.value,
    };
  }

  set draft(draft) {
    writeForm(this.#form, draft.sampling);
    choose(this.#visibility, draft.visibility);
    choose(this.#adapter, draft.adapter);
    choose(this.#promptForm, draft.form);
    this.#show();
  }

  get valid() {
    return this.#form.checkValidity();
  }

  reportInvalid() {
    document.getElementById("settings").open = true;
    this.#form.reportValidity();
  }

  /** The body of a request for these branches. */
  request(main, cards) {
    const shared = toRequest(this.sampling);
    const branches = cards.map((card) => {
      const own = toRequest(card.sampling);
      // By its number a rerun of one branch draws and is placed as it was among all.
      const place = { branch_id: card.index + 1 };
      return { prompt: card.prompt, ...place, ...own, ...(card.adapter !== null && { adapter: card.adapter }) };
    });
    const form = this.#promptForm.value || (this.#info?.chat_template ? "chat" : "text");
    return {
      ...(form === "chat" ? { messages: [{ role: "system", content: main }] } : { main }),
      branches,
      ...shared,
      ...(this.visibility && { visibility: this.visibility }),
      ...(this.adapter && { adapter: this.adapter }),
    };
  }

  #show() {
    const sampling = this.sampling;
    const parts = [summary(sampling), this.visibility, this.adapter].filter(Boolean);
    document.getElementById("settings-summary").textContent = parts.join(", ");
    const matching = Object.entries(this.#presets).find(([, preset]) =>
      Object.entries(preset).every(([name, value]) => sampling[name] === value),
    );
    this.#preset.value = matching?.[0] ?? "";
  }
}

function select() {
  return document.createElement("select");
}
