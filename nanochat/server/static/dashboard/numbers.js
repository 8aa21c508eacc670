// Numbers as text, and the round numbers of an axis.

const PREFIXES = [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]];

/** Four digits, or three and a unit prefix from ten thousand on: 0.6644, 22.4 k, 1.5 M. */
export function short(value) {
  const size = Math.abs(value);
  if (size >= 1e4) {
    const [unit, name] = PREFIXES.find(([least]) => size >= least);
    return `${trimmed((value / unit).toPrecision(3))} ${name}`;
  }
  if (size !== 0 && size < 1e-3) return value.toExponential(2);
  return Number.isInteger(value) ? String(value) : trimmed(value.toPrecision(4));
}

/** Seconds as a person reads them: 4.3s, 45s, 3m12s, 2h05m, 12d04h. */
export function duration(seconds) {
  const pair = (big, unit, small, name) => `${big}${unit}${String(small).padStart(2, "0")}${name}`;
  if (seconds > 0 && seconds < 10) return `${seconds.toFixed(1)}s`;
  const whole = Math.round(Math.max(0, seconds));
  if (whole < 60) return `${whole}s`;
  if (whole < 3600) return pair(Math.floor(whole / 60), "m", whole % 60, "s");
  if (whole < 48 * 3600) return pair(Math.floor(whole / 3600), "h", Math.floor((whole % 3600) / 60), "m");
  return pair(Math.floor(whole / 86400), "d", Math.floor((whole % 86400) / 3600), "h");
}

/** How long ago, in one unit: "12s ago", "3 days ago". */
export function ago(seconds) {
  if (seconds < 60) return `${Math.max(0, Math.round(seconds))}s ago`;
  if (seconds < 3600) return `${Math.round(seconds / 60)} min ago`;
  if (seconds < 36 * 3600) return `${Math.round(seconds / 3600)} h ago`;
  return `${Math.round(seconds / 86400)} days ago`;
}

/** Round numbers within [low, high], about `count` of them. */
export function ticks(low, high, count) {
  const rough = (high - low) / Math.max(1, count);
  if (!(rough > 0) || !Number.isFinite(rough)) return [low];
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((k) => k * power).find((size) => size >= rough * 0.999);
  const first = Math.ceil(low / step - 1e-9);
  const last = Math.floor(high / step + 1e-9);
  return Array.from({ length: Math.max(0, last - first + 1) }, (_, i) => (first + i) * step);
}

/** Round seconds within [low, high]: whole minutes and hours rather than thousands. */
export function timeTicks(low, high, count) {
  const rough = (high - low) / Math.max(1, count);
  const steps = [60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 21600, 43200, 86400];
  const step = steps.find((size) => size >= rough);
  if (rough < 30 || !step) return ticks(low, high, count);
  return ticks(low / step, high / step, Math.floor((high - low) / step)).map((k) => k * step);
}

/** Powers of ten within [low, high], with 2 and 5 between them where they are few. */
export function logTicks(low, high) {
  const decades = Math.log10(high / low);
  if (decades < 0.7) return ticks(low, high, 4);
  const steps = decades > 3 ? [1] : decades > 1.5 ? [1, 3] : [1, 2, 5];
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power += 1) {
    for (const step of steps) {
      const value = step * 10 ** power;
      if (value >= low * 0.999 && value <= high * 1.001) found.push(value);
    }
  }
  return found;
}

/** A tick's label: as many digits as tell it from its neighbor. */
export function tickLabel(value, all) {
  const size = Math.max(...all.map(Math.abs));
  const gap = all.length > 1 ? Math.abs(all[1] - all[0]) : size;
  const [unit, name] = (size >= 1e4 && PREFIXES.find(([least]) => size >= least)) || [1, ""];
  const digits = Math.min(8, Math.max(0, Math.ceil(-Math.log10(gap / unit) - 1e-9)));
  if (unit === 1 && size < 1e-3 && size > 0) return value === 0 ? "0" : value.toExponential(0);
  const text = (value / unit).toFixed(digits);
  return value === 0 ? "0" : trimmed(text) + name;
}

function trimmed(text) {
  return text.includes(".") ? text.replace(/\.?0+$/, "") : text;
}
