"""An answer as it appears in the terminal: tool calls, surprise, what to note. Part of chat_cli."""

import math
import sys
from collections.abc import Callable
from typing import TextIO

from nanochat.engine import Completion, Engine, Event
from nanochat.engine.requests import TokenLogprob
from nanochat.stages.chat_session import Answer
from nanochat.system import console, terminal
from nanochat.system.terminal import CYAN, DIM
from nanochat.tokenizer import Tokenizer
from nanochat.tokenizer.conversation import PartType

# The background of a token that is at least this probable, of the terminal's 256 colors: light
# ones, from none over yellow to red, for black text.
SURPRISE = ((0.5, None), (0.2, 230), (0.05, 222), (0.01, 216), (0.0, 210))
MARKS = {("text", "python"): "[", ("python", "python_output"): " = "}
NOTES = {"abort": " [stopped]", "length": " [cut off at the token limit; /continue goes on]"}


class AnswerView:
    """Writes the events of one answer to a terminal or a file."""

    def __init__(
        self, began: Callable[[], None], *, surprise: bool = False, escape: bool = True
    ) -> None:
        self._began = began  # called before anything is written
        self._clean = console.visible if escape else str
        self._surprise = surprise and terminal.has_colors(sys.stdout)
        self._kind: PartType = "text"
        self._logprobs: list[float] = []  # of tokens whose text is held back until it is certain

    def show(self, event: Event) -> None:
        """Write a piece of the answer."""
        if event.logprob is not None:
            self._logprobs.append(event.logprob.logprob)
        if not event.text:
            return
        self._began()
        self._change_kind(event.kind)
        text = self._clean(event.text)
        if self._surprise and self._logprobs:
            text = surprising(text, math.exp(min(self._logprobs)))
        elif self._kind != "text":
            text = terminal.styled(text, CYAN, sys.stdout)
        self._logprobs.clear()
        print(text, end="", flush=True)

    def end(self, completion: Completion | None = None) -> None:
        """Close the answer with a note on how it ended."""
        self._began()
        if self._kind != "text":
            print(terminal.styled("]", CYAN, sys.stdout), end="")
        note = ""
        if completion is not None:
            empty = not any(part["text"] for part in completion.parts)
            note = NOTES.get(completion.finish_reason, " [nothing]" * empty)
        print(terminal.styled(note, DIM, sys.stdout))

    def _change_kind(self, kind: PartType) -> None:
        if kind != self._kind:
            del self._logprobs[:-1]  # those of the special tokens between the kinds
            mark = MARKS.get((self._kind, kind), "] " if kind == "text" else "] [")
            print(terminal.styled(mark, CYAN, sys.stdout), end="")
            self._kind = kind


def surprising(text: str, probability: float) -> str:
    """A text on the background of its probability; not its line ends, which would fill the line."""
    color = next(color for least, color in SURPRISE if probability >= least)
    if color is None:
        return text
    lines = text.split("\n")
    return "\n".join(terminal.styled(x, f"30;48;5;{color}", sys.stdout) for x in lines)


def legend() -> str:
    """What the backgrounds mean."""
    shown = [surprising(f" {least:.0%} or more ", least) for least, _ in SURPRISE[:-1]]
    return f"probability of a token:{' '.join(shown)} {surprising(' less ', 0.0)}"


def table(answer: Answer, tokenizer: Tokenizer) -> list[str]:
    """The sampled tokens of an answer in rows: probability, rank, token, likelier or next ones."""

    def quoted(token: int) -> str:
        text = tokenizer.decode_bytes([token]).decode("utf-8", "backslashreplace")
        return console.visible(repr(text))

    def row(found: TokenLogprob) -> str:
        others = [
            f"{quoted(token)} {math.exp(logprob):.1%}"
            for token, logprob in found.top
            if token != found.token
        ]
        probability = f"{math.exp(found.logprob):6.1%}"
        return f"{probability} {found.rank:5}  {quoted(found.token):<16}  {'  '.join(others[:3])}"

    rows = [row(found) for found in answer.completion.logprobs if found is not None]
    return ["  prob  rank  token             instead", *(text.rstrip() for text in rows)]


def stats_line(answer: Answer, engine: Engine) -> str:
    """Speed and size of an answer."""
    completion, tokens = answer.completion, len(answer.completion.tokens)
    # The first token comes from reading the prompt; the others are decoded one by one.
    speed = (tokens - 1) / answer.rest_s if tokens > 1 and answer.rest_s else None
    return (
        f"{tokens:,} token{'s' * (tokens != 1)}"
        + (f", {speed:,.0f} tokens/s" if speed else "")
        + f"; first token after {answer.first_s:.2f} s; context "
        + f"{answer.prompt_tokens + tokens:,} of {engine.max_len:,} tokens"
        + (f", {completion.cached_tokens:,} cached" if completion.cached_tokens else "")
    )


def left_out(engine: Engine) -> str:
    """What it means that a conversation is longer than the context."""
    return (
        f"this conversation no longer fits the model's {engine.max_len:,} tokens: its beginning is "
        "left out"
    )


def report(answer: Answer, engine: Engine, stream: TextIO, *, stats: bool, logprobs: bool) -> None:
    """Write what else is to be shown of an answer; probabilities only where no colors show them."""
    if logprobs and not terminal.has_colors(sys.stdout):
        print("\n".join(table(answer, engine.tokenizer)), file=stream)
    if stats:
        line = f"({stats_line(answer, engine)})"
        print(terminal.styled(line, DIM, stream), file=stream)
