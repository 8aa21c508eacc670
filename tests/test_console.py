"""Whatever the standard streams are, the work goes on and the exit status is right."""

import codecs
import errno
import io
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nanochat.system import console
from nanochat.system.errors import ConfigError
from nanochat.system.signals import asked_to_stop

ROOT = Path(__file__).parent.parent
LOST = "warning: the console takes no output (%s); the work goes on without it"
# Importing only these takes no torch.
TRAINING = """
import sys
from nanochat.system import config, console
def main():
    for step in range(3):
        console.log_line(f"step {step} 天 \\udce9")
    with open(sys.argv[1], "w") as file:
        file.write(str(file.fileno() > 2))
config.cli(main)
"""
PRINTING = "from nanochat.system import config; config.cli(lambda: print('天' * 9999, '\\udce9'))"


@pytest.fixture(autouse=True)
def _not_yet_reported():
    console._report_loss.cache_clear()


class Broken(io.StringIO):
    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def flush(self) -> None:
        raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EPIPE, errno.EAGAIN])
def test_a_console_that_cannot_be_written_costs_lines_and_one_warning(monkeypatch, caplog, number):
    monkeypatch.setattr(sys, "stdout", Broken(number))
    console.log_line("one")
    console.log_line("two")
    reason = f"[Errno {number}] {os.strerror(number)}"
    assert [record.getMessage() for record in caplog.records] == [LOST % reason]


