"""Keys and values of sequences in progress, in fixed slots, so that each token is computed once.

Attention is causal: the keys and values of a token depend only on it and the tokens before it, and
never change afterward. Stored, a new token costs one forward pass of one token; without them it
would cost a pass over the complete sequence again.

Owns the memory of the slots, and attention over it. Does not own which sequence is in which slot
(scheduler) or the model that computes keys and values (gpt/decoder.py).
Shapes: B rows of a call, T tokens per row, S stored positions attended to, H query heads, H_kv key
heads, D head dimension.
"""

import functools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat.gpt import GPTConfig, attention
from nanochat.gpt.layers import CONVOLVED
from nanochat.system.errors import ConfigError

# Keys are read from and to multiples of this: few shapes, and a row's keys are summed in the same
# order whatever other rows need, as long as the kernel takes them in one block.
BUCKET = 32
BEFORE = CONVOLVED - 1  # tokens before each one that a convolution reads
HALF_DTYPES = (torch.bfloat16, torch.float16)


def to_device(values: Sequence[Any], device: torch.device) -> Tensor:
    """Integers as an int64 tensor; does not wait for the device."""
    # A copy from ordinary memory may wait for what the GPU is doing.
    host = torch.tensor(values, dtype=torch.int64, pin_memory=device.type == "cuda")
    return host.to(device, non_blocking=True)


