// Conversations as trees of messages, without storage and without DOM.
//
// A conversation is a record {id, title, created, updated, pinned, deleted, active}. Its messages are
// nodes {id, conversation, parent, created, role, content, state, ...}: a question's content is text,
// an answer's a list of parts {type, text}. Answering again and editing add siblings; nothing is
// overwritten. `active` names the chosen child of each parent, and so the path that is shown.

export const ROOT = "root"; // the key in `active` for nodes without a parent
export const STATES = ["done", "working", "stopped", "interrupted", "failed"];
const PARTS = ["text", "python", "python_output"];
const MAX_ID = 80;

let lastTime = 0;

/** A random id; crypto.randomUUID is missing on pages that came over plain HTTP. */
export function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Milliseconds since 1970, later than every earlier call: siblings are ordered by it. */
export function now() {
  lastTime = Math.max(Date.now(), lastTime + 1);
  return lastTime;
}

export function newConversation(title) {
  const created = now();
  return { id: newId(), title, created, updated: created, pinned: false, deleted: 0, active: {} };
}

export function newNode(conversation, parent, role, fields = {}) {
  const content = role === "user" ? "" : [];
  const node = { id: newId(), conversation, parent: parent ?? null, created: now(), role, content };
  return { ...node, state: "done", ...fields };
}

/** The first line of a question, for the list. */
export function titleOf(text) {
  const line = text.trim().split("\n")[0].replace(/\s+/g, " ");
  return line.length > 60 ? `${line.slice(0, 59).trimEnd()}…` : line || "Untitled";
}

// ---------------------------------------------------------------- reading what was stored

const isText = (value) => typeof value === "string";
const isTime = (value) => Number.isFinite(value) && value >= 0;
const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);
const isId = (value) => isText(value) && value.length > 0 && value.length <= MAX_ID;

/** A stored conversation as a record with known fields, or null if it is unreadable. */
export function readConversation(value) {
  if (!isObject(value) || !isId(value.id) || !isTime(value.created)) return null;
  const active = isObject(value.active) ? value.active : {};
  return {
    id: value.id,
    title: isText(value.title) ? value.title.slice(0, 200) : "Untitled",
    created: value.created,
    updated: isTime(value.updated) ? value.updated : value.created,
    pinned: value.pinned === true,
    deleted: isTime(value.deleted) ? value.deleted : 0,
    active: Object.fromEntries(Object.entries(active).filter(([, child]) => isId(child))),
  };
}

/** A stored message as a node with known fields, or null if it is unreadable. */
export function readNode(value) {
  if (!isObject(value) || !isId(value.id) || !isId(value.conversation)) return null;
  if (!isTime(value.created) || !(value.parent === null || isId(value.parent))) return null;
  const content = readContent(value.role, value.content);
  if (content === null) return null;
  const { id, conversation, parent, created, role } = value;
  const node = { id, conversation, parent, created, role, content };
  node.state = STATES.includes(value.state) ? value.state : "done";
  for (const key of ["note", "model", "error", "group"]) {
    if (isText(value[key])) node[key] = value[key].slice(0, 2000);
  }
  if (Number.isSafeInteger(value.seed)) node.seed = value.seed;
  if (Number.isSafeInteger(value.begun) && value.begun > 0) node.begun = value.begun;
  if (isText(value.system) && value.system) node.system = value.system;
  if (value.picked === true) node.picked = true;
  if (value.cut === true) node.cut = true;
  if (isObject(value.usage)) node.usage = readUsage(value.usage);
  if (Array.isArray(value.logprobs) && value.logprobs.every(Array.isArray)) {
    node.logprobs = value.logprobs;
  }
  return node;
}

/**
 * Messages in OpenAI's form, one after another, as {record, nodes, unreadable: how many are neither}.
 * id: the conversation's. fields: of all answers.
 */
export function fromMessages(messages, id, fields = {}) {
  const nodes = [];
  let unreadable = 0;
  let system;
  messages.forEach((message, at) => {
    const place = { id: `${id}-${at}`, conversation: id, parent: nodes.at(-1)?.id ?? null, created: at };
    const own = message?.role === "assistant" ? { ...fields, system } : {};
    const node = readNode({ ...message, ...own, ...place, state: "done" });
    if (node) nodes.push(node);
    else if (["system", "developer"].includes(message?.role)) system = joined(message.content) ?? system;
    else unreadable += 1;
  });
  return { record: recovered(id, nodes), nodes, unreadable };
}

/** A record for messages that came without one. */
export function recovered(id, nodes) {
  const first = nodes.find((node) => node.role === "user");
  const at = Date.now();
  const title = first ? titleOf(first.content) : "Recovered";
  return { id: id || newId(), title, created: at, updated: at, pinned: false, deleted: 0, active: {} };
}

/** A number that is the same for the same text. */
export function checksum(text) {
  let sum = 0;
  for (let at = 0; at < text.length; at += 1) sum = (sum * 31 + text.charCodeAt(at)) >>> 0;
  return sum.toString(16);
}

/** The text of a content: a string, or OpenAI's parts that are all text; null for others. */
function joined(content) {
  if (isText(content)) return content;
  const fits = (part) => isObject(part) && part.type === "text" && isText(part.text);
  return Array.isArray(content) && content.every(fits) ? content.map((part) => part.text).join("") : null;
}

