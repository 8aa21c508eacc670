"""The words of the world: which may be spelled and counted, which a typing mistake must not hit."""

import random
import re
from functools import cache

from nanochat.pocket import tables, words
from nanochat.pocket.core import is_reserved, pick, plural, read_table, singular
from nanochat.pocket.names import known_names, looks_like_name

MIN_LETTERS, MAX_LETTERS = 3, 10


@cache
def spelling_words() -> tuple[str, ...]:
    """All real words of 3-10 letters that may be asked to be spelled, in alphabetical order."""
    found = {word for group in words.GROUPS for word in group.split()}
    for group in words.NOUN_GROUPS:
        found.update(plural(noun) for noun in group.split() if noun not in words.NO_PLURAL)
    return tuple(sorted(word for word in found if MIN_LETTERS <= len(word) <= MAX_LETTERS))


def is_held_out(word: str) -> bool:
    """Whether only the evaluation may spell the word: it and its plural, and what begins like it.

    A reserved "farm" is of little worth if training spells "farms" and "farmer".
    """
    return is_reserved("word", singular(word)[:4])


@cache
def trained_words() -> tuple[str, ...]:
    """The words that training may spell and count letters in."""
    return tuple(word for word in spelling_words() if not is_held_out(word))


@cache
def held_out_words() -> tuple[str, ...]:
    """The words that only the evaluation spells and counts letters in."""
    return tuple(word for word in spelling_words() if is_held_out(word))


@cache
def vocabulary() -> frozenset[str]:
    """Every word of the tables in lower case, names included."""
    found = set(spelling_words())
    for value in vars(tables).values():
        if isinstance(value, str | tuple | dict):
            named = re.findall(r"[a-z]+", str(value).lower())
            found.update(named, map(plural, named))
    found.update(re.findall(r"[a-z]+", read_table("wordings").lower()))
    for kind in ("place", "person", "town"):
        found.update(name.lower() for name in known_names(kind))
    return frozenset(found)


def mistyped(rng: random.Random, word: str) -> str:
    """The word with one typing mistake that makes no other word or name of the world."""
    for _ in range(4):
        place = 1 + int(rng.random() * (len(word) - 2))
        letters = list(word)
        way = rng.random()
        if way < 0.4:
            letters[place], letters[place + 1] = letters[place + 1], letters[place]
        elif way < 0.7:
            del letters[place]
        elif way < 0.85:
            letters.insert(place, letters[place])
        else:
            letters[place] = pick(rng, "abcdefghiklmnoprstuwy")
        wrong = "".join(letters)
        if wrong not in vocabulary() and not looks_like_name(wrong):
            return wrong
    return word
