"""Sequences being generated, the slots they are in, and the queue of those that wait.

Owns the state of a sequence and of a slot in use, and the order of the queue. Does not own which
sequence gets which slot (slots) or what happens to it there (scheduler).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field

from nanochat.engine.requests import (
    Completion,
    Event,
    FinishReason,
    Request,
    TokenLogprob,
    Transcript,
)
from nanochat.engine.scores import Bias


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
    prompt: tuple[int, ...]  # the same for requests with equal prompts
    mask: list[int] = field(default_factory=list)
    bias: Bias | None = None
    logprobs: list[TokenLogprob | None] = field(default_factory=list)  # of the answer's tokens
    prompt_logprobs: list[TokenLogprob | None] = field(default_factory=list)
    cached_tokens: int | None = None  # of the prompt, found in the cache; None: not yet in a slot
    slot: Slot | None = None  # None while it waits in the queue
    code_start: int | None = None  # index in tokens of the first one after <|python_start|>
    tool_calls: int = 0
    tool: Future[str] | None = None  # a tool call in progress; its slot is parked meanwhile

    @property
    def answer(self) -> list[int]:
        """The tokens after the prompt."""
        return self.tokens[len(self.prompt) :]

    @property
    def reads_prompt(self) -> bool:
        """Whether the hidden state of every token of the prompt is needed."""
        return self.request.prompt_logprobs and not self.mask

    def append(
        self,
        token: int,
        events: list[Event],
        logprob: TokenLogprob | None = None,
        *,
        sampled: int,
    ) -> None:
        """Add a token of the answer; sampled: 1, or 0 if it was forced."""
        self.tokens.append(token)
        self.mask.append(sampled)
        if self.bias is not None:
            self.bias.add(token)
        if self.request.params.logprobs is not None:
            self.logprobs.append(logprob)
        if self.live:
            kind, text = self.transcript.push(token)
            if self.stream:
                events.append(Event(self.id, kind, text, token, logprob=logprob))

    def last_event(self, reason: FinishReason) -> Event:
        """The event with the completion and the text that was held back."""
        if not self.live:
            for token in self.answer:
                self.transcript.push(token)
        kind, text = self.transcript.flush()
        completion = Completion(
            tokens=self.answer,
            mask=self.mask,
            finish_reason=reason,
            text=self.transcript.text,
            parts=self.transcript.parts,
            logprobs=self.logprobs,
            prompt_logprobs=self.prompt_logprobs,
            cached_tokens=self.cached_tokens or 0,
        )
        return Event(self.id, kind, text, completion=completion)


@dataclass(eq=False, slots=True)
class Slot:
    """A cache slot in use, and the sequences that share it because their tokens are equal."""

    index: int
    sequences: list[ActiveSequence]
    cached: int = 0  # leading tokens whose keys and values are in the cache

    @property
    def tokens(self) -> list[int]:
        """What its sequences consist of so far."""
        return self.sequences[0].tokens

    @property
    def uncached(self) -> int:
        """Tokens that the model has not processed yet."""
        return len(self.sequences[0].tokens) - self.cached

    @property
    def pending_tools(self) -> list[Future[str]]:
        """Tool calls in progress; the slot is parked until all of them have returned."""
        return [seq.tool for seq in self.sequences if seq.tool is not None]


class Queue:
    """Sequences that wait for a slot: clients take turns, each client's own ones stay in order."""

    def __init__(self) -> None:
        self._by_client: dict[str, deque[ActiveSequence]] = {}  # in the order of their turns
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[ActiveSequence]:
        for waiting in self._by_client.values():
            yield from waiting

    def append(self, seq: ActiveSequence) -> None:
        """Add a sequence behind the others of its client."""
        self._by_client.setdefault(seq.request.client, deque()).append(seq)
        self._count += 1

    def put_back(self, seq: ActiveSequence) -> None:
        """Add a sequence before the others of its client."""
        self._by_client.setdefault(seq.request.client, deque()).appendleft(seq)
        self._count += 1

    @property
    def first(self) -> ActiveSequence:
        """The sequence whose turn it is."""
        return next(iter(self._by_client.values()))[0]

    def pop(self) -> ActiveSequence:
        """Remove `first`; the next turn is another client's, if one waits."""
        seq = self.first
        waiting = self._by_client.pop(seq.request.client)
        waiting.popleft()
        if waiting:
            self._by_client[seq.request.client] = waiting
        self._count -= 1
        return seq

    def discard(self, seq: ActiveSequence) -> None:
        """Remove a sequence if it is in the queue."""
        waiting = self._by_client.get(seq.request.client, deque())
        if seq in waiting:
            waiting.remove(seq)
            self._count -= 1
            if not waiting:
                del self._by_client[seq.request.client]
