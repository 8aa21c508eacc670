"""The standard streams: whatever becomes of them, the work goes on.

Owns: streams that are closed, cannot show a character or take no more output. Does not own: what
is printed.
"""

import contextlib
import errno
import functools
import logging
import os
import select
import sys
from pathlib import Path
from typing import TextIO

from nanochat.system.errors import ConfigError

log = logging.getLogger(__name__)

# Control characters could move the cursor, or change the terminal's settings and title.
ESCAPES = {n: repr(chr(n))[1:-1] for n in (*range(32), *range(127, 160)) if chr(n) not in "\n\t"}
PASSING = (errno.ENOSPC, errno.EDQUOT, errno.EAGAIN)  # a later line may be written again


def open_streams() -> None:
    """Make standard input, output and error exist and take any character.

    What the parent process closed becomes the null device, number included: the next file opened
    would get the number, and whatever a library prints would be written into it.
    """
    logging.raiseExceptions = False  # a log record that cannot be written is lost without a word
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(number)
        except OSError:
            handle = os.open(os.devnull, os.O_RDWR)
            if handle != number:
                os.dup2(handle, number)
                os.close(handle)
            os.set_inheritable(number, True)
        if getattr(sys, name) is None:
            # not the number, which a library may have taken before
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115
        if mode == "w":
            with contextlib.suppress(AttributeError, OSError, ValueError):  # not a TextIOWrapper
                getattr(sys, name).reconfigure(errors="backslashreplace")


def close_streams() -> None:
    """Flush output and errors; what cannot be written is dropped, or Python would exit with 120."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            _discard(stream, for_good=True)


def show_log(*, errors_only: bool = False) -> None:
    """Print log records (what data is read, downloads, fallbacks) on standard error.

    Of other libraries only warnings: the hub's client logs each of its requests.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(_Visible())
    logging.basicConfig(level=logging.ERROR if errors_only else logging.WARNING, handlers=[handler])
    own = logging.getLogger(__name__.partition(".")[0])
    own.setLevel(logging.ERROR if errors_only else logging.INFO)


class _Visible(logging.Formatter):
    """Messages only, whose control characters are escaped."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))


def visible(text: str) -> str:
    """A text whose control characters are escaped, but for newlines and tabs."""
    return text.translate(ESCAPES)


def for_output(text: str) -> str:
    """A model's text as it is, for files and other programs; on a terminal, as `visible`."""
    return visible(text) if sys.stdout is not None and sys.stdout.isatty() else text


def log_line(line: str) -> None:
    """Print a line in one write, as threads print too; if that fails, only the line is lost."""
    if sys.stdout is None:
        return
    line = visible(line)
    try:
        try:
            sys.stdout.write(f"{line}\n")
        except UnicodeEncodeError:
            sys.stdout.write(f"{line}\n".encode("ascii", "backslashreplace").decode())
        sys.stdout.flush()
    except (OSError, ValueError) as error:  # ValueError: the stream is closed
        for_good = getattr(error, "errno", None) not in PASSING
        _discard(sys.stdout, for_good=for_good)
        if for_good and _takes_nothing(sys.stderr):  # libraries print there, and would fail
            _discard(sys.stderr, for_good=True)
        _report_loss(str(error))


@functools.cache  # once for each reason
def _report_loss(reason: str) -> None:
    log.warning("warning: the console takes no output (%s); the work goes on without it", reason)


def error_line(line: str) -> None:
    """Print a line to standard error, if that is possible."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(f"{visible(line)}\n")


def reader_left() -> bool:
    """Whether the program that reads our output has exited, such as `| head`."""
    return not hasattr(select, "poll") or _takes_nothing(sys.stdout)  # Windows: most likely it has


def read_stdin() -> str:
    """The text on standard input: UTF-8, else the encoding that the environment names.

    Raises: ConfigError if it cannot be read or is neither.
    """
    try:
        data = getattr(sys.stdin, "buffer", sys.stdin).read()
    except OSError as error:
        raise ConfigError(f"stdin cannot be read: {error.strerror}; pipe a text in") from None
    if isinstance(data, str):  # a stream without bytes below it
        return data
    for encoding in ("utf-8-sig", sys.stdin.encoding):
        with contextlib.suppress(UnicodeDecodeError):
            return data.decode(encoding).replace("\r\n", "\n").replace("\r", "\n")
    raise ConfigError("stdin is not UTF-8 text; convert it, as in: iconv -f latin1 -t utf-8")


def _takes_nothing(stream: TextIO) -> bool:
    """Whether a stream is a pipe without a reader or a terminal that was closed."""
    if not hasattr(select, "poll"):
        return False
    poll = select.poll()
    try:
        poll.register(stream, 0)  # reports errors only
        return bool(poll.poll(0))
    except (OSError, TypeError, ValueError):  # not a file of the system
        return False


def _discard(stream: TextIO, *, for_good: bool) -> None:
    """Drop what a stream still holds, as flushing it would fail again, at exit at the latest."""
    with contextlib.suppress(OSError, ValueError):
        number = stream.fileno()
        before, null = os.dup(number), os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, number)
        stream.flush()
        if not for_good:
            os.dup2(before, number)
        os.close(before)
        os.close(null)
