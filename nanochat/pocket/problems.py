"""Word problems of one to three steps, solved with the calculator.

Owns reading the templates, drawing numbers, and the content by which a problem is reserved. A fifth
of the templates is kept for the evaluation. Most training problems are not made from a template but
composed (see `events`), so that the model learns to solve problems and not just the templates.
A reply first lists the numbers it needs in the order told: what is copied into the calls is then
nearby, once and in digits (58% right answers to new templates instead of 48%).
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from nanochat.pocket.core import (
    Turn,
    cap,
    is_reserved,
    pick,
    plural,
    text_part,
    tool_reply,
    with_article,
)
from nanochat.pocket.events import Composition, draw_composition
from nanochat.pocket.names import first_names
from nanochat.pocket.noise import typed
from nanochat.pocket.numbers import ONES, TENS, calculate, in_words, sum_reserved
from nanochat.pocket.tables import by_kind, columns, lines, rows, sections, words

WORDS_SHARE = 0.25  # of the numbers below one hundred
DISTRACTOR_SHARE = 0.25
QUESTION_FIRST_SHARE = 0.08
COMPOSED_SHARE = 0.7  # of the problems in mid-training and SFT
ROLE_SHARE = 0.25  # of the persons have no name: "the baker"
_NUMBER_WORD = "|".join(
    [f"(?:{'|'.join(TENS[2:])})(?:-(?:{'|'.join(ONES[1:10])}))?", *sorted(ONES, key=len)[::-1]]
)
_NUMBER = re.compile(rf"\d+|\b(?:{_NUMBER_WORD})\b")
_RANGE = re.compile(r"(\d+)-(\d+)")
_STEP = re.compile(r"(\w+)([-+*/])(\w+)")
_VALUES = {in_words(number): number for number in range(100)}


@dataclass(frozen=True)
class Template:
    """One kind of word problem."""

    name: str
    held_out: bool
    texts: tuple[str, ...]
    questions: tuple[str, ...]
    steps: tuple[tuple[str, str, str], ...]
    ranges: tuple[tuple[str, str], ...]

    def draw_numbers(self, rng: random.Random) -> dict[str, int] | None:
        """Values for the numbers; None if one is out of its range."""
        values: dict[str, int] = {}
        for name, rule in self.ranges:
            plain = _RANGE.fullmatch(rule)
            if plain is not None:
                low, high = int(plain[1]), int(plain[2])
                values[name] = low + int(rng.random() * (high - low + 1))
                continue
            formula, _, allowed = rule.partition("@")
            values[name] = _derived(formula, values)
            bounds = _RANGE.fullmatch(allowed)
            if bounds is not None and not int(bounds[1]) <= values[name] <= int(bounds[2]):
                return None
        return values

    def cast(self, rng: random.Random) -> dict[str, str]:
        """Slots that replace the common ones: none."""
        return {}

    def wording(self, rng: random.Random) -> tuple[str, tuple[str, ...]]:
        """A text and its possible questions, with slots and alternatives still to be filled in."""
        return pick(rng, self.texts), self.questions


@dataclass(frozen=True)
class Problem:
    """A word problem with its solution.

    text: before typing mistakes; given: the numbers that the solution needs, in the order told.
    """

    template: Template | Composition
    text: str
    given: tuple[int, ...]
    calls: tuple[tuple[str, str], ...]

    @property
    def answer(self) -> str:
        return self.calls[-1][1]

    @property
    def content(self) -> str:
        return problem_content(self.text, [expression for expression, _ in self.calls])


def problem_content(text: str, expressions: list[str]) -> str:
    """The content by which a problem is reserved: its numbers in the order told, and its steps."""
    return f"{','.join(map(str, numbers_in(text)))}|{';'.join(expressions)}"


def numbers_in(text: str) -> list[int]:
    """All numbers of a text, in digits or in words, in order."""
    found = _NUMBER.findall(text.lower())
    return [int(word) if word.isdigit() else _VALUES[word] for word in found]


@cache
def templates(*, held_out: bool) -> tuple[Template, ...]:
    """The templates for training, or those held out for the evaluation."""
    found = (_read(head, lines) for head, lines in sections("problem_templates").items())
    return tuple(template for template in found if template.held_out == held_out)


def _read(head: str, template_lines: Sequence[str]) -> Template:
    by_letter = by_kind(template_lines)
    steps = []
    for step in by_letter["S"][0].split("; "):
        match = _STEP.fullmatch(step)
        assert match is not None, f"bad step {step!r} in template {head}"
        steps.append((match[1], match[2], match[3]))
    ranges = (item.split("=") for item in by_letter["R"][0].split())
    return Template(
        name=head.removeprefix("!"),
        held_out=head.startswith("!"),
        texts=tuple(by_letter["T"]),
        questions=columns(by_letter["Q"][0]),
        steps=tuple(steps),
        ranges=tuple((name, rule) for name, rule in ranges),
    )


def _derived(rule: str, values: dict[str, int]) -> int:
    """The value of a rule such as a*b+k: sums and differences of products."""
    total = 0
    for sign, product in re.findall(r"([+-]?)([^+-]+)", rule):
        value = 1
        for factor in product.split("*"):
            value *= values[factor] if factor in values else int(factor)
        total += -value if sign == "-" else value
    return total


def _solve(
    steps: tuple[tuple[str, str, str], ...], values: dict[str, int]
) -> tuple[tuple[str, str], ...] | None:
    """The calculator calls; None if a result is not a positive integer."""
    known = dict(values)
    calls = []
    for result_name, (left, op, right) in zip("xyz", steps, strict=False):
        a = known[left] if left in known else int(left)
        b = known[right] if right in known else int(right)
        if op == "/" and (b == 0 or a % b):
            return None
        known[result_name] = calculate(a, op, b)
        if known[result_name] < 1:
            return None
        calls.append((f"{a}{op}{b}", str(known[result_name])))
    return tuple(calls)


@cache
def _foods() -> tuple[tuple[str, str], ...]:
    """(one with its article, the plural) of each food."""
    (singles,) = rows("cast", "foods")
    return tuple((single, plural(single.split()[1])) for single in singles)


def _cast(rng: random.Random) -> dict[str, str]:
    """Persons, things, food, containers and animals that fill the slots of a template."""
    first, second = rng.sample(first_names(), 2)
    is_woman = first in words("names", "girls")
    if rng.random() < ROLE_SHARE:
        first, pronoun = pick(rng, rows("cast", "roles"))
        is_woman = pronoun == "she"
    (one_food, food), (one_other, other) = rng.sample(_foods(), 2)
    box = pick(rng, words("cast", "containers"))
    animals, other_animals = rng.sample(words("cast", "farm animals"), 2)
    he, his, him = ("she", "her", "her") if is_woman else ("he", "his", "him")
    return {
        "n": first, "m": second, "he": he, "He": cap(he), "his": his, "him": him, "His": cap(his),
        "t": pick(rng, words("cast", "things")), "v": pick(rng, words("cast", "vehicles")),
        "k": box, "ks": plural(box), "one_k": with_article(box),
        "f": food, "f1": one_food, "g": other, "g1": one_other,
        "p": animals, "q": other_animals,
    }  # fmt: skip


def _written(rng: random.Random, number: int) -> str:
    return in_words(number) if number < 100 and rng.random() < WORDS_SHARE else str(number)


_SENTENCE = re.compile(r"(?<=[.?]) ")
_NUMBER_SLOT = re.compile(r"\{(\w+)\}")
_ONE_OF = re.compile(r"<([^>]*)>")


def _one_wording(rng: random.Random, text: str) -> str:
    """The text with one of the alternatives in each <a/b> drawn."""
    if "<" not in text:
        return text
    return _ONE_OF.sub(lambda match: pick(rng, match[1].split("/")), text)


def _tell(
    rng: random.Random, template: Template | Composition, values: dict[str, int]
) -> tuple[str, tuple[int, ...]]:
    """The text of a problem with these numbers, and the numbers in the order told."""
    cast = _cast(rng) | template.cast(rng)
    written = {name: _written(rng, value) for name, value in values.items()}
    # The numbers remain slots until their order in the text is known.
    slots = {name: f"{{{name}}}" for name in values} | cast
    text, questions = template.wording(rng)
    sentences = _SENTENCE.split(_one_wording(rng, text).format_map(slots))
    named = any(cast["n"].lower() in sentence.lower() for sentence in sentences)
    if rng.random() < DISTRACTOR_SHARE:
        slots["z"] = _written(rng, 5 + int(rng.random() * 7))
        about_person = named and rng.random() < 0.5
        section = "distractors about a person" if about_person else "distractors"
        extra = pick(rng, lines("cast", section))
        # Only first or last: elsewhere the next sentence may start with a pronoun.
        index = 0 if rng.random() < 0.5 else len(sentences)
        sentences.insert(index, extra.format_map(slots))
    question = _one_wording(rng, pick(rng, questions)).format_map(slots)
    first = cast["n"] in question and rng.random() < QUESTION_FIRST_SHARE
    ordered = [question, *sentences] if first else [*sentences, question]
    names = dict.fromkeys(_NUMBER_SLOT.findall(" ".join(ordered)))
    text = " ".join(cap(sentence.format_map(written)) for sentence in ordered)
    return text, tuple(values[name] for name in names)


def draw_problem(
    rng: random.Random,
    *,
    reserved: bool = False,
    held_out_template: bool = False,
    composed_share: float = COMPOSED_SHARE,
) -> Problem:
    """A problem for training, or for one of the two evaluation rows.

    composed_share: share of the training problems that are composed, not made from a template.
    reserved: draw a problem kept for the evaluation, from a template that training uses.
    held_out_template: draw any problem from a template that training never uses.
    """
    training = not reserved and not held_out_template
    template: Template | Composition
    if training and rng.random() < composed_share:
        template = draw_composition(rng)
    else:
        template = pick(rng, templates(held_out=held_out_template))
    while True:
        values = template.draw_numbers(rng)
        calls = None if values is None else _solve(template.steps, values)
        if values is None or calls is None:
            continue
        if training and any(map(_call_reserved, calls)):
            continue
        text, given = _tell(rng, template, values)
        problem = Problem(template, text, given, calls)
        if held_out_template or is_reserved("problem", problem.content) == reserved:
            return problem


def _call_reserved(call: tuple[str, str]) -> bool:
    match = _STEP.fullmatch(call[0])
    assert match is not None
    return sum_reserved(int(match[1]), match[2], int(match[3]))


def problem_turn(rng: random.Random, problem: Problem) -> Turn:
    """The problem as a person might type it, and its solution."""
    kept = " ".join(match.group() for match in _NUMBER.finditer(problem.text.lower()))
    question = typed(rng, problem.text, kept)
    given = text_part(f"Given {', '.join(map(str, problem.given))}: ")
    solution = tool_reply(problem.calls, f"The answer is {problem.answer}.")
    return Turn(question, [given, *solution])
