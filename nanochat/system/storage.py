"""Where files are kept, and writes that succeed completely or not at all.

Owns: the base folder, atomic files and folders, locks between processes. Does not own: any format.
"""

import contextlib
import glob
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from nanochat.system.errors import ConfigError, DataError

log = logging.getLogger(__name__)

WAIT_LOGGED_S = 5.0  # a wait longer than this is logged
# Temporary names end in eight characters of tempfile's alphabet.
TEMPORARY = r"\..+\.[a-z0-9_]{8}"


def base_dir() -> Path:
    """The folder for all files: $NANOCHAT_BASE_DIR, or ~/.cache/nanochat."""
    return Path(os.environ.get("NANOCHAT_BASE_DIR") or "~/.cache/nanochat").expanduser()


def hub_endpoint() -> str:
    """The address of the Hugging Face hub: $HF_ENDPOINT, or https://huggingface.co."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def hub_token() -> str | None:
    """The access token for the hub, $HF_TOKEN; None if it is not set."""
    return os.environ.get("HF_TOKEN") or None


def run_dir(run: str) -> Path:
    """The folder of one run, which holds all of its stages."""
    return base_dir() / "runs" / run


def stage_dir(run: str, stage: str) -> Path:
    """The folder of one stage of a run."""
    return run_dir(run) / stage


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Write a file atomically: after a crash it has either the old content or all of the new.

    Yields a temporary file open for writing, renamed to `path` if the block raises nothing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            # A file system may write the rename to disk before the data: without this fsync a
            # crash could leave an empty file under the final name.
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
        fsync(path.parent)
    except BaseException as error:
        Path(name).unlink(missing_ok=True)
        _name_place(error, path)
        raise


def write_atomic(path: Path, data: bytes) -> None:
    """Write bytes to a file, atomically."""
    with atomic_file(path) as file:
        file.write(data)


def write_json(path: Path, value: Any) -> None:
    """Write a value as readable JSON, atomically."""
    write_atomic(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def read_json(path: Path, what: str) -> Any:
    """Read a JSON file.

    what: what the file contains, for the error message.
    Raises: DataError if it is missing or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such {what}") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path} is not a readable {what}: {error}") from None


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Fill a temporary folder that is renamed to `path` if the block raises nothing.

    Every file and the folder are fsynced, the folder is renamed, its parent fsynced: the rename
    is the commit. On an error the temporary folder is removed and `path` is left unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield temporary
        for file in temporary.rglob("*"):
            fsync(file)
        temporary.chmod(0o755)
        fsync(temporary)
        if path.exists():
            shutil.rmtree(path)
        temporary.rename(path)
        fsync(path.parent)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        _name_place(error, path)
        raise


def _name_place(error: BaseException, path: Path) -> None:
    """Add the path to an error that has none, such as "no space left" from a write."""
    if isinstance(error, OSError) and error.filename is None:
        error.filename = str(path)


def fsync(path: Path) -> None:
    """Wait until the content of a file or folder is on disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows cannot open folders; its renames are journaled
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256_of(path: Path) -> str:
    """The hex sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove_leftovers(folder: Path, start: str) -> None:
    """Remove the temporary files and folders that a killed process left in a folder.

    start: prefix of their final names. The caller holds the lock under which they are written.
    """
    for path in folder.glob(f".{glob.escape(start)}*"):
        if re.fullmatch(TEMPORARY, path.name):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


@contextlib.contextmanager
def lock(path: Path, *, busy: str | None = None) -> Iterator[None]:
    """Hold a lock between processes; it is released when the process ends, however it ends.

    path: the lock file, which stays on disk. busy: the error message; None waits for the lock.
    Raises: ConfigError(busy) if another process holds it; or if the file system has no locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # No fallback to a soft lock: that would outlive a killed process.
    file_lock = FileLock(path, poll_interval=0.1, fallback_to_soft=False, preserve_lock_file=True)
    try:
        file_lock.acquire(timeout=WAIT_LOGGED_S if busy is None else 0)
    except Timeout:
        if busy is not None:
            raise ConfigError(busy) from None
        log.info("waiting for another process that holds %s", path)
        file_lock.acquire()
    except OSError as error:
        if error.filename is not None:  # the file cannot be opened
            raise
        raise ConfigError(
            f"{path} cannot be locked ({error.strerror}); set NANOCHAT_BASE_DIR to a folder on a "
            "local disk"
        ) from None
    try:
        yield
    finally:
        file_lock.release()
