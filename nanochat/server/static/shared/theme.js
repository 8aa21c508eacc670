// Runs before the first paint, so that the page does not flash in the wrong theme.
"use strict";
try {
  const theme = localStorage.getItem("nanochat.theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // storage is disabled: use the system's theme
}
