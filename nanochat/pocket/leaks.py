"""A scanner that searches training text for evaluation items.

It does not rely on how the text was generated: its own patterns take documents and conversations
apart, and each content they find is checked for being reserved.
"""

import re
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import product
from typing import Any, NamedTuple

from nanochat.pocket.choice import choice_content
from nanochat.pocket.core import Turn, as_text, is_reserved
from nanochat.pocket.names import looks_like_name
from nanochat.pocket.numbers import sizes, sum_content
from nanochat.pocket.problems import numbers_in, problem_content, templates
from nanochat.pocket.vocabulary import MAX_LETTERS, MIN_LETTERS, is_held_out, vocabulary
from nanochat.pocket.world import Fact, facts, group_values

_WORD = re.compile(r"[a-z]+")
_SUM = re.compile(r"(?<![\d.])(\d+) ?([-+*/x]) ?(\d+)(?![\d.])")
_SUMS_IN_WORDS = (
    (re.compile(r"(\d+) plus (\d+)|add (\d+) and (\d+)|sum of (\d+) and (\d+)"), "+"),
    (re.compile(r"(\d+) minus (\d+)|difference between (\d+) and (\d+)"), "-"),
    (re.compile(r"(\d+) times (\d+)|multiply (\d+) by (\d+)"), "*"),
    (re.compile(r"(\d+) divided by (\d+)|divide (\d+) by (\d+)"), "/"),
)
_TAKEN = re.compile(r"(?:take|subtract) \d+ (?:away )?from \d+")  # a plain sum, not a problem
_SPELLED = re.compile(r"(?<![\w'])[a-z]\d{0,2}(?:[ ,-]+[a-z]\d{0,2}){2,}(?![\w'])")
_SPEAKER = re.compile(r"^(?:(Q|User|Question|Human)|(A|Bot|Answer|Nanochat)): ", re.MULTILINE)
_STEP = re.compile(r"(\d+)([-+*/])(\d+)=")
_OPTIONS = re.compile(r"([^\n,]+) a(?:, |\n)([^\n,]+) b(?:, |\n)([^\n,]+) c(?:, |\n)([^\n,.]+) d\b")
_COMPARED = re.compile(r"(?:is (?:bigger|smaller)|yes|no)\.?$")


def find_leaks(streams: Iterable[str | dict[str, Any]]) -> list[str]:
    """The evaluation items found in texts and conversations; an empty list if all is well."""
    found: list[str] = []
    for item in streams:
        text, turns = _read(item)
        lower = text.lower()
        for leak in (*_sums(lower), *_spelled(lower), *_names(text), *_questions(lower)):
            found.append(f"{leak} in {text[:200]!r}")
        for turn in turns:
            for leak in (*_problems(turn), *_choices(turn), *_comparisons(turn)):
                found.append(f"{leak} in {text[:200]!r}")
    return found


def _read(item: str | dict[str, Any]) -> tuple[str, list[Turn]]:
    """The full text, and its questions with their replies."""
    if not isinstance(item, str):
        texts = [as_text(message["content"]) for message in item["messages"]]
        if item["messages"][0]["role"] == "system":
            texts = texts[1:]
        pairs = zip(texts[::2], texts[1::2], strict=True)
        return "\n".join(texts), [Turn(user, reply) for user, reply in pairs]
    turns = []
    pieces = _SPEAKER.split(item)  # text, asks or None, replies or None, text, ...
    for index in range(1, len(pieces) - 5, 3):
        if pieces[index] and pieces[index + 4]:
            turns.append(Turn(pieces[index + 2].strip(), pieces[index + 5].strip()))
    return item, turns


def _sums(lower: str) -> Iterator[str]:
    for a, op, b in _SUM.findall(lower):
        op = "*" if op == "x" else op
        if is_reserved("sum", sum_content(int(a), op, int(b))):
            yield f"sum {a}{op}{b}"
    for pattern, op in _SUMS_IN_WORDS:
        for match in pattern.finditer(lower):
            a, b = (int(group) for group in match.groups() if group)
            if is_reserved("sum", sum_content(a, op, b)):
                yield f"sum {a}{op}{b}"


def _spelled(lower: str) -> Iterator[str]:
    for match in _SPELLED.finditer(lower):
        word = "".join(letter for letter in match.group() if letter.isalpha())
        if MIN_LETTERS <= len(word) <= MAX_LETTERS and is_held_out(word):
            yield f"word {word}"


def _names(text: str) -> Iterator[str]:
    for word in set(_WORD.findall(text.lower())) - vocabulary():
        if looks_like_name(word) and is_reserved("name", word):
            yield f"name {word}"


