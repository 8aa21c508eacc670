// Messages as DOM nodes: questions, answers, and tool calls as cards.

import { markdown } from "./markdown.js";

/** The element of one message; `update(state)` redraws what has changed. */
export function messageView(message, actions) {
  const item = make("li", `message ${message.role}`);
  const body = make("div", "body");
  item.append(body);
  if (message.role === "user") {
    body.textContent = message.content;
    return { item, update() {} };
  }
  const foot = make("div", "foot");
  const copy = iconButton("copy", "Copy the answer", () => copyText(copy, plainText(message)));
  const again = iconButton("again", "Answer again", actions.regenerate);
  const meta = make("span", "meta");
  foot.append(copy, again, meta);
  item.append(foot);
  const drawn = []; // per part: its node and content, to redraw only what has changed

  function update({ working = false, last = false } = {}) {
    const groups = grouped(message.content);
    groups.forEach((group, at) => {
      const key = JSON.stringify(group);
      if (drawn[at]?.key === key) return;
      const node = group.tool ? toolCard(group) : textBlock(group.text);
      if (drawn[at]) drawn[at].node.replaceWith(node);
      else body.append(node);
      drawn[at] = { key, node };
    });
    item.classList.toggle("working", working);
    item.classList.toggle("empty", groups.length === 0);
    foot.hidden = working;
    again.hidden = !last;
    copy.hidden = groups.length === 0;
    meta.textContent = message.note ?? "";
  }
  return { item, update };
}

/** The text of an answer, without tool calls. */
export function plainText(message) {
  return message.content
    .filter((part) => part.type === "text")
    .map((part) => part.text)
    .join("");
}

/** The parts, with each tool call and its output as one group. */
function grouped(parts) {
  const groups = [];
  for (const part of parts) {
    const before = groups.at(-1);
    if (part.type === "text") groups.push({ text: part.text });
    else if (part.type === "python") groups.push({ tool: true, code: part.text, output: null });
    else if (before?.tool && before.output === null) before.output = part.text;
    else groups.push({ tool: true, code: "", output: part.text });
  }
  return groups;
}

function toolCard({ code, output }) {
  const card = make("div", "tool");
  card.append(icon("calculator"), make("span", "tool-name", "Calculator"), make("code", "", code));
  if (output === null) card.append(make("span", "waiting", "…"));
  else if (output === "error") card.append(make("span", "failed", "could not be computed"));
  else card.append(make("span", "equals", "="), make("code", "output", output));
  return card;
}

function textBlock(text) {
  const block = make("div", "text");
  block.append(markdown(text));
  for (const code of block.querySelectorAll(".code")) {
    const bar = make("div", "code-bar", code.dataset.language || "text");
    const button = iconButton("copy", "Copy the code", () =>
      copyText(button, code.querySelector("pre").textContent),
    );
    bar.append(button);
    code.prepend(bar);
  }
  return block;
}

async function copyText(button, text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    copyBySelection(text); // no clipboard access over plain HTTP from another machine
  }
  button.querySelector("use").setAttribute("href", "#check");
  setTimeout(() => button.querySelector("use").setAttribute("href", "#copy"), 1200);
}

function copyBySelection(text) {
  const area = make("textarea", "visually-hidden");
  area.value = text;
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}

function iconButton(name, title, onClick) {
  const button = make("button", "small");
  button.type = "button";
  button.title = title;
  button.setAttribute("aria-label", title);
  button.append(icon(name));
  button.addEventListener("click", onClick);
  return button;
}

function icon(name) {
  const copy = document.querySelector("#new-chat svg").cloneNode(true);
  copy.querySelector("use").setAttribute("href", `#${name}`);
  return copy;
}

function make(name, className = "", text = "") {
  const result = document.createElement(name);
  if (className) result.className = className;
  if (text) result.textContent = text;
  return result;
}
