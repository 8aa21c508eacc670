// An answer as its tokens: how likely each was, what else might have stood there, and a way to go there.
// Owns: drawing the probabilities. Does not own: where they come from, or what a pick starts.

import { make, textButton } from "../shared/dom.js";

const ALTERNATIVES = 5;
const SCALE = [1, 2, 4, 7]; // bits of surprise where a color begins: p < 50%, 25%, 6%, 1%
const SCALE_WORDS = ["50% or more", "25 to 50%", "6 to 25%", "1 to 6%", "under 1%"];

/**
 * The tokens of an answer as an element.
 * entries: the API's, {token, id, logprob, rank, bytes, top_logprobs: [{token, id, logprob, bytes}]}.
 * onPick(index, alternative): called when an alternative, one of top_logprobs, is chosen.
 * refusal(index, alternative): a sentence that says why it cannot be, or nothing.
 * borders, surprise: whether the tokens' borders and the colors are shown at first.
 */
export function tokenView(entries, { onPick, refusal = () => "", borders = true, surprise = true }) {
  const text = make("div", "token-text");
  text.setAttribute("role", "listbox");
  text.setAttribute("aria-label", "Tokens of the answer");
  text.setAttribute("aria-orientation", "horizontal");
  const view = make("div", "tokens", tokensHead(entries, text, { borders, surprise }), text);
  const card = tokenCard(view, onPick, refusal);
  let tool = false;
  entries.forEach((entry, index) => {
    if (/^<\|(?:python|output)_start\|>$/.test(entry.token)) tool = true;
    text.append(tokenSpan(entry, index, tool));
    if (entry.token.endsWith("\n")) text.append(make("br"));
    if (/^<\|(?:python|output)_end\|>$/.test(entry.token)) tool = false;
  });
  listen(text, entries, card);
  return view;
}

/** What a token looks like: characters, the bytes of a piece of one, or a special token's name. */
export function tokenText({ token, text = token, bytes, id }) {
  if (text === "") return `#${id}`;
  const cut = text.includes("\ufffd") && bytes?.length && String(bytes) !== "239,191,189";
  if (cut) return bytes.map((byte) => byte.toString(16).toUpperCase().padStart(2, "0")).join(" ");
  const visible = text.replace(/^ +$/, (spaces) => "␣".repeat(spaces.length)).replace(/\n/g, "↵").replace(/\t/g, "⇥");
  return visible.replace(/[\0-\x1f]/g, (control) => String.fromCodePoint(0x2400 + control.codePointAt(0)));
}

/** The classes of a token: special, bytes. */
export function tokenClass({ token, text = token, special = /^<\|.*\|>$/.test(text) }) {
  return special ? " special" : text.includes("\ufffd") ? " bytes" : "";
}

// ---------------------------------------------------------------- the tokens

function tokenSpan(entry, index, tool) {
  const step = SCALE.filter((bits) => surpriseOf(entry) > bits + 1e-9).length;
  const span = make("span", `token s${step}${tokenClass(entry)}${tool ? " tool-token" : ""}`, tokenText(entry));
  span.setAttribute("role", "option");
  span.setAttribute("aria-selected", "false");
  span.setAttribute("aria-label", `${spoken(entry)}, ${chance(entry.logprob)}${rankWords(entry)}`);
  span.dataset.index = index;
  span.tabIndex = index === 0 ? 0 : -1; // one stop for Tab; arrows go on from there
  return span;
}

function listen(text, entries, card) {
  const show = (span, pin) => span && card.show(span, entries[span.dataset.index], Number(span.dataset.index), pin);
  const spanOf = (event) => event.target.closest(".token");
  text.addEventListener("pointerover", (event) => {
    if (event.pointerType === "mouse" && !card.pinned()) show(spanOf(event), false);
  });
  text.addEventListener("click", (event) => spanOf(event)?.focus());
  text.addEventListener("focusin", (event) => {
    for (const other of text.querySelectorAll('[tabindex="0"]')) select(other, false);
    select(spanOf(event), true);
    show(spanOf(event), true);
  });
  text.addEventListener("keydown", (event) => {
    const spans = text.querySelectorAll(".token");
    const at = Number(spanOf(event).dataset.index);
    const goals = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: spans.length - 1 };
    if (event.key in goals) spans[Math.min(Math.max(goals[event.key], 0), spans.length - 1)].focus();
    else if (["Enter", " ", "ArrowDown"].includes(event.key)) card.enter();
    else if (event.key === "Escape") card.hide();
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
}

function select(span, chosen) {
  span.tabIndex = chosen ? 0 : -1;
  span.setAttribute("aria-selected", String(chosen));
}

// ---------------------------------------------------------------- the card under a token

/** A token's probability, rank and alternatives, shown under it. */
function tokenCard(view, onPick, refusal) {
  const card = make("div", "token-card");
  card.setAttribute("role", "group");
  card.setAttribute("aria-label", "Alternatives");
  card.hidden = true;
  view.append(card);
  let token = null;

  // Under the mouse the card comes and goes and lets clicks through to the tokens that it covers;
  // a click or the keyboard pins it, so that its alternatives can be reached.
  const pinned = () => card.classList.contains("pinned");
  function hide() {
    card.hidden = true;
    card.classList.remove("pinned");
    token?.classList.remove("current");
  }
  view.addEventListener("pointerleave", () => !pinned() && hide());
  view.addEventListener("focusout", (event) => !view.contains(event.relatedTarget) && hide());
  card.addEventListener("keydown", (event) => {
    const buttons = [...card.querySelectorAll("button:enabled")];
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step) buttons[buttons.indexOf(document.activeElement) + step]?.focus();
    else if (event.key === "Escape") token.focus();
    else return;
    event.preventDefault();
    event.stopPropagation(); // Escape would stop an answer in progress
  });

  function show(span, entry, index, pin = false) {
    token?.classList.remove("current");
    token = span;
    token.classList.add("current");
    const name = make("strong", `alternative${tokenClass(entry)}`, tokenText(entry));
    const facts = [chance(entry.logprob), rankWords(entry).replace(", ", ""), idWords(entry)];
    const bits = entry.logprob === null ? "" : `${surpriseOf(entry).toFixed(1)} bits of surprise`;
    const pick = (other) => {
      hide();
      onPick(index, other);
    };
    const others = alternatives(entry).map((other) => {
      const taken = isSame(other, entry);
      return { other, taken, reason: taken ? "" : (refusal(index, other) ?? "") };
    });
    const open = others.some(({ taken, reason }) => !taken && !reason);
    const reasons = [...new Set(others.map(({ reason }) => reason))].filter(Boolean);
    const rows = others.map((row) => alternativeRow(row, () => pick(row.other)));
    card.replaceChildren(
      make("p", "", name, " ", facts.filter(Boolean).join(" · ")),
      make("p", "bits", bits),
      make("ol", "", ...rows),
      open
        ? make("p", "hint", pin ? "Another token here starts a branch." : "Click to choose another token here.")
        : make("p", "bits", reasons.length ? `No branch can start here. ${reasons.join(" ")}` : ""),
    );
    card.hidden = false;
    card.classList.toggle("pinned", pin);
    const room = view.clientWidth - card.offsetWidth;
    const box = view.getBoundingClientRect();
    const spot = [...span.getClientRects()].at(-1);
    card.style.left = `${Math.max(0, Math.min(spot.left - box.left - 12, room))}px`;
    card.style.top = `${spot.bottom - box.top}px`;
  }
  return { show, hide, pinned, enter: () => card.querySelector("button:enabled")?.focus() };
}

