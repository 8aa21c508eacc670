"""The calculator tool: when a model calls it, and what it reads in answer.

text --python_start--> code --python_end--> the tool runs --its output is forced--> text

Owns: the recognition of calls and their limit. Does not own: evaluation (tools.calculator) or the
sequence that calls (scheduler).
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from nanochat.engine.sequences import ActiveSequence
from nanochat.tokenizer import Tokenizer
from nanochat.tools import calculator

MAX_TOOL_CALLS = 16  # per request; further calls are answered with TOOL_ERROR
TOOL_ERROR = "error"  # what the model reads if the calculator rejects an expression


class ToolCalls:
    """Runs tool calls: inline, or in threads while other sequences continue."""

    def __init__(self, tokenizer: Tokenizer, *, inline: bool) -> None:
        self._tokenizer = tokenizer
        self._pool = None if inline else ThreadPoolExecutor(4, "tool")
        self._special = {
            name: tokenizer.special_id(f"<|{name}|>")
            for name in ("python_start", "python_end", "output_start", "output_end")
        }

    def follow(self, seq: ActiveSequence, token: int) -> str | None:
        """Note where a call starts; at its end run it.

        Returns its output; None if there is none, or if it comes later, through `seq.tool`.
        """
        if token == self._special["python_start"]:
            seq.code_start = len(seq.tokens)
        elif token == self._special["python_end"] and seq.code_start is not None:
            code = self._tokenizer.decode(seq.tokens[seq.code_start : -1])
            seq.code_start = None
            seq.tool_calls += 1
            if seq.tool_calls > MAX_TOOL_CALLS:
                return TOOL_ERROR
            if self._pool is None:
                return _calculate(code)
            seq.tool = self._pool.submit(_calculate, code)
        return None

    def forced(self, output: str) -> list[int]:
        """The tokens of an output, as the model reads them."""
        start, end = self._special["output_start"], self._special["output_end"]
        return [start, *self._tokenizer.encode(output), end]


def _calculate(code: str) -> str:
    """The output that the model reads after a tool call."""
    return calculator.evaluate(code) or TOOL_ERROR
