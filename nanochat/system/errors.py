"""Errors that the user can fix; a script prints such an error as one line and exits with 2."""

import errno
from pathlib import Path

OUT_OF_MEMORY = ("alloc_failed", "out of memory", "can't allocate memory", "not enough memory")
SHARED_MEMORY = "/dev/shm/nccl"  # in NCCL's error where a file there cannot be made


class UserError(Exception):
    """One line: what is wrong, the value, and the remedy."""


class ConfigError(UserError):
    """An invalid flag, preset or environment setting."""


class DataError(UserError):
    """Training or evaluation data that is missing, empty, damaged or malformed."""


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged, or does not match the requested settings."""


class DamagedCheckpointError(CheckpointError):
    """A checkpoint that is incomplete or was altered; an older one may be used instead."""

    def __init__(self, what: str, path: Path) -> None:
        super().__init__(f"{what}; remove {path} to fall back to an older one")
        self.what = what
        self.path = path

    def __reduce__(self) -> tuple[type, tuple[str, Path]]:
        return type(self), (self.what, self.path)  # it is pickled to be sent between ranks


class RankError(UserError):
    """Another process of the run has failed; the message names it and the reason."""


class ReportedElsewhere(Exception):
    """Exit quietly: another process on this machine reports the error."""


class OutOfMemory(UserError):
    """Some rank ran out of memory; all ranks raise this."""


class Stopped(Exception):
    """The run was asked to stop and has saved its state; a script then exits with 0."""


def explain(error: Exception, *, base: str) -> str | None:
    """What an error means to the user and how to fix it; None for a bug of our own.

    base: the base folder, named in disk errors that carry no path or are about it.
    """
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, FileNotFoundError) and not Path(base).exists():
        return f"{base} does not exist and cannot be made; set NANOCHAT_BASE_DIR to another folder"
    if isinstance(error, OSError):
        return _explain_disk(error, str(error.filename or f"a file in {base}, or the output"))
    return _explain_shared_memory(error) or explain_memory(error)


def _explain_shared_memory(error: Exception) -> str | None:
    """What to do where NCCL's processes of a machine have no room to exchange data."""
    if not (isinstance(error, RuntimeError) and SHARED_MEMORY in str(error)):
        return None
    return (
        "NCCL needs more shared memory than this machine has in /dev/shm; in a container, start it "
        "with --shm-size=8g or --ipc=host"
    )


def explain_memory(error: Exception) -> str | None:
    """How to fix an out-of-memory error; None for any other error."""
    known = isinstance(error, RuntimeError) and any(t in str(error).lower() for t in OUT_OF_MEMORY)
    if not (known or isinstance(error, MemoryError)):
        return None
    return (
        "out of memory; reduce it with a smaller --device-batch-size (or auto), "
        "--checkpoint-activations, or a smaller --slots, --sequence-length or --depth "
        f"({str(error)[:120] or 'the system refused an allocation'})"
    )


_DISK_ERRORS = (
    (
        (errno.ENOSPC, errno.EDQUOT),
        "no space left on the disk while writing {place}; free some space and run again",
    ),
    (
        (errno.EFBIG,),
        "{place} is larger than a file may be; raise `ulimit -f`, or use another disk",
    ),
    (
        (errno.EACCES, errno.EPERM, errno.EROFS),
        "{place}: {reason}; set NANOCHAT_BASE_DIR to a folder that you can write to, or change its "
        "permissions",
    ),
    (
        (errno.ENOTDIR, errno.EEXIST, errno.EISDIR),
        "{place}: a file is in the place of a folder, or a folder in that of a file; move it, or "
        "set NANOCHAT_BASE_DIR to another folder",
    ),
    (
        (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EXDEV),
        "{place}: its file system cannot do what is needed ({reason}); set NANOCHAT_BASE_DIR to a "
        "folder on a local disk",
    ),
    (
        (errno.EIO, errno.ESTALE),
        "{place}: {reason}; check the disk or the network file system, and run again",
    ),
    ((errno.EMFILE, errno.ENFILE), "{place}: too many open files; allow more with `ulimit -n`"),
    ((errno.ELOOP,), "{place}: links lead in a circle; remove one of them"),
)


def _explain_disk(error: OSError, place: str) -> str | None:
    if error.errno == errno.ENAMETOOLONG:
        return f"{place[:60]}...: the name is too long; use a shorter one"
    for numbers, text in _DISK_ERRORS:
        if error.errno in numbers:
            return text.format(place=place, reason=error.strerror)
    return None
