"""Who the assistant is: conversations drawn from questions and answers in identity.txt.

To change what it says about itself, edit that file; for a different persona, write a JSONL and use
it instead (`tasks.custom_json`). Rows depend only on the seed and their number.
"""

import random
from functools import cache

from nanochat.data.tasks.common import Conversations
from nanochat.pocket import tables
from nanochat.tokenizer.conversation import Conversation, Message

FOLDER = "nanochat.data.tasks"  # of identity.txt


@cache
def _topics() -> dict[str, tuple[list[str], list[str]]]:
    """topic -> (ways to ask, ways to answer)."""
    found = {}
    for name, lines in tables.sections("identity", FOLDER).items():
        if name.startswith("topic "):
            texts = tables.by_kind(lines)
            found[name] = (texts["Q"], texts["A"])
    return found


def _rows(section: str) -> tuple[tuple[str, ...], ...]:
    return tables.rows("identity", section, FOLDER)


def identity(count: int = 400, *, seed: int = 0) -> Conversations:
    """`count` different conversations about the assistant, of one to four turns."""
    rows: list[Conversation] = []
    seen: set[str] = set()
    number = 0
    while len(rows) < count:
        rng = random.Random(f"identity {seed} {number}")
        number += 1
        row = _conversation(rng)
        if str(row) not in seen:
            seen.add(str(row))
            rows.append(row)
    return Conversations("identity", rows, lambda row: row)


def _conversation(rng: random.Random) -> Conversation:
    turns = []
    if rng.random() < 0.2:
        turns.append(rng.choice(_rows("greetings")))
    topics = _topics()
    for topic in rng.sample(sorted(topics), 2 if rng.random() < 0.3 else 1):
        questions, answers = topics[topic]
        turns.append((_vary(rng, rng.choice(questions), first=not turns), rng.choice(answers)))
    if rng.random() < 0.15:
        turns.append(rng.choice(_rows("goodbyes")))
    messages: list[Message] = [
        {"role": role, "content": text}
        for turn in turns
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]
    if rng.random() < 0.1:
        messages.insert(0, {"role": "system", "content": rng.choice(_rows("system"))[0]})
    return {"messages": messages}


def _vary(rng: random.Random, question: str, *, first: bool) -> str:
    """The question as different people might type it."""
    style = rng.random()
    if style < 0.15:
        return question.lower()
    if style < 0.3:
        return question.rstrip("?.").lower()
    if first and style < 0.45:
        return f"{rng.choice(_rows('openings'))[0]} {question}"
    if style < 0.5:
        return question.upper()
    return question
