"""Talk to a model in the terminal, or ask it one thing.

nanochat chat_cli --run pocket
nanochat chat_cli --run pocket -p "What is 12 * 7?"
cat question.txt | nanochat chat_cli --run pocket
"""

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace

from nanochat import checkpoint_manager
from nanochat.checkpoint_manager import SourceOptions
from nanochat.engine import Engine, Request
from nanochat.engine.sampling import SamplingOptions
from nanochat.system import config, distributed, storage
from nanochat.system.config import RunOptions, nested, option
from nanochat.system.errors import ConfigError, UserError
from nanochat.tokenizer.conversation import Message, Part, PartType, render_prompt

HELP = """\
/help              this list
/clear             begin a new conversation
/system [TEXT]     say how the assistant should be; without TEXT, forget it
/set [NAME VALUE]  temperature, top_k, top_p or max_new_tokens; alone, show them
/regen             answer the last message again
/quit              leave (Ctrl-D does too)
A line that ends in \\ goes on in the next. Ctrl-C stops an answer."""
# A model's control characters could move the cursor or change the terminal's settings.
CONTROL = {code: None for code in [*range(32), *range(127, 160)] if chr(code) not in "\n\t"}


@dataclass(frozen=True, kw_only=True)
class ChatCliConfig:
    """A chat in the terminal; with --prompt (or -p), or text on stdin, one answer and no more."""

    common: RunOptions = nested(RunOptions)
    source: SourceOptions = nested(SourceOptions)
    sampling: SamplingOptions = nested(SamplingOptions)
    prompt: str | None = option(None, "ask this, print the answer only, and leave")
    system: str | None = option(None, "how the assistant should be")
    max_new_tokens: int = option(512, "tokens after which an answer is cut off", least=1)


