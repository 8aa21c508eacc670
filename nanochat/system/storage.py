"""Where files are kept, and writes that succeed completely or not at all.

Owns: the base folder, atomic files and folders, locks between processes. Does not own: any format.
"""

import contextlib
import errno
import functools
import glob
import hashlib
import io
import json
import logging
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from filelock import BaseFileLock, FileLock, Timeout, UnixFileLock, WindowsFileLock

from nanochat.system.errors import ConfigError, DataError

log = logging.getLogger(__name__)

WAIT_LOGGED_S = 5.0  # a wait longer than this is logged
# Temporary names are the final name between two dots, then eight characters.
TEMPORARY = r"\..+\.[a-z0-9_]{8}"
# What file systems answer that cannot do something at all, as against failing to do it (EIO).
# EBADF: they would only do it for a descriptor that is open for writing.
UNSUPPORTED = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF}
NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOLCK}


def base_dir() -> Path:
    """The folder for all files: $NANOCHAT_BASE_DIR, or ~/.cache/nanochat.

    Raises: ConfigError if its name is not UTF-8, or begins with a home folder that is unknown.
    """
    name = os.environ.get("NANOCHAT_BASE_DIR") or "~/.cache/nanochat"
    try:
        name.encode()  # Arrow takes no other path
        return Path(name).expanduser()
    except (RuntimeError, UnicodeEncodeError):
        problem = "has no known home folder" if name.startswith("~") else "is not UTF-8"
    raise ConfigError(
        f"the base folder {name!r} {problem}; set NANOCHAT_BASE_DIR to another folder"
    )


def hub_endpoint() -> str:
    """The address of the Hugging Face hub: $HF_ENDPOINT, or https://huggingface.co."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def mirrored(url: str) -> str:
    """Where to get a public file outside the hub: $NANOCHAT_MIRROR/<its name>, or its own URL."""
    mirror = os.environ.get("NANOCHAT_MIRROR")
    return f"{mirror.rstrip('/')}/{url.rpartition('/')[2]}" if mirror else url


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
    temporary = _temporary(path)
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            # A file system may write the rename to disk before the data: without this fsync a
            # crash could leave an empty file under the final name.
            _sync(file.fileno())
        temporary.replace(path)
        fsync(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):  # the first error is the one to report
            temporary.unlink(missing_ok=True)
        _name_place(error, path, temporary)
        raise


def write_atomic(path: Path, data: bytes) -> None:
    """Write bytes to a file, atomically."""
    with atomic_file(path) as file:
        file.write(data)


def write_json(path: Path, value: Any) -> None:
    """Write a value as readable JSON, atomically."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    # Of a lone surrogate, which UTF-8 does not have, this makes JSON's own \\uXXXX.
    write_atomic(path, text.encode(errors="backslashreplace"))


def read_json(path: Path, what: str) -> dict[str, Any]:
    """Read the JSON object in a file.

    what: what the file contains, for the error message.
    Raises: DataError if it is missing or not JSON, or another JSON value.
    """
    try:
        with open_regular(path) as file:
            value = parse_json(file.read())
        if not isinstance(value, dict):
            raise ValueError("it is not a JSON object")
    except FileNotFoundError:
        raise DataError(f"{path}: no such {what}") from None
    except ValueError as error:
        raise DataError(f"{path} is not a readable {what}: {error}") from None
    return value


def parse_json(text: str | bytes) -> Any:
    """A value from JSON text; bytes are UTF-8.

    Raises: ValueError for anything else, also where Python's parser raises other errors: nesting
        too deep for its stack, a number too long to convert.
    """
    try:
        return json.loads(text if isinstance(text, str) else text.decode())
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def open_regular(path: Path) -> io.BufferedReader:
    """Open a file for reading; a link to one is followed.

    Raises: DataError for a pipe, a device or a folder: reading those may block or never end.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise DataError(f"{path} is not a file but a folder, pipe or device; remove it")
    return path.open("rb")


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Fill a temporary folder that is renamed to `path` if the block raises nothing.

    Every file and the folder are fsynced, the folder is renamed, its parent fsynced: the rename
    is the commit. On an error the temporary folder is removed and `path` is left unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        temporary.mkdir()
        yield temporary
        for file in temporary.rglob("*"):
            fsync(file)
        fsync(temporary)
        remove(path)
        temporary.rename(path)
        fsync(path.parent)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        _name_place(error, path, temporary)
        raise


def _temporary(path: Path) -> Path:
    """A new name beside `path`; unlike tempfile, what is made there has the user's umask."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")


