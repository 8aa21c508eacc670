// Markdown's blocks: a text's lines become a tree of plain objects.
// Owns: CommonMark's containers and leaves, GFM's tables. Does not own: what complete blocks
// hold (leaves.js), what is inside a line (inline.js).
// One pass over the lines, each looked at once per open container, of which there are at most DEPTH.

import { cells, DEFINITION, finished } from "./leaves.js";

const DEPTH = 24; // containers inside one another; the markers of deeper ones are shown as text
const COLUMNS = 100; // a "table" with more columns is shown as text
const ITEM = /^(?:([-*+])|(\d{1,9})([.)]))(?=[ \t]|$)/;
const LINE = 200; // marks of a rule, a fence or an underline; more of them are shown as text
const FENCE = new RegExp(`^(?:(\`{3,${LINE}})([^\`]*)|(~{3,${LINE}})([^~].*)?)$`);

/**
 * The top-level blocks of a text with \n line ends.
 * A block is {type, start, end (its first and last line), ...}:
 * paragraph {text}, heading {level, text}, code {language, text}, rule, quote {children},
 * list {ordered, first, loose, children: items}, item {children, checked: null | bool},
 * table {align, rows: [[text]]}, definition {text, label, url, title}.
 * `part` marks one that began inside the block before: no line may be parsed as if between them.
 */
export function parseBlocks(text) {
  const parser = new Parser();
  text.split("\n").forEach((line, number) => parser.add(line, number));
  return finished(parser.root.children);
}

class Parser {
  constructor() {
    this.root = { type: "document", children: [] };
    this.open = [this.root]; // the containers that the next line may belong to, outermost first
    this.leaf = null; // the block that takes lines of text
  }

  add(line, number) {
    this.line = line; // what is left of the line
    this.column = 0; // where that begins
    this.number = number;
    const matched = this.matchContainers();
    const all = matched === this.open.length;
    if (all && this.leaf && this.continueLeaf()) return;
    this.matched = matched;
    this.fresh = !all; // whether the line left a container or began one: then the leaf does not go on
    while (this.begin());
    if (this.line === null) return; // a block has taken the whole line
    if (this.blank()) this.addBlank();
    else this.addText();
  }

  // -------------------------------------------------------------- columns

  blank() {
    return !/[^ \t]/.test(this.line);
  }

  /** Columns of white space before the text. */
  indent() {
    let column = this.column;
    for (let at = 0; at < this.line.length; at++) {
      if (this.line[at] === " ") column += 1;
      else if (this.line[at] === "\t") column += 4 - (column % 4);
      else break;
    }
    return column - this.column;
  }

  /** Drop up to `columns` of white space; a tab that is cut leaves spaces. */
  skip(columns) {
    const goal = this.column + columns;
    let at = 0;
    while (this.column < goal && at < this.line.length) {
      if (this.line[at] === "\t") {
        const stop = this.column + 4 - (this.column % 4);
        if (stop > goal) {
          this.line = " ".repeat(stop - goal) + this.line.slice(at + 1);
          this.column = goal;
          return;
        }
        this.column = stop;
      } else if (this.line[at] === " ") {
        this.column += 1;
      } else {
        break;
      }
      at += 1;
    }
    this.line = this.line.slice(at);
  }

  /** Drop the next `count` characters, which are not tabs. */
  drop(count) {
    this.line = this.line.slice(count);
    this.column += count;
  }

  // -------------------------------------------------------------- what goes on

  /** The number of open containers that this line continues; their markers are dropped. */
  matchContainers() {
    for (let at = 1; at < this.open.length; at++) {
      const box = this.open[at];
      if (box.type === "quote" && !this.takeQuoteMark()) return at;
      if (box.type === "item" && !this.takeItemIndent(box)) return at;
      if (box.type === "quote") this.touch(at);
    }
    return this.open.length;
  }

