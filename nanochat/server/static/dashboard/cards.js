// One card for each run that is shown: how far it is, how long it will take, its latest figures.

import { byId, draw, make, place, remembered, say } from "./dom.js";
import { ago, duration, short } from "./numbers.js";
import { shortName } from "./tabs.js";

const STATES = { running: "running", done: "done", stopped: "not finished" };
const FIGURES = [
  ["parameters", "parameters"],
  ["loss", "loss"],
  ["val_bpb", "bits per byte"],
  ["val_loss", "validation loss"],
  ["reward", "reward"],
  ["accuracy", "accuracy"],
  ["tokens", "tokens"],
  ["tokens_per_s", "tokens/s"],
];

const card = remembered((name) => {
  const parts = {
    state: make("span", "state"),
    stages: make("ol", "pipeline"),
    progress: make("p", "progress"),
    figures: make("dl", "figures"),
    stage: remembered(() => stageView()),
    figure: remembered((label) => figureView(label)),
  };
  const heading = make("h2", "", make("i", "swatch"), make("span", "run-name", name));
  const head = make("div", "card-head", heading, parts.state);
  parts.node = make("article", "card", head, parts.stages, parts.progress, parts.figures);
  return parts;
});

/** Shows the runs; now: the server's time in seconds. */
export function showCards(runs, now) {
  place(byId("cards"), runs.map((run) => {
    const parts = card(run.name);
    parts.node.className = `card ${run.color}${run.dashed ? " dashed" : ""}`;
    parts.state.className = `state ${run.state}`;
    say(parts.state, STATES[run.state]);
    place(parts.stages, run.stages.map((stage) => pipelinePart(stage, parts.stage(stage.name))));
    const current = currentOf(run);
    say(parts.progress, progress(run, current, now));
    place(parts.figures, figures(run, current).map(([label, text]) => {
      const view = parts.figure(label);
      say(view.value, text);
      return view.node;
    }));
    return parts.node;
  }));
}

/** The stage that runs, else the training stage that was changed last. */
function currentOf(run) {
  const trained = run.stages.filter((stage) => stage.step !== null);
  const running = trained.find((stage) => stage.state === "running");
  return running ?? trained.reduce((a, b) => (a && a.modified >= b.modified ? a : b), null);
}

function pipelinePart(stage, view) {
  const share = stage.state === "done" ? 1 : stage.steps ? stage.step / stage.steps : 0.5;
  const percent = `${Math.round(100 * Math.min(1, share))}%`;
  view.node.className = `${stage.series} ${stage.state}`;
  view.fill.setAttribute("width", percent);
  const state = stage.state === "running" && stage.steps ? percent : STATES[stage.state];
  view.node.title = `${stage.title}: ${state}`;
  say(view.name, stage.step === null ? "" : shortName(stage.name));
  say(view.hidden, `${stage.title}: ${state}`);
  return view.node;
}

function stageView() {
  const fill = draw("rect", { height: 6, rx: 3, class: "fill" });
  const bar = draw("svg", { class: "bar", "aria-hidden": "true" }, draw("rect", { width: "100%", height: 6, rx: 3, class: "rail" }), fill);
  const name = make("span", "stage-name");
  name.setAttribute("aria-hidden", "true");
  const hidden = make("span", "visually-hidden");
  return { node: make("li", "", bar, name, hidden), fill, name, hidden };
}

function progress(run, stage, now) {
  if (!stage) return `changed ${ago(now - run.modified)}`;
  const total = stage.steps ? ` of ${stage.steps.toLocaleString("en-US")}` : "";
  const parts = [`${stage.title}: step ${stage.step.toLocaleString("en-US")}${total}`];
  const left = stage.state === "running" ? secondsLeft(stage, now) : null;
  if (left !== null) parts.push(left > 0 ? `about ${duration(left)} left` : "nearly done");
  else if (stage.last.elapsed_s) parts.push(`trained ${duration(stage.last.elapsed_s)}`);
  parts.push(`${stage.state === "done" ? "finished" : "last row"} ${ago(now - stage.modified)}`);
  return parts.join(" · ");
}

/** Seconds until the last step at the current speed; evaluations are not counted. */
function secondsLeft({ step, steps, last, tokens_per_s: mean, modified }, now) {
  const speed = mean ?? last.tokens_per_s;
  if (!steps || !step || !(speed > 0) || !last.tokens) return null;
  const tokens = (steps / step - 1) * last.tokens;
  return tokens / speed - (now - modified);
}

function figures(run, stage) {
  const settings = run.details?.stages.find((one) => one.settings.parameters)?.settings;
  const known = { parameters: settings?.parameters, accuracy: meanAccuracy(run), ...stage?.last };
  if (known.val_bpb === undefined) known.val_bpb = run.stages.findLast((s) => s.last.val_bpb)?.last.val_bpb;
  return FIGURES.filter(([key]) => known[key] !== undefined).map(([key, label]) => {
    const value = known[key];
    if (key === "parameters") return [label, short(Number(String(value).replaceAll(",", "")))];
    if (key === "accuracy") return [label, `${(100 * value).toFixed(1)}%`];
    return [label, short(value)];
  });
}

/** The mean over the chat tasks that the run's last evaluated stage was measured on. */
function meanAccuracy(run) {
  const found = (run.details?.stages ?? []).flatMap((one) => one.results.filter((r) => r.unit === "accuracy"));
  const last = ["rl", "sft", "mid", "base"].find((series) => found.some((r) => r.series === series));
  const values = found.filter((r) => r.series === last).map((r) => r.value);
  return values.length ? values.reduce((a, b) => a + b, 0) / values.length : undefined;
}

function figureView(label) {
  const value = make("dd");
  return { node: make("div", "", make("dt", "", label), value), value };
}
