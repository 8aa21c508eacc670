"""Sequences being generated, and which of them share a cache slot.

Owns the state of a sequence and of a slot in use. Does not own what happens to them (scheduler).
"""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field

from nanochat.engine.requests import Request, TokenLogprob, Transcript
from nanochat.engine.scores import Bias

# A prefill pass processes many tokens at once and is bound by arithmetic; a decode pass processes
# one token per sequence and is bound by reading the weights. A long prompt in one pass would stall
# every decoding sequence, so it is cut into chunks with a decode pass between them.
PREFILL_CHUNK = 512  # tokens of a sequence per step; bounds how long decoding sequences wait
PREFILL_TOKENS = 16_384  # tokens of one prefill pass, padding included; bounds memory


@dataclass(eq=False, slots=True)
class ActiveSequence:
    """A request that has not ended: its tokens so far, and where it is."""

    id: int
    request: Request
    seed: int
    transcript: Transcript
    live: bool  # its text is needed token by token: it streams, or has stop strings
    stream: bool
    tokens: list[int]  # prompt and answer
    mask: list[int] = field(default_factory=list)
    bias: Bias | None = None
    logprobs: list[TokenLogprob | None] = field(default_factory=list)  # of the answer's tokens
    prompt_logprobs: list[TokenLogprob | None] = field(default_factory=list)
    cached_tokens: int = 0  # of the prompt, found in the cache
    slot: Slot | None = None  # None while it waits in the queue
    code_start: int | None = None  # index in tokens of the first one after <|python_start|>
    tool_calls: int = 0
    tool: Future[str] | None = None  # a tool call in progress; its slot is parked meanwhile

    @property
    def answer(self) -> list[int]:
        """The tokens after the prompt."""
        return self.tokens[len(self.request.prompt) :]


@dataclass(eq=False, slots=True)
class Slot:
    """A cache slot in use, and the sequences that share it because their tokens are equal."""

    index: int
    sequences: list[ActiveSequence]
    cached: int = 0  # leading tokens whose keys and values are in the cache

    @property
    def uncached(self) -> int:
        """Tokens that the model has not processed yet."""
        return len(self.sequences[0].tokens) - self.cached

    @property
    def pending_tools(self) -> list[Future[str]]:
        """Tool calls in progress; the slot is parked until all of them have returned."""
        return [seq.tool for seq in self.sequences if seq.tool is not None]

    def next_tokens(self) -> list[int]:
        """The tokens to process next, at most one chunk."""
        return self.sequences[0].tokens[self.cached : self.cached + PREFILL_CHUNK]


def prefill_batch(slots: list[Slot]) -> list[Slot]:
    """The first slots whose next chunks, padded to the longest, fit into one prefill pass."""
    longest = 0
    for count, slot in enumerate(slots):
        longest = max(longest, min(slot.uncached, PREFILL_CHUNK))
        if count and longest * (count + 1) > PREFILL_TOKENS:
            return slots[:count]
    return slots