def free_bytes(folder: Path) -> int | None:
    """Bytes free on a folder's disk; None if unknown, as network file systems may not tell."""
    try:
        usage = shutil.disk_usage(folder)
    except (OSError, AttributeError):  # AttributeError: the system has no such call
        return None
    return usage.free if usage.total else None


def _name_place(error: BaseException, path: Path, temporary: Path) -> None:
    """Name the path in an error without one, such as "no space left", or with a name gone soon."""
    if isinstance(error, OSError) and error.filename in (None, str(temporary)):
        error.filename = str(path)


def fsync(path: Path) -> None:
    """Wait until the content of a file or folder is on disk, where the file system can do that.

    Raises: OSError if it can, but fails.
    """
    is_folder = path.is_dir()
    if os.name == "nt" and is_folder:
        return  # Windows cannot open folders; its renames are journaled
    try:
        # Windows only syncs what is open for writing.
        handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    except PermissionError as error:
        if not is_folder:  # a folder may be open to writing and not to reading
            raise
        _warn_unsynced(error)
        return
    try:
        _sync(handle)
    finally:
        os.close(handle)


def _sync(handle: int) -> None:
    try:
        os.fsync(handle)
    except OSError as error:
        # Network and virtual file systems often cannot sync folders, and some no files. Training
        # there is worth more than what a power failure may cost; a failing disk still raises.
        if error.errno not in UNSUPPORTED:
            raise
        _warn_unsynced(error)


def _warn_unsynced(error: OSError) -> None:
    _warn_once(
        f"the file system cannot sync folders or files ({error.strerror}): after a power failure "
        "what was saved last may be missing"
    )


@functools.cache
def _warn_once(message: str) -> None:
    log.warning("warning: %s", message)


def remove(path: Path) -> None:
    """Remove a file, a folder with all that is in it, or a link but never its target."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    """The hex sha256 of a file. Raises: as open_regular."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove_leftovers(folder: Path, start: str) -> None:
    """Remove the temporary files and folders that a killed process left in a folder.

    start: prefix of their final names. The caller holds the lock under which they are written.
    """
    for path in folder.glob(f".{glob.escape(start)}*"):
        if re.fullmatch(TEMPORARY, path.name):
            with contextlib.suppress(OSError):
                remove(path)


@contextlib.contextmanager
def lock(path: Path, *, busy: str | None = None) -> Iterator[None]:
    """Hold a lock between processes; it is released when the process ends, however it ends.

    path: the lock file, which stays on disk. busy: the error message; None waits for the lock.
    Raises: ConfigError(busy) if another process holds it; or if this machine has no file locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = WindowsFileLock if os.name == "nt" else UnixFileLock
    file_lock: BaseFileLock = kind(
        path, poll_interval=0.1, fallback_to_soft=False, preserve_lock_file=True
    )
    try:
        _acquire(file_lock, path, busy)
    except OSError as error:
        if error.errno not in NO_LOCKS or error.filename is not None:  # it cannot be opened
            raise
        file_lock = _lock_of_this_machine(path, str(error.strerror), busy)
    try:
        yield
    finally:
        file_lock.release()


def _lock_of_this_machine(path: Path, reason: str, busy: str | None) -> BaseFileLock:
    """The same lock as a file in the system's temporary folder, which is on a local disk.

    A marker beside `path` would reach other machines, but outlive a process that is killed: few
    network file systems can exchange two names, without which no one can safely remove it.
    """
    _warn_once(
        f"{path.parent} has no file locks ({reason}): processes of this machine still wait for "
        "each other, those of others do not; run a stage on one machine at a time"
    )
    name = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]
    local = Path(tempfile.gettempdir()) / f"nanochat-{name}.lock"
    file_lock = FileLock(local, mode=0o666, poll_interval=0.1)  # other users may share the folder
    try:
        _acquire(file_lock, path, busy)
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be locked ({reason}), nor can {local} ({error.strerror}); set "
            "NANOCHAT_BASE_DIR or TMPDIR to a folder on a local disk"
        ) from None
    return file_lock


def _acquire(file_lock: BaseFileLock, path: Path, busy: str | None) -> None:
    try:
        file_lock.acquire(timeout=WAIT_LOGGED_S if busy is None else 0)
    except Timeout:
        if busy is not None:
            raise ConfigError(busy) from None
        log.info("waiting for another process that holds %s", path)
        file_lock.acquire()
