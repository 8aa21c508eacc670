// What the browser keeps: conversations and their messages, shared between tabs.
//
// Messages are written one by one and merged by id, never as a whole conversation, so that tabs do
// not overwrite each other. Whatever cannot be read is moved to `set_aside` and reported, not lost.

import { checksum, fromMessages, plainText, readConversation, readNode, recovered } from "./conversation.js";
import { openDatabase } from "./database.js";

const OLD_KEY = "nanochat.chat"; // where earlier versions kept their one conversation
const UNDO_MS = 60 * 60 * 1000; // deleted conversations are erased at the first start after this

export class Store {
  /**
   * onChange({record?, nodes?}): another tab wrote these. onProblem(text): for the user.
   */
  static async open({ onChange, onProblem }) {
    const store = new Store();
    const { database, problems } = await openDatabase();
    Object.assign(store, { database, onProblem });
    store.asideCount = (await database.all("set_aside")).length;
    problems.forEach(onProblem);
    if (typeof BroadcastChannel === "function") {
      store.channel = new BroadcastChannel("nanochat");
      store.channel.onmessage = ({ data }) => onChange(heard(data));
    }
    await store.#takeOver();
    return store;
  }

  /** All conversations, by id. Erases those deleted long ago. */
  async conversations() {
    const records = await this.#read("conversations", await this.database.all("conversations"));
    const old = records.filter(({ deleted }) => deleted && Date.now() - deleted > UNDO_MS);
    for (const { id } of old) await this.#erase(id);
    return new Map(records.filter((record) => !old.includes(record)).map((r) => [r.id, r]));
  }

  /** The messages of one conversation. */
  async nodes(conversation) {
    return this.#read("nodes", await this.database.nodesOf(conversation));
  }

  /** All messages of all conversations. */
  async allNodes() {
    return this.#read("nodes", await this.database.all("nodes"));
  }

  /** Ids of the conversations in which a message contains the text, in any case. */
  async search(text) {
    const wanted = text.toLowerCase();
    const nodes = await this.allNodes();
    const found = nodes.filter((node) => plainText(node).toLowerCase().includes(wanted));
    return new Set(found.map((node) => node.conversation));
  }

  /** Writes messages, and `changes` to their conversation's record (its `active` is merged). */
  async save(record, nodes, changes = {}) {
    const copies = nodes.map((node) => readNode(node));
    merge(record, changes);
    const patch = { id: record.id, changes: (stored) => merge(readConversation(stored) ?? record, changes) };
    await this.#write({ nodes: copies, patch });
    this.channel?.postMessage({ record: { ...record }, nodes: copies });
  }

  /** Adds conversations of an import: [{record, nodes}]; what is there already stays as it is. */
  async add(conversations) {
    const known = new Set((await this.database.all("nodes")).map(([key]) => key));
    const present = await this.conversations();
    for (const { record, nodes } of conversations) {
      const fresh = nodes.filter((node) => !known.has(node.id));
      const kept = present.get(record.id);
      await this.#write({ nodes: fresh, conversations: [{ ...(kept ?? record), deleted: 0 }] });
      this.channel?.postMessage({ record: { ...(kept ?? record), deleted: 0 }, nodes: fresh });
    }
  }

  /** Everything that was set aside (`asideCount` values), as JSON text. */
  async setAside() {
    const values = (await this.database.all("set_aside")).map(([, value]) => value);
    return JSON.stringify({ format: "nanochat.set_aside", values }, null, 1);
  }

  async #write(changes) {
    try {
      await this.database.write(changes);
      return true;
    } catch (error) {
      const full = error?.name === "QuotaExceededError";
      const why = full ? "the browser's storage is full" : (error?.message ?? String(error));
      this.onProblem(`This could not be stored: ${why}. Export what you want to keep.`);
      return false;
    }
  }

  async #read(name, pairs) {
    const read = name === "nodes" ? readNode : readConversation;
    const good = [];
    const bad = [];
    for (const [key, value] of pairs) {
      const result = read(value);
      if (result) good.push(result);
      else bad.push([key, value]);
    }
    if (bad.length) await this.#putAside(name, bad.map(([, v]) => v), bad.map(([key]) => [name, key]));
    return good;
  }

  async #putAside(source, values, remove = []) {
    const aside = values.map((value) => ({ source, at: Date.now(), value }));
    this.asideCount += values.length;
    return this.#write({ aside, remove });
  }

  async #erase(id) {
    const nodes = await this.database.nodesOf(id);
    await this.#write({ remove: [["conversations", id], ...nodes.map(([key]) => ["nodes", key])] });
  }

  /** Brings in what earlier versions stored, and messages whose conversation is missing. */
  async #takeOver() {
    await this.#takeOldChat();
    const readable = await this.#read("conversations", await this.database.all("conversations"));
    const records = new Set(readable.map((record) => record.id));
    const lost = (await this.allNodes()).filter((node) => !records.has(node.conversation));
    for (const id of new Set(lost.map((node) => node.conversation))) {
      const nodes = lost.filter((node) => node.conversation === id);
      await this.#write({ conversations: [recovered(id, nodes)] });
    }
  }

  async #takeOldChat() {
    const raw = readLocal(OLD_KEY);
    if (raw === null || raw === "[]") return;
    const { record, nodes, complete } = oldConversation(raw);
    const aside = complete || (await this.#putAside(`localStorage ${OLD_KEY}`, [raw]));
    const taken = !nodes.length || (await this.#write({ nodes, conversations: [record] }));
    if (aside && taken && this.database.kept) localStorage.removeItem(OLD_KEY);
  }
}

/** `changes` put into a record; choices of children are merged. */
function merge(record, changes) {
  const active = { ...record.active, ...changes.active };
  return Object.assign(record, changes, { active });
}

/** A message from another tab, which may run another version of this page. */
function heard(data) {
  const nodes = Array.isArray(data?.nodes) ? data.nodes.map(readNode).filter(Boolean) : [];
  return { record: readConversation(data?.record), nodes };
}

/** The conversation of an earlier version: {record, nodes, complete: all could be read}. */
function oldConversation(raw) {
  let messages = null;
  try {
    messages = JSON.parse(raw);
  } catch {
    // set aside below
  }
  const rows = Array.isArray(messages) ? messages : [];
  // Two tabs that do this at once write the same.
  const { record, nodes, unreadable } = fromMessages(rows, `old-${checksum(raw)}`);
  return { record, nodes, complete: rows.length > 0 && unreadable === 0 };
}

function readLocal(key) {
  try {
    return localStorage.getItem(key);
  } catch {
    return null; // storage is disabled
  }
}
