"""Cross-entropy of a large vocabulary without ever holding all logits.

Owns: linear head + softcap + cross-entropy in chunks of tokens, forward and backward.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

IGNORED = -1  # target that has no loss
CHUNK_ELEMENTS = {"cpu": 2**23, "cuda": 2**27}  # logits of one chunk: 32 MB / 512 MB in fp32
MAX_CHUNKS = 64  # each chunk is unrolled into the compiled graph: bounds its compile time


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, softcap: float | None
) -> Tensor:
    """Cross-entropy of softcap(hidden @ weight.T), one chunk of tokens at a time.

    hidden: (N, C) in the compute dtype; weight: (V, C) in any float dtype; targets: (N,) int64,
    IGNORED where there is none. Returns (N,) in at least float32, 0 where ignored. The logits are
    computed again in the backward pass, so that no more than one chunk of them ever exists.
    """
    loss: Tensor = _LinearCrossEntropy.apply(hidden, weight, targets, softcap)
    return loss


def chunk_rows(rows: int, vocab_size: int, device_type: str) -> int:
    """Tokens of one chunk; their number is a power of two, so that chunks are of equal size."""
    budget = CHUNK_ELEMENTS.get(device_type, CHUNK_ELEMENTS["cpu"])
    wanted = max(1, rows * vocab_size / budget)
    return -(-rows // min(MAX_CHUNKS, 2 ** math.ceil(math.log2(wanted))))


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float | None
    ) -> Tensor:
        cast = weight.to(hidden.dtype)
        rows = chunk_rows(hidden.shape[0], weight.shape[0], hidden.device.type)
        losses, normalisers = [], []
        for x, target in zip(hidden.split(rows), targets.split(rows), strict=True):
            logits = _capped_logits(x, cast, softcap)
            log_z = logits.logsumexp(dim=1)
            chosen = logits.gather(1, target.clamp(min=0)[:, None]).squeeze(1)
            losses.append(torch.where(target == IGNORED, 0.0, log_z - chosen))
            normalisers.append(log_z)
        ctx.save_for_backward(hidden, weight, targets, torch.cat(normalisers))
        ctx.softcap = softcap
        return torch.cat(losses)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        hidden, weight, targets, log_z = ctx.saved_tensors
        cast = weight.to(hidden.dtype)
        rows = chunk_rows(hidden.shape[0], weight.shape[0], hidden.device.type)
        columns = torch.arange(weight.shape[0], device=targets.device)
        grad = torch.where(targets == IGNORED, 0.0, grad)
        grad_hidden = []
        grad_weight = torch.zeros_like(weight)
        chunks = (tensor.split(rows) for tensor in (hidden, targets, log_z, grad))
        for x, target, normaliser, scale in zip(*chunks, strict=True):
            logits = _capped_logits(x, cast, ctx.softcap)
            slope = (logits - normaliser[:, None]).exp() - (columns == target[:, None]).to(
                logits.dtype
            )
            if ctx.softcap is not None:
                slope = slope * (1 - (logits / ctx.softcap).square())
            slope = (slope * scale[:, None]).to(x.dtype)
            grad_hidden.append(slope @ cast)
            grad_weight += slope.T @ x
        return torch.cat(grad_hidden), grad_weight, None, None


def _capped_logits(hidden: Tensor, weight: Tensor, softcap: float | None) -> Tensor:
    logits = hidden @ weight.T
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits if softcap is None else softcap * (logits / softcap).tanh()
