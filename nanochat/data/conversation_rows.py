"""The training stream of conversations, packed unsplit into rows of T+1 tokens.

Owns the order of conversations, their rendering in buckets, and the truncation of long ones. Knows
no batch, rank or device.
"""

import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nanochat.data.packing import IGNORED, pack_conversations
from nanochat.system.errors import DataError
from nanochat.tokenizer import Tokenizer
from nanochat.tokenizer.conversation import Conversation, render

BUCKET = 1024  # conversations packed together: enough to fill rows well, few enough to render fast
SAMPLED_BUCKETS = 8  # from which the length of an epoch is estimated


@dataclass
class ChatCounts:
    """Counts from packing one bucket of conversations."""

    conversations: int = 0
    truncated: int = 0
    dropped: int = 0
    rows: int = 0
    tokens: int = 0
    supervised_tokens: int = 0


@dataclass(frozen=True)
class PackedBucket:
    """Packed conversations: inputs and targets int32 [rows, T], targets -1 if without loss."""

    inputs: np.ndarray
    targets: np.ndarray
    counts: ChatCounts = field(default_factory=ChatCounts)


class ChatRows:
    """Conversations in a seeded order, bucket by bucket, epoch after epoch.

    A conversation is never split. One longer than T+1 tokens is truncated; one that then has no
    token to learn is dropped.
    """

    def __init__(
        self, conversations: Sequence[Conversation], tokenizer: Tokenizer, T: int, *, seed: int
    ) -> None:
        if not len(conversations):
            raise DataError("there are no conversations to train on; give --data with some")
        self.T = T
        self._conversations = conversations
        self._tokenizer = tokenizer
        self._seed = seed
        self._lock = threading.Lock()
        self._kept: dict[tuple[int, int], PackedBucket] = {}

    @property
    def identity(self) -> dict[str, Any]:
        """What the rows depend on, as JSON types: a saved position fits only an equal identity."""
        return {
            "conversations": len(self._conversations),
            "tokenizer": self._tokenizer.sha256[:16],
            "T": self.T,
            "seed": self._seed,
        }

    @property
    def buckets(self) -> int:
        """Buckets in an epoch."""
        return -(-len(self._conversations) // BUCKET)

    def sample(self) -> tuple[ChatCounts, float]:
        """Counts over the first buckets, and the factor that scales them to all conversations."""
        total = ChatCounts()
        for index in range(min(self.buckets, SAMPLED_BUCKETS)):
            for name, value in vars(self.bucket(0, index).counts).items():
                setattr(total, name, getattr(total, name) + value)
        return total, len(self._conversations) / total.conversations

    def digest(self) -> str:
        """16 hex digits of the first bucket's rows, to tell different conversations apart."""
        return hashlib.sha256(self.bucket(0, 0).inputs.tobytes()).hexdigest()[:16]

    def bucket(self, epoch: int, index: int) -> PackedBucket:
        """One bucket of an epoch; the two made last are cached."""
        key = (epoch, index)
        with self._lock:
            if key not in self._kept:
                while len(self._kept) > 1:
                    self._kept.pop(next(iter(self._kept)))
                self._kept[key] = self._make(epoch, index)
            return self._kept[key]

    def read(
        self, position: dict[str, Any], count: int
    ) -> tuple[list[tuple[PackedBucket, int]], dict[str, Any]]:
        """The next `count` rows from a position, as (bucket, row) pairs, and the next position.

        Raises: DataError if an entire epoch has no row.
        """
        epoch, index, row = (int(position[name]) for name in ("epoch", "bucket", "row"))
        found: list[tuple[PackedBucket, int]] = []
        empty = 0
        while len(found) < count:
            bucket = self.bucket(epoch, index)
            rows = min(len(bucket.inputs) - row, count - len(found))
            found += [(bucket, row + i) for i in range(rows)]
            row += rows
            empty = 0 if len(bucket.inputs) else empty + 1
            if empty >= self.buckets:
                raise DataError(
                    f"none of the {len(self._conversations):,} conversations has an assistant's "
                    f"answer within {self.T} tokens; give longer sequences or other conversations"
                )
            if row >= len(bucket.inputs):
                index, row = index + 1, 0
                if index == self.buckets:
                    epoch, index = epoch + 1, 0
        return found, {"epoch": epoch, "bucket": index, "row": row}

    def _make(self, epoch: int, index: int) -> PackedBucket:
        rng = np.random.default_rng((self._seed, epoch))
        order = rng.permutation(len(self._conversations))
        mine = order[index * BUCKET : (index + 1) * BUCKET]
        counts = ChatCounts(conversations=len(mine))
        rendered = []
        for number in mine:
            full = render(self._conversations[int(number)], self._tokenizer)
            tokens, mask = full.tokens[: self.T + 1], full.mask[: self.T + 1]
            if not any(mask[1:]):  # a row's first token is never a target
                counts.dropped += 1
                continue
            counts.truncated += len(full.tokens) > self.T + 1
            rendered.append((tokens, mask))
        rows = pack_conversations([len(tokens) for tokens, _ in rendered], self.T + 1)
        shuffle = np.random.default_rng((self._seed, epoch, index)).permutation(len(rows))
        return self._fill([[rendered[i] for i in rows[row]] for row in shuffle], counts)

    def _fill(
        self, rows: list[list[tuple[list[int], list[int]]]], counts: ChatCounts
    ) -> PackedBucket:
        # [rows, T+1]: one token more than inputs, as targets are the inputs shifted by one
        tokens = np.full((len(rows), self.T + 1), self._tokenizer.bos_id, dtype=np.int32)
        targets = np.full((len(rows), self.T + 1), IGNORED, dtype=np.int32)
        for row, items in enumerate(rows):
            at = 0
            for item, mask in items:
                end = at + len(item)
                tokens[row, at:end] = item
                targets[row, at:end] = np.where(mask, item, IGNORED)
                # the previous conversation does not predict the first token of the next
                targets[row, at] = IGNORED
                at = end
            counts.tokens += at
        counts.rows = len(rows)
        counts.supervised_tokens = int((targets[:, 1:] != IGNORED).sum())
        return PackedBucket(tokens[:, :-1], targets[:, 1:], counts)  # [rows, T] each
