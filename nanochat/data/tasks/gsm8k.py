"""GSM8K: school word problems with worked solutions, for training, RL and evaluation.

Source: Cobbe et al. 2021, arXiv 2110.14168; hub openai/gsm8k.
"""

import re
from fractions import Fraction

from nanochat.data.tasks.common import GenerateTask, Record, exchange, load_rows
from nanochat.tokenizer.conversation import Conversation
from nanochat.tools import calculator

HUB = "openai/gsm8k"
_CALL = re.compile(r"<<([^<>=]+)=([^<>]*)>>")
_MINUS = str.maketrans(dict.fromkeys("\u2212\u2013\ufe63\uff0d", "-"))  # as models write it
# The first number of a line, perhaps after words, and its denominator. It must be whole: what
# follows may not make it another number, as in 10-12, 2 1/2, 5:30, 1e5 or \frac{3}{4}.
_NUMBER = re.compile(
    r"\D*?(-?) ?(\d[\d,]*(?:\.\d+)?|\.\d+)(?: ?/ ?(\d+))?%?"
    r"(?! ?[-+*/×÷^=]? ?\d|[.,:_]\d|[eE][-+]?\d|[²³¼½¾]|\} ?\{)"
)


class GSM8K(GenerateTask):
    """Problems whose answer is the number after ####."""

    def __init__(self, split: str, *, source: str | None = None, limit: int | None = None) -> None:
        """split: "train" or "test"."""
        rows = load_rows(source or HUB, config="main", split=split)
        super().__init__("GSM8K", rows, convert, limit=limit)
        self._answers = rows

    def evaluate(self, index: int, text: str) -> bool:
        """Whether the text's final answer equals the reference answer as a number."""
        wanted = final_number(self._answers[index]["answer"])
        return wanted is not None and final_number(text) == wanted


def convert(row: Record) -> Conversation:
    """A row as a conversation whose solution calls the calculator."""
    return exchange(row["question"], solution_parts(row["answer"]))


def solution_parts(solution: str) -> list[dict[str, str]]:
    """A solution's text and calculator calls.

    "48/2 = <<48/2=24>>24" gives text "48/2 = ", python "48/2", python_output "24", text "24". The
    output is our own calculator's, as in inference; a span that it cannot compute, such as
    <<5%*80=4>>, is left out, so that the model does not learn calls that fail.
    """
    parts: list[dict[str, str]] = []
    end = 0
    for match in _CALL.finditer(solution):
        _add_text(parts, solution[end : match.start()])
        end = match.end()
        output = calculator.evaluate(match.group(1))
        if output is not None:
            parts.append({"type": "python", "text": match.group(1)})
            parts.append({"type": "python_output", "text": output})
    _add_text(parts, solution[end:])
    return parts


def final_number(text: str) -> Fraction | None:
    """The number after the last ####, on its line; None if there is none.

    Words around it, $, % and commas between thousands are passed over.
    >>> final_number("so #### 7, no: #### $1,234.50"), final_number("#### \u22123/4 of it")
    (Fraction(2469, 2), Fraction(-3, 4))
    >>> final_number("#### none"), final_number("#### 10-12"), final_number("12")
    (None, None, None)
    """
    _, mark, rest = text.rpartition("####")
    line = rest.strip().partition("\n")[0].translate(_MINUS).replace("$", "")
    number = _NUMBER.match(" ".join(line.split())) if mark else None
    if number is None:
        return None
    sign, above, below = number.groups()
    try:
        return Fraction(sign + above.replace(",", "")) / Fraction(below or 1)
    except (ValueError, ZeroDivisionError):  # thousands of digits, or divided by 0
        return None


def _add_text(parts: list[dict[str, str]], text: str) -> None:
    if not text:
        return
    if parts and parts[-1]["type"] == "text":
        parts[-1]["text"] += text
    else:
        parts.append({"type": "text", "text": text})
