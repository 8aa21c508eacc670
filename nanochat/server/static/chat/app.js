// The page: conversations kept in the browser, answered by the server that sent the page.

import { tokenize } from "../shared/api.js";
import { byId, download, oncePerFrame, textButton } from "../shared/dom.js";
import { generate } from "./answering.js";
import { askForKey, setUpConnection } from "./connection.js";
import { setBusy, setContext, setUpComposer, showStatus } from "./composer.js";
import { beginning, lengthOf, newConversation, newId, newNode, now } from "./conversation.js";
import { titleOf, toSend, Tree, whole } from "./conversation.js";
import { prefixBefore, rowsBefore, rowsOfParts } from "./logprobs.js";
import { chosenModels, modelById, prefer } from "./models.js";
import { notify, toast } from "./notices.js";
import { change, sampling, settings, setUpSettings } from "./settings.js";
import { closeDrawer, drawList, setUpSidebar } from "./sidebar.js";
import { Store } from "./store.js";
import { announce, clearThread, drawThread, focusPager, redraw, scrollDown, sideBySide } from "./thread.js";
import { fileName, fromJson, toJson, toMarkdown } from "./transfer.js";

const SUGGESTIONS = ["Who are you?", "What is 12 * 34?", "Tell me a story.", "How do you spell rabbit?"];
const LIVE_MS = 15_000; // an answer of another tab that is silent for longer was interrupted

let store = null;
let records = new Map(); // conversation id -> record
const trees = new Map(); // conversation id -> its messages, once opened
const jobs = new Map(); // node id -> {control, conversation} of the answers in progress here
const elsewhere = new Map(); // node id -> when another tab last wrote it
let openId = null; // null: a new conversation, which is stored when something is asked

const record = () => records.get(openId);
const tree = () => trees.get(openId) ?? null;
const busy = (id) => [...jobs.values()].some((job) => job.conversation === id);

// ---------------------------------------------------------------- asking and answering

/** Whether something can be asked now; says so if no model is there yet. */
function ready() {
  const connected = chosenModels().length > 0;
  if (!connected) toast("The server has not answered yet.");
  return connected && !busy(openId);
}

function ask(text) {
  if (!ready()) return false;
  if (!record()) {
    const fresh = newConversation(titleOf(text));
    records.set(fresh.id, fresh);
    trees.set(fresh.id, new Tree());
    show(fresh.id);
  }
  // Of answers side by side, the conversation goes on after one that is not empty.
  const path = tree().path();
  const last = sideBySide(tree(), path)?.find((node) => node.content.length) ?? path.at(-1);
  askUnder(last?.id, text, last && tree().choose(last));
  return true;
}

function askUnder(parent, text, active = {}) {
  const question = newNode(openId, parent, "user", { content: text });
  tree().add(question);
  answer(question, { ...active, ...tree().choose(question) });
}

/** Adds one answer by each chosen model under a question, and streams them together. */
function answer(question, active = {}) {
  const seed = crypto.getRandomValues(new Uint32Array(1))[0] >>> 1; // the same for all models
  const models = chosenModels();
  const group = models.length > 1 ? newId() : undefined;
  const nodes = models.map((model) =>
    newNode(openId, question.id, "assistant", { state: "working", model: model.id, seed, group }),
  );
  nodes.forEach((node) => tree().add(node));
  const changes = { active: { ...active, ...tree().choose(nodes[0]) }, updated: now(), deleted: 0 };
  store.save(record(), [question, ...nodes], changes);
  nodes.forEach((node) => run(node));
  scrollDown(true);
}

/** The model of an answer, or one that is there where that is not served any more. */
const answering = (node) => modelById(node.model) ?? chosenModels()[0];

