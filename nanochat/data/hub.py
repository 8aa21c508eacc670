"""Text from the Hugging Face hub: ready-made shards over HTTP, or any dataset by `datasets`.

Owns parallel downloads of shards, their progress, and `hf:` names. Does not own the transfer of one
file (downloads.fetch) or data sets that are kept on disk (hub_datasets).
"""

import logging
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nanochat.data import hub_datasets
from nanochat.data import shards as shard_files
from nanochat.data.file_formats import row_text
from nanochat.data.shards import Shard
from nanochat.data.text_decoding import TextReading
from nanochat.system import downloads, storage
from nanochat.system.errors import ConfigError, DataError

log = logging.getLogger(__name__)

CONNECTIONS = 8
LOG_EVERY_S = 10.0


@dataclass(frozen=True)
class HubShards:
    """A repository of parquet shards; the last one is for validation."""

    repository: str
    count: int

    def url(self, index: int) -> str:
        """The URL of a shard."""
        name = shard_files.shard_name(index)
        return f"{storage.hub_endpoint()}/datasets/{self.repository}/resolve/main/{name}"


HUB_SHARDS = {
    "climbmix": HubShards("karpathy/climbmix-400b-shuffle", 6543),
    "fineweb-edu": HubShards("karpathy/fineweb-edu-100b-shuffle", 1823),
}


def download_shards(name: str, train_shards: int, folder: Path) -> list[Shard]:
    """The first training shards and the validation shard of a hub dataset; downloads missing ones.

    Several processes may do this in one folder at once; they share the work.
    Raises: DataError if a shard cannot be downloaded; ConfigError if the dataset has fewer shards.
    """
    source = HUB_SHARDS[name]
    if train_shards >= source.count:
        raise ConfigError(f"--shards {train_shards}: {name} has {source.count - 1} training shards")
    splits = dict.fromkeys(range(train_shards), "train") | {source.count - 1: "val"}
    known = _complete_shards(folder)
    missing = [index for index in splits if shard_files.shard_name(index) not in known]
    if missing:
        log.info("%s: %d of %d shards to download", name, len(missing), len(splits))
        _download(source, missing, splits, folder, _Meter(name, len(missing)))
        known = _complete_shards(folder)
    return [known[shard_files.shard_name(index)] for index in splits]


def _listed_shards(folder: Path) -> dict[str, Shard]:
    return {shard.file: shard for shard in shard_files.read_manifest(folder)}


def _complete_shards(folder: Path) -> dict[str, Shard]:
    listed = _listed_shards(folder).items()
    return {file: shard for file, shard in listed if shard_files.is_complete(folder, shard)}


def _download(
    source: HubShards, indices: list[int], splits: dict[int, str], folder: Path, meter: "_Meter"
) -> None:
    with ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="download") as pool:
        jobs = [
            pool.submit(_download_one, source, index, splits[index], folder, meter)
            for index in indices
        ]
        try:
            for job in as_completed(jobs):
                job.result()
        except BaseException:
            meter.stop()  # the others stop at their next chunk; their parts stay for the next run
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _download_one(source: HubShards, index: int, split: str, folder: Path, meter: "_Meter") -> None:
    path = folder / shard_files.shard_name(index)
    # Held throughout, so that a shard that another process has just fetched is neither taken for
    # one that lost its end, nor hashed by every process that waited for it.
    with storage.lock(folder / f".{path.name}.shard.lock"):
        known = _listed_shards(folder).get(path.name)
        if known is None or not shard_files.is_complete(folder, known):
            if known is not None:
                path.unlink(missing_ok=True)
            follow = meter.follow(index)
            downloads.fetch(source.url(index), path, token=storage.hub_token(), progress=follow)
            _enlist(folder, _describe(path, split), source)
    meter.finish()


def _enlist(folder: Path, shard: Shard, source: HubShards) -> None:
    """Add a shard to the manifest."""
    with storage.lock(folder / ".manifest.lock"):
        listed = _listed_shards(folder) | {shard.file: shard}
        recipe = {"source": source.repository}
        shard_files.write_manifest(folder, [listed[file] for file in sorted(listed)], recipe)


def _describe(path: Path, split: str) -> Shard:
    try:
        with pq.ParquetFile(path) as file:
            columns, documents = file.schema_arrow.names, file.metadata.num_rows
    except pa.ArrowException as error:
        path.unlink()
        raise DataError(
            f"{path} is not a parquet file ({error}); it was deleted, run again"
        ) from None
    if "text" not in columns:
        raise DataError(f"{path} has no column 'text'; columns: {', '.join(columns)}")
    return Shard(
        file=path.name,
        split=split,
        bytes=path.stat().st_size,
        digest=storage.sha256_of(path),
        documents=documents,
    )