  takeQuoteMark() {
    const indent = this.indent();
    if (indent > 3) return false;
    const text = this.line.trimStart();
    if (text[0] !== ">") return false;
    this.skip(indent);
    this.drop(1);
    if (this.indent() > 0) this.skip(1);
    return true;
  }

  takeItemIndent(item) {
    if (this.blank()) return item.children.length > 0;
    if (this.indent() < item.width) return false;
    this.skip(item.width);
    return true;
  }

  /** Give the line to the open code or formula; false if it is not for that. */
  continueLeaf() {
    const leaf = this.leaf;
    if (leaf.fence) {
      const closing = this.indent() < 4 ? this.line.trim() : "";
      const ends = closing.length >= leaf.fence.length && closing === leaf.fence[0].repeat(closing.length);
      if (!ends) this.skip(leaf.indent);
      if (!ends) leaf.lines.push(this.line);
      this.touch();
      if (ends) this.leaf = null;
      return true;
    }
    if (leaf.type === "code") {
      if (this.indent() < 4 && !this.blank()) return false;
      if (!this.blank()) this.touch();
      this.skip(4);
      leaf.lines.push(this.line);
      return true;
    }
    if (!leaf.formula || this.blank()) return false;
    this.addLine(leaf); // "- x" or "= y" inside a formula begins no list and no heading
    return true;
  }

  // -------------------------------------------------------------- what begins

  /** Begin the block whose marker comes next; true if another may follow on the line. */
  begin() {
    const paragraph = this.leaf?.type === "paragraph";
    const interrupts = paragraph && !this.fresh;
    const indent = this.indent();
    if (this.blank()) return false;
    if (indent > 3) {
      if (!paragraph) this.beginIndentedCode();
      return false;
    }
    const text = this.line.trimStart();
    if (text[0] === ">") return this.beginQuote();
    if (text[0] === "#" && this.beginHeading(text)) return false;
    if ((text[0] === "`" || text[0] === "~") && this.beginFence(text, indent)) return false;
    if (interrupts && (this.beginTable(text) || this.beginUnderlined(text))) return false;
    if (this.beginRule(text)) return false;
    return this.beginItem(text, indent, interrupts);
  }

  beginQuote() {
    if (this.open.length >= DEPTH) return false;
    this.push({ type: "quote", children: [] });
    this.takeQuoteMark();
    return true;
  }

