"""Text to token ids and back, and conversations as tokens."""

from nanochat.tokenizer.bpe import (
    FILE_NAME,
    MIN_BPE_SIZE,
    MIN_CHAR_SIZE,
    SPECIAL_TOKENS,
    BpeTokenizer,
    CharTokenizer,
    Tokenizer,
    TrainingText,
    from_json,
    load,
    locate,
    save,
    train_bpe,
    train_char,
)

__all__ = [
    "FILE_NAME",
    "MIN_BPE_SIZE",
    "MIN_CHAR_SIZE",
    "SPECIAL_TOKENS",
    "BpeTokenizer",
    "CharTokenizer",
    "Tokenizer",
    "TrainingText",
    "from_json",
    "load",
    "locate",
    "save",
    "train_bpe",
    "train_char",
]
