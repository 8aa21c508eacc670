"""Batched generation: many requests of different lengths share one model and one KV cache.

Slots. The cache has room for a fixed number of sequences, its slots. A request waits in a queue,
where clients take turns, until it gets a slot; when it ends, the next one takes the slot in the
next step, without waiting for the others (continuous batching).

Sharing. Sequences whose tokens are equal so far share a slot and are computed once: all the answers
to one prompt, and answers that have sampled the same tokens. When they sample different tokens, the
slot is copied and they separate. While somebody watches (`submit` and `step`), an answer that has
started never waits: a sequence joins a slot only if there is a slot for it when they part.
`generate` returns complete answers only, so there any number may join, and those that find no slot
when they part wait in the queue.

Prefix cache. A finished slot keeps its tokens, with their keys and values, until another sequence
needs it; the least recently used one goes first. A new sequence starts with the longest beginning
that any slot holds: a conversation's next turn continues in place, another conversation with the
same system prompt copies it. Only the rest is read. So the cache is as large as the slots and needs
no memory of its own. `refresh` and `generate` empty it: keys and values belong to weights, and what
`generate` computes should not depend on what was asked before.

A step. Every slot has tokens that the model has not read yet: one, which was just sampled, or
several, of a prompt or of a tool's output. A step
1. admits waiting sequences,
2. reads the one token of each of the former slots in one forward pass (decoding), and the next
   chunk of the latter in another (prefilling; chunks are small while others decode),
3. samples for every sequence whose tokens are all read, waiting for the device only once,
4. appends the tokens: a sequence ends, goes on, or calls the calculator and reads its output,
5. separates sequences that are no longer equal.

Same seed, same answer? The noise depends on (seed, position, token) only (sampling), so an answer
is a function of the logits. In exact arithmetic these would not depend on the batch, the slots or
the cache; in floating point a sum in another order differs in its last bits, and another token is
taken if its score is that close to the best. In float32 that is rare: 64 answers
were the same with 1, 4, 16 and 64 slots, and by `generate`. In bfloat16 they were too, as the
decoder's products give a row the same bits in any batch (gpt/products.py), but a prompt read in
other pieces, or another machine, may change an answer. `stats` says which applies.

Owns the step and when a sequence ends. Does not own the slots (slots), the cache's memory
(kv_cache), the choice of a token (sampler), the text of tokens (requests) or HTTP.
tests/test_engine.py compares all of it with a naive loop: a full forward pass for each token.
"""

from __future__ import annotations

import random
from collections.abc import Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, wait

import torch
from torch import Tensor

from nanochat.engine.decode_step import DecodeStep, Recorder, default_recorder, row_bucket
from nanochat.engine.kv_cache import KVCache, to_device
from nanochat.engine.passes import last_states, next_chunks, read_tokens
from nanochat.engine.requests import (
    Completion,
    EngineStats,
    Event,
    FinishReason,
    Request,
    TokenLogprob,
    Transcript,
    determinism,
)
from nanochat.engine.sampler import Sampler
from nanochat.engine.scores import Bias
from nanochat.engine.sequences import ActiveSequence, Queue, Slot
from nanochat.engine.slots import SlotTable
from nanochat.engine.tool_calls import ToolCalls
from nanochat.gpt import GPT
from nanochat.tokenizer import Tokenizer


