"""The engine's input and output: requests, completions, events, and the text of their tokens.

Owns the meaning of tool tokens, and holds back incomplete characters and possible stop strings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from nanochat.engine.sampling import SamplingParams
from nanochat.system.errors import ConfigError
from nanochat.tokenizer import SPECIAL_TOKENS, Tokenizer
from nanochat.tokenizer.conversation import Part, PartType, StreamDecoder

FinishReason = Literal["stop", "length", "abort"]


@dataclass(frozen=True, kw_only=True)
class Request:
    """A prompt and how to continue it.

    chat: the answer ends at <|assistant_end|> as well as at <|bos|> and may use tools; without it
    the prompt is plain text to continue. tools: evaluate the expression between <|python_start|>
    and <|python_end|> and let the model read the result. prompt_logprobs: report the prompt's
    tokens as well, with as many alternatives as params.logprobs says. client: who asks; free slots
    go to waiting clients in turn.
    """

    prompt: list[int]
    params: SamplingParams = field(default_factory=SamplingParams)
    tools: bool = True
    chat: bool = True
    prompt_logprobs: bool = False
    client: str = ""

    def check(self, vocab_size: int) -> None:
        """Refuse what no engine with this vocabulary can do.

        Raises: ConfigError for a prompt that is empty, for a token outside the vocabulary, and if
        nothing at all is asked for.
        """
        last = vocab_size - 1
        if not self.prompt:
            raise ConfigError("the prompt has no tokens; start it with <|bos|>")
        if not 0 <= min(self.prompt) <= max(self.prompt) <= last:
            raise ConfigError(f"the prompt has a token outside 0..{last}")
        biased = self.params.logit_bias
        if biased and not 0 <= min(biased) <= max(biased) <= last:
            raise ConfigError(f"logit_bias has a token outside 0..{last}")
        if self.params.max_new_tokens == 0 and not self.prompt_logprobs:
            raise ConfigError("max_new_tokens must be at least 1, got 0")


@dataclass(frozen=True)
class TokenLogprob:
    """How likely the model finds a token: natural logs of its own distribution, in float32.

    That is before temperature, penalties, bias, truncation and grammar. rank: 1 is the likeliest.
    top: the likeliest tokens and their log-probabilities, likeliest first.
    """

    token: int
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Completion:
    """Everything a request produced.

    tokens: sampled and forced tokens, including the special token that ended the answer. mask: 1
    for sampled tokens, 0 for forced ones (a tool's output). text: the assistant's text, without
    tool calls and their output. parts: text and tool activity in order, as the content of an
    assistant message. logprobs: parallel to tokens, None for forced ones; empty unless requested.
    prompt_logprobs: parallel to the prompt, None for its first token; empty unless requested.
    cached_tokens: prompt tokens whose keys and values were in the cache already.
    """

    tokens: list[int]
    mask: list[int]
    finish_reason: FinishReason
    text: str
    parts: list[Part]
    logprobs: list[TokenLogprob | None] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob | None] = field(default_factory=list)
    cached_tokens: int = field(default=0, compare=False)


@dataclass(frozen=True)
class EngineStats:
    """What an engine is doing, and totals since it was made.

    running, waiting: requests. cached_prefix_tokens: prompt tokens found in the cache.
    deterministic: whether equal seeds give equal answers, and on what condition, in a sentence.
    """

    slots: int
    slots_in_use: int
    waiting: int
    running: int
    requests: int
    prompt_tokens: int
    cached_prefix_tokens: int
    generated_tokens: int
    deterministic: str


def determinism(dtype: torch.dtype) -> str:
    """When equal requests with equal seeds are answered equally, in a sentence."""
    name = str(dtype).removeprefix("torch.")
    if dtype in (torch.float32, torch.float64):
        return (
            f"in {name}: equal seeds give equal answers alone, in any batch and after a restart, "
            "except where two tokens' scores differ by less than rounding"
        )
    return (
        f"in {name}: equal seeds usually give equal answers; they may differ where a prompt was "
        "read in other pieces or beside other requests, which changes the rounding; float32 rounds "
        "far finer"
    )


@dataclass(frozen=True)
class Event:
    """A piece of a request's answer; the last one holds the completion and any held-back text.

    logprob: of this event's token, if it was sampled and its request asked for it.
    """

    request_id: int
    kind: PartType = "text"
    text: str = ""
    token: int | None = None
    completion: Completion | None = None
    logprob: TokenLogprob | None = None

    @property
    def done(self) -> bool:
        """Whether the request has ended."""
        return self.completion is not None


class Transcript:
    """The text of an answer, built up token by token.

    Special tokens are never shown; those of tools change the kind of the text after them. Stop
    strings are searched for in text only, not in tool calls; the text ends before the first one.
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
        self._held = ""  # end of the text that may turn out to start a stop string
        self.kind: PartType = "text"
        self.stopped = False
        self.parts: list[Part] = []

    @property
    def text(self) -> str:
        """The assistant's text, without tool calls and their output."""
        return "".join(part["text"] for part in self.parts if part["type"] == "text")

    def push(self, token: int) -> tuple[PartType, str]:
        """Add the next token; return the text that is now certain, with its kind."""
        if token not in self._special:
            return self._show(self._decoder.push(token), final=False)
        shown = self._show(self._decoder.flush(), final=True)
        self.kind = self._kind_after.get(token, self.kind)
        return shown

    def flush(self) -> tuple[PartType, str]:
        """Return the text that was held back, because no token follows."""
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
        """Return the text that is certain; hold back what may still become a stop string."""
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
