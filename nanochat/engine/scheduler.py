"""Batched generation: many requests of different lengths share one model and one KV cache.

Owns the scheduling of rows over cache slots, the calculator tool, and where a row stops. Owns not:
the cache (kv_cache), the choice of a token (sampling), the text of tokens (generation), HTTP.

A row is a request at work. Rows whose texts are the same so far are one branch, which has a slot
and is computed once, whatever their number; where they take different tokens the branch splits.
Each step reads a chunk of every branch that has several tokens to read (a prompt, or a tool's
output), decodes one token of every other branch, and samples for all rows at once: one wait for the
device a step. A branch without rows frees its slot for the next in the queue.
"""

from __future__ import annotations

import bisect
import heapq
import random
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait

import torch
from torch import Tensor

from nanochat.engine.kv_cache import KVCache
from nanochat.engine.requests import Completion, Event, FinishReason, Request, Transcript
from nanochat.engine.sampling import SamplingBatch, sample
from nanochat.engine.sequences import ActiveRequest, Branch, fitting
from nanochat.gpt import GPT
from nanochat.system.errors import ConfigError
from nanochat.tokenizer import Tokenizer
from nanochat.tools import calculator

MAX_TOOL_CALLS = 16  # of one request; further ones are answered with TOOL_ERROR
TOOL_ERROR = "error"  # what the model reads when the calculator refuses


