"""Where training text comes from: one call turns any source into shards with a fixed split.

Owns the options that name a source, the split into training and validation text, and the data
folders under base/data. Does not own files and hub datasets (text_sources), ready-made shards (hub)
or the shard layout (shards).
"""

import dataclasses
import hashlib
import json
import logging
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from nanochat.data import hub, text_sources
from nanochat.data import shards as shard_files
from nanochat.data.data_splits import TRAIN, VAL
from nanochat.data.shards import Shard, ShardWriter
from nanochat.data.text_decoding import TextReading
from nanochat.system import storage
from nanochat.system.config import option
from nanochat.system.errors import ConfigError, DataError

log = logging.getLogger(__name__)

POCKET_SEED = 0  # the corpus is one fixed text, independent of the run's seed
VALIDATION_CHARACTERS = 1_000_000  # held out by default
MAX_LANES = 16
HUB_SHARD_CHARACTERS = 250_000_000  # of climbmix and fineweb-edu, as they were prepared
# Of English in a vocabulary of 32,768. In 49,152 tokens it is about 3% more, which makes fewer
# tokens of a shard: within SPARE_TEXT.
CHARACTERS_PER_TOKEN = 4.8
SPARE_TEXT = 0.1  # share of text beyond the estimate, so that no run has to repeat any


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Training and validation text."""

    data: str = option(
        "pocket",
        "training text: pocket, climbmix, fineweb-edu, hf:ORG/NAME[:CONFIG][:SPLIT], or a "
        ".txt/.md/.jsonl/.json/.parquet file (also .gz, .zst), a folder, a glob or a "
        "comma-separated list; of a folder or glob, files named as test or validation data are "
        "not trained on",
    )
    text_column: str | None = option(
        None,
        "column or key that holds the text in parquet, JSON lines and hf: data; none means text, "
        "or content where that is missing",
    )
    val_data: str | None = option(
        None,
        "validation text: files or hf:ORG/NAME; none means the files in --data named as validation "
        "data, or holds out part of --data",
    )
    val_frac: float | None = option(
        None,
        "share of the documents held out for validation; none holds out about a million characters",
        least=0,
        most=0.5,
    )
    shards: int | Literal["auto"] = option(
        "auto",
        "training shards to use of climbmix or fineweb-edu, about 100 MB each; auto: as many as "
        "have the text that is needed",
        least=1,
    )
    pocket_characters: int = option(
        40_000_000, "characters of pocket text to train on", least=10_000
    )
    invalid_utf8: str = option(
        "error",
        "bytes that are not UTF-8: stop with an error, or replace them by U+FFFD",
        choices=("error", "replace"),
    )

    def __post_init__(self) -> None:
        if not self.data.strip():
            raise ConfigError("--data is empty; give pocket, climbmix, hf:ORG/NAME or files")
        if self.val_data is not None and self.val_frac is not None:
            raise ConfigError("--val-data and --val-frac exclude each other; give only one")

    def enough_for(self, characters: float) -> "DataOptions":
        """The same options with a number for --shards auto: enough for this much training text."""
        if self.shards != "auto" or self.data not in hub.HUB_SHARDS:
            return self
        needed = math.ceil((1 + SPARE_TEXT) * characters / HUB_SHARD_CHARACTERS)
        most = hub.HUB_SHARDS[self.data].count - 1  # the last one is for validation
        return dataclasses.replace(self, shards=max(1, min(needed, most)))

    def enough_for_tokens(self, tokens: float) -> "DataOptions":
        """The same in tokens of a vocabulary of tens of thousands."""
        return self.enough_for(tokens * CHARACTERS_PER_TOKEN)


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A fixed list of shards in a folder, each part of the training or the validation split."""

    name: str
    folder: Path
    all_shards: tuple[Shard, ...]

    @property
    def hash(self) -> str:
        """16 hex digits that identify the text: equal for equal shards in the same order."""
        rows = [[shard.split, shard.digest] for shard in self.all_shards]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]

    @property
    def manifest(self) -> dict[str, Any]:
        """The shard list as JSON types, for a run's config."""
        rows = [
            {"file": shard.file, "split": shard.split, "digest": shard.digest}
            for shard in self.all_shards
        ]
        return {"name": self.name, "hash": self.hash, "shards": rows}

    def shards(self, split: str) -> list[Shard]:
        """The shards of "train" or "val".

        Raises: DataError if there are none.
        """
        found = [shard for shard in self.all_shards if shard.split == split]
        if not found:
            remedy = "give --val-data" if split == VAL else "give more text"
            raise DataError(f"dataset {self.name} has no {split} text; {remedy}")
        return found

    def documents(self, split: str) -> Iterator[str]:
        """Every document of "train" or "val", shard by shard."""
        for shard in self.shards(split):
            yield from shard_files.read_texts(self.folder, shard)

    def columns(self, split: str) -> Iterator[pa.StringArray]:
        """The same documents as Arrow columns, which Rust reads without a copy."""
        for shard in self.shards(split):
            yield from shard_files.read_columns(self.folder, shard)

    def characters(self, split: str) -> int | None:
        """How many characters a split has, or None if they were never counted."""
        counts = [shard.characters for shard in self.shards(split)]
        return None if None in counts else sum(c for c in counts if c is not None)