class _Stopped(Exception):
    """Another download failed, so this one is no longer needed."""


class _Meter:
    """Adds up the progress of several downloads and logs it every LOG_EVERY_S seconds."""

    def __init__(self, name: str, files: int) -> None:
        self._name = name
        self._files = files
        self._finished = 0
        self._received = 0
        self._lengths: dict[int, int] = {}
        self._start_s = self._logged_s = time.monotonic()
        self._lock = threading.Lock()
        self._stop = threading.Event()

    def stop(self) -> None:
        """Make every download stop at its next chunk."""
        self._stop.set()

    def finish(self) -> None:
        """Count a finished file."""
        with self._lock:
            self._finished += 1
            self._log(always=self._finished == self._files)

    def follow(self, index: int) -> downloads.DownloadProgress:
        """A progress callback for one file."""
        before: int | None = None

        def progress(done: int, length: int | None) -> None:
            nonlocal before
            if self._stop.is_set():
                raise _Stopped
            with self._lock:
                # What was already on disk does not count toward the speed.
                if before is not None and done > before:
                    self._received += done - before
                before = done
                if length:
                    self._lengths[index] = length
                self._log()

        return progress

    def _log(self, *, always: bool = False) -> None:
        now_s = time.monotonic()
        if not always and now_s - self._logged_s < LOG_EVERY_S:
            return
        self._logged_s = now_s
        rate = self._received / max(now_s - self._start_s, 1e-9)
        left = ""
        if self._lengths and rate:
            average = sum(self._lengths.values()) / len(self._lengths)
            left_s = max(0.0, average * self._files - self._received) / rate
            left = f", about {left_s / 60:.1f} min left"
        log.info(
            "%s: %d of %d shards, %.2f GB, %.1f MB/s%s",
            self._name,
            self._finished,
            self._files,
            self._received / 1e9,
            rate / 1e6,
            left if self._finished < self._files else "",
        )


@dataclass(frozen=True)
class HubName:
    """What `hf:ORG/NAME[:CONFIG][:SPLIT]` names."""

    name: str
    config: str | None
    split: str


SPLIT_NAMES = ("train", "validation", "valid", "val", "dev", "test")


def parse_name(spec: str, *, flag: str = "--data") -> HubName:
    """Read `hf:ORG/NAME[:CONFIG][:SPLIT]`; a single extra part is a split if it has a split's name.

    Raises: ConfigError for anything else.
    """
    parts = re.split(r":(?![^\[]*\])", spec.removeprefix("hf:"))  # a split may be train[:10%]
    if not parts[0] or len(parts) > 3:
        raise ConfigError(f"{flag} {spec}: write hf:ORG/NAME, hf:ORG/NAME:CONFIG or with :SPLIT")
    name, *rest = parts
    if len(rest) == 1:
        is_split = rest[0].split("[")[0] in SPLIT_NAMES
        rest = ["", rest[0]] if is_split else [rest[0], ""]
    config, split = rest or ["", ""]
    return HubName(name, config or None, split or "train")


def hub_documents(source: HubName, reading: TextReading) -> Iterator[str]:
    """Every document of a hub dataset that is not blank, streamed.

    Raises: DataError if the dataset cannot be read or has no text.
    """
    for place, row in read_rows(source):
        text = row_text(row, place, reading)
        if text.strip():
            yield text
        else:
            reading.empty += 1


def read_rows(source: HubName, *, streaming: bool = True) -> Iterator[tuple[str, dict[str, Any]]]:
    """The place and the fields of each row of a hub dataset.

    streaming: False downloads the dataset first, once for all processes and runs.
    Raises: DataError if the dataset cannot be read.
    """
    datasets = hub_datasets.library(f"hf:{source.name}")
    try:
        if streaming:
            rows = datasets.load_dataset(
                source.name, source.config, split=source.split, streaming=True
            )
        else:
            rows = hub_datasets.load(source.name, config=source.config, split=source.split)
        for number, row in enumerate(rows, start=1):
            yield f"hf:{source.name}, row {number}", row
    # `datasets` raises its own, the hub's, fsspec's and network errors, which share no base class.
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(
            f"hf:{source.name} (config {source.config}, split {source.split}) cannot be read: "
            f"{reason}; check the name, the network and HF_TOKEN"
        ) from error
