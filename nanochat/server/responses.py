"""The JSON of responses: chat completions, complete and in chunks, and what is said of tokens.

Owns: response formats. Does not own: requests (protocol) or HTTP.
Source: OpenAI API reference, "The chat completion object" and "chat completion chunk"; `id` and
`rank` of a token, tool_activity, dropped_messages and dropped_tools are extensions.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from nanochat.engine import Completion, Event
from nanochat.engine.requests import TokenLogprob
from nanochat.server.errors import Json
from nanochat.server.tools import call_of
from nanochat.tokenizer import SPECIAL_TOKENS, Tokenizer
from nanochat.tokenizer.messages import Part

LOWEST_LOGPROB = -9999.0  # JSON has no infinity; OpenAI writes this


@dataclass(frozen=True)
class Head:
    """What every chunk of a response repeats: the model's id, an id of its own, and the time."""

    model: str
    id: str
    created: int

    @classmethod
    def new(cls, model: str, prefix: str) -> Head:
        """A head for a new response."""
        return cls(model, f"{prefix}-{uuid.uuid4().hex}", int(time.time()))

    def body(self, kind: str, choices: list[Json]) -> Json:
        """A response body or chunk."""
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }


@dataclass(frozen=True, kw_only=True)
class ChatAnswer:
    """Formats the answer to one chat request, complete or in chunks.

    logprobs, tool_activity: whether the client asked for them. functions: whether it offered any;
    code that is a call of one is then not shown as tool_activity. dropped: messages that were left
    out of the prompt; None if the client did not allow it. dropped_tools: definitions of tools that
    were left out, as they did not fit.
    """

    head: Head
    tokenizer: Tokenizer
    prompt_tokens: int
    logprobs: bool = False
    tool_activity: bool = False
    functions: bool = False
    dropped: int | None = None
    dropped_tools: int = 0
    _code: dict[int, str] = field(default_factory=dict)  # of the python part that a choice is in

    def complete(self, answers: Sequence[Sequence[Event]]) -> Json:
        """The answer in one piece, from every choice's events."""
        completions = [completion_of(events) for events in answers]
        choices = []
        for index, (events, completion) in enumerate(zip(answers, completions, strict=True)):
            call, parts = self._call(completion)
            message: Json = {"role": "assistant", "content": completion.text}
            if call:
                message |= {"content": completion.text or None, "tool_calls": [call]}
            if self.tool_activity:
                message["tool_activity"] = parts
            entries = [entry for event in events for entry in self._entries(event)]
            choices.append(
                {
                    "index": index,
                    "message": message,
                    "logprobs": self._logprobs(entries),
                    "finish_reason": "tool_calls" if call else completion.finish_reason,
                }
            )
        body = self.head.body("chat.completion", choices)
        return body | {"usage": self.usage(dict(enumerate(completions)))}

    def opening(self, index: int) -> Json:
        """The first chunk of a choice."""
        return self._chunk(index, {"role": "assistant", "content": ""})

    def piece(self, index: int, event: Event) -> Json | None:
        """An event's chunk; None if it has nothing that the client asked for."""
        entries = self._entries(event)
        delta: Json = {}
        code = self._code.get(index, "") + event.text if event.kind == "python" else ""
        self._code[index] = code
        if event.kind == "text":
            delta = {"content": event.text}
        elif self.tool_activity and not (self.functions and code.startswith("{")):
            delta = {"tool_activity": {"type": event.kind, "text": event.text}}
        return self._chunk(index, delta, entries) if (event.text and delta) or entries else None

    def closing(self, index: int, completion: Completion) -> Json:
        """The last chunk of a choice; a call of a function comes in it, in one piece."""
        call, _ = self._call(completion)
        if call:
            return self._chunk(index, {"tool_calls": [{"index": 0, **call}]}, reason="tool_calls")
        return self._chunk(index, {}, reason=completion.finish_reason)

    def usage_chunk(self, completions: Mapping[int, Completion]) -> Json:
        """The chunk after all choices, sent if the client set include_usage."""
        return self.head.body("chat.completion.chunk", []) | {"usage": self.usage(completions)}

    def usage(self, completions: Mapping[int, Completion]) -> Json:
        """Token counts; the completion's include forced tool output."""
        counts = usage(self.prompt_tokens, completions.values(), completions[0].cached_tokens)
        if self.dropped is not None:
            counts["dropped_messages"] = self.dropped
        if self.dropped_tools:
            counts["dropped_tools"] = self.dropped_tools
        return counts

    def _call(self, completion: Completion) -> tuple[Json | None, Sequence[Part]]:
        """The call of a function that an answer ends with, and the parts in front of it."""
        parts = completion.parts
        if not self.functions or not parts or parts[-1]["type"] != "python":
            return None, parts
        call = call_of(parts[-1]["text"])
        if call is None:
            return None, parts
        return {"id": f"call_{uuid.uuid4().hex}", "type": "function", "function": call}, parts[:-1]

    def _entries(self, event: Event) -> list[Json]:
        """What is said of the event's token.

        Without tool_activity only tokens of the text count, so that they add up to the content.
        """
        if not self.logprobs or event.logprob is None:
            return []
        in_text = event.kind == "text" and not is_special(event.logprob.token, self.tokenizer)
        return [token_entry(event.logprob, self.tokenizer)] if in_text or self.tool_activity else []

    def _logprobs(self, entries: list[Json]) -> Json | None:
        return {"content": entries, "refusal": None} if self.logprobs else None

    def _chunk(
        self, index: int, delta: Json, entries: Sequence[Json] = (), *, reason: str | None = None
    ) -> Json:
        choice = {
            "index": index,
            "delta": delta,
            "logprobs": self._logprobs(list(entries)) if entries else None,
            "finish_reason": reason,
        }
        return self.head.body("chat.completion.chunk", [choice])


def completion_of(events: Sequence[Event]) -> Completion:
    """The completion at the end of a request's events."""
    completion = events[-1].completion
    assert completion is not None
    return completion


def usage(prompt_tokens: int, completions: Collection[Completion], cached: int) -> Json:
    """Token counts of a response."""
    completion_tokens = sum(len(completion.tokens) for completion in completions)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def is_special(token: int, tokenizer: Tokenizer) -> bool:
    """Whether a token is one of the special ones, which come last in every vocabulary."""
    return token >= tokenizer.vocab_size - len(SPECIAL_TOKENS)


def token_entry(found: TokenLogprob, tokenizer: Tokenizer) -> Json:
    """A token's log-probability, rank and likeliest alternatives, as in logprobs.content."""
    return {
        **_scored(found.token, found.logprob, tokenizer),
        "rank": found.rank,
        "top_logprobs": [_scored(token, logprob, tokenizer) for token, logprob in found.top],
    }


def _scored(token: int, logprob: float, tokenizer: Tokenizer) -> Json:
    raw = tokenizer.decode_bytes([token])
    return {
        "token": raw.decode("utf-8", "replace"),
        "logprob": max(logprob, LOWEST_LOGPROB),
        "bytes": list(raw),
        "id": token,
    }


def token_list(tokens: Sequence[int], tokenizer: Tokenizer) -> list[Json]:
    """Every token with its text, for /tokenize."""
    return [
        {
            "id": token,
            "text": tokenizer.decode([token]),
            "bytes": list(tokenizer.decode_bytes([token])),
            "special": is_special(token, tokenizer),
        }
        for token in tokens
    ]
