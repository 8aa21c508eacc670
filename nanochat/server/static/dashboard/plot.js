// One plot of the page: its caption with the values, its tools, and what mouse and keyboard do.

import { Chart, xLabel } from "./chart.js";
import { button, make, place, remembered, say } from "./dom.js";
import { saveMenu } from "./save.js";
import { short } from "./numbers.js";

const MOST_NAMES = 4; // beside their values; of more runs, colors alone
const LEAST_DRAG = 8; // pixels; a shorter one is a click

/**
 * A figure for one metric. metric: {key, title, unit, log: at first, zero: the axis
 * begins there, share: shown in percent, exact: never smoothed}. actions: {hover(x),
 * zoom([first, last] or null), announce(text), name(key): a file's name, table(key): rows to save}.
 */
export class Plot {
  constructor(metric, actions) {
    this.metric = metric;
    this.actions = actions;
    this.log = metric.log ?? false;
    this.hovered = null;
    this.chart = new Chart();
    this.values = make("p", "values");
    this.value = remembered((name) => valueView(name));
    this.canvas = make("div", "canvas", this.chart.svg);
    this.canvas.tabIndex = 0;
    this.canvas.setAttribute("role", "group");
    const keys = "arrow keys read values, plus and minus zoom, 0 shows all";
    this.canvas.setAttribute("aria-label", `${metric.title}: ${keys}`);
    this.element = make("figure", "plot", this.#caption(), this.values, this.canvas);
    this.#listen();
    new ResizeObserver(() => this.redraw()).observe(this.canvas);
  }

  /** Takes new data and settings: {series, domain, axis, smoothing}. */
  update(view) {
    this.view = view;
    this.redraw();
  }

  redraw() {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    if (!this.view || width < 80) return; // folded away
    const series = this.view.series.filter((s) => s.xs.length);
    const { log, metric } = this;
    const smoothing = metric.exact ? 0 : this.view.smoothing;
    this.chart.draw({ ...this.view, series, width, height, log, zero: metric.zero, smoothing });
    this.showAt(this.hovered);
  }

  /** Shows the values at an x, or the last ones for null. */
  showAt(x) {
    this.hovered = x;
    if (!this.view) return;
    const found = this.chart.showAt(x);
    const { series } = this.chart;
    place(this.values, series.map((s, i) => {
      const view = this.value(s.name);
      view.node.className = `value ${s.color}${s.dashed ? " dashed" : ""}`;
      view.name.hidden = series.length === 1 || series.length > MOST_NAMES;
      view.node.title = s.name;
      say(view.number, this.#text(s.shown[found[i]]));
      return view.node;
    }));
  }

  #text(value) {
    if (value === undefined) return "";
    if (this.metric.share) return `${(100 * value).toFixed(1)}%`;
    return short(value);
  }

  #caption() {
    const { title, unit } = this.metric;
    const scale = button("log", () => {
      this.log = !this.log;
      scale.setAttribute("aria-pressed", String(this.log));
      this.redraw();
    }, { className: "tool" });
    scale.title = "Logarithmic axis";
    scale.setAttribute("aria-label", `Logarithmic axis for ${title}`);
    scale.setAttribute("aria-pressed", String(this.log));
    const widen = button("Enlarge", () => {
      widen.setAttribute("aria-pressed", String(this.element.classList.toggle("wide")));
    }, { className: "tool", symbol: "widen" });
    widen.setAttribute("aria-pressed", "false");
    widen.setAttribute("aria-label", `Enlarge ${title}`);
    const menu = saveMenu({
      title,
      name: () => this.actions.name(this.metric.key),
      picture: () => ({
        svg: this.chart.svg,
        heading: unit ? `${title} (${unit})` : title,
        legend: this.chart.series,
      }),
      table: () => this.actions.table(this.metric.key),
    });
    const heading = make("span", "title", make("b", "", title), make("span", "unit", unit ?? ""));
    return make("figcaption", "", heading, make("span", "tools", scale, widen, menu));
  }

  #listen() {
    const { canvas, actions, chart } = this;
    let dragged = null;
    const at = (event) => event.clientX - canvas.getBoundingClientRect().left;
    canvas.addEventListener("pointerdown", (event) => {
      if (event.pointerType !== "mouse" || event.button !== 0) return;
      dragged = at(event);
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!this.view) return;
      if (dragged !== null) chart.select([dragged, at(event)]);
      actions.hover(chart.invert(at(event)));
    });
    canvas.addEventListener("pointerup", (event) => {
      if (dragged === null) return;
      const ends = [dragged, at(event)].sort((a, b) => a - b);
      dragged = null;
      chart.select(null);
      if (ends[1] - ends[0] >= LEAST_DRAG) actions.zoom(ends.map((end) => chart.invert(end)));
    });
    canvas.addEventListener("pointercancel", () => {
      dragged = null;
      chart.select(null);
    });
    canvas.addEventListener("pointerleave", () => actions.hover(null));
    canvas.addEventListener("blur", () => actions.hover(null));
    canvas.addEventListener("dblclick", () => actions.zoom(null));
    canvas.addEventListener("keydown", (event) => this.#press(event));
  }

  #press(event) {
    const first = this.chart.series[0];
    if (!first || event.ctrlKey || event.metaKey || event.altKey) return;
    const { domain } = this.chart;
    const inside = first.xs.filter((x) => x >= domain[0] && x <= domain[1]);
    const moves = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -1e9, End: 1e9 };
    if (event.key in moves) {
      const here = this.hovered === null ? inside.length : inside.findLastIndex((x) => x <= this.hovered);
      const next = Math.min(inside.length - 1, Math.max(0, here + moves[event.key]));
      this.actions.hover(inside[next] ?? null);
      this.actions.announce(`${xLabel(this.chart.axis, inside[next] ?? 0)}: ${this.#spoken()}`);
    } else if ("+-=".includes(event.key)) {
      this.actions.zoom(scaled(domain, this.hovered, event.key === "-" ? 2 : 0.5, this.view.whole));
    } else if (event.key === "0" || event.key === "Escape") {
      this.actions.zoom(null);
    } else return;
    event.preventDefault();
  }

  #spoken() {
    return [...this.values.children].map((node) => node.textContent).join(", ");
  }
}

/** A domain made shorter or longer around x, or around its middle; null if that is the whole. */
function scaled([low, high], x, factor, whole) {
  const center = x ?? (low + high) / 2;
  const first = Math.max(whole[0], center - (center - low) * factor);
  const last = Math.min(whole[1], center + (high - center) * factor);
  return first <= whole[0] && last >= whole[1] ? null : [first, last];
}

function valueView(name) {
  const label = make("span", "run-name", `${name} `);
  const number = make("span", "number");
  return { node: make("span", "value", make("i", "swatch"), label, number), name: label, number };
}
