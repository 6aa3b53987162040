// What is wrong with a page for people: text that cannot be read on what is behind it (a ratio of 4.5, or of 3 where it is
// large: WCAG 2.1 AA), fields, buttons and pictures without a name, ids given twice, a page wider than its window.
() => {
  const channel = c => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const parts = text => text.match(/[\d.]+/g).map(Number);
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const over = (top, under) => { const a = top.length > 3 ? top[3] : 1; return [0, 1, 2].map(i => top[i] * a + under[i] * (1 - a)); };
  const behind = element => { const layers = [];
    for (let at = element; at; at = at.parentElement) layers.push(parts(getComputedStyle(at).backgroundColor));
    return layers.reverse().reduce((under, top) => over(top, under), [255, 255, 255]); };
  const found = [];
  for (const element of document.querySelectorAll("#graft-page *, .graft-narrow *")) {
    const own = [...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());
    const style = getComputedStyle(element);
    if (!own || !element.getClientRects().length || style.visibility === "hidden" || element.disabled) continue;
    const back = behind(element), front = over(parts(style.color), back);
    const [high, low] = [light(front), light(back)].sort((a, b) => b - a);
    const size = parseFloat(style.fontSize), isLarge = size >= 24 || (size >= 18.6 && style.fontWeight >= 700);
    const ratio = (high + 0.05) / (low + 0.05);
    if (ratio < (isLarge ? 3 : 4.5)) found.push(`contrast ${ratio.toFixed(2)}: ${element.textContent.trim().slice(0, 40)}`);
  }
  for (const field of document.querySelectorAll("#main-content input:not([type=hidden]), #main-content select")) {
    if (!field.labels.length && !field.getAttribute("aria-label")) found.push(`no label: ${field.name}`);
  }
  for (const one of document.querySelectorAll("#main-content button, #main-content a")) {
    if (!one.textContent.trim() && !one.getAttribute("aria-label")) found.push(`no name: ${one.outerHTML.slice(0, 80)}`);
  }
  for (const one of document.querySelectorAll("#main-content svg, #main-content progress")) {
    if (!one.getAttribute("aria-label")) found.push(`not told: ${one.outerHTML.slice(0, 80)}`);
  }
  const ids = [...document.querySelectorAll("[id]")].map(one => one.id);
  ids.filter((id, at) => ids.indexOf(id) !== at).forEach(id => found.push(`twice: ${id}`));
  if (document.querySelectorAll("h1").length !== 1) found.push("not one heading");
  if (document.documentElement.scrollWidth > innerWidth) found.push(`wider than the window: ${document.documentElement.scrollWidth}`);
  return found;
}
