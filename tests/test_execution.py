"""Model-written programs pass if they run to their end, and cannot reach anything outside."""

from __future__ import annotations

from pathlib import Path

import pytest

from nanochat.system.errors import ConfigError
from nanochat.tools import execution, sandbox


@pytest.fixture(scope="module", autouse=True)
def confinement() -> str:
    try:
        return execution.isolation()
    except ConfigError as error:
        pytest.skip(str(error))


def test_a_program_runs_with_the_standard_library_and_threads():
    program = """
import collections, decimal, hashlib, heapq, itertools, json, math, re, random, threading
thread = threading.Thread(target=print, args=(math.comb(10, 3),))
thread.start()
thread.join()
with open("notes.txt", "w") as file:
    file.write("kept")
print(open("notes.txt").read(), "é")
"""
    result = execution.run_python(program)
    assert result.ok, result.stderr
    assert result.stdout == "120\nkept é\n"
    assert (result.exit_code, result.timed_out, result.stderr) == (0, False, "")


@pytest.mark.parametrize(
    ("program", "error"),
    [
        ("assert 1 == 2, 'no'", "AssertionError: no"),
        ("def f(:", "SyntaxError"),
        ("import numpy", "ModuleNotFoundError"),
        ("import sys; sys.exit(0)", ""),
        ("import os; os._exit(0)", ""),
        ("import sys; sys.exit(3)", ""),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("def f(): f()\nf()", "RecursionError"),
        ("x = bytearray(2 << 30)", "MemoryError"),
    ],
)
def test_only_reaching_the_last_line_counts_as_passing(program, error):
    result = execution.run_python(program)
    assert not result.ok
    assert error in result.stderr


def test_an_endless_program_is_ended_at_the_limit():
    result = execution.run_python("print('started', flush=True)\nwhile True: pass", timeout_s=0.7)
    assert result.timed_out
    assert not result.ok
    assert result.stdout == "started\n"


def test_output_is_cut_and_cannot_fill_the_disk():
    result = execution.run_python("while True: print('x' * 10_000)", timeout_s=10)
    assert not result.ok
    assert "File too large" in result.stderr
    assert len(result.stdout) == execution.OUTPUT_CHARS


@pytest.mark.parametrize(
    "attempt",
    [
        "import socket; socket.socket()",
        "import socket; socket.create_connection(('127.0.0.1', 80))",
        "import subprocess; subprocess.run(['ls'])",
        "import os; os.system('ls') == 0 or (_ for _ in ()).throw(PermissionError())",
        "import os; os.fork()",
        "import os; os.execv('/bin/ls', ['ls'])",
        "import os; os.posix_spawn('/bin/ls', ['ls'], {})",
        "import os; os.kill(os.getppid(), 0)",
        "open('/etc/passwd').read()",
        "open('/proc/self/environ').read()",
        "open('/proc/1/environ').read()",
        "import os; os.listdir('/')",
        "import os; os.listdir(os.path.dirname(os.getcwd()))",
        "open('../escape', 'w')",
        "import os; os.symlink('/etc/passwd', 'link'); open('link').read()",
        "import os; os.link('/etc/passwd', 'link'); open('link').read()",
        "import os; os.mkfifo('fifo')",
        "import os; os.chmod('/tmp', 0o777)",
        "import os; os.chroot('.')",
        "import os; os.setuid(12345)",
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))",
        "import resource; resource.setrlimit(resource.RLIMIT_CPU, (10**6, 10**6))",
        "import ctypes; libc = ctypes.CDLL(None)\nif libc.ptrace(16, 1, 0, 0) != 0: raise OSError",
        "import multiprocessing; multiprocessing.Process(target=print).start()",
    ],
)
def test_the_outside_is_out_of_reach(attempt):
    result = execution.run_python(attempt)
    assert not result.ok
    assert "Error" in result.stderr
    assert "ModuleNotFoundError" not in result.stderr


def test_the_environment_is_not_passed_on(monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "hidden")
    result = execution.run_python("import os; print(sorted(os.environ), len(os.listdir('.')))")
    assert result.ok
    assert "SECRET" not in result.stdout
    assert result.stdout.endswith(" 0\n")


def test_nothing_is_left_behind(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    result = execution.run_python("import os\nos.makedirs('a/b')\nopen('a/b/c', 'w').write('x')")
    assert result.ok
    assert list(tmp_path.iterdir()) == []


def test_a_program_cannot_claim_to_have_finished():
    forged = 'import os\nfor fd in range(3, 20):\n  try: os.write(fd, b\'{"finished": "x"}\')\n'
    result = execution.run_python(forged + "  except OSError: pass\nos._exit(0)")
    assert not result.ok


def test_without_a_part_of_the_sandbox_nothing_runs(monkeypatch, tmp_path):
    marker = tmp_path / "ran"
    program = Path(sandbox.__file__).read_text(encoding="utf-8")
    broken = tmp_path / "sandbox.py"
    # system call 999999 stands for a kernel without Landlock
    broken.write_text(program.replace("= 444, 445, 446", "= 999999, 445, 446"), encoding="utf-8")
    monkeypatch.setattr(sandbox, "__file__", str(broken))
    with pytest.raises(ConfigError, match=r"cannot be confined here \(Landlock: "):
        execution.run_python(f"open({str(marker)!r}, 'w')")
    assert not marker.exists()


def test_an_unknown_platform_is_refused(monkeypatch):
    monkeypatch.setattr(sandbox.platform, "machine", lambda: "riscv64")
    request = {"limits": {}, "folder": "."}
    with pytest.raises(sandbox.Refused, match="no system call table for riscv64"):
        sandbox.enter(request)
    monkeypatch.setattr(execution.os, "name", "nt")
    with pytest.raises(ConfigError, match="cannot be confined on"):
        execution.run_python("pass")


def test_the_isolation_level_is_reported(confinement):
    assert "seccomp" in confinement
    assert "Landlock" in confinement
