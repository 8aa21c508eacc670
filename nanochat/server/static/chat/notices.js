// Messages to the user beside the conversation: notices that stay, and a toast that goes.

import { byId, iconButton, make, place, textButton } from "../shared/dom.js";

const shown = new Map(); // key -> element

/** Shows a notice until it is closed; one of the same key takes its place. action: [label, run]. */
export function notify(text, { key = text, action = null, onClose = () => {} } = {}) {
  const close = iconButton("close", "Close the notice", () => {
    dismiss(key);
    onClose();
  });
  const notice = make("div", "notice", make("span", "", text));
  notice.setAttribute("role", "alert");
  if (action) notice.append(textButton(action[0], action[1]));
  notice.append(close);
  shown.set(key, notice);
  place(byId("notices"), [...shown.values()]);
}

export function dismiss(key) {
  shown.delete(key);
  place(byId("notices"), [...shown.values()]);
}

let timer = 0;

/** Shows a text for some seconds, with an action such as Undo: [label, run]. */
export function toast(text, action = null, seconds = 8) {
  clearTimeout(timer);
  const hide = () => byId("toast").replaceChildren();
  const box = make("div", "toast-box", make("span", "", text));
  if (action) {
    box.append(
      textButton(action[0], () => {
        hide();
        action[1]();
      }),
    );
  }
  byId("toast").replaceChildren(box);
  timer = setTimeout(hide, seconds * 1000);
}
