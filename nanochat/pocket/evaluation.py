"""Evaluation items by row, and how a reply is graded.

Every item is reserved by a hash of its content, so no training text contains it (see `core`).
"""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from nanochat.pocket import choice, knowledge, letters, numbers, problems
from nanochat.pocket.core import Content, Conversation, Turn, as_text, conversation, make_rng
from nanochat.pocket.noise import typed
from nanochat.pocket.vocabulary import held_out_words
from nanochat.pocket.world import facts, group_values
from nanochat.system.errors import ConfigError

MAX_ITEMS = 2000
# whole: 3.5 does not end in 5, nor 3/4 in 4; a minus behind a digit subtracts
_NUMBER = re.compile(r"(?:(?<!\d)[-\u2212])?\d[\d,]*(?:\.\d+)?(?:/\d+)?")


@dataclass(frozen=True)
class EvalItem:
    """One question of the evaluation; the conversation ends with the reference reply."""

    conversation: Conversation
    answer: str
    row: str
    kind: str  # generate: the reply is graded; choice: one of the letters A-D
    meta: dict[str, Any] = field(default_factory=dict)


def _item(turn: Turn, answer: str, row: str, **meta: Any) -> EvalItem:
    kind = "choice" if row == "choice_letter" else "generate"
    return EvalItem(conversation([turn]), answer, row, kind, meta)


def _fact_items(rng: random.Random, row: str, count: int) -> list[EvalItem]:
    pairs = []
    for fact in facts():
        if row != "known" or fact.attribute in (
            *knowledge.PLACE_ATTRIBUTES,
            *knowledge.PERSON_ATTRIBUTES,
        ):
            asked = fact.new if row == "facts_new_wording" else fact.reserved
            pairs += [(fact, question) for question in asked]
    rng.shuffle(pairs)
    if row == "known":  # only invented names, as in the row "unknown"
        invented = {fact.key for fact in knowledge.invented_facts()}
        pairs = [pair for pair in pairs if pair[0].key in invented]
    return [
        _item(
            Turn(typed(rng, question, f"{fact.entity} {fact.value}"), fact.answer),
            fact.value,
            row,
            entity=fact.entity,
            reply=fact.answer,
            others=[value for value in group_values(fact.group) if value != fact.value],
        )
        for fact, question in pairs[:count]
    ]


def _unknown_items(rng: random.Random, row: str, count: int) -> list[EvalItem]:
    turns = (knowledge.unknown_turn(rng, reserved=True) for _ in range(count))
    return [_item(turn, "I don't know", row) for turn in turns]


def _choice_items(rng: random.Random, row: str, count: int) -> list[EvalItem]:
    items = []
    for _ in range(count):
        drawn = choice.draw_choice(rng, reserved=True)
        letter_only = row == "choice_letter"
        turn = choice.choice_turn(rng, drawn, letter_only=letter_only)
        answer = drawn.letter if letter_only else drawn.answer
        items.append(_item(turn, answer, row, options=list(drawn.options), letter=drawn.letter))
    return items


def _word_items(rng: random.Random, row: str, count: int) -> list[EvalItem]:
    words = list(held_out_words())
    rng.shuffle(words)
    make = letters.spelling_turn if row == "spelling" else letters.counting_turn
    items = []
    for index in range(count):
        word = words[index % len(words)]
        turn = make(rng, word)
        answer = as_text(turn.reply)
        if row == "counting":
            answer = final_number(answer) or ""
        items.append(_item(turn, answer, row, word=word))
    return items


def _sum_items(rng: random.Random, row: str, count: int) -> list[EvalItem]:
    items = []
    for _ in range(count):
        drawn = numbers.draw_sum(rng, reserved=True)
        items.append(_item(numbers.sum_turn(rng, drawn), str(drawn.result), row))
    return items


def _comparison_items(rng: random.Random, row: str, count: int) -> list[EvalItem]:
    turns = (numbers.compare_turn(rng, reserved=True) for _ in range(count))
    return [_item(turn, _last_text(turn.reply), row) for turn in turns]


def _problem_items(rng: random.Random, row: str, count: int) -> list[EvalItem]:
    items = []
    for _ in range(count):
        drawn = problems.draw_problem(
            rng, reserved=True, held_out_template=row == "problems_new_templates"
        )
        turn = problems.problem_turn(rng, drawn)
        steps = len(drawn.calls)
        items.append(_item(turn, drawn.answer, row, template=drawn.template.name, steps=steps))
    return items