class _Reserved(NamedTuple):
    """Lookup tables of reserved questions, which are in words without the mark at the end."""

    full: frozenset[str]
    firsts: frozenset[str]
    holed: dict[str, set[str]]  # question with "*" for one word -> the words missing there
    around: frozenset[tuple[str, str]]  # the words before and after each such hole
    lengths: tuple[int, ...]


@cache
def _reserved_questions() -> _Reserved:
    questions = [
        _tokens(question.lower().rstrip("?."))
        for fact in facts()
        for question in (*fact.reserved, *fact.new)
    ]
    holed: dict[str, set[str]] = {}
    around = set()
    for words in questions:
        for index, word in enumerate(words):
            if len(word) >= 4:
                key = " ".join([*words[:index], "*", *words[index + 1 :]])
                holed.setdefault(key, set()).add(word)
                around.add(_neighbors(words, index))
    return _Reserved(
        frozenset(" ".join(words) for words in questions),
        frozenset(words[0] for words in questions),
        holed,
        frozenset(around),
        tuple(sorted({len(words) for words in questions})),
    )


def _neighbors(words: list[str], index: int) -> tuple[str, str]:
    """The words before and after an index; "" at the end of a sentence or of the text."""
    before = words[index - 1] if index else ""
    after = words[index + 1] if index + 1 < len(words) else ""
    return before if before.isalpha() else "", after if after.isalpha() else ""


def _tokens(lower: str) -> list[str]:
    return re.findall(r"[a-z]+|\.\.\.|[?.!,:\n-]", lower)


def _stands_alone(words: list[str], start: int, end: int) -> bool:
    """Whether words[start:end] is a complete sentence and not part of a longer one."""
    opens = start == 0 or not words[start - 1].isalpha()
    closes = (
        end >= len(words)
        or not words[end].isalpha()
        or words[end] in ("options", "choose", "please")
    )
    return opens and closes


def _questions(lower: str) -> Iterator[str]:
    """Reserved questions, exact or with one typing mistake."""
    reserved = _reserved_questions()
    words = _tokens(lower)
    for start, word in enumerate(words):
        if word in reserved.firsts and (start == 0 or not words[start - 1].isalpha()):
            for length in reserved.lengths:
                key = " ".join(words[start : start + length])
                if key in reserved.full and _stands_alone(words, start, start + length):
                    yield f"question {key!r}"
        if len(word) >= 3 and word not in vocabulary():
            yield from _mistyped_questions(words, start)


def _mistyped_questions(words: list[str], index: int) -> Iterator[str]:
    """Reserved questions in which the word at this index is mistyped."""
    reserved = _reserved_questions()
    before, after = _neighbors(words, index)
    if not any((b, a) in reserved.around for b in (before, "") for a in (after, "")):
        return
    for length in reserved.lengths:
        for start in range(max(0, index - length + 1), index + 1):
            if start and words[start - 1].isalpha():
                continue
            window = words[start : start + length]
            window[index - start] = "*"
            meant = reserved.holed.get(" ".join(window), set())
            if any(_one_mistake(words[index], other) for other in meant) and _stands_alone(
                words, start, start + length
            ):
                yield f"question {' '.join(window)!r} with {words[index]!r}"


def _one_mistake(wrong: str, right: str) -> bool:
    """Whether one letter is missing, doubled, changed, or two are swapped."""
    if abs(len(wrong) - len(right)) > 1:
        return False
    start = 0
    while start < min(len(wrong), len(right)) and wrong[start] == right[start]:
        start += 1
    a, b = wrong[start:], right[start:]
    swapped = len(a) > 1 and len(b) > 1 and a[:2] == b[1::-1] and a[2:] == b[2:]
    return a[1:] == b or a == b[1:] or a[1:] == b[1:] or swapped


def _problems(turn: Turn) -> Iterator[str]:
    steps = ["".join(step) for step in _STEP.findall(as_text(turn.reply))]
    plain = (
        _SUM.search(turn.user)
        or _COMPARED.search(as_text(turn.reply).lower())  # read by _comparisons
        or any(p.search(turn.user.lower()) for p in (_TAKEN, *(p for p, _ in _SUMS_IN_WORDS)))
    )
    if steps and not plain and len(turn.user.split()) > 10:
        if is_reserved("problem", problem_content(turn.user, steps)):
            yield "problem"
        tokens = _with_holes(turn.user)
        for index, word in enumerate(tokens):
            for name, anchor, sentence in _held_out_sentences().get(word, ()):
                start = index - anchor
                if start >= 0 and _fits(tokens[start : start + len(sentence)], sentence):
                    yield f"template {name}"