/** Streams an answer into a node; it goes on after what the node holds. */
async function run(node) {
  const own = { record: record(), tree: tree() };
  const control = new AbortController();
  const model = answering(node);
  const path = own.tree.pathTo(node).slice(0, -1);
  const content = whole(node.content); // a call that was cut off is made again
  const logprobs = rowsOfParts(node.logprobs ?? [], content.length);
  Object.assign(node, { content, logprobs, begun: lengthOf(content), system: settings.system?.trim() ?? "" });
  const messages = toSend(path, { system: node.system, prefill: node.content });
  const body = { model: model.id, messages, seed: node.seed, truncate: "auto", ...sampling(model) };
  jobs.set(node.id, { control, conversation: node.conversation });
  draw();
  const redrawSoon = oncePerFrame(() => {
    if (jobs.has(node.id) && openId === node.conversation) redraw(node, own.tree, stateOf);
  });
  const failure = await generate({
    node,
    body,
    signal: control.signal,
    onProgress(line) {
      if (openId === node.conversation) showStatus(line);
      redrawSoon();
    },
    onSave: () => store.save(own.record, [node]),
  });
  await store.save(own.record, [node], { updated: now() }); // once the page says so, it is stored
  jobs.delete(node.id);
  draw();
  if (failure?.status === 401) askForKey();
  if (openId !== node.conversation) return;
  if (own.tree.path().at(-1) === node) announce(node, true);
  scrollDown();
}

/** An answer that failed is tried again in its place; others keep theirs as a sibling. */
function again(node) {
  if (!ready()) return;
  const question = tree().nodes.get(node.parent);
  if (node.state !== "failed" || !question) {
    if (question) answer(question, tree().choose(question));
    return;
  }
  Object.assign(node, { content: [], state: "working", model: node.group ? node.model : chosenModels()[0].id });
  store.save(record(), [node]);
  run(node);
}

function proceed(node) {
  if (ready()) run(node);
}

/** A sibling of an answer that starts with its text up to a token, and another token there. */
function branch(node, index, alternative) {
  if (!ready()) return;
  const { content } = prefixBefore(node.content, node.logprobs, index, alternative);
  const logprobs = rowsBefore(node.logprobs, index, alternative);
  const { model, seed } = node;
  const fresh = newNode(openId, node.parent, "assistant", { state: "working", content, model, seed, logprobs });
  tree().add(fresh);
  store.save(record(), [fresh], { active: tree().choose(fresh), updated: now() });
  run(fresh);
}

function edit(node, text) {
  if (!ready()) return false;
  askUnder(node.parent, text);
  return true;
}

function choose(node, step) {
  store.save(record(), [], { active: tree().choose(node) });
  draw();
  focusPager(node, step);
}

function pick(node) {
  node.picked = true;
  store.save(record(), [node], { active: tree().choose(node) });
  prefer(node.model);
  draw();
  byId("input").focus();
}

function stop() {
  for (const job of jobs.values()) if (job.conversation === openId) job.control.abort();
}

/** A stored answer that nobody is writing any more was cut off by a reload. */
function stateOf(node) {
  if (node.state !== "working" || jobs.has(node.id)) return node.state;
  return Date.now() - (elsewhere.get(node.id) ?? 0) < LIVE_MS ? "working" : "interrupted";
}

async function showPrompt(node) {
  const { system, content, begun = 0, usage } = node;
  const messages = toSend(tree().pathTo(node).slice(0, -1), { system, prefill: beginning(content, begun) });
  messages.splice(system ? 1 : 0, usage?.dropped_messages ?? 0); // what no longer fitted
  const result = await tokenize({ model: answering(node)?.id, messages });
  if (!result) {
    toast("The server does not show its prompts.");
    return;
  }
  const { promptView } = await import("../answer/prompt.js");
  byId("prompt-tokens").replaceChildren(promptView(result));
  byId("prompt").showModal();
}

const messageActions = { again, proceed, branch, edit, choose, pick, prompt: showPrompt };

// ---------------------------------------------------------------- the page

function draw() {
  const named = chosenModels().length > 1 || new Set(answers().map((node) => node.model)).size > 1;
  drawThread(tree(), { actions: messageActions, stateOf, named });
  drawList([...records.values()], openId, new Set([...jobs.values()].map((job) => job.conversation)));
  setBusy(busy(openId));
  const last = answers().findLast((node) => node.usage);
  setContext(chosenModels()[0] ?? null, last?.usage);
  document.title = record() ? `${record().title} · nanochat` : "nanochat";
}

const answers = () => (tree()?.path() ?? []).filter((node) => node.role === "assistant");

/** Opens a conversation, or a new one (null). */
async function open(id, { push = true } = {}) {
  if (id && !trees.has(id)) {
    const nodes = await store.nodes(id);
    if (!trees.has(id)) trees.set(id, new Tree(nodes, records.get(id)?.active));
    reportUnreadable();
  }
  show(id, push);
  draw();
  scrollDown(true);
  closeDrawer();
  if (matchMedia("(hover: hover)").matches) byId("input").focus(); // no keyboard over a phone's page
}

