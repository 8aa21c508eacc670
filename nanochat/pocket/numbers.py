"""Arithmetic and comparisons: numbers in digits and in words, asked in many ways."""

import random
from typing import NamedTuple

from nanochat.pocket.core import Turn, cap, is_reserved, listed, pick, tool_reply
from nanochat.pocket.noise import typed
from nanochat.pocket.tables import lines

ONES = listed(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
)
TENS = listed("- - twenty thirty forty fifty sixty seventy eighty ninety")


class Sum(NamedTuple):
    a: int
    op: str
    b: int

    @property
    def expression(self) -> str:
        return f"{self.a}{self.op}{self.b}"

    @property
    def result(self) -> int:
        return calculate(self.a, self.op, self.b)


def in_words(number: int) -> str:
    """A number from 0 to 999 in words: 25 -> "twenty-five"."""
    if number >= 100:
        rest = f" and {in_words(number % 100)}" if number % 100 else ""
        return f"{ONES[number // 100]} hundred{rest}"
    if number < 20:
        return ONES[number]
    return TENS[number // 10] + (f"-{ONES[number % 10]}" if number % 10 else "")


def calculate(a: int, op: str, b: int) -> int:
    """The calculator's result; divisions in the pocket world never leave a remainder."""
    if op == "+":
        return a + b
    if op == "-":
        return a - b
    if op == "*":
        return a * b
    return a // b


def sum_content(a: int, op: str, b: int) -> str:
    """The content by which a sum is reserved."""
    if op in "+*" and a > b:
        a, b = b, a
    return f"{a}{op}{b}"


def sum_reserved(a: int, op: str, b: int) -> bool:
    return is_reserved("sum", sum_content(a, op, b))


def _operand(rng: random.Random) -> int:
    digits = 1 + int(rng.random() * 4)
    return int(rng.random() * 9 * 10 ** (digits - 1)) + (10 ** (digits - 1) if digits > 1 else 1)


def draw_sum(rng: random.Random, *, reserved: bool = False) -> Sum:
    """An operation on numbers of up to four digits.

    reserved: whether to draw one that only the evaluation uses.
    """
    while True:
        op = pick(rng, "++--**/")
        a, b = _operand(rng), _operand(rng)
        if op == "*":
            b = 2 + int(rng.random() * (98 if a < 1000 else 8))
        elif op == "/":
            b = 2 + int(rng.random() * 19)
            a = b * (1 + int(rng.random() * min(500, 9999 // b)))
        elif op == "-" and a < b:
            a, b = b, a
        if sum_reserved(a, op, b) == reserved:
            return Sum(a, op, b)


def sum_turn(rng: random.Random, item: Sum) -> Turn:
    question = pick(rng, lines("questions", f"sum {item.op}")).format(a=item.a, b=item.b)
    result = str(item.result)
    reply = tool_reply([(item.expression, result)], f"The answer is {result}.")
    return Turn(typed(rng, question), reply)


def sizes() -> tuple[str, ...]:
    """Things from the smallest to the biggest."""
    return lines("world", "sizes")


def number_pair(rng: random.Random, *, reserved: bool = False) -> tuple[int, int]:
    """Two different numbers to compare, often of the same length."""
    while True:
        a = _operand(rng)
        b = _operand(rng) if rng.random() < 0.5 else abs(a + int(rng.random() * 40) - 20)
        content = f"{min(a, b)}|{max(a, b)}"
        # The reply subtracts the numbers, so that difference must not be reserved either.
        held = not reserved and (sum_reserved(a, "-", b) or sum_reserved(b, "-", a))
        if a != b and not held and is_reserved("compare", content) == reserved:
            return a, b


def size_pair(rng: random.Random, *, reserved: bool = False) -> tuple[int, int]:
    """The positions in `sizes` of two different things to compare."""
    while True:
        a, b = int(rng.random() * len(sizes())), int(rng.random() * len(sizes()))
        content = f"{sizes()[min(a, b)]}|{sizes()[max(a, b)]}"
        if a != b and is_reserved("compare", content) == reserved:
            return a, b


def compare_turn(rng: random.Random, *, reserved: bool = False) -> Turn:
    """Which of two numbers or things is bigger or smaller.

    The reply subtracts numbers so that a positive result always means the first one, or yes.
    """
    bigger = rng.random() < 0.5
    word = "bigger" if bigger else "smaller"
    numeric = rng.random() < 0.65
    first, second = (number_pair if numeric else size_pair)(rng, reserved=reserved)
    names = (str(first), str(second)) if numeric else (sizes()[first], sizes()[second])
    first_wins = (first > second) == bigger
    if rng.random() < 0.3:
        wording, text = pick(rng, lines("questions", "yes or no")), "Yes." if first_wins else "No."
    else:
        wording = pick(rng, lines("questions", "compare"))
        text = cap(f"{names[0] if first_wins else names[1]} is {word}.")
    question = typed(rng, cap(wording.format(a=names[0], b=names[1], c=word)), " ".join(names))
    if not numeric:
        return Turn(question, text)
    left, right = (first, second) if bigger else (second, first)
    return Turn(question, tool_reply([(f"{left}-{right}", str(left - right))], text))


def sizes_document(rng: random.Random) -> str:
    """Base text: which of two things is bigger, stated in several ways."""
    sentences = []
    for _ in range(6):
        low, high = sorted(size_pair(rng))
        statement = pick(rng, lines("questions", "sizes"))
        sentences.append(cap(statement.format(s=sizes()[low], b=sizes()[high])))
    return " ".join(sentences)
