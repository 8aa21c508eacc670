// Curves over a common x axis as one SVG: scales, axes, lines, and a crosshair.

import { between, nearest, smoothed } from "./curves.js";
import { draw } from "./dom.js";
import { duration, logTicks, short, tickLabel, ticks, timeTicks } from "./numbers.js";

const LEFT = 50;
const RIGHT = 12;
const TOP = 8;
const BOTTOM = 26;
const DOT = 4; // pixels of a line or dot at the border that may stand out of the area
const LEAST_SMOOTHED = 12; // points; fewer are measurements of their own, such as validations
const FEW_POINTS = 40; // so few are shown as dots as well
const AXIS_NAMES = { step: "step", tokens: "tokens", elapsed_s: "training time" };
let charts = 0;

/** How an x value is shown. */
export function xLabel(axis, x) {
  if (axis === "elapsed_s") return duration(x);
  return axis === "step" ? `step ${Math.round(x).toLocaleString("en-US")}` : `${short(x)} tokens`;
}

/** A chart in an svg element; `draw` it as often as its data or its size change. */
export class Chart {
  constructor() {
    const clip = `plot-area-${(charts += 1)}`;
    this.area = draw("rect", { x: LEFT - DOT, y: 0 });
    this.grid = draw("g", { class: "axes" });
    this.lines = draw("g", { "clip-path": `url(#${clip})` });
    this.band = draw("rect", { class: "band", y: TOP });
    this.cross = draw("g", { class: "cross" });
    this.svg = draw(
      "svg",
      { class: "chart", "aria-hidden": "true" },
      draw("clipPath", { id: clip }, this.area),
      this.grid,
      this.lines,
      this.band,
      this.cross,
    );
    this.paths = new Map();
    this.series = [];
    this.select(null);
  }

  /**
   * series: [{name, color, dashed, xs, ys}], xs ascending; color: a class that sets --color.
   * domain: the first and last x; axis: "step", "tokens" or "elapsed_s".
   */
  draw({ series, width, height, domain, axis, log, zero, smoothing }) {
    this.axis = axis;
    this.size = { width, height };
    this.series = series.map((s) => {
      const noisy = smoothing > 0 && s.ys.length >= LEAST_SMOOTHED;
      return { ...s, noisy, shown: noisy ? smoothed(s.ys, smoothing) : s.ys };
    });
    this.domain = domain;
    const ys = this.series.flatMap((s) => [...visible(s.xs, s.ys, domain), ...visible(s.xs, s.shown, domain)]);
    this.log = log && ys.some((y) => y > 0);
    this.range = this.#range(ys, zero);
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.svg.setAttribute("width", width);
    this.svg.setAttribute("height", height);
    this.area.setAttribute("height", height - BOTTOM + DOT);
    this.band.setAttribute("height", height - BOTTOM - TOP);
    this.area.setAttribute("width", width - LEFT - RIGHT + 2 * DOT);
    this.#drawAxes();
    this.#drawLines();
  }

  x(value) {
    const [low, high] = this.domain;
    return LEFT + ((value - low) / (high - low)) * (this.size.width - LEFT - RIGHT);
  }

  y(value) {
    const [low, high] = this.range;
    const change = this.log ? Math.log : Number;
    const share = (change(value) - change(low)) / (change(high) - change(low));
    return this.size.height - BOTTOM - share * (this.size.height - TOP - BOTTOM);
  }

  /** The x value under a pixel, within the domain. */
  invert(pixel) {
    const [low, high] = this.domain;
    const share = (pixel - LEFT) / (this.size.width - LEFT - RIGHT);
    return low + Math.min(1, Math.max(0, share)) * (high - low);
  }

  /** Shows the crosshair at an x value, or hides it; the index of each series' point there. */
  showAt(x) {
    this.cross.replaceChildren();
    if (x === null || !this.size || x < this.domain[0] || x > this.domain[1]) {
      return this.series.map((s) => s.xs.length - 1);
    }
    const { width, height } = this.size;
    const at = this.x(x).toFixed(1);
    this.cross.append(draw("line", { x1: at, x2: at, y1: TOP, y2: height - BOTTOM }));
    const found = this.series.map((s) => nearest(s.xs, x));
    this.series.forEach((s, i) => {
      const [px, py] = [this.x(s.xs[found[i]]), this.y(s.shown[found[i]])];
      if (found[i] < 0 || !Number.isFinite(py) || px < LEFT || px > width) return;
      this.cross.append(draw("circle", { class: `dot ${s.color}`, cx: px, cy: py, r: 4 }));
    });
    const end = at > width / 2 ? "end" : "start";
    const shift = end === "end" ? -6 : 6;
    const place = { x: Number(at) + shift, y: TOP + 10, "text-anchor": end };
    this.cross.append(draw("text", place, xLabel(this.axis, x)));
    return found;
  }

