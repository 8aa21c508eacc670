"""Composed word problems: a start, one or two events and a question, each phrased in many ways.

Owns the list of compositions, their steps, numbers and phrasing. A fifth of the compositions is
kept out of training, and so is every composition that would paraphrase a held-out template.
"""

import random
import re
from dataclasses import dataclass
from functools import cache
from itertools import product

from nanochat.pocket.core import pick, stable_hash
from nanochat.pocket.tables import by_kind, columns, sections, words

# Compositions that paraphrase a held-out template; and sizes with a loss, because otherwise every
# one-step comparison would mean less.
HELD_OUT = """
stuff plain loss loss left
things plain half gain now
sizes plain gain mine
sizes plain loss mine
ages plain loss both
work sum repeat loss left
"""

MAX_STEPS = 3
HELD_OUT_SHARE = 5  # one composition in five
STARTS = ("plain", "product", "sum")
EVENTS = ("gain", "loss", "gains", "losses", "half", "double", "repeat")
ENDS = ("now", "left", "share", "group", "value", "ratio", "over", "under", "plus")
COMPARING_ENDS = ("mine", "both", "times", "plus", "less")
COMPARING = ("sizes", "lengths", "ages")  # kinds whose event describes a second thing
REPEATING = "work"  # the kind whose start is always followed by a repetition
LATE_SHARE = 0.5  # of the problems that allow it: the start is told after the first event
EARLY_SHARE = 0.4  # of the other problems that allow it: the end is told before the start
_LATE = re.compile(r"#( \w+)? (\{t\}|coins|\{u\} of \{l\})| than | as (the \{o1\}|\{n\})")
_NOT_FIRST = re.compile(r"\{him\}|\{his\}|^(Then|Later|Soon|Half) ")
_EARLY = re.compile(r"\{t\}.*#|#.*\{t\}|# (coins|\{u\})")
_NOT_EARLY = re.compile(
    r"\b([Tt]hem|[Tt]hey|it|that|this|all|more|other|others|then|of the|the \{t\}|also)\b"
    r"|^The \{t\}|\{him\}|\{his\}|\{w\}"
)

JOINED_SHARE = 0.3  # of the sentences are joined to the previous one
_NOT_JOINED = re.compile(r"^(Before|At first|The \{(o1|h)\}|There )|\{He\}|,")

# What a part does to the amount so far (n), with its own numbers # and & (## in the table); r is
# the result of the previous step and s the start.
_STEPS = {
    "plain": (), "product": ("#*&",), "sum": ("#+&",), "gain": ("n+#",), "loss": ("n-#",),
    "gains": ("#*&", "n+r"), "losses": ("#*&", "n-r"), "half": ("n/2",), "double": ("2*n",),
    "repeat": ("n*#",),
    "now": (), "left": (), "share": ("n/#",), "group": ("n/#",), "value": ("n*#",),
    "mine": (), "both": ("s+n",), "times": ("n*#",), "less": ("n-#",),
    "ratio": ("n*#",), "over": ("n-#",), "under": ("#-n",), "plus": ("n+#",),
}  # fmt: skip


