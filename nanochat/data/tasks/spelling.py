"""Spelling words and counting their letters, which models that read tokens cannot see.

Owns the wordings and the split of a word list; no training row has a word of the test split. Item i
depends only on the split, the seed and i.
"""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nanochat.data.tasks.common import Conversations, GenerateTask, exchange, in_share
from nanochat.data.tasks.gsm8k import final_number
from nanochat.system import downloads, storage
from nanochat.system.errors import DataError
from nanochat.tokenizer.conversation import Conversation

WORDS_URL = "https://raw.githubusercontent.com/dwyl/english-words/master/words_alpha.txt"
TEST_SHARE = 0.05  # of all words
ALPHABET = "abcdefghijklmnopqrstuvwxyz"

SPELL_REQUESTS = (
    "Spell the word {word}.",
    "spell {word}",
    "How is {word} spelled?",
    "How do you spell the word '{word}'?",
    "Please write {word} letter by letter.",
    'What are the letters of "{word}", in order?',
    "Which letters make up the word {word}?",
    "Can you spell {word} for me?",
)
COUNT_REQUESTS = (
    "How many {letter} are in {word}?",
    "how many {letter}'s are there in {word}",
    "Count the letter {letter} in the word {word}.",
    "How often does '{letter}' occur in '{word}'?",
    "In the word {word}, how many times do you find the letter {letter}?",
    "What is the number of {letter} in {word}?",
    'Tell me how many times {letter} appears in "{word}".',
    "{word}: how many {letter}?",
)


class LetterCounting(GenerateTask):
    """How often a letter occurs in a word: spelled out, then checked with the calculator."""

    def __init__(self, words: Sequence[str], split: str, *, size: int, seed: int = 0) -> None:
        kept = split_words(words, split)
        draws = [_draw_count(kept, split, seed, i) for i in range(size)]
        super().__init__("LetterCounting", draws, _count_conversation)
        self._draws = draws

    def evaluate(self, index: int, text: str) -> bool:
        """Whether the number after #### is right."""
        word, letter, _ = self._draws[index]
        return final_number(text) == word.count(letter)


def simple_spelling(words: Sequence[str], split: str, *, size: int, seed: int = 0) -> Conversations:
    """Requests to spell a word, and the word's letters."""
    kept = split_words(words, split)
    draws = []
    for i in range(size):
        rng = random.Random(f"spelling {split} {seed} {i}")
        draws.append((rng.choice(kept), rng.choice(SPELL_REQUESTS)))
    return Conversations("SimpleSpelling", draws, _spelling_conversation)


def load_words(path: Path | None = None) -> list[str]:
    """The lowercase words of a list, one per line; without a path, of a downloaded list.

    Raises: DataError if the list does not exist or contains no lowercase words.
    """
    if path is None:
        path = storage.base_dir() / "data" / "words_alpha.txt"
        if not path.exists():
            downloads.fetch(storage.mirrored(WORDS_URL), path)
    try:
        lines = path.read_text(encoding="utf-8").split()
    except (FileNotFoundError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not a word list (UTF-8, one word per line): {error}") from None
    words = sorted({word for word in lines if word.isascii() and word.isalpha() and word.islower()})
    if not words:
        raise DataError(f"{path} contains no lowercase words; write one per line")
    return words


def split_words(words: Sequence[str], split: str) -> list[str]:
    """The words of "train" or "test"; a word's split depends on the word alone.

    Raises: DataError if the split is empty.
    """
    kept = [word for word in words if in_share(f"word {word}", TEST_SHARE) == (split == "test")]
    if not kept:
        raise DataError(f"none of {len(words)} words is in the {split} split; give more words")
    return kept


def spelled(word: str) -> str:
    """The word's letters, each after a space, so that all are tokenized alike."""
    return "".join(f" {letter}" for letter in word)


def _spelling_conversation(draw: tuple[str, str]) -> Conversation:
    word, request = draw
    return exchange(request.format(word=word), f"{word}:{spelled(word)}")


def _draw_count(words: Sequence[str], split: str, seed: int, index: int) -> tuple[str, str, str]:
    rng = random.Random(f"counting {split} {seed} {index}")
    word = rng.choice(words)
    absent = rng.random() < 0.1  # any letter, so that 0 is an answer too
    letter = rng.choice(ALPHABET if absent else word)
    return word, letter, rng.choice(COUNT_REQUESTS)


def _count_conversation(draw: tuple[str, str, str]) -> Conversation:
    word, letter, request = draw
    lines, found = [], 0
    for at in word:
        found += at == letter
        lines.append(f"{at} {found}" if at == letter else at)
    walk = "\n".join(lines)
    parts: list[dict[str, Any]] = [
        {"type": "text", "text": f"I go through {word}:{spelled(word)}\n{walk}\nI check: "},
        {"type": "python", "text": f"'{word}'.count('{letter}')"},
        {"type": "python_output", "text": str(found)},
        {"type": "text", "text": f"{found}\n#### {found}"},
    ]
    return exchange(request.format(word=word, letter=letter), parts)
