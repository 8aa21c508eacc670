"""AdamW: the update of embeddings, the head and all small parameters.

Owns: the call of torch's fused kernel. Bias correction and epsilon are those of torch.optim.AdamW.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim.adamw import adamw


@dataclass(frozen=True, kw_only=True)
class AdamWSettings:
    """Hyperparameters of one group of parameters, before the schedule's factors."""

    lr: float
    beta1: float
    beta2: float
    weight_decay: float
    eps: float


@torch.no_grad()
def adamw_update(
    weights: Sequence[Tensor],
    grads: Sequence[Tensor],
    first: Sequence[Tensor],
    second: Sequence[Tensor],
    *,
    steps_done: int | Tensor,
    settings: AdamWSettings,
    lr_scale: float = 1.0,
    decay_scale: float = 1.0,
    finite: Tensor | None = None,
) -> None:
    """One step of AdamW on each of several tensors, in place.

    weights, grads, first, second: lists of tensors of matching shapes; first and second are the
    moments, zero before the first step. steps_done: steps before this one, a number or 0-d float32.
    finite: 0-d bool on the device, only for the fused kernels (CPU and CUDA); if False, nothing
    changes.
    """
    # Moments are averages of gradients that start at 0, so early ones are too small; the kernel
    # divides by 1 - beta^step to correct that. Decay is decoupled: it does not enter the moments.
    # The kernel increments these in place; fp32 represents integers exactly up to 2^24.
    done = torch.as_tensor(steps_done, dtype=torch.float32, device=weights[0].device)
    steps = [done.clone() for _ in weights]
    fused = weights[0].device.type in ("cpu", "cuda")
    adamw(
        list(weights),
        list(grads),
        list(first),
        list(second),
        [],
        steps,
        fused=fused,
        foreach=False if fused else None,
        amsgrad=False,
        beta1=settings.beta1,
        beta2=settings.beta2,
        lr=settings.lr * lr_scale,
        weight_decay=settings.weight_decay * decay_scale,
        eps=settings.eps,
        maximize=False,
        # The kernel skips its update where this is 1, as it does under a gradient scaler.
        found_inf=None if finite is None else (~finite).float(),
    )
