// The page: one conversation, kept in the browser, answered by the server that sent the page.

import { ApiError, fetchModel, streamAnswer } from "./api.js";
import { messageView, plainText } from "./view.js";

const byId = (id) => document.getElementById(id);
const KEYS = { chat: "nanochat.chat", settings: "nanochat.settings", theme: "nanochat.theme" };
const SUGGESTIONS = ["Who are you?", "What is 12 * 34?", "Tell me a story.", "How do you spell rabbit?"];
const HINT = byId("status").textContent;

let model = null; // the entry in /v1/models, once the server is ready
let messages = load(KEYS.chat, []); // {role, content: text or parts, note}
let settings = load(KEYS.settings, {}); // overrides of the server's defaults
let views = [];
let answering = null; // the AbortController of the answer in progress

// ---------------------------------------------------------------- conversation

function draw() {
  views = messages.map((message) => messageView(message, { regenerate }));
  byId("messages").replaceChildren(...views.map((view) => view.item));
  updateViews();
  byId("welcome").hidden = messages.length > 0;
}

function updateViews() {
  views.forEach((view, at) => view.update({ last: at === views.length - 1 }));
}

async function ask(text) {
  messages.push({ role: "user", content: text });
  draw();
  save();
  follow = true;
  await answer();
}

async function answer() {
  hideNotice();
  const control = new AbortController();
  const message = { role: "assistant", content: [], note: "" };
  const body = { messages: toSend(), ...sampling() };
  messages.push(message);
  draw();
  setAnswering(control);
  const clock = stopwatch();
  const view = views.at(-1);
  const redraw = oncePerFrame(() => {
    if (answering !== control) return;
    view.update({ working: true });
    byId("status").textContent = clock.line();
    announce(message);
    scrollDown();
  });
  redraw();
  try {
    const result = await streamAnswer(body, control.signal, (type, text) => {
      clock.tick();
      append(message.content, type, text);
      redraw();
    });
    message.note = clock.note(result);
  } catch (error) {
    if (error.name !== "AbortError") showError(error);
    message.note = error.name === "AbortError" ? "stopped" : "interrupted";
  }
  if (!messages.includes(message)) return; // a new chat was started meanwhile
  if (message.content.length === 0 && message.note !== "stopped" && !byId("notice").hidden) {
    messages = messages.filter((other) => other !== message);
  }
  setAnswering(null);
  draw();
  save();
  announce(message, true);
  scrollDown();
}

function regenerate() {
  if (answering) return;
  if (messages.at(-1)?.role === "assistant") messages.pop();
  follow = true;
  answer();
}

function newChat() {
  answering?.abort();
  setAnswering(null);
  messages = [];
  hideNotice();
  draw();
  save();
  byId("input").focus();
}

/** The conversation to send; empty answers are left out together with their question. */
function toSend() {
  const result = [];
  if (settings.system?.trim()) result.push({ role: "system", content: settings.system.trim() });
  messages.forEach(({ role, content }, at) => {
    const next = messages[at + 1];
    const unanswered = role === "user" && next?.role === "assistant" && !next.content.length;
    if (!unanswered && content.length) result.push({ role, content });
  });
  return result;
}

function append(parts, type, text) {
  if (parts.at(-1)?.type === type) parts.at(-1).text += text;
  else parts.push({ type, text });
}

// ---------------------------------------------------------------- speed

function stopwatch() {
  const start = performance.now();
  let first = null;
  let count = 0;
  const seconds = (since) => (performance.now() - since) / 1000;
  // Measured from the start: a short answer arrives in one burst, at the network's speed.
  const rate = (tokens) => (tokens > 1 ? `${(tokens / seconds(start)).toFixed(1)} tokens/s` : "");
  return {
    tick() {
      first ??= performance.now();
      count += 1;
    },
    line: () => (first === null ? "Thinking…" : rate(count) || "Writing…"),
    note({ reason, usage }) {
      const tokens = usage?.completion_tokens ?? count;
      const parts = [`${tokens} token${tokens === 1 ? "" : "s"}`];
      if (first !== null && tokens > 1) parts.push(rate(tokens));
      if (first !== null) parts.push(`first after ${((first - start) / 1000).toFixed(2)} s`);
      if (reason === "length") parts.push("cut off at the token limit");
      return parts.join(" · ");
    },
  };
}

// ---------------------------------------------------------------- page

function setAnswering(control) {
  answering = control;
  byId("send-icon").setAttribute("href", control ? "#stop" : "#send");
  const title = control ? "Stop (Esc)" : "Send (Enter)";
  byId("send-button").title = title;
  byId("send-button").setAttribute("aria-label", title);
  byId("status").classList.toggle("idle", !control);
  if (!control) byId("status").textContent = HINT;
  updateSend();
}

function updateSend() {
  byId("send-button").disabled = !answering && (!model || !byId("input").value.trim());
}

function showError(error) {
  const known = error instanceof ApiError;
  byId("notice-text").textContent = known ? error.message : `Something went wrong: ${error.message}`;
  byId("retry").hidden = known && !error.retryable;
  byId("notice").hidden = false;
  if (!known) console.error(error);
}

