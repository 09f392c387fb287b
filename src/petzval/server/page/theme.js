// Before the first paint, so that nobody who chose the dark is blinded: the theme of the last visit.
try {
  const theme = localStorage.getItem("petzval.theme");
  if (theme === '"dark"' || theme === '"light"') document.documentElement.dataset.theme = JSON.parse(theme);
} catch {
  // A browser that keeps nothing has the theme of its system.
}
