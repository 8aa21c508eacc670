// Which models answer: one, or two or three side by side to the same question.

import { byId, make } from "../shared/dom.js";
import { change, MAX_COMPARED, settings } from "./settings.js";

let models = []; // the entries of /v1/models

/** The models that answer the next question, in the server's order; empty before it is ready. */
export function chosenModels() {
  const wanted = models.filter((model) => settings.models?.includes(model.id));
  const count = settings.compare ? MAX_COMPARED : 1;
  return wanted.length ? wanted.slice(0, count) : models.slice(0, 1);
}

export function modelById(id) {
  return models.find((model) => model.id === id);
}

/** Of models side by side, the user went on with this one: it answers when one alone does. */
export function prefer(id) {
  const others = chosenModels().map((model) => model.id).filter((other) => other !== id);
  change({ models: [id, ...others] });
}

/** Shows what the server serves. onChange() is called when the user chooses. */
export function setUpModels(list, onChange) {
  models = list;
  const several = models.length > 1;
  byId("choose-model").hidden = !several;
  byId("model").hidden = several;
  draw(onChange);
}

function draw(onChange) {
  const chosen = chosenModels();
  const names = chosen.map((model) => model.id).join(" · ");
  byId("model").textContent = names;
  byId("model").title = `context: ${chosen[0].max_model_len} tokens`;
  byId("choose-model-name").textContent = names;
  byId("choose-model").title = "Choose models";
  const many = settings.compare === true;
  byId("compare").checked = many;
  byId("model-list").replaceChildren(
    ...models.map((model) => {
      const input = make("input");
      input.type = many ? "checkbox" : "radio";
      input.name = "model";
      input.value = model.id;
      input.checked = chosen.includes(model);
      const words = make("span", "model-words", make("span", "model-id", model.id));
      const facts = [model.stage, model.step !== undefined && `step ${model.step}`, model.dtype];
      words.append(make("small", "", facts.filter(Boolean).join(" · ")));
      return make("label", "choice", input, words);
    }),
  );
  byId("model-menu").ontoggle = ({ newState }) => {
    if (newState !== "open") return;
    const { left, bottom } = byId("choose-model").getBoundingClientRect();
    const room = window.innerWidth - byId("model-menu").offsetWidth - 8;
    byId("model-menu").style.left = `${Math.max(8, Math.min(left, room))}px`;
    byId("model-menu").style.top = `${bottom + 4}px`;
  };
  byId("model-menu").onchange = (event) => {
    choose(event.target);
    const focus = event.target.value;
    draw(onChange);
    const inputs = [...byId("model-list").querySelectorAll("input")];
    inputs.find((input) => input.value === focus)?.focus();
    onChange();
  };
}

function choose(input) {
  const before = chosenModels().map((model) => model.id);
  if (input.id === "compare") {
    const others = models.map((model) => model.id).filter((id) => !before.includes(id));
    const preferred = settings.models?.find((id) => before.includes(id)) ?? before[0];
    change({ compare: input.checked, models: input.checked ? [...before, ...others.slice(0, 1)] : [preferred] });
  } else if (input.type === "radio") change({ models: [input.value] });
  else if (!input.checked) change({ models: before.length > 1 ? before.filter((id) => id !== input.value) : before });
  else change({ models: [...before.slice(0, MAX_COMPARED - 1), input.value] });
}
