// The sampling settings: what they are called, their range, and the form controls for them.

/** In the order in which they are shown. `usual` is what holds where nothing is set; the server says the numbers. */
export const FIELDS = [
  { name: "temperature", label: "Temperature", kind: "number", min: 0, max: 100, step: "any",
    help: "0 always takes the likeliest token" },
  { name: "top_p", label: "Top p", kind: "number", min: 0.0001, max: 1, step: "any",
    help: "keep the likeliest tokens that reach this probability together" },
  { name: "top_k", label: "Top k", kind: "number", min: 0, max: 2147483648, step: 1,
    help: "keep this many of the likeliest tokens; 0 keeps all" },
  { name: "min_p", label: "Min p", kind: "number", min: 0, max: 1, step: "any",
    help: "drop tokens less likely than this share of the likeliest" },
  { name: "repetition_penalty", label: "Repetition penalty", kind: "number", min: 0.01, max: 100, step: "any",
    help: "above 1 discourages repetition" },
  { name: "presence_penalty", label: "Presence penalty", kind: "number", min: -2, max: 2, step: "any",
    help: "above 0 discourages tokens that the answer has so far" },
  { name: "frequency_penalty", label: "Frequency penalty", kind: "number", min: -2, max: 2, step: "any",
    help: "above 0 discourages tokens of the answer so far, each as often as it has them" },
  { name: "max_tokens", label: "Max tokens", kind: "number", min: 1, max: 1000000, step: 1,
    help: "tokens of an answer at most" },
  { name: "seed", label: "Seed", kind: "number", min: 0, max: 2147483647, step: 1, usual: "random",
    help: "the same seed gives the same answers" },
  { name: "stop", label: "Stop texts", kind: "text", usual: "none",
    help: "texts that end an answer, one a line" },
  { name: "stop_token_ids", label: "Stop token ids", kind: "text", usual: "none",
    help: "ids of tokens that end an answer, such as 50, 51" },
  { name: "logit_bias", label: "Logit bias", kind: "text", usual: "none",
    help: "what is added to the logits of tokens, one a line, such as 50: -100" },
];

let forms = 0;

/** Puts a control for each field into the form; `extra` are further controls. Calls `changed()` after every input. */
export function fillForm(form, changed, extra = []) {
  const prefix = `fields-${forms++}`;
  for (const field of FIELDS) form.append(labelled(prefix, field, controlOf(field)));
  for (const { field, control } of extra) form.append(labelled(prefix, field, control));
  form.addEventListener("input", changed);
  form.addEventListener("submit", (event) => event.preventDefault());
}

function controlOf(field) {
  if (field.kind === "text") {
    const area = document.createElement("textarea");
    area.rows = 1;
    area.dir = "auto";
    return area;
  }
  const input = document.createElement("input");
  input.type = "number";
  input.inputMode = "decimal";
  for (const name of ["min", "max", "step"]) input[name] = field[name];
  return input;
}

function labelled(prefix, field, control) {
  const label = document.createElement("label");
  control.id = `${prefix}-${field.name}`;
  control.name = field.name;
  control.title = field.help;
  if (field.usual !== undefined) control.placeholder = String(field.usual);
  const text = document.createElement("span");
  text.textContent = field.label;
  label.append(text, control);
  return label;
}

export function readForm(form) {
  const sampling = {};
  for (const { name, kind } of FIELDS) {
    const control = form.elements[name];
    if (control.value === "" || !control.validity.valid) continue;
    sampling[name] = kind === "text" ? control.value : control.valueAsNumber;
  }
  return sampling;
}

export function writeForm(form, sampling) {
  for (const { name } of FIELDS) form.elements[name].value = sampling[name] ?? "";
}

/** What a branch inherits, or the server's default, shows as the placeholder of its own settings. */
export function showInherited(form, sampling) {
  for (const { name, usual } of FIELDS) form.elements[name].placeholder = String(sampling[name] ?? usual ?? "");
}

/** Takes over the server's defaults, by the names of the fields. */
export function takeDefaults(defaults) {
  for (const field of FIELDS) field.usual = defaults[field.name] ?? field.usual;
}

/** The settings as the API takes them. */
export function toRequest(sampling) {
  const { stop, stop_token_ids: ids, logit_bias: bias, ...rest } = sampling;
  const texts = parts(stop, "\n");
  const tokens = parts(ids, /[\s,]+/).map(numberOf);
  const biases = parts(bias, /[\n,]+/).map((line) => line.split(":").map((part) => part.trim()));
  return {
    ...rest,
    ...(texts.length && { stop: texts }),
    ...(tokens.length && { stop_token_ids: tokens }),
    ...(biases.length && { logit_bias: Object.fromEntries(biases.map(([id, added]) => [id, numberOf(added)])) }),
  };
}

function parts(text, separator) {
  return (text ?? "").split(separator).filter((part) => part !== "");
}

/** What is no number goes as it is: the server says what is wrong with it. */
function numberOf(text) {
  return text === undefined || text === "" || Number.isNaN(Number(text)) ? text ?? "" : Number(text);
}

/** "temperature 0.2, top p 0.75": for the closed panel. */
export function summary(sampling) {
  const set = FIELDS.filter(({ name }) => sampling[name] !== undefined);
  return set.map(({ name, label }) => `${label.toLowerCase()} ${sampling[name]}`).join(", ");
}

/** Replaces the options and keeps the choice, also one that is not among them any more. */
export function fillOptions(control, options) {
  const before = control.value;
  control.replaceChildren(...options.map(([value, label]) => new Option(label, value)));
  choose(control, before);
}

/** Also a choice that this server does not have, as a link may hold. */
export function choose(control, value) {
  if (value && ![...control.options].some((option) => option.value === value)) {
    control.append(new Option(`${value.replace(/^=/, "")} (not on this server)`, value));
  }
  control.value = value ?? "";
}
