"""Invented names of places, persons and towns: a fixed set of known names, unlimited unknown ones.

All are made of the same syllables. The known names are drawn once from a fixed seed; any other name
is unknown. Reserved unknown names appear in the evaluation only.
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
    """The name, and the name without each of its letters.

    Two names that differ by one letter or by two swapped letters have one of these in common.
    """
    lower = name.lower()
    return {lower, *(lower[:index] + lower[index + 1 :] for index in range(len(lower)))}


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
        # No two known names begin alike or are one typing mistake apart.
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
    """A name that is neither known to the world nor one typing mistake away from a known name.

    reserved: whether to draw from the names that only the evaluation uses.
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
    """Whether the word could be the invented name of a place or a person."""
    return _PATTERN.fullmatch(word.lower()) is not None and word.lower() not in _taken()