  beginHeading(text) {
    const [, marks] = text.match(/^(#{1,6})(?=[ \t]|$)/) ?? [];
    if (!marks) return false;
    const inside = text.slice(marks.length).trim().replace(/(^|[ \t])#+$/, "").trimEnd();
    this.place({ type: "heading", level: marks.length, text: inside });
    this.take();
    return true;
  }

  beginFence(text, indent) {
    const found = text.match(FENCE);
    if (!found) return false;
    const language = (found[2] ?? found[4] ?? "").trim();
    this.place({ type: "code", fence: found[1] ?? found[3], indent, language, lines: [] }, true);
    this.take();
    return true;
  }

  beginIndentedCode() {
    this.skip(4);
    this.place({ type: "code", language: "", lines: [this.line] }, true);
    this.take();
  }

  /** The last line of the paragraph and this one are a table's head and its delimiter row. */
  beginTable(text) {
    if (!/^[-:| \t]+$/.test(text) || !text.includes("|") || !text.includes("-")) return false;
    const align = cells(text).map((cell) => cell.trim());
    const head = this.leaf.lines.at(-1);
    if (align.length > COLUMNS || !align.every((cell) => /^:?-+:?$/.test(cell))) return false;
    if (!head.includes("|") || cells(head).length !== align.length) return false;
    const { children } = this.open.at(-1);
    this.leaf.lines.pop();
    this.leaf.end -= 1;
    const part = this.leaf.lines.length > 0; // of what began as one paragraph
    if (!part) children.pop();
    const sides = align.map((cell) => (cell.startsWith(":") ? 1 : 0) + (cell.endsWith(":") ? 2 : 0));
    const names = sides.map((side) => ["", "left", "right", "center"][side]);
    this.place({ type: "table", part, align: names, rows: [cells(head)] }, true);
    this.leaf.start -= 1;
    this.take();
    return true;
  }

  beginUnderlined(text) {
    const level = { "=": 1, "-": 2 }[text[0]];
    const line = text.trimEnd();
    if (!level || line.length > LINE || line !== text[0].repeat(line.length)) return false;
    if (this.leaf.lines.every((own) => DEFINITION.test(own))) return false;
    const { lines } = this.leaf;
    Object.assign(this.leaf, { type: "heading", level, text: lines.join("\n").trimEnd(), lines: null });
    this.touch();
    this.leaf = null;
    this.take();
    return true;
  }

  beginRule(text) {
    if (!"*-_".includes(text[0])) return false;
    const marks = text.replace(/[ \t]/g, "");
    if (marks.length < 3 || marks.length > LINE || marks !== text[0].repeat(marks.length)) return false;
    this.place({ type: "rule" });
    this.take();
    return true;
  }

  beginItem(text, indent, interrupts) {
    const found = text.match(ITEM);
    if (!found || this.open.length + 1 >= DEPTH) return false;
    const [marker, bullet, digits, delimiter] = found;
    const empty = !/[^ \t]/.test(text.slice(marker.length));
    if (interrupts && (empty || (digits && Number(digits) !== 1))) return false;
    this.skip(indent);
    this.drop(marker.length);
    const space = this.indent();
    const after = empty || space > 4 ? 1 : space;
    this.skip(after);
    this.closeUnmatched();
    const kind = bullet ?? delimiter;
    if (this.open.at(-1).kind !== kind) {
      const ordered = digits !== undefined;
      this.push({ type: "list", kind, ordered, first: Number(digits ?? 1), children: [] });
    }
    this.push({ type: "item", width: indent + marker.length + after, children: [] });
    return true;
  }

  // -------------------------------------------------------------- where it goes

  /** Close the containers that this line does not continue. */
  closeUnmatched() {
    if (this.open.length > this.matched) this.open.length = this.matched;
    this.leaf = null;
  }

  /** Add a block to the innermost container; a leaf that `stays` takes the lines that follow. */
  place(block, stays = false) {
    this.closeUnmatched();
    if (this.open.at(-1).type === "list" && block.type !== "item") {
      this.open.pop();
      this.matched = this.open.length;
    }
    Object.assign(block, { start: this.number, end: this.number });
    this.open.at(-1).children.push(block);
    this.touch();
    this.leaf = stays ? block : null;
  }

  push(box) {
    this.place(box);
    this.open.push(box);
    this.matched = this.open.length;
    this.fresh = true;
  }

  take() {
    this.line = null;
  }

  /** This line belongs to the leaf and to the first `count` containers. */
  touch(count = this.open.length - 1) {
    for (let at = 1; at <= count; at++) this.open[at].end = this.number;
    if (this.leaf && count === this.open.length - 1) this.leaf.end = this.number;
  }

  addBlank() {
    if (this.open.length > this.matched) this.open.length = this.matched;
    this.leaf = null;
  }

  addText() {
    const { leaf } = this;
    if (leaf?.type === "table" && !this.fresh) {
      leaf.rows.push(cells(this.line.trim()));
      this.touch();
    } else if (leaf?.type === "paragraph") {
      this.addLine(leaf); // also where markers are missing: a lazy continuation
    } else {
      this.place({ type: "paragraph", lines: [] }, true);
      this.addLine(this.leaf);
    }
  }

  addLine(leaf) {
    const text = this.line.trimStart();
    leaf.lines.push(text);
    this.touch();
    if (leaf.formula) {
      if (text.includes(leaf.formula)) leaf.formula = "";
    } else if (text.startsWith("$$") && !text.includes("$$", 2)) {
      leaf.formula = "$$";
    } else if (text.startsWith("\\[") && !text.includes("\\]", 2)) {
      leaf.formula = "\\]";
    }
  }
}
