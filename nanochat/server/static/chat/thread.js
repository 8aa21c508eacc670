// The open conversation on the screen: its messages, or answers side by side, and scrolling.

import { byId, make, place } from "../shared/dom.js";
import { plainText } from "./conversation.js";
import { messageView } from "./view.js";

const views = new Map(); // node id, or group id -> view
let follow = true; // scroll with the answer, unless the reader scrolled up
let announced = { node: null, length: 0 };

byId("scroll").addEventListener("scroll", () => {
  const { scrollTop, clientHeight, scrollHeight } = byId("scroll");
  follow = scrollHeight - scrollTop - clientHeight < 60;
});

/** Forgets the messages of the conversation that was open before. */
export function clearThread() {
  views.clear();
  follow = true;
}

/**
 * Draws the shown path of a tree (null: none yet). stateOf(node): its state as the user should see
 * it. named: whether answers show their model.
 */
export function drawThread(tree, { actions, stateOf, named }) {
  const path = tree?.path() ?? [];
  const group = sideBySide(tree, path);
  const items = path.map((node, at) => {
    const last = at === path.length - 1;
    if (last && group) return drawGroup(group, { actions, stateOf });
    const view = viewOf(node, actions, "li");
    const state = stateOf(node);
    const siblings = tree.siblings(node);
    const reply = path[at + 1];
    const replies = group && at === path.length - 2 ? group : [reply];
    const empty = (answer) => answer?.content.length === 0 && stateOf(answer) !== "working";
    const unanswered = node.role === "user" && replies.every(empty);
    view.update({ state, siblings, last, named, unanswered });
    return view.item;
  });
  place(byId("messages"), items);
  byId("welcome").hidden = path.length > 0;
  byId("thread").classList.toggle("wide", Boolean(group));
}

/** Redraws one message that is being written. */
export function redraw(node, tree, stateOf) {
  const view = views.get(node.id);
  if (!view) return;
  const compared = view.item.localName === "section";
  const path = tree.path();
  const last = path.at(-1) === node;
  view.update({ state: stateOf(node), siblings: tree.siblings(node), last, compared });
  if (last && !compared) announce(node);
  scrollDown();
}

/** The answers at the end of a path that wait for the user to choose between them, or null. */
export function sideBySide(tree, path) {
  const last = path.at(-1);
  if (!last?.group) return null;
  const members = tree.siblings(last).filter((node) => node.group === last.group);
  return members.length > 1 && !members.some((node) => node.picked) ? members : null;
}

function viewOf(node, actions, tag) {
  const known = views.get(node.id);
  if (known?.item.localName === tag) return known;
  const view = messageView(node, actions, tag);
  views.set(node.id, view);
  return view;
}

function drawGroup(members, { actions, stateOf }) {
  const key = members[0].group;
  if (!views.has(key)) {
    const columns = make("div", "columns");
    views.set(key, { item: make("li", "message compare", columns), columns });
  }
  const { item, columns } = views.get(key);
  const sections = members.map((node) => {
    const view = viewOf(node, actions, "section");
    view.item.setAttribute("aria-label", `Answer of ${node.model}`);
    view.update({ state: stateOf(node), siblings: [], last: true, compared: true });
    return view.item;
  });
  columns.dataset.count = members.length;
  place(columns, sections);
  return item;
}

/** Shows the end of the conversation; `always` also if the reader had scrolled up. */
export function scrollDown(always = false) {
  if (always) follow = true;
  if (follow) byId("scroll").scrollTop = byId("scroll").scrollHeight;
}

/** Puts the focus on a message's pager after its sibling was replaced. step: -1 or 1. */
export function focusPager(node, step) {
  const buttons = views.get(node.id)?.item.querySelectorAll(".pager button") ?? [];
  const wanted = buttons[step < 0 ? 0 : 1];
  (wanted?.disabled ? buttons[step < 0 ? 1 : 0] : wanted)?.focus();
}

/** Announces an answer to screen readers in full sentences: single tokens would stutter. */
export function announce(node, final = false) {
  const text = plainText(node);
  if (announced.node !== node.id) announced = { node: node.id, length: 0 };
  const ends = [". ", "! ", "? ", "\n"].map((mark) => text.lastIndexOf(mark));
  const end = final ? text.length : Math.max(...ends) + 1;
  if (end <= announced.length) return;
  byId("announcer").textContent = text.slice(announced.length, end);
  announced.length = end;
}