def open_data(options: DataOptions, *, base: Path) -> Dataset:
    """Open the dataset that the options name, preparing it first if necessary.

    base: the base folder (storage.base_dir()). Every rank of a run calls this: one process
    prepares the data and the others wait for it.
    Raises: DataError or ConfigError for data that is missing, empty or damaged.
    """
    if options.data not in ("pocket", *hub.HUB_SHARDS):
        return _open_texts(options, base)
    for name in ("val_data", "val_frac", "text_column"):
        if getattr(options, name) is not None:
            flag = "--" + name.replace("_", "-")
            raise ConfigError(
                f"{flag} does not go with --data {options.data}, which has its own split and column"
            )
    if options.data == "pocket":
        return _open_pocket(options, base)
    folder = base / "data" / options.data
    assert options.shards != "auto", "enough_for was not called"
    found = hub.download_shards(options.data, options.shards, folder)
    return Dataset(name=options.data, folder=folder, all_shards=tuple(found))


def _open_pocket(options: DataOptions, base: Path) -> Dataset:
    from nanochat import pocket

    folder = Path(str(pocket.__file__)).parent
    sources = sorted(path for path in folder.rglob("*") if path.suffix in (".py", ".txt"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    wanted = {
        TRAIN: options.pocket_characters,
        VAL: min(VALIDATION_CHARACTERS, max(10_000, options.pocket_characters // 20)),
    }
    recipe = {"source": "pocket", "seed": POCKET_SEED, "characters": wanted, "code": digest}

    def documents() -> Iterator[tuple[str, int, str]]:
        for split, characters in wanted.items():
            made = 0
            for text in pocket.base_documents(split, POCKET_SEED):
                yield split, document_hash(text), text
                made += len(text)
                if made >= characters:
                    break

    lanes = _lanes(options.pocket_characters)
    return _build(base, f"pocket-{options.pocket_characters}", recipe, documents(), lanes=lanes)


def _open_texts(options: DataOptions, base: Path) -> Dataset:
    """Files or a hub dataset of any size, with separate or held-out validation text."""
    reading = TextReading(options.text_column, options.invalid_utf8 == "replace")
    source, val_source = text_sources.open_sources(
        options.data, options.val_data, reading, find_val=options.val_frac is None
    )
    frac = choose_val_frac(options.val_frac, source.characters)
    recipe = {
        "source": source.identity,
        "val_source": val_source.identity if val_source else frac,
        "invalid_utf8": options.invalid_utf8,
    }
    if options.text_column is not None:
        recipe["text_column"] = options.text_column
    if any(found and found.is_plain for found in (source, val_source)):
        recipe["newlines"] = "universal"  # data prepared before CRLF was read as LF is not reused

    def documents() -> Iterator[tuple[str, int, str]]:
        if val_source:
            yield from ((VAL, 0, text) for text in val_source.texts)
            yield from ((TRAIN, document_hash(text), text) for text in source.texts)
        else:
            yield from split_documents(source.texts, frac)
        _log(reading)

    return _build(base, source.stem, recipe, documents(), lanes=_lanes(source.characters))


def _lanes(characters: int | None) -> int:
    if characters is None:
        return MAX_LANES
    return min(MAX_LANES, max(1, round(characters / shard_files.SHARD_CHARACTERS)))


def choose_val_frac(wanted: float | None, characters: int | None) -> float:
    """The share of documents to hold out: as wanted, else about a million characters."""
    if wanted is not None:
        return wanted
    if not characters:
        return 0.01
    return min(0.1, max(0.0005, VALIDATION_CHARACTERS / characters))


def document_hash(text: str) -> int:
    """A 64-bit hash of a document's text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def split_documents(texts: Iterable[str], val_frac: float) -> Iterator[tuple[str, int, str]]:
    """Assign documents to splits by their hash alone; yields (split, hash, text).

    Equal documents share a split, so no training text is in validation. If the hash selects no
    document, the one with the smallest hash becomes the validation split.
    Raises: DataError if no training document is left.
    """
    limit = val_frac * 2**32  # for the upper 32 bits; the lower bits assign documents to shards
    smallest: tuple[int, str] | None = None  # kept back until we know whether it is needed
    counts = {TRAIN: 0, VAL: 0}
    for text in texts:
        row = document_hash(text), text
        if row[0] >> 32 < limit:
            counts[VAL] += 1
            yield VAL, *row
        elif smallest is None:
            smallest = row
        else:
            counts[TRAIN] += 1
            yield TRAIN, *max(smallest, row)
            smallest = min(smallest, row)
    if smallest is not None:
        split = TRAIN if counts[VAL] or not val_frac else VAL
        counts[split] += 1
        yield split, *smallest
    if counts[VAL] and not counts[TRAIN]:
        total = f"{counts[VAL]} document" + "s" * (counts[VAL] > 1)
        raise DataError(
            f"the data has {total}, too few to hold any out for validation; give --val-data FILE "
            "or more documents"
        )


def _log(reading: TextReading) -> None:
    if reading.empty:
        log.info("skipped %d empty documents", reading.empty)
    if reading.newlines:
        log.info("read the CRLF or CR line ends of %d text files as LF", reading.newlines)
    if reading.replaced:
        log.warning("replaced about %d invalid bytes by U+FFFD", reading.replaced)


def _build(
    base: Path,
    stem: str,
    recipe: dict[str, Any],
    documents: Iterable[tuple[str, int, str]],
    *,
    lanes: int,
) -> Dataset:
    """Write a data folder from (split, hash, text), unless a complete one of this recipe exists."""
    digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:10]
    name = f"{stem}-{digest}"
    folder = base / "data" / name
    with storage.lock(base / "data" / f".{name}.lock"):
        found = shard_files.read_manifest(folder)
        if not found or not all(shard_files.is_complete(folder, shard) for shard in found):
            log.info("preparing dataset %s", name)
            storage.remove_leftovers(base / "data", f"{name}.")
            with storage.atomic_folder(folder) as temporary:
                found = _write(temporary, documents, lanes)
                shard_files.write_manifest(temporary, found, recipe)
    return Dataset(name=name, folder=folder, all_shards=tuple(found))


def _write(folder: Path, documents: Iterable[tuple[str, int, str]], lanes: int) -> list[Shard]:
    writer = ShardWriter(folder, lanes=lanes)
    try:
        for split, key, text in documents:
            writer.add(text, split=split, key=key)
        shards = writer.close()
    except BaseException:
        writer.abandon()
        raise
    if not any(shard.split == TRAIN for shard in shards):
        raise DataError(
            "the data has no text to train on; give --data with text, or the column that holds it "
            "with --text-column"
        )
    return shards
