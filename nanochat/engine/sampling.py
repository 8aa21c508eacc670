"""Sampling the next token of many rows at once, each with its own settings, on the device.

Owns the sampling settings, the truncation rules and the random numbers. Knows no model, no cache.

The noise is a hash of (row's seed, row's position, token id), not the next draw of a generator: a
request with a seed gets the same noise alone, in a batch of 64, or after a restart, and so the same
tokens if it gets the same logits (scheduler says when). One generator for the batch would give a
row different draws depending on the rows beside it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from nanochat.system.config import option
from nanochat.system.errors import ConfigError

MAX_LOGPROBS = 20  # alternatives reported with a token, as in OpenAI's API

_GOLDEN = -7046029254386353131  # 2**64 / golden ratio, odd, as int64: the splitmix64 increment
_MIX_1 = -4658895280553007687  # splitmix64 multipliers, as int64
_MIX_2 = -7723592293110705685


class Grammar(Protocol):
    """What an answer may consist of; an object follows one answer, token by token."""

    def mask(self) -> Tensor | None:
        """The tokens that may come next, bool [V] on the CPU; None allows all."""

    def accept(self, token: int) -> None:
        """Take note of the token that was sampled."""

    @property
    def finished(self) -> bool:
        """Whether the answer is complete; the engine then ends it."""


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How one request's tokens are sampled; temperature 0 or top_p 0 is greedy.

    top_k: None or 0 keeps every token. top_p: None or 1 keeps every token; it applies to the tokens
    that top_k and min_p kept. min_p: keep tokens at least this likely relative to the likeliest.
    presence_penalty, frequency_penalty: subtracted from the logit of every token of the answer so
    far, once, and for each time it occurred. logit_bias: added to the logits of tokens, by id.
    grammar: limits the tokens; one object for each request.
    logprobs: report each token's log-probability and this many of the likeliest; None: do not.
    max_new_tokens: includes forced tool output; 0 only reads the prompt (see
    Request.prompt_logprobs). seed: None draws a new one for each request. stop: strings that end
    the answer.
    Raises: ConfigError for a value out of range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | None = None
    grammar: Grammar | None = None
    logprobs: int | None = None
    max_new_tokens: int = 256
    seed: int | None = None
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= 100:
            raise ConfigError(f"temperature must be from 0 to 100, got {self.temperature}")
        if self.top_k is not None and self.top_k < 0:
            raise ConfigError(f"top_k must be at least 0 or none, got {self.top_k}")
        if self.top_p is not None and not 0 <= self.top_p <= 1:
            raise ConfigError(f"top_p must be from 0 to 1, got {self.top_p}")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            raise ConfigError(f"min_p must be from 0 to 1, got {self.min_p}")
        for name in ("presence_penalty", "frequency_penalty"):
            if not -2 <= getattr(self, name) <= 2:
                raise ConfigError(f"{name} must be from -2 to 2, got {getattr(self, name)}")
        for token, bias in (self.logit_bias or {}).items():
            if not -100 <= bias <= 100:
                raise ConfigError(f"logit_bias of token {token} must be from -100 to 100: {bias}")
        if self.logprobs is not None and not 0 <= self.logprobs <= MAX_LOGPROBS:
            raise ConfigError(f"logprobs must be from 0 to {MAX_LOGPROBS}, got {self.logprobs}")
        if self.max_new_tokens < 0:
            raise ConfigError(f"max_new_tokens must be at least 0, got {self.max_new_tokens}")
        if not all(self.stop):
            raise ConfigError("a stop string must not be empty")

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature == 0 or self.top_p == 0


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How tokens are sampled."""

    temperature: float = option(
        0.6,
        "randomness: 0 always takes the likeliest token, 1 samples the model's probabilities",
        least=0,
        most=100,
    )
    top_k: int | None = option(
        50, "sample from this many likeliest tokens; none or 0: all tokens", least=0
    )
    top_p: float | None = option(
        None,
        "sample from the likeliest tokens that reach this probability; 0: the likeliest one; "
        "none: all tokens",
        least=0,
        most=1,
    )

    def params(self, *, max_new_tokens: int, seed: int | None = None) -> SamplingParams:
        """The settings of one request; seed None draws a new one."""
        return SamplingParams(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            max_new_tokens=max_new_tokens,
            seed=seed,
        )


