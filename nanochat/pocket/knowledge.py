"""Questions about known facts and unknown names, and base text that states the facts."""

import random
from functools import cache

from nanochat.pocket.core import Turn, pick
from nanochat.pocket.names import known_names, unknown_name
from nanochat.pocket.noise import typed
from nanochat.pocket.tables import lines
from nanochat.pocket.world import (
    PERSON_ATTRIBUTES,
    PLACE_ATTRIBUTES,
    Fact,
    facts,
    facts_by,
    wordings,
)

ATTRIBUTES = {"place": PLACE_ATTRIBUTES, "person": PERSON_ATTRIBUTES}
INVENTED_SHARE = 0.38  # of the questions: invented names are harder to learn than real words


@cache
def invented_facts() -> tuple[Fact, ...]:
    """The facts about the invented places and persons."""
    names = {*known_names("place"), *known_names("person")}
    return tuple(fact for fact in facts() if fact.entity in names)


def any_fact(rng: random.Random) -> Fact:
    """A fact; those about invented places and persons are drawn more often."""
    if rng.random() < INVENTED_SHARE:
        return pick(rng, invented_facts())
    return pick(rng, facts())


def fact_turn(rng: random.Random, fact: Fact) -> Turn:
    """The fact, asked in one of its trained wordings."""
    return Turn(typed(rng, pick(rng, fact.trained), f"{fact.entity} {fact.value}"), fact.answer)


def unknown_turn(rng: random.Random, *, reserved: bool = False) -> Turn:
    """A question about a name that the world does not know.

    Unknown names are made of the same syllables as known ones, so that the model cannot tell them
    by their look: it has to know which names it knows, and otherwise say that it does not.
    """
    kind = "place" if rng.random() < 0.5 else "person"
    name = unknown_name(rng, kind, reserved=reserved)
    if rng.random() < 0.15 and not reserved:
        question = pick(rng, lines("talk", f"about {kind}"))
    else:
        question = pick(rng, wordings()[pick(rng, ATTRIBUTES[kind])].questions)
    return Turn(typed(rng, question.format(e=name), name), unknown_reply(rng, kind))


def unknown_reply(rng: random.Random, kind: str) -> str:
    """The reply to a question about an unknown "place" or "person"."""
    return pick(rng, lines("talk", f"unknown {kind}"))


def about_turn(rng: random.Random) -> Turn:
    """A request to tell everything that is known about an invented place or person."""
    kind = "place" if rng.random() < 0.5 else "person"
    name = pick(rng, known_names(kind))
    reply = " ".join(fact.answer for fact in facts_by("entity")[name])
    question = pick(rng, lines("talk", f"about {kind}")).format(e=name)
    return Turn(typed(rng, question, name), reply)


def statements(rng: random.Random) -> str:
    """Base text: a paragraph of facts about one thing, of one kind, or of any kind."""
    draw = rng.random()
    if draw < 0.35:
        chosen = list(facts_by("entity")[any_fact(rng).entity])
        chosen += [any_fact(rng) for _ in range(4 - len(chosen))]
        rng.shuffle(chosen)
    elif draw < 0.6:
        members = facts_by("group")[any_fact(rng).group]
        chosen = [pick(rng, members) for _ in range(4)]
    else:
        chosen = [any_fact(rng) for _ in range(5)]
    return " ".join(pick(rng, fact.statements) for fact in chosen)
