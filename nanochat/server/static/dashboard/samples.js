// How the answer to the same prompt changes over the training.

import { byId, button, make, place, remembered, say } from "./dom.js";

let latest = [[], null];
let shownPrompt = null;
let drawn = "";

const tab = remembered((prompt) => button(prompt || "(no prompt)", () => {
  shownPrompt = prompt;
  showSamples(...latest);
}, { className: "prompt" }));

/** Shows what the runs wrote in a stage, one prompt at a time. */
export function showSamples(runs, stage) {
  latest = [runs, stage];
  const entries = runs.flatMap((run) => samplesOf(run, stage).map((sample) => ({ ...sample, run })));
  const prompts = [...new Set(entries.map((entry) => entry.prompt))];
  byId("samples").hidden = prompts.length === 0;
  const prompt = prompts.includes(shownPrompt) ? shownPrompt : prompts[0];
  place(byId("prompts"), prompts.map((text) => {
    tab(text).setAttribute("aria-pressed", String(text === prompt));
    return tab(text);
  }));
  const shown = entries.filter((entry) => entry.prompt === prompt);
  const once = new Set(shown.map((entry) => entry.step)).size <= 1;
  say(byId("samples-note"), once
    ? "Written at the end of the stage; --sample-every 100 keeps answers along the way, too."
    : "Newest first; what differs from the answer before stands out.");
  const key = JSON.stringify([shown.map(({ run, ...entry }) => [entry, run.name, run.color])]);
  if (key === drawn) return; // a selection in the text stays
  drawn = key;
  place(byId("timeline"), runs.filter((run) => shown.some((entry) => entry.run === run))
    .map((run) => column(run, shown.filter((entry) => entry.run === run), runs.length > 1)));
}

/** The samples of the model that a stage trains, also those that evaluations wrote. */
function samplesOf(run, stage) {
  const series = run.stages.find((one) => one.name === stage)?.series;
  const all = run.details?.stages.flatMap((one) => one.samples) ?? [];
  return all.filter((sample) => sample.series === series);
}

function column(run, entries, named) {
  const rows = entries.map((entry, i) => {
    const before = entries[i - 1];
    const follows = before && before.step !== null && before.turns.length === entry.turns.length;
    const texts = entry.turns.map((turn, at) =>
      turnView(turn, follows ? before.turns[at].text : null));
    return make("li", "", make("span", "when", when(entry)), make("div", "turns", ...texts));
  });
  const list = make("ol", "entries", ...rows.reverse());
  const heading = make("h3", "", make("i", "swatch"), make("span", "run-name", run.name));
  return make("div", `column ${run.color}`, ...(named ? [heading] : []), list);
}

function when({ step, group }) {
  return [step === null ? "" : `step ${step.toLocaleString("en-US")}`, group].filter(Boolean).join(" · ") || "at the end";
}

/** A text, whose words that differ from those of the text before are marked. */
function turnView({ role, text }, before) {
  const view = make("p", `turn ${role === "user" ? "user" : "assistant"}`);
  if (before === null) {
    view.append(text.trimStart() || "(nothing)");
    return view;
  }
  const [old, words] = [before, text].map((t) => t.trimStart().split(/(?<=\s)/));
  const differs = (word, i) => word !== old[i];
  const first = words.findIndex(differs);
  if (first < 0) view.append(words.join("") || "(nothing)");
  else view.append(words.slice(0, first).join(""), make("mark", "", words.slice(first).join("")));
  return view;
}
