"""What requests add to the model's scores before sampling, and the log-probabilities they report.

Owns: logit bias and penalties, grammar masks, log-probabilities. Does not own: truncation and the
choice of a token (sampling). Rows without such a setting pay nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from nanochat.engine.requests import TokenLogprob
from nanochat.engine.sampling import Grammar, SamplingParams


class Bias:
    """The bias and penalties of one answer as one vector [V], kept up to date token by token."""

    # A penalty depends on every token of the answer so far, but a new token changes only its own.

    def __init__(self, params: SamplingParams, vocab_size: int, device: torch.device) -> None:
        self.params = params
        self.counts: Counter[int] = Counter()
        self.vector = torch.zeros(vocab_size, device=device)
        if params.logit_bias:
            ids = torch.tensor(list(params.logit_bias), device=device)
            self.vector[ids] = torch.tensor(
                list(params.logit_bias.values()), dtype=torch.float32, device=device
            )

    @staticmethod
    def needed(params: SamplingParams) -> bool:
        """Whether a request has a bias or penalties."""
        return bool(params.logit_bias or params.presence_penalty or params.frequency_penalty)

    def add(self, token: int) -> None:
        """Take note of a token of the answer."""
        self.counts[token] += 1
        self._update(token)

    def _update(self, token: int) -> None:
        params, count = self.params, self.counts[token]
        bias = (params.logit_bias or {}).get(token, 0.0)
        presence = params.presence_penalty if count else 0.0
        self.vector[token] = bias - presence - params.frequency_penalty * count


class ScoreEdits:
    """The biases and grammars of a batch of rows; None where a row has none."""

    def __init__(self, biases: Sequence[Bias | None], grammars: Sequence[Grammar | None]) -> None:
        self._biased = [row for row, bias in enumerate(biases) if bias is not None]
        used = [bias for bias in biases if bias is not None]
        if used:
            # Each vector becomes a row of one matrix, so that no step has to collect them again.
            self._biases = torch.stack([bias.vector for bias in used])  # [rows with a bias, V]
            for bias, vector in zip(used, self._biases, strict=True):
                bias.vector = vector
            self._biased_rows = torch.tensor(self._biased, device=self._biases.device)
        self._grammars = [(row, grammar) for row, grammar in enumerate(grammars) if grammar]

    def apply(self, logits: Tensor) -> Tensor:
        """Add the biases to the logits [B, V] and set what the grammars forbid to -inf."""
        if self._biased:
            logits = logits.index_add(0, self._biased_rows, self._biases.to(logits.dtype))
        masks = [(row, grammar.mask()) for row, grammar in self._grammars]
        allowed = [(row, mask) for row, mask in masks if mask is not None]
        if allowed:
            rows = torch.tensor([row for row, _ in allowed]).to(logits.device, non_blocking=True)
            mask = torch.stack([mask for _, mask in allowed]).to(logits.device, non_blocking=True)
            masked = logits[rows].masked_fill(~mask, -torch.inf)
            logits = logits.index_copy(0, rows, masked)
        return logits


def token_logprobs(
    logits: Tensor,
    tokens: Tensor,
    top: Sequence[int],
    best: tuple[Tensor, Tensor] | None = None,
) -> list[TokenLogprob]:
    """The log-probabilities of one token per row, with the `top[row]` likeliest tokens.

    logits: [N, V] float, as the model gave them. tokens: [N] int64. best: the K largest logits and
    their ids, if they are known and K is enough for `top` and to include the tokens.
    """
    logprobs = logits.log_softmax(dim=-1)  # [N, V]; twice as fast as logsumexp on a CPU
    most = max(top, default=0)
    candidates = logits.topk(most, dim=-1)[1] if best is None else best[1]  # [N, K]
    ids = torch.cat((tokens[:, None], candidates), dim=1)  # [N, 1 + K]
    values = logprobs.gather(1, ids)
    likelier = (logprobs if best is None else values) > values[:, :1]
    columns = (ids[:, : 1 + most], values[:, : 1 + most], likelier.sum(dim=-1))
    rows = zip(*(column.tolist() for column in columns), top, strict=True)
    return [
        TokenLogprob(
            token, logprob, above + 1, tuple(zip(others[:n], their_logprobs[:n], strict=True))
        )
        for (token, *others), (logprob, *their_logprobs), above, n in rows
    ]
