"""Chat with a model in the terminal, or ask it a single question.

nanochat chat_cli --run pocket
nanochat chat_cli --run pocket -p "What is 12 * 7?" --stats
nanochat chat_cli --run pocket -p "Summarize:" < notes.txt
cat question.txt | nanochat chat_cli --run pocket
nanochat chat_cli --run pocket --stage base_train --logprobs
"""

import select
import sys
from dataclasses import dataclass
from pathlib import Path

from nanochat import checkpoint_manager
from nanochat.checkpoint_manager import SourceOptions
from nanochat.engine import Engine, Event
from nanochat.engine.sampling import SamplingOptions
from nanochat.stages import chat_commands, chat_view
from nanochat.stages.chat_commands import Session
from nanochat.stages.chat_session import AnswerOptions, Chat
from nanochat.system import config, console, distributed, storage, terminal
from nanochat.system.config import RunOptions, nested, option
from nanochat.system.errors import ConfigError
from nanochat.tokenizer.conversation import BLANK_LINE

STDIN_HINT_S = 2.0  # longer than a program takes to begin its output, shorter than patience


@dataclass(frozen=True, kw_only=True)
class ChatCliConfig:
    """Chat in the terminal; with --prompt (or -p) or text on stdin, print one answer and exit.

    In the chat, /help lists commands: to edit, retry and undo, save and load, switch the model.
    """

    common: RunOptions = nested(RunOptions)
    source: SourceOptions = nested(SourceOptions)
    sampling: SamplingOptions = nested(SamplingOptions)
    answers: AnswerOptions = nested(AnswerOptions)
    prompt: str | None = option(
        None, "print the answer to this and exit, with stdin (if piped) added below; none: chat"
    )


def main(argv: list[str] | None = None) -> None:
    args = sys.argv[1:] if argv is None else argv
    args = ["--prompt" if arg == "-p" else arg for arg in args]
    cfg = config.parse(ChatCliConfig, args, stage="chat_cli")
    path = checkpoint_manager.locate(cfg.source, cfg.common, chat=cfg.source.stage is None)
    question = read_question(cfg.prompt)
    with distributed.session(cfg.common) as run:

        def open_model(path: Path) -> tuple[Engine, str]:
            loaded = checkpoint_manager.load(path, run)
            engine = Engine(loaded.model, loaded.tokenizer, slots=1)
            return engine, checkpoint_manager.describe(loaded)

        engine, name = open_model(path)
        chat = Chat(engine, cfg.sampling, cfg.answers, seed=cfg.common.seed, model=name)
        if question is not None:
            one_answer(chat, question, stats=cfg.answers.stats)
            return
        print(f"{name} on {run.device}. /help lists the commands.")
        if chat.logprobs and terminal.has_colors(sys.stdout):
            print(chat_view.legend())
        chat_loop(Session(chat, cfg.common.run, open_model, stats=cfg.answers.stats))


def read_question(prompt: str | None) -> str | None:
    """The question: --prompt, and below it the text on stdin; None if there is neither.

    Raises: ConfigError if what there is is empty.
    """
    if prompt is not None and not prompt.strip():
        raise ConfigError("--prompt is empty; give it a question, or leave it out to chat")
    if sys.stdin.isatty():
        return prompt
    if prompt is not None and not _has_input():
        console.error_line("reading stdin, to add it to --prompt; < /dev/null leaves it out")
    text = console.read_stdin().strip()
    if prompt is None and not text:
        raise ConfigError("stdin is empty; pipe a question in, or use --prompt")
    return BLANK_LINE.join(filter(None, (prompt, text)))


def _has_input() -> bool:
    """Whether stdin soon has text or an end; without either, a script would wait unawares."""
    try:
        return bool(select.select([sys.stdin], [], [], STDIN_HINT_S)[0])
    except (OSError, ValueError):  # not a file of the system, or Windows
        return True


def one_answer(chat: Chat, question: str, *, stats: bool) -> None:
    """Print the text of the answer, without tool calls; notes about it go to stderr."""
    with terminal.spinner(sys.stderr) as began:
        view = chat_view.AnswerView(began, surprise=chat.logprobs, escape=sys.stdout.isatty())

        def show(event: Event) -> None:
            if event.kind == "text":
                view.show(event)

        answer = chat.ask(question, show, lambda: False)
        view.end()
    chat_view.report(answer, chat.engine, sys.stderr, stats=stats, logprobs=chat.logprobs)
    if answer.left_out:
        console.error_line(f"note: {chat_view.left_out(chat.engine)}")
    if answer.completion.finish_reason == "length":
        console.error_line("note: cut off at the token limit; --max-new-tokens raises it")


def chat_loop(session: Session) -> None:
    """Read messages and commands until /quit or Ctrl-D."""
    with terminal.line_editing(storage.base_dir() / "chat_history", chat_commands.complete):
        while True:
            try:
                text = read_message()
            except KeyboardInterrupt:
                print("  (/quit or Ctrl-D to quit)")
                continue
            except UnicodeDecodeError as error:
                chat_commands.print_error(f"this line is not {error.encoding} text")
                continue
            except (EOFError, OSError):  # OSError: the terminal is gone
                print()
                return
            if text.strip() in ("/quit", "/exit"):
                return
            chat_commands.run_line(session, text)


def read_message() -> str:
    """Read one message.

    A line that ends in a backslash continues on the next; one that begins with three quotes
    continues until three quotes.
    """
    lines = [input(terminal.prompt("> ")), *terminal.rest_of_paste()]
    if lines[0].lstrip().startswith('"""'):
        lines[0] = lines[0].lstrip()[3:]
        while not lines[-1].rstrip().endswith('"""'):
            lines.append(input("  "))
        return " " + "\n".join(lines).rstrip()[:-3]  # with a space it is no command
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        lines.append(input("  "))
    return "\n".join(lines)


if __name__ == "__main__":
    config.cli(main)
