"""Spelling words and counting letters, in chats and in base text."""

import random
from functools import cache

from nanochat.pocket.core import Turn, pick
from nanochat.pocket.names import looks_like_name
from nanochat.pocket.noise import typed
from nanochat.pocket.tables import lines, words
from nanochat.pocket.vocabulary import (
    MAX_LETTERS,
    MIN_LETTERS,
    is_held_out,
    trained_words,
)

ALPHABET = "abcdefghijklmnopqrstuvwxyz"


def spelled(word: str) -> str:
    """The letters with spaces between them: "c a t"."""
    return " ".join(word)


def counted(word: str, letter: str | None) -> str:
    """The letters, each counted letter followed by the running count: "b a1 n a2 n a3".

    letter: the letter to count; None counts all. A model reads tokens, not letters, and
    cannot count at a glance; the running count makes every step a small one.
    """
    seen = 0
    pieces = []
    for each in word:
        if letter is None or each == letter:
            seen += 1
            pieces.append(f"{each}{seen}")
        else:
            pieces.append(each)
    return " ".join(pieces)


def made_up_word(rng: random.Random) -> str:
    """A word-like string: syllables, or parts of two words joined; never a held-out word."""
    while True:
        if rng.random() < 0.5:
            syllables = words("spelling_words", "syllables")
            word = "".join(pick(rng, syllables) for _ in range(1 + int(rng.random() * 4)))
        else:
            first, second = pick(rng, trained_words()), pick(rng, trained_words())
            cut = 1 + int(rng.random() * (len(first) - 1))
            word = first[:cut] + second[int(rng.random() * (len(second) - 1)) :]
        fits = MIN_LETTERS <= len(word) <= MAX_LETTERS and not looks_like_name(word)
        if fits and not is_held_out(word):
            return word


def word_to_spell(rng: random.Random) -> str:
    """A word of the training set, or sometimes a made-up one."""
    return made_up_word(rng) if rng.random() < 0.3 else pick(rng, trained_words())


def letter_to_count(rng: random.Random, word: str) -> str:
    """Usually a letter of the word, preferably a repeated one."""
    if rng.random() < 0.15:
        return pick(rng, ALPHABET)
    repeated = [letter for letter in word if word.count(letter) > 1]
    if repeated and rng.random() < 0.5:
        return pick(rng, repeated)
    return pick(rng, word)


def spelling_turn(rng: random.Random, word: str) -> Turn:
    question = pick(rng, lines("questions", "spell")).format(w=word)
    return Turn(typed(rng, question, word), spelled(word))


def counting_turn(rng: random.Random, word: str) -> Turn:
    """How often a letter occurs in the word; the reply spells the word first."""
    letter = letter_to_count(rng, word)
    question = pick(rng, lines("questions", "count")).format(w=word, l=letter)
    reply = f"{counted(word, letter)}. The answer is {word.count(letter)}."
    return Turn(typed(rng, question, word), reply)


def length_turn(rng: random.Random, word: str) -> Turn:
    question = pick(rng, lines("questions", "length")).format(w=word)
    return Turn(typed(rng, question, word), f"{counted(word, None)}. The answer is {len(word)}.")


def spelled_document(rng: random.Random) -> str:
    """Base text: words and their letters in one of several layouts."""
    chosen = [word_to_spell(rng) for _ in range(10)]
    draw = rng.random()
    if draw < 0.35:
        return "\n".join(f"{word}: {spelled(word)}" for word in chosen)
    if draw < 0.5:
        return "\n".join(f"{spelled(word)}: {word}" for word in chosen)
    if draw < 0.65:
        return " ".join(f"The word {word} is spelled {spelled(word)}." for word in chosen[:6])
    if draw < 0.75:
        return " ".join(f"{spelled(word)} makes {word}." for word in chosen[:7])
    if draw < 0.85:
        return "\n".join(
            f"{word}: {counted(word, None)}. {len(word)} letters." for word in chosen[:6]
        )
    counts = []
    for word in chosen[:6]:
        letter = letter_to_count(rng, word)
        counts.append(f"{letter} in {word}: {counted(word, letter)}. {word.count(letter)}.")
    return "\n".join(counts)


@cache
def _alphabet_rows() -> tuple[str, ...]:
    rows = (ALPHABET[start : start + 6] for start in range(20))
    return tuple(row for row in rows if not is_held_out(row))


def letters_document(rng: random.Random) -> str:
    """Base text: the alphabet, or rows of letters, repeated."""
    if rng.random() < 0.4:
        row = pick(rng, _alphabet_rows())
        return f"The alphabet: {spelled(ALPHABET)}. After {row[0]} comes {row[1]}. {spelled(row)}."
    rows = ["".join(pick(rng, ALPHABET) for _ in range(8)) for _ in range(4)]
    rows = [row for row in rows if not is_held_out(row)]
    return "\n".join(f"{spelled(row)}. Again: {spelled(row)}." for row in rows)
