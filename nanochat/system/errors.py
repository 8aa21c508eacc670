"""Errors that are the user's to fix; a script prints such an error as one line and exits 2."""

import errno
from pathlib import Path

OUT_OF_MEMORY = ("alloc_failed", "out of memory", "can't allocate memory", "not enough memory")


class UserError(Exception):
    """What is wrong, the value that is wrong, and the remedy, in one line."""


class ConfigError(UserError):
    """A flag, preset or environment setting that cannot work."""


class DataError(UserError):
    """Training or evaluation data that is missing, empty, torn or of the wrong shape."""


class CheckpointError(UserError):
    """A checkpoint that is missing, torn, or does not fit what is asked of it."""


class DamagedCheckpointError(CheckpointError):
    """A checkpoint that is torn or was altered: an older one may stand in for it."""

    def __init__(self, what: str, path: Path) -> None:
        super().__init__(f"{what}; remove {path} to fall back on an older one")
        self.what = what
        self.path = path

    def __reduce__(self) -> tuple[type, tuple[str, Path]]:
        return type(self), (self.what, self.path)  # it travels from rank to rank


class RankError(UserError):
    """Another process of the run has ended; the message is which, and why."""


class ReportedElsewhere(Exception):
    """This process ends for a reason that another process on its machine prints."""


class OutOfMemory(UserError):
    """A part of the work that memory did not suffice for, on any rank; all ranks raise it."""


class Stopped(Exception):
    """Work that was asked to end, and has saved where it stands; a script then exits 0."""


def explain(error: Exception, *, base: str) -> str | None:
    """What an error means to the user and what helps; None for one that is our own bug.

    base: the base folder, for errors of the disk that do not say where they happened.
    """
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError):
        return _explain_disk(error, str(error.filename or base))
    return explain_memory(error)


def explain_memory(error: Exception) -> str | None:
    """What helps against an error that is about memory; None for another one."""
    known = isinstance(error, RuntimeError) and any(t in str(error).lower() for t in OUT_OF_MEMORY)
    if not (known or isinstance(error, MemoryError)):
        return None
    return (
        "out of memory; a smaller --device-batch-size (or auto), --checkpoint-activations, a "
        "smaller --slots, --sequence-length or --depth needs less "
        f"({str(error)[:120] or 'the system gave no more'})"
    )


def _explain_disk(error: OSError, place: str) -> str | None:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"no space left on the disk while writing {place}; free some, then run it again"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return (
            f"{place}: {error.strerror}; set NANOCHAT_BASE_DIR to a folder that you can write, or "
            "change the rights"
        )
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return (
            f"{place}: a file is where a folder is needed; move it away, or set NANOCHAT_BASE_DIR "
            "to another folder"
        )
    if error.errno == errno.ENAMETOOLONG:
        return f"{place[:60]}...: the name is too long; give a shorter one"
    return None
