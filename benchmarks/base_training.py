"""Base training as a user runs it, on random text and with extra hooks from a benchmark."""

import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from nanochat import tokenizer
from nanochat.stages import base_train
from nanochat.tokenizer import CharTokenizer
from nanochat.training.trainer import Hook, Trainer

FIRST_LETTER, SPECIALS = 0x4E00, 10  # nine special tokens and one for unknown characters


def run(
    args: Sequence[str],
    hooks: Callable[[Trainer], Sequence[Hook]],
    *,
    vocab_size: int,
    tokens: int,
) -> None:
    """Run base training with the given flags on `tokens` random tokens.

    hooks: called with the trainer once it exists; its hooks run after the stage's own hooks.
    """
    build = Trainer.__init__

    def with_hooks(trainer: Trainer, **options: object) -> None:
        build(trainer, **options)  # type: ignore[arg-type]
        trainer.hooks = [*trainer.hooks, *hooks(trainer)]

    Trainer.__init__ = with_hooks  # type: ignore[method-assign]
    try:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["NANOCHAT_BASE_DIR"] = folder
            texts = write_texts(Path(folder), vocab_size, tokens)
            base_train.main([*args, "--tokenizer", "t", "--data", str(texts)])
    finally:
        Trainer.__init__ = build  # type: ignore[method-assign]


def char_tokenizer(vocab_size: int) -> CharTokenizer:
    """A character tokenizer whose vocabulary, including special tokens, has this size."""
    encoder = tokenizer.train_char(["".join(_letters(vocab_size))])
    assert encoder.vocab_size == vocab_size
    return encoder


def _letters(vocab_size: int) -> list[str]:
    return [chr(FIRST_LETTER + i) for i in range(vocab_size - SPECIALS)]


def write_texts(folder: Path, vocab_size: int, tokens: int) -> Path:
    """Write random text, and a tokenizer of exactly its characters and the special tokens."""
    letters = _letters(vocab_size)
    tokenizer.save(char_tokenizer(vocab_size), folder / "tokenizers" / "t" / "tokenizer.json")
    rng = np.random.default_rng(0)
    path = folder / "texts.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for _ in range(tokens // 2000 + 20):
            text = "".join(letters[i] for i in rng.integers(0, len(letters), 2000))
            file.write(json.dumps({"text": text}) + "\n")
    return path
