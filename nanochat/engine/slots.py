"""Which slot of the cache a sequence gets, and what of its tokens is there already.

Owns: slots in use and idle ones, sharing by sequences that are equal so far, and the prefix cache:
idle slots keep the tokens of their last sequence until they are needed. Does not own: keys and
values (kv_cache), or the order in which sequences are admitted (sequences.Queue, scheduler).
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence

from nanochat.engine.kv_cache import KVCache
from nanochat.engine.sequences import ActiveSequence, Slot

MIN_PREFIX = 16  # a shorter common beginning is read again: prompts batch better if read whole


class SlotTable:
    """The slots of a cache.

    watched: someone reads the answers as they are made. A sequence then never has to leave its
    slot, so one joins others only while there is a slot for it when they part; and prefixes of
    finished sequences are used. Otherwise only the total time counts: any number of sequences share
    a slot, and those that find none when they part wait again.
    """

    def __init__(self, cache: KVCache) -> None:
        self.cache = cache
        self.watched = True
        self.used: list[Slot] = []  # by index
        # What idle slots hold: tokens whose keys and values are there; least recently used first.
        self._kept: dict[int, list[int]] = {}
        self.forget()
        self._by_prompt: dict[tuple[int, ...], Slot] = {}  # one slot in use for each prompt

    def forget(self) -> None:
        """Drop the tokens that idle slots hold."""
        used = {slot.index for slot in self.used}
        self._kept = {index: [] for index in range(self.cache.slots) if index not in used}

    @property
    def idle(self) -> int:
        """Slots without a sequence."""
        return len(self._kept)

    @property
    def sequences(self) -> list[ActiveSequence]:
        """All sequences in slots."""
        return [seq for slot in tuple(self.used) for seq in slot.sequences]

    def admit(self, seq: ActiveSequence) -> bool:
        """Give a waiting sequence a slot, or let it join one; False if it has to wait."""
        if self.watched and len(self.sequences) >= self.cache.slots:
            return False
        # Prefix sharing: many samples of one prompt, as in reinforcement learning, need only one
        # prefill. Keys and values depend on nothing but the tokens, so they can be copied.
        donor = self._by_prompt.get(seq.prompt)
        readable = donor is not None and not (seq.reads_prompt and donor.cached)
        if donor is not None and readable and donor.tokens == seq.tokens:
            donor.sequences.append(seq)
            seq.slot = donor
        elif self._kept:
            source, length = self._source(seq, donor)
            self._place([seq], source, length)
        else:
            return False
        if seq.cached_tokens is None:
            assert seq.slot is not None
            seq.cached_tokens = min(seq.slot.cached, len(seq.prompt))
        return True

    def split(self, slot: Slot) -> list[ActiveSequence]:
        """Give sequences that took different tokens separate slots; return those that found none.

        They keep their tokens.
        """
        if len(slot.sequences) < 2:
            return []
        alike: dict[tuple[int, ...], list[ActiveSequence]] = {}
        for seq in slot.sequences:
            alike.setdefault(tuple(seq.tokens[slot.cached :]), []).append(seq)
        # Sequences with a running tool all took the same token: they are one group, and stay.
        groups = sorted(alike.values(), key=lambda group: all(seq.tool is None for seq in group))
        slot.sequences = groups[0]
        homeless = []
        for sequences in groups[1:]:
            if self._kept:
                self._place(sequences, slot.index, slot.cached)
                continue
            for seq in sequences:
                seq.slot = None
                homeless.append(seq)
        return homeless

    def gather(self, rows: int) -> None:
        """Move the sequences beyond the first `rows` slots into free ones among these."""
        # What an idle slot holds moves to the other place, so no prefix is lost.
        while self.used and self.used[-1].index >= rows:
            slot = self.used.pop()
            old, new = slot.index, min(self._kept)
            self.cache.swap(old, new)
            # In the same order: the least recently used one stays first.
            self._kept = {old if i == new else i: kept for i, kept in self._kept.items()}
            slot.index = new
            bisect.insort(self.used, slot, key=lambda other: other.index)

    def leave(self, seq: ActiveSequence) -> None:
        """Take a sequence out of its slot; a slot without sequences is idle."""
        slot, seq.slot = seq.slot, None
        if slot is None:
            return
        slot.sequences.remove(seq)
        if slot.sequences:
            return
        self.used.remove(slot)
        self._kept[slot.index] = seq.tokens[: slot.cached] if self.watched else []
        if self._by_prompt.get(seq.prompt) is slot:
            del self._by_prompt[seq.prompt]
            for other in self.used:
                if other.sequences[0].prompt == seq.prompt:
                    self._by_prompt[seq.prompt] = other
                    break

    def _place(self, sequences: list[ActiveSequence], source: int | None, length: int) -> None:
        """Give sequences whose tokens are equal an idle slot, with a prefix from another slot."""
        index = self._choose(source, length)
        if source is not None and source != index:
            self.cache.copy(source, [index], length)
            if source in self._kept:
                self._kept[source] = self._kept.pop(source)  # now the most recently used
        self.cache.reset(index, length)
        del self._kept[index]
        slot = Slot(index, sequences, cached=length)
        for seq in sequences:
            seq.slot = slot
        bisect.insort(self.used, slot, key=lambda other: other.index)
        prompt = sequences[0].prompt
        if prompt not in self._by_prompt or not sequences[0].mask:
            self._by_prompt[prompt] = slot

    def _choose(self, source: int | None, length: int) -> int:
        """The idle slot to take."""
        kept = self._kept
        # In place if most of what the slot holds is used, as by a conversation's next turn. If not,
        # as by a new conversation with the same system prompt, the slot is better left as it is.
        if source in kept and (len(kept) == 1 or 2 * length >= len(kept[source])):
            return source
        # Low indices first, so that the slots in use are close together.
        empty = [index for index, tokens in kept.items() if not tokens]
        if empty:
            return min(empty)
        return next(index for index in kept if index != source)

    def _source(self, seq: ActiveSequence, donor: Slot | None) -> tuple[int | None, int]:
        """The slot with the longest beginning of a sequence, and its length; (None, 0) if none."""
        if seq.reads_prompt:
            return None, 0
        if not self.watched:
            # The prompt's last token is needed for its hidden state.
            length = 0 if donor is None else min(donor.cached, len(seq.prompt) - 1)
            return (donor.index, length) if donor is not None and length else (None, 0)
        start = seq.tokens[:MIN_PREFIX]
        best: tuple[int | None, int] = None, 0
        held = [*self._kept.items(), *((s.index, s.tokens[: s.cached]) for s in self.used)]
        for index, tokens in held:
            if tokens[:MIN_PREFIX] == start:
                length = min(_common(tokens, seq.tokens), len(seq.tokens) - 1)
                if length > max(best[1], MIN_PREFIX - 1):
                    best = index, length
        return best


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common beginning.

    >>> _common([1, 2, 3], [1, 2, 4, 5])
    2
    """
    for place, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return place
    return min(len(a), len(b))
