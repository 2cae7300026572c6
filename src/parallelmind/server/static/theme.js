// Not a module: runs before the first paint, so that a chosen theme does not flash.
try {
  const chosen = localStorage.getItem("parallelmind.theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
} catch {
  // Storage may be forbidden; the system's colours are used.
}
