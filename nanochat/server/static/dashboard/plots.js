// The plots of a stage: which there are, and one view of x for all of them.

import { byId, place, remembered } from "./dom.js";
import { Plot } from "./plot.js";

const MAIN = {
  loss: { title: "Training loss", unit: "nats per token" },
  val_bpb: { title: "Validation", unit: "bits per byte" },
  val_loss: { title: "Validation loss", unit: "nats per token" },
  reward: { title: "Reward", unit: "mean" },
  lr_scale: { title: "Learning rate", unit: "share of its peak", zero: true, exact: true },
  grad_norm: { title: "Gradient norm", log: true },
  tokens_per_s: { title: "Speed", unit: "tokens/s", zero: true },
};
const MORE = {
  mfu: { title: "Model FLOPs utilization", share: true, zero: true },
  step_s_p50: { title: "Step time, median", unit: "seconds", zero: true },
  step_s_p99: { title: "Step time, slowest 1%", unit: "seconds", zero: true },
  data_wait_share: { title: "Waiting for data", unit: "share of the time", share: true, zero: true },
  memory_bytes: { title: "Memory", unit: "bytes", zero: true },
  skipped: { title: "Steps skipped", zero: true },
  rewinds: { title: "Returns to a checkpoint", zero: true },
  spikes: { title: "Jumps of the loss", zero: true },
};
const NEVER = new Set(["tokens", "elapsed_s"]); // they are the x axes
const COUNTS = ["skipped", "rewinds", "spikes"]; // of no interest while they are 0

/** All plots; show(stage) draws those that the stage has, of the runs that `chosen()` gives. */
export class PlotGrid {
  constructor(state, { zoom, announce, chosen }) {
    this.state = state;
    this.chosen = chosen;
    const actions = {
      zoom,
      announce,
      hover: (x) => this.shown.forEach((plot) => plot.showAt(x)),
      name: (key) => [...this.runs.map((run) => run.name), this.stage, key].join("-"),
      table: (key) => this.#table(key),
    };
    this.shown = [];
    this.plot = remembered((key) => new Plot({ key, ...metricOf(key) }, actions));
  }

  show(stage) {
    this.stage = stage;
    this.runs = this.chosen().map((run) => ({ ...run, curves: this.#curves(run) }));
    const keys = new Set(this.runs.flatMap((run) => run.curves.keys().filter((key) => isOfUse(key, run.curves))));
    const ordered = (known) => Object.keys(known).filter((key) => keys.has(key));
    const others = [...keys].filter((key) => !(key in MAIN || key in MORE)).sort();
    const main = [...ordered(MAIN), ...others];
    const more = ordered(MORE);
    byId("more").hidden = more.length === 0;
    byId("no-curves").hidden = main.length > 0;
    place(byId("plots"), main.map((key) => this.plot(key).element));
    place(byId("more-plots"), more.map((key) => this.plot(key).element));
    this.shown = [...main, ...(byId("more").open ? more : [])].map((key) => this.plot(key));
    const { axis } = this.state;
    const ends = this.runs.flatMap(({ curves }) => this.shown.map(({ metric }) => curves.last(metric.key, axis)));
    const whole = [0, Math.max(1e-9, ...ends)];
    for (const plot of this.shown) plot.update(this.#view(plot.metric.key, whole));
  }

  #curves(run) {
    return this.state.curves(JSON.stringify([run.name, this.stage]));
  }

  #view(key, whole) {
    const { axis, domain, smoothing } = this.state;
    const series = this.runs.map(({ name, color, dashed, curves }) => {
      const within = domain?.map((x) => curves.stepAt(axis, x));
      return { name, color, dashed, ...curves.points(key, axis, within) };
    });
    return { series, axis, domain: domain ?? whole, whole, smoothing };
  }

  #table(key) {
    const head = ["run", "stage", "step", "tokens", "elapsed_s", key];
    const rows = this.runs.flatMap(({ name, curves }) => {
      const { steps, ys } = curves.points(key, "step");
      return steps.map((step, i) => {
        const [tokens, elapsed] = ["tokens", "elapsed_s"].map((x) => curves.at(x, step));
        return [name, this.stage, step, Math.round(tokens), elapsed.toFixed(2), ys[i]];
      });
    });
    return [head, ...rows];
  }
}

function metricOf(key) {
  const known = MAIN[key] ?? MORE[key];
  if (known) return known;
  const words = key.replaceAll("_", " ");
  return { title: words[0].toUpperCase() + words.slice(1) };
}

/** Whether a curve shows more than a point; before the second row there is nothing but points. */
function isOfUse(key, { curves }) {
  if (NEVER.has(key)) return false;
  const { values } = curves.get(key);
  if (COUNTS.includes(key)) return values.some((value) => value > 0);
  return values.length > 1 || (curves.get("loss")?.values.length ?? 0) < 2;
}
