"""Text to token ids and back: byte-pair and character vocabularies behind one interface.

Owns the special tokens, the vocabulary file and training. Knows no conversations (see
`conversation`) and no datasets. tiktoken encodes and decodes single texts; the Rust encoder, which
gives identical tokens, encodes batches and texts that are too long for tiktoken.
"""

import base64
import binascii
import functools
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import tiktoken

from nanochat.system import storage
from nanochat.system.errors import ConfigError, DataError
from nanochat.tokenizer import _rustbpe

SPECIAL_TOKENS = (
    "<|bos|>",
    "<|user_start|>",
    "<|user_end|>",
    "<|assistant_start|>",
    "<|assistant_end|>",
    "<|python_start|>",
    "<|python_end|>",
    "<|output_start|>",
    "<|output_end|>",
)
# GPT-4's pattern with digits in twos, so numbers take fewer tokens of a small vocabulary.
SPLIT_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
MIN_BPE_SIZE = 256 + len(SPECIAL_TOKENS)
MIN_CHAR_SIZE = 2 + len(SPECIAL_TOKENS)  # one character and U+FFFD
FILE_NAME = "tokenizer.json"
FORMAT = 1
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
# tiktoken panics on about 1,000,000 consecutive whitespace characters: its regex engine keeps a
# backtracking state for each. Texts of this length or more go through the Rust encoder.
LONG_TEXT_CHARACTERS = 100_000

Texts: TypeAlias = "Sequence[str] | _rustbpe.ArrowColumn"
EncodedBatch = tuple[np.ndarray, np.ndarray]


class Tokenizer(Protocol):
    """A vocabulary as the rest of the package uses it."""

    name: str
    vocab_size: int
    sha256: str
    bos_id: int
    token_bytes: np.ndarray

    def special_id(self, name: str) -> int:
        """The id of a special token such as "<|bos|>"."""

    def encode(self, text: str) -> list[int]:
        """Ordinary tokens of a text; text that looks like a special token stays plain text."""

    def encode_batch(self, texts: Texts, *, bos: bool) -> EncodedBatch:
        """Tokens [N] (uint16, or uint32 if ids need it) and offsets int64 [len(texts) + 1].

        The tokens of texts[i] are tokens[offsets[i] : offsets[i + 1]]. bos: start each text with
        `<|bos|>`.
        """

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens: special tokens by name, invalid UTF-8 as U+FFFD."""

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """The raw bytes of tokens, special tokens by name."""

    def to_json(self) -> dict[str, Any]:
        """The complete vocabulary as JSON types; `from_json` reads it."""


class BpeTokenizer:
    """Byte-pair encoding: a token's id is its rank; the special tokens follow."""

    name = "bpe"

    def __init__(self, tokens: Sequence[bytes], *, pattern: str = SPLIT_PATTERN) -> None:
        """tokens: in rank order, including the 256 single bytes."""
        self.pattern = pattern
        self.tokens = list(tokens)
        self._special = _special_ids(len(self.tokens))
        self.vocab_size = len(self.tokens) + len(SPECIAL_TOKENS)
        self.bos_id = self._special["<|bos|>"]
        self.token_bytes = _token_bytes(self.tokens)
        ranks = [base64.b64encode(token).decode() for token in self.tokens]
        self._json = _as_json("bpe", pattern=pattern, ranks=ranks)
        self.sha256 = self._json["sha256"]
        self._tiktoken = tiktoken.Encoding(
            name=f"nanochat-{self.sha256[:16]}",
            pat_str=pattern,
            mergeable_ranks={token: rank for rank, token in enumerate(self.tokens)},
            special_tokens=self._special,
        )

    def special_id(self, name: str) -> int:
        return self._special[name]

    def encode(self, text: str) -> list[int]:
        # tiktoken's regex engine panics on long runs and on patterns that backtrack.
        if len(text) >= LONG_TEXT_CHARACTERS or self.pattern not in _rustbpe.PATTERNS:
            ids: list[int] = self.encode_batch([text], bos=False)[0].tolist()
            return ids
        return self._tiktoken.encode_ordinary(text)

    def encode_batch(self, texts: Texts, *, bos: bool) -> EncodedBatch:
        kind = _id_type(self.vocab_size)
        first = self.bos_id if bos else None
        try:
            ids, offsets = self._encoder.encode_batch(texts, bos=first, width=kind().itemsize)
        except ValueError as error:
            raise DataError(f"a text cannot be encoded: {error}") from error
        return np.frombuffer(ids, dtype=kind), np.frombuffer(offsets, dtype=np.int64)

    @functools.cached_property
    def _encoder(self) -> _rustbpe.Encoder:
        return _rustbpe.Encoder(self.tokens, self.pattern)

    def decode(self, ids: Sequence[int]) -> str:
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        return self._tiktoken.decode_bytes(ids)

    def to_json(self) -> dict[str, Any]:
        return dict(self._json)

    def __reduce__(self) -> tuple[Any, ...]:
        return from_json, (self.to_json(),)


