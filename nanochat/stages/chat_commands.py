"""What a line in the terminal's chat does: an answer or a /command. Part of chat_cli.

Owns: what each command does and prints, and their completion by Tab. Does not own: the conversation
(chat_session), what an answer looks like (chat_view) and reading lines (chat_cli).
"""

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nanochat import checkpoint_manager
from nanochat.engine import Engine, Event
from nanochat.stages import chat_view
from nanochat.stages.chat_session import SETTINGS, Answer, Chat
from nanochat.system import config, console, storage, terminal
from nanochat.system.errors import ConfigError, UserError, explain
from nanochat.system.terminal import BOLD, DIM, RED

SHORT_STAGES = {"base": "base_train", "mid": "mid_train", "sft": "chat_sft", "rl": "chat_rl"}
HELP_END = """\
A line that ends in \\ goes on in the next; \"\"\" begins and ends a message of several lines.
Ctrl-C stops an answer. Tab completes commands. A space before a / makes it part of a message."""


@dataclass
class Session:
    """A chat in the terminal.

    run: the run whose stages /model can name. open_model: loads a checkpoint; returns its engine
    and its name. written: files that /save may replace.
    """

    chat: Chat
    run: str
    open_model: Callable[[Path], tuple[Engine, str]]
    stats: bool = False
    written: set[Path] = field(default_factory=set)
    told_left_out: bool = False


def run_line(session: Session, text: str) -> None:
    """Run a /command or answer a message; a mistake is printed in a line."""
    try:
        if text.startswith("/"):
            name, _, rest = text.strip().partition(" ")
            name = "/retry" if name == "/regen" else name  # its former name
            if name not in COMMANDS:
                raise ConfigError(f"unknown command {name}; /help lists the commands")
            COMMANDS[name][2](session, rest.strip())
        elif message := text.strip():
            reply(session, lambda show, stopped: session.chat.ask(message, show, stopped))
    except KeyboardInterrupt:  # of a command; an answer has a handler of its own
        print()
        say("interrupted")
    except (UserError, OSError) as error:
        found = explain(error, base=str(storage.base_dir()))
        print_error(str(error) if found is None else found)


def print_error(line: str) -> None:
    """Print what is wrong with a line that was typed."""
    print(terminal.styled(f"error: {console.visible(line)}", RED, sys.stdout))


def say(line: str) -> None:
    """Print what a command did."""
    print(terminal.styled(f"({console.visible(line)})", DIM, sys.stdout))


def reply(
    session: Session, make: Callable[[Callable[[Event], None], Callable[[], bool]], Answer]
) -> None:
    """Print an answer as it arrives; Ctrl-C ends it and keeps the text so far.

    make: makes the answer; given what shows its events and what tells whether to stop.
    """
    chat = session.chat
    with interruptible() as stopped, terminal.spinner(sys.stdout) as began:
        view = chat_view.AnswerView(began, surprise=chat.logprobs)
        answer = make(view.show, stopped)
        view.end(answer.completion)
    chat_view.report(answer, chat.engine, sys.stdout, stats=session.stats, logprobs=chat.logprobs)
    if answer.left_out and not session.told_left_out:
        say(f"{chat_view.left_out(chat.engine)}; /clear starts a new conversation")
    session.told_left_out = answer.left_out


