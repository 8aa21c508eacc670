"""Packing documents and conversations of uneven length into rows of one length, and padding.

Owns the two packers and the padding of batches. Knows no file, no tokenizer and no tensor: it deals
in lengths and places.
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

IGNORED = -1  # in rows: no token here; in targets: no loss here
WIDTH_STEP = 32  # padded widths are multiples of this: every new shape costs time and memory
T = TypeVar("T")


@dataclass(frozen=True)
class RowPlan:
    """Rows as lists of pieces of one long token array.

    Piece p is tokens[starts[p] : starts[p] + lengths[p]]; row i holds the pieces
    row_ends[i - 1] .. row_ends[i], put together without gaps.
    """

    starts: np.ndarray  # int64 [pieces]
    lengths: np.ndarray  # int64 [pieces]
    row_ends: np.ndarray  # int64 [rows]

    def __len__(self) -> int:
        return len(self.row_ends)

    def pieces(self, row: int) -> range:
        """The numbers of a row's pieces."""
        return range(int(self.row_ends[row - 1]) if row else 0, int(self.row_ends[row]))

    def fill(self, tokens: np.ndarray, row: int, out: np.ndarray) -> int:
        """Copy a row's tokens to the front of out [row_tokens]; returns how many they are."""
        at = 0
        for piece in self.pieces(row):
            start, length = int(self.starts[piece]), int(self.lengths[piece])
            out[at : at + length] = tokens[start : start + length]
            at += length
        return at


def document_rows(tokens: int, row_tokens: int) -> int:
    """How many rows `pack_documents` makes of so many tokens; every row but the last is full."""
    # A last row of one token would have nothing to predict.
    return max(0, (tokens - 1 + row_tokens - 1) // row_tokens)


def pack_documents(offsets: np.ndarray, row_tokens: int, rng: np.random.Generator) -> RowPlan:
    """Pack documents into full rows, best fit first; what fits nowhere is split, not cropped.

    offsets: int64 [documents + 1], document d is tokens offsets[d] .. offsets[d + 1].
    row_tokens: tokens of a row. rng: which documents of equal length share a row.
    Every token is used once and every row but the last is full, so that the number of rows is
    `document_rows` of the number of tokens (a single token left over at the end is not used).
    Source: Fewer Truncations Improve Language Modeling, arXiv 2404.10830, section 3.
    """
    starts, lengths = _cut_long(offsets, row_tokens)
    plan = _pack(starts, lengths, row_tokens, rng, crop=False)
    rows = document_rows(int(offsets[-1] - offsets[0]), row_tokens)
    assert rows <= len(plan) <= rows + 1
    return RowPlan(plan.starts, plan.lengths, plan.row_ends[:rows])


def crop_documents(offsets: np.ndarray, row_tokens: int, rng: np.random.Generator) -> RowPlan:
    """Pack documents into full rows that each begin with one; what does not fit is thrown away.

    Arguments as of `pack_documents`. How many rows there are, and how many tokens are thrown away,
    follows from the documents' lengths alone. A document has at least two tokens.
    Source: nanochat's loader, "BOS-aligned best fit": for each row the longest document that fits,
    again and again; where none fits, the beginning of the shortest.
    """
    return _pack(offsets[:-1].astype(np.int64), np.diff(offsets), row_tokens, rng, crop=True)


def _pack(
    starts: np.ndarray,
    lengths: np.ndarray,
    row_tokens: int,
    rng: np.random.Generator,
    *,
    crop: bool,
) -> RowPlan:
    """Pack pieces into rows; crop: what a row leaves of a piece is not put into another."""
    full = lengths == row_tokens
    pool = _ByLength()
    shorter_starts, shorter_lengths = starts[~full].tolist(), lengths[~full].tolist()
    for piece in rng.permutation(len(shorter_starts)).tolist():
        pool.put(shorter_starts[piece], shorter_lengths[piece])
    piece_starts, piece_lengths = [], []
    row_ends = list(range(1, int(full.sum()) + 1))
    base = len(row_ends)
    while pool.lengths:
        gap = row_tokens
        while gap and pool.lengths:
            fitting = bisect_right(pool.lengths, gap)
            start, length = pool.pop(max(0, fitting - 1))
            if length > gap:
                if not crop:
                    pool.put(start + gap, length - gap)
                length = gap
            piece_starts.append(start)
            piece_lengths.append(length)
            gap -= length
        row_ends.append(base + len(piece_starts))
    return RowPlan(
        np.concatenate([starts[full], np.array(piece_starts, dtype=np.int64)]),
        np.concatenate([lengths[full], np.array(piece_lengths, dtype=np.int64)]),
        np.array(row_ends, dtype=np.int64),
    )


def _cut_long(offsets: np.ndarray, row_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Starts and lengths of pieces of at most row_tokens, each document cut from its front."""
    offsets = offsets.astype(np.int64)
    sizes = np.diff(offsets)
    counts = -(-sizes // row_tokens)
    document = np.repeat(np.arange(len(sizes)), counts)
    first_piece = np.cumsum(counts) - counts
    within = np.arange(len(document)) - first_piece[document]
    starts = offsets[document] + within * row_tokens
    return starts, np.minimum(row_tokens, offsets[document + 1] - starts)


class _ByLength:
    """Numbers by a length; of those of one length, the last put in is the first taken."""

    def __init__(self) -> None:
        self.lengths: list[int] = []  # the distinct ones, ascending
        self._numbers: dict[int, list[int]] = {}

    def put(self, number: int, length: int) -> None:
        if length not in self._numbers:
            insort(self.lengths, length)
            self._numbers[length] = []
        self._numbers[length].append(number)

    def pop(self, index: int) -> tuple[int, int]:
        """Take a number of length lengths[index]; returns both."""
        length = self.lengths[index]
        numbers = self._numbers[length]
        number = numbers.pop()
        if not numbers:
            del self._numbers[length], self.lengths[index]
        return number, length


def pack_conversations(lengths: Sequence[int] | np.ndarray, row_tokens: int) -> list[list[int]]:
    """Pack whole items into rows, longest first, each into the fullest row that still takes it.

    lengths: tokens of each item, 1 .. row_tokens. Returns the items' numbers row by row; the rows
    need not be full. Items of equal length keep their order.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    assert not len(lengths) or (lengths.min() > 0 and lengths.max() <= row_tokens)
    rows: list[list[int]] = []
    open_rows = _ByLength()  # by their free tokens
    for item in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[item])
        index = bisect_left(open_rows.lengths, length)
        if index == len(open_rows.lengths):
            row, space = len(rows), row_tokens
            rows.append([])
        else:
            row, space = open_rows.pop(index)
        rows[row].append(item)
        open_rows.put(row, space - length)
    return rows


def pad_rows(
    rows: Iterable[Sequence[int] | np.ndarray], shape: tuple[int, int], fill: int
) -> np.ndarray:
    """Rows of different lengths as one int64 array, filled up on the right and at the bottom."""
    padded = np.full(shape, fill, dtype=np.int64)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
    return padded


def batches(items: Sequence[T], tokens: int, width: Callable[[T], int]) -> Iterator[Sequence[T]]:
    """Consecutive items, the widest first, in batches of at most `tokens` with padding.

    Widest first, so that running out of memory shows at once and not after an hour. An item wider
    than `tokens` is a batch by itself.
    """
    start = 0
    while start < len(items):
        batch = items[start : start + max(1, tokens // width(items[start]))]
        yield batch
        start += len(batch)


def up_to_multiple(count: int, step: int) -> int:
    """The smallest multiple of `step`, at least one, that holds `count`."""
    return max(1, -(-count // step)) * step
