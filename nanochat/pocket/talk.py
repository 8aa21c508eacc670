"""Small talk, questions about the bot, memory of the chat, follow-ups, and unknown topics."""

import random
from functools import cache

from nanochat.pocket.core import Turn, cap, pick, with_article
from nanochat.pocket.knowledge import ATTRIBUTES, fact_turn, unknown_reply
from nanochat.pocket.names import known_names, unknown_name
from nanochat.pocket.noise import typed
from nanochat.pocket.numbers import in_words
from nanochat.pocket.stories import draw_slots
from nanochat.pocket.tables import by_kind, columns, lines, words
from nanochat.pocket.world import Fact, facts_by


@cache
def _blocks(section: str, kinds: str) -> tuple[tuple[tuple[str, ...], ...], ...]:
    """The blocks of a section of talk.txt; each has wordings by kind, in this order."""
    texts = by_kind(lines("talk", section))
    return tuple(zip(*(map(columns, texts[kind]) for kind in kinds), strict=True))


def small_talk_turn(rng: random.Random) -> Turn:
    """One exchange of small talk; about a third are about the bot."""
    messages, answers = pick(rng, _blocks("small talk", "UB"))
    return Turn(typed(rng, pick(rng, messages), "nanochat"), pick(rng, answers))


def outside_turn(rng: random.Random) -> Turn:
    """A question that the world knows nothing about."""
    questions, things = pick(rng, _blocks("outside", "QX"))
    thing = pick(rng, things)
    question = pick(rng, questions).format(x=thing, y=thing.removeprefix("the "))
    return Turn(typed(rng, question, thing), pick(rng, lines("talk", "outside replies")))


def memory_turns(rng: random.Random) -> tuple[Turn, Turn]:
    """The user tells something, and later asks about it."""
    slots = draw_slots(rng)
    slots["pet"] = pick(rng, words("world", "pets"))
    slots["job"] = pick(rng, words("world", "jobs"))
    for name in ("pet", "job"):
        slots[f"a_{name}"] = with_article(slots[name])
        slots[f"A_{name}"] = cap(slots[f"a_{name}"])
    slots["town"] = unknown_name(rng, "town")
    slots["number"] = in_words(7 + int(rng.random() * 60))
    slots["Number"] = cap(slots["number"])
    statements, first_replies, asked, replies = pick(rng, _blocks("memory", "UBQA"))
    kept = " ".join(
        slots[name] for name in ("colour", "pet", "job", "food", "instrument", "number")
    )
    told = typed(rng, pick(rng, statements).format_map(slots), kept)
    first = pick(rng, first_replies).format_map(slots)
    question = typed(rng, pick(rng, asked).format_map(slots), kept)
    return Turn(told, first), Turn(question, pick(rng, replies).format_map(slots))


def follow_up_turns(rng: random.Random) -> list[Turn]:
    """A question about a place or person, then one that omits the name or the attribute."""
    kind = "place" if rng.random() < 0.5 else "person"
    fact = pick(rng, _facts_of(kind, pick(rng, known_names(kind))))
    turns = [fact_turn(rng, fact)]
    draw = rng.random()
    if draw < 0.5:
        others = [f for f in facts_by("entity")[fact.entity] if f.attribute != fact.attribute]
        other = pick(rng, others)
        asked = pick(rng, lines("talk", f"follow-up {other.attribute}"))
        turns.append(Turn(typed(rng, asked), other.answer))
    elif draw < 0.85:
        other = pick(rng, [f for f in facts_by("group")[fact.group] if f is not fact])
        asked = pick(rng, lines("talk", "another")).format(e=other.entity)
        turns.append(Turn(typed(rng, asked, other.entity), other.answer))
    else:
        name = unknown_name(rng, kind)
        asked = pick(rng, lines("talk", "another")).format(e=name)
        turns.append(Turn(typed(rng, asked, name), unknown_reply(rng, kind)))
    return turns


def _facts_of(kind: str, entity: str) -> list[Fact]:
    return [fact for fact in facts_by("entity")[entity] if fact.attribute in ATTRIBUTES[kind]]