class CharTokenizer:
    """One token per character; unknown characters become U+FFFD, which is always in it."""

    name = "char"

    def __init__(self, characters: str) -> None:
        """characters: in id order, each once, including U+FFFD."""
        self.characters = characters
        self._special = _special_ids(len(characters))
        self.vocab_size = len(characters) + len(SPECIAL_TOKENS)
        self.bos_id = self._special["<|bos|>"]
        tokens = [character.encode() for character in characters]
        self.token_bytes = _token_bytes(tokens)
        self._json = _as_json("char", characters=characters)
        self.sha256 = self._json["sha256"]
        self._bytes = [*tokens, *(name.encode() for name in SPECIAL_TOKENS)]
        points = _code_points(characters)
        self._id_of = np.full(0x110000, characters.index(REPLACEMENT), dtype=np.uint32)
        self._id_of[points] = np.arange(len(points))

    def special_id(self, name: str) -> int:
        return self._special[name]

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._id_of[_code_points(text)].tolist()
        return ids

    def encode_batch(self, texts: Texts, *, bos: bool) -> EncodedBatch:
        strings = texts if isinstance(texts, Sequence) else texts.to_pylist()
        first = np.array([self.bos_id] if bos else [], dtype=np.uint32)
        encoded = [np.append(first, self._id_of[_code_points(text)]) for text in strings]
        offsets = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        tokens = np.concatenate([first[:0], *encoded])
        return tokens.astype(_id_type(self.vocab_size)), offsets

    def decode(self, ids: Sequence[int]) -> str:
        return self.decode_bytes(ids).decode()

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        return b"".join([self._bytes[token] for token in ids])

    def to_json(self) -> dict[str, Any]:
        return dict(self._json)

    def __reduce__(self) -> tuple[Any, ...]:
        return from_json, (self.to_json(),)


@dataclass(frozen=True)
class TrainingText:
    """The text that a vocabulary was learned from.

    bytes: of text. pieces: number of distinct pieces. lost_bytes: text that a memory limit kept
    out of the counts. lost_count: the most by which a piece's count may be too low.
    """

    bytes: int
    pieces: int
    lost_bytes: int
    lost_count: int


def train_bpe(
    texts: "Iterable[str | bytes | Path | _rustbpe.ArrowColumn]",
    vocab_size: int,
    pattern: str = SPLIT_PATTERN,
    *,
    threads: int | None = None,
    memory: int | None = None,
    counted: Callable[[TrainingText], object] | None = None,
    progress: Callable[[int], object] | None = None,
) -> BpeTokenizer:
    """Learn a byte-pair vocabulary.

    texts: documents, UTF-8 files of one document each, or Arrow columns of documents.
    vocab_size: including the special tokens; the result is smaller if the text has too few pairs.
    threads: threads that read the text; None uses all cores. Does not affect an exact result.
    memory: bytes that the counts of pieces may take; rare pieces are dropped to stay within it, and
        which ones depends on the order of texts and on the threads. None counts exactly.
    counted: called once, when the text has been read and merging starts.
    progress: called about ten times a second with the number of tokens learned so far.
    Raises: ConfigError for an impossible size; DataError if there is no text.
    """
    if vocab_size < MIN_BPE_SIZE:
        raise ConfigError(f"vocab_size must be at least {MIN_BPE_SIZE}, got {vocab_size}")
    wanted = vocab_size - len(SPECIAL_TOKENS)
    read = 0

    def note(*facts: int) -> None:
        nonlocal read
        read = facts[0]
        if counted is not None:
            counted(TrainingText(*facts))

    try:
        tokens = _rustbpe.train(
            texts,
            wanted,
            pattern,
            threads=threads,
            memory=memory,
            counted=note,
            progress=progress,
        )
    except ValueError as error:
        raise DataError(f"the vocabulary cannot be learned: {error}") from error
    if read == 0:
        raise DataError("the text to learn a vocabulary from is empty; give --data with text in it")
    return BpeTokenizer(tokens, pattern=pattern)


