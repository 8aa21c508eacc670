// Results, settings and reports of the runs that are shown.

import { byId, make, place, remembered } from "./dom.js";
import { short } from "./numbers.js";

const ACCURACIES = ["accuracy", "centred accuracy"]; // they are shown as bars
const drawn = new Map(); // table -> what it shows

/** The figures that a stage recorded when it was complete, with its remarks. */
export function showResults(runs, stage) {
  const found = runs.map((run) => stageOf(run, stage)?.results.filter((r) => !ACCURACIES.includes(r.unit)) ?? []);
  const keys = [...new Set(found.flat().map((r) => `${r.name}${r.unit ? ` (${r.unit})` : ""}`))];
  const rows = keys.map((key) => [key, ...found.map((results) => {
    const result = results.find((r) => key === `${r.name}${r.unit ? ` (${r.unit})` : ""}`);
    return result ? `${short(result.value)}${result.stderr ? ` ± ${short(result.stderr)}` : ""}` : "";
  })]);
  const notes = runs.flatMap((run) => (stageOf(run, stage)?.notes ?? []).map((note) =>
    runs.length > 1 ? `${run.name}: ${note}` : note));
  byId("results").hidden = rows.length + notes.length === 0;
  table(byId("results-table"), "figure", runs, rows);
  if (changed("notes", notes)) byId("notes").replaceChildren(...notes.map((note) => make("li", "", note)));
}

/** The options of a stage; of several runs, those that differ. */
export function showSettings(runs, stage) {
  const found = runs.map((run) => stageOf(run, stage)?.settings ?? {});
  const keys = [...new Set(found.flatMap(Object.keys))];
  const all = keys.map((key) => [key, ...found.map((settings) => settings[key] ?? "")]);
  const several = runs.length > 1;
  byId("only-different").parentElement.hidden = !several;
  const differ = ([, ...values]) => new Set(values).size > 1;
  const rows = several && byId("only-different").checked
    ? all.filter((row) => differ(row) && row[0] !== "run")
    : all;
  byId("settings").hidden = all.length === 0;
  table(byId("settings-table"), "setting", runs, rows, "These runs have the same settings.");
}

const report = remembered((name) => {
  const address = `/runs/report/${encodeURIComponent(name)}`;
  const link = make("a", "", "in a tab of its own");
  link.href = address;
  link.target = "_blank";
  link.rel = "noopener";
  const fold = make("details", "fold", make("summary", "", `Report of ${name}`), make("p", "soft", link));
  fold.addEventListener("toggle", () => {
    fold.querySelector("iframe")?.remove();
    if (!fold.open) return;
    const frame = make("iframe"); // made when it is opened, so that it is up to date
    frame.title = `Report of ${name}`;
    frame.setAttribute("sandbox", "");
    frame.src = address;
    fold.append(frame);
  });
  return fold;
});

/** Each run's report, folded. */
export function showReports(runs) {
  place(byId("reports"), runs.map((run) => report(run.name)));
}

function stageOf(run, stage) {
  return run.details?.stages.find((one) => one.name === stage);
}

function table(node, head, runs, rows, without = "") {
  const heads = runs.map(({ name, color }) => [name, color]);
  if (!changed(node.id, [heads, rows])) return;
  if (!rows.length) {
    node.replaceChildren(make("p", "soft", without));
    return;
  }
  const columns = heads.map(([name, color]) => make("th", color, make("i", "swatch"), name));
  for (const column of columns) column.scope = "col";
  const first = make("th", "", head);
  first.scope = "col";
  const body = rows.map(([key, ...values]) => {
    const label = make("th", "", key);
    label.scope = "row";
    return make("tr", "", label, ...values.map((value) => make("td", "", value)));
  });
  const made = make("table", "", make("thead", "", make("tr", "", first, ...columns)), make("tbody", "", ...body));
  const scroll = make("div", "scroll", made);
  scroll.tabIndex = 0;
  scroll.setAttribute("role", "region");
  scroll.setAttribute("aria-label", head === "figure" ? "Table of results" : "Table of settings");
  node.replaceChildren(scroll);
}

/** Whether something is to be shown that is not shown yet. */
function changed(key, value) {
  const text = JSON.stringify(value);
  if (drawn.get(key) === text) return false;
  drawn.set(key, text);
  return true;
}
