// Small helpers for the nodes of the dashboard. Text only ever becomes text nodes, never HTML.

import { icon, make } from "../shared/dom.js";

export { byId, icon, make, place } from "../shared/dom.js";

const SVG = "http://www.w3.org/2000/svg";

/** An SVG element with attributes and children. */
export function draw(name, attributes = {}, ...children) {
  const result = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) result.setAttribute(key, value);
  result.append(...children);
  return result;
}

/** A button; `symbol` replaces its text, which then names it for screen readers. */
export function button(text, onClick, { className = "pill", symbol = "" } = {}) {
  const result = make("button", className, symbol ? icon(symbol) : text);
  result.type = "button";
  if (symbol) {
    result.title = text;
    result.setAttribute("aria-label", text);
  }
  result.addEventListener("click", onClick);
  return result;
}

/** Sets a node's text, if it is another: selections and screen readers stay undisturbed. */
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Remembers one view for each key: `views(key)` makes it once. */
export function remembered(makeView) {
  const views = new Map();
  return (key) => {
    if (!views.has(key)) views.set(key, makeView(key));
    return views.get(key);
  };
}
