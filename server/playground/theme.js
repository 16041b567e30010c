// Before the first paint, so that a chosen theme never flashes the other one. Not a module: those wait for the page.
try {
  const theme = localStorage.getItem("ladle-theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // Storage may be forbidden; the system's theme is a good one.
}