function hideNotice() {
  byId("notice").hidden = true;
}

let follow = true; // scroll with the answer, unless the reader scrolled up

function scrollDown() {
  if (follow) byId("scroll").scrollTop = byId("scroll").scrollHeight;
}

function oncePerFrame(action) {
  let waiting = false;
  return () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      action();
    });
  };
}

/** Announce the answer to screen readers in full sentences: single tokens would stutter. */
function announce(message, final = false) {
  const text = plainText(message);
  const end = final ? text.length : Math.max(...[". ", "! ", "? ", "\n"].map((s) => text.lastIndexOf(s))) + 1;
  message.announced ??= 0;
  if (end > message.announced) {
    byId("announcer").textContent = text.slice(message.announced, end);
    message.announced = end;
  }
}

function growInput() {
  const input = byId("input");
  input.style.height = "auto";
  input.style.height = `${Math.min(input.scrollHeight, window.innerHeight * 0.4)}px`;
  updateSend();
}

// ---------------------------------------------------------------- settings and storage

function sampling() {
  const { temperature, top_k, max_tokens } = { ...model?.defaults, ...settings };
  return { temperature, top_k: top_k ?? 0, ...(max_tokens ? { max_tokens } : {}) };
}

function showSettings() {
  const now = sampling();
  byId("temperature").value = now.temperature ?? 1;
  byId("temperature-value").textContent = Number(byId("temperature").value).toFixed(2);
  byId("top-k").value = now.top_k;
  byId("max-tokens").value = now.max_tokens ?? "";
  byId("system").value = settings.system ?? "";
}

function readSettings() {
  const integer = (id) => (/^\d+$/.test(byId(id).value) ? Number(byId(id).value) : undefined);
  settings = { temperature: Number(byId("temperature").value), system: byId("system").value };
  if (integer("top-k") !== undefined) settings.top_k = integer("top-k");
  if (integer("max-tokens")) settings.max_tokens = integer("max-tokens");
  byId("temperature-value").textContent = settings.temperature.toFixed(2);
  store(KEYS.settings, settings);
}

function load(key, otherwise) {
  try {
    return JSON.parse(localStorage.getItem(key)) ?? otherwise;
  } catch {
    return otherwise; // storage is disabled, or the value is not JSON
  }
}

function store(key, value) {
  try {
    localStorage.setItem(key, typeof value === "string" ? value : JSON.stringify(value));
  } catch {
    // storage is full or disabled: the conversation lasts as long as the page
  }
}

function save() {
  store(KEYS.chat, messages.map(({ role, content, note }) => ({ role, content, note })));
}

function switchTheme() {
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  root.dataset.theme = (root.dataset.theme ?? system) === "dark" ? "light" : "dark";
  store(KEYS.theme, root.dataset.theme);
}

// ---------------------------------------------------------------- startup

async function connect() {
  try {
    model = await fetchModel();
  } catch (error) {
    showError(error);
    setTimeout(connect, error.status === 503 ? 1000 : 3000);
    return;
  }
  hideNotice();
  byId("model").textContent = model.id;
  byId("model").title = `context: ${model.max_model_len} tokens`;
  updateSend();
  if (messages.at(-1)?.role === "user") showUnanswered();
}

function showUnanswered() {
  byId("notice-text").textContent = "The last message has not been answered yet.";
  byId("retry").hidden = false;
  byId("notice").hidden = false;
}

function submit() {
  const input = byId("input");
  const text = input.value.trim();
  if (answering || !model || !text) return;
  input.value = "";
  growInput();
  ask(text);
}

byId("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  if (answering) answering.abort();
  else submit();
});
byId("input").addEventListener("input", growInput);
byId("input").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    submit();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && answering && !byId("settings").open) answering.abort();
});
byId("scroll").addEventListener("scroll", () => {
  const { scrollTop, clientHeight, scrollHeight } = byId("scroll");
  follow = scrollHeight - scrollTop - clientHeight < 60;
});
byId("new-chat").addEventListener("click", newChat);
byId("retry").addEventListener("click", () => (model ? regenerate() : connect()));
byId("theme").addEventListener("click", switchTheme);
byId("open-settings").addEventListener("click", () => {
  showSettings();
  byId("settings").showModal();
});
byId("settings").addEventListener("input", readSettings);
byId("settings").addEventListener("click", (event) => {
  if (event.target === byId("settings")) byId("settings").close(); // a click outside the dialog
});
byId("defaults").addEventListener("click", () => {
  settings = {};
  store(KEYS.settings, settings);
  showSettings();
});
window.addEventListener("pagehide", save);
for (const text of SUGGESTIONS) {
  const button = document.createElement("button");
  button.className = "pill";
  button.type = "button";
  button.textContent = text;
  button.addEventListener("click", () => model && !answering && ask(text));
  byId("suggestions").append(button);
}
draw();
scrollDown();
connect();
