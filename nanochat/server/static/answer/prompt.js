// The exact prompt of an answer: every token that is sent, with its id, and what it takes of the context.

import { make } from "../shared/dom.js";
import { tokenClass, tokenText } from "./tokens.js";

/** {tokens: [{id, text, bytes, special}], count, max_model_len}, as POST /tokenize answers, as an element. */
export function promptView({ tokens, count, max_model_len: most }) {
  const view = make("div", "prompt-view");
  const words = `${count.toLocaleString("en")} token${count === 1 ? "" : "s"}`;
  const head = make("p", "prompt-share", words);
  if (most) {
    const share = make("meter");
    share.max = most;
    share.value = count;
    share.setAttribute("aria-label", "Share of the context");
    const percent = ((100 * count) / most).toFixed(count / most < 0.1 ? 1 : 0);
    head.append(`, ${percent}% of the context of ${most.toLocaleString("en")} `, share);
  }
  const list = make("div", "chips borders");
  for (const token of tokens) {
    const special = token.special ?? false;
    const id = make("small", "", String(token.id));
    list.append(make("span", `chip${tokenClass({ ...token, special })}`, make("span", "", tokenText(token)), id));
    if (token.text.endsWith("\n")) list.append(make("br"));
  }
  view.append(head, list);
  return view;
}
