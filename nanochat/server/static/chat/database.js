// IndexedDB behind four calls, and a stand-in in memory where the browser refuses it.
//
// Both have: all(name) -> [[key, value]], nodesOf(conversation) -> [[key, value]], write(changes) in
// one transaction, and `kept`: whether what is written outlives the page.

const VERSION = 1;
const STORES = ["conversations", "nodes", "set_aside"];

/** Opens the first usable database. Returns {database, problems: texts for the user}. */
export async function openDatabase() {
  const problems = [];
  // One that a newer page made, or another program's, is left alone; a second name is used instead.
  for (const name of ["nanochat", "nanochat.2"]) {
    try {
      return { database: new Stored(await open(name)), problems };
    } catch (error) {
      if (error.name === "VersionError") {
        problems.push("A newer version of this page stored conversations here; they are kept for it.");
      } else if (error.name === "NotFoundError") {
        problems.push("The stored conversations have an unknown format; they are left as they are.");
      } else break;
    }
  }
  problems.push("The browser does not let this page store anything: conversations last until it is closed.");
  return { database: new InMemory(), problems };
}

function open(name) {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open(name, VERSION); // throws where it is disabled
    request.onupgradeneeded = () => {
      const database = request.result;
      database.createObjectStore("conversations", { keyPath: "id" });
      database.createObjectStore("nodes", { keyPath: "id" }).createIndex("conversation", "conversation");
      database.createObjectStore("set_aside", { autoIncrement: true });
    };
    request.onerror = () => reject(request.error);
    request.onblocked = () => reject(new DOMException("blocked", "AbortError"));
    request.onsuccess = () => {
      const database = request.result;
      database.onversionchange = () => database.close(); // lets a newer page in another tab upgrade
      try {
        const nodes = database.transaction(STORES).objectStore("nodes");
        if (nodes.keyPath !== "id") throw new DOMException("keyPath", "NotFoundError");
        nodes.index("conversation");
        resolve(database);
      } catch (error) {
        database.close();
        reject(error);
      }
    };
  });
}

const result = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

class Stored {
  kept = true;

  constructor(database) {
    this.database = database;
  }

  async all(name) {
    const store = this.database.transaction(name).objectStore(name);
    return pairs(store);
  }

  async nodesOf(conversation) {
    const index = this.database.transaction("nodes").objectStore("nodes").index("conversation");
    const values = await result(index.getAll(conversation));
    return values.map((value) => [value.id, value]);
  }

  /**
   * nodes, conversations: records to put. patch: {id, changes(record) -> record or null}, read and
   * written in this transaction, so that two tabs do not undo each other. remove: [[name, key]].
   * aside: values for set_aside.
   */
  write({ nodes = [], conversations = [], patch = null, remove = [], aside = [] }) {
    return new Promise((resolve, reject) => {
      const transaction = this.database.transaction(STORES, "readwrite");
      const store = (name) => transaction.objectStore(name);
      transaction.oncomplete = () => resolve();
      transaction.onabort = () => reject(transaction.error ?? new Error("the transaction was aborted"));
      for (const node of nodes) store("nodes").put(node);
      for (const record of conversations) store("conversations").put(record);
      for (const value of aside) store("set_aside").add(value);
      for (const [name, key] of remove) store(name).delete(key);
      if (!patch) return;
      const reading = store("conversations").get(patch.id);
      reading.onsuccess = () => {
        const record = patch.changes(reading.result);
        if (record) store("conversations").put(record);
      };
    });
  }
}

async function pairs(source) {
  const [keys, values] = await Promise.all([result(source.getAllKeys()), result(source.getAll())]);
  return keys.map((key, at) => [key, values[at]]);
}

class InMemory {
  kept = false;
  stores = Object.fromEntries(STORES.map((name) => [name, new Map()]));
  count = 0;

  async all(name) {
    return [...this.stores[name]];
  }

  async nodesOf(conversation) {
    return [...this.stores.nodes].filter(([, node]) => node.conversation === conversation);
  }

  async write({ nodes = [], conversations = [], patch = null, remove = [], aside = [] }) {
    const { stores } = this;
    for (const node of nodes) stores.nodes.set(node.id, structuredClone(node));
    for (const record of conversations) stores.conversations.set(record.id, structuredClone(record));
    for (const value of aside) stores.set_aside.set((this.count += 1), value);
    for (const [name, key] of remove) stores[name].delete(key);
    const record = patch?.changes(stores.conversations.get(patch.id));
    if (record) stores.conversations.set(record.id, record);
  }
}
