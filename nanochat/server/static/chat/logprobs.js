// The probabilities of an answer's tokens: kept compactly, and prefixes of the answer to branch from.

/**
 * The API's entries as rows [part, id, token, logprob, rank, [[id, token, logprob, bytes], ...], bytes],
 * a fifth of their size. part: index of the part of the answer that the token belongs to. Bytes are
 * kept where the text does not say them: tokens that are a piece of a character.
 */
export function compact(entries, part) {
  return entries.map(({ id, token, logprob, rank, top_logprobs: top, bytes }) => [
    part,
    id ?? null,
    token,
    rounded(logprob),
    rank ?? null,
    (top ?? []).map((other) => [other.id ?? null, other.token, rounded(other.logprob), unsaid(other)]),
    unsaid({ token, bytes }),
  ]);
}

/** The entries of compact's rows, as the API sent them. */
export function expand(rows) {
  return rows.map(([part, id, token, logprob, rank, top, bytes]) => ({
    part,
    id,
    token,
    logprob,
    rank,
    bytes: bytes ?? utf8(token),
    top_logprobs: top.map(([otherId, text, value, raw]) => ({
      id: otherId,
      token: text,
      logprob: value,
      bytes: raw ?? utf8(text),
    })),
  }));
}

/**
 * {content}: the answer's parts before the token at `index`, and the alternative in its place: what
 * a branch starts with. {refusal}: why that cannot be written as text.
 */
export function prefixBefore(content, rows, index, alternative) {
  const part = rows[index][0];
  if (SPECIAL.test(alternative.token)) return { refusal: "It is a mark of the model's, not text." };
  if (content[part]?.type !== "text") return { refusal: "It is inside a tool call." };
  if (alternative.token.includes("\ufffd")) return { refusal: CUT };
  const text = (some) => decoded(some.filter((row) => row[0] === part && !SPECIAL.test(row[2])));
  const kept = text(rows.slice(0, index));
  if (kept.includes("\ufffd")) return { refusal: CUT };
  // An answer that was itself a branch starts with text that came without probabilities.
  const full = content[part].text;
  const given = Math.max(0, full.length - text(rows).length);
  const prefix = full.slice(0, given) + kept + alternative.token;
  return { content: [...content.slice(0, part), { type: "text", text: prefix }] };
}

/** The rows of such a branch: those before the token at `index`, and the alternative's. */
export function rowsBefore(rows, index, alternative) {
  const [part, , , , , top] = rows[index];
  const rank = top.findIndex(([id, token]) => id === alternative.id && token === alternative.token) + 1;
  const { id, token, logprob } = alternative;
  return [...rows.slice(0, index), [part, id ?? null, token, logprob, rank || null, top, null]];
}

/** The rows of an answer's first `count` parts: those of a call that was cut off behind them are gone. */
export function rowsOfParts(rows, count) {
  const kept = rows.filter(([part]) => part < count);
  while (kept.length < rows.length && kept.at(-1)?.[2] === "<|python_start|>") kept.pop();
  return kept;
}

const CUT = "It is only a piece of a character.";
const SPECIAL = /^<\|.*\|>$/;

function decoded(rows) {
  const bytes = rows.flatMap(([, , token, , , , raw]) => raw ?? utf8(token));
  return new TextDecoder().decode(new Uint8Array(bytes));
}

const unsaid = ({ token, bytes }) => (token.includes("\ufffd") ? (bytes ?? null) : null);
const utf8 = (text) => Array.from(new TextEncoder().encode(text));
const rounded = (value) => (Number.isFinite(value) ? Math.round(value * 1e4) / 1e4 : -9999);
