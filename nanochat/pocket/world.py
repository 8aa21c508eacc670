"""The facts of the pocket world, each with all its statements, questions and replies.

Owns what is true and how it is stated and asked. A fact asked in one wording is one item, either
for training (`Fact.trained`) or for the evaluation (`Fact.reserved` and `Fact.new`).
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from nanochat.pocket import tables
from nanochat.pocket.core import cap, is_reserved, make_rng, plural, with_article
from nanochat.pocket.names import known_names

PLACE_ATTRIBUTES = ("capital", "flag", "crop", "emblem")
PERSON_ATTRIBUTES = ("job", "pet", "music")


@dataclass(frozen=True, slots=True)
class Wording:
    """The templates of one attribute."""

    statements: tuple[str, ...]
    questions: tuple[str, ...]
    new_questions: tuple[str, ...]
    answers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Fact:
    """One fact: `entity` has `value` for an attribute; `group` holds the values it could have."""

    attribute: str
    group: str
    entity: str
    value: str
    statements: tuple[str, ...]
    questions: tuple[str, ...]  # in every wording, the wordings kept out of training last
    trained: tuple[str, ...]  # questions that training data may contain
    reserved: tuple[str, ...]  # trained wordings, but kept for the evaluation for this fact
    new: tuple[str, ...]  # wordings that training data never contains
    answer: str

    @property
    def key(self) -> str:
        return f"{self.group}|{self.entity}"


@cache
def wordings() -> dict[str, Wording]:
    """The table of wordings by attribute."""
    found = {}
    for attribute, lines in tables.sections("wordings").items():
        texts = tables.by_kind(lines)
        found[attribute] = Wording(*(tuple(texts[kind]) for kind in "SQNA"))
    return found


def build_fact(attribute: str, entity: str, value: str, **forms: str) -> Fact:
    """A fact with every wording filled in.

    forms: further slots, which also replace the default plural `pe` and article `av`. `key` is the
    name of the entity if it differs from the slot {e}; `u` is a unit that splits the attribute into
    groups.
    """
    wording = wordings()[attribute]
    slots = {
        "e": entity,
        "ae": with_article(entity),
        "pe": plural(entity),
        "v": value,
        "av": with_article(value),
        **forms,
    }
    name = forms.get("key", entity)
    group = f"{attribute}:{forms['u']}" if "u" in forms else attribute
    asked = tuple(cap(text.format_map(slots)) for text in wording.questions)
    kept = [is_reserved("fact", f"{group}|{name}|{index}") for index in range(len(asked))]
    new = tuple(cap(text.format_map(slots)) for text in wording.new_questions)
    return Fact(
        attribute=attribute,
        group=group,
        entity=name,
        value=value,
        statements=tuple(cap(text.format_map(slots)) for text in wording.statements),
        questions=asked + new,
        trained=tuple(text for text, held in zip(asked, kept, strict=True) if not held),
        reserved=tuple(text for text, held in zip(asked, kept, strict=True) if held),
        new=new,
        answer=cap(wording.answers[0].format_map(slots)),
    )


def _rows(section: str) -> tuple[tuple[str, ...], ...]:
    return tables.rows("world", section)


def _place(noun: str, preposition: str) -> str:
    """The noun with its article and preposition; `preposition` where the tables name none."""
    if noun in tables.words("world", "on the"):
        return f"on the {noun}"
    if noun in tables.words("world", "in the"):
        return f"in the {noun}"
    return f"{preposition} the {noun}"


def _animal_facts() -> Iterator[Fact]:
    attributes = ("young", "home", "legs", "sound", "eats")
    for name, many, *values in _rows("animals"):
        for attribute, value in zip(attributes, values, strict=True):
            if value != "-":
                yield build_fact(attribute, name, value, pe=many, p=_place(value, "in"))


def _thing_facts() -> Iterator[Fact]:
    for name, value in _rows("colors"):
        yield build_fact("colour", name, value)
    for name, value in _rows("materials"):
        yield build_fact("material", name, value)
    for name, value in _rows("workplaces"):
        many = {"fisherman": "fishermen"}.get(name, plural(name))
        yield build_fact("workplace", name, value, pe=many, p=_place(value, "at"))
    for does, do, value in _rows("workers"):
        yield build_fact("worker", does, value, i=do)
    for name, value in _rows("foods"):
        yield build_fact("kind", name, value)
    for name, value in _rows("tools"):
        yield build_fact("tool", name, value)
    for part, whole, where, value in _rows("quantities"):
        yield build_fact("quantity", part, value, w=whole, p=where, key=f"{part} {where}")


def _word_facts() -> Iterator[Fact]:
    for first, second in _rows("opposites"):
        yield build_fact("opposite", first, second)
        yield build_fact("opposite", second, first)
    for first, second in _rows("irregular plurals"):
        yield build_fact("plural", first, second)
    for first, second in _rows("past tenses"):
        yield build_fact("past", first, second)
    for unit in ("day", "month"):
        names = tables.words("world", f"{unit}s")
        for first, second in zip(names, names[1:] + names[:1], strict=True):
            yield build_fact("after", first, second, u=unit)
            yield build_fact("before", second, first, u=unit)
    for season, *months in _rows("seasons"):
        for month in months:
            yield build_fact("season", month, season)


def _spread(rng: random.Random, values: Sequence[str], count: int) -> list[str]:
    """`count` values in random order, each about equally often."""
    spread = [values[index % len(values)] for index in range(count)]
    rng.shuffle(spread)
    return spread


def _invented_facts() -> Iterator[Fact]:
    rng = make_rng("invented facts")
    for country, city in _rows("capitals"):
        yield build_fact("capital", country, city)
    places, persons = known_names("place"), known_names("person")
    sections = {
        "flag": "flag colors",
        "crop": "crops",
        "emblem": "emblems",
        "job": "jobs",
        "pet": "pets",
        "music": "instruments",
    }
    values_of = {name: tables.words("world", section) for name, section in sections.items()}
    values_of["capital"] = known_names("town")
    for attribute in PLACE_ATTRIBUTES + PERSON_ATTRIBUTES:
        entities = places if attribute in PLACE_ATTRIBUTES else persons
        values = _spread(rng, values_of[attribute], len(entities))
        for entity, value in zip(entities, values, strict=True):
            yield build_fact(attribute, entity, value)


@cache
def facts() -> tuple[Fact, ...]:
    """All facts of the world."""
    return (*_animal_facts(), *_thing_facts(), *_word_facts(), *_invented_facts())


@cache
def facts_by(field: str) -> dict[str, tuple[Fact, ...]]:
    """The facts by "group" or by "entity"."""
    grouped: dict[str, list[Fact]] = {}
    for fact in facts():
        grouped.setdefault(getattr(fact, field), []).append(fact)
    return {key: tuple(members) for key, members in grouped.items()}


@cache
def group_values(group: str) -> tuple[str, ...]:
    """The distinct values of the facts of a group, sorted."""
    return tuple(sorted({fact.value for fact in facts_by("group")[group]}))
