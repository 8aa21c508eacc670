"""Invented names: places, persons and towns, known ones and any number of unknown ones.

Known and unknown names come out of the same syllables. The known ones are drawn once from a fixed
seed; an unknown name is any other one. Reserved unknown names occur in the evaluation only.
"""

import random
import re
from functools import cache

from nanochat.pocket.core import is_reserved, listed, make_rng, pick
from nanochat.pocket.tables import rows, words

_ONSETS = listed("b d f g h k l m n p r s t v z br dr gr kr tr st pl fl")
_SINGLE = [onset for onset in _ONSETS if len(onset) == 1]
_VOWELS = listed("a e i o u")
_CODAS = listed("l n r s m")
_ENDINGS = {
    "place": listed("ia or and una ova"),
    "person": listed("o ek in ina el"),
    "town": listed("burg dal mar ville ton"),
}
KNOWN_COUNTS = {"place": 30, "person": 30, "town": 30}
_SYLLABLE = f"(?:{'|'.join(sorted(_ONSETS, key=len, reverse=True))})[aeiou]"
_PATTERN = re.compile(
    rf"{_SYLLABLE}[{''.join(_CODAS)}]?[{''.join(_SINGLE)}]"
    rf"(?:{'|'.join(ending for kind in ('place', 'person') for ending in _ENDINGS[kind])})"
)


@cache
def first_names() -> tuple[str, ...]:
    """The first names of people in stories and word problems."""
    return words("names", "girls") + words("names", "boys")


@cache
def _taken() -> frozenset[str]:
    """Real words and names that the syllables could make."""
    return frozenset(words("names", "taken"))


def _draw(rng: random.Random, kind: str) -> str:
    name = pick(rng, _ONSETS) + pick(rng, _VOWELS)
    if kind == "town":
        name += pick(rng, _CODAS) if rng.random() < 0.7 else ""
    else:
        name += pick(rng, _CODAS) if rng.random() < 0.4 else ""
        name += pick(rng, _SINGLE)
    return (name + pick(rng, _ENDINGS[kind])).capitalize()


def _traces(name: str) -> set[str]:
    """The name and what is left when one letter is missing.

    Two names share one of these if they differ by one letter or by two swapped ones.
    """
    lower = name.lower()
    return {lower, *(lower[:place] + lower[place + 1 :] for place in range(len(lower)))}


@cache
def known_names(kind: str) -> tuple[str, ...]:
    """The invented names of a kind ("place", "person" or "town") that the world knows."""
    rng = make_rng("known names", kind)
    names: dict[str, None] = {}
    traces: set[str] = set()
    while len(names) < KNOWN_COUNTS[kind]:
        name = _draw(rng, kind)
        lower = name.lower()
        free = lower not in _taken() and not is_reserved("name", lower)
        # Two known names never begin alike, nor is one a typing mistake of another.
        begins_alike = any(name[:3] == other[:3] for other in names)
        if free and not begins_alike and not traces & _traces(name):
            names[name] = None
            traces |= _traces(name)
    return tuple(names)


@cache
def _all_known_traces() -> frozenset[str]:
    known = {name for kind in KNOWN_COUNTS for name in known_names(kind)}
    known.update(first_names(), *rows("world", "capitals"))
    return frozenset(trace for name in known for trace in _traces(name))


def unknown_name(rng: random.Random, kind: str, *, reserved: bool = False) -> str:
    """A name that the world does not know, and not by a typing mistake either.

    reserved: draw one of those that the evaluation alone uses.
    """
    while True:
        name = _draw(rng, kind)
        lower = name.lower()
        if (
            is_reserved("name", lower) == reserved
            and lower not in _taken()
            and _all_known_traces().isdisjoint(_traces(name))
        ):
            return name


def looks_like_name(word: str) -> bool:
    """Whether the syllables of places and persons can make this word."""
    return _PATTERN.fullmatch(word.lower()) is not None and word.lower() not in _taken()
