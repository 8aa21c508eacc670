// A subset of Markdown as DOM nodes. Text only ever becomes text nodes, never HTML.

/** Paragraphs, headings, lists, quotes and fenced code of a text, as a document fragment. */
export function markdown(text) {
  const result = document.createDocumentFragment();
  const lines = text.split("\n");
  let at = 0;
  while (at < lines.length) {
    const line = lines[at];
    const fence = line.match(/^\s*(```+|~~~+)\s*([\w+#.-]*)/);
    const heading = line.match(/^(#{1,6})\s+(.*)/);
    if (fence) {
      const end = closing(lines, at + 1, fence[1]);
      result.append(codeBlock(lines.slice(at + 1, end).join("\n"), fence[2]));
      at = end + 1;
    } else if (heading) {
      result.append(element(`h${Math.min(6, heading[1].length + 2)}`, inline(heading[2])));
      at += 1;
    } else if (ITEM.test(line)) {
      at = list(result, lines, at);
    } else if (/^>/.test(line)) {
      const end = extent(lines, at, (l) => /^>/.test(l));
      const inner = lines.slice(at, end).map((l) => l.replace(/^> ?/, "")).join("\n");
      result.append(element("blockquote", markdown(inner)));
      at = end;
    } else if (line.trim() === "") {
      at += 1;
    } else {
      const end = extent(lines, at, (l, i) => l.trim() !== "" && (i === at || !BLOCK.test(l)));
      result.append(element("p", inline(lines.slice(at, end).join("\n"))));
      at = end;
    }
  }
  return result;
}

const ITEM = /^\s{0,3}([-*+]|\d{1,9}[.)])\s+/;
const BLOCK = /^\s*(```|~~~|>|#{1,6}\s|[-*+]\s|\d{1,9}[.)]\s)/;
// code, strong, emphasis, link, bare URL; unclosed markup stays plain text
const INLINE =
  /(`+)(.+?)\1|\*\*(?=\S)(.+?)\*\*|\*(?=[^\s*])(.+?)\*|\[([^\]\n]+)\]\(([^)\s]+)\)|(https?:\/\/[^\s<>"')\]]+)/s;

function inline(text) {
  const result = document.createDocumentFragment();
  let rest = text;
  while (rest) {
    const found = rest.match(INLINE);
    if (!found) break;
    result.append(rest.slice(0, found.index));
    const [match, , code, strong, emphasis, label, target, url] = found;
    if (code !== undefined) result.append(element("code", code));
    else if (strong !== undefined) result.append(element("strong", inline(strong)));
    else if (emphasis !== undefined) result.append(element("em", inline(emphasis)));
    else result.append(link(target ?? url, label ?? url) ?? match);
    rest = rest.slice(found.index + match.length);
  }
  result.append(rest);
  return result;
}

function list(result, lines, start) {
  const ordered = /^\s*\d/.test(lines[start]);
  const kind = ordered ? /^\s{0,3}\d{1,9}[.)]\s+/ : /^\s{0,3}[-*+]\s+/;
  const items = element(ordered ? "ol" : "ul");
  if (ordered) items.start = parseInt(lines[start], 10);
  let at = start;
  while (at < lines.length && kind.test(lines[at])) {
    const end = extent(lines, at + 1, (l) => /^\s{2,}\S/.test(l));
    const own = [lines[at].replace(kind, ""), ...lines.slice(at + 1, end)];
    const indent = Math.min(...own.slice(1).map((l) => l.search(/\S/)), 4);
    const [first, ...more] = own;
    const item = element("li", inline(first));
    if (more.length) item.append(markdown(more.map((l) => l.slice(indent)).join("\n")));
    items.append(item);
    at = end;
    if (lines[at]?.trim() === "" && kind.test(lines[at + 1] ?? "")) at += 1;
  }
  result.append(items);
  return at;
}

function codeBlock(code, language) {
  const block = element("div", element("pre", element("code", code)));
  block.className = "code";
  block.dataset.language = language;
  return block;
}

function link(target, label) {
  if (!/^https?:\/\//.test(target)) return null;
  const anchor = element("a", label);
  anchor.href = target;
  anchor.target = "_blank";
  anchor.rel = "noopener noreferrer";
  return anchor;
}

function closing(lines, from, fence) {
  const end = lines.findIndex((line, i) => i >= from && line.trim().startsWith(fence));
  return end < 0 ? lines.length : end;
}

function extent(lines, from, test) {
  let at = from;
  while (at < lines.length && test(lines[at], at)) at += 1;
  return at;
}

function element(name, ...children) {
  const result = document.createElement(name);
  result.append(...children);
  return result;
}
