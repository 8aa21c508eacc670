"""The forward passes of a step: how many tokens of which slots, and where their results are.

Owns: the size of prefill passes, and the batch that slots' tokens form. Does not own: which slots
there are (slots), the model, or keys and values (kv_cache).
"""

from __future__ import annotations

import torch
from torch import Tensor

from nanochat.engine.kv_cache import KVCache, to_device
from nanochat.engine.sequences import Slot
from nanochat.gpt.decoder import Decoder

# A prefill pass processes many tokens at once and is bound by arithmetic; a decode pass processes
# one token per sequence and is bound by reading the weights. A long prompt in one pass would stall
# every decoding sequence, so it is cut into chunks with a decode pass between them.
PREFILL_CHUNK = 512  # tokens of a sequence per step
PREFILL_TOKENS = 16_384  # tokens of one prefill pass, padding included; bounds memory
# Of a pass while somebody watches others decode. Measured on one core with 8 streams, after 64 to
# 900 tokens: depth 4 decodes in 2.6 ms and reads 32 tokens in 2.4 to 3.5 ms, 64 in 3.2 to 8.3;
# depth 12 decodes in 36 ms and reads 32 in 55 to 65 ms, 64 in 97 to 121 ms.
SHARED_PREFILL_TOKENS = {"cpu": 24}


def next_chunks(
    slots: list[Slot], *, decoding: int, device: torch.device
) -> tuple[list[Slot], list[int]]:
    """The slots of the next prefill pass, and how many tokens of each it reads.

    decoding: slots that decode meanwhile and that somebody watches.
    """
    chunk, room = PREFILL_CHUNK, PREFILL_TOKENS
    if decoding:
        # Where more wait for their first token than for their next one, the former count more.
        share = max(1, len(slots) // decoding)
        room = min(room, share * SHARED_PREFILL_TOKENS.get(device.type, PREFILL_CHUNK))
        chunk = min(chunk, room)
        slots = sorted(slots, key=lambda slot: slot.sequences[0].id)  # no prompt waits forever
    counts: list[int] = []
    longest = 0
    for slot in slots:
        count = min(slot.uncached, chunk)
        longest = max(longest, count)  # the others are padded to it
        if counts and longest * (len(counts) + 1) > room:
            break
        counts.append(count)
    return slots[: len(counts)], counts


def read_tokens(model: Decoder, cache: KVCache, slots: list[Slot], counts: list[int]) -> Tensor:
    """Process the next `counts` tokens of the slots; return their hidden states [B, T, C]."""
    chunks = [s.tokens[s.cached : s.cached + n] for s, n in zip(slots, counts, strict=True)]
    T = max(counts)
    padded = [chunk + [0] * (T - len(chunk)) for chunk in chunks]
    tokens = to_device(padded, cache.device)  # [B, T]
    indices, starts = [slot.index for slot in slots], [slot.cached for slot in slots]
    hidden = model.hidden(tokens, cache.view(indices, starts, counts))  # [B, T, C]
    for slot, count in zip(slots, counts, strict=True):
        slot.cached += count
    return hidden


def last_states(hidden: Tensor, slots: list[Slot], counts: list[int]) -> Tensor:
    """Of hidden [B, T, C]: each slot's last token, if it is read to the end; [slots, C].

    Only these predict something new; without the others, the head computes logits for one token
    per slot instead of T.
    """
    if hidden.shape[1] == 1:
        return hidden[:, 0]  # [B, C]
    last = [(i, n - 1) for i, n in enumerate(counts) if not slots[i].uncached]
    rows, columns = to_device(last, hidden.device).view(-1, 2).T
    return hidden[rows, columns]
