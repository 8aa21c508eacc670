// TeX formulas as MathML, which browsers draw themselves. Owns: what follows what in TeX.
// Does not own: which character a command is (symbols.js). What it does not know is shown as written.

import { classed, fence, functionName, letter, node, operator, space, textNode, withLimits } from "./mathml.js";
import { ACCENTS, BIG_OPERATORS, FENCES, FUNCTIONS, IDENTIFIERS } from "./symbols.js";
import { LIMITS, OPERATORS, SPACES, styled } from "./symbols.js";

const DEPTH = 12; // formulas inside formulas: a browser's time to lay them out can double with each
const BIG = { big: "1.2em", Big: "1.8em", bigg: "2.4em", Bigg: "3em" };
const FONTS = {
  mathbf: "bold", boldsymbol: "bold", bm: "bold", mathbb: "double", mathcal: "script", mathscr: "script",
  mathfrak: "fraktur", mathrm: "upright", mathit: "italic", mathsf: "sans", mathtt: "mono", mathnormal: "italic",
};
const TEXTS = ["text", "textrm", "textnormal", "textbf", "textit", "textsf", "texttt", "mbox", "hbox"];
const FENCED = {
  __proto__: null, // an environment may be called "constructor"
  pmatrix: "()", bmatrix: "[]", Bmatrix: "{}", vmatrix: "||", Vmatrix: "‖‖", cases: "{", rcases: " }",
};
const ARGUMENT = /^(?:[\p{L}\d]|\\(?!left|right|q?quad)[a-zA-Z])/u;
const ALIGNED = /^(?:align|aligned|alignat|split|eqnarray)\*?$/;

/** A formula as a <math> element; `display` sets it on a line of its own. Never throws. */
export function math(tex, { display = false } = {}) {
  const parser = new Tex(tex);
  const result = node("math", ...parser.table("top", []));
  result.setAttribute("display", display ? "block" : "inline");
  result.setAttribute("alttext", tex.trim());
  return result;
}

class Tex {
  constructor(tex) {
    this.tokens = tex.match(/\\(?:[a-zA-Z]+\*?|[^])|\s+|[^]/gu) ?? [];
    this.at = 0;
    this.depth = 0;
    this.font = null;
  }

  // -------------------------------------------------------------- tokens

  peek() {
    while (/^\s/.test(this.tokens[this.at] ?? "")) this.at += 1;
    return this.tokens[this.at];
  }

  next() {
    const token = this.peek();
    if (token !== undefined) this.at += 1;
    return token;
  }

  takes(token) {
    if (this.peek() !== token) return false;
    this.at += 1;
    return true;
  }

  /** The characters of {an argument}, or of [one that may be missing]. */
  raw(opening = "{") {
    if (!this.takes(opening)) return opening === "{" ? this.next() ?? "" : "";
    const closing = opening === "{" ? "}" : "]";
    let text = "";
    for (let open = 1; this.at < this.tokens.length; ) {
      const token = this.tokens[this.at++];
      if (token === "{") open += 1;
      if (token === "}" || token === closing) open -= 1;
      if (open === 0) break;
      text += token;
    }
    return text;
  }

  /** A parser of a part of the formula. */
  inner(tex) {
    const result = new Tex(tex);
    result.depth = this.depth;
    return result;
  }

  // -------------------------------------------------------------- rows

  /** Nodes up to one of the closing tokens, which is left there. */
  row(...closing) {
    const result = [];
    let add = (part) => result.push(part);
    for (let token = this.peek(); token !== undefined && !closing.includes(token); token = this.peek()) {
      if (token === "\\displaystyle" || token === "\\textstyle") {
        this.at += 1;
        const style = node("mstyle");
        style.setAttribute("displaystyle", token === "\\displaystyle");
        result.push(style);
        add = (part) => style.append(part);
        continue;
      }
      const part = this.scripted();
      add(part);
      if (part.isFunction && ARGUMENT.test(this.peek() ?? "")) add(space("0.167em")); // "sin x"
    }
    return result;
  }

