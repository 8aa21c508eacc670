"""Runs Python that a model wrote, in a child process with as few rights as Linux allows.

Owns: the children's start, limits and end, and the verdict. Does not own: how a child drops its
rights (`sandbox`), nor which system calls it may make (`system_calls`).

What is promised, and by what:

- No file but Python's own is read, none outside a temporary folder is written: Landlock, which
  looks at opened files. Landlock does not guard mode, owner, times and attributes of files, so the
  system calls that change them are not on the list of allowed ones (seccomp).
- No network, no other process: the calls that make sockets, processes, signals or shared memory
  are not on the list either. A call that nobody thought of is denied too.
- Root's rights are gone: root's child becomes "nobody", without capabilities. Where others may not
  enter Python's own folders it keeps one, to read files, of which Landlock leaves Python's.
- Memory, processor time, time, output and disk are bounded: resource limits, and the parent counts
  the folder's files as the child runs. Files that are deleted but still open or mapped are not
  seen; they are bounded by the number of open files and by the memory.
- The child does not outlive its parent, nor its time: the kernel kills it in either case.
- Whatever it writes or leaves behind is "not ok", never an exception here.
- A wrong function does not pass its tests: they run in a second child, the judge, which sends
  arguments and gets results as plain data. The code can neither read the tests nor touch what
  compares, so it can claim no more than the results that it gives.

What is not promised: that a program that exits normally did what it should (`run_python`); that
names, sizes and times of files elsewhere stay unknown; that the folder goes too if the parent is
killed; that the kernel has no faults. Sockets, and so asyncio, subprocesses, locks, links and what
sets modes (shutil.copy) do not work. It needs Linux 5.13 with Landlock and seccomp on x86-64 or
arm64. Without them nothing is run. Root that cannot become nobody, as in some containers, stays
root without capabilities; `isolation` says which it is.
"""

import contextlib
import functools
import itertools
import json
import logging
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from nanochat.system.errors import ConfigError
from nanochat.tools import system_calls

TIMEOUT_S = 5.0
MEMORY_BYTES = 1 << 30
FILE_BYTES = 1 << 20  # of any file it writes, including its output
FOLDER_BYTES = 16 << 20  # of all files in its folder
FOLDER_ENTRIES = 1_000
OUTPUT_CHARS = 10_000  # kept of each of stdout and stderr
POLL_S = 0.002  # how late the end of a child is noticed
COUNT_S = 0.05  # a fast program writes some 30 MB in that time
TIMED_OUT = "the program did not end within its time"
OVER_LIMIT = f"the program's folder held over {FOLDER_BYTES >> 20} MiB or {FOLDER_ENTRIES:,} files"
REMEDY = "leave HumanEval out, or run it on Linux 5.13 or later (x86-64, arm64) with Landlock"

CHILD = Path(__file__).with_name("sandbox.py")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Execution:
    """How a program ended."""

    ok: bool
    stdout: str
    stderr: str
    timed_out: bool
    exit_code: int  # negative: the signal that ended it


def run_python(
    code: str, *, timeout_s: float = TIMEOUT_S, memory_bytes: int = MEMORY_BYTES
) -> Execution:
    """Run a program with the standard library only, without network or access to other files.

    `ok` means that it ended with status 0 within its limits, by its last line or by any other way:
    whether a function is right is for `check_function` to say.

    timeout_s: wall-clock seconds, after which it is killed.
    Raises: ConfigError if the platform cannot confine it.
    """
    with (
        _folder() as folder,
        _started(_job("program", code, folder, timeout_s, memory_bytes)) as child,
    ):
        stopped = _wait(child.process, folder, timeout_s)
    return _execution(child, child, stopped)


