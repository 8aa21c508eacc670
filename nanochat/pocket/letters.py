"""Spelling words and counting letters, in chats and in base text."""

import random
from functools import cache

from nanochat.pocket.core import Turn, listed, pick
from nanochat.pocket.names import looks_like_name
from nanochat.pocket.noise import typed
from nanochat.pocket.vocabulary import (
    MAX_LETTERS,
    MIN_LETTERS,
    held_out_words,
    is_held_out,
    trained_words,
)

SPELL_WORDINGS = (
    "How do you spell {w}?", "Spell {w}.", "Spell the word {w}.", "Can you spell {w}?",
    "Please spell {w}.", "How is {w} spelled?", "What are the letters of {w}?",
    "How do I spell {w}?", "Write {w} letter by letter.", "Tell me the letters of the word {w}.",
    "How do you spell the word {w}?", "Say the letters of {w}.", "Spell {w} for me, please.",
    'How do you spell "{w}"?',
)  # fmt: skip
COUNT_WORDINGS = (
    "How many times does the letter {l} occur in {w}?", "How many {l} are in {w}?",
    "How often does {l} stand in {w}?", "Count the letter {l} in {w}.",
    "How many letters {l} are there in {w}?", "How often do you see {l} in the word {w}?",
    "How many times is {l} in the word {w}?", "How many times do you find {l} in {w}?",
    'How many {l} are there in "{w}"?', "In the word {w}, how many {l} are there?",
    "Can you count the letter {l} in {w}?", "Tell me how many times {l} is in {w}.",
)  # fmt: skip
LENGTH_WORDINGS = (
    "How many letters does {w} have?", "How many letters are in {w}?", "How long is the word {w}?",
    "Count the letters of {w}.", "What is the number of letters in {w}?",
    "How many letters has the word {w}?",
)  # fmt: skip
ALPHABET = "abcdefghijklmnopqrstuvwxyz"
_SYLLABLES = listed(
    "ba be bi bo bu ca co cu da de di do du fa fe fi fo fu ga ge go gu ha he hi ho hu ja jo ka "
    "ke ki la le li lo lu ma me mi mo mu na ne ni no nu pa pe pi po pu qua ra re ri ro ru sa se "
    "si so su ta te ti to tu va ve vi vo wa we wi ya yo za ze zi bla bri cha che chi cla cre "
    "dra dri fla fre gla gri kno pla pre qui sha she shi ska sla smi sna spo sta ste stra swi "
    "tha the thi tra tri tru wha whe wri an ar as at ed el en er es in ing ion is it le ly ment "
    "ness on or ow ight ock ack ell ill "
)


def spelled(word: str) -> str:
    """The letters with spaces between them: "c a t"."""
    return " ".join(word)


def counted(word: str, letter: str | None) -> str:
    """The letters, each counted one followed by how many there were: "b a1 n a2 n a3".

    letter: the one to count; None counts all.
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
    """Letters that look like a word: syllables, or two words cut and joined; none held out."""
    while True:
        if rng.random() < 0.5:
            word = "".join(pick(rng, _SYLLABLES) for _ in range(1 + int(rng.random() * 4)))
        else:
            first, second = pick(rng, trained_words()), pick(rng, trained_words())
            cut = 1 + int(rng.random() * (len(first) - 1))
            word = first[:cut] + second[int(rng.random() * (len(second) - 1)) :]
        fits = MIN_LETTERS <= len(word) <= MAX_LETTERS and not looks_like_name(word)
        if fits and not is_held_out(word):
            return word


def word_to_spell(rng: random.Random) -> str:
    """A word of the training set, now and then a made-up one."""
    return made_up_word(rng) if rng.random() < 0.3 else pick(rng, trained_words())


def letter_to_count(rng: random.Random, word: str) -> str:
    """Mostly a letter of the word, the repeated ones more often."""
    if rng.random() < 0.15:
        return pick(rng, ALPHABET)
    repeated = [letter for letter in word if word.count(letter) > 1]
    if repeated and rng.random() < 0.5:
        return pick(rng, repeated)
    return pick(rng, word)


def spelling_turn(rng: random.Random, word: str) -> Turn:
    question = pick(rng, SPELL_WORDINGS).format(w=word)
    return Turn(typed(rng, question, word), spelled(word))


def counting_turn(rng: random.Random, word: str) -> Turn:
    """How often a letter stands in the word, spelling it out first."""
    letter = letter_to_count(rng, word)
    question = pick(rng, COUNT_WORDINGS).format(w=word, l=letter)
    reply = f"{counted(word, letter)}. The answer is {word.count(letter)}."
    return Turn(typed(rng, question, word), reply)


def length_turn(rng: random.Random, word: str) -> Turn:
    question = pick(rng, LENGTH_WORDINGS).format(w=word)
    return Turn(typed(rng, question, word), f"{counted(word, None)}. The answer is {len(word)}.")


def spelled_document(rng: random.Random) -> str:
    """Base text: words and their letters, said in one of several ways."""
    chosen = [word_to_spell(rng) for _ in range(10)]
    way = rng.random()
    if way < 0.35:
        return "\n".join(f"{word}: {spelled(word)}" for word in chosen)
    if way < 0.5:
        return "\n".join(f"{spelled(word)}: {word}" for word in chosen)
    if way < 0.65:
        return " ".join(f"The word {word} is spelled {spelled(word)}." for word in chosen[:6])
    if way < 0.75:
        return " ".join(f"{spelled(word)} makes {word}." for word in chosen[:7])
    if way < 0.85:
        return "\n".join(
            f"{word}: {counted(word, None)}. {len(word)} letters." for word in chosen[:6]
        )
    lines = []
    for word in chosen[:6]:
        letter = letter_to_count(rng, word)
        lines.append(f"{letter} in {word}: {counted(word, letter)}. {word.count(letter)}.")
    return "\n".join(lines)


@cache
def _alphabet_rows() -> tuple[str, ...]:
    rows = (ALPHABET[start : start + 6] for start in range(20))
    return tuple(row for row in rows if not is_held_out(row))


def letters_document(rng: random.Random) -> str:
    """Base text: the alphabet and rows of letters, said again."""
    if rng.random() < 0.4:
        row = pick(rng, _alphabet_rows())
        return f"The alphabet: {spelled(ALPHABET)}. After {row[0]} comes {row[1]}. {spelled(row)}."
    rows = ["".join(pick(rng, ALPHABET) for _ in range(8)) for _ in range(4)]
    rows = [row for row in rows if not is_held_out(row)]
    return "\n".join(f"{spelled(row)}. Again: {spelled(row)}." for row in rows)


def held_out_word(rng: random.Random) -> str:
    return pick(rng, held_out_words())
