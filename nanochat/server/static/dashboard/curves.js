// A stage's curves in the browser: read once, then extended by what training has written since.

const MOST_POINTS = 4000; // of a curve; beyond that it is read again, thinned by the server

/** The curves of one stage of one run: Map of metric -> {steps, values}, steps ascending. */
export class Curves {
  constructor(run, stage) {
    this.address = `/runs/api/${encodeURIComponent(run)}/${encodeURIComponent(stage)}`;
    this.curves = new Map();
    this.position = { file: "", end: 0 };
    this.thinned = false;
    this.detail = null; // curves of a zoomed range, where these are thinned
  }

  /** Reads what is new; whether anything was. */
  async refresh() {
    const long = [...this.curves.values()].some((curve) => curve.steps.length > MOST_POINTS);
    const { file, end } = long ? { file: "", end: 0 } : this.position;
    const found = await json(`${this.address}?file=${encodeURIComponent(file)}&from=${end}`);
    if (found.start === 0 || found.start !== end) this.curves.clear();
    this.thinned = found.start === 0 ? found.thinned : this.thinned;
    this.position = { file: found.file, end: found.end };
    return this.#append(found.curves) || found.start === 0;
  }

  /** Reads a range of steps in full, if what is shown of it is thinned. */
  async zoom(first, last) {
    if (!this.thinned) return false;
    const range = `first=${Math.floor(first)}&last=${Math.ceil(last)}`;
    const found = await json(`${this.address}?${range}`);
    this.detail = { first, last, curves: new Map(Object.entries(found.curves).map(named)) };
    return true;
  }

  /** The metrics with a value. */
  keys() {
    return [...this.curves.keys()];
  }

  /** A metric's points over "step", "tokens" or "elapsed_s": {steps, xs, ys}. */
  points(key, axis, within = null) {
    const { detail } = this;
    const fits = within && detail && detail.first <= within[0] && detail.last >= within[1];
    const curve = (fits && detail.curves.get(key)) || this.curves.get(key);
    if (!curve) return { steps: [], xs: [], ys: [] };
    const xs = axis === "step" ? curve.steps : curve.steps.map((step) => this.at(axis, step));
    return { steps: curve.steps, xs, ys: curve.values };
  }

  /** A metric's last point on an axis; 0 if it has none. */
  last(key, axis) {
    const step = this.curves.get(key)?.steps.at(-1);
    return step === undefined ? 0 : axis === "step" ? step : this.at(axis, step);
  }

  /** A metric's value at a step, interpolated; beyond the ends it is the end's. */
  at(key, step) {
    const curve = this.curves.get(key);
    return curve ? between(curve.steps, curve.values, step) : step;
  }

  /** The step at which a metric that only grows has a value. */
  stepAt(axis, x) {
    const curve = this.curves.get(axis);
    return axis === "step" || !curve ? x : between(curve.values, curve.steps, x);
  }

  #append(found) {
    const added = Object.entries(found);
    if (!added.length) return false;
    const first = Math.min(...added.map(([, [steps]]) => steps[0] ?? Infinity));
    // Training that goes back to a checkpoint writes the steps after it again.
    for (const curve of this.curves.values()) cut(curve, first + 1);
    for (const [key, [steps, values]] of added) {
      if (!this.curves.has(key)) this.curves.set(key, { steps: [], values: [] });
      const curve = this.curves.get(key);
      cut(curve, steps[0]);
      curve.steps = curve.steps.concat(steps);
      curve.values = curve.values.concat(values);
    }
    return true;
  }
}

/** A moving average whose weights halve every few points: weight 0 is none, 0.99 the strongest. */
export function smoothed(values, weight) {
  let sum = 0;
  let total = 0;
  return values.map((value) => {
    sum = weight * sum + (1 - weight) * value;
    total = weight * total + (1 - weight); // below 1 at the start, where there is little to average
    return sum / total;
  });
}

/** The place of the value in an ascending array that is nearest to x; -1 if it is empty. */
export function nearest(xs, x) {
  const at = lowerBound(xs, x);
  if (at === 0 || at === xs.length) return Math.min(at, xs.length - 1);
  return x - xs[at - 1] < xs[at] - x ? at - 1 : at;
}

/** The JSON at an address. Throws an Error with the server's reason and its `status`. */
export async function json(address) {
  const response = await fetch(address);
  const found = await response.json();
  if (response.ok) return found;
  const reason = found?.error?.message ?? `status ${response.status}`;
  throw Object.assign(new Error(reason), { status: response.status });
}

function named([key, [steps, values]]) {
  return [key, { steps, values }];
}

function cut(curve, step) {
  const end = lowerBound(curve.steps, step);
  curve.steps = curve.steps.slice(0, end);
  curve.values = curve.values.slice(0, end);
}

/** The value at x on the line through points with ascending xs; beyond the ends, the end's. */
export function between(xs, ys, x) {
  const at = lowerBound(xs, x);
  if (at === 0 || at === xs.length) return ys[Math.min(at, xs.length - 1)] ?? x;
  const share = (x - xs[at - 1]) / (xs[at] - xs[at - 1]);
  return ys[at - 1] + share * (ys[at] - ys[at - 1]);
}

function lowerBound(xs, x) {
  let low = 0;
  let high = xs.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (xs[middle] < x) low = middle + 1;
    else high = middle;
  }
  return low;
}