  /** Rows of cells up to \end or the end; just the row's nodes if there is one cell. */
  table(name, columns) {
    const ends = name === "top" ? [] : ["\\end"];
    const rows = [[]];
    for (;;) {
      rows.at(-1).push(this.row("&", "\\\\", "\\cr", ...ends));
      const token = this.peek();
      if (token === undefined || ends.includes(token)) break;
      this.at += 1;
      if (token === "&") continue;
      if (this.tokens[this.at] === "[") this.raw("[");
      rows.push([]);
    }
    if (rows.length > 1 && rows.at(-1).every((cell) => cell.length === 0)) rows.pop();
    if (rows.length === 1 && rows[0].length === 1 && (name === "top" || !FENCED[name])) return rows[0][0];
    const aligned = ALIGNED.test(name) || (name === "top" && rows.some((row) => row.length > 1));
    const shown = rows.map((row) => node("mtr", ...row.map((cell, at) => {
      const box = node("mtd", ...cell);
      const side = aligned ? ["right", "left"][at % 2] : name.endsWith("cases") ? "left" : columns[at];
      if (side) box.setAttribute("class", side);
      return box;
    })));
    const result = node("mtable", ...shown);
    if (aligned || /^(?:gather|equation|top)/.test(name)) result.setAttribute("displaystyle", "true");
    if (aligned) result.setAttribute("class", "aligned");
    return [result];
  }

  environment() {
    const name = this.raw();
    const sides = name === "array" ? (this.raw().match(/[lcr]/g) ?? []) : [];
    const columns = sides.map((side) => ({ l: "left", r: "right" })[side]);
    if (/^alignat/.test(name)) this.raw();
    const inside = this.table(name, columns);
    if (this.takes("\\end")) this.raw();
    const [open, close] = FENCED[name] ?? "";
    return node("mrow", ...fence(open), ...inside, ...fence(close));
  }

  // -------------------------------------------------------------- parts

  /** A part with its scripts: x_1^2, \sum_{i=1}^n. */
  scripted() {
    let base = /^[_^]$/.test(this.peek()) ? node("mrow") : this.atom();
    let limits = base.limits;
    let under = null;
    let over = null;
    for (;;) {
      const token = this.peek();
      if (token === "\\limits" || token === "\\nolimits") {
        this.at += 1;
        limits = token === "\\limits";
      } else if (token === "_" && !under) {
        this.at += 1;
        under = this.argument();
      } else if (token === "^" && !over) {
        this.at += 1;
        over = this.argument();
      } else if (token === "'" && !over) {
        over = this.primes();
      } else {
        break;
      }
    }
    if (!under && !over) return base;
    const names = limits ? ["munder", "mover", "munderover"] : ["msub", "msup", "msubsup"];
    const result = node(names[under && over ? 2 : over ? 1 : 0], base, ...[under, over].filter(Boolean));
    result.isFunction = base.isFunction;
    return result;
  }

  primes() {
    let marks = "";
    while (this.takes("'")) marks += "′";
    const prime = node("mo", marks);
    return this.takes("^") ? node("mrow", prime, this.argument()) : prime;
  }

  /** {a group} as one node, or the next character or command. */
  argument() {
    const token = this.peek();
    if (token === undefined || /^(?:[}&]|\\\\|\\end|\\right)$/.test(token)) return node("mrow");
    if (/^\d$/.test(token)) return node("mn", this.next());
    return this.atom();
  }

  atom() {
    if (this.depth >= DEPTH) return node("mtext", this.next());
    this.depth += 1;
    try {
      const token = this.next();
      return token[0] === "\\" && token.length > 1 ? this.command(token.slice(1)) : this.character(token);
    } finally {
      this.depth -= 1;
    }
  }

  character(token) {
    if (token === "{") {
      const result = node("mrow", ...this.row("}"));
      this.takes("}");
      return result;
    }
    if (/\d/.test(token)) return this.number(token);
    if (/\p{L}/u.test(token)) return letter(token, this.font);
    if (token === "~") return space("0.333em");
    const shown = { "-": "−", "*": "∗", "/": "/", "'": "′" }[token] ?? token;
    return /^[()[\]|]$/.test(token) ? operator(shown, { stretchy: "false" }) : operator(shown);
  }

  number(first) {
    let digits = first;
    const follows = () => {
      const token = this.tokens[this.at] ?? "";
      return /^\d$/.test(token) || (/^[.,]$/.test(token) && /^\d$/.test(this.tokens[this.at + 1] ?? ""));
    };
    while (follows()) digits += this.tokens[this.at++];
    return node("mn", [...digits].map((digit) => styled(digit, this.font)).join(""));
  }

  command(name) {
    const own = (table) => Object.hasOwn(table, name);
    if (own(COMMANDS)) return COMMANDS[name](this);
    if (own(IDENTIFIERS)) return letter(IDENTIFIERS[name], this.font, /^[A-Z]/.test(name));
    if (own(BIG_OPERATORS)) {
      return withLimits(operator(BIG_OPERATORS[name], { largeop: "true" }), !name.includes("int"));
    }
    if (own(OPERATORS)) return operator(OPERATORS[name]);
    if (own(SPACES)) return space(SPACES[name]);
    if (own(FENCES)) return operator(FENCES[name], { stretchy: "false" });
    if (FUNCTIONS.has(name)) return functionName(name, LIMITS.has(name));
    if (own(ACCENTS)) return this.accent(name);
    if (own(FONTS)) return this.inFont(FONTS[name]);
    if (TEXTS.includes(name)) return textNode(name, this.raw());
    const [, big] = name.match(/^(big|Big|bigg|Bigg)[lrm]?$/) ?? [];
    if (big) return operator(this.fenceMark(), { stretchy: "true", minsize: BIG[big], maxsize: BIG[big] });
    const unknown = node("mtext", `\\${name}`);
    unknown.setAttribute("class", "unknown");
    return unknown;
  }

  accent(name) {
    const [mark, below] = ACCENTS[name];
    const base = this.argument();
    const wide = /^(?:wide|over|under)/.test(name);
    const result = node(below ? "munder" : "mover", base, operator(mark, { stretchy: String(wide) }));
    result.setAttribute(below ? "accentunder" : "accent", "true");
    return withLimits(result, name.endsWith("brace"));
  }

  inFont(font) {
    const before = this.font;
    this.font = font;
    const result = this.argument();
    this.font = before;
    return result;
  }

  /** The character behind \left, \right or \big; "" for the dot that stands for none. */
  fenceMark() {
    const token = this.next() ?? "";
    if (token === ".") return "";
    if (token === "\\|") return "‖";
    return FENCES[token.slice(1)] ?? { "<": "⟨", ">": "⟩" }[token] ?? token.replace(/^\\(?=.$)/, "");
  }

  fenced() {
    const open = this.fenceMark();
    const parts = this.row("\\right", "}", "&", "\\\\", "\\end");
    const close = this.takes("\\right") ? this.fenceMark() : "";
    return node("mrow", ...fence(open), ...parts, ...fence(close));
  }
}

