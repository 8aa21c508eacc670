"""The words of the world: those that are spelled, and those that no typing mistake may produce."""

import random
import re
from functools import cache

from nanochat.pocket.core import is_reserved, pick, plural, singular
from nanochat.pocket.names import known_names, looks_like_name
from nanochat.pocket.tables import sections, words

MIN_LETTERS, MAX_LETTERS = 3, 10
# Sections of spelling_words.txt: nouns, whose plurals are spelled as well, and other words.
NOUNS = ("people", "creatures", "food", "home", "places", "nature")
OTHER_WORDS = ("things", "verbs", "describing", "small", "forms")


@cache
def spelling_words() -> tuple[str, ...]:
    """All real words of 3-10 letters that may be spelled, in alphabetical order."""
    found = {word for group in (*NOUNS, *OTHER_WORDS) for word in words("spelling_words", group)}
    for group in NOUNS:
        nouns = set(words("spelling_words", group)) - set(words("spelling_words", "no plural"))
        found.update(map(plural, nouns))
    return tuple(sorted(word for word in found if MIN_LETTERS <= len(word) <= MAX_LETTERS))


def is_held_out(word: str) -> bool:
    """Whether only the evaluation may spell the word, its plural and words that begin like it.

    Holding out "farm" means little if training spells "farms" and "farmer".
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
    named = _words_of("world")
    found.update(named, map(plural, named), _words_of("wordings"))
    for kind in ("place", "person", "town"):
        found.update(name.lower() for name in known_names(kind))
    return frozenset(found)


def _words_of(table: str) -> list[str]:
    pieces = [piece for name, lines in sections(table).items() for piece in (name, *lines)]
    return re.findall(r"[a-z]+", " ".join(pieces).lower())


def mistyped(rng: random.Random, word: str) -> str:
    """The word with one typing mistake that does not give another word or name of the world."""
    for _ in range(4):
        index = 1 + int(rng.random() * (len(word) - 2))
        letters = list(word)
        draw = rng.random()
        if draw < 0.4:
            letters[index], letters[index + 1] = letters[index + 1], letters[index]
        elif draw < 0.7:
            del letters[index]
        elif draw < 0.85:
            letters.insert(index, letters[index])
        else:
            letters[index] = pick(rng, "abcdefghiklmnoprstuwy")
        wrong = "".join(letters)
        if wrong not in vocabulary() and not looks_like_name(wrong):
            return wrong
    return word
