// Markdown as DOM nodes: CommonMark with GFM's tables, tasks and strikes, formulas, colored code.
// Written here rather than taken: the page has no build step, the known libraries with maths and
// colors are several hundred KB that make HTML strings and need a sanitizer, and none draws a growing
// answer by its last block alone. Text only ever becomes text nodes.
// Other than CommonMark: HTML is shown as it is written; links lead to http, https and mail, and images
// are links; definitions stay visible, on one line; a line end is one; 2*3*4 keeps its signs; what
// would vanish or nest too deep (long runs of marks, cells beyond a table's columns) is shown as text;
// "408." alone is a sentence, not a list.

import { parseBlocks } from "./blocks.js";
import { element, filled } from "./emphasis.js";
import { highlight } from "./highlight.js";
import { inline, labelKey, link, unescaped } from "./inline.js";

/** A text as a document fragment. Markup that nests too deep, or is not ours, is shown as text. */
export function markdown(text) {
  const blocks = parseBlocks(sentence(normalized(text), ALONE));
  const context = { definitions: definitionsOf(blocks, new Map()) };
  return filled(document.createDocumentFragment(), rendered(blocks, context));
}

/**
 * An element that shows a growing text: `update(text, {final})` reads only the blocks that can
 * still change, and closes open marks for the moment. With `final`, the text is complete. With
 * `within`, it goes on with a line that began before it, so that no list, heading or quote starts.
 * decorate(node): called with each top-level node before it is shown. Nodes that stay the same are
 * kept, and with them what is selected, focused and scrolled.
 */
export function markdownView(decorate = () => {}) {
  const box = element("div");
  box.className = "text";
  let settled = ""; // the source of the blocks that stay as they are
  let definitions = new Map(); // theirs
  let drawn = []; // the nodes after those
  let shown = null;

  function update(given, { final = false, within = false } = {}) {
    const text = sentence(normalized(given), within ? MARK : final ? ALONE : null);
    if (shown === `${final}${text}`) return;
    shown = `${final}${text}`;
    // A reference may stand before its definition: in the end such answers are read once more.
    if (!text.startsWith(settled) || (final && text.includes("]:"))) {
      settled = "";
      definitions = new Map();
      drawn = [...box.childNodes];
    }
    const rest = text.slice(settled.length);
    const blocks = parseBlocks(final ? rest : withoutOpenLine(rest));
    const { kept, lines } = final ? { kept: blocks.length, lines: 0 } : settledPart(blocks, rest);
    definitionsOf(blocks.slice(0, kept), definitions);
    const known = definitionsOf(blocks.slice(kept), new Map(definitions));
    const nodes = [
      ...rendered(blocks.slice(0, kept), { definitions }),
      ...rendered(blocks.slice(kept), { definitions: known, unfinished: !final }),
    ];
    nodes.forEach(decorate);
    drawn = patched(box, drawn, nodes).slice(final ? 0 : kept);
    if (lines > 0) settled += rest.split("\n").slice(0, lines).join("\n") + "\n";
  }
  return { element: box, update };
}

/** Makes `olds`, the last children of `parent`, look like `news`; returns the nodes that are there. */
function patched(parent, olds, news) {
  for (const node of olds.slice(news.length)) node.remove();
  return news.map((node, at) => {
    const old = olds[at];
    if (!old) parent.append(node);
    else if (old.isEqualNode(node)) return old;
    else if (old.nodeType === Node.ELEMENT_NODE && old.cloneNode().isEqualNode(node.cloneNode())) {
      patched(old, [...old.childNodes], [...node.childNodes]);
      return old;
    } else old.replaceWith(node);
    return node;
  });
}

/**
 * How many blocks cannot change any more, and of how many lines: a complete line begins the block
 * behind them, or a blank one ends them.
 */
function settledPart(blocks, text) {
  const openLine = text.split("\n").length - 1;
  const last = blocks.findLastIndex((block) => block.start < openLine);
  const { type, end } = blocks[last] ?? {};
  const ended = ["paragraph", "heading", "rule", "table", "definition"].includes(type) && end < openLine - 1;
  let kept = Math.max(0, ended ? last + 1 : last);
  while (!ended && blocks[kept]?.part) kept -= 1; // one paragraph for the next line
  return { kept, lines: kept > 0 ? (blocks[kept]?.start ?? openLine) : 0 };
}

