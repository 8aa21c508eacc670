"""Batched generation: many requests of different lengths share one model and one KV cache.

Owns the scheduling of rows over cache slots, the calculator tool, and where a row stops. Owns not:
the cache (kv_cache), the choice of a token (sampling), the text of tokens (generation), HTTP.

A row lives in a slot. Each step reads a chunk of every row that has several tokens to read (its
prompt, or a tool's output), decodes one token of every other row, and samples for all of them at
once: one wait for the device a step. A row that ends frees its slot for the next in the queue.
Rows with the same prompt read it once: the others wait for the first of them and copy its cache.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nanochat import calculator
from nanochat.errors import ConfigError
from nanochat.generation import Completion, Event, FinishReason, Request, Transcript
from nanochat.gpt import GPT
from nanochat.kv_cache import KVCache
from nanochat.sampling import SamplingBatch, sample
from nanochat.tokenizer import Tokenizer

PREFILL_CHUNK = 512  # tokens of one row read in one step; bounds how long decoding rows wait
PREFILL_TOKENS = 16_384  # of all rows together in one step; bounds memory
MAX_TOOL_CALLS = 16  # of one request; further ones are answered with TOOL_ERROR
TOOL_ERROR = "error"  # what the model reads when the calculator refuses


@dataclass(eq=False, slots=True)
class _Row:
    """A request at work. `pending` are the tokens the cache has not read yet."""

    id: int
    request: Request
    seed: int
    transcript: Transcript
    live: bool  # its text is needed token by token: it streams, or has stop strings
    stream: bool
    pending: list[int]
    slot: int = -1  # below zero: not running
    leader: _Row | None = None  # reads the same prompt for this row, which waits
    cached: int = 0  # positions of the slot in use
    tokens: list[int] = field(default_factory=list)
    mask: list[int] = field(default_factory=list)
    code_start: int | None = None  # index in tokens of what follows <|python_start|>
    calls: int = 0
    tool: Future[str] | None = None  # runs while the row is parked

    @property
    def length(self) -> int:
        return len(self.request.prompt) + len(self.tokens)


class Engine:
    """Generates for many requests at once from its own copy of a model's weights.

    slots: rows that run at the same time. max_len: tokens of prompt and answer together, by
    default the model's sequence length. dtype: of weights and cache, by default the model's compute
    dtype. deterministic: tools run inline; otherwise in threads while other rows go on.
    One thread uses an engine.
    """

    def __init__(
        self,
        model: GPT,
        tokenizer: Tokenizer,
        *,
        slots: int = 32,
        max_len: int | None = None,
        dtype: torch.dtype | None = None,
        deterministic: bool = True,
    ) -> None:
        self.tokenizer = tokenizer
        self.max_len = max_len or model.config.sequence_length
        if self.max_len > model.config.max_positions:
            raise ConfigError(
                f"max_len {self.max_len} is beyond the model's {model.config.max_positions} "
                "positions; use fewer"
            )
        self.dtype = dtype or model.compute_dtype
        self.refresh(model)
        self.device = next(self.model.parameters()).device
        self.cache = KVCache(
            model.config, slots=slots, max_len=self.max_len, dtype=self.dtype, device=self.device
        )
        self._pool = None if deterministic else ThreadPoolExecutor(4, "tool")
        self._special = {
            name: tokenizer.special_id(f"<|{name}|>")
            for name in ("python_start", "python_end", "output_start", "output_end")
        }
        self._ends = {True: {tokenizer.bos_id, tokenizer.special_id("<|assistant_end|>")}}
        self._ends[False] = {tokenizer.bos_id}
        self._free = list(range(slots))  # a heap
        self._waiting: deque[_Row] = deque()
        self._running: list[_Row] = []
        self._admit_at = 1  # free slots before the queue is looked at, while rows run
        self._next_id = 0
        self._settings: tuple[list[int], SamplingBatch] | None = None

    def refresh(self, model: GPT) -> None:
        """Take over a model's present weights; no request may be at work."""
        assert not getattr(self, "_running", None), "refresh between requests"
        self.model = model.for_inference(self.dtype)

    @property
    def idle(self) -> bool:
        """Whether no request is waiting or running."""
        return not self._waiting and not self._running

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Answer all requests; completions stand in the order of the requests."""
        assert self.idle, "generate() needs the engine for itself"
        # Similar lengths together, long ones first: little padding, and no long row left for last.
        order = sorted(range(len(requests)), key=lambda i: -len(requests[i].prompt))
        place = {self.submit(requests[i], stream=False): i for i in order}
        completions: dict[int, Completion] = {}
        # Several new rows at a time: reading one prompt costs almost as much as reading four.
        self._admit_at = max(1, len(self._free) // 8)
        try:
            while not self.idle:
                for event in self.step():
                    if event.completion is not None:
                        completions[place[event.request_id]] = event.completion
        finally:
            self._admit_at = 1
            self.clear()
        return [completions[i] for i in range(len(requests))]

    def stream(self, request: Request) -> Generator[Event, None, None]:
        """Answer one request piece by piece; closing the iterator aborts it."""
        request_id = self.submit(request)
        try:
            while not self.idle:
                for event in self.step():
                    if event.request_id == request_id:
                        yield event
        finally:
            self.abort(request_id)

    def submit(self, request: Request, *, stream: bool = True) -> int:
        """Queue a request and return its id; `step` brings its events, only the last if not stream.

        Raises: ConfigError for a prompt that is empty or has a token outside the vocabulary.
        """
        if not request.prompt:
            raise ConfigError("the prompt has no tokens; start it with <|bos|>")
        if not 0 <= min(request.prompt) <= max(request.prompt) < self.tokenizer.vocab_size:
            raise ConfigError(f"the prompt has a token outside 0..{self.tokenizer.vocab_size - 1}")
        seed = request.params.seed
        row = _Row(
            id=self._next_id,
            request=request,
            seed=random.getrandbits(63) if seed is None else seed,
            transcript=Transcript(self.tokenizer, request.params.stop),
            live=stream or bool(request.params.stop),
            stream=stream,
            pending=list(request.prompt),
        )
        self._next_id += 1
        self._waiting.append(row)
        return row.id

    def abort(self, request_id: int) -> Completion | None:
        """End a request at once and return what it has, None if there is no such request."""
        for row in [*self._running, *self._waiting]:
            if row.id == request_id:
                return self._finish(row, "abort").completion
        return None

    def clear(self) -> None:
        """Drop every request, without a last event."""
        for row in [*self._running, *self._waiting]:
            self._release(row)

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Do one round of work for all rows and return what happened, in order."""
        events: list[Event] = []
        self._admit(events)
        self._collect_tools(events)
        ready = [row for row in self._running if row.tool is None and row.leader is None]
        if not ready and self._running:
            wait([row.tool for row in self._running if row.tool], return_when=FIRST_COMPLETED)
        decoding = [row for row in ready if len(row.pending) == 1]
        reading = _fitting([row for row in ready if len(row.pending) > 1])
        hidden = [self._forward(rows) for rows in (decoding, reading) if rows]
        self._share_prompts()
        sampling = [row for row in decoding + reading if not row.pending]
        if sampling:
            logits = self.model.logits(torch.cat(hidden))  # [B, V]
            for row, token in zip(sampling, self._choose(sampling, logits), strict=True):
                self._accept(row, token, events)
        return events

    def _admit(self, events: list[Event]) -> None:
        """Give free slots to waiting rows, first come, first served."""
        if self._running and len(self._free) < self._admit_at:
            return
        if not self._waiting or not self._free:
            return
        readers = {tuple(row.request.prompt): row for row in self._running if row.leader is None}
        while self._waiting and self._free:
            row = self._waiting.popleft()
            if len(row.pending) > self.max_len:
                events.append(self._finish(row, "length"))
                continue
            row.slot = heapq.heappop(self._free)  # low slots first: rows lie close together
            self._running.append(row)
            reader = readers.setdefault(tuple(row.request.prompt), row)
            if reader is not row and len(row.request.prompt) > 1:
                row.leader = reader
        self._running.sort(key=lambda row: row.slot)

    def _forward(self, rows: list[_Row]) -> Tensor:
        """Read up to a chunk of every row's pending tokens into the cache.

        Returns (rows that have nothing pending any more, C): the hidden state of their last token.
        """
        counts = [min(len(row.pending), PREFILL_CHUNK) for row in rows]
        T = max(counts)
        padded = [row.pending[:n] + [0] * (T - n) for row, n in zip(rows, counts, strict=True)]
        tokens = torch.tensor(padded).to(self.device, non_blocking=True)  # [B, T]
        view = self.cache.view([row.slot for row in rows], [row.cached for row in rows], counts)
        hidden = self.model.hidden(tokens, view)  # [B, T, C]
        for row, count in zip(rows, counts, strict=True):
            row.cached += count
            del row.pending[:count]
        if T == 1:
            return hidden[:, 0]
        last = [(i, n - 1) for i, n in enumerate(counts) if not rows[i].pending]
        row_index, column_index = torch.tensor(last, dtype=torch.int64).view(-1, 2).T
        return hidden[row_index.to(self.device), column_index.to(self.device)]

    def _share_prompts(self) -> None:
        """Hand prompts that have been read to the rows that wait for them, but for the last token.

        Every row reads that one itself: its hidden state gives the first token of the answer.
        """
        followers: dict[_Row, list[_Row]] = {}
        for row in self._running:
            if row.leader is not None:
                followers.setdefault(row.leader, []).append(row)
        for leader, rows in followers.items():
            shared = len(leader.request.prompt) - 1
            if leader.slot >= 0:
                if leader.cached < shared:
                    continue
                self.cache.copy(leader.slot, [row.slot for row in rows], shared)
                for row in rows:
                    row.cached = shared
                    del row.pending[:shared]
            for row in rows:  # without the prompt, if its reader was aborted: they read it then
                row.leader = None

    def _choose(self, rows: list[_Row], logits: Tensor) -> list[int]:
        """Sample a token for every row; the step's one wait for the device."""
        logits = logits[:, : self.tokenizer.vocab_size]  # a model may have more, for alignment
        ids = [row.id for row in rows]
        if self._settings is None or self._settings[0] != ids:
            batch = SamplingBatch.build(
                [row.request.params for row in rows],
                [row.seed for row in rows],
                vocab_size=logits.shape[-1],
                device=self.device,
            )
            self._settings = (ids, batch)
        positions = torch.tensor([row.length for row in rows]).to(self.device, non_blocking=True)
        return sample(logits, self._settings[1], positions).tolist()

    def _accept(self, row: _Row, token: int, events: list[Event]) -> None:
        """Append a sampled token and decide how the row goes on."""
        self._append(row, token, 1, events)
        if token in self._ends[row.request.chat] or row.transcript.stopped:
            events.append(self._finish(row, "stop"))
        elif len(row.tokens) >= row.request.params.max_new_tokens or row.length > self.max_len:
            events.append(self._finish(row, "length"))
        else:
            row.pending = [token]
            if row.request.tools and row.request.chat:
                self._follow_tools(row, token, events)

    def _append(self, row: _Row, token: int, sampled: int, events: list[Event]) -> None:
        row.tokens.append(token)
        row.mask.append(sampled)
        if row.live:
            kind, text = row.transcript.push(token)
            if row.stream:
                events.append(Event(row.id, kind, text, token))

    def _follow_tools(self, row: _Row, token: int, events: list[Event]) -> None:
        """Note where a tool call begins; at its end run it, or park the row while it runs."""
        if token == self._special["python_start"]:
            row.code_start = len(row.tokens)
        elif token == self._special["python_end"] and row.code_start is not None:
            code = self.tokenizer.decode(row.tokens[row.code_start : -1])
            row.code_start = None
            row.calls += 1
            if row.calls > MAX_TOOL_CALLS:
                self._force_output(row, TOOL_ERROR, events)
            elif self._pool is None:
                self._force_output(row, _calculate(code), events)
            else:
                row.tool = self._pool.submit(_calculate, code)

    def _collect_tools(self, events: list[Event]) -> None:
        for row in list(self._running):
            if row.tool is not None and row.tool.done():
                output, row.tool = row.tool.result(), None
                self._force_output(row, output, events)

    def _force_output(self, row: _Row, output: str, events: list[Event]) -> None:
        """Let the row read a tool's output, as tokens that it did not choose."""
        start, end = self._special["output_start"], self._special["output_end"]
        forced = [start, *self.tokenizer.encode(output), end]
        room = min(row.request.params.max_new_tokens - len(row.tokens), self.max_len - row.length)
        if len(forced) >= room:
            events.append(self._finish(row, "length"))
            return
        for token in forced:
            self._append(row, token, 0, events)
        row.pending += forced

    def _release(self, row: _Row) -> None:
        """Take a row out of the queue or its slot."""
        if row.slot >= 0:
            self._running.remove(row)
            heapq.heappush(self._free, row.slot)
            self.cache.reset(row.slot)
            row.slot = -1
        elif row in self._waiting:
            self._waiting.remove(row)

    def _finish(self, row: _Row, reason: FinishReason) -> Event:
        """End a row and return its last event."""
        self._release(row)
        if not row.live:
            for token in row.tokens:
                row.transcript.push(token)
        kind, text = row.transcript.flush()
        completion = Completion(
            tokens=row.tokens,
            mask=row.mask,
            finish_reason=reason,
            text=row.transcript.text,
            parts=row.transcript.parts,
        )
        return Event(row.id, kind, text, completion=completion)


def _fitting(rows: list[_Row]) -> list[_Row]:
    """The first rows whose next chunks, padded to the longest, fit into one step."""
    longest = 0
    for count, row in enumerate(rows):
        longest = max(longest, min(len(row.pending), PREFILL_CHUNK))
        if count and longest * (count + 1) > PREFILL_TOKENS:
            return rows[:count]
    return rows


def _calculate(code: str) -> str:
    """What the model reads after a tool call."""
    return calculator.evaluate(code) or TOOL_ERROR
