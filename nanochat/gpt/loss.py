"""Cross-entropy of a large vocabulary without ever holding all logits.

Owns: linear head + softcap + cross-entropy in chunks of tokens, and its gradient.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nanochat.gpt.fast_exp import exp_for
from nanochat.gpt.layers import at_least_fp32

IGNORED = -1  # target that has no loss
SAFE_CAP = 60.0  # exp(60) times any vocabulary is far from float32's largest number
CHUNK_ELEMENTS = {"cpu": 2**23, "cuda": 2**27}  # logits of one chunk: 32 MB / 512 MB in fp32
MAX_CHUNKS = 64  # each chunk is unrolled into the compiled graph: bounds its compile time


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, weights: Tensor, *, softcap: float | None
) -> Tensor:
    """Sum of weights x cross-entropies of softcap(hidden @ weight.T), with a gradient.

    hidden: (N, C) in the compute dtype; weight: (V, C) in any float dtype; targets: (N,) int64,
    IGNORED where there is none; weights: (N,) in at least float32. Returns 0-d in their dtype.
    The gradient is made together with the loss, a chunk of tokens at a time: no more than one
    chunk of logits ever exists, and none is computed twice.
    """
    loss: Tensor = _LinearCrossEntropy.apply(hidden, weight, targets, weights, softcap)
    return loss


@torch.no_grad()
def cross_entropies(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, softcap: float | None
) -> Tensor:
    """(N,) cross-entropies in at least float32, 0 where ignored; else as above, no gradient."""
    cast = weight.to(hidden.dtype)
    rows = chunk_rows(hidden.shape[0], weight.shape[0], hidden.device.type)
    losses = []
    for x, target in zip(hidden.split(rows), targets.split(rows), strict=True):
        raw = x @ cast.T
        exps, shift = _exps(capped(raw, softcap), softcap, torch.float32)
        log_z = shift + exps.sum(dim=1, keepdim=True).log()
        loss = (log_z - _chosen(raw, target, softcap))[:, 0]
        losses.append(torch.where(target == IGNORED, 0.0, loss))
    return torch.cat(losses)


def capped(logits: Tensor, softcap: float | None) -> Tensor:
    """softcap x tanh(logits / softcap), if there is one; in at least float32.

    By the exponential, which costs a CPU a third of tanh. In float32 it errs by up to 3e-7 of the
    cap also where logits are small, which matters to no loss; GPT.logits takes tanh itself.
    """
    logits = at_least_fp32(logits)
    if softcap is None:
        return logits
    return softcap - 2 * softcap / ((logits * (2 / softcap)).exp() + 1)


def chunk_rows(rows: int, vocab_size: int, device_type: str) -> int:
    """Tokens of one chunk; their number is a power of two, so that chunks are of equal size."""
    budget = CHUNK_ELEMENTS.get(device_type, CHUNK_ELEMENTS["cpu"])
    wanted = max(1, rows * vocab_size / budget)
    return -(-rows // min(MAX_CHUNKS, 2 ** math.ceil(math.log2(wanted))))


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        weights: Tensor,
        softcap: float | None,
    ) -> Tensor:
        cast = weight.to(hidden.dtype)
        rows = chunk_rows(hidden.shape[0], weight.shape[0], hidden.device.type)
        columns = torch.arange(weight.shape[0], dtype=torch.int32, device=targets.device)
        weights = torch.where(targets == IGNORED, 0.0, weights)
        total = weights.new_zeros(())
        grad_hidden, grad_weight = [], torch.zeros_like(weight)
        chunks = (tensor.split(rows) for tensor in (hidden, targets, weights))
        for x, target, scale in zip(*chunks, strict=True):
            raw = x @ cast.T
            logits = capped(raw, softcap)
            exps, shift = _exps(logits, softcap, x.dtype)
            sums = exps.sum(dim=1, keepdim=True)
            log_z = shift + sums.log()
            total = total + ((log_z - _chosen(raw, target, softcap))[:, 0] * scale).sum()
            share = exps * (1 / sums)
            slope = torch.where(columns == target.to(torch.int32)[:, None], share - 1, share)
            if softcap is not None:
                slope = slope * (1 - (logits * (1 / softcap)).square())
            slope = (slope * scale[:, None]).to(x.dtype)
            grad_hidden.append(slope @ cast)
            grad_weight += slope.T @ x
        ctx.save_for_backward(torch.cat(grad_hidden), grad_weight)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return (grad_hidden * grad).to(grad_hidden.dtype), grad_weight * grad, None, None, None


def _exps(
    logits: Tensor, softcap: float | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor | float]:
    """exp(logits - shift) of capped logits (N, V) as exact as `dtype` is, and the shift, (N, 1).

    Logits need no shift, which is 0 then, if their cap is small.
    """
    if softcap is not None and softcap <= SAFE_CAP:
        return exp_for(dtype, logits, bound=softcap), 0.0
    shift = logits.amax(dim=1, keepdim=True)
    return exp_for(dtype, logits - shift, bound=None), shift


def _chosen(raw: Tensor, targets: Tensor, softcap: float | None) -> Tensor:
    """(N, 1) capped logits of the targets; of some token where a target is IGNORED."""
    return capped(raw.gather(1, targets.clamp(min=0)[:, None]), softcap)