/** Without a last line that may yet become anything: "-" is a list, a rule or a heading's line. */
function withoutOpenLine(text) {
  const at = text.lastIndexOf("\n") + 1;
  const open = /^[\s>]*(?:[-=*_+#`~|:$\\\s]+|\d{1,9}[.)]?|[-*+]\s+\[[ xX]?\]?|(?:```|~~~)[^`]*)\s*$/;
  return open.test(text.slice(at)) ? text.slice(0, at) : text;
}

const MARK = /^([ \t]*\d{0,9})(?=[-+*#>.)](?:\s|$))/; // of a list, a heading or a quote
const ALONE = /^(\s*\d{1,9})(?=[.)]\s*$)/; // a number and a dot, and nothing else

/** The text with the mark that it starts with escaped. */
function sentence(text, mark) {
  return mark ? text.replace(mark, "$1\\") : text;
}

function normalized(text) {
  return text.replace(/\r\n?/g, "\n").replace(/\0/g, "\ufffd");
}

function definitionsOf(blocks, found) {
  for (const block of blocks) {
    if (block.children) definitionsOf(block.children, found);
    const key = block.type === "definition" && labelKey(block.label);
    if (key && !found.has(key)) found.set(key, { url: unescaped(block.url), title: unescaped(block.title) });
  }
  return found;
}

// ---------------------------------------------------------------- blocks as nodes

function rendered(blocks, context) {
  const inner = { ...context, unfinished: false };
  return blocks.map((block, at) => RENDER[block.type](block, at === blocks.length - 1 ? context : inner));
}

const RENDER = {
  paragraph: ({ text }, context) => element("p", inline(text, context)),
  // The page has headings of its own above these.
  heading: ({ level, text }, context) => element(`h${Math.min(6, level + 2)}`, inline(text, context)),
  rule: () => element("hr"),
  quote: ({ children }, context) => filled(document.createElement("blockquote"), rendered(children, context)),
  code: codeBlock,
  list,
  table,
  definition({ text, url }) {
    const at = text.indexOf(url, text.indexOf("]:"));
    const line = element("p", text.slice(0, at), link(url, [url]), text.slice(at + url.length));
    line.className = "definition"; // shown: what looks like one may be a sentence
    return line;
  },
};

function codeBlock({ text, language }) {
  const [name] = language.match(/[\w+#-]+/) ?? [""]; // of "python title=x" or "{.python}"
  const code = element("code", highlight(text, name));
  const pre = element("pre", code);
  pre.tabIndex = 0; // scrolls by keyboard
  const block = element("div", pre);
  block.className = "code";
  block.dataset.language = language;
  return block;
}

function list({ ordered, first, loose, children }, context) {
  const items = children.map((item, at) => {
    const own = at === children.length - 1 ? context : { ...context, unfinished: false };
    return listItem(item, loose, own);
  });
  const result = filled(document.createElement(ordered ? "ol" : "ul"), items);
  if (ordered && first !== 1) result.start = first;
  if (loose) result.className = "loose";
  return result;
}

function listItem({ children, checked }, loose, context) {
  const nodes = rendered(children, context).flatMap((node) =>
    node.localName === "p" && !loose && !node.className ? [...node.childNodes] : [node],
  );
  const result = filled(document.createElement("li"), nodes);
  if (checked === null) return result;
  const box = document.createElement("input");
  box.type = "checkbox";
  box.checked = checked;
  box.disabled = true;
  box.setAttribute("aria-label", checked ? "done" : "to do");
  (loose && nodes[0]?.localName === "p" ? nodes[0] : result).prepend(box, " ");
  result.className = "task";
  return result;
}

function table({ align, rows }, { definitions }) {
  const row = (cells, name) => {
    const shown = cells.map((text, at) => {
      const cell = element(name, inline(text, { definitions, cell: true }));
      if (align[at]) cell.className = align[at];
      return cell;
    });
    while (shown.length < align.length) shown.push(element(name));
    return element("tr", ...shown);
  };
  const [head, ...body] = rows;
  const result = element("table", element("thead", row(head, "th")));
  result.append(filled(document.createElement("tbody"), body.map((cells) => row(cells, "td"))));
  const box = element("div", result);
  box.className = "table";
  box.tabIndex = 0; // scrolls by keyboard
  return box;
}
