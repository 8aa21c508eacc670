// Small helpers for DOM nodes. Text only ever becomes text nodes, never HTML.

export const byId = (id) => document.getElementById(id);

/** An element with a class and children (nodes or text). */
export function make(name, className = "", ...children) {
  const result = document.createElement(name);
  if (className) result.className = className;
  result.append(...children);
  return result;
}

/** One of the symbols of index.html. */
export function icon(name) {
  const space = document.querySelector(".symbols").namespaceURI;
  const svg = document.createElementNS(space, "svg");
  const use = document.createElementNS(space, "use");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  use.setAttribute("href", `#${name}`);
  svg.append(use);
  return svg;
}

/** A button with a symbol, named for screen readers by its title. */
export function iconButton(name, title, onClick) {
  const button = make("button", "small", icon(name));
  button.type = "button";
  button.title = title;
  button.setAttribute("aria-label", title);
  button.addEventListener("click", onClick);
  return button;
}

/** A button with a text. */
export function textButton(text, onClick, className = "pill") {
  const button = make("button", className, text);
  button.type = "button";
  button.addEventListener("click", onClick);
  return button;
}

/** Makes `list` show exactly `items`, moving none that is in its place, so that focus stays. */
export function place(list, items) {
  items.forEach((item, at) => {
    if (list.children[at] !== item) list.insertBefore(item, list.children[at] ?? null);
  });
  while (list.children.length > items.length) list.lastElementChild.remove();
}

/** Copies a text; the button's symbol confirms it for a moment. */
export async function copyText(button, text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    copyBySelection(text); // no clipboard access over plain HTTP from another machine
  }
  button.querySelector("use").setAttribute("href", "#check");
  setTimeout(() => button.querySelector("use").setAttribute("href", "#copy"), 1200);
}

function copyBySelection(text) {
  const area = make("textarea", "visually-hidden");
  area.value = text;
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}

/** Offers a text as a file. */
export function download(name, text, type) {
  const link = make("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

/**
 * A function that runs `action` in the next frame, once however often it is called. An action that
 * takes long (a very long answer to draw) is run so rarely that the page stays usable.
 */
export function oncePerFrame(action) {
  let waiting = false;
  let rest = 0;
  const run = () => {
    waiting = false;
    const start = performance.now();
    action();
    rest = 3 * (performance.now() - start);
  };
  return () => {
    if (waiting) return;
    waiting = true;
    if (rest > 50) setTimeout(run, rest);
    else requestAnimationFrame(run);
  };
}
