// The runs page: which runs and stage are shown, and asking the server for what is new.

import { showBars } from "./bars.js";
import { showCards } from "./cards.js";
import { Curves, json } from "./curves.js";
import { byId, remembered, say } from "./dom.js";
import { useKey } from "./key.js";
import { showList } from "./list.js";
import { PlotGrid } from "./plots.js";
import { showSamples } from "./samples.js";
import { showReports, showResults, showSettings } from "./tables.js";
import { showStages } from "./tabs.js";

const COLORS = 6; // the palette in runs.css; further runs are dashed
const LIVE_MS = 2000;
const IDLE_MS = 5000; // a run may start at any time

const state = {
  runs: [], // as the server lists them
  selected: [], // names, in the order in which they were chosen
  colors: new Map(), // run -> number, kept while the page is open
  stage: null, // null: the one that is running, or else the first
  axis: "step",
  smoothing: 0,
  domain: null, // of x, in the axis' unit
  details: new Map(), // run -> {version, found}
  curves: remembered((key) => new Curves(...JSON.parse(key))),
};
const seen = new Map(); // run and stage -> when what was read of it was changed
const grid = new PlotGrid(state, { zoom, announce: (text) => say(byId("announcer"), text), chosen });
let timer = 0;
let asking = null;

/** The runs that are shown, with what the server lists of them, and a color each. */
function chosen() {
  return state.selected
    .map((name) => state.runs.find((run) => run.name === name))
    .filter(Boolean)
    .map((run) => ({ ...run, ...colorOf(run.name), details: state.details.get(run.name)?.found }));
}

function colorOf(name) {
  if (!state.colors.has(name)) {
    const taken = state.selected.filter((n) => n !== name).map((n) => state.colors.get(n));
    const all = Array.from({ length: taken.length + 1 }, (_, i) => i);
    state.colors.set(name, all.find((i) => !taken.includes(i)));
  }
  const number = state.colors.get(name);
  return { color: `c${number % COLORS}`, dashed: number >= COLORS };
}

/** The stage whose curves are shown: the chosen one, else what runs, else the first with curves. */
function currentStage() {
  const trained = chosen().flatMap((run) => run.stages.filter((stage) => stage.step !== null));
  if (trained.some((stage) => stage.name === state.stage)) return state.stage;
  return (trained.find((stage) => stage.state === "running") ?? trained[0])?.name ?? null;
}

function render() {
  const runs = chosen();
  const stage = currentStage();
  byId("side").hidden = byId("content").hidden = state.runs.length === 0;
  byId("empty").hidden = state.runs.length > 0 || !state.folder;
  byId("chat").hidden = !state.chat;
  say(byId("folder"), state.folder ?? "");
  showList(state, toggle);
  showCards(runs, clock());
  showStages(runs, stage, chooseStage);
  grid.show(stage);
  showBars(runs);
  showSamples(runs, stage);
  showResults(runs, stage);
  showSettings(runs, stage);
  showReports(runs);
  byId("reset").hidden = state.domain === null;
}

/** The server's time now, in seconds since 1970; its clock may differ from the browser's. */
function clock() {
  return state.now + (performance.now() - state.asked) / 1000;
}

function toggle(name, only = false) {
  const on = !only && state.selected.includes(name);
  state.selected = only ? [name] : state.selected.filter((other) => other !== name);
  if (!on && !only) state.selected.push(name);
  settle();
}

function chooseStage(name) {
  state.stage = name;
  state.domain = null;
  settle();
}

async function zoom(domain) {
  state.domain = domain;
  render();
  if (domain === null) return;
  const stage = currentStage();
  const read = chosen().map(async (run) => {
    const curves = state.curves(JSON.stringify([run.name, stage]));
    return curves.zoom(...domain.map((x) => curves.stepAt(state.axis, x)));
  });
  if ((await Promise.allSettled(read)).some((done) => done.value)) render();
}

/** After a choice: show what is there, keep it in the address, and read what is missing. */
function settle() {
  const query = new URLSearchParams(state.selected.map((name) => ["run", name]));
  if (state.stage) query.set("stage", state.stage);
  if (state.axis !== "step") query.set("x", state.axis);
  if (state.smoothing) query.set("smooth", state.smoothing);
  history.replaceState(null, "", `?${query}`);
  render();
  refresh();
}

/** Asks for what is new. Calls that overlap share one answer, and one more follows. */
async function refresh() {
  clearTimeout(timer);
  if (asking) {
    asking.again = true;
    return;
  }
  asking = { again: false };
  try {
    await ask();
    byId("trouble").hidden = byId("key").hidden = true;
  } catch (error) {
    const locked = error.status === 401;
    byId("key").hidden = !locked;
    byId("trouble").hidden = locked;
    say(byId("trouble"), "The server does not answer. Trying again…");
  }
  const { again } = asking;
  asking = null;
  if (again) refresh();
  else if (!document.hidden) {
    const live = state.runs.some((run) => run.state === "running");
    timer = setTimeout(refresh, live ? LIVE_MS : IDLE_MS);
  }
}

async function ask() {
  const found = await json("/runs/api");
  Object.assign(state, found, { asked: performance.now() });
  // A run of the address that is still to start stays chosen.
  if (!chosen().length && found.runs.length) state.selected = [found.runs[0].name];
  render();
  const stage = currentStage();
  await Promise.allSettled(chosen().flatMap((run) => [readDetails(run), readCurves(run, stage)]));
  render();
}

async function readDetails({ name, version }) {
  if (state.details.get(name)?.version === version) return;
  const found = await json(`/runs/api/${encodeURIComponent(name)}`);
  state.details.set(name, { version, found });
}

async function readCurves(run, name) {
  const stage = run.stages.find((one) => one.name === name);
  if (!stage || stage.step === null) return;
  const key = JSON.stringify([run.name, name]);
  if (seen.get(key) === stage.modified) return;
  await state.curves(key).refresh();
  seen.set(key, stage.modified);
}

function start() {
  const query = new URLSearchParams(location.search);
  state.selected = [...new Set(query.getAll("run"))];
  state.stage = query.get("stage");
  state.smoothing = Math.min(0.98, Math.max(0, Number(query.get("smooth")) || 0));
  const axis = byId("axis");
  axis.value = query.get("x") ?? "step";
  if (!axis.value) axis.value = "step";
  state.axis = axis.value;
  byId("smoothing").value = state.smoothing;
  axis.addEventListener("change", () => {
    state.axis = axis.value;
    state.domain = null;
    settle();
  });
  byId("smoothing").addEventListener("input", () => {
    state.smoothing = Number(byId("smoothing").value);
    settle();
  });
  byId("reset").addEventListener("click", () => zoom(null));
  byId("more").addEventListener("toggle", render);
  byId("filter").addEventListener("input", render);
  byId("only-different").addEventListener("change", render);
  byId("theme").addEventListener("click", switchTheme);
  document.addEventListener("visibilitychange", () => !document.hidden && refresh());
  useKey(refresh);
  refresh();
}

function switchTheme() {
  const { dataset } = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  dataset.theme = (dataset.theme ?? (dark ? "dark" : "light")) === "dark" ? "light" : "dark";
  try {
    localStorage.setItem("nanochat.theme", dataset.theme);
  } catch {
    // storage is disabled: the choice lasts until the page is closed
  }
}

start();
