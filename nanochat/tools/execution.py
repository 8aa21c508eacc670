"""Runs Python that a model wrote, in a child process with as few rights as Linux allows.

Owns: the child's start, limits, timeout and end. Does not own: how the child drops its rights
(`sandbox`). Where any part of the sandbox is missing, nothing is run: there is no weaker mode.
"""

import functools
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from nanochat.system.errors import ConfigError
from nanochat.tools import sandbox

TIMEOUT_S = 5.0
MEMORY_BYTES = 1 << 30
FILE_BYTES = 1 << 20  # of any file it writes, including its output
OUTPUT_CHARS = 10_000  # kept of each of stdout and stderr

LEVEL = "own process and folder, resource limits, no capabilities, Landlock, seccomp"


@dataclass(frozen=True)
class Execution:
    """How a program ended; `ok` means that it ran to its last line, not only that it exited."""

    ok: bool
    stdout: str
    stderr: str
    timed_out: bool
    exit_code: int  # negative: the signal that ended it


def run_python(
    code: str, *, timeout_s: float = TIMEOUT_S, memory_bytes: int = MEMORY_BYTES
) -> Execution:
    """Run a program with the standard library only, without network or access to other files.

    timeout_s: wall-clock seconds, after which the child and its process group are killed.
    Raises: ConfigError if the platform cannot confine it.
    """
    if os.name != "posix":
        raise ConfigError(
            f"model-written code cannot be confined on {sys.platform}; leave HumanEval out"
        )
    nonce = secrets.token_hex(16)
    with (
        tempfile.TemporaryDirectory(prefix="nanochat-", ignore_cleanup_errors=True) as folder,
        tempfile.TemporaryFile() as stdout,
        tempfile.TemporaryFile() as stderr,
        tempfile.TemporaryFile() as report,
        tempfile.TemporaryFile() as request,
    ):
        limits = {
            "CPU": int(timeout_s) + 1,
            "AS": memory_bytes,
            "FSIZE": FILE_BYTES,
            "NOFILE": 64,
            "CORE": 0,
        }
        job = {"code": code, "folder": folder, "nonce": nonce, "limits": limits}
        request.write(json.dumps(job).encode())
        request.seek(0)
        exit_code, timed_out = _run(folder, request, (stdout, stderr, report), timeout_s)
        finished = _read_report(report) == nonce
        return Execution(
            ok=finished and exit_code == 0 and not timed_out,
            stdout=_head(stdout),
            stderr=_head(stderr),
            timed_out=timed_out,
            exit_code=exit_code,
        )


@functools.cache
def isolation() -> str:
    """How programs are confined here, as text for a report.

    Raises: ConfigError if they cannot be.
    """
    if not run_python("pass", timeout_s=30).ok:
        raise ConfigError("the sandbox for model-written code does not start; leave HumanEval out")
    return LEVEL


def _run(
    folder: str, request: BinaryIO, files: tuple[BinaryIO, BinaryIO, BinaryIO], timeout_s: float
) -> tuple[int, bool]:
    """Start the child and wait for at most the limit. Returns (exit code, timed out)."""
    stdout, stderr, report = files
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    child = subprocess.Popen(
        [sys.executable, "-I", "-S", str(Path(sandbox.__file__)), str(report.fileno())],
        cwd=folder,
        env={**kept, "LANG": "C.UTF-8", "HOME": folder, "TMPDIR": folder},
        stdin=request,
        stdout=stdout,
        stderr=stderr,
        pass_fds=(report.fileno(),),
        start_new_session=True,
    )
    timed_out = False
    try:
        child.wait(timeout_s)
    except subprocess.TimeoutExpired:
        timed_out = True
    finally:
        if child.poll() is None:  # it cannot fork, so once it has ended its group is empty
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    return child.returncode, timed_out


def _read_report(report: BinaryIO) -> str | None:
    """The nonce with which the child reports that it finished; None without one.

    Raises: ConfigError if it reports that a part of the sandbox is missing.
    """
    report.seek(0)
    try:
        message = json.loads(report.read(4096) or "{}")
    except ValueError:
        return None
    if "refused" in message:
        raise ConfigError(
            f"model-written code cannot be confined here ({message['refused']}); leave HumanEval "
            "out, or run it on Linux 5.13 or later with Landlock and seccomp"
        )
    return message.get("finished")


def _head(file: BinaryIO) -> str:
    file.seek(0)
    return file.read(4 * OUTPUT_CHARS).decode("utf-8", "replace")[:OUTPUT_CHARS]
