"""What a terminal shows: colors, the spinner, line editing; in a pseudo-terminal."""

from __future__ import annotations

import contextlib
import io
import os
import re
import select
import signal
import stat
import struct
import sys
import time
import traceback
from collections.abc import Callable, Iterator

import pytest
import torch

from nanochat.engine.sampling import SamplingOptions
from nanochat.stages.chat_cli import chat_loop
from nanochat.stages.chat_commands import Session
from nanochat.stages.chat_session import AnswerOptions, Chat
from nanochat.system import terminal
from tests.engine_helpers import scripted_engine

pty, fcntl, termios = (pytest.importorskip(name) for name in ("pty", "fcntl", "termios"))
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
GIVE_UP_S = 30.0
PROMPT_END = ">\x1b[0m "
needs_fork = pytest.mark.skipif(
    sys.platform != "linux", reason="elsewhere a process that has used torch cannot fork"
)


class Typist:
    """The other side of a pseudo-terminal in which a function runs in a process of its own."""

    def __init__(self, run: Callable[[], None]) -> None:
        self.process, self.handle = pty.fork()
        if self.process == 0:
            _run_in_terminal(run)
        fcntl.ioctl(self.handle, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
        self.seen = ""

    def read_until(self, text: str) -> str:
        """What appears up to and including a text, since the last call."""
        give_up_s = time.monotonic() + GIVE_UP_S
        while text not in self.seen:
            assert time.monotonic() < give_up_s, f"{text!r} is not in {self.seen!r}"
            if select.select([self.handle], [], [], 0.1)[0]:
                self.seen += os.read(self.handle, 65536).decode()
        found, self.seen = self.seen.split(text, 1)
        return found + text

    def type(self, keys: str) -> None:
        """Type keys."""
        os.write(self.handle, keys.encode())

    def answer_prompt(self, keys: str) -> None:
        """Type keys at the next prompt; before it, they would not be line editing's yet."""
        self.read_until(PROMPT_END)
        self.type(keys)

    def end(self) -> int:
        """The exit status of the process, which is about to end."""
        give_up_s = time.monotonic() + GIVE_UP_S
        while True:
            process, status = os.waitpid(self.process, os.WNOHANG)
            if process:
                return os.waitstatus_to_exitcode(status)
            assert time.monotonic() < give_up_s, "the process goes on"
            if select.select([self.handle], [], [], 0.05)[0]:
                with contextlib.suppress(OSError):  # it has closed the terminal
                    os.read(self.handle, 65536)


def _run_in_terminal(run: Callable[[], None]) -> None:
    """In the new process: use the terminal instead of pytest's streams, and never return."""
    code = 1
    try:
        torch.set_num_threads(1)  # another process's threads are not there
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stderr = sys.stdout
        run()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


@pytest.fixture
def start(monkeypatch, tmp_path) -> Iterator[Callable[..., Typist]]:
    """Starts a chat with a scripted engine in a terminal."""
    if "libedit" in (pytest.importorskip("readline").__doc__ or ""):
        pytest.skip("libedit shows nothing in a fork of a process that has imported it")
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("NO_COLOR", "EDITOR", "VISUAL", "INPUTRC"):
        monkeypatch.delenv(name, raising=False)
    started: list[Typist] = []

    def start(**options: float) -> Typist:
        answers = {"hi": "Hello!", "loop": "abc" * 60, "two\nlines": "I see.", "hi, bye": "Oh."}

        def run() -> None:
            engine = scripted_engine(answers, **options)
            chat = Chat(engine, SamplingOptions(), AnswerOptions())
            chat_loop(Session(chat, "demo", lambda path: (engine, "demo")))

        started.append(Typist(run))
        return started[-1]

    yield start
    for typist in started:
        os.close(typist.handle)
        try:
            os.kill(typist.process, signal.SIGKILL)
            os.waitpid(typist.process, 0)
        except (ProcessLookupError, ChildProcessError):
            pass  # it has ended


@needs_fork
def test_a_chat_in_a_terminal_has_line_editing_history_and_bold_prompts(start, tmp_path):
    typist = start()
    assert typist.read_until(PROMPT_END).endswith("\x1b[1m>\x1b[0m ")
    typist.type("hi\r")
    typist.read_until("Hello!")
    typist.answer_prompt("\x1b[A\r")  # arrow up: the last line again
    typist.read_until("Hello!")
    typist.answer_prompt("/tok\t\r")
    typist.read_until("tokens: what the model read and wrote")
    typist.answer_prompt("\x1b[200~two\nlines\x1b[201~\r")  # a paste, as terminals mark it
    typist.read_until("I see.")
    typist.answer_prompt("/edit 1\r")
    typist.read_until("edit")
    typist.answer_prompt(", bye\r")  # after the message, which is there already
    typist.read_until("Oh.")
    typist.answer_prompt("/what\r")
    typist.read_until("\x1b[31merror: unknown command /what;")
    typist.answer_prompt("\x04")
    assert typist.end() == 0
    history = tmp_path / "chat_history"
    assert "/tokens\n" in history.read_text()
    assert stat.S_IMODE(history.stat().st_mode) == 0o600


@needs_fork
def test_a_spinner_turns_until_the_first_token_and_ctrl_c_ends_the_answer(start, monkeypatch):
    monkeypatch.setattr(terminal, "SPINNER_DELAY_S", 0.0)
    typist = start(delay_s=0.2)
    typist.answer_prompt("loop\r")
    assert re.search("\r⠋(\r.)*\r\x1b\\[Ka$", typist.read_until("a"))
    typist.read_until("bc")
    typist.type("\x03")
    typist.read_until("[stopped]")
    typist.answer_prompt("/quit\r")
    assert typist.end() == 0


class Screen(io.StringIO):
    """A terminal that records what is written to it."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def test_the_spinner_is_erased_when_the_wait_ends_and_a_short_wait_shows_none(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    screen = Screen()
    with terminal.spinner(screen) as end:
        end()
    assert screen.getvalue() == ""
    monkeypatch.setattr(terminal, "SPINNER_DELAY_S", 0.0)
    with terminal.spinner(screen):
        while "⠙" not in screen.getvalue():
            time.sleep(0.01)
    assert re.fullmatch("\r⠋\r⠙(\r.)*\r\x1b\\[K", screen.getvalue())
    screen = Screen()
    screen.encoding = "latin-1"
    with terminal.spinner(screen):
        while "/" not in screen.getvalue():
            time.sleep(0.01)
    assert screen.getvalue().startswith("\r|\r/")


@pytest.mark.parametrize(
    ("stream", "variables", "colored"),
    [
        (Screen, {}, True),
        (Screen, {"NO_COLOR": "1"}, False),
        (Screen, {"NO_COLOR": ""}, True),  # as https://no-color.org has it
        (Screen, {"TERM": "dumb"}, False),
        (io.StringIO, {}, False),
    ],
)
def test_colors_are_for_terminals_whose_users_want_them(monkeypatch, stream, variables, colored):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert terminal.has_colors(stream()) == colored
    shown = terminal.styled("x", terminal.RED, stream())
    assert shown == ("\x1b[31mx\x1b[0m" if colored else "x")


def test_a_closed_stream_has_no_colors():
    screen = io.StringIO()
    screen.close()
    assert not terminal.has_colors(screen)