@dataclass(frozen=True)
class SamplingBatch:
    """The settings of B rows as tensors on the device, built once and used for many steps."""

    temperature: Tensor  # [B, 1] fp32; 1 for greedy rows, which keep only one candidate
    top_k: Tensor  # [B, 1] int64; candidates kept
    top_p: Tensor  # [B, 1] fp32
    log_min_p: Tensor | None  # [B, 1] fp32, natural log; None if no row has one
    seed_hash: Tensor  # [B] int64
    candidates: int  # the largest top_k
    greedy: bool  # every row is greedy
    ranked: bool  # some row drops tokens, so scores must be sorted
    trimmed: bool  # some row drops tokens among the first `candidates`

    @classmethod
    def build(
        cls,
        params: Sequence[SamplingParams],
        seeds: Sequence[int],
        *,
        vocab_size: int,
        device: torch.device,
    ) -> SamplingBatch:
        """Collect the rows' settings; `seeds` replaces each row's `seed`."""
        kept = [1 if p.greedy else min(p.top_k or vocab_size, vocab_size) for p in params]

        def column(values: Sequence[float], dtype: torch.dtype) -> Tensor:
            return torch.tensor(values, dtype=dtype).to(device, non_blocking=True)

        return cls(
            temperature=column([p.temperature or 1.0 for p in params], torch.float32)[:, None],
            top_k=column(kept, torch.int64)[:, None],
            top_p=column([p.top_p or 1.0 for p in params], torch.float32)[:, None],
            log_min_p=column(
                [math.log(p.min_p) if p.min_p else -math.inf for p in params], torch.float32
            )[:, None]
            if any(p.min_p for p in params)
            else None,
            seed_hash=_mix(column([_signed(seed) for seed in seeds], torch.int64)),
            candidates=max(kept, default=1),
            greedy=all(p.greedy for p in params),
            ranked=min(kept, default=1) < vocab_size or any((p.top_p or 1.0) < 1 for p in params),
            trimmed=len(set(kept)) > 1 or any((p.top_p or 1.0) < 1 or p.min_p for p in params),
        )


def sample(
    logits: Tensor,
    batch: SamplingBatch,
    positions: Tensor,
    best: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Sample one token per row.

    logits: [B, V] float. positions: [B] int64, position of the new token in its sequence. best:
    the `batch.candidates` largest logits and their ids, if they are known already.
    Returns [B] int64. Never waits for the device.
    Source: the exponential race (the Gumbel-max trick): argmax of p_i / E_i with E_i ~ Exp(1).
    """
    if batch.greedy:
        return logits.argmax(dim=-1)  # [B]
    # The race: for independent E_i ~ Exp(1), token i has the largest p_i / E_i with probability
    # exactly p_i. In logs that is argmax(score_i - log E_i), which needs no normalized p; as -log E
    # is Gumbel noise, this is the Gumbel-max trick.
    # Temperature below 1 sharpens the distribution, above 1 flattens it; near 0 it is the argmax.
    if not batch.ranked:
        scores = logits.float() / batch.temperature  # [B, V]
        if batch.log_min_p is not None:
            least = scores.amax(dim=-1, keepdim=True) + batch.log_min_p  # [B, 1]
            scores = scores.masked_fill(scores < least, float("-inf"))
        ids = torch.arange(scores.shape[1], device=scores.device)[None]  # [1, V]
        return (scores - _log_exponential(batch.seed_hash, positions, ids)).argmax(dim=-1)
    if best is not None:
        scores, ids = best
    elif batch.candidates < logits.shape[1]:
        scores, ids = logits.topk(batch.candidates, dim=-1)  # [B, K] each
    else:
        scores, ids = logits.sort(dim=-1, descending=True)
    scores = scores.float() / batch.temperature
    if batch.trimmed:
        scores = scores.masked_fill(~_kept(scores, batch), float("-inf"))
    noise = _log_exponential(batch.seed_hash, positions, ids)  # [B, K]
    winner = (scores - noise).argmax(dim=-1, keepdim=True)
    return ids.gather(1, winner)[:, 0]  # [B]


def _kept(scores: Tensor, batch: SamplingBatch) -> Tensor:
    """Which candidates to keep, bool [B, K]; scores [B, K] are in descending order."""
    rank = torch.arange(scores.shape[1], device=scores.device)[None]  # [1, K]
    in_top_k = rank < batch.top_k  # [B, K]
    if batch.log_min_p is not None:
        in_top_k &= scores >= scores[:, :1] + batch.log_min_p
    # top-p keeps the smallest set of likeliest tokens whose probability reaches p: a token stays
    # while those before it have not reached p. Few stay where the model is sure, many where not.
    probs = scores.masked_fill(~in_top_k, float("-inf")).softmax(dim=-1)
    mass_before = probs.cumsum(dim=-1) - probs
    in_top_p = (mass_before < batch.top_p) | (batch.top_p >= 1)  # at 1, rounding must not drop any
    return in_top_k & (in_top_p | (rank == 0))


def _log_exponential(seed_hash: Tensor, positions: Tensor, ids: Tensor) -> Tensor:
    """Log of Exp(1) noise, [B, K] fp32, that depends only on (seed, position, token id)."""
    key = _mix(seed_hash + positions * _GOLDEN)  # [B]
    bits = _mix(key[:, None] + ids * _GOLDEN) & 0x7FFFFFFF  # [B, K]
    # Small draws decide the race; as floats of 31 bits they keep their relative precision. A short
    # series gives their -log(1 - u): log1p costs six times as much as everything else on a CPU.
    u = ((bits.float() + 0.5) * 2.0**-31).clamp_(max=1 - 2.0**-24)
    small = u * (1 + u * (0.5 + u / 3))
    return torch.where(u < 2.0**-6, small, -torch.log(1 - u)).log_()


def _mix(x: Tensor) -> Tensor:
    """The splitmix64 finalizer on int64; masks undo the sign extension of torch's shift."""
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * _MIX_1
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * _MIX_2
    return x ^ ((x >> 31) & 0x1FFFFFFFF)


def _signed(seed: int) -> int:
    """Wrap any integer into int64."""
    return (seed + 2**63) % 2**64 - 2**63
