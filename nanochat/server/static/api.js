// The server's API: its model, and streamed answers.

/** An error with a message for the user; `retryable` tells whether trying again may help. */
export class ApiError extends Error {
  constructor(message, { status = 0, retryable = true } = {}) {
    super(message);
    this.status = status;
    this.retryable = retryable;
  }
}

/** The served model: {id, max_model_len, defaults}. */
export async function fetchModel() {
  const response = await request("v1/models");
  return (await response.json()).data[0];
}

/**
 * Request an answer. `onPiece(type, text)` gets text, python and python_output as they arrive.
 * Returns {reason, usage}; rejects with an AbortError if `signal` is aborted.
 */
export async function streamAnswer(body, signal, onPiece) {
  const response = await request("v1/chat/completions", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({
      ...body,
      stream: true,
      stream_options: { include_usage: true },
      tool_activity: true,
    }),
    signal,
  });
  const result = { reason: null, usage: null };
  for await (const chunk of serverEvents(response.body)) {
    if (chunk.error) throw new ApiError(chunk.error.message);
    if (chunk.usage) result.usage = chunk.usage;
    const choice = chunk.choices?.[0];
    if (!choice) continue;
    const { content, tool_activity: tool } = choice.delta;
    if (content) onPiece("text", content);
    if (tool) onPiece(tool.type, tool.text);
    if (choice.finish_reason) result.reason = choice.finish_reason;
  }
  if (result.reason === null) throw new ApiError("The connection was lost before the answer was complete.");
  return result;
}

async function request(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server does not respond. Is it still running?");
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  const message = body?.error?.message ?? `The server responded with status ${response.status}.`;
  const messages = {
    429: "The server is busy. Please try again in a moment.",
    503: message.startsWith("the model is loading") ? "The model is still loading…" : message,
  };
  throw new ApiError(messages[response.status] ?? message, {
    status: response.status,
    retryable: response.status >= 429,
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
