"""The training stream of documents: row i is a function of dataset, tokenizer, T and seed.

Owns the order of shards and rows, and finding a row's tokens by its number. Knows no batch, rank
or device.
"""

import functools
import threading
from pathlib import Path

import numpy as np

from nanochat.data.dataset import Dataset
from nanochat.data.packing import IGNORED, RowPlan, crop_documents, document_rows, pack_documents
from nanochat.data.token_shards import TokenShards
from nanochat.system.errors import DataError
from nanochat.tokenizer import Tokenizer

Plan = tuple[np.ndarray, RowPlan, np.ndarray]  # tokens, packed rows, their order
PACKERS = {"split": pack_documents, "crop": crop_documents}


class TokenStream:
    """An endless, numbered list of rows of T+1 tokens, epoch after epoch.

    Each epoch takes the shards in a seeded order. Each shard is packed separately: its documents
    are regrouped every epoch and its rows permuted. Every token is in exactly one row of an epoch
    (except a single one that may be left over per shard). With packing="crop", every row starts
    with a document and the text that does not fit is dropped. Shards are encoded when their rows
    are first read, the next one in the background.

    As row i depends on nothing else, a resumed run needs only one number to continue exactly, any
    number of ranks reads the same data, and no shuffled copy of the tokens is ever written.
    """

    def __init__(
        self,
        dataset: Dataset,
        split: str,
        tokenizer: Tokenizer,
        T: int,
        *,
        seed: int,
        base: Path,
        packing: str = "split",
    ) -> None:
        self.name = f"{dataset.name} ({split})"
        # What the rows depend on, as JSON types: a saved position fits only an equal identity.
        self.identity = {
            "data": dataset.hash,
            "tokenizer": tokenizer.sha256[:16],
            "T": T,
            "seed": seed,
            "packing": packing,
        }
        self.T = T
        self.pad_id = tokenizer.bos_id
        self._seed = seed
        self._packing = packing
        self._shards = TokenShards(dataset, split, tokenizer, base)
        self._counts = np.zeros(len(self._shards), dtype=np.int64)
        self._rows = self._tokens = self._cropped = 0  # totals of the shards counted so far
        self._known = 0  # shards counted so far, in the first epoch's order
        self._ends: tuple[tuple[int, int], np.ndarray] = (-1, 0), self._counts
        self._plans: dict[tuple[int, int], Plan] = {}
        self._lock = threading.RLock()

    @property
    def rows_per_epoch(self) -> int:
        """Rows that hold every token once. The first call encodes all shards not encoded yet."""
        with self._lock:
            while self._known < len(self._shards):
                self._count_next()
            return self._rows

    def rows_up_to(self, most: int) -> int:
        """Rows of an epoch, at most `most`. Encodes only the shards that have them."""
        with self._lock:
            while self._rows < most and self._known < len(self._shards):
                self._count_next()
            return min(self._rows, most)

    @property
    def cropped_share(self) -> float:
        """Share of tokens that cropping drops, over the shards counted so far."""
        with self._lock:
            return self._cropped / max(self._tokens, 1)

    def require(self, rows: int, what: str = "batch") -> None:
        """Make sure that an epoch has at least `rows` rows.

        Raises: DataError with the numbers if it has fewer.
        """
        found = self.rows_up_to(rows)
        if found < rows:
            raise DataError(
                f"dataset {self.name} is too small: {self._tokens:,} tokens make {found:,} rows "
                f"of {self.T}, one {what} needs {rows:,}; give more text, a smaller "
                "--tokens-per-step or a shorter --sequence-length"
            )

    def rows(self, start: int, count: int, *, stride: int = 1) -> np.ndarray:
        """Rows start, start + stride, ...: int64 [count, T+1].

        The last row of a shard may be short: it is padded with BOS.
        """
        return self._read(start, count, stride)[0]

    def inputs_targets(
        self, start: int, count: int, *, stride: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rows as model inputs and targets: int64 [count, T] each, targets -1 at padding."""
        rows, lengths = self._read(start, count, stride)  # [count, T+1], [count]
        targets = rows[:, 1:].copy()  # [count, T]: position t predicts token t + 1
        targets[np.arange(1, self.T + 1) >= lengths[:, None]] = IGNORED
        return rows[:, :-1].copy(), targets  # [count, T] each

    def close(self) -> None:
        """Stop encoding ahead."""
        self._shards.close()

    def _read(self, start: int, count: int, stride: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows padded with BOS, and how many real tokens each has."""
        out = np.full((count, self.T + 1), self.pad_id, dtype=np.int64)
        lengths = np.zeros(count, dtype=np.int64)
        for i in range(count):
            with self._lock:
                epoch, position, row = self._locate(start + i * stride)
                tokens, plan, order = self._plan(epoch, position)
            lengths[i] = plan.fill(tokens, int(order[row]), out[i])
        return out, lengths

    def _locate(self, row: int) -> tuple[int, int, int]:
        """A row's epoch, its shard's position in that epoch, and its number in the shard."""
        # The first epoch needs only the shards up to this row: training starts before all of them
        # are encoded.
        while row >= self._rows and self._known < len(self._shards):
            self._count_next()
        if self._rows == 0:
            self.require(1)
        epoch = row // self._rows if self._known == len(self._shards) else 0
        key = (epoch, self._known)
        if self._ends[0] != key:  # with many shards, too slow to do for every row
            self._ends = key, np.cumsum(self._counts[self._order(epoch)])
        ends = self._ends[1]
        row -= epoch * self._rows
        position = int(np.searchsorted(ends, row, side="right"))
        return epoch, position, row - int(ends[position - 1] if position else 0)

    def _order(self, epoch: int) -> np.ndarray:
        return _shuffled(len(self._shards), self._seed, epoch)

    def _count_next(self) -> None:
        """Count the rows of the next shard in the first epoch's order."""
        index = int(self._order(0)[self._known])
        shard = self._shards.open(index)
        tokens = len(shard.tokens)
        if self._packing == "crop":  # only packing tells how many
            plan = crop_documents(shard.offsets, self.T + 1, np.random.default_rng(0))
            self._counts[index] = len(plan)
            self._cropped += tokens - int(plan.lengths.sum())
        else:
            self._counts[index] = document_rows(tokens, self.T + 1)
        self._rows += int(self._counts[index])
        self._tokens += tokens
        self._known += 1

    def _plan(self, epoch: int, position: int) -> Plan:
        key = (epoch, position)
        if key not in self._plans:
            order = self._order(epoch)
            index = int(order[position])
            if self._known < len(order):
                self._shards.prepare(int(self._order(0)[self._known]))
            shard = self._shards.open(index)
            # Seeded by epoch and shard, not drawn from one generator: any row can be read first.
            rng = np.random.default_rng((self._seed, epoch, index))
            plan = PACKERS[self._packing](shard.offsets, self.T + 1, rng)
            while len(self._plans) > 1:
                self._plans.pop(next(iter(self._plans)))
            self._plans[key] = shard.tokens, plan, rng.permutation(len(plan))
        return self._plans[key]


@functools.lru_cache(maxsize=4)
def _shuffled(count: int, seed: int, epoch: int) -> np.ndarray:
    """The numbers below `count` in an epoch's order; cached, as every row needs it."""
    order = np.random.default_rng((seed, epoch)).permutation(count)
    order.setflags(write=False)
    return order