/** The likeliest tokens there, and the one that was taken. */
function alternatives(entry) {
  const top = (entry.top_logprobs ?? []).slice(0, ALTERNATIVES);
  return top.some((other) => isSame(other, entry)) ? top : [...top, entry];
}

const isSame = (other, entry) => (entry.id == null ? other.token === entry.token : other.id === entry.id);

/** reason: why this alternative cannot be picked; empty if it can. */
function alternativeRow({ other, taken, reason }, pick) {
  const bar = make("span", "bar");
  bar.style.width = `${100 * Math.exp(other.logprob ?? -Infinity)}%`;
  const name = make("span", `alternative${tokenClass(other)}`, tokenText(other));
  const parts = [name, make("span", "share", bar), make("span", "chance", chance(other.logprob))];
  if (taken) return make("li", "taken", make("div", "row-of-card", ...parts));
  const button = make("button", "row-of-card", ...parts);
  button.type = "button";
  button.disabled = reason !== "";
  button.title = reason ? `No branch can start here. ${reason}` : "Branch from here";
  const what = reason ? `no branch: ${reason}` : "branch from here";
  button.setAttribute("aria-label", `${spoken(other)}, ${chance(other.logprob)}: ${what}`);
  button.addEventListener("click", pick);
  return make("li", "", button);
}

// ---------------------------------------------------------------- the line above

function tokensHead(entries, text, shown) {
  const toggle = (name, label) => {
    const button = textButton(label, () => set(!text.classList.contains(name)), "pill toggle");
    const set = (on) => {
      text.classList.toggle(name, on);
      button.setAttribute("aria-pressed", String(on));
    };
    set(shown[name]);
    return button;
  };
  const legend = make("div", "token-legend", "Probability: ");
  SCALE_WORDS.forEach((words, step) => legend.append(make("span", `token s${step}`, words)));
  const row = make("div", "token-toggles", toggle("surprise", "Surprise"), toggle("borders", "Borders"));
  return make("div", "token-head", make("p", "", summary(entries)), row, legend);
}

/** One line: how many tokens, the perplexity, how many were not the likeliest. */
function summary(entries) {
  const known = entries.filter(({ logprob }) => logprob !== null);
  const count = `${entries.length} token${entries.length === 1 ? "" : "s"}`;
  if (known.length === 0) return count;
  const perplexity = Math.exp(known.reduce((sum, { logprob }) => sum - logprob, 0) / known.length);
  const others = known.filter(({ rank }) => rank > 1).length;
  const unlikely = others ? `${others} of them not the likeliest` : "each the likeliest";
  return `${count} · perplexity ${perplexity.toPrecision(3)} · ${unlikely}`;
}

// ---------------------------------------------------------------- words

/** Bits: -log2 of the probability; 0 where none is known. */
const surpriseOf = ({ logprob }) => (logprob === null ? 0 : -logprob / Math.LN2);

function chance(logprob) {
  if (logprob === null || logprob === undefined) return "given, not drawn";
  const percent = 100 * Math.exp(logprob);
  if (percent < 0.01) return "< 0.01%";
  return `${percent >= 99.95 ? "100" : percent.toPrecision(percent < 1 ? 1 : percent < 10 ? 2 : 3)}%`;
}

const rankWords = ({ rank }) => (rank ? `, ${rank === 1 ? "the likeliest" : `rank ${rank}`}` : "");
const idWords = ({ id }) => (id == null ? "" : `id ${id}`);

/** A token as a screen reader should say it. */
function spoken(entry) {
  const text = tokenText(entry);
  if (tokenClass(entry) === " bytes") return `bytes ${text}`;
  return text.replace(/↵/g, " line end ").replace(/⇥/g, " tab ").replace(/␣+/, "space").trim();
}
