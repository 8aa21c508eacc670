"""Batched generation: many requests of different lengths share one model and one KV cache.

Owns the scheduling of sequences over cache slots (continuous batching), the calculator tool, and
when a sequence ends. Does not own the cache (kv_cache), the choice of a token (sampling), the text
of tokens (requests) or HTTP.

Sequences whose tokens are equal so far share a slot and are computed once; when they sample
different tokens, the slot is copied and they separate. Each step prefills one chunk of every slot
with several uncached tokens (a prompt, or a tool's output), decodes one token of every other slot,
and samples for all sequences at once, so that it waits for the device only once. A slot is free
again when its last sequence ends, and the next request in the queue takes it.
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
from nanochat.engine.requests import (
    Completion,
    EngineStats,
    Event,
    FinishReason,
    Request,
    TokenLogprob,
    Transcript,
)
from nanochat.engine.sampling import SamplingBatch, sample
from nanochat.engine.scores import Bias, ScoreEdits, token_logprobs
from nanochat.engine.sequences import ActiveSequence, Slot, prefill_batch
from nanochat.gpt import GPT
from nanochat.system.errors import ConfigError
from nanochat.tokenizer import Tokenizer
from nanochat.tools import calculator

MAX_TOOL_CALLS = 16  # per request; further calls are answered with TOOL_ERROR
LOGPROB_ROWS = 128  # prompt tokens whose logits are computed at once; bounds memory
TOOL_ERROR = "error"  # what the model reads if the calculator rejects an expression


class Engine:
    """Generates for many requests at once from its own copy of a model's weights.

    slots: different sequences that are generated at the same time. max_len: tokens of prompt and
    answer together, by default the model's sequence length. dtype: of weights and cache, by default
    the model's compute dtype. deterministic: run tools inline; otherwise they run in threads while
    other sequences continue. Not thread-safe.
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
        self.device = model.device
        self.cache = KVCache(
            model.config,
            slots=slots,
            max_len=self.max_len,
            dtype=self.model.compute_dtype,
            device=self.device,
        )
        self._pool = None if deterministic else ThreadPoolExecutor(4, "tool")
        self._special = {
            name: tokenizer.special_id(f"<|{name}|>")
            for name in ("python_start", "python_end", "output_start", "output_end")
        }
        self._ends = {True: {tokenizer.bos_id, tokenizer.special_id("<|assistant_end|>")}}
        self._ends[False] = {tokenizer.bos_id}
        self._free_slots = list(range(slots))  # a heap
        self._waiting: deque[ActiveSequence] = deque()
        self._slots: list[Slot] = []  # those in use, by index
        self._admit_at = 1  # free slots needed to admit requests while others run
        self._next_id = 0
        self._settings: tuple[list[int], SamplingBatch, ScoreEdits] | None = None
        self._requests = self._prompt_tokens = self._cached_tokens = self._generated_tokens = 0

    def refresh(self, model: GPT) -> None:
        """Copy a model's current weights; no request may be running."""
        assert not getattr(self, "_slots", None), "refresh between requests"
        self.model = model.for_inference(self.dtype)

    @property
    def idle(self) -> bool:
        """Whether no request is waiting or running."""
        return not self._waiting and not self._slots

    def stats(self) -> EngineStats:
        """What the engine is doing; may be called from other threads."""
        return EngineStats(
            slots=self.cache.slots,
            slots_in_use=len(self._slots),
            waiting=len(self._waiting),
            running=sum(len(slot.sequences) for slot in tuple(self._slots)),
            requests=self._requests,
            prompt_tokens=self._prompt_tokens,
            cached_prefix_tokens=self._cached_tokens,
            generated_tokens=self._generated_tokens,
        )

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Answer all requests; completions are in the order of the requests."""
        assert self.idle, "generate() needs an idle engine"
        # Similar lengths together, long ones first: little padding, and no long one left for last.
        order = sorted(range(len(requests)), key=lambda i: -len(requests[i].prompt))
        place = {self.submit(requests[i], stream=False): i for i in order}
        completions: dict[int, Completion] = {}
        # Several prompts at a time: prefilling one costs almost as much as prefilling four.
        self._admit_at = max(1, len(self._free_slots) // 8)
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
        """Queue a request and return its id; `step` returns its events.

        stream: an event for every token; otherwise only the last one.
        Raises: ConfigError for a prompt that is empty, for a token outside the vocabulary, and for
        a request for no tokens at all.
        """
        self._check(request)
        params = request.params
        seq = ActiveSequence(
            id=self._next_id,
            request=request,
            seed=random.getrandbits(63) if params.seed is None else params.seed,
            transcript=Transcript(self.tokenizer, params.stop),
            live=stream or bool(params.stop),
            stream=stream,
            tokens=list(request.prompt),
        )
        if Bias.needed(params):
            seq.bias = Bias(params, self.tokenizer.vocab_size, self.device)
        self._next_id += 1
        self._requests += 1
        self._prompt_tokens += len(request.prompt)
        self._waiting.append(seq)
        return seq.id

    def _check(self, request: Request) -> None:
        last = self.tokenizer.vocab_size - 1
        if not request.prompt:
            raise ConfigError("the prompt has no tokens; start it with <|bos|>")
        if not 0 <= min(request.prompt) <= max(request.prompt) <= last:
            raise ConfigError(f"the prompt has a token outside 0..{last}")
        biased = request.params.logit_bias
        if biased and not 0 <= min(biased) <= max(biased) <= last:
            raise ConfigError(f"logit_bias has a token outside 0..{last}")
        if request.params.max_new_tokens == 0 and not request.prompt_logprobs:
            raise ConfigError("max_new_tokens must be at least 1, got 0")

    def abort(self, request_id: int) -> Completion | None:
        """End a request at once and return what it has produced; None if it is unknown."""
        for seq in self._sequences():
            if seq.id == request_id:
                return self._finish(seq, "abort").completion
        return None

    def clear(self) -> None:
        """Drop every request, without a last event."""
        for seq in self._sequences():
            self._release(seq)

    def _sequences(self) -> list[ActiveSequence]:
        return [*(seq for slot in self._slots for seq in slot.sequences), *self._waiting]

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Advance all sequences by one round and return what happened, in order."""
        events: list[Event] = []
        self._admit(events)
        self._collect_tools(events)
        ready = [slot for slot in self._slots if not slot.pending_tools]
        if not ready and self._slots:
            tools = [tool for slot in self._slots for tool in slot.pending_tools]
            wait(tools, return_when=FIRST_COMPLETED)
        # Continuous batching: the batch is formed again in every step, so that a finished sequence
        # is replaced at once instead of padding the batch until the longest one ends. Decoding and
        # prefilling are separate passes: together, each decoded token would be padded to a chunk.
        decoding = [slot for slot in ready if slot.uncached == 1]
        prefilling = prefill_batch([slot for slot in ready if slot.uncached > 1])
        hidden = [self._forward(slots) for slots in (decoding, prefilling) if slots]  # [B, C] each
        sampling = [slot for slot in decoding + prefilling if not slot.uncached]
        if sampling:
            sequences = [seq for slot in sampling for seq in slot.sequences]
            logits = self.model.logits(torch.cat(hidden))  # [slots, V]
            if len(sequences) > len(sampling):  # sequences of one slot share its logits
                counts = torch.tensor([len(slot.sequences) for slot in sampling])
                logits = logits.repeat_interleave(  # [sequences, V]
                    counts.to(self.device), dim=0, output_size=len(sequences)
                )
            sampled = self._sample(sequences, logits)
            for seq, (token, logprob) in zip(sequences, sampled, strict=True):
                self._accept(seq, token, logprob, events)
            for slot in sampling:
                self._split(slot)
        return events

    def _admit(self, events: list[Event]) -> None:
        """Give free slots to waiting sequences, first come, first served.

        A sequence whose tokens equal those of a slot joins it; a prompt that is already cached in
        another slot is copied from there.
        """
        if not self._waiting or (self._slots and len(self._free_slots) < self._admit_at):
            return
        # Prefix sharing: many samples of one prompt, as in reinforcement learning, need only one
        # prefill. Keys and values depend on nothing but the tokens, so they can be copied.
        by_prompt = {tuple(slot.sequences[0].request.prompt): slot for slot in self._slots}
        while self._waiting:
            seq = self._waiting[0]
            prompt = tuple(seq.request.prompt)
            donor = by_prompt.get(prompt)
            if len(seq.tokens) > self.max_len:
                events.append(self._finish(seq, "length"))
                continue
            reads_all = seq.request.prompt_logprobs and len(seq.tokens) == len(prompt)
            if reads_all and donor is not None and donor.cached:
                donor = None
            if donor is not None and donor.sequences[0].tokens == seq.tokens:
                donor.sequences.append(seq)
                seq.slot = donor
                self._note_cached(seq, donor)
            elif self._free_slots:
                slot = self._take_slot([seq])
                if donor is not None:  # the prompt's last token is needed for its hidden state
                    self._copy_prefix(donor, slot, min(donor.cached, len(prompt) - 1))
                    self._note_cached(seq, slot)
                by_prompt.setdefault(prompt, slot)
            else:
                break
            self._waiting.popleft()

    def _note_cached(self, seq: ActiveSequence, slot: Slot) -> None:
        if not seq.answer:  # it has not been in a slot before
            seq.cached_tokens = min(slot.cached, len(seq.tokens))
            self._cached_tokens += seq.cached_tokens

    def _take_slot(self, sequences: list[ActiveSequence]) -> Slot:
        """Give these sequences, whose tokens are equal, a free slot."""
        # Low indices first, so that the slots in use are close together.
        slot = Slot(heapq.heappop(self._free_slots), sequences)
        for seq in sequences:
            seq.slot = slot
        bisect.insort(self._slots, slot, key=lambda other: other.index)
        return slot

    def _copy_prefix(self, source: Slot, target: Slot, length: int) -> None:
        if length:
            self.cache.copy(source.index, [target.index], length)
        target.cached = length

    def _split(self, slot: Slot) -> None:
        """Give sequences that took different tokens separate slots.

        Without a free slot they return to the head of the queue and keep their tokens.
        """
        if len(slot.sequences) < 2:
            return
        alike: dict[tuple[int, ...], list[ActiveSequence]] = {}
        for seq in slot.sequences:
            alike.setdefault(tuple(seq.tokens[slot.cached :]), []).append(seq)
        # Sequences with a running tool all took the same token: they are one group, and stay.
        groups = sorted(alike.values(), key=lambda group: all(seq.tool is None for seq in group))
        slot.sequences = groups[0]
        for sequences in groups[1:]:
            if self._free_slots:
                self._copy_prefix(slot, self._take_slot(sequences), slot.cached)
                continue
            for seq in reversed(sequences):
                seq.slot = None
                self._waiting.appendleft(seq)

    def _forward(self, slots: list[Slot]) -> Tensor:
        """Process the next tokens of every slot, at most a chunk of each.

        Returns [slots without uncached tokens, C], the hidden state of their last token.
        """
        chunks = [slot.next_tokens() for slot in slots]
        counts = [len(chunk) for chunk in chunks]
        T = max(counts)
        padded = [chunk + [0] * (T - len(chunk)) for chunk in chunks]
        tokens = torch.tensor(padded).to(self.device, non_blocking=True)  # [B, T]
        indices, starts = [slot.index for slot in slots], [slot.cached for slot in slots]
        hidden = self.model.hidden(tokens, self.cache.view(indices, starts, counts))  # [B, T, C]
        for row, (slot, count) in enumerate(zip(slots, counts, strict=True)):
            self._read_prompt(slot, hidden[row, :count])
            slot.cached += count
        if T == 1:
            return hidden[:, 0]  # [B, C]
        # Only the last token's hidden state predicts something new; without the others, the head
        # computes logits for one token per slot instead of T.
        last = [(i, n - 1) for i, n in enumerate(counts) if not slots[i].uncached]
        row_index, column_index = torch.tensor(last, dtype=torch.int64).view(-1, 2).T
        return hidden[row_index.to(self.device), column_index.to(self.device)]  # [slots, C]

    def _read_prompt(self, slot: Slot, hidden: Tensor) -> None:
        """Note the log-probabilities of prompt tokens after those with these hidden states, [T, C].

        Only for sequences that asked for them; their prompts are read from the start.
        """
        for seq in slot.sequences:
            done = len(seq.prompt_logprobs)
            if not seq.request.prompt_logprobs or done == len(seq.request.prompt):
                continue
            first = slot.cached + 1
            following = seq.request.prompt[first : first + len(hidden)]
            if first == 1:
                seq.prompt_logprobs.append(None)
            for start in range(0, len(following), LOGPROB_ROWS):
                tokens = torch.tensor(following[start : start + LOGPROB_ROWS]).to(self.device)
                logits = self.model.logits(hidden[start : start + len(tokens)])
                top = [seq.request.params.logprobs or 0] * len(tokens)
                logits = logits[:, : self.tokenizer.vocab_size]
                seq.prompt_logprobs += token_logprobs(logits, tokens, top)

    def _sample(
        self, sequences: list[ActiveSequence], logits: Tensor
    ) -> list[tuple[int, TokenLogprob | None]]:
        """Sample a token for every sequence; the only wait for the device in a step."""
        logits = logits[:, : self.tokenizer.vocab_size]  # the model's may be padded for alignment
        ids = [seq.id for seq in sequences]
        params = [seq.request.params for seq in sequences]
        if self._settings is None or self._settings[0] != ids:
            batch = SamplingBatch.build(
                params,
                [seq.seed for seq in sequences],
                vocab_size=logits.shape[-1],
                device=self.device,
            )
            edits = ScoreEdits([seq.bias for seq in sequences], [p.grammar for p in params])
            self._settings = (ids, batch, edits)
        _, batch, edits = self._settings
        positions = torch.tensor([len(seq.tokens) for seq in sequences])
        positions = positions.to(self.device, non_blocking=True)
        tokens = sample(edits.apply(logits), batch, positions)  # [B]
        wanted = [row for row, p in enumerate(params) if p.logprobs is not None]
        logprobs: list[TokenLogprob | None] = [None] * len(params)
        if wanted:
            rows = torch.tensor(wanted).to(self.device, non_blocking=True)
            top = [params[row].logprobs or 0 for row in wanted]
            found = token_logprobs(logits[rows], tokens[rows], top)
            for row, logprob in zip(wanted, found, strict=True):
                logprobs[row] = logprob
        return list(zip(tokens.tolist(), logprobs, strict=True))

    def _accept(
        self,
        seq: ActiveSequence,
        token: int,
        logprob: TokenLogprob | None,
        events: list[Event],
    ) -> None:
        """Append a sampled token and decide how the sequence continues."""
        params = seq.request.params
        if params.max_new_tokens == 0:  # only the prompt was of interest
            events.append(self._finish(seq, "length"))
            return
        self._append(seq, token, 1, events, logprob)
        self._generated_tokens += 1
        if params.grammar is not None:
            params.grammar.accept(token)
        ended = token in self._ends[seq.request.chat] or seq.transcript.stopped
        if ended or (params.grammar is not None and params.grammar.finished):
            events.append(self._finish(seq, "stop"))
        elif len(seq.mask) >= params.max_new_tokens or len(seq.tokens) > self.max_len:
            events.append(self._finish(seq, "length"))
        elif seq.request.tools and seq.request.chat:
            self._follow_tools(seq, token, events)

    def _append(
        self,
        seq: ActiveSequence,
        token: int,
        sampled: int,
        events: list[Event],
        logprob: TokenLogprob | None = None,
    ) -> None:
        seq.tokens.append(token)
        seq.mask.append(sampled)
        if seq.bias is not None:
            seq.bias.add(token)
        if seq.request.params.logprobs is not None:
            seq.logprobs.append(logprob)
        if seq.live:
            kind, text = seq.transcript.push(token)
            if seq.stream:
                events.append(Event(seq.id, kind, text, token, logprob=logprob))

    def _follow_tools(self, seq: ActiveSequence, token: int, events: list[Event]) -> None:
        """Note where a tool call starts; at its end run it, or park the slot while it runs.

        text --python_start--> code --python_end--> the tool runs --its output is forced--> text
        """
        if token == self._special["python_start"]:
            seq.code_start = len(seq.tokens)
        elif token == self._special["python_end"] and seq.code_start is not None:
            code = self.tokenizer.decode(seq.tokens[seq.code_start : -1])
            seq.code_start = None
            seq.tool_calls += 1
            if seq.tool_calls > MAX_TOOL_CALLS:
                self._force_output(seq, TOOL_ERROR, events)
            elif self._pool is None:
                self._force_output(seq, _calculate(code), events)
            else:
                seq.tool = self._pool.submit(_calculate, code)

    def _collect_tools(self, events: list[Event]) -> None:
        for slot in list(self._slots):
            for seq in list(slot.sequences):
                if seq.tool is not None and seq.tool.done():
                    output, seq.tool = seq.tool.result(), None
                    self._force_output(seq, output, events)
            if not slot.pending_tools:
                self._split(slot)

    def _force_output(self, seq: ActiveSequence, output: str, events: list[Event]) -> None:
        """Append a tool's output: tokens the sequence reads but did not sample."""
        # The mask marks these tokens with 0: the model did not choose them, so reinforcement
        # learning must neither reward nor punish them.
        start, end = self._special["output_start"], self._special["output_end"]
        forced = [start, *self.tokenizer.encode(output), end]
        room = min(
            seq.request.params.max_new_tokens - len(seq.mask),
            self.max_len - len(seq.tokens),
        )
        if len(forced) >= room:
            events.append(self._finish(seq, "length"))
            return
        for token in forced:
            self._append(seq, token, 0, events)

    def _release(self, seq: ActiveSequence) -> None:
        """Remove a sequence from the queue or its slot; a slot without sequences is free."""
        slot, seq.slot = seq.slot, None
        if slot is None:
            if seq in self._waiting:
                self._waiting.remove(seq)
            return
        slot.sequences.remove(seq)
        if not slot.sequences:
            self._slots.remove(slot)
            heapq.heappush(self._free_slots, slot.index)
            self.cache.reset(slot.index)

    def _finish(self, seq: ActiveSequence, reason: FinishReason) -> Event:
        """End a sequence and return its last event."""
        self._release(seq)
        if not seq.live:
            for token in seq.answer:
                seq.transcript.push(token)
        kind, text = seq.transcript.flush()
        completion = Completion(
            tokens=seq.answer,
            mask=seq.mask,
            finish_reason=reason,
            text=seq.transcript.text,
            parts=seq.transcript.parts,
            logprobs=seq.logprobs,
            prompt_logprobs=seq.prompt_logprobs,
            cached_tokens=seq.cached_tokens,
        )
        return Event(seq.id, kind, text, completion=completion)


def _calculate(code: str) -> str:
    """The output that the model reads after a tool call."""
    return calculator.evaluate(code) or TOOL_ERROR
