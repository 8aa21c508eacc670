"""The Rust module: byte-pair training and batch encoding (see rustbpe/)."""

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, final

PATTERN: str
"""Our split pattern."""

PATTERNS: tuple[str, str, str]
"""What is cut by hand-written code: ours, cl100k's and gpt2's. Others go through a regex engine."""

class ArrowColumn(Protocol):
    """A column of strings, as pyarrow.StringArray; it is read where it lies."""

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
    """Learn the tokens of a vocabulary, in rank order: the 256 bytes, then a token a merge.

    texts: documents, paths of UTF-8 files with one each, columns of them (null ones are left out).
    vocab_size: without special tokens; the result is smaller where the text has no more pairs.
    threads: that count pieces; None takes all cores.
    memory: bytes that the counts may take; the rarest pieces are dropped to stay within them, and
    then the result depends on the order of texts. None: exact.
    counted: called once with the bytes of text, the number of different pieces, the bytes that were
    dropped, and by how much a piece's count may therefore be too low.
    progress: called about ten times a second with the number of tokens so far.
    Raises: ValueError for a size below 256, a pattern or bytes that are not valid; OSError.
    """

def split(text: str, pattern: str) -> list[str]:
    """The pieces of a text that merges never cross; for tests."""

@final
class Encoder:
    """Encodes batches of texts; its tokens are those of tiktoken."""

    def __new__(cls, tokens: Sequence[bytes], pattern: str) -> Encoder:
        """tokens: in rank order, all different, the 256 single bytes among them.

        Raises: ValueError where they are not, or the pattern is not valid.
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

        The tokens of texts[i] lie at offsets[i] to offsets[i + 1]; `bos` goes before each text.
        A column's null texts are left out.
        Raises: ValueError if a token does not fit the width.
        """
