// The user's settings: read from storage with suspicion, shown in a dialog, kept at once.

import { byId } from "../shared/dom.js";

const KEYS = { settings: "nanochat.settings", theme: "nanochat.theme" };
export const MAX_COMPARED = 3;

const number = (least, most, whole) => (value) =>
  typeof value === "number" && value >= least && value <= most && (!whole || Number.isInteger(value));
const CHECKS = {
  temperature: number(0, 2, false),
  top_k: number(0, 100_000, true),
  max_tokens: number(1, 1_000_000, true),
  system: (value) => typeof value === "string",
  probabilities: (value) => typeof value === "boolean", // ask for tokens' probabilities
  sidebar: (value) => typeof value === "boolean", // shown beside the conversation
  compare: (value) => typeof value === "boolean", // several models answer
  seenAside: number(0, Infinity, true), // how many values set aside the user knows of
  models: (value) => Array.isArray(value) && value.every((id) => typeof id === "string"),
};

/** What the user has set; what is left out follows the server's defaults. */
export let settings = readSettings(load(KEYS.settings));

/** The known and valid ones of stored settings. */
export function readSettings(stored) {
  const given = typeof stored === "object" && stored !== null ? stored : {};
  const valid = Object.entries(CHECKS).filter(([name, fits]) => fits(given[name]));
  return Object.fromEntries(valid.map(([name]) => [name, given[name]]));
}

/** Changes some settings and keeps them. */
export function change(changes) {
  settings = readSettings({ ...settings, ...changes });
  keep(KEYS.settings, JSON.stringify(settings));
}

/** The sampling fields of a request to this model. */
export function sampling(model) {
  const { temperature, top_k, max_tokens } = { ...model?.defaults, ...settings };
  const fields = { top_k: top_k ?? 0, ...(max_tokens ? { max_tokens } : {}) };
  if (temperature !== undefined) fields.temperature = temperature;
  if (settings.probabilities !== false) Object.assign(fields, { logprobs: true, top_logprobs: 5 });
  return fields;
}

/** Makes the dialog work. defaults(): those of the model in use. */
export function setUpSettings(defaults) {
  const dialog = byId("settings");
  byId("open-settings").addEventListener("click", () => {
    show(defaults());
    dialog.showModal();
  });
  dialog.addEventListener("input", readDialog);
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close(); // a click outside the dialog
  });
  byId("defaults").addEventListener("click", () => {
    const { sidebar, compare, models, seenAside } = settings;
    settings = {};
    change({ sidebar, compare, models, seenAside });
    show(defaults());
  });
  byId("theme").addEventListener("click", switchTheme);
}

function show(defaults) {
  const now = { ...defaults, ...settings };
  byId("temperature").value = now.temperature ?? 1;
  byId("temperature-value").textContent = Number(byId("temperature").value).toFixed(2);
  byId("top-k").value = now.top_k ?? 0;
  byId("max-tokens").value = now.max_tokens ?? "";
  byId("system").value = now.system ?? "";
  byId("probabilities").checked = now.probabilities !== false;
}

function readDialog() {
  const integer = (id) => (/^\d+$/.test(byId(id).value) ? Number(byId(id).value) : undefined);
  change({
    temperature: Number(byId("temperature").value),
    top_k: integer("top-k"),
    max_tokens: integer("max-tokens"),
    system: byId("system").value,
    probabilities: byId("probabilities").checked,
  });
  byId("temperature-value").textContent = settings.temperature.toFixed(2);
}

function switchTheme() {
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  root.dataset.theme = (root.dataset.theme ?? system) === "dark" ? "light" : "dark";
  keep(KEYS.theme, root.dataset.theme);
}

function load(key) {
  try {
    return JSON.parse(localStorage.getItem(key));
  } catch {
    return null; // storage is disabled, or the value is not JSON
  }
}

function keep(key, text) {
  try {
    localStorage.setItem(key, text);
  } catch {
    // storage is full or disabled: settings last as long as the page
  }
}
