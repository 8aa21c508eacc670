// MathML elements as TeX needs them. Owns: names and attributes. Does not own: TeX (math.js).

import { styled } from "./symbols.js";

export function node(name, ...children) {
  const result = document.createElementNS("http://www.w3.org/1998/Math/MathML", name);
  for (const child of children) result.append(child);
  return result;
}

export function classed(name, box) {
  box.setAttribute("class", name);
  return box;
}

export function operator(text, attributes = {}) {
  const result = node("mo", text);
  for (const [name, value] of Object.entries(attributes)) result.setAttribute(name, value);
  return result;
}

export function fence(mark) {
  return mark?.trim() ? [operator(mark, { fence: "true", stretchy: "true" })] : [];
}

export function space(width) {
  const result = node("mspace");
  result.setAttribute("width", width);
  return result;
}

export function letter(char, font, upright = false) {
  const result = node("mi", styled(char, font));
  if (upright || font === "upright") result.setAttribute("mathvariant", "normal");
  return result;
}

export function withLimits(box, limits) {
  box.limits = limits; // read by scripted(): scripts stand above and below
  if (limits && box.localName === "mo") box.setAttribute("movablelimits", "true");
  return box;
}

export function functionName(name, limits) {
  const shown = name.replace(/\\[,;: ]/g, " ").replace("limsup", "lim sup").replace("liminf", "lim inf");
  const result = limits ? withLimits(operator(shown), true) : node("mi", shown);
  if (!limits && shown.length === 1) result.setAttribute("mathvariant", "normal");
  result.isFunction = true;
  return result;
}

export function textNode(name, text) {
  const result = node("mtext", text.replace(/\\([$%&#_{} ])/g, "$1").replace(/^\s|\s$/g, "\u00a0"));
  const style = { textbf: "bold", textit: "italic", texttt: "mono" }[name];
  return style ? classed(style, result) : result;
}
