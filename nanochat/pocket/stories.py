"""Short stories with causes and feelings, and the questions they answer."""

import random
from functools import cache
from typing import NamedTuple

from nanochat.pocket.core import Turn, cap, pick, sample, with_article
from nanochat.pocket.names import first_names
from nanochat.pocket.noise import typed
from nanochat.pocket.tables import by_kind, columns, lines, sections, words


class Plot(NamedTuple):
    """One story: the wordings of each sentence, and questions with their answers."""

    topic: str
    sentences: tuple[tuple[str, ...], ...]
    questions: tuple[tuple[str, str], ...]


@cache
def plots() -> tuple[Plot, ...]:
    """All stories."""
    found = []
    for topic, story_lines in sections("stories").items():
        texts = by_kind(story_lines)
        sentences = tuple(map(columns, texts["S"]))
        questions = (text.split(" = ") for text in texts["Q"])
        found.append(Plot(topic, sentences, tuple((asked, answer) for asked, answer in questions)))
    return tuple(found)


@cache
def _fillers() -> dict[str, tuple[str, ...]]:
    texts = by_kind(lines("cast", "fillers"))
    return {name: columns(values) for name, (values,) in texts.items()}


def _pronouns(name: str, end: str) -> dict[str, str]:
    if name in words("names", "girls"):
        he, his, him, himself = "she", "her", "her", "herself"
    else:
        he, his, him, himself = "he", "his", "him", "himself"
    forms = {"he": he, "his": his, "him": him, "himself": himself, "He": cap(he), "His": cap(his)}
    return {f"{form}{end}": word for form, word in forms.items()}


def draw_slots(rng: random.Random) -> dict[str, str]:
    """Persons, pronouns and fillers for one story."""
    first, second = sample(rng, first_names(), 2)
    slots = {"n": first, "m": second, **_pronouns(first, ""), **_pronouns(second, "2")}
    for name, values in _fillers().items():
        value = pick(rng, values)
        slots[name] = value
        slots[cap(name)] = cap(value)
        slots[f"a_{name}"] = with_article(value)
        slots[f"A_{name}"] = slots[f"a_{cap(name)}"] = cap(slots[f"a_{name}"])
    slots["a_helper"] = with_article(slots["helper2"])
    slots["A_helper"] = cap(slots["a_helper"])
    return slots


def story(rng: random.Random) -> tuple[str, list[Turn]]:
    """A story, and the questions it answers in random order."""
    plot = pick(rng, plots())
    slots = draw_slots(rng)
    text = " ".join(pick(rng, wordings).format_map(slots) for wordings in plot.sentences)
    turns = [
        Turn(question.format_map(slots), answer.format_map(slots))
        for question, answer in plot.questions
    ]
    answered = [turn for turn in turns if _is_answered(text, str(turn.reply))]
    rng.shuffle(answered)
    return text, answered


_SKIPPED = {"a", "an", "the", "because", "in", "of", "to", "under", "was", "it", "and", "some"}


def _is_answered(text: str, answer: str) -> bool:
    """Whether the drawn wordings contain most words of the answer."""
    words = [word for word in answer.lower().rstrip(".").split() if word not in _SKIPPED]
    return answer in ("No.", "Yes.") or sum(word in text.lower() for word in words) > len(words) / 2


def story_document(rng: random.Random) -> str:
    """Base text: a story, often with questions after it."""
    text, turns = story(rng)
    if rng.random() < 0.5:
        return text
    asks, replies = pick(rng, (("Q: ", "A: "), ("Question: ", "Answer: "), ("", "- ")))
    return "\n".join([text, *(f"{asks}{turn.user}\n{replies}{turn.reply}" for turn in turns[:3])])


def story_turns(rng: random.Random) -> list[Turn]:
    """A chat: a story with a question, and sometimes a second question."""
    text, turns = story(rng)
    if not turns:
        return story_turns(rng)
    first = Turn(f"{text}\n{typed(rng, turns[0].user, text)}", turns[0].reply)
    return [first, *turns[1 : 1 + int(rng.random() * 2)]]


def tell_turn(rng: random.Random) -> Turn:
    """A request for a story, often about someone or something, and the story."""
    plot = pick(rng, plots())
    slots = draw_slots(rng)
    sentences = [pick(rng, wordings).format_map(slots) for wordings in plot.sentences]
    name = slots["n"]
    about = name if name in sentences[0] and rng.random() < 0.4 else plot.topic.format_map(slots)
    question = pick(rng, lines("questions", "tell")).format(x=about)
    return Turn(typed(rng, question, about), " ".join(sentences))