  /** Marks a stretch of pixels, or none. */
  select(pixels) {
    const [start, end] = pixels ? [Math.min(...pixels), Math.max(...pixels)] : [0, 0];
    this.band.setAttribute("x", start);
    this.band.setAttribute("width", end - start);
  }

  #range(ys, zero) {
    const used = this.log ? ys.filter((y) => y > 0) : ys;
    let [low, high] = extent(used);
    if (this.log) {
      const room = Math.max((high / low) ** 0.05, 1.02);
      return [low / room, high * room];
    }
    if (zero) low = Math.min(0, low);
    const room = (high - low) * 0.06 || Math.abs(high) * 0.05 || 1;
    return [zero && low === 0 ? 0 : low - room, high + room];
  }

  #drawAxes() {
    const { width, height } = this.size;
    const bottom = height - BOTTOM;
    const marks = [];
    const rows = this.log ? logTicks(...this.range) : ticks(...this.range, height / 50);
    for (const value of rows) {
      const y = this.y(value).toFixed(1);
      marks.push(draw("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y, y2: y }));
      const label = this.log ? short(value) : tickLabel(value, rows);
      marks.push(draw("text", { x: LEFT - 8, y: Number(y) + 4, "text-anchor": "end" }, label));
    }
    const isTime = this.axis === "elapsed_s";
    const count = (width - LEFT) / 75;
    const columns = isTime ? timeTicks(...this.domain, count) : ticks(...this.domain, count);
    const named = width - RIGHT - 6.2 * AXIS_NAMES[this.axis].length;
    for (const value of columns) {
      const label = isTime ? duration(value) : tickLabel(value, columns);
      const x = this.x(value);
      marks.push(draw("line", { class: "grid", x1: x, x2: x, y1: bottom, y2: bottom + 4 }));
      if (x + 4 * label.length > named) continue; // the axis' name stands there
      marks.push(draw("text", { x, y: bottom + 17, "text-anchor": "middle" }, label));
    }
    const place = { class: "axis-name", x: width - RIGHT, y: bottom + 17, "text-anchor": "end" };
    marks.push(draw("text", place, AXIS_NAMES[this.axis]));
    this.grid.replaceChildren(...marks);
  }

  #drawLines() {
    const kept = new Set();
    for (const s of this.series) {
      const line = this.#path(`${s.name} line`, `line ${s.color}${s.dashed ? " dashed" : ""}`);
      line.setAttribute("d", this.#outline(s.xs, s.shown));
      kept.add(line);
      if (s.noisy) {
        const raw = this.#path(`${s.name} raw`, `line raw ${s.color}`);
        raw.setAttribute("d", this.#outline(s.xs, s.ys));
        kept.add(raw);
      }
      const few = visible(s.xs, s.ys, this.domain).length <= FEW_POINTS;
      const dots = this.#path(`${s.name} dots`, `dots ${s.color}`);
      dots.setAttribute("d", few ? this.#dots(s) : "");
      kept.add(dots);
    }
    for (const [key, path] of this.paths) {
      if (kept.has(path)) continue;
      path.remove();
      this.paths.delete(key);
    }
  }

  #path(key, kind) {
    if (!this.paths.has(key)) {
      this.paths.set(key, draw("path"));
      this.lines.append(this.paths.get(key));
    }
    const path = this.paths.get(key);
    path.setAttribute("class", kind);
    return path;
  }

  #outline(xs, ys) {
    const [from, to] = [nearest(xs, this.domain[0]) - 1, nearest(xs, this.domain[1]) + 1];
    let outline = "";
    let pen = "M";
    for (let i = Math.max(0, from); i <= Math.min(to, xs.length - 1); i += 1) {
      const y = this.y(ys[i]);
      if (!Number.isFinite(y)) {
        pen = "M"; // a logarithmic axis has no place for it
        continue;
      }
      outline += `${pen}${this.x(xs[i]).toFixed(1)} ${y.toFixed(1)}`;
      pen = "L";
    }
    return outline;
  }

  #dots({ xs, shown }) {
    // A line of no length with round ends is a dot.
    return xs.map((x, i) => [this.x(x), this.y(shown[i])])
      .filter(([, y]) => Number.isFinite(y))
      .map(([x, y]) => `M${x.toFixed(1)} ${y.toFixed(1)}h0`)
      .join("");
  }
}

/** The values within a domain, and those where the line enters and leaves it. */
function visible(xs, ys, [low, high]) {
  const inside = ys.filter((_, i) => xs[i] >= low && xs[i] <= high);
  const ends = [low, high].filter((x) => x > xs[0] && x < xs.at(-1));
  return [...inside, ...ends.map((x) => between(xs, ys, x))];
}

function extent(values) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return low <= high ? [low, high] : [0, 1];
}
