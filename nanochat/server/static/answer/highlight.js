// Colors for code: a text becomes spans with classes. Owns: what a word is in each language.
// Not a parser: strings, comments, numbers and known words are found left to right, in one pass.

const LIMIT = 100_000; // characters; longer code stays plain
const C_COMMENT = String.raw`\/\/[^\n]*|\/\*[^]*?(?:\*\/|$)`;
const DOUBLE = String.raw`"(?:\\[^]|[^"\\\n])*"?`;
const SINGLE = String.raw`'(?:\\[^]|[^'\\\n])*'?`;
const NUMBER = String.raw`\b0[xXbBoO][\da-fA-F_]+\w*|(?:\b\d[\d_]*\.?[\d_]*|\B\.\d[\d_]*)(?:[eE][+-]?\d+)?\w*`;
const words = (text) => new Set(text.trim().split(/\s+/));

// Rules are tried in order at each place; then numbers and words, unless a language has its own or none.
// No rule may scan ahead without bound and then fail: code of one mark repeated must stay fast.
const LANGUAGES = {
  python: {
    rules: {
      comment: String.raw`#[^\n]*`,
      string: String.raw`(?:\b[rbfuRBFU]{1,2})?(?:"""[^]*?(?:"""|$)|'''[^]*?(?:'''|$)|${DOUBLE}|${SINGLE})`,
      meta: String.raw`@[\w.]+`,
    },
    keywords: words(`
      and as assert async await break case class continue def del elif else except finally for from global if
      import in is lambda match nonlocal not or pass raise return try while with yield
    `),
    constants: words("True False None self cls"),
    types: words(`
      int float str bool list dict set tuple bytes object type print len range enumerate zip map filter sorted sum
      min max open super isinstance abs any all input
    `),
  },
  javascript: {
    rules: { comment: C_COMMENT, string: `${DOUBLE}|${SINGLE}|` + "`(?:\\\\[^]|[^`\\\\])*`?" },
    keywords: words(`
      abstract as async await break case catch class const continue debugger declare default delete do else enum
      export extends finally for from function get if implements import in instanceof interface keyof let
      namespace new of private protected public readonly return set static super switch throw try type typeof var
      void while with yield
    `),
    constants: words("true false null undefined NaN Infinity this"),
    types: words(`
      any boolean never number object string symbol unknown Array Map Set Promise Object String Number Boolean
      Math JSON Date RegExp Error console document window
    `),
  },
  json: {
    rules: { property: String.raw`"(?:\\[^]|[^"\\\n])*"(?=[ \t]*:)`, string: DOUBLE },
    constants: words("true false null"),
  },
  bash: {
    rules: {
      comment: String.raw`(?<![^\s;(])#[^\n]*`,
      string: String.raw`"(?:\\[^]|[^"\\])*"?|'[^']*'?`,
      variable: String.raw`\$(?:\w+|\{[^}\n]{0,200}\}|[@*#?$!-])`,
      option: String.raw`(?<=\s)--?[a-zA-Z][\w-]*`,
    },
    keywords: words(`
      if then else elif fi for while until do done case esac in function select return break continue exit export
      local readonly declare set unset source alias eval exec trap shift
    `),
    types: words(`
      echo cd ls cat grep sed awk find mkdir rm cp mv touch chmod chown curl wget git pip python python3 npm node
      docker sudo apt tar ssh kill sort head tail xargs test printf read pwd uv cargo make
    `),
  },
  html: {
    rules: {
      comment: String.raw`<!--[^]*?(?:-->|$)`,
      string: String.raw`(?<==[ \t]?)(?:"[^"]*"?|'[^']*'?)`,
      keyword: String.raw`<[/!?]?[a-zA-Z][\w:.-]*|[/?]?>`,
      property: String.raw`(?<![\w:@.-])[\w:@.-]+(?==)`,
      constant: String.raw`&#?\w{1,32};`,
    },
    plainWords: true,
  },
  css: {
    rules: {
      comment: String.raw`\/\*[^]*?(?:\*\/|$)`,
      string: `${DOUBLE}|${SINGLE}`,
      number: String.raw`#[\da-fA-F]{3,8}\b|-?\b\d[\d.]*(?:%|[a-z]+)?`,
      keyword: String.raw`@[\w-]+|!important\b`,
      property: String.raw`(?<![\w-])-{0,2}[a-zA-Z][\w-]*(?=[ \t]*:[^:{]*[;}\n])`,
      type: String.raw`[.#][a-zA-Z_][\w-]*`,
    },
  },
  rust: {
    rules: {
      comment: C_COMMENT,
      string: String.raw`\bb?r(?<hashes>#{1,3})"[^]*?(?:"\k<hashes>|$)|b?${DOUBLE}|b?'(?:\\[^\n]{1,9}?|[^'\\\n])'`,
      meta: String.raw`#!?\[[^\]\n]{0,200}\]|\b\w+!(?=[([{ ])`,
      variable: String.raw`'[a-z_]\w*`,
    },
    keywords: words(`
      as async await break const continue crate dyn else enum extern fn for if impl in let loop match mod move mut
      pub ref return static struct super trait type union unsafe use where while
    `),
    constants: words("true false self Self None Some Ok Err"),
    types: words(`
      bool char f32 f64 i8 i16 i32 i64 i128 isize str u8 u16 u32 u64 u128 usize String Vec Option Result Box Rc
      Arc HashMap HashSet
    `),
  },
  cpp: {
    rules: {
      comment: C_COMMENT,
      string: `${DOUBLE}|${SINGLE}`,
      meta: String.raw`(?<=^|\n)[ \t]*#[ \t]*[a-z]+(?:[ \t]*<[^>\n]*>)?`,
    },
    keywords: words(`
      alignas alignof auto break case catch class concept const constexpr continue co_await co_return co_yield
      decltype default delete do else enum explicit export extern final for friend goto if inline mutable
      namespace new noexcept operator override private protected public register requires return sizeof static
      static_assert static_cast struct switch template throw try typedef typename union using virtual volatile
      while
    `),
    constants: words("true false nullptr NULL this"),
    types: words(`
      bool char double float int long short signed size_t uint8_t uint16_t uint32_t uint64_t int8_t int16_t
      int32_t int64_t unsigned void wchar_t std string vector map set pair cout cin endl printf FILE
    `),
  },
  sql: {
    rules: {
      comment: String.raw`--[^\n]*|\/\*[^]*?(?:\*\/|$)`,
      string: String.raw`'(?:''|[^'])*'?|"[^"\n]*"?`,
    },
    keywords: words(`
      add all alter and as asc begin between by case check column commit constraint create cross database default
      delete desc distinct drop else end except exists foreign from full group having if in index inner insert
      intersect into is join key left like limit not offset on or order outer over partition primary references
      returning right rollback select set table then transaction union unique update using values view when where
      with
    `),
    constants: words("true false null"),
    types: words(`
      int integer bigint smallint text varchar char boolean date timestamp real float double numeric decimal
      serial json count sum avg min max coalesce now
    `),
    fold: true,
  },
  java: {
    rules: {
      comment: C_COMMENT,
      string: String.raw`"""[^]*?(?:"""|$)|${DOUBLE}|${SINGLE}`,
      meta: String.raw`@\w+`,
    },
    keywords: words(`
      abstract assert break case catch class const continue default do else enum extends final finally for goto if
      implements import instanceof interface native new package private protected public record return sealed
      static strictfp super switch synchronized this throw throws transient try var void volatile while yield
    `),
    constants: words("true false null"),
    types: words(`
      boolean byte char double float int long short String Integer Long Double Boolean Object List Map Set
      ArrayList HashMap System Math Optional Stream
    `),
  },
  go: {
    rules: { comment: C_COMMENT, string: `${DOUBLE}|${SINGLE}|` + "`[^`]*`?" },
    keywords: words(`
      break case chan const continue default defer else fallthrough for func go goto if import interface map
      package range return select struct switch type var
    `),
    constants: words("true false nil iota"),
    types: words(`
      any bool byte complex64 complex128 error float32 float64 int int8 int16 int32 int64 rune string uint uint8
      uint16 uint32 uint64 uintptr append cap close copy delete len make new panic print println recover fmt
    `),
  },
};
const ALIASES = {
  py: "python", python3: "python", pycon: "python", js: "javascript", jsx: "javascript", mjs: "javascript",
  ts: "javascript", tsx: "javascript", typescript: "javascript", jsonc: "json", json5: "json", sh: "bash",
  shell: "bash", zsh: "bash", console: "bash", xml: "html", svg: "html", vue: "html", scss: "css", rs: "rust",
  c: "cpp", "c++": "cpp", h: "cpp", hpp: "cpp", cc: "cpp", cuda: "cpp", golang: "go", postgresql: "sql",
  mysql: "sql", sqlite: "sql",
};
const patterns = new Map(); // built when a language is first met

