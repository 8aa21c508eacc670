// Plots as files: SVG, PNG and CSV, made in the browser.

import { button, draw, icon, make } from "./dom.js";

const MARGIN = 14;
const HEADING = 26;
const LEGEND = 18;
const PIXELS = 2; // of the PNG, for each of the plot's
const STYLES = ["fill", "stroke", "stroke-width", "stroke-dasharray", "stroke-linecap",
  "stroke-linejoin", "opacity", "font-size", "font-family", "font-weight"];

/** A menu that saves a plot. name(): the file's; picture(): see `asSvg`; table(): rows of cells. */
export function saveMenu({ title, name, picture, table }) {
  const summary = make("summary", "tool", icon("save"));
  summary.setAttribute("aria-label", `Save ${title}`);
  summary.title = "Save";
  const item = (kind, blobOf) => button(kind, async () => {
    menu.open = false;
    download(await blobOf(), `${name()}.${kind.toLowerCase()}`);
  }, { className: "item" });
  const menu = make("details", "menu", summary, make(
    "div",
    "items",
    item("PNG", () => asPng(asSvg(picture()))),
    item("SVG", () => new Blob([svgText(asSvg(picture()))], { type: "image/svg+xml" })),
    item("CSV", () => new Blob([csv(table())], { type: "text/csv" })),
  ));
  menu.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !menu.open) return;
    menu.open = false;
    summary.focus();
    event.stopPropagation();
  });
  menu.addEventListener("focusout", (event) => {
    if (!menu.contains(event.relatedTarget)) menu.open = false;
  });
  return menu;
}

/**
 * A drawing on its own: it carries the page's colors and fonts, a heading and a legend.
 * svg: the plot, which is left as it is; legend: [{name, color, dashed}].
 */
export function asSvg({ svg, heading, legend }) {
  const page = getComputedStyle(svg.closest("figure"));
  const [width, height] = ["width", "height"].map((side) => Number(svg.getAttribute(side)));
  const rows = legend.length > 1 ? legend : [];
  const top = MARGIN + HEADING + LEGEND * rows.length;
  const size = [width + 2 * MARGIN, height + top + MARGIN];
  const text = { "font-family": page.fontFamily, fill: page.color };
  const result = draw(
    "svg",
    { xmlns: "http://www.w3.org/2000/svg", viewBox: `0 0 ${size.join(" ")}`, width: size[0], height: size[1] },
    draw("rect", { width: size[0], height: size[1], fill: page.backgroundColor }),
    draw("text", { ...text, x: MARGIN, y: MARGIN + 14, "font-size": "15px", "font-weight": "600" }, heading),
  );
  rows.forEach(({ name, color }, i) => {
    const y = MARGIN + HEADING + LEGEND * i + 6;
    const line = svg.querySelector(`.${color}`);
    const stroke = line ? getComputedStyle(line).getPropertyValue("--color").trim() : text.fill;
    result.append(
      draw("rect", { x: MARGIN, y, width: 18, height: 3, fill: stroke }),
      draw("text", { ...text, x: MARGIN + 26, y: y + 5, "font-size": "12px" }, name),
    );
  });
  const copy = inlined(svg);
  copy.querySelectorAll(".cross, .band").forEach((node) => node.remove());
  result.append(draw("g", { transform: `translate(${MARGIN} ${top})` }, ...copy.childNodes));
  return result;
}

/** A copy whose attributes hold what the page's style sheet says. */
function inlined(node) {
  const copy = node.cloneNode(false);
  if (node.nodeType !== Node.ELEMENT_NODE) return copy; // a text
  const style = getComputedStyle(node);
  for (const name of STYLES) copy.setAttribute(name, style.getPropertyValue(name));
  copy.append(...[...node.childNodes].map(inlined));
  return copy;
}

function svgText(svg) {
  return new XMLSerializer().serializeToString(svg);
}

// The content security policy lets no image come from a blob, so that the canvas is painted by
// hand; a plot has paths, lines, rectangles, circles and texts only.
function asPng(svg) {
  const canvas = make("canvas");
  canvas.width = PIXELS * svg.getAttribute("width");
  canvas.height = PIXELS * svg.getAttribute("height");
  const context = canvas.getContext("2d");
  context.scale(PIXELS, PIXELS);
  for (const child of svg.children) paint(child, context, svg);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

function paint(node, context, root) {
  const get = (name) => node.getAttribute(name);
  const number = (name) => Number.parseFloat(get(name) ?? "0") || 0;
  if (node.nodeName === "clipPath") return;
  context.save();
  const shift = /translate\(([\d.-]+) ([\d.-]+)\)/.exec(get("transform") ?? "");
  if (shift) context.translate(Number(shift[1]), Number(shift[2]));
  const clip = /url\("?#([\w-]+)"?\)/.exec(get("clip-path") ?? "");
  if (clip) context.clip(shape(root.querySelector(`[id="${clip[1]}"]`).firstChild));
  const opacity = get("opacity");
  if (opacity) context.globalAlpha *= Number(opacity);
  if (node.nodeName === "text") {
    context.font = `${get("font-weight") ?? ""} ${get("font-size")} ${get("font-family")}`.trim();
    context.textAlign = { middle: "center", end: "right" }[get("text-anchor")] ?? "left";
    context.fillStyle = get("fill");
    context.fillText(node.textContent, number("x"), number("y"));
  } else if (node.nodeName !== "g") {
    const path = shape(node);
    const [fill, stroke] = [get("fill"), get("stroke")];
    if (fill && fill !== "none" && node.nodeName !== "line") {
      context.fillStyle = fill;
      context.fill(path);
    }
    if (stroke && stroke !== "none") {
      context.strokeStyle = stroke;
      context.lineWidth = number("stroke-width") || 1;
      context.lineCap = get("stroke-linecap") ?? "butt";
      context.lineJoin = get("stroke-linejoin") ?? "miter";
      context.setLineDash((get("stroke-dasharray") ?? "").match(/[\d.]+/g)?.map(Number) ?? []);
      context.stroke(path);
    }
  }
  for (const child of node.children) paint(child, context, root);
  context.restore();
}

function shape(node) {
  const number = (name) => Number(node.getAttribute(name) ?? 0);
  if (node.nodeName === "path") return new Path2D(node.getAttribute("d"));
  const path = new Path2D();
  if (node.nodeName === "rect") path.rect(number("x"), number("y"), number("width"), number("height"));
  if (node.nodeName === "circle") path.arc(number("cx"), number("cy"), number("r"), 0, 2 * Math.PI);
  if (node.nodeName === "line") {
    path.moveTo(number("x1"), number("y1"));
    path.lineTo(number("x2"), number("y2"));
  }
  return path;
}

function csv(rows) {
  const cell = (value) => {
    const text = String(value ?? "");
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return rows.map((row) => `${row.map(cell).join(",")}\n`).join("");
}

function download(blob, name) {
  const link = make("a");
  link.href = URL.createObjectURL(blob);
  link.download = name.replace(/[^\w.-]+/g, "_");
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
