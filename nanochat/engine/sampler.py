"""The tokens that the sequences of a step take, and the log-probabilities they asked for.

Owns: the settings of a batch of sequences as tensors, kept while the batch stays the same. Does not
own: the rules (sampling, scores) or what a token leads to (scheduler).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nanochat.engine.kv_cache import to_device
from nanochat.engine.requests import TokenLogprob
from nanochat.engine.sampling import SamplingBatch, sample
from nanochat.engine.scores import ScoreEdits, token_logprobs
from nanochat.engine.sequences import ActiveSequence

LOGPROB_ROWS = 128  # prompt tokens whose logits are computed at once; bounds memory


class Sampler:
    """Samples for the sequences of a step, which are often those of the step before."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self.vocab_size = vocab_size  # the tokenizer's; the model's may be padded for alignment
        self.device = device
        self._ids: list[int] | None = None

    def choose(
        self, sequences: list[ActiveSequence], logits: Tensor
    ) -> list[tuple[int, TokenLogprob | None]]:
        """Sample a token for every sequence from logits [B, V]; waits for the device."""
        logits = logits[:, : self.vocab_size]
        self._prepare(sequences)
        positions = to_device([len(seq.tokens) for seq in sequences], self.device)
        edited = self._edits.apply(logits)
        if not self._reporting:
            tokens = sample(edited, self._batch, positions)  # [B]
            return [(token, None) for token in tokens.tolist()]
        best: tuple[Tensor, Tensor] | None = None
        enough = max(self._top) <= self._batch.candidates < self.vocab_size
        if enough and edited is logits and not self._batch.greedy:
            # The likeliest tokens are looked for once: to choose among them, and to report them.
            values, ids = logits.topk(self._batch.candidates, dim=-1)
            best = values, ids
        tokens = sample(edited, self._batch, positions, best)
        rows = self._rows
        if rows is None:
            found = token_logprobs(logits, tokens, self._top, best)
        else:
            best = None if best is None else (best[0][rows], best[1][rows])
            found = token_logprobs(logits[rows], tokens[rows], self._top, best)
        by_row = dict(zip(self._reporting, found, strict=True))
        return [(token, by_row.get(row)) for row, token in enumerate(tokens.tolist())]

    def _prepare(self, sequences: list[ActiveSequence]) -> None:
        ids = [seq.id for seq in sequences]
        if ids == self._ids:
            return
        params = [seq.request.params for seq in sequences]
        self._batch = SamplingBatch.build(
            params,
            [seq.seed for seq in sequences],
            vocab_size=self.vocab_size,
            device=self.device,
        )
        self._edits = ScoreEdits([seq.bias for seq in sequences], [p.grammar for p in params])
        self._reporting = [row for row, p in enumerate(params) if p.logprobs is not None]
        self._top = [params[row].logprobs or 0 for row in self._reporting]
        self._rows: Tensor | None = None  # all of them
        if len(self._reporting) < len(params):
            self._rows = to_device(self._reporting, self.device)
        self._ids = ids

    def read_prompt(
        self, seq: ActiveSequence, hidden: Tensor, logits: Callable[[Tensor], Tensor]
    ) -> None:
        """Note the log-probabilities of the prompt tokens that follow `hidden` [T, C].

        hidden: of the tokens from the first one without a log-probability after it.
        """
        if not seq.prompt_logprobs:
            seq.prompt_logprobs.append(None)
        done = len(seq.prompt_logprobs)
        following = seq.prompt[done : done + len(hidden)]
        for start in range(0, len(following), LOGPROB_ROWS):
            tokens = torch.tensor(following[start : start + LOGPROB_ROWS]).to(self.device)
            rows = logits(hidden[start : start + len(tokens)])[:, : self.vocab_size]
            top = [seq.request.params.logprobs or 0] * len(tokens)
            seq.prompt_logprobs += token_logprobs(rows, tokens, top)
