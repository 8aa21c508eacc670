"""A small bundle in the layout of CORE, made of held-out questions: evaluates base models offline.

Owns which tasks it contains and how they read as plain text. Its scores are not comparable with
CORE's.
"""

import csv
import io
import json
import random
from pathlib import Path
from typing import Any

from nanochat.pocket import choice, letters, numbers
from nanochat.pocket.core import as_text, cap, make_rng, pick
from nanochat.pocket.tables import lines
from nanochat.pocket.vocabulary import held_out_words
from nanochat.pocket.world import Fact, facts
from nanochat.system.storage import write_atomic

ITEMS = 500
Item = dict[str, Any]


def _asked(fact: Fact, question: str) -> str:
    return f"Q: {question}\nA:"


def _held_out_questions(rng: random.Random) -> list[tuple[Fact, str]]:
    pairs = [(fact, question) for fact in facts() for question in fact.reserved]
    rng.shuffle(pairs)
    return pairs


def _facts_to_complete(rng: random.Random) -> list[Item]:
    """The value of a fact, after its question and the start of the reply."""
    items = []
    for fact, question in _held_out_questions(rng):
        before, found, after = fact.answer.rpartition(fact.value)
        if found and after in (".", '".') and before.strip(' "'):
            context = f"{_asked(fact, question)} {before.rstrip()}"
            if not context.endswith('"'):
                items.append({"context": context, "continuation": fact.value})
    return items[:ITEMS]


def _facts_to_choose(rng: random.Random) -> list[Item]:
    """The right reply among replies with other values."""
    items = []
    for fact, question in _held_out_questions(rng):
        wrong = choice.wrong_values(fact)
        if fact.answer.count(fact.value) != 1 or len(wrong) < 3:
            continue
        if fact.attribute in ("home", "workplace"):  # another place may need another preposition
            continue
        options = rng.sample(wrong, 3)
        options.insert(int(rng.random() * 4), fact.value)
        replies = [fact.answer.replace(fact.value, value) for value in options]
        if _articles_agree(fact, options):
            gold = options.index(fact.value)
            items.append({"query": _asked(fact, question), "choices": replies, "gold": gold})
    return items[:ITEMS]


def _articles_agree(fact: Fact, options: list[str]) -> bool:
    """Whether no article gives the right option away."""
    vowels = {option[0].lower() in "aeiou" for option in options}
    fixed = f"a {fact.value}" in fact.answer.lower() or f"an {fact.value}" in fact.answer.lower()
    return not fixed or len(vowels) == 1


def _letters_to_copy(rng: random.Random) -> list[Item]:
    """The letter beside one of four values shown before: this needs only copying."""
    items = []
    for _ in range(ITEMS):
        drawn = choice.draw_choice(rng, reserved=True)
        pairs = [f"{v} {letter}" for v, letter in zip(drawn.options, choice.LETTERS, strict=True)]
        context = f"{', '.join(pairs)}. Again: {drawn.fact.value}"
        items.append({"context": context, "continuation": drawn.letter})
    return items


def _words_to_spell(rng: random.Random) -> list[Item]:
    words = list(held_out_words())
    rng.shuffle(words)
    asked = (
        (word, pick(rng, lines("questions", "spell")).format(w=word)) for word in words[:ITEMS]
    )
    return [
        {"context": f"Q: {question}\nA:", "continuation": letters.spelled(word)}
        for word, question in asked
    ]


def _sizes_to_compare(rng: random.Random) -> list[Item]:
    """Which of two contexts fits the same ending."""
    items = []
    for _ in range(ITEMS):
        low, high = sorted(numbers.size_pair(rng, reserved=True))
        small, big = numbers.sizes()[low], numbers.sizes()[high]
        names = [small, big]
        word = pick(rng, ("bigger", "smaller"))
        rng.shuffle(names)
        asked = pick(rng, lines("questions", "compare")).format(a=names[0], b=names[1], c=word)
        right = big if word == "bigger" else small
        contexts = [f"Q: {cap(asked)}\nA: {cap(name)}" for name in names]
        ending = f"is {word}."
        items.append(
            {"context_options": contexts, "continuation": ending, "gold": names.index(right)}
        )
    return _unique(items)


def _sums_to_finish(rng: random.Random) -> list[Item]:
    """The expression that a question about a sum asks for."""
    items = []
    for _ in range(ITEMS):
        turn = numbers.sum_turn(rng, numbers.draw_sum(rng, reserved=True))
        expression = as_text(turn.reply).partition("=")[0]
        items.append({"context": f"Q: {turn.user}\nA:", "continuation": f"{expression}="})
    return items


def _unique(items: list[Item]) -> list[Item]:
    return list({json.dumps(item): item for item in items}.values())


# label: (type, maker, shots, delimiter, baseline in percent, what it measures)
TASKS: dict[str, tuple[str, Any, int, str, float, str]] = {
    "pocket_facts": (
        "language_modeling", _facts_to_complete, 0, " ", 0, "facts in held-out wordings",
    ),
    "pocket_facts_choice": (
        "multiple_choice", _facts_to_choose, 2, " ", 25, "the right one of four replies",
    ),
    "pocket_copy": ("language_modeling", _letters_to_copy, 0, " ", 0, "copying a letter"),
    "pocket_spelling": ("language_modeling", _words_to_spell, 2, " ", 0, "held-out words"),
    "pocket_sizes": ("schema", _sizes_to_compare, 2, " ", 50, "held-out pairs of things"),
    "pocket_sums": ("language_modeling", _sums_to_finish, 2, " ", 0, "sums put as expressions"),
}  # fmt: skip


COLUMNS = (
    "Eval Task", "Task Category", "Task Type", "#shots", "#datapoints", "Random baseline",
    "Centered Metric?", "Description",
)  # fmt: skip


def write_core_bundle(folder: Path) -> None:
    """Write the bundle: core.yaml, eval_meta_data.csv and eval_data/pocket/*.jsonl.

    Writing it again gives the same files.
    """
    listed = ["icl_tasks:"]
    table = io.StringIO()
    meta = csv.writer(table, lineterminator="\n")
    meta.writerow(COLUMNS)
    for label, (kind, make, shots, delimiter, baseline, described) in TASKS.items():
        items = make(make_rng("core bundle", label))
        listed += [
            "-",
            f"  label: {label}",
            f"  dataset_uri: pocket/{label}.jsonl",
            f"  num_fewshot: [{shots}]",
            f"  icl_task_type: {kind}",
            f"  continuation_delimiter: {json.dumps(delimiter)}",
        ]
        meta.writerow([label, "pocket", kind, shots, len(items), baseline, "yes", described])
        jsonl = "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items)
        write_atomic(folder / "eval_data" / "pocket" / f"{label}.jsonl", jsonl.encode())
    write_atomic(folder / "eval_meta_data.csv", table.getvalue().encode())
    write_atomic(folder / "core.yaml", ("\n".join(listed) + "\n").encode())
