// Small helpers for the nodes of the dashboard. Text only ever becomes text nodes, never HTML.

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

/** An element with a class and children (nodes or text). */
export function make(name, className = "", ...children) {
  const result = document.createElement(name);
  if (className) result.className = className;
  result.append(...children);
  return result;
}

/** An SVG element with attributes and children. */
export function draw(name, attributes = {}, ...children) {
  const result = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) result.setAttribute(key, value);
  result.append(...children);
  return result;
}

/** A symbol of runs.html. */
export function icon(name) {
  return draw("svg", { class: "icon", "aria-hidden": "true" }, draw("use", { href: `#${name}` }));
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

/** Makes `list` show exactly `items`, moving none that is in its place, so that focus stays. */
export function place(list, items) {
  items.forEach((item, at) => {
    if (list.children[at] !== item) list.insertBefore(item, list.children[at] ?? null);
  });
  while (list.children.length > items.length) list.lastElementChild.remove();
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
