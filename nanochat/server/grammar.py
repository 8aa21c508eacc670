"""Answers held to a format: JSON that fits a schema, and calls of a client's functions.

Owns: which tokens may come next, by llguidance (Guidance AI; Earley parsing over the vocabulary's
bytes, optional extra `grammar`). Does not own: the fields that ask for it (tools), the limits of
values that a schema leaves unlimited (limits) or sampling.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from nanochat.engine.sampling import Grammar
from nanochat.server.errors import ApiError
from nanochat.server.grammar_trial import TRIAL_S, compiles_in_time
from nanochat.server.limits import limited
from nanochat.server.tools import Function
from nanochat.tokenizer import SPECIAL_TOKENS, Tokenizer

# No spaces: a small model would go on with them for as long as it may. No characters by number.
COMPACT = {
    "whitespace_flexible": False,
    "item_separator": ",",
    "key_separator": ":",
    "json_allowed_escapes": 'nrbtf\\"',
}


def constraint(
    tokenizer: Tokenizer,
    *,
    schema: dict[str, Any] | None,
    functions: Sequence[Function],
    must_call: bool,
    room: int,
    param: str,
) -> Callable[[], Grammar]:
    """What an answer may be; returns a maker of grammars, one for each answer.

    schema: of the text, None for any. functions: those that may be called; must_call: an answer is
    a call. room: the most tokens of an answer. param: the field to name in errors.
    Raises: ApiError 400 if llguidance is missing or cannot follow a schema; Busy if it is compiling
    others.
    """
    try:
        from llguidance import LLMatcher
    except ImportError as error:
        raise ApiError(
            400, f"{param}: {error}; the server needs pip install 'nanochat[grammar]'", param=param
        ) from None
    vocabulary = _vocabulary(tokenizer)  # type: ignore[arg-type]  # hashed by identity
    given = json.dumps([schema, *(function.parameters for function in functions)])
    for limit in (_limited(room), dict):  # without our limits where they leave no answer
        lark = _rules(None if must_call else schema, functions, limit)
        if not compiles_in_time(lark, given):
            refused = f"compiling the schema takes more than {TRIAL_S:g} s; simplify its patterns"
            continue
        matcher = LLMatcher(vocabulary, LLMatcher.grammar_from_lark(lark))
        if not matcher.is_error():
            break
        refused = matcher.get_error().splitlines()[0]
    else:
        raise ApiError(400, f"{param}: {refused}", param=param)
    if schema is None and not must_call:
        return lambda: FreeUntilCall(matcher.deep_copy(), tokenizer)
    return lambda: Constraint(matcher.deep_copy())


class Constraint:
    """An answer that fits a grammar from its first token to its end.

    error: why llguidance gave up, as on a schema beyond its limits; the answer is then cut off.
    """

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher

    @property
    def error(self) -> str:
        return str(self._matcher.get_error())

    def mask(self) -> Tensor | None:
        """The tokens that may come next, bool [V] on the CPU."""
        allowed = bytearray(self._matcher.compute_logit_bias())  # 0: not allowed
        return torch.frombuffer(allowed, dtype=torch.uint8) != 0

    def accept(self, token: int) -> None:
        """Take note of the token that was sampled."""
        self._matcher.consume_token(token)

    @property
    def finished(self) -> bool:
        """Whether nothing can follow."""
        return bool(self._matcher.is_stopped())


class FreeUntilCall:
    """An answer that may be anything, with the calculator, until it starts to call a function.

    `<|python_start|>{` starts a call, as no calculation starts with a brace.
    """

    def __init__(self, matcher: Any, tokenizer: Tokenizer) -> None:
        self._start = tokenizer.special_id("<|python_start|>")
        self._braces = _braces(tokenizer)  # type: ignore[arg-type]  # hashed by identity
        matcher.consume_token(self._start)
        self._call = Constraint(matcher)
        self._opened = False  # the last token was <|python_start|>
        self._calling = False

    def mask(self) -> Tensor | None:
        """The tokens that may come next, bool [V] on the CPU; None allows all."""
        if self._calling:
            return self._call.mask()
        if self._opened:
            begin = self._call.mask()
            assert begin is not None
            return begin | ~self._braces
        return None

    def accept(self, token: int) -> None:
        """Take note of the token that was sampled."""
        if self._opened and self._braces[token]:
            self._calling = True
        if self._calling:
            self._call.accept(token)
        self._opened = not self._calling and token == self._start

    @property
    def error(self) -> str:
        return self._call.error

    @property
    def finished(self) -> bool:
        """Whether the answer ends here, with a call."""
        return self._calling and self._call.finished


def _limited(room: int) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def limit(schema: dict[str, Any]) -> dict[str, Any]:
        try:
            return limited(schema, room)
        except (AttributeError, RecursionError, TypeError):
            return schema  # not a schema: llguidance says why

    return limit


def _rules(
    schema: dict[str, Any] | None,
    functions: Sequence[Function],
    limit: Callable[[dict[str, Any]], dict[str, Any]],
) -> str:
    """The grammar of a text that fits the schema, or a call."""
    rules = [] if schema is None else [f"%json {_json(limit(schema))}"]
    for function in functions:
        # The arguments' schema stands alone, as its references need it.
        start = json.dumps(f'{{"name":"{function.name}","arguments":')
        arguments = _json(limit(function.arguments))
        rules.append(f'<|python_start|> {start} %json {arguments} "}}" <|python_end|>')
    return "start: " + " | ".join(f"({rule})" for rule in rules)


def _json(value: dict[str, Any]) -> str:
    return json.dumps({**value, "x-guidance": COMPACT})


class _Source:
    """A tokenizer as llguidance reads it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        first_special = tokenizer.vocab_size - len(SPECIAL_TOKENS)
        self.tokens = [tokenizer.decode_bytes([token]) for token in range(tokenizer.vocab_size)]
        self.special_token_ids = list(range(first_special, tokenizer.vocab_size))
        self.eos_token_id = tokenizer.special_id("<|assistant_end|>")
        self.bos_token_id = tokenizer.bos_id
        self._encode = tokenizer.encode

    def __call__(self, text: str) -> list[int]:
        return self._encode(text)


@functools.lru_cache(maxsize=4)
def _vocabulary(tokenizer: Tokenizer) -> Any:
    from llguidance import LLTokenizer, TokenizerWrapper

    return LLTokenizer(TokenizerWrapper(_Source(tokenizer)))


@functools.lru_cache(maxsize=4)
def _braces(tokenizer: Tokenizer) -> Tensor:
    """Which tokens begin with a brace, bool [V]."""
    firsts = (tokenizer.decode_bytes([token])[:1] for token in range(tokenizer.vocab_size))
    return torch.tensor([first == b"{" for first in firsts])
