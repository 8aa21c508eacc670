"""Bits per byte: how well a model compresses text, whatever its vocabulary.

Owns the two measures: over fixed validation rows, and over complete documents. Does not load data.

The loss per token cannot be compared across tokenizers: a larger vocabulary makes fewer tokens of a
text, each harder to predict. The total loss divided by the bytes of the text can. It is also the
size to which an arithmetic coder would compress the text with the model's predictions.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from nanochat.data.packing import IGNORED, WIDTH_STEP, batches, pad_rows, up_to_multiple
from nanochat.system import distributed
from nanochat.system.distributed import Run
from nanochat.tokenizer import Tokenizer

DOCUMENTS_AT_ONCE = 512  # documents encoded and sorted by length together; bounds memory


class TokenLosses(Protocol):
    """The one method a model needs to be measured."""

    def token_losses(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Loss in nats of each target; [B, T], 0 where the target is -1."""


@dataclass(frozen=True)
class DocumentLoss:
    """Result of `document_bpb`: bits per byte, and what was measured."""

    bpb: float
    bytes: int
    tokens: int
    documents: int


@torch.no_grad()
def bits_per_byte(
    model: TokenLosses, rows: np.ndarray, *, token_bytes: np.ndarray, run: Run, batch_rows: int = 16
) -> float:
    """Bits per byte over rows of tokens, a global mean over all ranks. Collective.

    rows: [N, T+1] token ids, the same on every rank; rank r of w measures rows r, r+w, ...
    token_bytes: [V] length of each token in bytes; tokens of 0 bytes (special tokens) are not
    counted. Returns infinity if no target has any bytes.
    """
    mine = rows[run.rank :: run.world_size].astype(np.int64)

    def measure() -> tuple[float, ...]:
        nats, size = 0.0, 0
        for start in range(0, len(mine), batch_rows):
            batch = mine[start : start + batch_rows]
            inputs, targets = batch[:, :-1], batch[:, 1:]  # [B, T] each
            lengths = token_bytes[targets].astype(np.int64)
            counted = np.where(lengths > 0, targets, -1)
            nats += _sum_losses(model, inputs, counted, run.device)
            size += int(lengths.sum())
        return nats, size

    return _bits(*_over_ranks(run, measure))


@torch.no_grad()
def document_bpb(
    model: TokenLosses,
    tokenizer: Tokenizer,
    documents: Iterable[str],
    *,
    sequence_length: int,
    run: Run,
    batch_tokens: int = 16384,
) -> DocumentLoss:
    """Bits per byte over every byte of every document. Collective.

    Each document starts with BOS and is read in windows of `sequence_length` without overlap: every
    token is predicted once, from the tokens before it in its window. Rank r of w measures documents
    r, r+w, ...
    """
    mine = itertools.islice(documents, run.rank, None, run.world_size)

    def measure() -> tuple[float, ...]:
        nats, size, tokens, count = 0.0, 0, 0, 0
        for texts in _chunks(mine, DOCUMENTS_AT_ONCE):
            windows: list[list[int]] = []
            for text in texts:
                ids = [tokenizer.bos_id, *tokenizer.encode(text)]
                starts = range(0, len(ids) - 1, sequence_length)
                windows += [ids[start : start + sequence_length + 1] for start in starts]
                size += len(text.encode("utf-8", errors="replace"))
                tokens += len(ids) - 1
                count += 1
            for inputs, targets in _batches(windows, sequence_length, batch_tokens):
                nats += _sum_losses(model, inputs, targets, run.device)
        return nats, size, tokens, count

    total_nats, total_size, total_tokens, total_count = _over_ranks(run, measure)
    return DocumentLoss(
        bpb=_bits(total_nats, total_size),
        bytes=int(total_size),
        tokens=int(total_tokens),
        documents=int(total_count),
    )


def _batches(
    windows: list[list[int]], length: int, batch_tokens: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Inputs and targets of windows of similar length, padded on the right."""

    def width(window: list[int]) -> int:
        return min(length, up_to_multiple(len(window) - 1, WIDTH_STEP))

    for batch in batches(sorted(windows, key=len, reverse=True), batch_tokens, width):
        shape = len(batch), width(batch[0])
        inputs = pad_rows((window[:-1] for window in batch), shape, 0)
        yield inputs, pad_rows((window[1:] for window in batch), shape, IGNORED)


def _chunks(items: Iterable[str], size: int) -> Iterator[list[str]]:
    iterator = iter(items)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk


def _sum_losses(
    model: TokenLosses, inputs: np.ndarray, targets: np.ndarray, device: torch.device
) -> float:
    """Summed loss of one batch in nats; summed in float64 on the CPU (MPS has no float64)."""
    losses = model.token_losses(  # [B, T]
        torch.from_numpy(np.ascontiguousarray(inputs)).to(device),
        torch.from_numpy(np.ascontiguousarray(targets)).to(device),
    )
    return losses.cpu().double().sum().item()


def _over_ranks(run: Run, measure: Callable[[], tuple[float, ...]]) -> list[float]:
    """Each measured value, summed over all ranks. Collective; raises like `gather_work`."""
    gathered = distributed.gather_work(run, measure)
    return [sum(column) for column in zip(*gathered, strict=True)]


def _bits(nats: float, size: float) -> float:
    return nats / (math.log(2) * size) if size else math.inf  # ln 2 nats are one bit
