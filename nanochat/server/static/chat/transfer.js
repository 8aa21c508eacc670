// Conversations as files: JSON with the whole tree, to be read again, and Markdown, to be read.

import { checksum, fromMessages, plainText, readConversation, readNode, Tree } from "./conversation.js";

const FORMAT = "nanochat.conversations";
const VERSION = 1;

/** JSON text of conversations: [{record, nodes}]. */
export function toJson(conversations) {
  const items = conversations.map(({ record, nodes }) => ({ ...record, nodes }));
  const exported = new Date().toISOString();
  return JSON.stringify({ format: FORMAT, version: VERSION, exported, conversations: items }, null, 1);
}

/**
 * Reads toJson's text, or a file of `/save` in the terminal: {"messages": [...]}. Returns {conversations: [{record, nodes}], unreadable: count}.
 * Throws an Error whose message tells the user what is wrong with the file.
 */
export function fromJson(text) {
  let file;
  try {
    file = JSON.parse(text);
  } catch (error) {
    throw new Error(`The file is not JSON: ${error.message}`);
  }
  if (Array.isArray(file?.messages)) return savedByCommand(file, text);
  if (file?.format !== FORMAT) throw new Error("The file is not an export of this page, nor of the terminal’s /save (Markdown is not read).");
  if (!(file.version <= VERSION)) {
    throw new Error(`The file has version ${file.version} of the format; this page reads ${VERSION}.`);
  }
  if (!Array.isArray(file.conversations)) throw new Error("The file has no list of conversations.");
  let unreadable = 0;
  const conversations = [];
  for (const item of file.conversations) {
    const record = readConversation(item);
    const rows = Array.isArray(item?.nodes) ? item.nodes : [];
    const nodes = record ? rows.map((row) => readNode({ ...row, conversation: record.id })) : [];
    unreadable += record ? nodes.filter((node) => !node).length : 1;
    if (record) conversations.push({ record, nodes: nodes.filter(Boolean) });
  }
  if (!conversations.length) throw new Error("The file holds no conversation that can be read.");
  return { conversations, unreadable };
}

/** The conversation of a file of the terminal's /save, whose id is the same each time it is read. */
function savedByCommand({ messages, model }, text) {
  const { record, nodes, unreadable } = fromMessages(messages, `file-${checksum(text)}`, { model });
  if (!nodes.length) throw new Error("The file holds no message that can be read.");
  return { conversations: [{ record, nodes }], unreadable };
}

/** The shown path of a conversation as Markdown. */
export function toMarkdown({ record, nodes }) {
  const turns = new Tree(nodes, record.active).path().map((node) => {
    const name = node.role === "user" ? "You" : (node.model ?? "Assistant");
    const tools = node.role === "user" ? [] : node.content.filter((part) => part.type !== "text");
    const used = tools.map((part) => `\n\n> ${part.type === "python" ? "calculator" : "="} ${part.text}`);
    return `## ${name}\n\n${plainText(node)}${used.join("")}\n`;
  });
  return `# ${record.title}\n\n${turns.join("\n")}`;
}

/** A file name without characters that file systems refuse. */
export function fileName(title, ending) {
  const safe = title.replace(/[^\p{L}\p{N} ._-]+/gu, "").trim().slice(0, 50);
  return `${safe || "conversation"}.${ending}`;
}
