// Before the first paint: the theme that was chosen, so that nothing flashes. Without a choice the system's holds.
"use strict";
try {
  const chosen = JSON.parse(localStorage.getItem("pulse88.theme"));
  if (chosen === "dark" || chosen === "light") document.documentElement.dataset.theme = chosen;
} catch {
  // Private windows may keep nothing.
}
