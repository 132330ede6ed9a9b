// Helpers of both pages.

/** An address of the server, wherever its routes are mounted: the assets are one level below. */
export const at = (path) => new URL(`../${path}`, import.meta.url);

export const $ = (selector, root = document) => root.querySelector(selector);

/** Makes an element; strings become text nodes, so data is never parsed as markup. */
export function el(tag, className, ...children) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  node.append(...children);
  return node;
}

// Storage throws if cookies are blocked; the page works without it.
export function recall(area, key) {
  try { return window[area].getItem(`presence.${key}`); } catch { return null; }
}
export function remember(area, key, value) {
  try { window[area].setItem(`presence.${key}`, value); } catch { /* see above */ }
}
export function recallJson(area, key, otherwise) {
  try { return JSON.parse(recall(area, key)) ?? otherwise; } catch { return otherwise; }
}

export const plural = (n, one, many = `${one}s`) => `${n} ${n === 1 ? one : many}`;

export function clock(date = new Date()) {
  const time = el("time", "", date.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" }));
  time.dateTime = date.toISOString();
  return time;
}

export async function copy(text, button) {
  const label = (button.dataset.label ??= button.textContent);
  // Only secure contexts have a clipboard; a prompt can be copied from anywhere.
  try { await navigator.clipboard.writeText(text); } catch { return void prompt("Copy this:", text); }
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = label; }, 1500);
}
