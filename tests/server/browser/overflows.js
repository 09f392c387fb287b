// What is wider than its box although nobody can scroll it, or sticks out of the window. What only
// screen readers see does not count, nor a text that is cut on purpose.
() => {
  const wide = document.documentElement.clientWidth;
  const found = [];
  const name = (each) => `${each.tagName.toLowerCase()}#${each.id}.${each.className}: ${each.textContent.trim().slice(0, 50)}`;
  const cuts = (style) => style.overflowX !== "visible";
  const isUnderOneThatCuts = (each) => {
    for (let up = each.parentElement; up; up = up.parentElement) if (cuts(getComputedStyle(up))) return true;
    return false;
  };
  for (const each of document.querySelectorAll("body *:not(svg, svg *, option)")) {
    const box = each.getBoundingClientRect();
    const style = getComputedStyle(each);
    if (box.width <= 1 || !each.checkVisibility({ opacityProperty: true, visibilityProperty: true })) continue;
    const beyond = box.right > wide + 1 || box.left < -1;
    if (beyond && !isUnderOneThatCuts(each)) found.push(`sticks out: ${name(each)}`);
    const meant = style.textOverflow === "ellipsis" || style.webkitLineClamp !== "none" || /auto|scroll/.test(style.overflowX);
    const field = each.matches("input, textarea, select");
    if (each.matches("select")) {
      each.style.minWidth = "max-content";
      const natural = each.getBoundingClientRect().width;
      each.style.minWidth = "";
      if (natural > box.width + 1) found.push(`too narrow: ${name(each)} (${natural} in ${box.width})`);
    }
    if (!meant && !field && style.display !== "inline" && each.scrollWidth > each.clientWidth + 1)
      found.push(`too narrow: ${name(each)} (${each.scrollWidth} in ${each.clientWidth})`);
  }
  const page = document.documentElement.scrollWidth;
  return page > wide ? [...found, `the page scrolls sideways: ${page} in ${wide}`] : found;
}