class Engine:
    """Generates for many requests at once from its own copy of a model's weights.

    slots: different sequences that are generated at the same time. max_len: tokens of prompt and
    answer together, by default the model's sequence length. dtype: of weights and cache, by default
    the model's compute dtype. deterministic: run tools inline; otherwise they run in threads while
    other sequences continue. recorder: how decoding steps of fixed shapes are recorded, by default
    as CUDA graphs on a GPU and not at all elsewhere (decode_step). Not thread-safe.
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
        recorder: Recorder | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.max_len = max_len or model.config.sequence_length
        self.dtype = dtype or model.compute_dtype
        self.model = model.for_inference(self.dtype)
        self.device = model.device
        self.cache = KVCache(
            model.config,
            slots=slots,
            max_len=self.max_len,
            dtype=self.model.compute_dtype,
            device=self.device,
            backend=self.model.attention,
        )
        recorder = recorder or default_recorder(self.device)
        self._decode = None if recorder is None else DecodeStep(self.cache, recorder)
        self._tools = ToolCalls(tokenizer, inline=deterministic)
        self._sampler = Sampler(tokenizer.vocab_size, self.device)
        self._ends = {True: {tokenizer.bos_id, tokenizer.special_id("<|assistant_end|>")}}
        self._ends[False] = {tokenizer.bos_id}
        self._slots = SlotTable(self.cache)
        self._queue = Queue()
        self._next_id = 0
        self._prompt_tokens = self._cached_tokens = self._generated_tokens = 0

    def refresh(self, model: GPT) -> None:
        """Copy a model's current weights; no request may be running."""
        assert self.idle, "refresh between requests"
        self.model.load(model.state_dict())
        self._slots.forget()

    @property
    def idle(self) -> bool:
        """Whether no request is waiting or running."""
        return not self._queue and not self._slots.used

    def stats(self) -> EngineStats:
        """What the engine is doing; may be called from other threads."""
        return EngineStats(
            slots=self.cache.slots,
            slots_in_use=len(self._slots.used),
            waiting=len(self._queue),
            running=len(self._slots.sequences),
            requests=self._next_id,
            prompt_tokens=self._prompt_tokens,
            cached_prefix_tokens=self._cached_tokens,
            generated_tokens=self._generated_tokens,
            deterministic=determinism(self.dtype),
        )

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Answer all requests; completions are in the order of the requests."""
        assert self.idle, "generate() needs an idle engine"
        # Similar lengths together, long ones first: little padding, and no long one left for last.
        order = sorted(range(len(requests)), key=lambda i: -len(requests[i].prompt))
        place = {self.submit(requests[i], stream=False): i for i in order}
        completions: dict[int, Completion] = {}
        self._slots.forget()
        self._slots.watched = False
        try:
            while not self.idle:
                for event in self.step():
                    if event.completion is not None:
                        completions[place[event.request_id]] = event.completion
        finally:
            self.clear()
            self._slots.watched = True
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
        """Queue a request and return its id; `step` returns its events.

        stream: an event for every token; otherwise only the last one.
        Raises: ConfigError for a request that cannot be served (Request.check).
        """
        request.check(self.tokenizer.vocab_size)
        params = request.params
        seq = ActiveSequence(
            id=self._next_id,
            request=request,
            seed=random.getrandbits(63) if params.seed is None else params.seed,
            transcript=Transcript(self.tokenizer, params.stop),
            live=stream or bool(params.stop),
            stream=stream,
            tokens=list(request.prompt),
            prompt=tuple(request.prompt),
        )
        if Bias.needed(params):
            seq.bias = Bias(params, self.tokenizer.vocab_size, self.device)
        self._next_id += 1
        self._prompt_tokens += len(request.prompt)
        self._queue.append(seq)
        return seq.id

    def abort(self, request_id: int) -> Completion | None:
        """End a request at once and return what it has produced; None if it is unknown."""
        for seq in [*self._slots.sequences, *self._queue]:
            if seq.id == request_id:
                return self._finish(seq, "abort").completion
        return None

    def clear(self) -> None:
        """Drop every request, without a last event, and everything in the cache."""
        for seq in [*self._slots.sequences, *self._queue]:
            self._release(seq)
        self._slots.forget()

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Advance all sequences by one round and return what happened, in order."""
        events: list[Event] = []
        self._admit(events)
        self._collect_tools(events)
        if self._decode is not None:
            self._slots.gather(row_bucket(len(self._slots.used)))
        ready = [slot for slot in self._slots.used if not slot.pending_tools]
        if not ready and self._slots.used:
            tools = [tool for slot in self._slots.used for tool in slot.pending_tools]
            wait(tools, return_when=FIRST_COMPLETED)
        # Decoding and prefilling are separate passes: together, each decoded token would be padded
        # to a chunk.
        decoding = [slot for slot in ready if slot.uncached == 1]
        prefilling = [slot for slot in ready if slot.uncached > 1]
        hidden = []  # [B, C] each
        if decoding:
            hidden.append(self._forward(decoding, [1] * len(decoding)))
        if prefilling:
            others = len(decoding) if self._slots.watched else 0
            prefilling, counts = next_chunks(prefilling, decoding=others, device=self.device)
            hidden.append(self._forward(prefilling, counts))
        sampling = [slot for slot in decoding + prefilling if not slot.uncached]
        if sampling:
            sequences = [seq for slot in sampling for seq in slot.sequences]
            logits = self.model.logits(torch.cat(hidden))  # [slots, V]
            if len(sequences) > len(sampling):  # sequences of one slot share its logits
                repeats = to_device([len(slot.sequences) for slot in sampling], self.device)
                logits = logits.repeat_interleave(  # [sequences, V]
                    repeats, dim=0, output_size=len(sequences)
                )
            sampled = self._sampler.choose(sequences, logits)
            for seq, (token, logprob) in zip(sequences, sampled, strict=True):
                self._accept(seq, token, logprob, events)
            self._split(sampling)
        return events

    def _admit(self, events: list[Event]) -> None:
        """Give slots to waiting sequences."""
        slots = self._slots
        # Several prompts at a time: prefilling one costs almost as much as prefilling four.
        enough = 1 if slots.watched else max(1, self.cache.slots // 8)
        if slots.used and slots.idle < enough:
            return
        while self._queue:
            seq = self._queue.first
            if len(seq.tokens) > self.max_len:
                events.append(self._finish(seq, "length"))
                continue
            first_time = seq.cached_tokens is None
            if not slots.admit(seq):
                break
            if first_time:
                self._cached_tokens += seq.cached_tokens or 0
            self._queue.pop()

    def _split(self, slots: list[Slot]) -> None:
        for slot in slots:
            for seq in reversed(self._slots.split(slot)):
                self._queue.put_back(seq)

    def _forward(self, slots: list[Slot], counts: list[int]) -> Tensor:
        """Process the next `counts` tokens of the slots.

        Returns [slots without uncached tokens, C], the hidden state of their last token.
        """
        if self._decode is not None and max(counts) == 1:
            hidden = self._decode.read(self.model, slots)  # [B, 1, C]
        else:
            hidden = read_tokens(self.model, self.cache, slots, counts)  # [B, T, C]
        for row, (slot, count) in enumerate(zip(slots, counts, strict=True)):
            for seq in slot.sequences:
                if seq.reads_prompt:
                    self._sampler.read_prompt(seq, hidden[row, :count], self.model.logits)
        return last_states(hidden, slots, counts)

    def _accept(
        self,
        seq: ActiveSequence,
        token: int,
        logprob: TokenLogprob | None,
        events: list[Event],
    ) -> None:
        """Append a sampled token and decide how the sequence continues."""
        params, grammar = seq.request.params, seq.request.params.grammar
        if params.max_new_tokens == 0:  # only the prompt was of interest
            events.append(self._finish(seq, "length"))
            return
        seq.append(token, events, logprob, sampled=1)
        self._generated_tokens += 1
        if grammar is not None:
            grammar.accept(token)
        ended = token in self._ends[seq.request.chat] or seq.transcript.stopped
        if ended or (grammar is not None and grammar.finished):
            events.append(self._finish(seq, "stop"))
        elif len(seq.mask) >= params.max_new_tokens or len(seq.tokens) > self.max_len:
            events.append(self._finish(seq, "length"))
        elif seq.request.tools and seq.request.chat:
            output = self._tools.follow(seq, token)
            if output is not None:
                self._force(seq, output, events)

    def _collect_tools(self, events: list[Event]) -> None:
        for slot in list(self._slots.used):
            for seq in list(slot.sequences):
                if seq.tool is not None and seq.tool.done():
                    output, seq.tool = seq.tool.result(), None
                    self._force(seq, output, events)
            if not slot.pending_tools:
                self._split([slot])

    def _force(self, seq: ActiveSequence, output: str, events: list[Event]) -> None:
        """Append a tool's output: tokens the sequence reads but did not sample."""
        # The mask marks these tokens with 0: the model did not choose them, so reinforcement
        # learning must neither reward nor punish them.
        forced = self._tools.forced(output)
        room = min(
            seq.request.params.max_new_tokens - len(seq.mask),
            self.max_len - len(seq.tokens),
        )
        if len(forced) >= room:
            events.append(self._finish(seq, "length"))
            return
        for token in forced:
            seq.append(token, events, sampled=0)

    def _release(self, seq: ActiveSequence) -> None:
        """Remove a sequence from the queue or its slot."""
        self._queue.discard(seq)
        self._slots.leave(seq)

    def _finish(self, seq: ActiveSequence, reason: FinishReason) -> Event:
        """End a sequence and return its last event."""
        self._release(seq)
        return seq.last_event(reason)
