// Markdown inside a block: text becomes DOM nodes. Text only ever becomes text nodes, never HTML.
// Owns: code, links, formulas in a line, escapes. Does not own: blocks (blocks.js), which marks of
// emphasis belong together (emphasis.js), TeX (math.js).
// Every step either moves forward or looks at a bounded stretch of text, so time grows with length.

import { element, emphasized, filled, markAt, nodes, runLength, tallest } from "./emphasis.js";
import { math } from "./math.js";

const FORMULA = 4000; // characters of a formula in a line
const TARGET = 2000; // characters of a link's target and title
const SPECIAL = /[\\`*_~[\]!<&$\n]|https?:\/\/|www\./gi;
const PUNCTUATION = /[!-/:-@[-`{-~]/;
const URL = /^(?:https?:\/\/|mailto:)[^\s\x00-\x1f]+$/i;
// (<url> "title") or (url "title"); a bare url may hold one level of brackets.
const IN_ANGLES = String.raw`<((?:\\.|[^<>\n\\])*)>`;
const BARE = String.raw`((?:\\[!-/:-@[-\`{-~]|[^\s\\()<]|\\(?=[^!-/:-@[-\`{-~])|\((?:\\.|[^\s\\()])*\))*)`;
const TITLE = String.raw`("(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|\((?:\\.|[^()\\])*\))`;
const TARGET_AND_TITLE = new RegExp(String.raw`^\([ \n]*(?:${IN_ANGLES}|${BARE})(?:[ \n]+${TITLE})?[ \n]*\)`);
const ENTITIES = {
  amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: "\u00a0", copy: "©", reg: "®", trade: "™",
  hellip: "…", mdash: "—", ndash: "–", lsquo: "‘", rsquo: "’", ldquo: "“", rdquo: "”", laquo: "«",
  raquo: "»", bull: "•", middot: "·", times: "×", divide: "÷", deg: "°", plusmn: "±", larr: "←",
  rarr: "→", uarr: "↑", darr: "↓", le: "≤", ge: "≥", ne: "≠", euro: "€", pound: "£", sect: "§",
};

/**
 * A block's text as a document fragment.
 * definitions: Map of reference labels (see `labelKey`) to {url, title}.
 * unfinished: more text is about to follow; open marks count as closed at the end.
 * cell: the text is a table's cell, where <br> is the only way to break a line.
 */
export function inline(text, { definitions = new Map(), unfinished = false, cell = false } = {}) {
  const parser = new Inline(unfinished ? withoutOpenTarget(text) : text, { definitions, unfinished, cell });
  return parser.parse();
}

/** How a reference and its definition are compared. */
export const labelKey = (label) => label.trim().replace(/\s+/g, " ").toLowerCase().toUpperCase();

/** A link that opens a new tab, which cannot reach back to this page. */
export function link(url, content) {
  const anchor = filled(document.createElement("a"), content);
  anchor.href = url;
  anchor.target = "_blank";
  anchor.rel = "noopener noreferrer";
  return anchor;
}

class Inline {
  constructor(text, context) {
    this.text = text;
    this.context = context;
    this.items = [];
    this.brackets = []; // positions in items
    this.inactive = 0; // this many of them enclose a link, so they cannot be one
    this.found = {}; // where the next closing mark of a kind is, as a search found it
  }

  parse() {
    const { text } = this;
    for (let at = 0; at < text.length; ) {
      SPECIAL.lastIndex = at;
      const next = SPECIAL.exec(text)?.index ?? text.length;
      this.addText(text.slice(at, next));
      at = next;
      if (at < text.length) at = this.special(at);
    }
    const items = emphasized(this.items, this.context.unfinished);
    return filled(document.createDocumentFragment(), nodes(items));
  }

  /** Take the markup at a position, or one character as text; the position after it. */
  special(at) {
    const { text } = this;
    const char = text[at];
    const end =
      char === "\\" ? this.backslash(at)
      : char === "`" ? this.code(at)
      : char === "*" || char === "_" || char === "~" ? this.mark(at)
      : char === "[" ? this.open(at, 1)
      : char === "!" && text[at + 1] === "[" ? this.open(at, 2)
      : char === "]" ? this.close(at)
      : char === "<" ? this.angle(at)
      : char === "&" ? this.entity(at)
      : char === "$" ? this.dollar(at)
      : char === "\n" ? this.lineEnd(at)
      : char === "!" ? 0
      : this.bareUrl(at);
    if (end) return end;
    this.addText(char);
    return at + 1;
  }

  addText(text) {
    if (text) this.items.push({ text });
  }

  addNode(node, more) {
    this.items.push({ node, height: 1, ...more });
  }

  // -------------------------------------------------------------- code, escapes, breaks

  backslash(at) {
    const next = this.text[at + 1];
    if (next === "\n") {
      this.addNode(element("br"));
      return this.afterSpaces(at + 2);
    }
    if (next === "(" || next === "[") {
      const end = this.formula(at, next === "(" ? "\\)" : "\\]", looksLikeFormula);
      if (end) return end;
    }
    if (!next || !PUNCTUATION.test(next)) return 0;
    this.addText(next);
    return at + 2;
  }

  code(at) {
    const length = runLength(this.text, at);
    this.runs ??= backtickRuns(this.text);
    const starts = this.runs.get(length) ?? [];
    while (starts.length && starts.at(-1) <= at) starts.pop();
    let end = starts.at(-1);
    if (end === undefined) {
      if (!this.context.unfinished || at + length === this.text.length) {
        this.addText("`".repeat(length));
        return at + length;
      }
      end = this.text.length;
    }
    let inside = this.text.slice(at + length, end).replace(/\n/g, " ");
    if (/^ .* $/.test(inside) && inside.trim()) inside = inside.slice(1, -1);
    this.addNode(element("code", inside));
    return end + length;
  }

  lineEnd(at) {
    const last = this.items.at(-1);
    const hard = last?.text?.endsWith("  ");
    if (last?.text) last.text = last.text.trimEnd();
    if (hard) this.addNode(element("br"));
    else this.addText("\n");
    return this.afterSpaces(at + 1);
  }

  afterSpaces(at) {
    while (this.text[at] === " ") at += 1;
    return at;
  }

  entity(at) {
    const pattern = /&(?:#x([0-9a-f]{1,6})|#(\d{1,7})|([a-z]{2,8}));/iy;
    pattern.lastIndex = at;
    const found = pattern.exec(this.text);
    if (!found) return 0;
    const [match, hex, decimal, name] = found;
    const point = hex ? parseInt(hex, 16) : Number(decimal);
    const valid = point > 0 && point <= 0x10ffff && !(point >= 0xd800 && point < 0xe000);
    if (name && !Object.hasOwn(ENTITIES, name)) return 0;
    const char = name ? ENTITIES[name] : valid ? String.fromCodePoint(point) : "\ufffd";
    this.addText(char);
    return at + match.length;
  }

  // -------------------------------------------------------------- formulas

  dollar(at) {
    const { text } = this;
    const length = runLength(text, at);
    const end =
      length === 2 ? this.formula(at, "$$", (tex) => tex.trim() !== "")
      : length === 1 && !/[\p{L}\p{N}]/u.test(text[at - 1] ?? "") ? this.formula(at, "$", isBetweenDollars)
      : 0;
    if (end) return end;
    this.addText("$".repeat(length)); // money, a shell variable
    return at + length;
  }

  /** A formula from a position to the closing mark, if `accepts(tex, after)`. */
  formula(at, closing, accepts) {
    const { text } = this;
    const from = at + closing.length;
    if (!(this.found[closing] >= from)) this.found[closing] = findUnescaped(text, closing, from);
    const end = this.found[closing];
    if (end - from > FORMULA || end === Infinity) return 0;
    const tex = text.slice(from, end);
    if (!accepts(tex, text[end + closing.length] ?? "")) return 0;
    const display = closing === "$$" || closing === "\\]";
    const shown = math(tex, { display });
    const box = element("span", shown);
    box.className = display ? "math display" : "math";
    this.addNode(box);
    return end + closing.length;
  }

  // -------------------------------------------------------------- links

  open(at, length) {
    this.brackets.push(this.items.length);
    this.items.push({ bracket: this.text.slice(at, at + length), from: at + length });
    return at + length;
  }

  close(at) {
    const position = this.brackets.pop();
    if (position === undefined) return 0;
    const bracket = this.items[position];
    const image = bracket.bracket === "![";
    const usable = image || this.brackets.length >= this.inactive;
    this.inactive = Math.min(this.inactive, this.brackets.length);
    const target = usable && (this.target(at + 1) ?? this.reference(bracket.from, at));
    if (!target || !URL.test(target.url)) return 0;
    const inside = this.items.splice(position).slice(1);
    this.addLink(target, inside, image);
    if (!image) this.inactive = this.brackets.length;
    return target.end;
  }

  addLink({ url, title }, inside, image) {
    // An image is a link too: nothing is loaded from elsewhere without a click.
    const flat = inside.map((item) => (item.link ? { text: item.node.textContent } : item));
    const items = emphasized(flat);
    const content = nodes(items);
    const height = 1 + tallest(items);
    const anchor = link(url, content.length ? content : [url]);
    if (image) anchor.className = "image";
    if (title) anchor.title = title;
    this.items.push({ node: anchor, height, link: true });
  }

  /** The target behind "]", as in (https://x "title"); undefined if there is none. */
  target(at) {
    if (this.text[at] !== "(") return undefined;
    const tail = this.text.slice(at, at + TARGET);
    const found = tail.match(TARGET_AND_TITLE);
    if (!found) return undefined;
    const url = unescaped(found[1] ?? found[2]);
    return { url, title: unescaped(found[3]?.slice(1, -1) ?? ""), end: at + found[0].length };
  }

  /** The target of [label][name], [label][] or [label], the label being text[from..at]. */
  reference(from, at) {
    const { definitions } = this.context;
    if (definitions.size === 0) return undefined;
    const tail = this.text.slice(at + 1, at + 300).match(/^\[((?:\\.|[^\\[\]])*)\]/);
    const label = tail?.[1] || (at - from <= 300 ? this.text.slice(from, at) : "");
    const definition = definitions.get(labelKey(label));
    return definition && { ...definition, end: at + 1 + (tail?.[0].length ?? 0) };
  }

  angle(at) {
    if (this.context.cell) {
      const found = this.text.slice(at, at + 7).match(/^<br *\/?>/i);
      if (found) this.addNode(element("br"));
      if (found) return at + found[0].length;
    }
    const pattern = /<((?:https?:\/\/|mailto:)[^\s<>]+|[\w.+-]{1,64}@[\w-]{1,64}(?:\.[\w-]{1,64}){0,8})>/iy;
    pattern.lastIndex = at;
    const found = pattern.exec(this.text);
    if (!found) return 0;
    const url = /^(?:https?:\/\/|mailto:)/i.test(found[1]) ? found[1] : `mailto:${found[1]}`;
    this.addNode(link(url, [found[1]]), { link: true });
    return at + found[0].length;
  }

  bareUrl(at) {
    if (/[\p{L}\p{N}]/u.test(this.text[at - 1] ?? "")) return 0;
    const pattern = /(?:https?:\/\/|www\.)[^\s<>[\]`"|\\]+/iy;
    pattern.lastIndex = at;
    const found = pattern.exec(this.text)?.[0];
    const url = found && withoutEnd(found);
    if (!url || !/[./]\w/.test(url)) return 0;
    this.addNode(link(/^www/i.test(url) ? `http://${url}` : url, [url]), { link: true });
    return at + url.length;
  }

  // -------------------------------------------------------------- emphasis

  mark(at) {
    const run = markAt(this.text, at);
    if (run.mark === "~" && run.count !== 2) this.addText("~".repeat(run.count));
    else this.items.push(run);
    return at + run.count;
  }
}

// -------------------------------------------------------------- characters

/** Where the runs of backticks begin, by length, the last one first. */
function backtickRuns(text) {
  const result = new Map();
  for (const { 0: run, index } of text.matchAll(/`+/g)) {
    if (!result.has(run.length)) result.set(run.length, []);
    result.get(run.length).push(index);
  }
  for (const starts of result.values()) starts.reverse();
  return result;
}

/** Where a mark stands behind no backslash of its own; Infinity if nowhere. */
function findUnescaped(text, mark, from) {
  for (let at = text.indexOf(mark, from); at >= 0; at = text.indexOf(mark, at + 1)) {
    let start = at;
    while (start > from && text[start - 1] === "\\") start -= 1;
    if ((at - start) % 2 === 0) return at;
  }
  return Infinity;
}

/** $x$ but not "$5 and $6", "$HOME/$USER": no space inside the marks, nothing written on behind. */
function isBetweenDollars(tex, after) {
  if (!tex || /^\s|\s$/.test(tex) || /[\p{L}\p{N}$]/u.test(after)) return false;
  return !isProse(tex);
}

/** \(x\) and \[x = 1\], but not \[words that were escaped\]. */
function looksLikeFormula(tex) {
  return /[a-z0-9]/i.test(tex) && (/[\\^_=+<>{}|&]/.test(tex) || tex.trim().length < 4);
}

function isProse(tex) {
  return /[a-z]{3,}\s+[a-z]{2,}/i.test(tex.replace(/\\[a-z]+(\{[^{}]*\})?/gi, ""));
}

export const unescaped = (text) => text.replace(/\\([!-/:-@[-`{-~])/g, "$1").replace(/&amp;/g, "&");

/** A bare URL without the punctuation of the sentence and without brackets that it does not open. */
function withoutEnd(url) {
  let extra = url.split(")").length - url.split("(").length;
  let end = url.length;
  for (; end > 0; end--) {
    if (url[end - 1] === ")" && extra > 0) extra -= 1;
    else if (!/[?!.,:;*_~'$]/.test(url[end - 1])) break;
  }
  return url.slice(0, end);
}

/** While a link's target arrives, only its label is shown. */
function withoutOpenTarget(text) {
  const from = Math.max(0, text.length - TARGET);
  return text.slice(0, from) + text.slice(from).replace(/(\[[^[\]\n]*\])\([^()\s]*$/, "$1");
}
