"""Keys and values of sequences in progress, in fixed slots, so that each token is computed once.

Attention is causal: the keys and values of a token depend only on it and the tokens before it, and
never change afterward. Stored, a new token costs one forward pass of one token; without them it
would cost a pass over the complete sequence again.

Owns the memory of the slots, and attention over it. Does not own which sequence is in which slot
(scheduler) or the model that computes keys and values (gpt).
Shapes: B rows of a call, T tokens per row, S stored positions attended to, H query heads, H_kv key
heads, D head dimension.
"""

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat.gpt import GPTConfig, attention
from nanochat.system.errors import ConfigError

BUCKET = 32  # S is a multiple of this: few shapes, and short sequences stay cheap
HALF_DTYPES = (torch.bfloat16, torch.float16)


class KVCache:
    """Static memory for `slots` sequences of up to `max_len` tokens each.

    dtype: the model's compute dtype. On a CPU half precision is stored as float32, because
    attention of single queries is several times faster there in float32 than in bfloat16.
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
        # Sequences start and end at different times, so each slot has its own length; positions
        # after it hold leftovers of earlier sequences, which the masks hide.
        self.lengths = [0] * slots
        stored = torch.float32 if device.type == "cpu" and dtype in HALF_DTYPES else dtype
        # One extra position: padding is written there and never read.
        # One block per layer, the longest possible S for every slot: [depth, slots, S, H_kv, D].
        # A slot's keys of one layer are contiguous, so adjacent slots are a batch without a copy.
        shape = (config.depth, slots, max_len + 1, config.kv_heads, config.head_dim)
        self.k = torch.zeros(shape, dtype=stored, device=device)
        self.v = torch.zeros(shape, dtype=stored, device=device)
        self.tokens = torch.zeros(slots, max_len + 1, dtype=torch.int64, device=device)

    def reset(self, slot: int, length: int = 0) -> None:
        """Drop everything in a slot after its first `length` tokens."""
        assert 0 <= length <= self.lengths[slot]
        self.lengths[slot] = length  # nothing is erased: the next sequence overwrites it

    def copy(self, source: int, targets: Sequence[int], length: int) -> None:
        """Replace the content of other slots by the first `length` tokens of one slot."""
        assert source not in targets and length <= self.lengths[source]
        for memory in (self.k, self.v, self.tokens[None]):
            # [depth, targets, length, ...] from [depth, 1, length, ...]
            memory[:, list(targets), :length] = memory[:, source : source + 1, :length]
        for slot in targets:
            self.lengths[slot] = length

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
            assert 0 <= start <= self.lengths[slot] and count > 0, "gap in the slot's sequence"
            assert start + count <= self.max_len, f"slot {slot} is full"
            self.lengths[slot] = start + count
        return CacheView(self, list(slot_ids), list(starts), list(counts))


class CacheView:
    """Some slots of a cache as one batch; created by KVCache.view for one forward pass."""

    def __init__(
        self, cache: KVCache, slot_ids: list[int], starts: list[int], counts: list[int]
    ) -> None:
        self.cache = cache
        self._masks: dict[int | None, Tensor] = {}
        self.width = max(counts)
        self.fresh = not any(starts)
        ends = [start + count for start, count in zip(starts, counts, strict=True)]
        self.first = min(starts)
        self.end = min(-(-max(ends) // BUCKET) * BUCKET, cache.max_len)
        low, high = min(slot_ids), max(slot_ids) + 1
        self.slot_range = slice(low, high)
        self.in_order = slot_ids == list(range(low, high))
        # Attending to a few idle slots in between costs less than copying all keys and values.
        self.spread = self.width == 1 and high - low <= 2 * len(slot_ids)
        host = torch.tensor([slot_ids, starts, ends], dtype=torch.int64)
        self._slots, self._starts, stops = host.to(cache.device, non_blocking=True).unbind()
        positions = self._starts[:, None] + torch.arange(self.width, device=cache.device)  # [B, T]
        # Padding repeats its row's last position: it needs a valid one, and a key to see.
        self.positions = torch.minimum(positions, stops[:, None] - 1)
        self._written = positions  # [B, T], where each token is stored
        if len(set(counts)) > 1:
            self._written = torch.where(positions < stops[:, None], positions, cache.max_len)

    def previous_tokens(self) -> Tensor:
        """The token before each row's first one, [B]; an arbitrary token at position 0."""
        return self.cache.tokens[self._slots, (self._starts - 1).clamp(min=0)]

    def store_tokens(self, tokens: Tensor) -> None:
        """Store the tokens [B, T]; the next call's first token needs the one before it."""
        self.cache.tokens[self._slots[:, None], self._written] = tokens

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
        """Store keys and values [B, T, H_kv, D]; return attention of the queries [B, T, H, D]."""
        cache = self.cache
        keys, values = cache.k[layer], cache.v[layer]  # [slots, S, H_kv, D]
        self._write(keys, k)
        self._write(values, v)
        window = cache.windows[layer]
        if self.fresh:
            # New sequences see only their own tokens of this call: ordinary causal attention.
            backend = attention.choose("auto", cache.device)
            return attention.attend(q, k, v, window=window, scale=scale, backend=backend)
        # In a layer with a window, no query sees a key before the earliest query's window.
        begin = 0
        if window is not None:
            begin = max(0, self.first - window) // BUCKET * BUCKET
        span = slice(begin, self.end)
        mask = self._mask(window, begin)  # [B, 1, T, S]
        q, dtype = q.to(keys.dtype), q.dtype
        if self.width > 1:
            y = _attend_many(q, self._rows(keys, span), self._rows(values, span), mask, scale)
        else:
            y = self._attend_one(q, keys, values, span=span, mask=mask, scale=scale)
        return y.to(dtype)  # [B, T, H, D]

    def _write(self, memory: Tensor, x: Tensor) -> None:
        if self.fresh and self.in_order:
            memory[self.slot_range, : self.width] = x  # padding lands beyond the row's length
        else:
            memory[self._slots[:, None], self._written] = x.to(memory.dtype)

    def _rows(self, memory: Tensor, span: slice) -> Tensor:
        """This view's slots, [B, S, H_kv, D]; a copy unless they are adjacent and in order."""
        if self.in_order:
            return memory[self.slot_range, span]
        return memory[:, span].index_select(0, self._slots)

    def _attend_one(
        self, q: Tensor, keys: Tensor, values: Tensor, *, span: slice, mask: Tensor, scale: float
    ) -> Tensor:
        """One query per row; the heads that share a key head become queries of one head."""
        if not self.in_order and self.spread:
            # [B, 1, H, D] -> [slots in range, 1, H, D]; idle slots get a query of zeros.
            keys, values = keys[self.slot_range, span], values[self.slot_range, span]
            place = self._slots - self.slot_range.start  # [B]
            q = q.new_zeros(keys.shape[0], *q.shape[1:]).index_copy_(0, place, q)
        else:
            place = None
            keys, values = self._rows(keys, span), self._rows(values, span)
        # [B, 1, H, D] -> [B, H_kv, H / H_kv, D]: each key head is read once for all its queries.
        # Decoding is bound by reading the cache, not by arithmetic.
        grouped = q.view(q.shape[0], keys.shape[2], -1, q.shape[3])
        y = F.scaled_dot_product_attention(
            grouped, keys.transpose(1, 2), values.transpose(1, 2), attn_mask=mask, scale=scale
        )
        y = y.reshape(q.shape)  # [B, 1, H, D]
        return y if place is None else y.index_select(0, place)

    @functools.cached_property
    def _mask_positions(self) -> Tensor:
        """Positions of the queries, [B, T]; of every slot in the range if rows are spread."""
        if self.in_order or not self.spread:
            return self.positions
        count = self.slot_range.stop - self.slot_range.start
        positions = self.positions.new_zeros(count, 1)  # an idle slot attends to its first key
        return positions.index_copy_(0, self._slots - self.slot_range.start, self.positions)

    def _mask(self, window: int | None, begin: int) -> Tensor:
        """What to add to the scores, [B, 1, T, S]: 0 where a query sees a key, else -inf; kept."""
        if window not in self._masks:
            query = self._mask_positions[:, None, :, None]  # [B, 1, T, 1]
            key = torch.arange(begin, self.end, device=query.device)  # [S]
            hidden = key > query  # [B, 1, T, S]; also hides what is beyond the slot's length
            if window is not None:
                hidden |= key < query - window
            mask = torch.zeros(hidden.shape, dtype=self.cache.k.dtype, device=query.device)
            self._masks[window] = mask.masked_fill_(hidden, -torch.inf)
        return self._masks[window]


def _attend_many(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Several queries per row that continue stored sequences."""
    y = F.scaled_dot_product_attention(
        q.transpose(1, 2),  # [B, H, T, D]
        k.transpose(1, 2),  # [B, H_kv, S, D]
        v.transpose(1, 2),
        attn_mask=mask,
        scale=scale,
        enable_gqa=q.shape[2] != k.shape[2],
    )
    return y.transpose(1, 2)  # [B, T, H, D]
