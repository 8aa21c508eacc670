"""What every part of the pocket world shares: seeds, reservation by hash, turns, some grammar.

Owns the rule that decides which contents belong to the evaluation alone (`is_reserved`). Does not
own facts, word lists or kinds of tasks.
"""

import random
from bisect import bisect
from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from itertools import accumulate
from typing import Any, Generic, NamedTuple, TypeVar

from nanochat.system.errors import ConfigError

T = TypeVar("T")
Part = dict[str, str]
Content = str | list[Part]
Conversation = dict[str, Any]

# One in SHARES[kind] contents is kept for the evaluation and never appears in training data.
SHARES = {
    "fact": 4,  # attribute|entity|number of the question wording
    "sum": 10,  # 12+345, the operands of + and * in ascending order
    "word": 5,  # the first letters of words to spell or to count letters in
    "problem": 8,  # the numbers in the order told and the steps of the solution
    "name": 6,  # a name that the world does not know
    "choice": 6,  # group|entity|the options in alphabetical order
    "compare": 8,  # two things or numbers in ascending order
}


class Turn(NamedTuple):
    """One question and its reply."""

    user: str
    reply: Content


def stable_hash(text: str) -> int:
    """A 64-bit hash that is the same in every process and on every machine."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


@lru_cache(maxsize=1 << 16)
def is_reserved(kind: str, content: str) -> bool:
    """Whether this content belongs to the evaluation and must stay out of all training data.

    The hash needs neither a stored list of items nor an order in which generators run: each of them
    checks what it has drawn, and draws again if the content is on the other side.

    Raises: ConfigError for a kind that is not in SHARES.
    """
    if kind not in SHARES:
        raise ConfigError(f"unknown kind {kind!r} of pocket content; use one of {sorted(SHARES)}")
    return stable_hash(f"{kind}:{content}") % SHARES[kind] == 0


def listed(text: str) -> tuple[str, ...]:
    """The words of a text, split at whitespace."""
    return tuple(text.split())


def make_rng(*parts: object) -> random.Random:
    """A generator seeded by the parts; the same in every process."""
    return random.Random(stable_hash("|".join(map(str, parts))))


def pick(rng: random.Random, items: Sequence[T]) -> T:
    """One item, uniformly; three times as fast as rng.choice."""
    return items[int(rng.random() * len(items))]


def sample(rng: random.Random, items: Sequence[T], count: int) -> list[T]:
    """`count` items from different positions; fast if the count is far below the length."""
    if 3 * count > len(items):
        return rng.sample(items, count)
    indices: dict[int, None] = {}
    while len(indices) < count:
        indices[int(rng.random() * len(items))] = None
    return [items[index] for index in indices]


class Weighted(Generic[T]):
    """Draws values with given weights."""

    def __init__(self, weights: dict[T, float]) -> None:
        self.values = list(weights)
        self.bounds = list(accumulate(weights.values()))

    def draw(self, rng: random.Random) -> T:
        return self.values[bisect(self.bounds, rng.random() * self.bounds[-1])]


def cap(text: str) -> str:
    """The text with its first letter in upper case, also after an opening quotation mark."""
    if text.startswith('"'):
        return '"' + text[1:2].upper() + text[2:]
    return text[:1].upper() + text[1:]


# Words that begin with a vowel letter but not with a vowel sound, and the reverse.
_CONSONANT_SOUND = ("uni", "use", "eu", "one")
_VOWEL_SOUND = ("hour", "honest")


def with_article(noun: str) -> str:
    """The noun after "a" or "an"."""
    lower = noun.lower()
    vowel = lower[0] in "aeiou" and not lower.startswith(_CONSONANT_SOUND)
    return f"an {noun}" if vowel or lower.startswith(_VOWEL_SOUND) else f"a {noun}"


def plural(noun: str) -> str:
    """The regular plural of a noun."""
    if noun.endswith(("s", "x", "ch", "sh")):
        return noun + "es"
    if noun.endswith("y") and noun[-2:-1] not in ("a", "e", "i", "o", "u", ""):
        return noun[:-1] + "ies"
    return noun + "s"


def singular(noun: str) -> str:
    """The singular of a regular plural; any other word is returned unchanged."""
    if noun.endswith("ies"):
        return noun[:-3] + "y"
    if noun.endswith("es") and noun[:-2].endswith(("ss", "us", "x", "ch", "sh")):
        return noun[:-2]
    is_singular = len(noun) < 4 or noun.endswith(("ss", "us", "is"))
    return noun[:-1] if noun.endswith("s") and not is_singular else noun


def text_part(text: str) -> Part:
    return {"type": "text", "text": text}


def tool_reply(calls: Sequence[tuple[str, str]], text: str) -> list[Part]:
    """A reply that makes calculator calls, (expression, result) each, and ends with a text."""
    parts: list[Part] = []
    for expression, result in calls:
        parts.append({"type": "python", "text": expression})
        parts.append({"type": "python_output", "text": result})
    parts.append(text_part(text))
    return parts


def as_text(reply: Content) -> str:
    """A reply as plain text, a call and its result written as `12+30=42`."""
    if isinstance(reply, str):
        return reply
    pieces = []
    for part in reply:
        if part["type"] == "python":
            pieces.append(part["text"] + "=")
        elif part["type"] == "python_output":
            pieces.append(part["text"] + ". ")
        else:
            pieces.append(part["text"])
    return "".join(pieces)


def conversation(turns: Sequence[Turn], system: str | None = None) -> Conversation:
    """Turns as a conversation in the package's message format."""
    messages: list[dict[str, Any]] = []
    if system is not None:
        messages.append({"role": "system", "content": system})
    for turn in turns:
        messages.append({"role": "user", "content": turn.user})
        messages.append({"role": "assistant", "content": turn.reply})
    return {"messages": messages}