/** The address names the open conversation, so that a reload and the back button find it. */
function show(id, push = true) {
  if (id !== openId) clearThread();
  openId = id;
  const address = id ? `#${id}` : location.pathname + location.search;
  if (push && location.hash !== (id ? `#${id}` : "")) history.pushState(null, "", address);
}

const idInAddress = () => (records.has(location.hash.slice(1)) ? location.hash.slice(1) : null);

function update(id, changes) {
  store.save(records.get(id), [], changes);
  draw();
}

function remove(id) {
  const shown = id === openId;
  const undo = () => {
    update(id, { deleted: 0 });
    if (shown) open(id);
  };
  update(id, { deleted: Date.now() });
  if (shown) open(null);
  toast(`Deleted “${records.get(id).title}”`, ["Undo", undo]);
}

/** Another tab wrote a conversation or its messages. */
function onChange({ record: theirs, nodes }) {
  if (theirs) {
    const mine = records.get(theirs.id);
    // What this tab shows stays shown: only choices that were open here are taken over.
    if (mine) Object.assign(mine, theirs, { active: { ...theirs.active, ...mine.active } });
    else records.set(theirs.id, theirs);
  }
  for (const node of nodes) {
    elsewhere.set(node.id, Date.now());
    if (!jobs.has(node.id)) trees.get(node.conversation)?.add(node);
  }
  draw();
  scrollDown();
}

// ---------------------------------------------------------------- files

async function exported(ids) {
  const all = await Promise.all(ids.map(async (id) => ({ record: records.get(id), nodes: await store.nodes(id) })));
  return all.filter(({ record: found }) => found && !found.deleted);
}

async function exportOne(id, kind) {
  const [conversation] = await exported([id]);
  const name = fileName(conversation.record.title, kind);
  if (kind === "json") download(name, toJson([conversation]), "application/json");
  else download(name, toMarkdown(conversation), "text/markdown");
}

async function exportAll() {
  download("conversations.json", toJson(await exported([...records.keys()])), "application/json");
}

async function importFile(file) {
  try {
    const { conversations, unreadable } = fromJson(await file.text());
    await store.add(conversations);
    for (const { record: found } of conversations) {
      records.set(found.id, Object.assign(records.get(found.id) ?? found, { deleted: 0 }));
      if (busy(found.id)) continue;
      trees.delete(found.id);
      if (found.id === openId) clearThread();
    }
    await open(conversations.length === 1 ? conversations[0].record.id : openId);
    const count = conversations.length;
    const rest = unreadable ? ` ${unreadable} of its entries could not be read.` : "";
    toast(`Imported ${count} conversation${count === 1 ? "" : "s"}.${rest}`);
  } catch (error) {
    notify(`${file.name} was not imported. ${error.message}`, { key: "import" });
  }
}

/** Tells what was set aside, until the user has closed the notice. */
function reportUnreadable() {
  const count = store.asideCount;
  if (count <= (settings.seenAside ?? 0)) return;
  const save = async () => download("set-aside.json", await store.setAside(), "application/json");
  notify("Some stored data could not be read. It was set aside; nothing was deleted.", {
    key: "aside",
    action: ["Download it", save],
    onClose: () => change({ seenAside: count }),
  });
}

// ---------------------------------------------------------------- startup

byId("new-chat").addEventListener("click", () => open(null));
byId("new-chat-top").addEventListener("click", () => open(null));
window.addEventListener("popstate", () => open(idInAddress(), { push: false }));
byId("suggestions").append(...SUGGESTIONS.map((text) => textButton(text, () => ask(text))));

setUpComposer({ submit: ask, stop });
setUpSettings(() => chosenModels()[0]?.defaults ?? {});
setUpSidebar({
  open,
  rename: (id, title) => update(id, { title }),
  pin: (id) => update(id, { pinned: !records.get(id).pinned }),
  remove,
  exportOne,
  exportAll,
  importFile,
  search: async (text) => {
    const ids = await store.search(text);
    const wanted = text.toLowerCase();
    for (const { id, title } of records.values()) if (title.toLowerCase().includes(wanted)) ids.add(id);
    return ids;
  },
  redraw: draw,
});
store = await Store.open({ onChange, onProblem: (text) => notify(text) });
records = await store.conversations();
reportUnreadable();
await open(idInAddress(), { push: false });
setUpConnection(draw);