class Engine:
    """Generates for many requests at once from its own copy of a model's weights.

    slots: different texts that are written at the same time. max_len: tokens of prompt and answer
    together, by default the model's sequence length. dtype: of weights and cache, by default the
    model's compute dtype. deterministic: tools run inline; otherwise in threads while other rows go
    on.
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
        self._waiting: deque[ActiveRequest] = deque()
        self._branches: list[Branch] = []  # by slot
        self._admit_at = 1  # free slots before the queue is looked at, while rows run
        self._next_id = 0
        self._settings: tuple[list[int], SamplingBatch] | None = None

    def refresh(self, model: GPT) -> None:
        """Take over a model's present weights; no request may be at work."""
        assert not getattr(self, "_branches", None), "refresh between requests"
        self.model = model.for_inference(self.dtype)

    @property
    def idle(self) -> bool:
        """Whether no request is waiting or running."""
        return not self._waiting and not self._branches

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
        row = ActiveRequest(
            id=self._next_id,
            request=request,
            seed=random.getrandbits(63) if seed is None else seed,
            transcript=Transcript(self.tokenizer, request.params.stop),
            live=stream or bool(request.params.stop),
            stream=stream,
            text=list(request.prompt),
        )
        self._next_id += 1
        self._waiting.append(row)
        return row.id

    def abort(self, request_id: int) -> Completion | None:
        """End a request at once and return what it has, None if there is no such request."""
        for row in self._rows():
            if row.id == request_id:
                return self._finish(row, "abort").completion
        return None

    def clear(self) -> None:
        """Drop every request, without a last event."""
        for row in self._rows():
            self._release(row)

    def _rows(self) -> list[ActiveRequest]:
        return [*(row for branch in self._branches for row in branch.rows), *self._waiting]

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Do one round of work for all rows and return what happened, in order."""
        events: list[Event] = []
        self._admit(events)
        self._collect_tools(events)
        ready = [branch for branch in self._branches if not branch.tools]
        if not ready and self._branches:
            tools = [tool for branch in self._branches for tool in branch.tools]
            wait(tools, return_when=FIRST_COMPLETED)
        decoding = [branch for branch in ready if branch.unread == 1]
        reading = fitting([branch for branch in ready if branch.unread > 1])
        hidden = [self._forward(branches) for branches in (decoding, reading) if branches]
        sampling = [branch for branch in decoding + reading if not branch.unread]
        if sampling:
            rows = [row for branch in sampling for row in branch.rows]
            logits = self.model.logits(torch.cat(hidden))  # [branches, V]
            if len(rows) > len(sampling):
                counts = torch.tensor([len(branch.rows) for branch in sampling])
                logits = logits.repeat_interleave(
                    counts.to(self.device), dim=0, output_size=len(rows)
                )
            for row, token in zip(rows, self._choose(rows, logits), strict=True):
                self._accept(row, token, events)
            for branch in sampling:
                self._split(branch)
        return events

    def _admit(self, events: list[Event]) -> None:
        """Give free slots to waiting rows, first come, first served.

        A row whose text is being read joins that branch; a prompt that is in the cache is copied.
        """
        if not self._waiting or (self._branches and len(self._free) < self._admit_at):
            return
        readers = {tuple(b.rows[0].request.prompt): b for b in self._branches}
        while self._waiting:
            row = self._waiting[0]
            prompt = tuple(row.request.prompt)
            reader = readers.get(prompt)
            if len(row.text) > self.max_len:
                events.append(self._finish(row, "length"))
                continue
            if reader is not None and reader.rows[0].text == row.text:
                reader.rows.append(row)
                row.branch = reader
            elif self._free:
                branch = self._open([row])
                if reader is not None:  # the last token's hidden state gives the first to come
                    self._copy(reader, branch, min(reader.cached, len(prompt) - 1))
                readers.setdefault(prompt, branch)
            else:
                break
            self._waiting.popleft()

    def _open(self, rows: list[ActiveRequest]) -> Branch:
        """A branch of these rows, whose texts are equal, in a free slot."""
        branch = Branch(heapq.heappop(self._free), rows)  # low slots first: they lie close together
        for row in rows:
            row.branch = branch
        bisect.insort(self._branches, branch, key=lambda other: other.slot)
        return branch

    def _copy(self, source: Branch, target: Branch, length: int) -> None:
        if length:
            self.cache.copy(source.slot, [target.slot], length)
        target.cached = length

    def _split(self, branch: Branch) -> None:
        """Let rows that took different tokens go on in branches of their own.

        Without a free slot they go back to the head of the queue, with what they have written.
        """
        if len(branch.rows) < 2:
            return
        alike: dict[tuple[int, ...], list[ActiveRequest]] = {}
        for row in branch.rows:
            alike.setdefault(tuple(row.text[branch.cached :]), []).append(row)
        # Rows whose tool runs have one text, as they took one token. They stay.
        groups = sorted(alike.values(), key=lambda rows: all(row.tool is None for row in rows))
        branch.rows = groups[0]
        for rows in groups[1:]:
            if self._free:
                self._copy(branch, self._open(rows), branch.cached)
                continue
            for row in reversed(rows):
                row.branch = None
                self._waiting.appendleft(row)

    def _forward(self, branches: list[Branch]) -> Tensor:
        """Read up to a chunk of every branch's unread tokens into the cache.

        Returns (branches that have nothing unread any more, C): their last token's hidden state.
        """
        texts = [branch.next_tokens() for branch in branches]
        counts = [len(text) for text in texts]
        T = max(counts)
        padded = [text + [0] * (T - len(text)) for text in texts]
        tokens = torch.tensor(padded).to(self.device, non_blocking=True)  # [B, T]
        slots, starts = [b.slot for b in branches], [b.cached for b in branches]
        hidden = self.model.hidden(tokens, self.cache.view(slots, starts, counts))  # [B, T, C]
        for branch, count in zip(branches, counts, strict=True):
            branch.cached += count
        if T == 1:
            return hidden[:, 0]
        last = [(i, n - 1) for i, n in enumerate(counts) if not branches[i].unread]
        row_index, column_index = torch.tensor(last, dtype=torch.int64).view(-1, 2).T
        return hidden[row_index.to(self.device), column_index.to(self.device)]

    def _choose(self, rows: list[ActiveRequest], logits: Tensor) -> list[int]:
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
        positions = torch.tensor([len(row.text) for row in rows]).to(self.device, non_blocking=True)
        return sample(logits, self._settings[1], positions).tolist()

    def _accept(self, row: ActiveRequest, token: int, events: list[Event]) -> None:
        """Append a sampled token and decide how the row goes on."""
        self._append(row, token, 1, events)
        if token in self._ends[row.request.chat] or row.transcript.stopped:
            events.append(self._finish(row, "stop"))
        elif len(row.mask) >= row.request.params.max_new_tokens or len(row.text) > self.max_len:
            events.append(self._finish(row, "length"))
        elif row.request.tools and row.request.chat:
            self._follow_tools(row, token, events)

    def _append(self, row: ActiveRequest, token: int, sampled: int, events: list[Event]) -> None:
        row.text.append(token)
        row.mask.append(sampled)
        if row.live:
            kind, text = row.transcript.push(token)
            if row.stream:
                events.append(Event(row.id, kind, text, token))

    def _follow_tools(self, row: ActiveRequest, token: int, events: list[Event]) -> None:
        """Note where a tool call begins; at its end run it, or park the row while it runs."""
        if token == self._special["python_start"]:
            row.code_start = len(row.text)
        elif token == self._special["python_end"] and row.code_start is not None:
            code = self.tokenizer.decode(row.text[row.code_start : -1])
            row.code_start = None
            row.calls += 1
            if row.calls > MAX_TOOL_CALLS:
                self._force_output(row, TOOL_ERROR, events)
            elif self._pool is None:
                self._force_output(row, _calculate(code), events)
            else:
                row.tool = self._pool.submit(_calculate, code)

    def _collect_tools(self, events: list[Event]) -> None:
        for branch in list(self._branches):
            for row in list(branch.rows):
                if row.tool is not None and row.tool.done():
                    output, row.tool = row.tool.result(), None
                    self._force_output(row, output, events)
            if not branch.tools:
                self._split(branch)

    def _force_output(self, row: ActiveRequest, output: str, events: list[Event]) -> None:
        """Let the row read a tool's output, as tokens that it did not choose."""
        start, end = self._special["output_start"], self._special["output_end"]
        forced = [start, *self.tokenizer.encode(output), end]
        room = min(row.request.params.max_new_tokens - len(row.mask), self.max_len - len(row.text))
        if len(forced) >= room:
            events.append(self._finish(row, "length"))
            return
        for token in forced:
            self._append(row, token, 0, events)

    def _release(self, row: ActiveRequest) -> None:
        """Take a row out of the queue or its branch, whose slot is free after its last row."""
        branch, row.branch = row.branch, None
        if branch is None:
            if row in self._waiting:
                self._waiting.remove(row)
            return
        branch.rows.remove(row)
        if not branch.rows:
            self._branches.remove(branch)
            heapq.heappush(self._free, branch.slot)
            self.cache.reset(branch.slot)

    def _finish(self, row: ActiveRequest, reason: FinishReason) -> Event:
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


def _calculate(code: str) -> str:
    """What the model reads after a tool call."""
    return calculator.evaluate(code) or TOOL_ERROR
