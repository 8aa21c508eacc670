"""Show the tokens of a text in color, with their ids.

nanochat tokenize "How many r are in strawberry?"
nanochat tokenize --tokenizer gpt2 "How many r are in strawberry?"
cat notes.txt | nanochat tokenize
"""

import shutil
import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import tiktoken

from nanochat import tokenizer
from nanochat.system import config, console, terminal
from nanochat.system.config import option
from nanochat.system.errors import ConfigError
from nanochat.tokenizer import published
from nanochat.tokenizer.conversation import render_prompt

COLORS = (153, 157, 222, 218)  # of the terminal's 256: light ones, for black text
SPECIAL_COLOR = 250
DEFAULT_COLUMNS = 100  # if the terminal does not report its width


@dataclass(frozen=True, kw_only=True)
class TokenizeConfig:
    """Show the tokens of a text, each with its id below."""

    text: str | None = option(None, "text to tokenize; none: read standard input")
    tokenizer: str = option(
        "pocket",
        "name of a run or of a folder in $NANOCHAT_BASE_DIR/tokenizers, a path, or one of "
        "tiktoken's: gpt2, cl100k_base, o200k_base",
    )
    chat: bool = option(False, "render the text as a user's message, with its special tokens")


@dataclass(frozen=True)
class Token:
    """One token: its id, its bytes, and whether it is a special token."""

    id: int
    bytes: bytes
    special: bool

    @property
    def shown(self) -> str:
        """The token as visible text; bytes that are not valid UTF-8 alone are in hex."""
        try:
            text = self.bytes.decode()
        except UnicodeDecodeError:
            return self.bytes.hex(" ").upper()
        marks = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
        return "".join(c if c.isprintable() else marks.get(c, f"U+{ord(c):04X}") for c in text)


def main(argv: list[str] | None = None) -> None:
    cfg = config.parse(TokenizeConfig, argv, stage="tokenize", positional="text")
    text = console.read_stdin() if cfg.text is None else cfg.text
    if not text:
        raise ConfigError('the text is empty; give one, as in: nanochat tokenize "Hello!"')
    tokens = tokenize(text, cfg)
    show(tokens)
    size = len(text.encode("utf-8", "replace"))
    ordinary = sum(not token.special for token in tokens)
    print(
        f"{ordinary:,} tokens for {size:,} bytes: {size / max(1, ordinary):.2f} bytes per token "
        f"({cfg.tokenizer})"
    )


def tokenize(text: str, cfg: TokenizeConfig) -> list[Token]:
    """The tokens of a text.

    Raises: ConfigError if a published tokenizer cannot be loaded, cannot encode a text of this
    length, or is combined with --chat.
    """
    path = tokenizer.locate(cfg.tokenizer)
    if cfg.tokenizer in tiktoken.list_encoding_names() and not path.exists():
        if cfg.chat:
            raise ConfigError(
                f"--chat needs a nanochat tokenizer; {cfg.tokenizer} has no chat tokens"
            )
        reference = published.load(cfg.tokenizer)
        return [Token(i, reference.token_bytes(i), special=False) for i in reference.encode(text)]
    own = tokenizer.load(path)
    ids = own.encode(text)
    if cfg.chat:
        ids = render_prompt([{"role": "user", "content": text}], own)
    return own_tokens(ids, own)


def own_tokens(ids: Sequence[int], own: tokenizer.Tokenizer) -> list[Token]:
    """The tokens that ids of one of our tokenizers stand for."""
    first_special = own.vocab_size - len(tokenizer.SPECIAL_TOKENS)
    return [Token(i, own.decode_bytes([i]), special=i >= first_special) for i in ids]


def show(tokens: Sequence[Token]) -> None:
    """Print tokens and their ids, in color on a terminal."""
    columns = shutil.get_terminal_size((DEFAULT_COLUMNS, 24)).columns
    for line in lines(tokens, columns, colored=terminal.has_colors(sys.stdout)):
        print(line)


def lines(tokens: Sequence[Token], columns: int, *, colored: bool) -> list[str]:
    """Rows of tokens, each with a row of ids below it, at most `columns` wide."""
    gap = 0 if colored else 1
    rows: list[str] = []
    above, below, used = "", "", 0
    for number, token in enumerate(tokens):
        shown, id_ = token.shown, str(token.id)
        width = max(columns_of(shown), len(id_)) + 1
        if used and used + width + gap > columns:
            rows += [above, below]
            above, below, used = "", "", 0
        padding = " " * (width - 1 - columns_of(shown))
        if colored:
            color = SPECIAL_COLOR if token.special else COLORS[number % len(COLORS)]
            above += f"\x1b[30;48;5;{color}m{shown}\x1b[0m{padding} "
        else:
            above += f"|{shown}{padding} "
        below += " " * gap + id_.ljust(width)
        used += width + gap
    return [*rows, above, below] if used else rows


def columns_of(text: str) -> int:
    """Terminal columns a text takes: two per wide character, none per combining accent."""
    return sum(
        0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF")
        for c in text
    )


if __name__ == "__main__":
    config.cli(main)
