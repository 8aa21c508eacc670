"""Vocabularies that tiktoken publishes, such as gpt2: loaded with a timeout, safe on long texts.

Owns the load, its timeout and the choice of the encoder. Does not own our own vocabularies (bpe).
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

import numpy as np
import tiktoken

from nanochat.system.errors import ConfigError
from nanochat.tokenizer import _rustbpe

# tiktoken downloads without a timeout: a network that drops packets would hang it forever.
LOAD_LIMIT_S = 30.0
# tiktoken panics on about 1,000,000 consecutive whitespace characters. Cutting a text would change
# the tokens at the cuts, so texts that only tiktoken can encode must not be longer than this.
TIKTOKEN_CHARACTERS = 50_000

T = TypeVar("T")


class PublishedTokenizer:
    """A published vocabulary; uses the Rust encoder if it has the split pattern built in."""

    def __init__(self, encoding: tiktoken.Encoding) -> None:
        self.name = encoding.name
        self._tiktoken = encoding
        self._encoder = _rust_encoder(encoding)

    def encode(self, text: str) -> list[int]:
        """Ordinary tokens of a text; text that looks like a special token stays plain text.

        Raises: ConfigError if the text is too long and only tiktoken can encode it.
        """
        if self._encoder is not None:
            data, _ = self._encoder.encode_batch([text])
            ids: list[int] = np.frombuffer(data, dtype=np.uint32).tolist()
            return ids
        if len(text) > TIKTOKEN_CHARACTERS:
            raise ConfigError(
                f"a text of {len(text):,} characters is too long for {self.name}, which takes "
                f"{TIKTOKEN_CHARACTERS:,}; give a shorter one, or another tokenizer such as gpt2"
            )
        return self._tiktoken.encode_ordinary(text)

    def token_bytes(self, token: int) -> bytes:
        """The raw bytes of a token."""
        return self._tiktoken.decode_single_token_bytes(token)


def load(name: str) -> PublishedTokenizer:
    """A published vocabulary by its tiktoken name, from tiktoken's cache or the network.

    Raises: ConfigError if it cannot be loaded within LOAD_LIMIT_S seconds.
    """
    try:
        return PublishedTokenizer(_within(LOAD_LIMIT_S, lambda: tiktoken.get_encoding(name)))
    except TimeoutError:
        reason = f"no answer from the network in {LOAD_LIMIT_S:g} s"
    except (OSError, ValueError) as error:  # requests' errors are OSErrors
        reason = type(error).__name__
    raise ConfigError(
        f"the vocabulary of {name} cannot be loaded ({reason}); connect to the network once, or "
        "set TIKTOKEN_CACHE_DIR to a folder that has it"
    )


def _rust_encoder(encoding: tiktoken.Encoding) -> _rustbpe.Encoder | None:
    """The Rust encoder of a vocabulary; None if its ids or pieces would differ."""
    ranks = encoding._mergeable_ranks
    tokens = sorted(ranks, key=ranks.__getitem__)
    gapless = all(ranks[token] == rank for rank, token in enumerate(tokens))
    if encoding._pat_str not in _rustbpe.PATTERNS or not gapless:
        return None
    return _rustbpe.Encoder(tokens, encoding._pat_str)


def _within(limit_s: float, work: Callable[[], T]) -> T:
    """Do some work in a thread; TimeoutError if it takes longer than the limit."""
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except Exception as error:
            done.set_exception(error)

    # A thread that hangs must not keep the program alive, as an executor's would.
    threading.Thread(target=run, daemon=True).start()
    return done.result(limit_s)
