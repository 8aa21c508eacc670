"""The JSON of /v1/completions: continued text, complete and in chunks, and its log-probabilities.

Owns: the older format of log-probabilities, and prompts in front of answers. Does not own: requests
(protocol) or HTTP. Source: OpenAI API reference, "The completion object".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from nanochat.engine import Completion, Event, Request
from nanochat.engine.requests import TokenLogprob
from nanochat.server.errors import Json
from nanochat.server.responses import LOWEST_LOGPROB, Head, completion_of, usage
from nanochat.tokenizer import Tokenizer
from nanochat.tokenizer.conversation import StreamDecoder

KIND = "text_completion"


@dataclass(frozen=True)
class ScoredToken:
    """A token, where its text begins, in characters, and how likely it was (None: no one asked)."""

    id: int
    offset: int
    logprob: TokenLogprob | None


class TextAnswer:
    """Formats the answers to one request: n for each prompt, in the order of the prompts.

    logprobs: whether the client asked for them. echo: prompts stand in front of answers. hidden:
    tokens at the start of a prompt that are not shown: the <|bos|> that the server added.
    """

    def __init__(
        self,
        head: Head,
        tokenizer: Tokenizer,
        requests: Sequence[Request],
        *,
        n: int,
        logprobs: bool,
        echo: bool,
        hidden: int,
    ) -> None:
        self._head = head
        self._tokenizer = tokenizer
        self._requests = requests
        self._n = n
        self._logprobs = logprobs
        self._echo = echo
        self._hidden = hidden
        self._sent = [0] * len(requests)  # characters of each choice so far

    def complete(self, answers: Sequence[Sequence[Event]]) -> Json:
        """The answers in one piece, from every choice's events."""
        completions = [completion_of(events) for events in answers]
        choices = []
        for index, (events, completion) in enumerate(zip(answers, completions, strict=True)):
            text, tokens = self._prompt(index, completion.prompt_logprobs)
            for event in events:
                tokens += self._scored(event, len(text))
                text += event.text
            choices.append(self._choice(index, text, tokens, completion.finish_reason))
        body = self._head.body(KIND, choices)
        return body | {"usage": self._usage(dict(enumerate(completions)))}

    def opening(self, index: int) -> Json | None:
        """The prompt, if it is to be returned."""
        if not self._echo:
            return None
        return self._chunk(index, self._prompt(index, [])[0])

    def piece(self, index: int, event: Event) -> Json | None:
        """An event's chunk; None if it says nothing new."""
        tokens = self._scored(event, self._sent[index])
        return self._chunk(index, event.text, tokens) if event.text or tokens else None

    def closing(self, index: int, completion: Completion) -> Json:
        """The last chunk of a choice."""
        return self._chunk(index, "", reason=completion.finish_reason)

    def usage_chunk(self, completions: Mapping[int, Completion]) -> Json:
        """The chunk after all choices, sent if the client set include_usage."""
        return self._head.body(KIND, []) | {"usage": self._usage(completions)}

    def _usage(self, completions: Mapping[int, Completion]) -> Json:
        """Token counts; a prompt counts once, however many answers it has."""
        firsts = range(0, len(self._requests), self._n)
        prompt_tokens = sum(len(self._requests[index].prompt) for index in firsts)
        cached = sum(completions[index].cached_tokens for index in firsts)
        return usage(prompt_tokens, completions.values(), cached)

    def _prompt(
        self, index: int, logprobs: Sequence[TokenLogprob | None]
    ) -> tuple[str, list[ScoredToken]]:
        """The prompt's text and tokens, if they are to be returned."""
        shown = self._requests[index].prompt[self._hidden :] if self._echo else []
        decoder, text = StreamDecoder(self._tokenizer), ""
        tokens = []
        found = logprobs[self._hidden :] or [None] * len(shown)
        for token, logprob in zip(shown, found, strict=True):
            tokens.append(ScoredToken(token, len(text), logprob))
            text += decoder.push(token)
        return text + decoder.flush(), tokens

    def _scored(self, event: Event, offset: int) -> list[ScoredToken]:
        """The event's token, if it has one that was sampled."""
        found = event.logprob
        return [] if found is None else [ScoredToken(found.token, offset, found)]

    def _chunk(
        self,
        index: int,
        text: str,
        tokens: Sequence[ScoredToken] = (),
        reason: str | None = None,
    ) -> Json:
        self._sent[index] += len(text)
        return self._head.body(KIND, [self._choice(index, text, tokens, reason)])

    def _choice(
        self, index: int, text: str, tokens: Sequence[ScoredToken], reason: str | None
    ) -> Json:
        return {
            "index": index,
            "text": text,
            "logprobs": self._table(tokens) if self._logprobs and tokens else None,
            "finish_reason": reason,
        }

    def _table(self, tokens: Iterable[ScoredToken]) -> Json:
        """Log-probabilities as parallel lists; the first token of a text has none."""
        table: dict[str, list[Json | float | str | None]] = {
            name: [] for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")
        }
        for token in tokens:
            found = token.logprob
            table["tokens"].append(self._name(token.id))
            score = None if found is None else max(found.logprob, LOWEST_LOGPROB)
            table["token_logprobs"].append(score)
            table["top_logprobs"].append(self._alternatives(found))
            table["text_offset"].append(token.offset)
        return dict(table)

    def _alternatives(self, found: TokenLogprob | None) -> Json | None:
        """The likeliest tokens, and the one that was taken; None if nobody asked for them."""
        if found is None or not found.top:
            return None
        scores = dict(found.top) | {found.token: found.logprob}
        return {self._name(token): max(score, LOWEST_LOGPROB) for token, score in scores.items()}

    def _name(self, token: int) -> str:
        """A token's text; bytes that are no text are written out, so that names are distinct."""
        raw = self._tokenizer.decode_bytes([token])
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