/**
 * The code as a document fragment; its text is the code, unchanged.
 * language: as written behind a fence; an unknown one stays plain.
 * Classes: hl-comment, hl-string, hl-number, hl-keyword, hl-constant, hl-type, hl-function,
 * hl-property, hl-variable, hl-option, hl-meta.
 */
export function highlight(code, language) {
  const result = document.createDocumentFragment();
  const given = language.toLowerCase();
  const name = Object.hasOwn(ALIASES, given) ? ALIASES[given] : given;
  if (code.length > LIMIT || !Object.hasOwn(LANGUAGES, name)) {
    result.append(code);
    return result;
  }
  if (!patterns.has(name)) patterns.set(name, patternOf(LANGUAGES[name]));
  let plain = 0;
  for (const found of code.matchAll(patterns.get(name))) {
    const kind = kindOf(found, LANGUAGES[name], code);
    if (!kind) continue;
    result.append(code.slice(plain, found.index), span(`hl-${kind}`, found[0]));
    plain = found.index + found[0].length;
  }
  result.append(code.slice(plain));
  return result;
}

function patternOf({ rules, plainWords }) {
  const all = { ...rules };
  if (!plainWords) all.number ??= NUMBER;
  if (!plainWords) all.word = "[\\p{L}_$][\\p{L}\\p{N}_$]*";
  return new RegExp(Object.entries(all).map(([kind, rule]) => `(?<${kind}>${rule})`).join("|"), "gu");
}

function kindOf({ 0: text, index, groups }, { keywords, constants, types, fold }, code) {
  if (groups.word === undefined) {
    return Object.keys(groups).find((kind) => kind !== "hashes" && groups[kind] !== undefined);
  }
  const word = fold ? text.toLowerCase() : text;
  if (keywords?.has(word)) return "keyword";
  if (constants?.has(word)) return "constant";
  if (types?.has(word)) return "type";
  return keywords && code[index + text.length] === "(" ? "function" : null;
}

function span(className, text) {
  const result = document.createElement("span");
  result.className = className;
  result.textContent = text;
  return result;
}