class KVCache:
    """Static memory for `slots` sequences of up to `max_len` tokens each.

    dtype: the model's compute dtype. On a CPU half precision is stored as float32, because
    attention of single queries is several times faster there in float32 than in bfloat16.
    backend: the model's attention, for new sequences; by default the best one of the device.
    Raises: ConfigError if the model has fewer than max_len positions.
    """

    def __init__(
        self,
        config: GPTConfig,
        *,
        slots: int,
        max_len: int,
        dtype: torch.dtype,
        device: torch.device,
        backend: attention.Backend | None = None,
    ) -> None:
        if max_len > config.max_positions:
            raise ConfigError(
                f"max_len {max_len} is beyond the model's {config.max_positions} positions; use "
                "fewer"
            )
        self.windows = config.windows
        self.slots = slots
        self.max_len = max_len
        self.device = device
        self.backend = backend or attention.choose("auto", device)
        # Sequences start and end at different times, so each slot has its own length; positions
        # after it hold leftovers of earlier sequences, which the masks hide.
        self.lengths = [0] * slots
        self.dtype = dtype
        stored = torch.float32 if device.type == "cpu" and dtype in HALF_DTYPES else dtype
        # One extra position: padding is written there and never read.
        self.padding = -(-max_len // BUCKET) * BUCKET
        # The longest possible S for every slot: [depth, slots, H_kv, S, D]. A head's keys are
        # contiguous, as a query reads them, and adjacent slots are a batch without a copy.
        shape = (config.depth, slots, config.kv_heads, self.padding + 1, config.head_dim)
        self.k = torch.zeros(shape, dtype=stored, device=device)
        self.v = torch.zeros(shape, dtype=stored, device=device)
        self.layers = list(zip(self.k, self.v, strict=True))
        self._bands = {window: self._band(window, stored) for window in set(config.windows)}
        self.tokens = torch.zeros(slots, self.padding + 1, dtype=torch.int64, device=device)
        # Inputs of the layers' convolutions, [depth or 0, slots, BEFORE + positions, C]: before
        # every text are zeros, which nothing is written to.
        layers = config.depth if config.convolution else 0
        inputs = (layers, slots, BEFORE + self.padding + 1, config.width)
        self.inputs = torch.zeros(inputs, dtype=stored, device=device)
        # For each layer, [slots * (BEFORE + positions), C].
        self.input_rows = list(self.inputs.flatten(1, 2))

    def reset(self, slot: int, length: int = 0) -> None:
        """Drop everything in a slot after its first `length` tokens."""
        assert 0 <= length <= self.lengths[slot]
        self.lengths[slot] = length  # nothing is erased: the next sequence overwrites it

    def copy(self, source: int, targets: Sequence[int], length: int) -> None:
        """Replace the content of other slots by the first `length` tokens of one slot."""
        assert source not in targets and length <= self.lengths[source]
        for slot in targets:
            for memory in (self.k, self.v):
                memory[:, slot, :, :length] = memory[:, source, :, :length]
            self.tokens[slot, :length] = self.tokens[source, :length]
            end = BEFORE + length
            self.inputs[:, slot, :end] = self.inputs[:, source, :end]
            self.lengths[slot] = length

    def swap(self, a: int, b: int) -> None:
        """Exchange the content of two slots."""
        length = max(self.lengths[a], self.lengths[b])
        for memory in (self.k[..., :length, :], self.v[..., :length, :]):
            memory[:, [a, b]] = memory[:, [b, a]]
        self.tokens[[a, b], :length] = self.tokens[[b, a], :length]
        self.inputs[:, [a, b]] = self.inputs[:, [b, a]]
        self.lengths[a], self.lengths[b] = self.lengths[b], self.lengths[a]

    def advance(self, slot: int, start: int, count: int) -> None:
        """Note that `count` tokens from position `start` are being stored in a slot."""
        assert 0 <= start <= self.lengths[slot] and count > 0, "gap in the slot's sequence"
        assert start + count <= self.max_len, f"slot {slot} is full"
        self.lengths[slot] = start + count

    def _band(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """What to add to a score by the distance from query to key, [-max_len .. max_len + BUCKET].

        0 from `window` keys back to the query itself, else -inf.
        """
        distance = torch.arange(-self.max_len, self.max_len + BUCKET, device=self.device)
        hidden = distance > 0
        if window is not None:
            hidden |= distance < -window
        return torch.zeros(distance.shape, dtype=dtype, device=self.device).masked_fill_(
            hidden, -torch.inf
        )

    def mask(self, window: int | None, positions: Tensor, span: slice) -> Tensor:
        """What to add to the scores of queries at positions [B, T] and keys in span, [B, 1, T, S].

        0 where a query sees a key, else -inf.
        """
        # Every query's row of the mask is a piece of the same band, which is made only once.
        pieces = self._bands[window].unfold(0, span.stop - span.start, 1)  # [starts, S], no copy
        return pieces[(self.max_len + span.start - positions)[:, None]]

    def view(
        self, slot_ids: Sequence[int], starts: Sequence[int], counts: Sequence[int]
    ) -> "CacheView":
        """What the model needs to process the next tokens of some slots.

        Row b of the [B, max(counts)] tokens belongs to slot_ids[b]: its first counts[b] tokens are
        at positions starts[b], starts[b] + 1, ... of that slot; the rest of the row is padding. A
        start before the slot's length overwrites the slot from there.
        """
        assert len(set(slot_ids)) == len(slot_ids) == len(starts) == len(counts) > 0
        for slot, start, count in zip(slot_ids, starts, counts, strict=True):
            self.advance(slot, start, count)
        return CacheView(self, list(slot_ids), list(starts), list(counts))


def convolution_places(
    cache: KVCache, slots: Tensor, starts: Tensor, written: Tensor
) -> tuple[Tensor, Tensor]:
    """The rows of KVCache.input_rows for tokens from starts [B] on, at positions written [B, T].

    Returns those that are written, [B * T], and those before, [B * BEFORE]; where every row has one
    token, also its own, after those before.
    """
    first = slots[:, None] * cache.inputs.shape[2]  # [B, 1]
    # Position p is at p + BEFORE, so what is before it starts at p.
    count = BEFORE + (written.shape[1] == 1)
    read = starts[:, None] + torch.arange(count, device=starts.device)
    return (first + written + BEFORE).flatten(), (first + read).flatten()


def with_preceding(memory: Tensor, written: Tensor, read: Tensor, x: Tensor) -> Tensor:
    """Store x [B, T, C] in the rows `written` of memory; return [B, BEFORE + T, C], x last."""
    B, T, C = x.shape
    memory.index_copy_(0, written, x.reshape(-1, C).to(memory.dtype))
    known = memory.index_select(0, read).view(B, -1, C).to(x.dtype)
    return known if T == 1 else torch.cat([known, x], dim=1)


class CacheView:
    """Some slots of a cache as one batch; created by KVCache.view for one forward pass."""

    def __init__(
        self, cache: KVCache, slot_ids: list[int], starts: list[int], counts: list[int]
    ) -> None:
        self.cache = cache
        self._kept: dict[int | None, tuple[Sequence[Tensor], Sequence[Tensor], Tensor]] = {}
        self.width = max(counts)
        self.fresh = not any(starts)
        self.first = min(starts)
        self.at_start = self.first < 2
        ends = [start + count for start, count in zip(starts, counts, strict=True)]
        self.end = min(-(-max(ends) // BUCKET) * BUCKET, cache.max_len)
        low, high = min(slot_ids), max(slot_ids) + 1
        self.slot_range = slice(low, high)
        self.in_order = slot_ids == list(range(low, high))
        # Attending to a few idle slots in between costs less than copying all keys and values.
        self.spread = not self.in_order and self.width == 1 and high - low <= 2 * len(slot_ids)
        host = [slot_ids, starts, ends]
        self._slots, self._starts, stops = to_device(host, cache.device).unbind()
        if self.width == 1:
            self.positions = self._written = self._starts[:, None]  # [B, 1]
            return
        positions = self._starts[:, None] + torch.arange(self.width, device=cache.device)  # [B, T]
        # Padding repeats its row's last position: it needs a valid one, and a key to see.
        self.positions = torch.minimum(positions, stops[:, None] - 1)
        self._written = positions  # [B, T], where each token is stored
        if len(set(counts)) > 1:
            self._written = torch.where(positions < stops[:, None], positions, cache.padding)

    def previous_tokens(self, count: int) -> Tensor:
        """The `count` tokens before each row's first one, [B, count]; arbitrary before the text."""
        back = torch.arange(-count, 0, device=self._starts.device)
        before = self._starts[:, None] + back
        if self.at_start:
            before.clamp_(min=0)
        return self.cache.tokens[self._slots[:, None], before]

    def store_tokens(self, tokens: Tensor) -> None:
        """Store the tokens [B, T]; the next call's first token needs the one before it."""
        self.cache.tokens[self._slots[:, None], self._written] = tokens

    def with_preceding(self, layer: int, x: Tensor) -> Tensor:
        """Store the inputs [B, T, C] of a convolution; return [B, BEFORE + T, C], these last."""
        return with_preceding(self.cache.input_rows[layer], *self._convolution_places, x)

    @functools.cached_property
    def _convolution_places(self) -> tuple[Tensor, Tensor]:
        """The rows where inputs are written, [B * T], and read; see with_preceding."""
        return convolution_places(self.cache, self._slots, self._starts, self._written)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
        """Store keys and values [B, T, H_kv, D]; return attention of the queries [B, T, H, D]."""
        cache = self.cache
        for memory, new in zip(cache.layers[layer], (k, v), strict=True):
            self._write(memory, new)
        window = cache.windows[layer]
        if self.fresh:
            # New sequences see only their own tokens of this call: ordinary causal attention.
            q, k, v = (x.to(cache.dtype) for x in (q, k, v))
            return attention.attend(q, k, v, window=window, scale=scale, backend=cache.backend)
        keys, values, mask = self._seen(window)
        k, v = keys[layer], values[layer]  # [B, H_kv, S, D], of the slots in range if spread
        if not self.in_order and not self.spread:
            k, v = k.index_select(0, self._slots), v.index_select(0, self._slots)
        if q.dtype != k.dtype:
            q = q.to(k.dtype)
        if self.width > 1:
            return _attend_many(q, k, v, mask, scale)
        return self._attend_one(q, k, v, mask, scale)

    def _seen(self, window: int | None) -> tuple[Sequence[Tensor], Sequence[Tensor], Tensor]:
        """Each layer's keys and values that its queries may see, and the mask; kept for a view."""
        if window not in self._kept:
            # In a layer with a window, no query sees a key before the earliest query's window.
            begin = 0 if window is None else max(0, self.first - window) // BUCKET * BUCKET
            span = slice(begin, self.end)
            slots = self.slot_range if self.in_order or self.spread else slice(None)
            cache = self.cache
            keys, values = (x[:, slots, :, span].unbind() for x in (cache.k, cache.v))
            self._kept[window] = keys, values, cache.mask(window, self._mask_positions, span)
        return self._kept[window]

    @functools.cached_property
    def _places(self) -> Tensor:
        """Where single tokens are stored, [B x H_kv]: rows of a layer's memory as [.., D]."""
        heads, length = self.cache.k.shape[2:4]
        first = self._slots * (heads * length) + self._starts  # [B]
        return (first[:, None] + torch.arange(heads, device=first.device) * length).view(-1)

    def _write(self, memory: Tensor, x: Tensor) -> None:
        if x.dtype != memory.dtype:
            x = x.to(memory.dtype)
        if self.width == 1:
            flat = memory.view(-1, memory.shape[3])  # [slots * H_kv * S, D]
            flat.index_copy_(0, self._places, x.reshape(-1, x.shape[3]))
        elif self.fresh and self.in_order:
            # Padding lands beyond the row's length.
            memory[self.slot_range, :, : self.width] = x.transpose(1, 2)
        else:
            memory[self._slots[:, None], :, self._written] = x

    def _attend_one(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
        """One query per row; the heads that share a key head become queries of one head."""
        place = None
        if self.spread:
            # [B, 1, H, D] -> [slots in range, 1, H, D]; idle slots get a query of zeros.
            place = self._slots - self.slot_range.start  # [B]
            q = q.new_zeros(k.shape[0], *q.shape[1:]).index_copy_(0, place, q)
        # [B, 1, H, D] -> [B, H_kv, H / H_kv, D]: each key head is read once for all its queries.
        # Decoding is bound by reading the cache, not by arithmetic.
        grouped = q.reshape(q.shape[0], k.shape[1], -1, q.shape[3])
        y = F.scaled_dot_product_attention(grouped, k, v, attn_mask=mask, scale=scale)
        y = y.reshape(q.shape)  # [B, 1, H, D]
        return y if place is None else y.index_select(0, place)

    @functools.cached_property
    def _mask_positions(self) -> Tensor:
        """Positions of the queries, [B, T]; of every slot in the range if rows are spread."""
        if not self.spread:
            return self.positions
        count = self.slot_range.stop - self.slot_range.start
        positions = self.positions.new_zeros(count, 1)  # an idle slot attends to its first key
        return positions.index_copy_(0, self._slots - self.slot_range.start, self.positions)


def _attend_many(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Several queries per row that continue stored sequences; k, v: [B, H_kv, S, D]."""
    y = F.scaled_dot_product_attention(
        q.transpose(1, 2),  # [B, H, T, D]
        k,
        v,
        attn_mask=mask,
        scale=scale,
        enable_gqa=q.shape[2] != k.shape[1],
    )
    return y.transpose(1, 2)  # [B, T, H, D]
