// One answer in the making: the stream into a message, its clock, and what is saved meanwhile.

import { ApiError, streamAnswer } from "../shared/api.js";
import { append } from "./conversation.js";
import { compact } from "./logprobs.js";

const SAVE_MS = 700; // what a reload in the middle of an answer may lose

/**
 * Streams the answer to `body` into `node`, after what it holds already. onProgress(line) is called
 * for each piece, onSave() at intervals. Returns the error, or null; never rejects.
 */
export async function generate({ node, body, signal, onProgress, onSave }) {
  const clock = stopwatch();
  const rows = node.logprobs ?? []; // of the text that the answer starts with
  let saved = performance.now();
  let failure = null;
  Object.assign(node, { state: "working", note: "", error: undefined, cut: undefined });
  node.logprobs = undefined; // stored only when complete: some of them would not match the text
  onProgress(clock.line());
  try {
    const result = await streamAnswer(body, signal, {
      onPiece(type, text) {
        clock.tick();
        append(node.content, type, text);
        if (performance.now() - saved > SAVE_MS) {
          saved = performance.now();
          onSave();
        }
        onProgress(clock.line());
      },
      onLogprobs(entries, shown) {
        // Text that is held back after a tool call belongs to the part that it will start.
        const open = shown || node.content.at(-1)?.type === "text";
        rows.push(...compact(entries, node.content.length - (open ? 1 : 0)));
      },
    });
    Object.assign(node, { state: "done", note: clock.note(result), usage: result.usage ?? undefined });
    if (result.reason === "length") node.cut = true;
  } catch (error) {
    if (error.name === "AbortError") Object.assign(node, { state: "stopped", note: clock.note({}) });
    else {
      failure = error;
      const known = error instanceof ApiError;
      const empty = node.content.length === 0;
      node.state = empty ? "failed" : "interrupted";
      node.error = known ? error.message : `Something went wrong: ${error.message}`;
      if (!known) console.error(error);
    }
  }
  if (rows.length) node.logprobs = rows;
  return failure;
}

function stopwatch() {
  const start = performance.now();
  let first = null;
  let count = 0;
  const seconds = (since) => (performance.now() - since) / 1000;
  // Measured from the start: a short answer arrives in one burst, at the network's speed.
  const rate = (tokens) => (tokens > 1 ? `${(tokens / seconds(start)).toFixed(1)} tokens/s` : "");
  return {
    tick() {
      first ??= performance.now();
      count += 1;
    },
    line: () => (first === null ? "Thinking…" : rate(count) || "Writing…"),
    note({ usage }) {
      const tokens = usage?.completion_tokens ?? count;
      const parts = [`${tokens} token${tokens === 1 ? "" : "s"}`];
      if (first !== null && tokens > 1) parts.push(rate(tokens));
      if (first !== null) parts.push(`first after ${((first - start) / 1000).toFixed(2)}\u00a0s`);
      return parts.join(" · ");
    },
  };
}