@cache
def _held_out_sentences() -> dict[str, list[tuple[str, int, list[str]]]]:
    """The sentences that only held-out templates produce, with the holes "*" and "#".

    They are grouped by their longest word, as (template, index of that word, sentence).
    """
    trained = [sentence for text in _all_wordings(held_out=False) for sentence in _split(text)]
    found: dict[str, list[tuple[str, int, list[str]]]] = {}
    for template in templates(held_out=True):
        for text in (*template.texts, *template.questions):
            for sentence in _split(text):
                literal = len(sentence) - sentence.count("*") - sentence.count("#")
                if literal >= 3 and not any(_makes(other, sentence) for other in trained):
                    longest = max(sentence, key=len)
                    entry = (template.name, sentence.index(longest), sentence)
                    found.setdefault(longest, []).append(entry)
    return found


def _all_wordings(*, held_out: bool) -> Iterator[str]:
    for template in templates(held_out=held_out):
        for text in (*template.texts, *template.questions):
            pieces = re.split(r"<([^>]*)>", text)
            drawn = [p.split("/") if index % 2 else [p] for index, p in enumerate(pieces)]
            yield from map("".join, product(*drawn))


def _split(text: str) -> list[list[str]]:
    return [_with_holes(sentence) for sentence in re.split(r"(?<=[.?:,]) ", text)]


def _with_holes(text: str) -> list[str]:
    numbered = re.sub(r"\{[a-e]\}", "#", text)
    return re.findall(r"[a-z0-9-]+|[*#]", re.sub(r"\{\w+\}", "*", numbered).lower())


def _makes(wording: list[str], sentence: list[str]) -> bool:
    """Whether a trained wording, or a part of it, can be filled in to give this sentence."""
    part = any(
        all(b in (a, "*", "#") for a, b in zip(wording[start:], sentence, strict=False))
        for start in range(len(wording) - len(sentence) + 1)
    )
    return part or (len(wording) == len(sentence) and _fits(wording, sentence))


def _fits(tokens: list[str], sentence: list[str]) -> bool:
    """Whether a text contains a sentence with holes; the text may have holes itself."""
    return any(
        all(a == b or _fills(a, b) for a, b in zip(tokens[start:], sentence, strict=False))
        for start in range(len(tokens) - len(sentence) + 1)
    )


def _fills(word: str, hole: str) -> bool:
    """Whether a word fits a hole ("#" takes a number, "*" anything), in either order."""
    if word in "*#":
        word, hole = hole, word
    return hole == "*" or (hole == "#" and bool(numbers_in(word)))


@cache
def _facts_by_value() -> dict[str, tuple[Fact, ...]]:
    grouped: dict[str, list[Fact]] = {}
    for fact in facts():
        grouped.setdefault(fact.value.lower(), []).append(fact)
    return {value: tuple(members) for value, members in grouped.items()}


def _choices(turn: Turn) -> Iterator[str]:
    """Reserved choices: the question asks for a fact, and these are its four options."""
    lower = turn.user.lower()
    match = _OPTIONS.search(lower)
    if match is None:
        return
    first, *others = match.groups()
    question = lower[: match.start()] + first
    for value in others + [other for other in _facts_by_value() if first.endswith(other)]:
        for fact in _facts_by_value().get(value, ()):
            values = {known.lower(): known for known in group_values(fact.group)}
            starts = [known for known in values if first.endswith(known)]
            if not all(other in values for other in others) or not starts:
                continue
            options = tuple(values[option] for option in (max(starts, key=len), *others))
            content = choice_content(fact, options)
            if is_reserved("choice", content) and _asks(fact, question):
                yield f"choice {content}"


def _asks(fact: Fact, question: str) -> bool:
    """Whether a text asks for the fact in any wording, with at most one word mistyped."""
    tokens = _WORD.findall(question)
    for wording in fact.questions:
        words = _WORD.findall(wording.lower())
        for start in range(len(tokens) - len(words) + 1):
            wrong = [(a, b) for a, b in zip(tokens[start:], words, strict=False) if a != b]
            if not wrong or (len(wrong) == 1 and _mistyped(*wrong[0])):
                return True
    return False


def _mistyped(wrong: str, right: str) -> bool:
    return wrong not in vocabulary() and _one_mistake(wrong, right)


def _comparisons(turn: Turn) -> Iterator[str]:
    reply, lower = str(turn.reply).lower(), turn.user.lower()
    if _COMPARED.search(reply) is None:
        return
    numbers = re.findall(r"\d+", lower)
    if len(numbers) == 2:
        low, high = sorted(map(int, numbers))
        if is_reserved("compare", f"{low}|{high}"):
            yield f"comparison {low}, {high}"
    things = [thing for thing in sizes() if re.search(rf"\b{thing}\b", lower)]
    if len(things) == 2 and is_reserved("compare", "|".join(things)):
        yield f"comparison {things}"
