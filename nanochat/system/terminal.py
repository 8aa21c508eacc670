"""What a terminal can do beyond lines of text: colors, a spinner, line editing, an editor.

Each does nothing, or its plain form, where the output or the input is no terminal. Does not own:
streams that fail (console), and what is printed.
"""

import contextlib
import os
import select
import shlex
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

from nanochat.system.errors import ConfigError

SPINNER_DELAY_S = 0.3  # a shorter wait needs no spinner, which would only flicker
SPINNER_FRAME_S = 0.1
FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"  # or, where the encoding has no such characters, those below
PLAIN_FRAMES = "|/-\\"
HISTORY_LINES = 1000
BOLD, DIM, RED, CYAN = "1", "2", "31", "36"


def has_cursor(stream: TextIO) -> bool:
    """Whether a stream is a terminal that can move its cursor and erase."""
    try:
        if not stream.isatty() or os.environ.get("TERM", "") == "dumb":
            return False
    except ValueError:  # it is closed
        return False
    return os.name != "nt" or "WT_SESSION" in os.environ  # the old Windows console needs a switch


def has_colors(stream: TextIO) -> bool:
    """Whether to write colors to a stream: on a terminal, unless $NO_COLOR is set."""
    return has_cursor(stream) and not os.environ.get("NO_COLOR")


def styled(text: str, style: str, stream: TextIO) -> str:
    """A text in a style, such as BOLD or "38;5;208"; as it is where there are no colors."""
    return f"\x1b[{style}m{text}\x1b[0m" if text and has_colors(stream) else text


@contextlib.contextmanager
def spinner(stream: TextIO) -> Iterator[Callable[[], None]]:
    """Show that something is being waited for, until the yielded function is called."""
    if not has_cursor(stream):
        yield lambda: None
        return
    ended = threading.Event()

    def spin() -> None:
        frames = FRAMES if "utf" in (stream.encoding or "").lower() else PLAIN_FRAMES
        number, delay_s = 0, SPINNER_DELAY_S
        with contextlib.suppress(OSError, ValueError):  # the terminal is gone
            while not ended.wait(delay_s):
                stream.write(f"\r{frames[number % len(frames)]}")
                stream.flush()
                number, delay_s = number + 1, SPINNER_FRAME_S
            if number:
                stream.write("\r\x1b[K")
                stream.flush()

    thread = threading.Thread(target=spin, name="spinner", daemon=True)
    thread.start()

    def end() -> None:
        ended.set()
        thread.join()

    try:
        yield end
    finally:
        end()


def prompt(text: str) -> str:
    """A bold prompt for `input`; readline must know which characters take no room."""
    if not has_colors(sys.stdout) or "readline" not in sys.modules:
        return text
    # libedit drops what takes no room at the very end: the last character is not bold.
    return f"\001\x1b[{BOLD}m\002{text[:-1]}\001\x1b[0m\002{text[-1:]}"


@contextlib.contextmanager
def line_editing(history: Path, complete: Callable[[str, str], Sequence[str]]) -> Iterator[None]:
    """Line editing with completion by Tab and a history on disk, if the platform has readline.

    complete: the words that the line before the word, and the word so far, can go on with.
    """
    try:
        import readline
    except ImportError:
        yield
        return

    def matches(word: str, number: int) -> str | None:
        before = readline.get_line_buffer()[: readline.get_begidx()]
        found = complete(before, word)
        return found[number] if number < len(found) else None

    readline.set_completer(matches)
    readline.set_completer_delims(" \t\n")
    if _is_libedit():
        readline.parse_and_bind("bind ^I rl_complete")
    else:
        readline.parse_and_bind("tab: complete")
        readline.parse_and_bind("set enable-bracketed-paste on")  # a paste stays one message
    with contextlib.suppress(OSError):
        readline.read_history_file(history)
    readline.set_history_length(HISTORY_LINES)
    try:
        yield
    finally:
        readline.set_completer(None)
        with contextlib.suppress(OSError):
            readline.write_history_file(history)


def _is_libedit() -> bool:
    """Whether readline is libedit's imitation of it, as in uv's builds of Python and on macOS."""
    return "libedit" in (getattr(sys.modules.get("readline"), "__doc__", None) or "")


def rest_of_paste() -> list[str]:
    """The lines that follow a line at once, because they were pasted with it.

    readline itself takes a paste as one line, with line ends inside.
    """
    lines: list[str] = []
    while _is_libedit() and sys.stdin.isatty() and select.select([sys.stdin], [], [], 0)[0]:
        lines.append(input())
    return lines


def edit(text: str, prompt_text: str) -> str:
    """A text as the user changes it: in $VISUAL or $EDITOR, else in the line itself.

    libedit cannot begin with a text in the line: there it is the last line of the history.

    Raises: ConfigError if the editor cannot be started or fails.
    """
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR")
    if editor:
        return _edit_in(editor, text)
    if "readline" not in sys.modules:  # nothing can be typed into the line for the user
        return input(prompt_text)
    import readline

    if _is_libedit():
        readline.add_history(text)
        return input(f"(arrow up for the message) {prompt_text}")
    readline.set_startup_hook(lambda: readline.insert_text(text))
    try:
        return input(prompt_text)
    finally:
        readline.set_startup_hook()


def _edit_in(editor: str, text: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "message.txt"
        path.write_text(text, encoding="utf-8")
        try:
            subprocess.run([*shlex.split(editor), str(path)], check=True)
            return path.read_text(encoding="utf-8")
        except (OSError, ValueError, subprocess.CalledProcessError) as error:
            raise ConfigError(
                f"the editor {editor!r} failed ({error}); set EDITOR to another one"
            ) from None
