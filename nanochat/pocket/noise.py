"""How people type: lower case, missing punctuation, a greeting, a "please", a typing mistake."""

import random
import re

from nanochat.pocket.core import pick
from nanochat.pocket.vocabulary import mistyped

LOWER_SHARE = 0.12
BARE_SHARE = 0.10  # without the final punctuation mark
PREFIX_SHARE = 0.06
MISTAKE_SHARE = 0.10
PLEASE_SHARE = 0.03
SHOUT_SHARE = 0.005
PREFIXES = (
    "Hi! ", "Hello! ", "Hey! ", "Please: ", "Quick question: ", "I have a question. ", "Okay. ",
    "Next: ", "Now: ", "Hello there! ", "Hm. ", "Well. ",
)  # fmt: skip
_ASKED = re.compile(r"(What|Which|Who|Where|How|Can|Do|Tell|Name|Say|Spell|Count|Write) .*\w[?.]$")
_WORD = re.compile(r"(?<![\w'\"])[a-z]{4,}(?![\w'\"-])")


def typed(rng: random.Random, text: str, protected: str = "") -> str:
    """The text as a person might type it.

    protected: words that are never mistyped: what the question is about.
    """
    if rng.random() < MISTAKE_SHARE:
        text = _with_mistake(rng, text, protected)
    if rng.random() < PREFIX_SHARE:
        text = pick(rng, PREFIXES) + text
    if rng.random() < PLEASE_SHARE and _ASKED.match(text):
        text = text[:-1] + pick(rng, (", please", " please")) + text[-1]
    chance = rng.random()
    if chance < LOWER_SHARE:
        text = text.lower()
    elif chance < LOWER_SHARE + SHOUT_SHARE:
        text = text.upper()
    if rng.random() < BARE_SHARE and text[-1] in ".?":
        text = text[:-1]
    return text


def _with_mistake(rng: random.Random, text: str, protected: str) -> str:
    keep = f"{protected.lower()} colour color"  # one mistake could turn these into each other
    places = [
        found
        for found in _WORD.finditer(text)
        if found.group() not in keep and found.group().removesuffix("s") not in keep
    ]
    if not places:
        return text
    found = pick(rng, places)
    return text[: found.start()] + mistyped(rng, found.group()) + text[found.end() :]
