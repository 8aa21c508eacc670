// The list of conversations: open, search, rename, pin, delete with undo, export and import.

import { byId, icon, iconButton, make, place } from "../shared/dom.js";
import { change, settings } from "./settings.js";

const PHONE = matchMedia("(max-width: 52rem)");
const rows = new Map(); // conversation id -> its element and parts
let actions = {};
let found = null; // ids in which the searched text occurs; null: no search
let searching = 0;

/**
 * Makes the sidebar work. given: open(id), rename(id, title), pin(id), remove(id),
 * exportOne(id, "json" or "md"), exportAll(), importFile(file), search(text) -> Set of ids, and
 * redraw(), which calls drawList with what there is.
 */
export function setUpSidebar(given) {
  actions = given;
  byId("search").addEventListener("input", search);
  byId("toggle-sidebar").addEventListener("click", () => setShown(!shown()));
  byId("hide-sidebar").addEventListener("click", () => setShown(false));
  byId("shade").addEventListener("click", () => setShown(false));
  byId("export-all").addEventListener("click", actions.exportAll);
  byId("import").addEventListener("click", () => byId("import-file").click());
  byId("import-file").addEventListener("change", async () => {
    const [file] = byId("import-file").files;
    byId("import-file").value = ""; // the same file can be chosen again
    if (file) await actions.importFile(file);
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && PHONE.matches && shown() && !menuOpen()) setShown(false);
    if (event.key === "k" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      setShown(true);
      byId("search").focus();
    }
  });
  PHONE.addEventListener("change", () => setShown(!PHONE.matches && settings.sidebar !== false, false));
  setShown(!PHONE.matches && settings.sidebar !== false, false);
}

const shown = () => document.body.classList.contains("with-sidebar");
const menuOpen = () => byId("menu").matches(":popover-open");

/** Shows or hides the sidebar: beside the conversation, or over it on a phone. */
export function setShown(visible, byUser = true) {
  const had = byId("sidebar").contains(document.activeElement);
  document.body.classList.toggle("with-sidebar", visible);
  byId("sidebar").inert = !visible;
  byId("page").inert = visible && PHONE.matches;
  byId("toggle-sidebar").setAttribute("aria-expanded", String(visible));
  if (!byUser) return;
  if (!PHONE.matches) change({ sidebar: visible });
  if (visible) byId("hide-sidebar").focus();
  else if (had || PHONE.matches) byId("toggle-sidebar").focus();
}

/** After a conversation was chosen on a phone the drawer closes. */
export function closeDrawer() {
  if (PHONE.matches && shown()) setShown(false);
}

async function search() {
  const text = byId("search").value.trim();
  const own = (searching += 1);
  const result = text ? await actions.search(text) : null;
  if (own !== searching) return; // typed on meanwhile
  found = result;
  actions.redraw();
}

/** Draws the conversations: records, the open one's id, ids of those being answered. */
export function drawList(records, openId, busy) {
  const visible = records
    .filter((record) => !record.deleted && (!found || found.has(record.id)))
    .sort((a, b) => b.pinned - a.pinned || b.updated - a.updated);
  const items = [];
  let heading = "";
  for (const record of visible) {
    const group = record.pinned ? "Pinned" : age(record.updated);
    if (group !== heading) items.push(headingItem(group));
    heading = group;
    items.push(row(record, record.id === openId, busy.has(record.id)));
  }
  for (const id of rows.keys()) if (!visible.some((record) => record.id === id)) rows.delete(id);
  place(byId("list"), items);
  byId("nothing").hidden = visible.length > 0;
  byId("nothing").textContent = found ? "No conversation contains this." : "Your conversations appear here.";
}

const headings = new Map();

function headingItem(text) {
  if (!headings.has(text)) headings.set(text, make("li", "group", make("h2", "", text)));
  return headings.get(text);
}

function age(time) {
  const midnight = new Date().setHours(0, 0, 0, 0);
  if (time >= midnight) return "Today";
  if (time >= midnight - 864e5) return "Yesterday";
  return time >= midnight - 6 * 864e5 ? "This week" : "Earlier";
}

function row(record, open, busy) {
  if (!rows.has(record.id)) rows.set(record.id, makeRow(record.id));
  const { item, link, title, more } = rows.get(record.id);
  title.textContent = record.title;
  link.title = record.title;
  more.setAttribute("aria-label", `Actions for ${record.title}`);
  if (open) link.setAttribute("aria-current", "page");
  else link.removeAttribute("aria-current");
  item.classList.toggle("busy", busy);
  item.dataset.pinned = record.pinned;
  return item;
}

function makeRow(id) {
  const title = make("span", "title");
  const link = make("button", "conversation", title, make("span", "dot"));
  link.type = "button";
  link.addEventListener("click", () => actions.open(id));
  link.addEventListener("dblclick", () => startRenaming(id));
  const more = iconButton("dots", "Actions", () => showMenu(id));
  more.setAttribute("aria-haspopup", "menu");
  const item = make("li", "row-item", link, more);
  return { item, link, title, more };
}

// ---------------------------------------------------------------- one conversation's menu

function showMenu(id) {
  const { item, more } = rows.get(id);
  const menu = byId("menu");
  const entries = [
    ["edit", "Rename", () => startRenaming(id)],
    ["pin", item.dataset.pinned === "true" ? "Unpin" : "Pin", () => actions.pin(id)],
    ["down", "Export as JSON", () => actions.exportOne(id, "json")],
    ["down", "Export as Markdown", () => actions.exportOne(id, "md")],
    ["trash", "Delete", () => actions.remove(id)],
  ];
  menu.replaceChildren(
    ...entries.map(([symbol, text, run]) => {
      const button = make("button", "", icon(symbol), text);
      button.type = "button";
      button.setAttribute("role", "menuitem");
      button.addEventListener("click", () => {
        menu.hidePopover();
        run();
      });
      return button;
    }),
  );
  menu.onkeydown = (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const buttons = [...menu.children];
    const at = buttons.indexOf(document.activeElement) + step;
    buttons[(at + buttons.length) % buttons.length].focus();
  };
  menu.showPopover();
  const place = more.getBoundingClientRect();
  const top = Math.min(place.bottom + 4, window.innerHeight - menu.offsetHeight - 8);
  menu.style.top = `${Math.max(8, top)}px`;
  menu.style.left = `${Math.max(8, Math.min(place.left, window.innerWidth - menu.offsetWidth - 8))}px`;
  menu.firstElementChild.focus();
}

function startRenaming(id) {
  const { item, link, title } = rows.get(id);
  const input = make("input", "renaming");
  input.value = title.textContent;
  input.maxLength = 200;
  input.setAttribute("aria-label", "Title");
  let done = false;
  const finish = (kept) => {
    if (done) return;
    done = true;
    const text = input.value.trim();
    input.replaceWith(link);
    if (kept && text) actions.rename(id, text);
    link.focus();
  };
  input.addEventListener("keydown", (event) => {
    event.stopPropagation();
    if (event.key !== "Enter" && event.key !== "Escape") return;
    event.preventDefault(); // the focus moves to the conversation, which Enter would open
    finish(event.key === "Enter");
  });
  input.addEventListener("blur", () => finish(true));
  link.replaceWith(input);
  input.select();
  item.scrollIntoView({ block: "nearest" });
}
