// The list of runs beside the plots.

import { byId, button, make, place, remembered, say } from "./dom.js";
import { ago } from "./numbers.js";

const MANY = 8; // runs, from which on they can be filtered
let toggle = () => {};

const row = remembered((name) => {
  const check = make("input");
  check.type = "checkbox";
  check.addEventListener("change", () => toggle(name));
  const status = make("span", "status");
  const label = make("label", "", check, make("i", "swatch"), make("span", "run-name", name), status);
  const only = button("only", () => toggle(name, true), { className: "only" });
  only.title = `Show only ${name}`;
  only.setAttribute("aria-label", only.title);
  return { node: make("li", "", label, only), check, status };
});

/** Shows the runs; `change(name, only)` is called when one is chosen. */
export function showList({ runs, selected, colors, now }, change) {
  toggle = change;
  const filter = byId("filter");
  filter.hidden = runs.length < MANY;
  const wanted = filter.hidden ? "" : filter.value.trim().toLowerCase();
  const shown = runs.filter((run) => run.name.toLowerCase().includes(wanted));
  place(byId("list"), shown.map((run) => {
    const { node, check, status } = row(run.name);
    const on = selected.includes(run.name);
    const number = colors.get(run.name) ?? 0;
    node.className = `${on ? "on" : "off"} c${number % 6} ${number >= 6 ? "dashed" : ""} ${run.state}`;
    check.checked = on;
    say(status, statusOf(run, now));
    return node;
  }));
}

function statusOf(run, now) {
  if (run.state !== "running") return ago(now - run.modified);
  const stage = run.stages.find((one) => one.state === "running");
  const share = stage?.steps ? ` ${Math.floor((100 * stage.step) / stage.steps)}%` : "";
  return `running${share}`;
}