def train_char(texts: Iterable[str], vocab_size: int | None = None) -> CharTokenizer:
    """Collect the characters of the texts, in code point order.

    vocab_size: including U+FFFD and the special tokens; the rarest characters are left out. None
        keeps every character.
    Raises: ConfigError for an impossible size; DataError if there is no text.
    """
    if vocab_size is not None and vocab_size < MIN_CHAR_SIZE:
        raise ConfigError(f"vocab_size must be at least {MIN_CHAR_SIZE}, got {vocab_size}")
    room = None if vocab_size is None else vocab_size - len(SPECIAL_TOKENS) - 1
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(repair_surrogates(text))
    counts.pop(REPLACEMENT, 0)
    if not counts:
        raise DataError("the text to learn characters from is empty; give --data with text in it")
    commonest = sorted(counts, key=lambda character: (-counts[character], character))[:room]
    return CharTokenizer("".join(sorted([*commonest, REPLACEMENT])))


def locate(name: str) -> Path:
    """The path of a tokenizer, given its name in base/tokenizers or a file or folder."""
    known = storage.base_dir() / "tokenizers" / name
    path = Path(name)
    return path if path.exists() and not known.exists() else known


def save(tokenizer: Tokenizer, path: Path) -> None:
    """Write a tokenizer as one JSON file, atomically."""
    storage.write_json(path, tokenizer.to_json())


def load(path: Path) -> Tokenizer:
    """Read a tokenizer.

    path: its JSON file, or the folder that holds tokenizer.json.
    Raises: DataError if it is missing, damaged or not a tokenizer.
    """
    if path.is_dir():
        path = path / FILE_NAME
    value = storage.read_json(path, "tokenizer; train one with `nanochat tok_train`")
    try:
        return from_json(value)
    except DataError as error:
        raise DataError(f"{path}: {error}; train one with `nanochat tok_train`") from None


def from_json(value: Any) -> Tokenizer:
    """A tokenizer from the output of `to_json`.

    Raises: DataError if the value is something else or was changed.
    """
    try:
        if value["format"] != FORMAT:
            raise ValueError(f"it has format {value['format']!r}, this program reads {FORMAT}")
        content = {key: item for key, item in value.items() if key != "sha256"}
        if _digest(content) != value["sha256"]:
            raise ValueError("it does not match its sha256, so it was changed or damaged")
        if value["specials"] != list(SPECIAL_TOKENS):
            raise ValueError(f"it has different special tokens: {value['specials']}")
        if value["kind"] == "char":
            _check_distinct(value["characters"], {REPLACEMENT})
            return CharTokenizer(value["characters"])
        if value["kind"] != "bpe":
            raise ValueError(f"it is of kind {value['kind']!r}, expected bpe or char")
        tokens = [base64.b64decode(token, validate=True) for token in value["ranks"]]
        _check_distinct(tokens, {bytes([byte]) for byte in range(256)})
        return BpeTokenizer(tokens, pattern=value["pattern"])
    except (KeyError, TypeError, AttributeError, ValueError, binascii.Error) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise DataError(f"not a tokenizer: {reason}") from None


def _check_distinct(items: Sequence[str] | Sequence[bytes], needed: Iterable[Any]) -> None:
    found = set(items)
    if len(found) != len(items):
        raise ValueError("a token appears twice")
    if not found.issuperset(needed) or b"" in found:
        raise ValueError("a token that every vocabulary needs is missing")


def _as_json(kind: str, **fields: Any) -> dict[str, Any]:
    content = {"format": FORMAT, "kind": kind, **fields, "specials": list(SPECIAL_TOKENS)}
    return {**content, "sha256": _digest(content)}


def _digest(content: dict[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _special_ids(first: int) -> dict[str, int]:
    return {name: first + index for index, name in enumerate(SPECIAL_TOKENS)}


def _token_bytes(tokens: Sequence[bytes]) -> np.ndarray:
    lengths = [len(token) for token in tokens] + [0] * len(SPECIAL_TOKENS)
    return np.array(lengths, dtype=np.int32)


def _id_type(vocab_size: int) -> type[np.uint16] | type[np.uint32]:
    return np.uint16 if vocab_size <= 2**16 else np.uint32


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(repair_surrogates(text).encode("utf-32-le"), dtype=np.uint32)


def repair_surrogates(text: str) -> str:
    """The text with surrogate pairs joined and lone surrogates as U+FFFD, as in tiktoken."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
