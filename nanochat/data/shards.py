"""Parquet shards of text, and the manifest that fixes which shards make up a dataset.

Owns the layout of a data folder: shard_00000.parquet (column `text`) ... and manifest.json.
Does not know where text comes from.
"""

import contextlib
import hashlib
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nanochat.system import storage
from nanochat.system.config import from_dict
from nanochat.system.errors import ConfigError, DataError

FORMAT = 1
# About 15 M tokens of English: small enough to encode while training on the previous shard.
SHARD_CHARACTERS = 64_000_000
ROW_GROUP_CHARACTERS = 2_000_000
BATCH_ROWS = 512  # documents per read
SCHEMA = pa.schema([("text", pa.string())])


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One parquet file of documents.

    digest: hex sha256 that names the content: of the texts, or of the file if it came from the
    hub. documents and characters are None if the file was never read. sha256: of the file; None if
    digest is that, and in what earlier versions prepared.
    """

    file: str
    split: str
    bytes: int
    digest: str
    documents: int | None = None
    characters: int | None = None
    sha256: str | None = None


def shard_name(index: int) -> str:
    """The file name of a shard."""
    return f"shard_{index:05d}.parquet"


def read_columns(folder: Path, shard: Shard) -> Iterator[pa.StringArray]:
    """The documents of one shard in order, in batches, without null or empty ones.

    The shard is hashed before its first document is believed.
    Raises: DataError if the file is missing, damaged or has no column `text`.
    """
    path = folder / shard.file
    try:
        if not _is_intact(path, shard):
            raise DataError(
                f"{path} is damaged (its content has changed since it was prepared); delete it and "
                "run again"
            )
        yield from _read(path)
    except FileNotFoundError:
        raise DataError(f"{path} is missing; run again to recreate it") from None
    except (pa.ArrowException, IndexError, OSError) as error:
        raise DataError(f"{path} is damaged ({error}); delete it and run again") from None


def read_texts(folder: Path, shard: Shard) -> Iterator[str]:
    """The documents of one shard, in order, as strings. Raises: as read_columns."""
    for texts in read_columns(folder, shard):
        try:
            yield from texts.to_pylist()
        except UnicodeDecodeError as error:
            path = folder / shard.file
            raise DataError(f"{path} is damaged ({error}); delete it and run again") from None


def _read(path: Path) -> Iterator[pa.StringArray]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=["text"]):
            texts = batch.column(0)
            yield texts.filter(pc.greater(pc.binary_length(texts), 0))


def _is_intact(path: Path, shard: Shard) -> bool:
    # Hashing a file takes a twentieth of the time of hashing its texts one by one.
    if shard.sha256 is not None or shard.characters is None:
        return storage.sha256_of(path) == (shard.sha256 or shard.digest)
    digest = hashlib.sha256()
    for texts in _read(path):
        for data in texts.cast(pa.binary()).to_pylist():
            _add_text(digest, data)
    return digest.hexdigest() == shard.digest


def _add_text(digest: "hashlib._Hash", data: bytes) -> None:
    digest.update(len(data).to_bytes(8, "little"))
    digest.update(data)


class ShardWriter:
    """Writes documents into shards of about SHARD_CHARACTERS each.

    lanes: training shards open at a time. Documents are distributed among them by their hash, so
    neighbors in the source end up far apart.
    """

    def __init__(self, folder: Path, *, lanes: int = 1) -> None:
        self.folder = folder
        self.lanes = lanes
        self.shards: list[Shard] = []
        self._count = 0
        self._open: dict[tuple[str, int], _OpenShard] = {}

    def add(self, text: str, *, split: str, key: int) -> None:
        """Append one document; key: its hash."""
        place = (split, key % self.lanes if split == "train" else 0)
        shard = self._open.get(place)
        if shard is None:
            shard = _OpenShard(self.folder / shard_name(self._count), split)
            self._open[place] = shard
            self._count += 1
        shard.add(text)
        if shard.characters >= SHARD_CHARACTERS:
            self.shards.append(self._open.pop(place).close())

    def close(self) -> list[Shard]:
        """Finish the open shards; returns all shards, sorted by name."""
        while self._open:
            self.shards.append(self._open.popitem()[1].close())
        return sorted(self.shards, key=lambda shard: shard.file)

    def abandon(self) -> None:
        """Close the files without finishing the shards, after an error."""
        while self._open:
            with contextlib.suppress(
                OSError, pa.ArrowException
            ):  # the first error is the one to report
                self._open.popitem()[1].writer.close()


class _OpenShard:
    def __init__(self, path: Path, split: str) -> None:
        self.path = path
        self.split = split
        self.writer = pq.ParquetWriter(path, SCHEMA, compression="zstd")
        self.digest = hashlib.sha256()
        self.texts: list[str] = []
        self.documents = self.characters = self.buffered = 0

    def add(self, text: str) -> None:
        _add_text(self.digest, text.encode())
        self.texts.append(text)
        self.documents += 1
        self.characters += len(text)
        self.buffered += len(text)
        if self.buffered >= ROW_GROUP_CHARACTERS:
            self._flush()

    def _flush(self) -> None:
        if self.texts:
            self.writer.write_table(pa.table({"text": self.texts}, schema=SCHEMA))
        self.texts, self.buffered = [], 0

    def close(self) -> Shard:
        self._flush()
        self.writer.close()
        return Shard(
            file=self.path.name,
            split=self.split,
            bytes=self.path.stat().st_size,
            digest=self.digest.hexdigest(),
            documents=self.documents,
            characters=self.characters,
            sha256=storage.sha256_of(self.path),
        )


def write_manifest(folder: Path, shards: list[Shard], recipe: dict[str, Any]) -> None:
    """Write manifest.json, atomically."""
    rows = [asdict(shard) for shard in shards]
    storage.write_json(
        folder / "manifest.json", {"format": FORMAT, "recipe": recipe, "shards": rows}
    )


def read_manifest(folder: Path) -> list[Shard]:
    """The shards that a folder's manifest lists; empty if it has no readable manifest."""
    try:
        manifest = storage.read_json(folder / "manifest.json", "manifest")
        if manifest["format"] == FORMAT:
            return [_shard(row) for row in manifest["shards"]]
    except (DataError, ConfigError, KeyError, TypeError):
        pass
    return []


def _shard(row: Any) -> Shard:
    """A shard from a row of a manifest. Raises: TypeError or ConfigError for anything else."""
    shard = from_dict(Shard, row)
    named = re.fullmatch(r"shard_[0-9]{5,}\.parquet", shard.file)  # no path that leads elsewhere
    if not named or not re.fullmatch("[0-9a-f]{64}", shard.digest):
        raise TypeError
    return shard


def is_complete(folder: Path, shard: Shard) -> bool:
    """Whether a shard's file exists and has its full length."""
    path = folder / shard.file
    return path.is_file() and path.stat().st_size == shard.bytes
