"""Cross-entropy over a large vocabulary without ever holding all logits.

Owns: output head, softcap and cross-entropy in chunks of tokens, and their gradient.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nanochat.gpt.fast_exp import exp_for
from nanochat.gpt.layers import at_least_fp32

IGNORED = -1  # target of tokens without a loss
SAFE_CAP = 60.0  # exp(60) times any vocabulary size is far below float32's largest number
CHUNK_ELEMENTS = {"cpu": 2**23, "cuda": 2**27}  # logits of one chunk: 32 MB / 512 MB in fp32
MAX_CHUNKS = 64  # each chunk is unrolled into the compiled graph: this limits its compile time


def linear_cross_entropy(
    hidden: Tensor,
    head_weight: Tensor,
    targets: Tensor,
    token_weights: Tensor,
    *,
    softcap: float | None,
) -> Tensor:
    """Weighted sum of the cross-entropies of softcap(hidden @ head_weight.T), differentiable.

    hidden: (N, C) in the compute dtype; head_weight: (V, C) in any float dtype; targets: (N,) int64
    or IGNORED; token_weights: (N,) in at least float32. Returns a 0-d tensor of their dtype.
    The gradient is computed together with the loss, one chunk of tokens at a time: only one chunk
    of logits exists at any time, and none is computed twice.
    """
    loss: Tensor = _LinearCrossEntropy.apply(hidden, head_weight, targets, token_weights, softcap)
    return loss


@torch.no_grad()
def cross_entropies(
    hidden: Tensor, head_weight: Tensor, targets: Tensor, *, softcap: float | None
) -> Tensor:
    """(N,) cross-entropies in at least float32, 0 where ignored, without a gradient."""
    head = head_weight.to(hidden.dtype)
    rows = chunk_rows(hidden.shape[0], head_weight.shape[0], hidden.device.type)
    losses = []
    for x, target in zip(hidden.split(rows), targets.split(rows), strict=True):
        raw = x @ head.T  # [rows, V]
        exps, shift = _exps(capped(raw, softcap), softcap, torch.float32)
        log_z = shift + exps.sum(dim=1, keepdim=True).log()
        loss = (log_z - _chosen(raw, target, softcap))[:, 0]
        losses.append(torch.where(target == IGNORED, 0.0, loss))
    return torch.cat(losses)


def capped(logits: Tensor, softcap: float | None) -> Tensor:
    """softcap x tanh(logits / softcap) in at least float32; unchanged if softcap is None.

    Computed with exp, which takes a third of tanh's time on a CPU. In float32 the error is up to
    3e-7 of the cap even for small logits, which is negligible in a loss; GPT.logits uses tanh.
    """
    logits = at_least_fp32(logits)
    if softcap is None:
        return logits
    return softcap - 2 * softcap / ((logits * (2 / softcap)).exp() + 1)


def chunk_rows(rows: int, vocab_size: int, device_type: str) -> int:
    """Tokens in one chunk; the number of chunks is a power of two, so that sizes are equal."""
    budget = CHUNK_ELEMENTS.get(device_type, CHUNK_ELEMENTS["cpu"])
    chunks = max(1, rows * vocab_size / budget)
    return -(-rows // min(MAX_CHUNKS, 2 ** math.ceil(math.log2(chunks))))


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head_weight: Tensor,
        targets: Tensor,
        token_weights: Tensor,
        softcap: float | None,
    ) -> Tensor:
        head = head_weight.to(hidden.dtype)
        rows = chunk_rows(hidden.shape[0], head_weight.shape[0], hidden.device.type)
        # All logits together would be the largest tensor of a training step (128 KB per token for
        # 32,768 tokens in float32), so only one chunk exists at a time. The loss has a gradient in
        # closed form: each chunk's logits are used for it at once, not kept or computed again.
        columns = torch.arange(head_weight.shape[0], dtype=torch.int32, device=targets.device)
        token_weights = torch.where(targets == IGNORED, 0.0, token_weights)
        total = token_weights.new_zeros(())
        grad_hidden, grad_head = [], torch.zeros_like(head_weight)
        chunks = (tensor.split(rows) for tensor in (hidden, targets, token_weights))
        for x, target, token_weight in zip(*chunks, strict=True):
            raw = x @ head.T  # [rows, C] -> [rows, V]
            logits = capped(raw, softcap)
            exps, shift = _exps(logits, softcap, x.dtype)
            sums = exps.sum(dim=1, keepdim=True)  # [rows, 1]
            log_z = shift + sums.log()
            total = total + ((log_z - _chosen(raw, target, softcap))[:, 0] * token_weight).sum()
            # d loss / d logits is the predicted probabilities minus 1 at the target ...
            probs = exps * (1 / sums)
            grad_logits = torch.where(columns == target.to(torch.int32)[:, None], probs - 1, probs)
            # ... times the slope of the cap: tanh' = 1 - tanh^2.
            if softcap is not None:
                grad_logits = grad_logits * (1 - (logits * (1 / softcap)).square())
            grad_logits = (grad_logits * token_weight[:, None]).to(x.dtype)
            grad_hidden.append(grad_logits @ head)  # [rows, C]
            grad_head += grad_logits.T @ x  # [V, C], in the weight's dtype
        ctx.save_for_backward(torch.cat(grad_hidden), grad_head)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        # Everything is computed already; by the chain rule the incoming 0-d gradient is a factor.
        grad_hidden, grad_head = ctx.saved_tensors
        return (grad_hidden * grad).to(grad_hidden.dtype), grad_head * grad, None, None, None


def _exps(
    logits: Tensor, softcap: float | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor | float]:
    """exp(logits - shift) of capped logits (N, V), as accurate as `dtype`, and the shift (N, 1).

    With a small softcap no shift is needed (it is 0).
    """
    if softcap is not None and softcap <= SAFE_CAP:
        return exp_for(dtype, logits, bound=softcap), 0.0
    # exp overflows float32 above 88; subtracting the largest logit changes no probability.
    shift = logits.amax(dim=1, keepdim=True)
    return exp_for(dtype, logits - shift, bound=None), shift


def _chosen(raw: Tensor, targets: Tensor, softcap: float | None) -> Tensor:
    """(N, 1) capped logits of the targets; of an arbitrary token where a target is IGNORED."""
    return capped(raw.gather(1, targets.clamp(min=0)[:, None]), softcap)