function readContent(role, content) {
  if (role === "user") return joined(content);
  if (role !== "assistant") return null;
  if (isText(content)) return content ? [{ type: "text", text: content }] : [];
  const fits = (part) => isObject(part) && PARTS.includes(part.type) && isText(part.text);
  if (!Array.isArray(content) || !content.every(fits)) return null;
  return content.map(({ type, text }) => ({ type, text }));
}

function readUsage(usage) {
  const known = ["prompt_tokens", "completion_tokens", "total_tokens", "dropped_messages"];
  return Object.fromEntries(known.filter((key) => isTime(usage[key])).map((key) => [key, usage[key]]));
}

// ---------------------------------------------------------------- the tree

export class Tree {
  #children = null; // parent id or ROOT -> nodes, oldest first; null: to be made anew
  #parents = null; // node id -> id of the parent it is shown under, or ROOT

  /** nodes: read by readNode, of one conversation. active: its record's choices. */
  constructor(nodes = [], active = {}) {
    this.nodes = new Map(nodes.map((node) => [node.id, node]));
    this.active = { ...active };
  }

  /** Adds a node, or replaces what is known of it. */
  add(node) {
    const known = this.nodes.get(node.id);
    if (known) Object.assign(known, node);
    else this.nodes.set(node.id, node);
    this.#children = null;
  }

  /** The children of a node (null: the first messages), oldest first. */
  children(parent) {
    if (!this.#children) this.#arrange();
    return this.#children.get(parent ?? ROOT) ?? [];
  }

  siblings(node) {
    return this.children(this.#parent(node));
  }

  /** The messages that are shown: from the first along the chosen children to a leaf. */
  path() {
    const result = [];
    for (let parent = ROOT; ; parent = result.at(-1).id) {
      const children = this.children(parent);
      const next = children.find((child) => child.id === this.active[parent]) ?? children.at(-1);
      if (!next) return result;
      result.push(next);
    }
  }

  /** Shows this node instead of its siblings. Returns the choice, to store: {parent: id}. */
  choose(node) {
    const choice = { [this.#parent(node)]: node.id };
    Object.assign(this.active, choice);
    return choice;
  }

  /** The messages from the first to this node. */
  pathTo(node) {
    const result = [];
    for (let at = node; at; at = this.nodes.get(this.#parent(at))) result.unshift(at);
    return result;
  }

  #parent(node) {
    if (!this.#children) this.#arrange();
    return this.#parents.get(node.id);
  }

  // What has no way to the first message (its parent is missing, or stored as its own descendant)
  // would never be shown: its oldest node becomes a first message.
  #arrange() {
    const nodes = [...this.nodes.values()].sort((a, b) => a.created - b.created || (a.id < b.id ? -1 : 1));
    const below = new Map();
    for (const node of nodes) {
      const parent = node.parent !== null && this.nodes.has(node.parent) ? node.parent : ROOT;
      below.set(parent, [...(below.get(parent) ?? []), node]);
    }
    this.#children = new Map();
    this.#parents = new Map();
    const reach = (parent, children) => {
      const open = [[parent, children]];
      while (open.length) {
        const [above, found] = open.pop();
        const fresh = found.filter((node) => !this.#parents.has(node.id));
        this.#children.set(above, [...(this.#children.get(above) ?? []), ...fresh]);
        for (const node of fresh) {
          this.#parents.set(node.id, above);
          open.push([node.id, below.get(node.id) ?? []]);
        }
      }
    };
    reach(ROOT, below.get(ROOT) ?? []);
    for (const node of nodes) if (!this.#parents.has(node.id)) reach(ROOT, [node]);
  }
}

// ---------------------------------------------------------------- what a message says

/** The text of a question or of an answer without its tool calls. */
export function plainText(node) {
  if (node.role === "user") return node.content;
  return node.content
    .filter((part) => part.type === "text")
    .map((part) => part.text)
    .join("");
}

/**
 * The messages to send for an answer that follows `path`. Only answered questions are sent, and the
 * last one: what failed must not pile up in the prompt. `prefill`: parts the answer starts with.
 */
export function toSend(path, { system = "", prefill = [] } = {}) {
  const result = [];
  if (system.trim()) result.push({ role: "system", content: system.trim() });
  path.forEach((node, at) => {
    const last = at === path.length - 1;
    const answer = node.role === "user" ? path[at + 1] : node;
    const answered = answer && answer.role === "assistant" && whole(answer.content).length > 0;
    if (!answered && !last) return;
    const content = node.role === "user" ? node.content : whole(node.content);
    if (content.length) result.push({ role: node.role, content });
  });
  if (whole(prefill).length) result.push({ role: "assistant", content: whole(prefill) });
  return result;
}

/** The parts without empty ones and without a tool call at the end that got no output. */
export function whole(parts) {
  const result = parts.filter((part) => part.text !== "");
  while (result.at(-1)?.type === "python") result.pop();
  return result;
}

/** How many characters parts hold. */
export const lengthOf = (parts) => parts.reduce((sum, part) => sum + part.text.length, 0);

/** The first `length` characters of parts. */
export function beginning(parts, length) {
  const result = [];
  let rest = length;
  for (const part of parts) {
    if (rest > 0) result.push({ ...part, text: part.text.slice(0, rest) });
    rest -= part.text.length;
  }
  return result;
}

/** Appends a streamed piece to an answer's parts. */
export function append(parts, type, text) {
  if (parts.at(-1)?.type === type) parts.at(-1).text += text;
  else parts.push({ type, text });
}
