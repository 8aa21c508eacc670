"""Multiple choice: four options, each followed by its letter; the answer is `value letter`.

The reply names the value before the letter: the model first decides by what it knows, and then
copies the letter that follows this value above. A bare letter would need both in one step.
"""

import random
from functools import cache
from typing import NamedTuple

from nanochat.pocket.core import Turn, is_reserved, pick, sample
from nanochat.pocket.knowledge import INVENTED_SHARE, invented_facts
from nanochat.pocket.noise import typed
from nanochat.pocket.tables import by_kind, columns, lines
from nanochat.pocket.world import Fact, facts, group_values

LETTERS = "ABCD"
LAYOUTS = (
    ("{q}\n{o}", "\n"),
    ("{q}\nOptions:\n{o}", "\n"),
    ("{q} Options: {o}.", ", "),
    ("Choose one. {q}\n{o}", "\n"),
    ("{q}\nChoose: {o}", ", "),
)  # fmt: skip


class Choice(NamedTuple):
    """A fact with four options in the order shown."""

    fact: Fact
    options: tuple[str, ...]

    @property
    def letter(self) -> str:
        return LETTERS[self.options.index(self.fact.value)]

    @property
    def answer(self) -> str:
        return f"{self.fact.value} {self.letter}"


@cache
def _conflicts() -> frozenset[tuple[str, str, str]]:
    """(group, value, value) of values that could both be called right."""
    found = set()
    for group, pairs in by_kind(lines("world", "conflicts")).items():
        for first, second in (pair.split() for line in pairs for pair in columns(line)):
            found |= {(group, first, second), (group, second, first)}
    return frozenset(found)


@cache
def wrong_values(fact: Fact) -> tuple[str, ...]:
    """The values of the same group that are certainly wrong for this fact."""

    def bare(value: str) -> str:
        return value.split()[-1]

    return tuple(
        value
        for value in group_values(fact.group)
        if value not in (fact.value, fact.entity)
        and (fact.group, bare(fact.value), bare(value)) not in _conflicts()
    )


@cache
def choice_facts() -> tuple[tuple[Fact, ...], tuple[Fact, ...]]:
    """The facts with at least three wrong values: all of them, and those about invented names."""

    def enough(fact: Fact) -> bool:
        return len(wrong_values(fact)) >= len(LETTERS) - 1

    return tuple(filter(enough, facts())), tuple(filter(enough, invented_facts()))


def choice_content(fact: Fact, options: tuple[str, ...]) -> str:
    """The content by which a choice is reserved: the fact and the set of options."""
    return f"{fact.group}|{fact.entity}|{'|'.join(sorted(options))}"


def draw_choice(rng: random.Random, *, reserved: bool = False) -> Choice:
    """A fact and four options in random order.

    reserved: whether to draw a choice that only the evaluation uses.
    """
    while True:
        fact = pick(rng, choice_facts()[rng.random() < INVENTED_SHARE])
        options = sample(rng, wrong_values(fact), len(LETTERS) - 1)
        options.insert(int(rng.random() * len(LETTERS)), fact.value)
        if is_reserved("choice", choice_content(fact, tuple(options))) == reserved:
            return Choice(fact, tuple(options))


def shown_options(rng: random.Random, question: str, options: tuple[str, ...]) -> str:
    """The question and its options in one of the layouts."""
    layout, between = pick(rng, LAYOUTS)
    pairs = (f"{value} {letter}" for value, letter in zip(options, LETTERS, strict=True))
    return layout.format(q=question, o=between.join(pairs))


def choice_turn(rng: random.Random, choice: Choice, *, letter_only: bool = False) -> Turn:
    fact = choice.fact
    question = typed(rng, pick(rng, fact.trained), f"{fact.entity} {' '.join(choice.options)}")
    text = shown_options(rng, question, choice.options)
    if letter_only:
        return Turn(f"{text}\n{pick(rng, lines('questions', 'letter only'))}", choice.letter)
    return Turn(text, choice.answer)


def probe_turn(rng: random.Random, options: list[str]) -> Turn:
    """Which letter is beside one of four things: this needs copying, but no knowledge."""
    index = int(rng.random() * len(LETTERS))
    question = pick(rng, lines("questions", "probe")).format(v=options[index])
    return Turn(shown_options(rng, question, tuple(options)), f"{options[index]} {LETTERS[index]}")
