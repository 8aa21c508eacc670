"""HumanEval: write the body of a Python function, checked by its tests.

Source: Chen et al. 2021, arXiv 2107.03374; hub openai/openai_humaneval.
"""

import re
from pathlib import Path

from nanochat.data.file_formats import read_rows
from nanochat.data.tasks.common import GenerateTask, Record, exchange, load_rows
from nanochat.system.errors import DataError
from nanochat.tokenizer.conversation import Conversation
from nanochat.tools import execution

HUB = "openai/openai_humaneval"
FIELDS = ("prompt", "canonical_solution", "test", "entry_point")
TIMEOUT_S = 5.0
_FENCE = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)


class HumanEval(GenerateTask):
    """Functions to complete; right if the tests pass in the sandbox (pass@1 for one sample)."""

    def __init__(self, *, source: str | None = None, limit: int | None = None) -> None:
        """source: HumanEval.jsonl(.gz), a folder with it or with test.jsonl, or a hub name.

        Raises: ConfigError where model-written code cannot be confined; DataError for rows that
            are no problems.
        """
        execution.isolation()
        source = source or HUB
        names = ("", "HumanEval.jsonl", "HumanEval.jsonl.gz")
        published = next((path for name in names if (path := Path(source, name)).is_file()), None)
        if published is not None:
            rows = [row for _, row in read_rows(published)]
        else:
            rows = list(load_rows(source, split="test"))
        for number, row in enumerate(rows, start=1):
            if missing := [field for field in FIELDS if not isinstance(row.get(field), str)]:
                raise DataError(f"problem {number} of {source} has no text {missing[0]!r}")
        super().__init__("HumanEval", rows, convert, limit=limit)
        self._problems = rows

    def evaluate(self, index: int, text: str) -> bool:
        """Whether the code in the text passes the problem's tests."""
        row = self._problems[index]
        result = execution.check_function(
            program(row, text), row["entry_point"], judge(row), timeout_s=TIMEOUT_S
        )
        return result.ok


def convert(row: Record) -> Conversation:
    """A problem and its reference solution."""
    request = f"Complete this Python function:\n\n```python\n{row['prompt'].rstrip()}\n```"
    solution = f"```python\n{row['prompt']}{row['canonical_solution'].rstrip()}\n```"
    return exchange(request, solution)


def program(row: Record, text: str) -> str:
    """The program to judge: the model's code after the prompt, whose imports and helpers it uses.

    A prompt ends with the function's docstring: alone it defines a function that returns None,
    which the model's code either continues or defines again.
    """
    code = extract_code(text)
    again = f"def {row['entry_point']}" in code
    return f"{row['prompt']}\n\n{code}" if again else row["prompt"] + code


def judge(row: Record) -> str:
    """The judge's program: the tests, after the reference solution with the helpers they use."""
    return "\n\n".join([row["prompt"] + row["canonical_solution"], row["test"]])


def extract_code(text: str) -> str:
    """The first fenced code block of a text, or the full text if it has none."""
    block = _FENCE.search(text)
    return block.group(1) if block else text