class Chat:
    """A conversation with an engine."""

    def __init__(self, engine: Engine, cfg: ChatCliConfig) -> None:
        self.engine = engine
        self.sampling = cfg.sampling
        self.max_new_tokens = cfg.max_new_tokens
        self.system = cfg.system
        self.messages: list[Message] = []
        self._seed = cfg.common.seed

    def ask(
        self, text: str, show: Callable[[PartType, str], None], stopped: Callable[[], bool]
    ) -> str:
        """Add a message and its answer to the conversation; return why the answer ended.

        show: gets the answer's pieces as they come. stopped: asked between them.
        """
        lead: list[Message] = [{"role": "system", "content": self.system}] if self.system else []
        messages = [*lead, *self.messages, Message(role="user", content=text)]
        reserved = min(self.max_new_tokens, self.engine.max_len // 4)
        prompt = render_prompt(messages, self.engine.tokenizer, self.engine.max_len - reserved)
        self._seed += 1  # so that /regen says something new, and a session repeats
        params = self.sampling.params(max_new_tokens=self.max_new_tokens, seed=self._seed)
        parts: list[Part] = []
        reason = "abort"
        with contextlib.closing(
            self.engine.stream(Request(prompt=prompt, params=params))
        ) as events:
            for event in events:
                if event.text:
                    show(event.kind, event.text)
                    if parts and parts[-1]["type"] == event.kind:
                        parts[-1]["text"] += event.text
                    else:
                        parts.append({"type": event.kind, "text": event.text})
                if event.completion is not None:
                    parts, reason = event.completion.parts, event.completion.finish_reason
                elif stopped():
                    break
        if any(part["text"] for part in parts):
            self.messages.append({"role": "user", "content": text})
            self.messages.append({"role": "assistant", "content": parts})
        return reason

    def take_back(self) -> str | None:
        """Remove the last question and its answer; return the question, None if there is none."""
        if not self.messages:
            return None
        question = self.messages[-2]["content"]
        del self.messages[-2:]
        assert isinstance(question, str)
        return question


def main(argv: list[str] | None = None) -> None:
    words = sys.argv[1:] if argv is None else argv
    words = ["--prompt" if word == "-p" else word for word in words]
    cfg = config.parse(ChatCliConfig, words, stage="chat_cli")
    path = checkpoint_manager.locate(cfg.source, cfg.common, chat=cfg.source.stage is None)
    question = cfg.prompt
    if question is None and not sys.stdin.isatty():
        question = sys.stdin.read().strip()
        if not question:
            raise ConfigError("stdin is empty; pipe a question in, or use --prompt")
    with distributed.session(cfg.common) as run:
        loaded = checkpoint_manager.load(path, run)
        chat = Chat(Engine(loaded.model, loaded.tokenizer, slots=1), cfg)
        if question is not None:
            one_answer(chat, question)
            return
        print(f"{checkpoint_manager.describe(loaded)} on {run.device}. /help lists the commands.")
        talk(chat)


def one_answer(chat: Chat, question: str) -> None:
    """Print what the assistant says and nothing else."""

    def show(kind: PartType, text: str) -> None:
        if kind == "text":
            print(text, end="", flush=True)

    chat.ask(question, show, lambda: False)
    print()


def talk(chat: Chat) -> None:
    """Read messages and commands until the end."""
    with history():
        while True:
            try:
                text = read_message().strip()
            except KeyboardInterrupt:
                print("  (/quit or Ctrl-D leaves)")
                continue
            except EOFError:
                print()
                return
            if text in ("/quit", "/exit"):
                return
            try:
                question = command(chat, text) if text.startswith("/") else text
                if question:
                    answer(chat, question)
            except UserError as error:
                print(f"error: {error}")


def answer(chat: Chat, question: str) -> None:
    """Print an answer as it comes; Ctrl-C ends it and keeps what was said."""
    before: list[PartType] = ["text"]
    marks = {("text", "python"): "[", ("python", "python_output"): " = "}

    def show(kind: PartType, text: str) -> None:
        if kind != before[-1]:
            print(marks.get((before[-1], kind), "] "), end="")
            before.append(kind)
        print(text.translate(CONTROL), end="", flush=True)

    with interrupts() as stopped:
        reason = chat.ask(question, show, stopped)
    if before[-1] != "text":
        print("]", end="")
    notes = {"abort": " [stopped]", "length": " [cut off at the limit of tokens]"}
    print(notes.get(reason, ""))


def command(chat: Chat, text: str) -> str | None:
    """Do what a /command says; return a question to ask, if it comes to that."""
    name, _, rest = text.partition(" ")
    if name == "/help":
        print(HELP)
    elif name == "/clear":
        chat.messages.clear()
        print("(a new conversation)")
    elif name == "/system":
        chat.system = rest.strip() or None
        print(f"(system: {chat.system or 'none'})")
    elif name == "/set":
        change(chat, rest.split())
    elif name == "/regen":
        question = chat.take_back()
        if question is None:
            print("(there is nothing to answer again)")
        return question
    else:
        print(f"{name} is no command; /help lists them")
    return None


def change(chat: Chat, words: Sequence[str]) -> None:
    """Show the sampling settings, or set one.

    Raises: ConfigError for a name or a value that cannot be.
    """
    shown = {**asdict(chat.sampling), "max_new_tokens": chat.max_new_tokens}
    if len(words) == 2:
        name = words[0].replace("-", "_")
        if name not in shown:
            raise ConfigError(f"{name!r} is no setting; there are {', '.join(shown)}")
        shown[name] = config.convert(config.flat_fields(ChatCliConfig)[name], words[1])
        if name == "max_new_tokens":
            chat.max_new_tokens = shown[name]
        else:
            chat.sampling = replace(chat.sampling, **{name: shown[name]})
    elif words:
        raise ConfigError("use /set NAME VALUE, such as /set temperature 0.5")
    print("  ".join(f"{name} {str(value).lower()}" for name, value in shown.items()))


def read_message() -> str:
    """One message; lines that end in a backslash go on."""
    lines = [input("> ")]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        lines.append(input("  "))
    return "\n".join(lines)


@contextlib.contextmanager
def history() -> Iterator[None]:
    """Line editing with a history that lasts, where the platform has readline."""
    try:
        import readline
    except ImportError:
        yield
        return
    path = storage.base_dir() / "chat_history"
    with contextlib.suppress(OSError):
        readline.read_history_file(path)
    readline.set_history_length(1000)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            readline.write_history_file(path)


@contextlib.contextmanager
def interrupts() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C into an answer of True; a second one interrupts as usual."""
    pressed: list[int] = []

    def press(number: int, frame: object) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    before = signal.signal(signal.SIGINT, press)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)


if __name__ == "__main__":
    config.cli(main)