def check_function(
    code: str, function: str, tests: str, *, timeout_s: float = TIMEOUT_S
) -> Execution:
    """Call a function of the code from tests that run in another process.

    tests: a trusted program that defines `check(candidate)`, which raises if the candidate is
        wrong. It sees copies of results, made of Python's own types; what is none of them (an
        iterator, an instance of a class) it sees as an object that is equal to nothing.

    `ok` means that `check` returned; if it raised, its traceback is in `stderr`, after what the
    code printed there.

    Raises: ConfigError if the platform cannot confine it.
    """
    with _folder() as folder:
        answers = _job("candidate", code, folder, timeout_s, MEMORY_BYTES)
        asks = _job("judge", tests, None, timeout_s, MEMORY_BYTES)
        calls, results = os.pipe(), os.pipe()
        answers |= {"function": function, "calls": calls[0], "results": results[1]}
        asks |= {"function": function, "calls": calls[1], "results": results[0]}
        with contextlib.ExitStack() as children:
            with _closed(*calls, *results):  # so that each of the two notices the other's end
                candidate, judge = (
                    children.enter_context(_started(job)) for job in (answers, asks)
                )
            stopped = _wait(judge.process, folder, timeout_s)
    return _execution(candidate, judge, stopped)


@functools.cache
def isolation() -> str:
    """How programs are confined here, as text for a report; warns once if it is the weaker way.

    Raises: ConfigError if they cannot be.
    """
    with _folder() as folder, _started(_job("program", "", folder, 30, MEMORY_BYTES)) as child:
        stopped = _wait(child.process, folder, 30)
    result = _execution(child, child, stopped)
    if not result.ok:
        reason = result.stderr.strip().rpartition("\n")[2] or f"exit code {result.exit_code}"
        raise ConfigError(f"an empty program fails in the sandbox: {reason}; {REMEDY}")
    user = child.status.removeprefix("+")
    if user.startswith("root"):
        log.warning("model-written code runs as %s; start as an ordinary user to be safer", user)
    return f"own process and folder, {user}, resource limits, Landlock, seccomp with an allow list"


@dataclass
class _Child:
    """A process in the sandbox; what it wrote is known when it has ended."""

    process: subprocess.Popen[bytes]
    status: str = ""  # "+user" once it is confined, "-reason" if it cannot be
    stdout: str = ""
    stderr: str = ""


def _job(
    role: str, code: str, folder: Path | None, timeout_s: float, memory_bytes: int
) -> dict[str, Any]:
    """What the child reads. Raises: ConfigError for a system or processor without a sandbox."""
    machine = os.uname().machine if sys.platform == "linux" else sys.platform
    if machine not in system_calls.MACHINES:
        raise ConfigError(f"model-written code cannot be confined on {machine}; {REMEDY}")
    numbers = system_calls.MACHINES[machine]
    limits = {"AS": memory_bytes, "FSIZE": FILE_BYTES, "NOFILE": 64, "CORE": 0}
    return {
        "role": role,
        "code": code,
        "folder": folder and str(folder),
        "parent": os.getpid(),
        "limits": {"CPU": int(timeout_s) + 1, **limits},
        "wall_s": timeout_s + 1,  # after the parent's own limit, which can say what happened
        "timer_create": numbers.timer_create,
        "timer_settime": numbers.timer_settime,
        "filter": system_calls.bpf(machine).hex(),
    }


@contextlib.contextmanager
def _started(job: dict[str, Any]) -> Iterator[_Child]:
    """A child with this job, killed at the end of the block."""
    folder = job["folder"] or "/"
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    with contextlib.ExitStack() as parts:
        request, stdout, stderr = (parts.enter_context(tempfile.TemporaryFile()) for _ in range(3))
        status, told = os.pipe()
        parts.callback(os.close, status)
        with _closed(told):
            request.write(json.dumps(job | {"status": told}).encode())
            request.seek(0)
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(CHILD)],
                cwd=folder,
                env={**kept, "LANG": "C.UTF-8", "HOME": folder, "TMPDIR": folder},
                stdin=request,
                stdout=stdout,
                stderr=stderr,
                pass_fds=[told, *(job[end] for end in ("calls", "results") if end in job)],
                start_new_session=True,
            )
        child = _Child(process)
        try:
            yield child
        finally:
            process.kill()  # it cannot fork, so nothing is left of it
            process.wait()
            child.status = os.read(status, 1000).decode("utf-8", "replace")
            child.stdout, child.stderr = _head(stdout), _head(stderr)


