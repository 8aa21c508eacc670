// The server's API: its models, token counts, and streamed answers.

const KEY = "nanochat.key"; // in localStorage: the API key, for servers that ask for one

/** An error with a message for the user; `retryable` tells whether trying again may help. */
export class ApiError extends Error {
  constructor(message, { status = 0, retryable = true } = {}) {
    super(message);
    this.status = status;
    this.retryable = retryable;
  }
}

let key = "";
try {
  key = localStorage.getItem(KEY) ?? "";
} catch {
  // storage is disabled: the key lasts as long as the page
}

/** Sends this API key from now on, and keeps it in this browser. */
export function setKey(value) {
  key = value;
  try {
    localStorage.setItem(KEY, value);
  } catch {
    // see above
  }
}

/** The header that tells who we are: {} without a key. */
export const authorization = () => (key ? { authorization: `Bearer ${key}` } : {});

/** The served models: [{id, max_model_len, defaults, ...}], the default first. */
export async function fetchModels() {
  const response = await request("v1/models");
  return (await response.json()).data;
}

/**
 * The tokens of {model, text} or {model, messages}: {count, tokens: [{id, text, special}]}; null
 * where the server cannot tell.
 */
export async function tokenize(body, signal) {
  try {
    return await (await request("tokenize", post(body, signal))).json();
  } catch {
    return null;
  }
}

/**
 * Request an answer. `onPiece(type, text)` gets text, python and python_output as they arrive,
 * `onLogprobs(entries, shown)` the tokens' probabilities, after the piece they came with; not
 * `shown` if their text is held back.
 * Returns {reason, usage}; rejects with an AbortError if `signal` is aborted.
 */
export async function streamAnswer(body, signal, { onPiece, onLogprobs }) {
  const options = { stream: true, stream_options: { include_usage: true }, tool_activity: true };
  const response = await request("v1/chat/completions", post({ ...body, ...options }, signal));
  const result = { reason: null, usage: null };
  for await (const chunk of serverEvents(response.body)) {
    if (chunk.error) throw new ApiError(chunk.error.message);
    if (chunk.usage) result.usage = chunk.usage;
    const choice = chunk.choices?.[0];
    if (!choice) continue;
    const { content, tool_activity: tool } = choice.delta;
    if (content) onPiece("text", content);
    if (tool) onPiece(tool.type, tool.text);
    if (choice.logprobs?.content?.length) onLogprobs(choice.logprobs.content, Boolean(content || tool));
    if (choice.finish_reason) result.reason = choice.finish_reason;
  }
  if (result.reason === null) throw new ApiError("The connection was lost before the answer was complete.");
  return result;
}

function post(body, signal) {
  const headers = { "content-type": "application/json" };
  return { method: "POST", headers, body: JSON.stringify(body), signal };
}

async function request(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { ...options, headers: { ...options.headers, ...authorization() } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server does not respond. Is it still running?");
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  const message = body?.error?.message ?? `The server responded with status ${response.status}.`;
  const messages = {
    401: "The server asks for an API key.",
    429: "The server is busy. Please try again in a moment.",
    503: message.includes("loading") ? "The model is still loading…" : message,
  };
  throw new ApiError(messages[response.status] ?? message, {
    status: response.status,
    retryable: response.status >= 429 || response.status === 401,
  });
}

/** The parsed server-sent events, until "[DONE]" or the end of the stream. */
async function* serverEvents(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let pending = "";
  while (true) {
    let piece;
    try {
      piece = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError("The connection was lost before the answer was complete.");
    }
    if (piece.done) return;
    pending += piece.value;
    const events = pending.split("\n\n");
    pending = events.pop();
    for (const event of events) {
      if (!event.startsWith("data: ")) continue; // a keep-alive comment
      const data = event.slice("data: ".length);
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}