def evaluation(row: str, count: int = 500) -> list[EvalItem]:
    """The first `count` items of a row (see EVAL_ROWS); they are always the same.

    Raises: ConfigError for an unknown row or more items than MAX_ITEMS.
    """
    if row not in _ROWS:
        raise ConfigError(f"unknown row {row!r} of the pocket evaluation; use one of {EVAL_ROWS}")
    if not 0 < count <= MAX_ITEMS:
        raise ConfigError(f"a pocket row has 1 to {MAX_ITEMS} items, got {count}")
    return list(_all_items(row)[:count])


@cache
def _all_items(row: str) -> tuple[EvalItem, ...]:
    make, _ = _ROWS[row]
    drawn = make(make_rng("evaluation", row), row, MAX_ITEMS + MAX_ITEMS // 3)
    different = {item.conversation["messages"][0]["content"]: item for item in drawn}
    return tuple(different.values())[:MAX_ITEMS]


def _last_text(reply: Content) -> str:
    return reply if isinstance(reply, str) else reply[-1]["text"]


def final_number(text: str) -> str | None:
    """The last number of a text, without commas; None if there is none.

    >>> final_number("12 - 15 is \u22123, not 1,003.0"), final_number("It is 3.5.")
    ('1003', '3.5')
    """
    found = _NUMBER.findall(text)
    if not found:
        return None
    return re.sub(r"\.0+$", "", found[-1].replace(",", "").replace("\u2212", "-"))


def answers_alike(reference: Content, text: str) -> bool:
    """Whether a text ends with the last number of the reference; if that has none, its words."""
    answer = _last_text(reference)
    if (number := final_number(answer)) is not None:
        return final_number(text) == number
    return text.strip().rstrip(".").lower() == answer.rstrip(".").lower()


def _mentions(text: str, value: str) -> bool:
    return re.search(rf"(?<![\w-]){re.escape(value.lower())}(?![\w-])", text.lower()) is not None


def grade(item: EvalItem, text: str) -> bool:
    """Whether a reply answers an item: strict about the content, lenient about the wording."""
    _, grader = _ROWS[item.row]
    return grader(item, text.strip())


def _grade_fact(item: EvalItem, text: str) -> bool:
    without = re.sub(rf"\b{re.escape(item.meta['entity'])}\b", " ", text, flags=re.IGNORECASE)
    others = (other for other in item.meta["others"] if not _mentions(item.meta["reply"], other))
    return _mentions(text, item.answer) and not any(_mentions(without, other) for other in others)


def _grade_unknown(item: EvalItem, text: str) -> bool:
    return re.search(r"\bdo(n't|n’t| not) know\b", text.lower()) is not None and len(text) < 80


def _grade_choice(item: EvalItem, text: str) -> bool:
    return text.rstrip(".").lower() == item.answer.lower()


def _grade_letter(item: EvalItem, text: str) -> bool:
    return text.rstrip(".") == item.answer


def _grade_spelling(item: EvalItem, text: str) -> bool:
    return re.sub(r"[\s,.-]+", " ", text.lower()).strip() == item.answer


def _grade_number(item: EvalItem, text: str) -> bool:
    return final_number(text) == item.answer


def _grade_comparison(item: EvalItem, text: str) -> bool:
    last_line = text.strip().splitlines()[-1] if text.strip() else ""
    return last_line.rstrip(".").lower() == item.answer.rstrip(".").lower()


Maker = Callable[[random.Random, str, int], list[EvalItem]]
Grader = Callable[[EvalItem, str], bool]
_ROWS: dict[str, tuple[Maker, Grader]] = {
    "facts": (_fact_items, _grade_fact),
    "facts_new_wording": (_fact_items, _grade_fact),
    "known": (_fact_items, _grade_fact),
    "unknown": (_unknown_items, _grade_unknown),
    "choice": (_choice_items, _grade_choice),
    "choice_letter": (_choice_items, _grade_letter),
    "spelling": (_word_items, _grade_spelling),
    "counting": (_word_items, _grade_number),
    "sums": (_sum_items, _grade_number),
    "comparisons": (_comparison_items, _grade_comparison),
    "problems": (_problem_items, _grade_number),
    "problems_new_templates": (_problem_items, _grade_number),
}
EVAL_ROWS: tuple[str, ...] = tuple(_ROWS)
