// The dialogs, the notices, and the choice of colours.

import { toFragment } from "./draft.js";

const byId = (id) => document.getElementById(id);
const LONG_LINK = 8_000;
const THEMES = ["system", "light", "dark"];
const THEME_SIGNS = { system: "◐", light: "☀", dark: "☾" };

/** Asks for the server's key; resolves to null if the user gives none. */
export function askKey(refused) {
  const dialog = byId("key-dialog");
  const input = byId("key-input");
  byId("key-note").textContent = refused
    ? "The key was refused. Try another one; it is kept for this tab only."
    : "It is kept for this tab only.";
  input.value = "";
  dialog.returnValue = "cancel";
  dialog.showModal();
  input.focus();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "ok" ? input.value.trim() : null), {
      once: true,
    });
  });
}

/** Shows a link that holds the draft. */
export async function showShare(draft) {
  const link = new URL(location.href);
  link.hash = await toFragment(draft);
  const input = byId("share-link");
  input.value = link.href;
  const size = link.href.length;
  byId("share-note").textContent =
    size > LONG_LINK ? `${size.toLocaleString("en")} characters: too long for some mail and chat programs.` : "";
  byId("share-dialog").showModal();
  input.select();
}

export function setUpDialogs() {
  byId("help").addEventListener("click", () => byId("help-dialog").showModal());
  byId("key-cancel").addEventListener("click", () => byId("key-dialog").close("cancel"));
  byId("share-copy").addEventListener("click", async () => {
    const input = byId("share-link");
    input.select();
    try {
      await navigator.clipboard.writeText(input.value);
      byId("share-note").textContent = "Copied.";
    } catch {
      byId("share-note").textContent = "The link is selected: copy it with Ctrl+C.";
    }
  });
  for (const dialog of document.querySelectorAll("dialog")) {
    dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  }
}

/** A message above the page until it is closed; `action` is {label, run}. A later one with the same name replaces it. */
export function notice(name, text, action = null) {
  dropNotice(name);
  const element = document.createElement("p");
  element.dataset.name = name;
  const said = document.createElement("span");
  said.textContent = text;
  element.append(said);
  if (action) element.append(button(action.label, () => (dropNotice(name), action.run())));
  const close = button("×", () => dropNotice(name));
  close.setAttribute("aria-label", "Close this message");
  element.append(close);
  byId("notices").append(element);
}

export function dropNotice(name) {
  byId("notices").querySelector(`[data-name="${name}"]`)?.remove();
}

function button(label, run) {
  const element = document.createElement("button");
  element.type = "button";
  element.className = "quiet";
  element.textContent = label;
  element.addEventListener("click", run);
  return element;
}

export function setUpTheme() {
  const choose = byId("theme");
  const show = () => {
    const theme = document.documentElement.dataset.theme ?? "system";
    choose.textContent = THEME_SIGNS[theme];
    choose.setAttribute("aria-label", theme === "system" ? "Colours: like the system" : `Colours: ${theme}`);
  };
  choose.addEventListener("click", () => {
    const theme = document.documentElement.dataset.theme ?? "system";
    const next = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
    if (next === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = next;
    try {
      localStorage.setItem("parallelmind.theme", next);
    } catch {
      // Not kept for the next visit.
    }
    show();
    dispatchEvent(new Event("themechange"));
  });
  show();
}
