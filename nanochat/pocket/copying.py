"""Base text whose answers are nearby: lists, repetitions, pairs, and reading questions.

On such text a small model learns to look back and copy (its induction heads form): after
"kite C ... kite" comes "C". Each text draws new values, so copying is the only way to predict
them. Without such text, multiple choice stays at chance and unseen names are misspelled.
"""

import random
from collections.abc import Callable
from functools import cache

from nanochat.pocket.choice import LETTERS
from nanochat.pocket.core import Weighted, cap, listed, pick, sample, with_article
from nanochat.pocket.names import first_names, unknown_name
from nanochat.pocket.tables import words
from nanochat.pocket.vocabulary import spelling_words
from nanochat.pocket.world import PERSON_ATTRIBUTES, PLACE_ATTRIBUTES, group_values, wordings

_ROOMS = listed("kitchen garden bedroom hall cellar garage bathroom attic barn shed")


@cache
def _nouns() -> tuple[str, ...]:
    """Things that a person can have and put somewhere."""
    excluded = {*words("spelling_words", "no plural"), *words("spelling_words", "fixed")}
    return tuple(noun for noun in words("spelling_words", "home") if noun not in excluded)


@cache
def _short_words() -> tuple[str, ...]:
    return tuple(word for word in spelling_words() if len(word) <= 6)


def some_values(rng: random.Random, count: int) -> list[str]:
    """Different entries for a list: words, names, values of one attribute, or numbers."""
    draw = rng.random()
    if draw < 0.4:
        return sample(rng, _short_words(), count)
    if draw < 0.5:
        section = pick(rng, ("creatures", "food", "people"))
        return sample(rng, words("spelling_words", section), count)
    if draw < 0.6:
        return sample(rng, first_names(), count)
    if draw < 0.8:
        groups = ("capital", "crop", "emblem", "job", "music", "home", "opposite", "worker")
        return sample(rng, group_values(pick(rng, groups)), count)
    if draw < 0.9:
        numbers: dict[str, None] = {}
        while len(numbers) < count:
            numbers[str(1 + int(rng.random() * 10 ** (1 + int(rng.random() * 4))))] = None
        return list(numbers)
    kind = pick(rng, ("place", "person", "town"))
    names = {unknown_name(rng, kind): None for _ in range(count + 4)}
    return list(names)[:count]


def repeats(rng: random.Random) -> str:
    """Rows of words, each repeated once."""
    lines = []
    for _ in range(3):
        row = pick(rng, (", ", " ")).join(some_values(rng, 3 + int(rng.random() * 5)))
        lines.append(f"{pick(rng, ('Say', 'List', 'Words', 'Read'))}: {row}. Again: {row}.")
    return "\n".join(lines)


def lettered_pairs(rng: random.Random) -> str:
    """Rows of four values with their letters, some of the pairs repeated."""
    lines = []
    between = pick(rng, (", ", "\n", " "))
    for _ in range(3):
        values = some_values(rng, len(LETTERS))
        pairs = [f"{value} {letter}" for value, letter in zip(values, LETTERS, strict=True)]
        again = sample(rng, pairs, 2 + int(rng.random() * 2))
        lines.append(f"{between.join(pairs)}. {pick(rng, ('', 'Again: '))}{', '.join(again)}.")
    return "\n".join(lines)


def looked_up(rng: random.Random) -> str:
    """Keys with values, then some of the keys asked for."""
    count = 4 + int(rng.random() * 3)
    keys, values = some_values(rng, count), some_values(rng, count)
    statements = ", ".join(f"{key}: {value}" for key, value in zip(keys, values, strict=True))
    asked = sample(rng, range(count), 3)
    return f"{statements}.\n" + "\n".join(f"{keys[index]}? {values[index]}." for index in asked)


def list_questions(rng: random.Random) -> str:
    """A list, and questions about positions in it."""
    values = some_values(rng, 4 + int(rng.random() * 4))
    index = int(rng.random() * (len(values) - 1))
    asked = [
        f"First: {values[0]}.",
        f"Last: {values[-1]}.",
        f"After {values[index]}: {values[index + 1]}.",
        f"Before {values[index + 1]}: {values[index]}.",
        f"Number of words: {len(values)}.",
        f"Backwards: {', '.join(reversed(values))}.",
    ]
    return f"List: {', '.join(values)}.\n" + "\n".join(sample(rng, asked, 4))


def who_has_what(rng: random.Random) -> str:
    """People with things of a color, and questions that the text answers."""
    names = sample(rng, first_names(), 3)
    things = sample(rng, _nouns(), 3)
    colors = sample(rng, (*words("world", "flag colors"), "grey", "golden"), 3)
    statements, asked = [], []
    for name, thing, color in zip(names, things, colors, strict=True):
        statements.append(f"{name} has {with_article(color)} {thing}.")
        asked.append((f"What does {name} have?", f"{with_article(color)} {thing}"))
        asked.append((f"Who has the {thing}?", name))
        asked.append((f"What colour is the {thing}?", color))
    return _with_questions(rng, statements, asked)


def where_is_what(rng: random.Random) -> str:
    """Things in places, and questions that the text answers."""
    things, rooms = sample(rng, _nouns(), 3), sample(rng, _ROOMS, 3)
    statements, asked = [], []
    for thing, room in zip(things, rooms, strict=True):
        statements.append(f"The {thing} is in the {room}.")
        asked.append((f"Where is the {thing}?", f"in the {room}"))
        asked.append((f"What is in the {room}?", f"the {thing}"))
    return _with_questions(rng, statements, asked)


def told_of_strangers(rng: random.Random) -> str:
    """Facts about unknown names, told first and then asked for."""
    is_place = rng.random() < 0.5
    attributes = PLACE_ATTRIBUTES if is_place else PERSON_ATTRIBUTES
    statements, asked = [], []
    for _ in range(2):
        name = unknown_name(rng, "place" if is_place else "person")
        for attribute in sample(rng, attributes, 2):
            is_town = attribute == "capital"
            value = unknown_name(rng, "town") if is_town else pick(rng, group_values(attribute))
            slots = {"e": name, "v": value, "av": with_article(value)}
            wording = wordings()[attribute]
            statements.append(cap(pick(rng, wording.statements).format_map(slots)))
            asked.append((cap(pick(rng, wording.questions).format_map(slots)), value))
    return _with_questions(rng, statements, asked)


def _with_questions(
    rng: random.Random, statements: list[str], asked: list[tuple[str, str]], count: int = 3
) -> str:
    rng.shuffle(statements)
    opening, reply = pick(rng, (("Q: ", "A: "), ("Question: ", "Answer: "), ("", "- ")))
    lines = [f"{opening}{q}\n{reply}{cap(a)}." for q, a in sample(rng, asked, count)]
    return " ".join(statements) + "\n" + "\n".join(lines)


KINDS: Weighted[Callable[[random.Random], str]] = Weighted(
    {
        repeats: 1.0,
        lettered_pairs: 2.0,
        looked_up: 1.0,
        list_questions: 0.8,
        who_has_what: 0.8,
        where_is_what: 0.6,
        told_of_strangers: 0.8,
    }
)


def copying_document(rng: random.Random) -> str:
    """Base text of one of the kinds above."""
    return KINDS.draw(rng)(rng)
