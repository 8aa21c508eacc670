"""Shards of text as token arrays on disk: encoded once, then memory-mapped.

Owns base/tokens/<tokenizer>/<shard>.{tokens,docs}.npy and their .sha256. Files are named by the
content of their shard, so datasets that share shards also share tokens. Any process may open a
shard at any time: one encodes it and the others wait.
"""

import hashlib
import io
import logging
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
import pyarrow as pa

from nanochat.data import shards as shard_files
from nanochat.data.dataset import Dataset
from nanochat.data.shards import Shard
from nanochat.system import storage
from nanochat.system.errors import DataError
from nanochat.tokenizer import Tokenizer
from nanochat.tokenizer.bpe import EncodedBatch

log = logging.getLogger(__name__)

T = TypeVar("T")
Result = TypeVar("Result")

BATCH_BYTES = 4_000_000  # encoded at a time: enough for many cores, yet little memory


@dataclass(frozen=True)
class EncodedShard:
    """The tokens of a shard's documents, each starting with BOS.

    tokens: uint16 or uint32 [tokens], memory-mapped. offsets: int64 [documents + 1].
    """

    tokens: np.ndarray
    offsets: np.ndarray


class TokenShards:
    """The encoded shards of one split of a dataset; each is encoded on first use.

    Encoding once and memory-mapping costs two bytes of disk per token, but every later epoch, run
    and rank reads tokens without a tokenizer, and ranks on one machine share the page cache.
    """

    def __init__(self, dataset: Dataset, split: str, tokenizer: Tokenizer, base: Path) -> None:
        self.shards: list[Shard] = dataset.shards(split)
        self._source = dataset.folder
        self._tokenizer = tokenizer
        self._folder = base / "tokens" / tokenizer.sha256[:16]
        self._pending: dict[int, Future[EncodedShard]] = {}
        self._verified: set[int] = set()  # shards whose tokens were hashed
        self._pool: ThreadPoolExecutor | None = None

    def __len__(self) -> int:
        return len(self.shards)

    def open(self, index: int) -> EncodedShard:
        """One encoded shard; encodes it first if necessary."""
        pending = self._pending.pop(index, None)
        return pending.result() if pending else self._open(index)

    def prepare(self, index: int) -> None:
        """Start encoding a shard in the background unless it is already encoded."""
        if index in self._pending:
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="encode")
        self._pending[index] = self._pool.submit(self._open, index)

    def close(self) -> None:
        """Stop encoding in the background once the current shard is done."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def _open(self, index: int) -> EncodedShard:
        shard = self.shards[index]
        stem = self._folder / shard.digest[:32]
        found = self._load(index, stem)
        if found is None:
            with storage.lock(stem.with_name(f".{stem.name}.lock")):
                found = self._load(index, stem)
                if found is None:
                    storage.remove_leftovers(stem.parent, f"{stem.name}.")
                    self._encode(shard, stem)
                    found = self._load(index, stem)
        if found is None:
            raise DataError(f"{stem}.* cannot be read back as written; check the disk")
        return found

    def _load(self, index: int, stem: Path) -> EncodedShard | None:
        """An encoded shard, or None if its files are missing, damaged or inconsistent.

        Its tokens are hashed once per process: 2 GB/s, so about 15 ms a shard.
        """
        paths = _path(stem, "tokens"), _path(stem, "docs")
        if not all(path.is_file() for path in (*paths, _sha256_path(stem))):
            return None
        tokens, offsets = _map(paths[0], np.uint16, np.uint32), _map(paths[1], np.int64)
        if (
            tokens is None
            or offsets is None
            or not _consistent(tokens, offsets)
            or not (index in self._verified or self._is_intact(tokens, offsets, stem))
        ):
            log.warning("%s is damaged; encoding it again", paths[0])
            return None
        self._verified.add(index)
        return EncodedShard(tokens, np.array(offsets))

    def _is_intact(self, tokens: np.ndarray, offsets: np.ndarray, stem: Path) -> bool:
        digest = hashlib.sha256(tokens.data)
        digest.update(offsets.data)
        if _sha256_path(stem).read_bytes() != digest.hexdigest().encode():
            return False
        return len(tokens) == 0 or int(tokens.max()) < self._tokenizer.vocab_size

    def _encode(self, shard: Shard, stem: Path) -> None:
        log.info("encoding %s", shard.file)

        def encode(texts: pa.StringArray) -> EncodedBatch:
            try:
                return self._tokenizer.encode_batch(texts, bos=True)
            except (DataError, UnicodeDecodeError) as error:
                path = self._source / shard.file
                raise DataError(f"{path} is damaged ({error}); delete it and run again") from None

        digest = hashlib.sha256()
        sizes = [np.zeros(1, dtype=np.int64)]
        dtype, count = np.dtype(np.uint16), 0
        with storage.atomic_file(_path(stem, "tokens")) as file:
            _write_header(file, dtype, 0)  # the length is known only at the end
            header_bytes = file.tell()
            for tokens, offsets in _map_ahead(encode, _batches(self._source, shard)):
                file.write(tokens.data)
                digest.update(tokens.data)
                dtype, count = tokens.dtype, count + len(tokens)
                sizes.append(np.diff(offsets))
            file.seek(0)
            _write_header(file, dtype, count)  # NumPy pads the header, so a longer number fits
            assert file.tell() == header_bytes, "the header has grown"
        with storage.atomic_file(_path(stem, "docs")) as file:
            offsets = np.cumsum(np.concatenate(sizes))
            _write_header(file, offsets.dtype, len(offsets))
            file.write(offsets.data)
            digest.update(offsets.data)
        # Written last: a shard that has its hash is complete.
        storage.write_atomic(_sha256_path(stem), digest.hexdigest().encode())


def _write_header(file: BinaryIO, dtype: np.dtype, length: int) -> None:
    """Write the header of an .npy file; np.save would lose the errno of a full disk."""
    header = {"descr": dtype.str, "fortran_order": False, "shape": (length,)}
    np.lib.format.write_array_header_1_0(file, header)


def _batches(folder: Path, shard: Shard) -> Iterator[pa.StringArray]:
    columns: list[pa.StringArray] = []
    collected_bytes = 0
    for column in shard_files.read_columns(folder, shard):
        columns.append(column)
        collected_bytes += column.nbytes
        if collected_bytes >= BATCH_BYTES:
            yield columns[0] if len(columns) == 1 else pa.concat_arrays(columns)
            columns, collected_bytes = [], 0
    if columns:
        yield pa.concat_arrays(columns)


def _map_ahead(make: Callable[[T], Result], items: Iterator[T]) -> Iterator[Result]:
    """make(item) of each item, in order, computed up to two items ahead in the background."""
    with ThreadPoolExecutor(2, thread_name_prefix="encode") as pool:
        pending: deque[Future[Result]] = deque()
        for item in items:
            pending.append(pool.submit(make, item))
            if len(pending) > 2:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _path(stem: Path, kind: str) -> Path:
    return stem.with_name(f"{stem.name}.{kind}.npy")


def _sha256_path(stem: Path) -> Path:
    return stem.with_name(f"{stem.name}.sha256")


def _map(path: Path, *dtypes: type[np.generic]) -> np.ndarray | None:
    """The array of an .npy file, or None if its header is not exactly what we would write."""
    size = path.stat().st_size
    for dtype in map(np.dtype, dtypes):
        buffer = io.BytesIO()
        _write_header(buffer, dtype, 0)
        length, rest = divmod(size - len(buffer.getvalue()), dtype.itemsize)
        if length < 0 or rest:
            continue
        buffer.seek(0)
        _write_header(buffer, dtype, length)
        header = buffer.getvalue()
        with path.open("rb") as file:
            if file.read(len(header)) != header:
                continue
        if length == 0:  # an empty file cannot be mapped
            return np.zeros(0, dtype)
        return np.memmap(path, dtype, mode="r", offset=len(header), shape=(length,))
    return None


def _consistent(tokens: np.ndarray, offsets: np.ndarray) -> bool:
    return (
        len(offsets) > 0
        and offsets[0] == 0
        and offsets[-1] == len(tokens)
        and bool(np.all(np.diff(offsets) > 0))
    )
