// Messages as DOM nodes: questions, answers in several views, and tool calls as cards.

import { copyText, icon, iconButton, make, textButton } from "../shared/dom.js";
import { markdownView } from "../answer/markdown.js";
import { plainText } from "./conversation.js";
import { expand, prefixBefore } from "./logprobs.js";

/**
 * The element of one message; `update(state)` redraws what has changed. actions: edit(node, text)
 * (whether it is taken), again(node), proceed(node), choose(node), pick(node), branch(node, index, alternative),
 * prompt(node).
 */
export function messageView(node, actions, tag = "li") {
  const item = make(tag, `message ${node.role}`);
  item.dataset.id = node.id;
  return node.role === "user" ? questionView(item, node, actions) : answerView(item, node, actions);
}

// ---------------------------------------------------------------- questions

function questionView(item, node, actions) {
  const body = make("div", "body", node.content);
  const pages = pager(actions);
  const edit = iconButton("edit", "Edit the question", startEditing);
  const copy = iconButton("copy", "Copy the question", () => copyText(copy, node.content));
  const foot = make("div", "foot", copy, edit, pages.element);
  const unsent = make("p", "unsent", "This question got no answer; it is left out of what follows.");
  item.append(body, foot, unsent);

  function startEditing() {
    const input = make("textarea");
    input.value = node.content;
    input.setAttribute("aria-label", "Edit the question");
    const form = make("form", "editing", input);
    const stop = () => {
      form.replaceWith(body);
      foot.hidden = false;
      edit.focus();
    };
    const send = make("button", "pill primary", "Ask");
    form.append(make("div", "row", textButton("Cancel", stop), send));
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const text = input.value.trim();
      if (!text || actions.edit(node, text)) stop();
    });
    form.addEventListener("keydown", (event) => {
      if (event.key === "Escape") stop();
      else if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        form.requestSubmit();
      }
    });
    body.replaceWith(form);
    foot.hidden = true;
    input.style.height = `${Math.min(input.scrollHeight + 4, window.innerHeight * 0.5)}px`;
    input.focus();
  }

  function update({ siblings, unanswered }) {
    pages.update(node, siblings);
    unsent.hidden = !unanswered;
  }
  return { item, update };
}

// ---------------------------------------------------------------- answers

function answerView(item, node, actions) {
  const name = make("p", "name");
  const dropped = make("p", "dropped");
  const body = make("div", "body");
  const pages = pager(actions);
  const copy = iconButton("copy", "Copy the answer", () => copyText(copy, plainText(node)));
  const again = iconButton("again", "Answer again", () => actions.again(node));
  const more = iconButton("more", "Continue the answer", () => actions.proceed(node));
  const raw = iconButton("raw", "Show the raw text", () => show("raw"));
  const tokens = iconButton("tokens", "Show the tokens' probabilities", () => show("tokens"));
  const prompt = iconButton("prompt-icon", "Show the exact prompt", () => actions.prompt(node));
  const meta = make("span", "meta");
  const failure = make("div", "failure", make("span"), textButton("Try again", () => actions.again(node)));
  const pick = textButton("Go on with this answer", () => actions.pick(node));
  const foot = make("div", "foot", pages.element, copy, again, more, raw, tokens, prompt, meta);
  item.append(dropped, name, body, failure, foot, pick);
  const parts = partsView(body);
  let mode = "";
  let working = false;

  function show(wanted) {
    mode = mode === wanted ? "" : wanted;
    for (const [button, own] of [[raw, "raw"], [tokens, "tokens"]]) {
      button.setAttribute("aria-pressed", String(mode === own));
    }
    parts.clear();
    drawBody();
  }

  function drawBody() {
    if (mode === "raw") body.replaceChildren(make("pre", "raw", rawText(node)));
    else if (mode === "tokens" && node.logprobs) drawTokens();
    else parts.update(node.content, working);
  }

  async function drawTokens() {
    const { tokenView } = await import("../answer/tokens.js");
    const onPick = (index, alternative) => actions.branch(node, index, alternative);
    const refusal = (index, alternative) => prefixBefore(node.content, node.logprobs, index, alternative).refusal;
    body.replaceChildren(tokenView(expand(node.logprobs), { onPick, refusal }));
  }

  function update({ state, siblings, last, named, compared }) {
    working = state === "working";
    if (mode !== "tokens" || working) drawBody();
    const empty = node.content.length === 0;
    item.classList.toggle("working", working);
    item.classList.toggle("empty", empty && state !== "failed");
    name.textContent = node.model ?? "";
    name.hidden = !(named || compared) || !node.model;
    const count = node.usage?.dropped_messages ?? 0;
    dropped.hidden = count === 0;
    dropped.textContent =
      count === 1 ? "The first message no longer fits and was not sent." : `The first ${count} messages no longer fit and were not sent.`;
    pages.update(node, compared ? [] : siblings);
    const broken = state === "failed" || (state === "interrupted" && Boolean(node.error));
    failure.hidden = working || !broken;
    failure.firstChild.textContent = node.error ?? "The answer failed.";
    foot.hidden = working;
    again.hidden = compared || state === "failed";
    more.hidden = compared || !last || empty || !(node.cut || ["stopped", "interrupted"].includes(state));
    copy.hidden = raw.hidden = empty;
    tokens.hidden = !node.logprobs?.length;
    pick.hidden = !compared || working || empty;
    meta.textContent = [node.note, node.cut && "cut off at the token limit", STATE_WORDS[state]].filter(Boolean).join(" · ");
  }
  return { item, update };
}

