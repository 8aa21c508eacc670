// The box to write in, the button that sends or stops, and how much of the context is used.

import { tokenize } from "../shared/api.js";
import { byId } from "../shared/dom.js";

const HINT = "Enter sends, Shift+Enter adds a line, Esc stops the answer";
let ready = false;
let answering = false;
let model = null;
let used = 0; // tokens of the conversation so far
let draft = 0; // tokens of what is being written
let counting = null; // the AbortController of the count in progress
let timer = 0;

/** Makes the box work. submit(text) returns whether it took the text; stop() stops the answer. */
export function setUpComposer({ submit, stop }) {
  const input = byId("input");
  const send = () => {
    const text = input.value.trim();
    if (!text || !ready || !submit(text)) return;
    input.value = "";
    grow();
  };
  byId("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    if (answering) stop();
    else send();
  });
  input.addEventListener("input", grow);
  input.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      if (!answering) send();
    }
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && answering && !document.querySelector("dialog[open]")) stop();
  });
  showStatus("");
}

/** busy: an answer of the open conversation is in progress. */
export function setBusy(busy) {
  answering = busy;
  const title = busy ? "Stop (Esc)" : "Send (Enter)";
  byId("send-icon").setAttribute("href", busy ? "#stop" : "#send");
  byId("send-button").title = title;
  byId("send-button").setAttribute("aria-label", title);
  if (!busy) showStatus("");
  updateSend();
}

/** The line under the box; empty: the hint about keys. */
export function showStatus(text) {
  byId("status").classList.toggle("idle", !text);
  byId("status").textContent = text || HINT;
}

/** usage: of the last answer, or undefined. given: the model that answers next, once known. */
export function setContext(given, usage) {
  model = given;
  ready = Boolean(given);
  used = usage?.total_tokens ?? 0;
  drawMeter();
  updateSend();
}

function updateSend() {
  byId("send-button").disabled = !answering && (!ready || !byId("input").value.trim());
}

function grow() {
  const input = byId("input");
  input.style.height = "auto";
  input.style.height = `${Math.min(input.scrollHeight, window.innerHeight * 0.4)}px`;
  updateSend();
  clearTimeout(timer);
  timer = setTimeout(count, 300);
}

/** Counts the tokens of the text in the box, once the user pauses. */
async function count() {
  counting?.abort();
  const own = (counting = new AbortController());
  const text = byId("input").value;
  const result = text && model ? await tokenize({ model: model.id, text }, own.signal) : null;
  if (own.signal.aborted) return;
  draft = result?.count ?? 0;
  drawMeter();
}

function drawMeter() {
  const total = used + draft;
  const most = model?.max_model_len;
  byId("context").hidden = !most || total === 0;
  if (!most) return;
  const shown = Math.min(total, most);
  const text = `${total.toLocaleString("en")} of ${most.toLocaleString("en")} tokens`;
  const bar = byId("context-bar");
  bar.setAttribute("aria-valuenow", shown);
  bar.setAttribute("aria-valuemax", most);
  bar.setAttribute("aria-valuetext", text);
  bar.firstElementChild.style.width = `${(100 * shown) / most}%`;
  byId("context").classList.toggle("nearly-full", total > 0.8 * most);
  byId("context").title =
    total > most ? "The conversation is longer than the context: its first messages are left out." : "How much of the model's context is used";
  byId("context-text").textContent = text;
}
