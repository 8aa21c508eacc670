"""Chat with a model in the terminal, or ask it a single question.

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
from nanochat.system import config, console, distributed, storage
from nanochat.system.config import RunOptions, nested, option
from nanochat.system.errors import ConfigError, UserError
from nanochat.tokenizer.conversation import Message, Part, PartType, render_prompt

HELP = """\
/help              show this list
/clear             start a new conversation
/system [TEXT]     set the system prompt; without TEXT, remove it
/set [NAME VALUE]  set temperature, top_k, top_p or max_new_tokens; without NAME, show them
/regen             answer the last message again
/quit              quit (or Ctrl-D)
A line that ends in \\ continues on the next. Ctrl-C stops an answer."""


@dataclass(frozen=True, kw_only=True)
class ChatCliConfig:
    """Chat in the terminal; with --prompt (or -p) or text on stdin, print one answer and exit."""

    common: RunOptions = nested(RunOptions)
    source: SourceOptions = nested(SourceOptions)
    sampling: SamplingOptions = nested(SamplingOptions)
    prompt: str | None = option(None, "print the answer to this and exit; none: chat")
    system: str | None = option(None, "system prompt; none: no system prompt")
    max_new_tokens: int = option(512, "limit of tokens per answer", least=1)


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
        """Add a message and its answer to the conversation; return the finish reason.

        show: called with each piece of the answer as it arrives. stopped: checked between pieces;
        True ends the answer.
        """
        # A model has no memory: every turn renders the full conversation again as one prompt, which
        # drops the oldest turns when it would leave no room for the answer.
        messages = [*self.messages, Message(role="user", content=text)]
        if self.system:
            messages.insert(0, Message(role="system", content=self.system))
        reserved = min(self.max_new_tokens, self.engine.max_len // 4)
        prompt = render_prompt(messages, self.engine.tokenizer, self.engine.max_len - reserved)
        self._seed += 1  # /regen gives a new answer, and a session is reproducible
        params = self.sampling.params(max_new_tokens=self.max_new_tokens, seed=self._seed)
        parts: list[Part] = []
        reason = "abort"
        # Closing the stream frees the engine's slot even if the loop below ends early.
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
        # The answer joins the conversation with its tool calls, as in training: without them the
        # model would see results appear from nowhere. A stopped answer is kept unless it is empty.
        if any(part["text"] for part in parts):
            self.messages.append({"role": "user", "content": text})
            self.messages.append({"role": "assistant", "content": parts})
        return reason

    def pop_question(self) -> str | None:
        """Remove the last question and its answer; return the question, if there was one."""
        if not self.messages:
            return None
        question = self.messages[-2]["content"]
        del self.messages[-2:]
        assert isinstance(question, str)
        return question


def main(argv: list[str] | None = None) -> None:
    args = sys.argv[1:] if argv is None else argv
    args = ["--prompt" if arg == "-p" else arg for arg in args]
    cfg = config.parse(ChatCliConfig, args, stage="chat_cli")
    path = checkpoint_manager.locate(cfg.source, cfg.common, chat=cfg.source.stage is None)
    question = cfg.prompt
    if question is None and not sys.stdin.isatty():
        question = console.read_stdin().strip()
        if not question:
            raise ConfigError("stdin is empty; pipe a question in, or use --prompt")
    with distributed.session(cfg.common) as run:
        loaded = checkpoint_manager.load(path, run)
        chat = Chat(Engine(loaded.model, loaded.tokenizer, slots=1), cfg)
        if question is not None:
            one_answer(chat, question)
            return
        print(f"{checkpoint_manager.describe(loaded)} on {run.device}. /help lists the commands.")
        chat_loop(chat)


def one_answer(chat: Chat, question: str) -> None:
    """Print the text of the answer, without tool calls."""

    def show(kind: PartType, text: str) -> None:
        if kind == "text":
            print(console.for_output(text), end="", flush=True)

    chat.ask(question, show, lambda: False)
    print()


def chat_loop(chat: Chat) -> None:
    """Read messages and commands until /quit or Ctrl-D."""
    with line_history():
        while True:
            try:
                text = read_message().strip()
            except KeyboardInterrupt:
                print("  (/quit or Ctrl-D to quit)")
                continue
            except UnicodeDecodeError as error:
                print(f"error: this line is not {error.encoding} text")
                continue
            except (EOFError, OSError):  # OSError: the terminal is gone
                print()
                return
            if text in ("/quit", "/exit"):
                return
            try:
                question = run_command(chat, text) if text.startswith("/") else text
                if question:
                    answer(chat, question)
            except UserError as error:
                print(f"error: {error}")


def answer(chat: Chat, question: str) -> None:
    """Print an answer as it arrives; Ctrl-C ends it and keeps the text so far."""
    kinds: list[PartType] = ["text"]
    marks = {("text", "python"): "[", ("python", "python_output"): " = "}

    def show(kind: PartType, text: str) -> None:
        if kind != kinds[-1]:
            print(marks.get((kinds[-1], kind), "] "), end="")
            kinds.append(kind)
        print(console.visible(text), end="", flush=True)

    with interruptible() as stopped:
        reason = chat.ask(question, show, stopped)
    if kinds[-1] != "text":
        print("]", end="")
    notes = {"abort": " [stopped]", "length": " [cut off at the token limit]"}
    print(notes.get(reason, ""))


def run_command(chat: Chat, text: str) -> str | None:
    """Run a /command; return the question to ask again for /regen, else None."""
    name, _, rest = text.partition(" ")
    if name == "/help":
        print(HELP)
    elif name == "/clear":
        chat.messages.clear()
        print("(new conversation)")
    elif name == "/system":
        chat.system = rest.strip() or None
        print(f"(system: {chat.system or 'none'})")
    elif name == "/set":
        set_option(chat, rest.split())
    elif name == "/regen":
        question = chat.pop_question()
        if question is None:
            print("(no message to answer again)")
        return question
    else:
        print(f"unknown command {name}; /help lists the commands")
    return None


def set_option(chat: Chat, args: Sequence[str]) -> None:
    """Set a sampling option if given its name and value, then show them all.

    Raises: ConfigError for an unknown name or an invalid value.
    """
    options = {**asdict(chat.sampling), "max_new_tokens": chat.max_new_tokens}
    if len(args) == 2:
        name = args[0].replace("-", "_")
        if name not in options:
            raise ConfigError(f"unknown option {name!r}; choose from {', '.join(options)}")
        options[name] = config.convert(config.flat_fields(ChatCliConfig)[name], args[1])
        if name == "max_new_tokens":
            chat.max_new_tokens = options[name]
        else:
            chat.sampling = replace(chat.sampling, **{name: options[name]})
    elif args:
        raise ConfigError("use /set NAME VALUE, such as /set temperature 0.5")
    print("  ".join(f"{name} {str(value).lower()}" for name, value in options.items()))


def read_message() -> str:
    """Read one message; a line that ends in a backslash continues on the next."""
    lines = [input("> ")]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        lines.append(input("  "))
    return "\n".join(lines)


@contextlib.contextmanager
def line_history() -> Iterator[None]:
    """Line editing with a history kept across sessions, if the platform has readline."""
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
def interruptible() -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether Ctrl-C was pressed; a second Ctrl-C interrupts."""
    signals: list[int] = []

    def handle(number: int, frame: object) -> None:
        if signals:
            raise KeyboardInterrupt
        signals.append(number)

    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield lambda: bool(signals)
    finally:
        signal.signal(signal.SIGINT, previous)


if __name__ == "__main__":
    config.cli(main)
