// Accuracies as bars with standard errors: of a run's stages, or of several runs.

import { byId, draw, make, place } from "./dom.js";
import { saveMenu } from "./save.js";
import { shortName, tabs } from "./tabs.js";

const UNITS = { accuracy: "Accuracy", "centred accuracy": "Centered accuracy" };
const SERIES = ["base", "mid", "sft", "rl", "other"];
const BAR = 9;
const GAP = 3;
const NARROW = 560; // pixels; below, the names stand above the bars

let shownSeries = null;
let latest = [];
let drawn = "";
const seriesTabs = tabs((series) => {
  shownSeries = series;
  showBars(latest);
});

new ResizeObserver(() => showBars(latest)).observe(byId("bars"));

/** Shows the accuracies that the runs have recorded. */
export function showBars(runs) {
  latest = runs;
  const all = runs.flatMap((run) => resultsOf(run));
  byId("accuracy").hidden = all.length === 0;
  const series = SERIES.filter((name) => all.some((result) => result.series === name));
  const several = runs.length > 1;
  const current = series.includes(shownSeries) ? shownSeries : series.at(-1);
  seriesTabs(byId("accuracy-stages"), several ? series : [], current);
  const width = byId("bars").clientWidth;
  const units = Object.keys(UNITS).filter((unit) => all.some((result) => result.unit === unit));
  const shown = units.map((unit) => {
    const groups = several ? ofRuns(runs, unit, current) : ofStages(runs[0], unit);
    return { unit, groups };
  });
  const key = JSON.stringify([width, shown]);
  if (!width || key === drawn) return; // a redraw would close an open menu
  drawn = key;
  place(byId("bars"), shown.filter(({ groups }) => groups.length).map(figure));
}

function resultsOf(run) {
  const stages = run.details?.stages ?? [];
  return stages.flatMap((stage) => stage.results.filter((result) => result.unit in UNITS));
}

/** [{name, bars: [{label, color, value, stderr, n}]}]: each task with a bar for each stage. */
function ofStages(run, unit) {
  return grouped(resultsOf(run).filter((result) => result.unit === unit), (result) => ({
    label: shortName(result.series),
    color: result.series,
  }));
}

function ofRuns(runs, unit, series) {
  const results = runs.flatMap((run) => resultsOf(run)
    .filter((result) => result.unit === unit && result.series === series)
    .map((result) => ({ ...result, run })));
  return grouped(results, ({ run }) => ({ label: run.name, color: run.color }));
}

function grouped(results, look) {
  const groups = new Map();
  for (const result of results) {
    if (!groups.has(result.name)) groups.set(result.name, { name: result.name, bars: [] });
    const { value, stderr, n } = result;
    groups.get(result.name).bars.push({ ...look(result), value, stderr, n });
  }
  return [...groups.values()];
}

function figure({ unit, groups }) {
  const legend = [...new Map(groups.flatMap(({ bars }) => bars.map((bar) => [bar.label, bar])))]
    .map(([name, { color }]) => ({ name, color }));
  const svg = barChart(groups, byId("bars").clientWidth - 34);
  const keys = legend.map(({ name, color }) => make("span", `value ${color}`, make("i", "swatch"), name));
  const menu = saveMenu({
    title: UNITS[unit],
    name: () => [...latest.map((run) => run.name), unit].join("-"),
    picture: () => ({ svg, heading: UNITS[unit], legend }),
    table: () => table(groups, unit),
  });
  const caption = make("figcaption", "", make("span", "title", make("b", "", UNITS[unit]), make("span", "unit", "± one standard error")), make("span", "tools", menu));
  return make("figure", "plot bars", caption, make("p", "values", ...keys), svg, described(groups));
}

/** The same for screen readers. */
function described(groups) {
  const rows = groups.flatMap(({ name, bars }) =>
    bars.map((bar) => make("li", "", `${name}, ${bar.label}: ${percent(bar)}`)));
  return make("ul", "visually-hidden", ...rows);
}

function barChart(groups, width) {
  const narrow = width < NARROW;
  const left = narrow ? 0 : 210;
  const span = width - left - 86;
  const low = Math.min(0, ...groups.flatMap(({ bars }) => bars.map((bar) => bar.value)));
  const x = (value) => left + ((Math.min(1, value) - low) / (1 - low)) * span;
  const marks = [];
  let y = 6;
  for (const { name, bars } of groups) {
    const height = bars.length * (BAR + GAP) - GAP;
    const label = narrow ? { x: 0, y: y + 10 } : { x: left - 12, y: y + height / 2 + 4, "text-anchor": "end" };
    marks.push(draw("text", { ...label, class: "name" }, shortened(name.replaceAll("_", " "), narrow ? 48 : 32)));
    if (narrow) y += 16;
    for (const bar of bars) {
      marks.push(...barMarks(bar, x, y));
      y += BAR + GAP;
    }
    y += 10;
  }
  const axis = [0, 0.25, 0.5, 0.75, 1].flatMap((value) => [
    draw("line", { class: "grid", x1: x(value), x2: x(value), y1: 0, y2: y }),
    draw("text", { x: x(value), y: y + 14, "text-anchor": "middle" }, `${100 * value}%`),
  ]);
  const size = { viewBox: `0 0 ${width} ${y + 20}`, width, height: y + 20 };
  return draw("svg", { class: "chart", "aria-hidden": "true", ...size }, ...axis, ...marks);
}

function barMarks(bar, x, y) {
  const [start, end] = [x(0), x(bar.value)].sort((a, b) => a - b);
  const middle = y + BAR / 2;
  const box = { class: `fill ${bar.color}`, x: start, y, width: Math.max(1, end - start), height: BAR, rx: 1.5 };
  const marks = [draw("rect", box)];
  let after = end;
  if (bar.stderr) {
    const [x1, x2] = [x(bar.value - bar.stderr), x(bar.value + bar.stderr)];
    marks.push(draw("line", { class: "whisker", x1, x2, y1: middle, y2: middle }));
    after = Math.max(after, x2);
  }
  marks.push(draw("text", { x: after + 6, y: middle + 4 }, percent(bar)));
  return marks;
}

function percent({ value, stderr }) {
  return `${(100 * value).toFixed(1)}%${stderr ? ` ± ${(100 * stderr).toFixed(1)}` : ""}`;
}

function table(groups, unit) {
  const rows = groups.flatMap(({ name, bars }) =>
    bars.map((bar) => [name, bar.label, unit, bar.value, bar.stderr, bar.n]));
  return [["task", "model", "unit", "value", "stderr", "items"], ...rows];
}

function shortened(text, most) {
  return text.length <= most ? text : `${text.slice(0, most - 1)}…`;
}
