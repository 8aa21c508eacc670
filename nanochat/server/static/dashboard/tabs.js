// Choices of one of several: buttons of which one is pressed.

import { byId, button, make, place, remembered } from "./dom.js";

const NAMES = {
  base_train: "Base", mid_train: "Mid", chat_sft: "SFT", chat_rl: "RL",
  tok: "Tokenizer", base: "Base", mid: "Mid", sft: "SFT", rl: "RL", other: "Other",
};
const stageTab = tabs((name) => chooseStage(name));
let chooseStage = () => {};

/** Shows the stages with curves of any of the runs; `choose(name)` is called for another one. */
export function showStages(runs, current, choose) {
  chooseStage = choose;
  const trained = runs.flatMap((run) => run.stages.filter((stage) => stage.step !== null));
  const names = [...new Set(trained.map((stage) => stage.name))];
  stageTab(byId("stages"), names, current, (name) =>
    trained.some((stage) => stage.name === name && stage.state === "running"));
}

/** The short name of a stage or of a series of results. */
export function shortName(name) {
  return NAMES[name] ?? name.replaceAll("_", " ");
}

/** A function that shows buttons in a node: (node, names, pressed name, whether one is live). */
export function tabs(choose) {
  const tab = remembered((name) => {
    const live = make("i", "live");
    const node = button("", () => choose(name), { className: "tab" });
    node.append(live, shortName(name));
    return { node, live };
  });
  return (list, names, current, isLive = () => false) => {
    place(list, names.map((name) => {
      tab(name).node.setAttribute("aria-pressed", String(name === current));
      tab(name).live.hidden = !isLive(name);
      return tab(name).node;
    }));
    list.hidden = names.length === 0;
  };
}
