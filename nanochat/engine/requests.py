"""What goes into the engine and what comes out: requests, completions, events, and their text.

Owns the reading of tool tokens and the holding back of half characters and half stop strings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from nanochat.engine.sampling import SamplingParams
from nanochat.tokenizer import SPECIAL_TOKENS, Tokenizer
from nanochat.tokenizer.conversation import Part, PartType, StreamDecoder

FinishReason = Literal["stop", "length", "abort"]


@dataclass(frozen=True, kw_only=True)
class Request:
    """A prompt and how to go on from it.

    chat: ends at <|assistant_end|> as well as at <|bos|> and may use tools; without it the prompt
    is plain text to continue. tools: compute what stands between <|python_start|> and
    <|python_end|> and let the model read the result.
    """

    prompt: list[int]
    params: SamplingParams = field(default_factory=SamplingParams)
    tools: bool = True
    chat: bool = True


@dataclass(frozen=True)
class Completion:
    """All that a request produced.

    tokens: sampled and forced ones, the special token that ended it included. mask: 1 where
    sampled, 0 where forced (a tool's output). text: what the assistant says, without tool calls
    and their output. parts: text and tool activity in order, as an assistant message's content.
    """

    tokens: list[int]
    mask: list[int]
    finish_reason: FinishReason
    text: str
    parts: list[Part]


@dataclass(frozen=True)
class Event:
    """A piece of a request's answer; the last one carries the completion, and held-back text."""

    request_id: int
    kind: PartType = "text"
    text: str = ""
    token: int | None = None
    completion: Completion | None = None

    @property
    def done(self) -> bool:
        """Whether the request has ended."""
        return self.completion is not None


class Transcript:
    """The answer so far, token by token.

    Special tokens never show: those of tools change the kind of what follows. Stop strings are
    looked for in text only; the text ends before the first of them.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self._kind_after: dict[int, PartType] = {
            tokenizer.special_id("<|python_start|>"): "python",
            tokenizer.special_id("<|python_end|>"): "text",
            tokenizer.special_id("<|output_start|>"): "python_output",
            tokenizer.special_id("<|output_end|>"): "text",
        }
        self._special = {tokenizer.special_id(name) for name in SPECIAL_TOKENS}
        self._decoder = StreamDecoder(tokenizer)
        self._stop = tuple(stop)
        self._held = ""  # the end of the text, while it may be the start of a stop string
        self.kind: PartType = "text"
        self.stopped = False
        self.parts: list[Part] = []

    @property
    def text(self) -> str:
        """What the assistant says, without tool calls and their output."""
        return "".join(part["text"] for part in self.parts if part["type"] == "text")

    def push(self, token: int) -> tuple[PartType, str]:
        """Take the next token; return the text that has become certain, with its kind."""
        if token not in self._special:
            return self._show(self._decoder.push(token), final=False)
        shown = self._show(self._decoder.flush(), final=True)
        self.kind = self._kind_after.get(token, self.kind)
        return shown

    def flush(self) -> tuple[PartType, str]:
        """Return what was held back; no token follows."""
        return self._show(self._decoder.flush(), final=True)

    def _show(self, text: str, *, final: bool) -> tuple[PartType, str]:
        if self.stopped:
            return self.kind, ""
        if self._stop and self.kind == "text":
            text = self._cut(self._held + text, final=final)
        if text:
            if self.parts and self.parts[-1]["type"] == self.kind:
                self.parts[-1]["text"] += text
            else:
                self.parts.append({"type": self.kind, "text": text})
        return self.kind, text

    def _cut(self, text: str, *, final: bool) -> str:
        """Return the part of the text that stays; hold back what may yet become a stop string."""
        found = [place for stop in self._stop if (place := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            self._held = ""
            return text[: min(found)]
        held = 0 if final else max(_overlap(text, stop) for stop in self._stop)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`.

    >>> _overlap("one tw", "two")
    2
    """
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[len(text) - length :]):
            return length
    return 0
