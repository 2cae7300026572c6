// The keyboard; index.html's help dialog lists what is here.

const byId = (id) => document.getElementById(id);

export function setUpShortcuts({ runAll, run, stopAll, add, remove, cards, main }) {
  const current = () => cards().find((card) => card.element.contains(document.activeElement));
  const go = (step) => {
    const all = cards();
    const card = current();
    const place = card ? all.indexOf(card) + step : step > 0 ? 0 : all.length - 1;
    if (place < 0 || place >= all.length) main.focus();
    else all[place].focus();
  };
  const withAlt = {
    KeyN: add,
    KeyX: () => current() && remove(current()),
    KeyJ: () => go(1),
    KeyK: () => go(-1),
    KeyM: () => main.focus(),
  };

  addEventListener("keydown", (event) => {
    if (document.querySelector("dialog[open]") || event.isComposing) return;
    const command = event.ctrlKey || event.metaKey;
    let action = null;
    if (event.key === "Enter" && command) action = event.shiftKey && current() ? () => run(current()) : runAll;
    else if (event.key === "Escape" && !event.defaultPrevented) action = stopAll;
    else if (event.altKey && !command) action = withAlt[event.code];
    else if (event.key === "?" && !isText(event.target)) action = () => byId("help-dialog").showModal();
    if (!action) return;
    event.preventDefault();
    action();
  });
}

function isText(element) {
  return element.matches?.("textarea, input, select");
}