/** The same command by several names. */
const each = (names, command) => Object.fromEntries(names.split(" ").map((name) => [name, (tex) => command(tex, name)]));

const COMMANDS = {
  ...each("frac dfrac tfrac cfrac", fraction),
  ...each("binom dbinom tbinom", binomial),
  sqrt(tex) {
    if (tex.peek() !== "[") return node("msqrt", tex.argument());
    const degree = tex.inner(tex.raw("[")).row();
    return node("mroot", tex.argument(), node("mrow", ...degree));
  },
  left: (tex) => tex.fenced(),
  middle: (tex) => operator(tex.fenceMark(), { stretchy: "true" }),
  begin: (tex) => tex.environment(),
  overset: (tex) => stacked("mover", tex),
  stackrel: (tex) => stacked("mover", tex),
  underset: (tex) => stacked("munder", tex),
  xrightarrow: (tex) => node("mover", operator("→", { stretchy: "true" }), tex.argument()),
  xleftarrow: (tex) => node("mover", operator("←", { stretchy: "true" }), tex.argument()),
  substack: (tex) => node("mrow", ...tex.inner(tex.raw()).table("substack", [])),
  operatorname: (tex) => functionName(tex.raw(), false),
  "operatorname*": (tex) => functionName(tex.raw(), true),
  pmod(tex) {
    const inside = [node("mi", "mod"), space("0.333em"), tex.argument()];
    return node("mrow", space("0.444em"), operator("("), ...inside, operator(")"));
  },
  bmod: () => operator("mod"),
  not: (tex) => operator(`${tex.argument().textContent}\u0338`),
  phantom: (tex) => node("mphantom", tex.argument()),
  boxed: (tex) => classed("boxed", node("mrow", tex.argument())),
  cancel: (tex) => classed("cancel", node("mrow", tex.argument())),
  tag: (tex) => node("mtext", `\u2003(${tex.raw()})`),
  label: (tex) => (tex.raw(), node("mrow")),
  textcolor: (tex) => (tex.raw(), tex.argument()),
  color: (tex) => (tex.raw(), node("mrow")),
  hspace: (tex) => (tex.raw(), space("0.5em")),
  ...each("mathop mathrel mathbin mathord smash ensuremath", (tex) => tex.argument()),
  ...each("hline nonumber notag scriptstyle limits nolimits", () => node("mrow")),
};

function fraction(tex, name) {
  const result = node("mfrac", tex.argument(), tex.argument());
  if (name === "frac") return result;
  const style = node("mstyle", result);
  style.setAttribute("displaystyle", name !== "tfrac");
  return style;
}

function binomial(tex) {
  const inside = node("mfrac", tex.argument(), tex.argument());
  inside.setAttribute("linethickness", "0");
  return node("mrow", ...fence("("), inside, ...fence(")"));
}

function stacked(name, tex) {
  const mark = tex.argument();
  return node(name, tex.argument(), mark);
}
