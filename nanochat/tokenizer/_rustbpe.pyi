"""The Rust module: byte-pair training and batch encoding (see rustbpe/)."""

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, final

PATTERN: str
"""Our split pattern."""

PATTERNS: tuple[str, str, str]
"""Patterns with a hand-written scanner (ours, cl100k, gpt2); the rest use a regex engine."""

class ArrowColumn(Protocol):
    """A column of strings such as pyarrow.StringArray, read without a copy."""

    def __len__(self) -> int: ...
    def __arrow_c_array__(self, requested_schema: object = None) -> tuple[Any, Any]: ...
    def to_pylist(self) -> list[str]: ...

def train(
    texts: Iterable[str | bytes | os.PathLike[str] | ArrowColumn],
    vocab_size: int,
    pattern: str,
    *,
    threads: int | None = None,
    memory: int | None = None,
    counted: Callable[[int, int, int, int], object] | None = None,
    progress: Callable[[int], object] | None = None,
) -> list[bytes]:
    """Learn the tokens of a vocabulary, in rank order: the 256 bytes, then one token per merge.

    texts: documents, paths of UTF-8 files with one document each, or columns of documents (nulls
    are skipped).
    vocab_size: excludes special tokens; the result is smaller if the text runs out of pairs.
    threads: number of threads that count pieces; None uses all cores.
    memory: limit for the piece counts in bytes. The rarest pieces are dropped to stay within it,
    and the result then depends on the order of the texts. None: exact, no limit.
    counted: called once with the bytes of text, the number of distinct pieces, the dropped bytes,
    and the largest possible undercount of a piece.
    progress: called about ten times a second with the number of tokens so far.
    Raises: ValueError for a size below 256, or an invalid pattern or text; OSError.
    """

def split(text: str, pattern: str) -> list[str]:
    """Split a text into the pieces that merges never cross; for tests."""

@final
class Encoder:
    """Encodes batches of texts; produces the same tokens as tiktoken."""

    def __new__(cls, tokens: Sequence[bytes], pattern: str) -> Encoder:
        """tokens: in rank order, distinct, including the 256 single bytes.

        Raises: ValueError if they are not, or if the pattern is invalid.
        """

    def encode_batch(
        self,
        texts: Sequence[str] | ArrowColumn,
        *,
        bos: int | None = None,
        width: int = 4,
        threads: int | None = None,
    ) -> tuple[bytearray, bytearray]:
        """Tokens of `width` bytes each (2 or 4) and offsets of 8 bytes, in native byte order.

        The tokens of texts[i] are tokens[offsets[i] : offsets[i + 1]]; `bos` precedes each text.
        Raises: ValueError if a token does not fit in the width, or a column contains nulls.
        """
