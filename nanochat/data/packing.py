"""Packing documents and conversations of uneven length into rows of one length, and padding.

Owns the packers and the padding of batches. Knows no file, tokenizer or tensor: only lengths and
positions.
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

IGNORED = -1  # in rows: padding; in targets: no loss
WIDTH_STEP = 32  # padded widths are multiples of this: every new shape costs time and memory
T = TypeVar("T")


@dataclass(frozen=True)
class RowPlan:
    """Rows as lists of pieces of one long token array.

    Piece p is tokens[starts[p] : starts[p] + lengths[p]]; row i holds the pieces
    row_ends[i - 1] .. row_ends[i], concatenated.
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
        """Copy a row's tokens to the start of out [row_tokens]; returns their number."""
        at = 0
        for piece in self.pieces(row):
            start, length = int(self.starts[piece]), int(self.lengths[piece])
            out[at : at + length] = tokens[start : start + length]
            at += length
        return at


def document_rows(tokens: int, row_tokens: int) -> int:
    """How many rows `pack_documents` makes of `tokens` tokens; all but the last are full."""
    # A last row with a single token would have nothing to predict.
    return max(0, (tokens - 1 + row_tokens - 1) // row_tokens)


def pack_documents(offsets: np.ndarray, row_tokens: int, rng: np.random.Generator) -> RowPlan:
    """Pack documents into full rows by best fit; what fits nowhere is split, not cropped.

    offsets: int64 [documents + 1]; document d is tokens offsets[d] .. offsets[d + 1].
    row_tokens: tokens per row. rng: decides which documents of equal length share a row.
    Plain concatenation would cut a document at every row end, and what follows a cut is predicted
    without its beginning. Best fit cuts only documents that are longer than any gap left.
    Every token is used once and every row but the last is full, so there are
    `document_rows(tokens, row_tokens)` rows (a single token left over at the end is dropped).
    Source: Fewer Truncations Improve Language Modeling, arXiv 2404.10830, section 3.
    """
    starts, lengths = _cut_long(offsets, row_tokens)
    plan = _pack(starts, lengths, row_tokens, rng, crop=False)
    rows = document_rows(int(offsets[-1] - offsets[0]), row_tokens)
    assert rows <= len(plan) <= rows + 1
    return RowPlan(plan.starts, plan.lengths, plan.row_ends[:rows])


def crop_documents(offsets: np.ndarray, row_tokens: int, rng: np.random.Generator) -> RowPlan:
    """Pack documents into full rows that each start with a document; drop what does not fit.

    As every row starts with BOS, each token sees its document back to the beginning, and training
    matches generation, which also starts at BOS. The price is the dropped ends of documents.

    Arguments as for `pack_documents`. The numbers of rows and of dropped tokens depend only on the
    documents' lengths. A document has at least two tokens.
    Source: nanochat's loader, "BOS-aligned best fit": fill each row with the longest document that
    fits, repeatedly; if none fits, with the beginning of the shortest.
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
    """Pack pieces into rows; crop: drop what does not fit instead of splitting the piece."""
    full = lengths == row_tokens
    pool = _ByLength()
    # The shuffle decides which documents of one length meet in a row, so epochs differ.
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
            # The longest piece that fits leaves the small ones for small gaps later. If none fits,
            # cutting the shortest loses the least.
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
    """Starts and lengths of pieces of at most row_tokens; long documents are cut from the front."""
    offsets = offsets.astype(np.int64)
    sizes = np.diff(offsets)
    counts = -(-sizes // row_tokens)
    document = np.repeat(np.arange(len(sizes)), counts)  # [pieces]: the document of each piece
    first_piece = np.cumsum(counts) - counts
    within = np.arange(len(document)) - first_piece[document]
    starts = offsets[document] + within * row_tokens
    return starts, np.minimum(row_tokens, offsets[document + 1] - starts)


class _ByLength:
    """Items by length; of items of one length, the last one put in is the first one out."""

    def __init__(self) -> None:
        self.lengths: list[int] = []  # distinct, ascending
        self._items: dict[int, list[int]] = {}

    def put(self, item: int, length: int) -> None:
        if length not in self._items:
            insort(self.lengths, length)
            self._items[length] = []
        self._items[length].append(item)

    def pop(self, index: int) -> tuple[int, int]:
        """Take out an item of length lengths[index]; returns the item and its length."""
        length = self.lengths[index]
        items = self._items[length]
        item = items.pop()
        if not items:
            del self._items[length], self.lengths[index]
        return item, length


def pack_conversations(lengths: Sequence[int] | np.ndarray, row_tokens: int) -> list[list[int]]:
    """Pack items uncut into rows, longest first, each into the fullest row that has room for it.

    lengths: tokens of each item, 1 .. row_tokens. Returns the indices of each row's items; rows
    may have room left. Items of equal length keep their order.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    assert not len(lengths) or (lengths.min() > 0 and lengths.max() <= row_tokens)
    rows: list[list[int]] = []
    open_rows = _ByLength()  # row numbers by free tokens
    for item in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[item])
        # The tightest row that has room: longest first, best fit, leaves the least padding.
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
    """Rows of different lengths as one int64 array, padded on the right and at the bottom."""
    padded = np.full(shape, fill, dtype=np.int64)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
    return padded


def batches(items: Sequence[T], tokens: int, width: Callable[[T], int]) -> Iterator[Sequence[T]]:
    """Consecutive items, the widest first, in batches of at most `tokens` with padding.

    Widest first, so that running out of memory shows at once, not after an hour. An item wider
    than `tokens` is its own batch.
    """
    start = 0
    while start < len(items):
        batch = items[start : start + max(1, tokens // width(items[start]))]
        yield batch
        start += len(batch)


def up_to_multiple(count: int, step: int) -> int:
    """The smallest multiple of `step`, at least one, that holds `count`."""
    return max(1, -(-count // step)) * step
