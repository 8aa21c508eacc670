"""Show how a text falls into tokens, in colour, with their ids.

nanochat tokenize "How many r are in strawberry?"
nanochat tokenize --tokenizer gpt2 "How many r are in strawberry?"
cat notes.txt | nanochat tokenize
"""

import os
import shutil
import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import tiktoken

from nanochat import tokenizer
from nanochat.system import config
from nanochat.system.config import option
from nanochat.system.errors import ConfigError
from nanochat.tokenizer import published
from nanochat.tokenizer.conversation import render_prompt

COLOURS = (153, 157, 222, 218)  # of the 256 of terminals: light, for black letters
SPECIAL_COLOUR = 250
WIDTH = 100  # columns where the terminal does not tell


@dataclass(frozen=True, kw_only=True)
class TokenizeConfig:
    """Shows the tokens of a text, each with its id below."""

    text: str | None = option(None, "text to cut; none reads the standard input")
    tokenizer: str = option(
        "pocket",
        "a run or a name in $NANOCHAT_BASE_DIR/tokenizers, a path, or one that tiktoken "
        "publishes: gpt2, cl100k_base, o200k_base",
    )
    chat: bool = option(False, "as a user's message, with the special tokens around it")


@dataclass(frozen=True)
class Token:
    """One token: its id, its bytes, and whether it is a special one."""

    id: int
    bytes: bytes
    special: bool

    @property
    def shown(self) -> str:
        """The token in visible characters; bytes that are no character by themselves in hex."""
        try:
            text = self.bytes.decode()
        except UnicodeDecodeError:
            return self.bytes.hex(" ").upper()
        marks = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
        return "".join(c if c.isprintable() else marks.get(c, f"U+{ord(c):04X}") for c in text)


def main(argv: list[str] | None = None) -> None:
    cfg = config.parse(TokenizeConfig, argv, stage="tokenize", positional="text")
    text = sys.stdin.read() if cfg.text is None else cfg.text
    if not text:
        raise ConfigError('there is no text; give some, as in: nanochat tokenize "Hello!"')
    tokens = cut(text, cfg)
    coloured = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    columns = shutil.get_terminal_size((WIDTH, 24)).columns
    for line in lines(tokens, columns, coloured=coloured):
        print(line)
    size = len(text.encode("utf-8", "replace"))
    ordinary = sum(not token.special for token in tokens)
    print(
        f"{ordinary:,} tokens for {size:,} bytes: {size / max(1, ordinary):.2f} bytes a token "
        f"({cfg.tokenizer})"
    )


def cut(text: str, cfg: TokenizeConfig) -> list[Token]:
    """The tokens of a text by the tokenizer that the options name.

    Raises: ConfigError for a published one that cannot be loaded or cannot take so long a text,
    and for --chat with it.
    """
    path = tokenizer.locate(cfg.tokenizer)
    if cfg.tokenizer in tiktoken.list_encoding_names() and not path.exists():
        if cfg.chat:
            raise ConfigError(f"--chat needs a tokenizer of ours, {cfg.tokenizer} has no chat form")
        theirs = published.load(cfg.tokenizer)
        return [Token(i, theirs.token_bytes(i), special=False) for i in theirs.encode(text)]
    own = tokenizer.load(path)
    ids = own.encode(text)
    if cfg.chat:
        ids = render_prompt([{"role": "user", "content": text}], own)
    first_special = own.vocab_size - len(tokenizer.SPECIAL_TOKENS)
    return [Token(i, own.decode_bytes([i]), special=i >= first_special) for i in ids]


def lines(tokens: Sequence[Token], columns: int, *, coloured: bool) -> list[str]:
    """Rows of tokens with a row of ids below each, no wider than so many columns."""
    gap = 0 if coloured else 1
    found: list[str] = []
    above, below, used = "", "", 0
    for number, token in enumerate(tokens):
        shown, id_ = token.shown, str(token.id)
        width = max(columns_of(shown), len(id_)) + 1
        if used and used + width + gap > columns:
            found += [above, below]
            above, below, used = "", "", 0
        padding = " " * (width - 1 - columns_of(shown))
        if coloured:
            colour = SPECIAL_COLOUR if token.special else COLOURS[number % len(COLOURS)]
            above += f"\x1b[30;48;5;{colour}m{shown}\x1b[0m{padding} "
        else:
            above += f"|{shown}{padding} "
        below += " " * gap + id_.ljust(width)
        used += width + gap
    return [*found, above, below] if used else found


def columns_of(text: str) -> int:
    """Columns that a terminal needs for a text: two for wide characters, none for accents."""
    return sum(
        0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF")
        for c in text
    )


if __name__ == "__main__":
    config.cli(main)
