"""From the size of a model to how long, in what batches and how fast to train it.

Owns: the scaling laws around the reference model of depth 12. Owns not: the sizes themselves
(gpt_config.py), the reference's learning rates and what width does to them (optim.py), or their
course (schedules.py).
"""

import dataclasses
import math
from dataclasses import dataclass

from nanochat.gpt import GPTConfig, flops

REFERENCE_DEPTH = 12  # where learning rates and weight decay were tuned
REFERENCE_WIDTH = 768
DEFAULT_RATIO = 10.5  # training tokens per scaling parameter that make the best use of compute
REFERENCE_TOKENS_PER_STEP = 2**19
BATCH_EXPONENT = 0.383  # best batch ~ tokens ** this. Source: Power Lines, arXiv 2505.13738
# Below 2^17 tokens a step the square-root law would go on down, but measured at depth 4 with 4,096
# tokens a step half of the reference rates learn well where the law gives 0.09.
MIN_LR_SCALE = 0.5


@dataclass(frozen=True, kw_only=True)
class ScaledPlan:
    """How to train a model of some size."""

    parameters: int  # scaling parameters: matrices of the layers and head
    tokens: int  # of the whole training
    tokens_per_step: int
    lr_scale: float  # factor of all learning rates, from the batch size
    weight_decay_scale: float


def scaled_plan(
    config: GPTConfig,
    *,
    ratio: float = DEFAULT_RATIO,
    tokens: int | None = None,
    tokens_per_step: int | None = None,
) -> ScaledPlan:
    """The plan for a model; what the caller gives is kept and the rest follows from it.

    ratio: training tokens per scaling parameter, where `tokens` is None; the reference model is
    taken to train at the same ratio.
    """
    parameters = flops.scaling_parameters(config)
    reference_tokens = ratio * flops.scaling_parameters(_reference(config))
    tokens = tokens or max(1, round(ratio * parameters))
    relative_tokens = tokens / reference_tokens
    if tokens_per_step is None:
        tokens_per_step = best_tokens_per_step(relative_tokens, config.sequence_length)
    relative_batch = tokens_per_step / REFERENCE_TOKENS_PER_STEP
    lr_scale = batch_lr_scale(tokens_per_step)
    return ScaledPlan(
        parameters=parameters,
        tokens=tokens,
        tokens_per_step=tokens_per_step,
        lr_scale=lr_scale,
        # Keeps (rate x decay x steps) of the reference: how often training forgets its past.
        weight_decay_scale=relative_batch / relative_tokens / lr_scale,
    )


def batch_lr_scale(tokens_per_step: int) -> float:
    """Factor of all learning rates: the root of the batch's ratio to the reference's, bounded."""
    return max(MIN_LR_SCALE, math.sqrt(tokens_per_step / REFERENCE_TOKENS_PER_STEP))


def best_tokens_per_step(relative_tokens: float, sequence_length: int) -> int:
    """The best batch in tokens: a power of two, rounded to complete rows.

    relative_tokens: training tokens divided by those of the reference model.
    """
    best = REFERENCE_TOKENS_PER_STEP * relative_tokens**BATCH_EXPONENT
    rows = 2 ** round(math.log2(best)) / sequence_length
    return max(1, round(rows)) * sequence_length


def _reference(config: GPTConfig) -> GPTConfig:
    """The reference model with this model's vocabulary and kind of layers."""
    return dataclasses.replace(
        config, depth=REFERENCE_DEPTH, width=REFERENCE_WIDTH, heads=6, kv_heads=6
    )