@contextlib.contextmanager
def _closed(*files: int) -> Iterator[None]:
    """Close these file descriptors at the end of the block."""
    try:
        yield
    finally:
        for file in files:
            os.close(file)


def _wait(process: subprocess.Popen[bytes], folder: Path, timeout_s: float) -> str | None:
    """Wait for a process while the folder stays within its limits. Returns why it may not go on."""
    start = counted = time.monotonic()
    while process.poll() is None:
        time.sleep(POLL_S)
        now = time.monotonic()
        if now - start > timeout_s:
            return TIMED_OUT
        if now - counted > COUNT_S:
            if not _fits(folder):
                return OVER_LIMIT
            counted = now
    return None if _fits(folder) else OVER_LIMIT


def _fits(folder: Path) -> bool:
    """Whether the folder is within its limits, as far as it can be counted."""
    for _ in range(10):
        with contextlib.suppress(FileNotFoundError):  # it changed meanwhile
            return _counted_fits(folder)
    return False


def _counted_fits(folder: Path) -> bool:
    entries = size = 0
    pending = [str(folder)]
    try:
        while pending:
            with os.scandir(pending.pop()) as found:
                for entry in found:
                    entries += 1
                    size += entry.stat(follow_symlinks=False).st_size
                    if entries > FOLDER_ENTRIES or size > FOLDER_BYTES:
                        return False
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
    except FileNotFoundError:
        raise
    except OSError:  # a folder that may not be listed, or too deep for a path
        return False
    return True


def _execution(program: _Child, judge: _Child, stopped: str | None) -> Execution:
    """What the program wrote, and the judge's verdict; a program alone is its own judge.

    Raises: ConfigError if one of them could not be confined, so that nothing was run.
    """
    for child in (program, judge):
        if child.status.startswith("-"):
            raise ConfigError(
                f"model-written code cannot be confined here ({child.status[1:]}); {REMEDY}"
            )
    stderr = [program.stderr, judge.stderr if judge is not program else "", stopped or ""]
    return Execution(
        ok=judge.process.returncode == 0 and judge.status[:1] == "+" and stopped is None,
        stdout=program.stdout,
        stderr="\n".join(text for text in stderr if text),
        timed_out=stopped == TIMED_OUT,
        exit_code=judge.process.returncode,
    )


def _head(file: BinaryIO) -> str:
    file.seek(0)
    return file.read(4 * OUTPUT_CHARS).decode("utf-8", "replace")[:OUTPUT_CHARS]


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    """A new folder, which is gone after the block whatever is in it then."""
    folder = Path(tempfile.mkdtemp(prefix="nanochat-"))
    try:
        yield folder
    finally:
        try:
            remove_tree(folder)
        except OSError as error:
            log.warning("cannot remove the temporary folder %s: %s", folder, error)


def remove_tree(folder: Path) -> None:
    """Remove a folder with its content, at any depth and in any mode.

    Subfolders of subfolders are moved up, so neither the stack nor a path grows with the depth.
    """
    prefix, number = secrets.token_hex(8), itertools.count()  # names that are not there yet
    while subfolders := _remove_files(folder):
        for subfolder in subfolders:
            for inner in _remove_files(subfolder):
                inner.chmod(0o700)  # moving a folder writes its "..", which is inside it
                inner.rename(folder / f"{prefix}-{next(number)}")
            subfolder.rmdir()
    folder.rmdir()


def _remove_files(folder: Path) -> list[Path]:
    """Remove what is not a folder; returns the subfolders."""
    folder.chmod(0o700)
    with os.scandir(folder) as found:
        entries = [(Path(entry), entry.is_dir(follow_symlinks=False)) for entry in found]
    for path, is_folder in entries:
        if not is_folder:
            path.unlink()
    return [path for path, is_folder in entries if is_folder]