@contextlib.contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether Ctrl-C was pressed; a second one ends the program."""
    signals: list[int] = []

    def handle(number: int, frame: object) -> None:
        if signals:  # in the middle of a step, after which the engine could not go on
            raise SystemExit(128 + number)
        signals.append(number)

    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield lambda: bool(signals)
    finally:
        signal.signal(signal.SIGINT, previous)


def _help(session: Session, rest: str) -> None:
    for name, (arguments, purpose, _) in COMMANDS.items():
        print(f"{name} {arguments:<{18 - len(name)}} {purpose}")
    print(HELP_END)


def _clear(session: Session, rest: str) -> None:
    session.chat.change("/clear", [], session.chat.system)
    say("new conversation")


def _show(session: Session, rest: str) -> None:
    number = 0
    if session.chat.system:
        say(f"system: {session.chat.system}")
    for message in session.chat.messages:
        view = chat_view.AnswerView(lambda: None)
        content = message["content"]
        if isinstance(content, str):
            number += 1
            print(terminal.styled(f"{number}> ", BOLD, sys.stdout) + console.visible(content))
            continue
        for part in content:
            view.show(Event(0, part["type"], part["text"]))
        view.end()


def _undo(session: Session, rest: str) -> None:
    what = session.chat.undo()
    count = sum(message["role"] == "user" for message in session.chat.messages)
    say(f"undone: {what}; messages of yours now: {count}")


def _retry(session: Session, rest: str) -> None:
    reply(session, session.chat.retry)


def _continue(session: Session, rest: str) -> None:
    reply(session, session.chat.go_on)


def _edit(session: Session, rest: str) -> None:
    if rest and not rest.isdecimal():
        raise ConfigError(f"use /edit NUMBER, as /show numbers your messages; got {rest!r}")
    number = int(rest) if rest else None
    before = session.chat.question(number)
    try:
        text = terminal.edit(before, terminal.prompt("edit> ")).strip()
    except EOFError:
        print()
        text = ""
    if not text or text == before:
        say("not changed")
        return
    reply(session, lambda show, stopped: session.chat.edit(number, text, show, stopped))


def _save(session: Session, rest: str) -> None:
    path = _path(rest, "/save")
    if not session.chat.messages:
        raise ConfigError("there is nothing to save yet")
    if path.exists() and path not in session.written:
        raise ConfigError(f"{path} exists; choose another name, or remove it")
    session.chat.save(path)
    session.written.add(path)
    say(f"saved as {path}; /load reads it")


def _load(session: Session, rest: str) -> None:
    path = _path(rest, "/load")
    session.chat.load(path)
    session.written.add(path)
    _show(session, "")
    _print_settings(session)
    if session.chat.messages[-1]["role"] == "user":
        say("the last message has no answer; /retry answers it")


def _path(text: str, command: str) -> Path:
    if not text:
        raise ConfigError(f"use {command} FILE, such as {command} chat.json")
    try:
        return Path(text).expanduser().resolve()
    except (RuntimeError, ValueError) as error:  # an unknown ~user; a zero byte
        raise ConfigError(f"{text!r} is not the name of a file: {error}") from None


def _system(session: Session, rest: str) -> None:
    if rest:
        session.chat.change("/system", session.chat.messages, None if rest == "none" else rest)
    say(f"system: {session.chat.system or 'none'}")


def _model(session: Session, rest: str) -> None:
    if not rest:
        for path in _checkpoints():
            name = f"{path.parent.parent.name}/{path.parent.name}"
            mark = "*" if session.chat.model.startswith(f"{name} ") else " "
            print(f"{mark} {name} step {checkpoint_manager.step_of(path)}")
        return
    # As in the server's names of models, the stage may be short: pocket:sft
    run, _, stage = rest.replace(":", "/").partition("/")
    if not stage and SHORT_STAGES.get(run, run) in checkpoint_manager.MODEL_STAGES:
        run, stage = session.run, run
    stage = SHORT_STAGES.get(stage, stage)
    if stage and stage not in checkpoint_manager.MODEL_STAGES:
        raise ConfigError(f"{stage!r} is no stage; use one of {', '.join(SHORT_STAGES)}")
    config.check_name("/model", run)
    path = checkpoint_manager.find(run, (stage,) if stage else checkpoint_manager.MODEL_STAGES)
    session.chat.engine, session.chat.model = session.open_model(path)
    session.run = run
    say(f"model: {session.chat.model}; the conversation stays, /clear starts a new one")


def _checkpoints() -> list[Path]:
    """The newest checkpoint of every stage of every run."""
    runs = sorted(path.name for path in (storage.base_dir() / "runs").glob("[!.]*"))
    found = [
        checkpoint_manager.latest(storage.stage_dir(run, stage))
        for run in runs
        for stage in SHORT_STAGES.values()
    ]
    return [path for path in found if path is not None]


def _set(session: Session, rest: str) -> None:
    words = rest.split()
    if len(words) == 2:
        session.chat.set(*words)
    elif words:
        raise ConfigError("use /set NAME VALUE, such as /set temperature 0.5")
    _print_settings(session)


def _print_settings(session: Session) -> None:
    settings = session.chat.settings.items()
    say("  ".join(f"{name} {str(value).lower()}" for name, value in settings))


def _tokens(session: Session, rest: str) -> None:
    if not session.chat.tokens:
        raise ConfigError("there are no tokens to show; ask something first")
    from nanochat.stages import tok_show  # only here: it imports a second library of tokenizers

    tok_show.show(tok_show.own_tokens(session.chat.tokens, session.chat.engine.tokenizer))
    say(f"{len(session.chat.tokens):,} tokens: what the model read and wrote for the last answer")


def _stats(session: Session, rest: str) -> None:
    session.stats = _switched("/stats", session.stats, rest)


def _logprobs(session: Session, rest: str) -> None:
    session.chat.logprobs = _switched("/logprobs", session.chat.logprobs, rest)
    if session.chat.logprobs and terminal.has_colors(sys.stdout):
        print(chat_view.legend())


def _switched(command: str, before: bool, word: str) -> bool:
    """What a switch is after a command, which may leave out the word."""
    if word not in ("", "on", "off"):
        raise ConfigError(f"use {command} on or {command} off, got {word!r}")
    after = not before if not word else word == "on"
    say(f"{command[1:]} {'on' if after else 'off'}")
    return after


# name -> arguments, what it does, and the function that does it, given the rest of the line
COMMANDS: dict[str, tuple[str, str, Callable[[Session, str], None]]] = {
    "/help": ("", "show this list", _help),
    "/retry": ("", "answer the last message again (also /regen)", _retry),
    "/continue": ("", "go on with an answer that was cut off or stopped", _continue),
    "/edit": ("[N]", "change your message N, or the last one; drops what came after", _edit),
    "/undo": ("", "take back the last answer, /edit, /retry, /clear, /load or /system", _undo),
    "/show": ("", "print the conversation, with the numbers of your messages", _show),
    "/clear": ("", "start a new conversation", _clear),
    "/save": ("FILE", "write the conversation and the settings as JSON", _save),
    "/load": ("FILE", "read such a file, or any with OpenAI's messages", _load),
    "/system": ("[TEXT]", "set the system prompt, or show it; none removes it", _system),
    "/model": ("[NAME]", "use another model: pocket:sft, base, a run; without NAME, list", _model),
    "/set": ("[NAME VALUE]", "change a setting such as temperature; alone, show all", _set),
    "/tokens": ("", "show the tokens that the model read and wrote", _tokens),
    "/stats": ("[on|off]", "show speed and number of tokens after each answer", _stats),
    "/logprobs": ("[on|off]", "color tokens by how much they surprised the model", _logprobs),
    "/quit": ("", "quit (or Ctrl-D)", lambda session, rest: None),
}


def complete(before: str, word: str) -> Sequence[str]:
    """What a word can become, given the line before it; for Tab."""
    command = before.strip()
    if not command:
        found = [f"{name} " if COMMANDS[name][0] else name for name in COMMANDS]
    elif command in ("/stats", "/logprobs"):
        found = ["on", "off"]
    elif command == "/set":
        found = [f"{name} " for name in SETTINGS]
    elif command == "/model":
        found = [f"{p.parent.parent.name}/{p.parent.name}" for p in _checkpoints()]
    elif command in ("/save", "/load"):
        folder, _, start = word.rpartition("/")
        place = Path(folder + "/" if folder or word.startswith("/") else ".").expanduser()
        prefix = word[: len(word) - len(start)]
        with contextlib.suppress(OSError):
            return sorted(
                prefix + p.name + ("/" if p.is_dir() else "")
                for p in place.iterdir()
                if p.name.startswith(start)
            )
        return []
    else:
        return []
    return [name for name in found if name.startswith(word)]