@dataclass(frozen=True)
class Composition:
    """One kind of amount, and its parts in order: a start, events and an end."""

    kind: str
    parts: tuple[str, ...]
    steps: tuple[tuple[str, str, str], ...]

    @property
    def name(self) -> str:
        return f"{self.kind} {' '.join(self.parts)}"

    def draw_numbers(self, rng: random.Random) -> dict[str, int]:
        """Numbers for all parts; a result may still be below one or not an integer."""
        values: dict[str, int] = {}
        total = 0
        for index, part in enumerate(self.parts):
            found = _numbers(rng, part, total)
            if self.kind == "ages" and index == 0:
                found = [found[0] // 2 + 2]  # of people
            values |= dict(zip(_letters(self.parts, index), found, strict=True))
            total = _total(part, total, found)
        return values

    def cast(self, rng: random.Random) -> dict[str, str]:
        """Slots of this kind of amount that replace the common ones."""
        found = {"t2": pick(rng, words("cast", "extra things"))}
        if self.kind == "things":
            found["t"] = pick(rng, _things())
        for names, choices in _casts()[self.kind]:
            drawn = pick(rng, choices).split("|")
            found |= dict(zip(names, drawn, strict=True))
        return found

    def wording(self, rng: random.Random) -> tuple[str, tuple[str, ...]]:
        """A text and its one question, with slots and alternatives still to be filled in."""
        phrases = [pick(rng, _phrases()[self.kind][part]) for part in self.parts]
        cut = phrases[-1].rfind(". ") + 1
        phrases[-1], question = phrases[-1][:cut].strip(), phrases[-1][cut:].strip()
        order = list(range(len(phrases)))
        late = self._late_phrases(rng)
        if late is not None:
            phrases[:2] = late
            order[:2] = [1, 0]
        elif rng.random() < EARLY_SHARE and _can_be_early(phrases[-1]):
            phrases = [phrases[-1], *phrases[:-1]]
            order = [order[-1], *order[:-1]]
        sentences = [
            _numbered(phrase, _letters(self.parts, index))
            for phrase, index in zip(phrases, order, strict=True)
            if phrase
        ]
        asked = _numbered(question, _letters(self.parts, len(self.parts) - 1))
        return " ".join(_joined(rng, _with_pronouns(sentences))), (asked,)

    def _late_phrases(self, rng: random.Random) -> list[str] | None:
        """The first event followed by the start; None where that order is impossible."""
        phrases = _phrases()[self.kind]
        starts = phrases.get(f"late {self.parts[0]}")
        if starts is None or len(self.parts) < 3 or rng.random() > LATE_SHARE:
            return None
        events = [
            phrase
            for phrase in phrases[self.parts[1]]
            if _LATE.search(phrase) and not _NOT_FIRST.search(phrase)
        ]
        if not events:
            return None
        event, start = pick(rng, events), pick(rng, starts)
        if "##" in event and not re.search(r"\{[tu]\}|coins", start):
            return None  # it would be unclear what is counted
        if "w" in {name for names, _ in _casts()[self.kind] for name in names}:
            event = "{w}, " + event[:1].lower() + event[1:]
        elif "{he}" in start.lower() and "{S}" not in event:
            return None
        return [event, start]


def _can_be_early(statement: str) -> bool:
    """Whether the statement before the question can open the problem."""
    return _EARLY.search(statement) is not None and not _NOT_EARLY.search(statement)


def _numbers(rng: random.Random, part: str, total: int) -> list[int]:
    """Numbers that suit a part, given the amount so far."""

    def between(low: int, high: int) -> int:
        return low + int(rng.random() * (max(high, low) - low + 1))

    if part in ("plain", "sum"):
        return [between(4, 99)] if part == "plain" else [between(2, 60), between(2, 60)]
    if part == "product":
        return [between(2, 12), between(2, 20)]
    if part in ("gains", "losses"):
        return [between(2, 8), between(2, 12 if part == "gains" else min(12, total // 3))]
    if part in ("share", "group"):
        return [pick(rng, [n for n in range(2, 13) if total % n == 0] or [2])]
    if part in ("loss", "over", "less"):
        return [between(2, min(total - 1, 60))]
    if part in ("value", "ratio", "times", "repeat"):
        return [between(2, 9 if part == "repeat" else 12)]
    if part == "under":
        return [total + between(2, 60)]
    return [between(2, 60)] if part in ("gain", "plus") else []


def _total(part: str, total: int, found: list[int]) -> int:
    """The amount after a part (not an end)."""
    first = found[0] if found else 0
    if part in ("product", "gains", "losses"):
        made = first * found[1]
        return made if part == "product" else total + (made if part == "gains" else -made)
    if part in ("gain", "loss"):
        return total + (first if part == "gain" else -first)
    if part == "repeat":
        return total * first
    if part in ("half", "double"):
        return total // 2 if part == "half" else total * 2
    return sum(found)


@cache
def _letters(parts: tuple[str, ...], index: int) -> str:
    """The letters that name the numbers of the part at this index."""
    counts = [1 if any("#" in s for s in _STEPS[p]) or p == "plain" else 0 for p in parts]
    counts = [n + any("&" in s for s in _STEPS[p]) for n, p in zip(counts, parts, strict=True)]
    start = sum(counts[:index])
    return "abcdefg"[start : start + counts[index]]


def _numbered(phrase: str, letters: str) -> str:
    """The phrase with slots in place of # and ##."""
    if len(letters) == 2:
        phrase = phrase.replace("##", f"{{{letters[1]}}}")
    return phrase.replace("#", f"{{{letters[0]}}}") if letters else phrase


def _with_pronouns(sentences: list[str]) -> list[str]:
    """Name the person at first and after another person was mentioned; otherwise use "he"."""
    found = []
    known = False
    for phrase in sentences:
        for piece in re.split(r"(?<=\.) ", phrase):
            found.append(piece.replace("{S}", "{he}" if known else "{n}", 1))
            known = "{m}" not in piece and ("{n}" in found[-1] or known)
            found[-1] = found[-1].replace("{S}", "{he}")
    return found


def _joined(rng: random.Random, sentences: list[str]) -> list[str]:
    """The sentences, some of them joined in pairs by "and"."""
    found: list[str] = []
    joined = False
    for sentence in sentences:
        before = found[-1] if found else ","
        joined = not joined and rng.random() < JOINED_SHARE and "," not in before
        if not joined or _NOT_JOINED.search(sentence):
            joined = False
            found.append(sentence)
        elif before.startswith(("{n} ", "{he} ")) and sentence.startswith("{he} "):
            found[-1] = f"{before[:-1]} and {sentence.removeprefix('{he} ')}"
        else:
            found[-1] = f"{before[:-1]}, and {sentence[:1].lower()}{sentence[1:]}"
    return found


def _steps(parts: tuple[str, ...]) -> tuple[tuple[str, str, str], ...]:
    amount, results, steps = "a", iter("xyzuvw"), []
    for index, part in enumerate(parts):
        letters = _letters(parts, index)
        made = ""
        for step in _STEPS[part]:
            names = {"#": letters[:1], "&": letters[1:], "n": amount, "r": made, "s": "a"}
            steps.append((names.get(step[0], step[0]), step[1], names.get(step[2], step[2])))
            made = next(results)
        amount = made or amount
    return tuple(steps)


@cache
def compositions(*, held_out: bool) -> tuple[tuple[Composition, ...], ...]:
    """The compositions of one, two and three steps: those for training, or those held out."""
    found: list[list[Composition]] = [[] for _ in range(MAX_STEPS)]
    banned = set(HELD_OUT.strip().splitlines())
    for kind, phrases in _phrases().items():
        comparing = kind in COMPARING
        for count in (1,) if comparing else (0, 1, 2):
            ends = COMPARING_ENDS if comparing else ENDS
            for parts in product(STARTS, *([EVENTS] * count), ends):
                steps = _steps(parts)
                ended_by_loss = parts[-2] in ("loss", "losses", "half")
                fits = parts[-1] not in ("now", "left") or (
                    (parts[-1] == "left") == ended_by_loss and count > 0
                )
                repeated = [part == "repeat" for part in parts]
                fits &= repeated[1] == (kind == REPEATING) and not any(repeated[2:])
                if not (0 < len(steps) <= MAX_STEPS and fits and set(parts) <= set(phrases)):
                    continue
                name = f"{kind} {' '.join(parts)}"
                if (name in banned or stable_hash(name) % HELD_OUT_SHARE == 0) == held_out:
                    found[len(steps) - 1].append(Composition(kind, parts, steps))
    return tuple(map(tuple, found))


def draw_composition(rng: random.Random) -> Composition:
    """A composition for training, most often one with two steps."""
    return pick(rng, compositions(held_out=False)[pick(rng, (0, 0, 0, 1, 1, 1, 1, 2, 2, 2))])


@cache
def _phrases() -> dict[str, dict[str, tuple[str, ...]]]:
    """kind -> part -> its phrases."""
    return {
        kind: {part: columns(texts[0]) for part, texts in by_kind(lines).items() if part != "cast"}
        for kind, lines in sections("events").items()
    }


@cache
def _casts() -> dict[str, list[tuple[list[str], tuple[str, ...]]]]:
    """kind -> (slots, their possible values) for each "cast" line."""
    found: dict[str, list[tuple[list[str], tuple[str, ...]]]] = {}
    for kind, lines in sections("events").items():
        drawn = [text.split("=") for text in by_kind(lines)["cast"]]
        found[kind] = [(slots.split(), tuple(values.split(","))) for slots, values in drawn]
    return found


@cache
def _things() -> tuple[str, ...]:
    return words("cast", "things") + words("cast", "extra things")