const STATE_WORDS = { stopped: "stopped", interrupted: "interrupted" };

/** `< 2/3 >`: the way to a message's siblings; hidden where there are none. */
function pager(actions) {
  const count = make("span", "count");
  let go = () => {};
  const back = iconButton("left", "Previous version", () => go(-1));
  const forth = iconButton("right", "Next version", () => go(1));
  const element = make("span", "pager", back, count, forth);
  return {
    element,
    update(node, siblings) {
      const at = siblings.indexOf(node);
      element.hidden = siblings.length < 2;
      count.textContent = `${at + 1}/${siblings.length}`;
      back.disabled = at === 0;
      forth.disabled = at === siblings.length - 1;
      go = (step) => actions.choose(siblings[at + step], step);
    },
  };
}

// ---------------------------------------------------------------- the text of an answer

/** Draws parts into `body`; update() redraws only those that have changed. */
function partsView(body) {
  let drawn = []; // per part: its node and content
  return {
    clear() {
      drawn = [];
      body.replaceChildren();
    },
    update(parts, working) {
      grouped(parts).forEach((group, at, groups) => {
        const final = !working || at < groups.length - 1;
        const within = at > 0; // after a tool's card, in the line that the card stands in
        const key = `${final}${JSON.stringify(group)}`;
        if (drawn[at]?.key === key) return;
        const text = group.tool ? null : (drawn[at]?.text ?? textBlock());
        text?.update(group.text, { final, within });
        const node = text?.element ?? toolCard(group);
        if (!drawn[at]) body.append(node);
        else if (drawn[at].node !== node) drawn[at].node.replaceWith(node);
        drawn[at] = { key, node, text };
      });
    },
  };
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

/** An answer with its tool calls, as the model writes them. */
function rawText(node) {
  const marks = { python: "python", python_output: "output" };
  return node.content
    .map(({ type, text }) => (type === "text" ? text : `<|${marks[type]}_start|>${text}<|${marks[type]}_end|>`))
    .join("");
}

function toolCard({ code, output }) {
  const card = make("div", "tool");
  card.append(icon("calculator"), make("span", "tool-name", "Calculator"), make("code", "", code));
  if (output === null) card.append(make("span", "waiting", "…"));
  else if (output === "error") card.append(make("span", "failed", "could not be computed"));
  else card.append(make("span", "equals", "="), make("code", "output", output));
  return card;
}

/** An answer's text, redrawn by its last block while it grows. */
function textBlock() {
  const view = markdownView((node) => {
    for (const code of node.matches(".code") ? [node] : node.querySelectorAll(".code")) addCodeBar(code);
  });
  let broken = false;
  return {
    element: view.element,
    update(text, state) {
      try {
        if (!broken) view.update(text, state);
      } catch (error) {
        console.error(error); // no text may cost the answer: it is shown as it came
        broken = true;
      }
      if (broken) view.element.replaceChildren(make("pre", "raw", text));
    },
  };
}

function addCodeBar(code) {
  const bar = make("div", "code-bar", code.dataset.language || "text");
  const button = iconButton("copy", "Copy the code", () => copyText(button, code.querySelector("pre").textContent));
  bar.append(button);
  code.prepend(bar);
}