def test_of_other_libraries_only_warnings_are_shown():
    """The hub's client logs each of its requests, hundreds for a data set."""
    script = """
import logging
from nanochat.system.console import show_log
show_log()
logging.getLogger("httpx").info("HTTP Request: GET")
logging.getLogger("httpx").warning("slow down")
logging.getLogger("nanochat.data").info("encoding")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stderr.splitlines() == ["slow down", "encoding"]


def test_a_missing_or_closed_console_costs_the_line(monkeypatch):
    closed = io.StringIO()
    closed.close()
    for stream in (None, closed):
        monkeypatch.setattr(sys, "stdout", stream)
        console.log_line("one")


def test_a_stream_that_cannot_be_configured_gets_escaped_characters(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", codecs.getwriter("ascii")(raw))
    console.open_streams()
    console.log_line("天 é 🙂")
    assert raw.getvalue() == b"\\u5929 \\xe9 \\U0001f642\n"


def test_after_the_reader_left_nothing_is_held_back_for_the_exit(monkeypatch):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        console.log_line("one")
        stream.write("two")
        stream.flush()  # goes to the null device


def test_lines_are_shown_again_once_the_console_takes_them(monkeypatch):
    read, write = os.pipe()
    os.set_blocking(write, False)
    filled = 0
    with os.fdopen(write, "w") as stream, os.fdopen(read, "rb", buffering=0) as reader:
        while True:
            try:
                filled += os.write(write, b"x" * 4096)
            except BlockingIOError:
                break
        monkeypatch.setattr(sys, "stdout", stream)
        console.log_line("lost")
        while filled:
            filled -= len(reader.read(filled))
        console.log_line("shown")
        assert reader.read(100) == b"shown\n"


def shell(command: str, code: str, *args: str, **environment: str) -> tuple[int, str]:
    """Status and stderr of a Python program started by a shell command that holds $PROGRAM."""
    env = {**os.environ, "PYTHON": sys.executable, "CODE": code, "PYTHONPATH": str(ROOT)}
    command = command.replace("$PROGRAM", '"$PYTHON" -c "$CODE" "$@"')
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}", "bash", *args],
        env={**env, **environment},
        capture_output=True,
        check=False,
    )
    return done.returncode, done.stderr.decode()


@pytest.mark.parametrize(
    ("streams", "warning"),
    [
        ("$PROGRAM <&- >&- 2>&-", ""),
        ("$PROGRAM >/dev/full", f"{LOST % '[Errno 28] No space left on device'}\n"),
        ("$PROGRAM >/dev/full 2>&1", ""),
        ("$PROGRAM 2>/dev/full", ""),
        ("$PROGRAM | true", None),
        ("$PROGRAM 2>&1 | true", None),
    ],
)
def test_training_goes_on_to_its_end_whatever_the_streams_are(tmp_path, streams, warning):
    if "full" in streams and not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    status, err = shell(streams, TRAINING, str(tmp_path / "file"), PYTHONIOENCODING="ascii")
    assert status == 0, err
    assert (tmp_path / "file").read_text() == "True"  # no file gets a standard stream's number
    assert warning is None or err == warning


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals")
def test_training_goes_on_when_its_terminal_is_closed(tmp_path):
    master, terminal = os.openpty()
    code = TRAINING.replace("def main():", "def main():\n    sys.stdin.readline()")
    code = code.replace("    with open", "    sys.stderr.write('a library')\n    with open")
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "file")],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=terminal,
        stderr=terminal,
    )
    os.close(terminal)
    os.close(master)
    process.communicate(b"go\n")
    assert process.returncode == 0
    assert (tmp_path / "file").exists()


def test_a_printing_command_ends_quietly_when_its_reader_leaves():
    assert shell("$PROGRAM | true", PRINTING) == (141, "")
    status, err = shell("$PROGRAM | cat >/dev/null", PRINTING, PYTHONIOENCODING="cp1252")
    assert (status, err) == (0, "")


def test_help_can_be_cut_off():
    code = "from nanochat.system import config; config.cli(lambda: config.parse("
    code += "config.RunOptions, ['--help'], stage='x'))"
    assert shell("$PROGRAM | true", code) == (0, "")


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no SIGHUP")
def test_closing_the_terminal_asks_training_to_stop_unless_nohup_does(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)  # it cannot be told
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
    try:
        with asked_to_stop(announce=True) as asked:
            os.kill(os.getpid(), signal.SIGHUP)
            assert asked()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with asked_to_stop(announce=True) as asked:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not asked()
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("data", "encoding", "text"),
    [
        ("café 天".encode(), "ascii", "café 天"),
        ("café\r\n".encode(), "cp1252", "café\n"),
        (b"\xef\xbb\xbfhello", "utf-8", "hello"),
        ("café".encode("cp1252"), "cp1252", "café"),
        (b"", "utf-8", ""),
    ],
)
def test_stdin_is_utf_8_or_what_the_console_says(monkeypatch, data, encoding, text):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding))
    assert console.read_stdin() == text


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_stdin_that_is_no_text_is_a_users_mistake(monkeypatch, encoding):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9 \x00\xff"), encoding))
    with pytest.raises(ConfigError, match="stdin is not UTF-8 text; convert it"):
        console.read_stdin()


def test_stdin_that_cannot_be_read_is_a_users_mistake(monkeypatch):
    class Dead(io.StringIO):
        def read(self, size=-1) -> str:
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(sys, "stdin", Dead())
    with pytest.raises(ConfigError, match="stdin cannot be read: Input/output error"):
        console.read_stdin()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_control_characters_do_not_reach_the_terminal(monkeypatch):
    text, shown = "天\t\x1b[31m\x9b\r\n", "天\t\\x1b[31m\\x9b\\r\n"
    for stream, expected in ((Terminal(), shown), (io.StringIO(), text)):
        monkeypatch.setattr(sys, "stdout", stream)
        assert console.for_output(text) == expected
        console.log_line(text)
        assert stream.getvalue() == shown + "\n"
    record = logging.LogRecord("n", logging.INFO, "p", 1, "%s", (text,), None)
    assert console._Visible().format(record) == shown


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_an_output_without_room_is_named():
    code = "from nanochat.system import config; config.cli(lambda: print(1))"
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, check=False, cwd=ROOT
        )
    assert done.returncode == 2
    assert b", or the output;" in done.stderr
