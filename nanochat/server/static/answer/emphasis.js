// Which marks of emphasis belong together: CommonMark's rules for * and _, and ~~ for what is struck.
// Items while parsing: {text}, {node, height, link?}, {mark, count, length, opens, closes} for a run
// of marks, of which `count` are left, and {bracket, from} for "[" or "![".

const DEPTH = 16; // emphasis inside emphasis; deeper marks are shown as text

/** An element with children. */
export const element = (name, ...children) => filled(document.createElement(name), children);

/** A node with children added: any number of them, which `append(...children)` cannot take. */
export function filled(node, children) {
  for (const child of children) node.append(child);
  return node;
}

/** The items with pairs of marks replaced by elements (CommonMark, "process emphasis"). */
export function emphasized(items, unfinished = false) {
  const result = [];
  const openers = []; // {item, position in result, serial}
  const floors = {}; // per kind of closing mark: no opener up to this serial fits
  let serial = 0;
  for (const item of items) {
    if (item.mark && item.closes) closeMarks(item, result, openers, floors);
    if (item.mark && item.count === 0) continue;
    result.push(item);
    if (item.mark && item.opens) openers.push({ item, position: result.length - 1, serial: ++serial });
  }
  if (!unfinished) return result;
  for (const { item, position } of openers.reverse()) {
    if (item.closes || position === result.length - 1) continue;
    wrap(result, position, Math.min(item.count, 2), item);
  }
  return result;
}

function closeMarks(item, result, openers, floors) {
  while (item.count > 0) {
    const kind = `${item.mark}${item.opens}${item.length % 3}`;
    let at = openers.length - 1;
    while (at >= 0 && openers[at].serial > (floors[kind] ?? 0) && !fits(openers[at].item, item)) at -= 1;
    if (at < 0 || openers[at].serial <= (floors[kind] ?? 0)) {
      floors[kind] = openers.at(-1)?.serial ?? 0;
      return;
    }
    const { item: opener, position } = openers[at];
    const count = item.mark === "~" || (opener.count >= 2 && item.count >= 2) ? 2 : 1;
    openers.length = at + 1;
    if (!wrap(result, position, count, opener)) {
      openers.length = 0; // whatever is further out would be deeper still
      return;
    }
    item.count -= count;
    if (opener.count === 0) openers.pop();
  }
}

function fits(opener, closer) {
  if (opener.mark !== closer.mark) return false;
  if (!opener.closes && !closer.opens) return true;
  return (opener.length + closer.length) % 3 !== 0 || (opener.length % 3 === 0 && closer.length % 3 === 0);
}

/** Put all that follows an opening mark into an element; false if that would be too deep. */
function wrap(result, position, count, opener) {
  const inside = result.slice(position + 1);
  const height = 1 + tallest(inside);
  if (height > DEPTH) return false;
  const name = opener.mark === "~" ? "del" : count === 2 ? "strong" : "em";
  opener.count -= count;
  result.length = position + (opener.count > 0 ? 1 : 0);
  result.push({ node: filled(document.createElement(name), nodes(inside)), height });
  return true;
}

export const tallest = (items) => items.reduce((most, { height = 0 }) => Math.max(most, height), 0);

/** The items as nodes and strings, neighboring texts joined. */
export function nodes(items) {
  const result = [];
  let text = "";
  for (const { node, text: own, bracket, mark, count } of items) {
    text += own ?? bracket ?? (mark ? mark.repeat(count) : "");
    if (!node) continue;
    if (text) result.push(text);
    result.push(node);
    text = "";
  }
  return text ? [...result, text] : result;
}

/** The run of marks at a position: whether it may open or close emphasis is up to its neighbors. */
export function markAt(text, at) {
  const mark = text[at];
  const count = runLength(text, at);
  const low = /[\udc00-\udfff]/.test(text[at - 1] ?? ""); // the second half of a character
  const [space, sign] = kindOf(at > 0 ? text.codePointAt(at - (low ? 2 : 1)) : 32);
  const [spaceAfter, signAfter] = kindOf(text.codePointAt(at + count) ?? 32);
  const left = !spaceAfter && (!signAfter || space || sign);
  const right = !space && (!sign || spaceAfter || signAfter);
  // CommonMark would show 2*3*4 as 234, with an italic 3: a product must keep its signs.
  const product = mark === "*" && count === 1 && /^\d\*\d$/.test(text.slice(Math.max(0, at - 1), at + 2));
  if (product) return { mark, count, length: count, opens: false, closes: false };
  const opens = mark === "_" ? left && (!right || sign) : left;
  const closes = mark === "_" ? right && (!left || signAfter) : right;
  return { mark, count, length: count, opens, closes };
}

/** [is white space, is punctuation or a symbol] */
function kindOf(point) {
  const char = String.fromCodePoint(point);
  return [/\s/u.test(char), /[\p{P}\p{S}]/u.test(char)];
}

/** How often the character at a position is repeated. */
export function runLength(text, at) {
  let end = at + 1;
  while (text[end] === text[at]) end += 1;
  return end - at;
}
