"""Data sets of the Hugging Face hub, loaded by `datasets` and kept on disk.

Owns: that the processes of a machine ask the hub once, and never again for what is on disk; waiting
where the hub limits requests. Does not own: streamed text and ready-made shards (hub).
"""

import contextlib
import logging
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nanochat.system import downloads, storage
from nanochat.system.errors import DataError

log = logging.getLogger(__name__)


def load(name: str, *, config: str | None, split: str, wait_s: float = 1.0) -> Any:
    """The rows of a split, as `datasets.load_dataset` has them.

    Later calls, by any process, read the files of the first without a request, so that all stages
    of a run see the same rows; the log names their folder, to be removed for a newer version.
    wait_s: the wait before the second attempt where the hub has too many requests or an error of
    its own and states no time; doubled for each further one.
    Raises: DataError if `datasets` is missing; whatever it raises.
    """
    shown = f"{name}:{config}:{split}" if config else f"{name}:{split}"
    datasets = library(shown)
    place = storage.base_dir() / "hub" / re.sub(r"[^\w.-]+", "--", f"{name}:{config or ''}")
    record = place.with_name(f"{place.name}.json")
    if (rows := _from_disk(record, name, split, shown)) is not None:
        return rows
    # One process asks, and the rest find what it has loaded.
    with storage.lock(place.with_name(f".{place.name}.lock")):
        if (rows := _from_disk(record, name, split, shown)) is not None:
            return rows
        log.info("loading %s", shown)
        rows = _patiently(lambda: datasets.load_dataset(name, config, split=split), shown, wait_s)
        if files := getattr(rows, "cache_files", None):
            storage.write_json(record, {"folder": str(Path(files[0]["filename"]).parent)})
    return rows


def _from_disk(record: Path, name: str, split: str, shown: str) -> Any:
    """The rows from the folder that a record names; None if they cannot be had from there."""
    if not record.is_file():
        return None
    # Whatever is wrong with a record or a folder, the hub is asked instead, for the same rows.
    with contextlib.suppress(Exception):
        from datasets.packaged_modules.cache.cache import Cache

        folder = Path(storage.read_json(record, "record of a data set")["folder"])
        # `datasets` keeps what it has prepared in ROOT/ORG___NAME/CONFIG/VERSION/HASH.
        builder = Cache(
            cache_dir=str(folder.parents[3]),
            dataset_name=folder.parts[-4].split("___")[-1],
            repo_id=name,
            config_name=folder.parts[-3],
            version=folder.parts[-2],
            hash=folder.parts[-1],
        )
        if folder.is_dir() and Path(builder.cache_dir) == folder:
            rows = builder.as_dataset(split=split)
            log.info("loading %s from %s", shown, folder)
            return rows
    return None


def _patiently(work: Callable[[], Any], shown: str, wait_s: float) -> Any:
    """The result of `work`, tried again while the hub asks to wait or fails itself."""
    for attempt in range(downloads.ATTEMPTS):
        try:
            return work()
        except Exception as error:  # `datasets` wraps the hub's error in some of its own
            response = _refusal(error)
            if response is None or attempt == downloads.ATTEMPTS - 1:
                raise
            stated = downloads.stated_wait_s(response.headers)
            wait = min(downloads.LONGEST_WAIT_S, wait_s * 2**attempt) if stated is None else stated
            status = response.status_code
            log.warning("%s: HTTP %d; trying again in %.0f s", shown, status, wait)
            time.sleep(wait)
    raise AssertionError


def _refusal(error: BaseException | None) -> Any:
    """The response behind an error if a later request may be answered; else None."""
    while error is not None:
        response = getattr(error, "response", None)
        if downloads.is_temporary(getattr(response, "status_code", 0) or 0):
            return response
        error = error.__cause__ or error.__context__
    return None


def library(wanted: str) -> Any:
    """The module `datasets`; wanted: what it is to load, for the message.

    Raises: DataError naming the extra that installs it.
    """
    try:
        import datasets
    except ImportError as error:
        raise DataError(f"{wanted}: {error}; pip install 'nanochat[hub]'") from None
    # In a file, each update of a progress bar would be a line of its own.
    if not (sys.stderr and sys.stderr.isatty()):
        datasets.disable_progress_bars()
    return datasets
