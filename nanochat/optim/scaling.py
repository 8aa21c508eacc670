"""From the size of a model to its training tokens, batch size and learning-rate scale.

Owns: the scaling laws around the reference model of depth 12. Does not own: the sizes themselves
(gpt/config.py), the reference's learning rates and their dependence on the width (settings.py), or
their schedules (schedules.py).
"""

import dataclasses
import math
from dataclasses import dataclass

from nanochat.gpt import GPTConfig, flops

REFERENCE_DEPTH = 12  # where learning rates and weight decay were tuned
REFERENCE_WIDTH = 768
DEFAULT_RATIO = 10.5  # training tokens per scaling parameter, compute-optimal
REFERENCE_TOKENS_PER_STEP = 2**19
BATCH_EXPONENT = 0.383  # best batch ~ tokens ** this. Source: Power Lines, arXiv 2505.13738
# Lower bound for batches below 2^17 tokens: at depth 4 with 4,096 tokens per step, where the
# square-root law gives 0.09, half of the reference learning rates was measured to train well.
MIN_LR_SCALE = 0.5


@dataclass(frozen=True, kw_only=True)
class ScaledPlan:
    """How to train a model of some size."""

    parameters: int  # scaling parameters: matrices of the layers and the head
    tokens: int  # to train on
    tokens_per_step: int
    lr_scale: float  # factor on all learning rates, from the batch size
    weight_decay_scale: float


def scaled_plan(
    config: GPTConfig,
    *,
    ratio: float = DEFAULT_RATIO,
    tokens: int | None = None,
    tokens_per_step: int | None = None,
) -> ScaledPlan:
    """The plan for a model; given values are kept and the rest follows from them.

    ratio: training tokens per scaling parameter if `tokens` is None. The reference model is assumed
    to be trained with the same ratio.
    """
    parameters = flops.scaling_parameters(config)
    # At a fixed ratio of tokens to parameters a larger model also trains on more tokens, so all
    # laws are in terms of tokens relative to the reference.
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
        # Keeps learning rate x decay x steps as in the reference: the total decay of a weight.
        weight_decay_scale=relative_batch / relative_tokens / lr_scale,
    )


def batch_lr_scale(tokens_per_step: int) -> float:
    """Factor on all learning rates: square root of the batch relative to the reference, bounded."""
    # The noise of a mean over n tokens falls as 1 / sqrt(n). Adam and Muon normalize their updates,
    # so less noise does not make steps larger by itself: the learning rate does, by sqrt(n).
    return max(MIN_LR_SCALE, math.sqrt(tokens_per_step / REFERENCE_TOKENS_PER_STEP))


def best_tokens_per_step(relative_tokens: float, sequence_length: int) -> int:
    """The best batch in tokens: a power of two, rounded to complete rows.

    relative_tokens: training tokens divided by those of the reference model.
    """
    # Larger batches stop helping once a batch's mean gradient is almost free of noise. The lower
    # the loss, the weaker the signal in the noise: longer training runs make use of larger batches,
    # and over many of them the best batch grew as this power of the training tokens.
    best = REFERENCE_TOKENS_PER_STEP * relative_tokens**BATCH_EXPONENT
    rows = 2 ** round(math.log2(best)) / sequence_length
    return max(1, round(rows)) * sequence_length


def _reference(config: GPTConfig) -> GPTConfig:
    """The reference model, with this model's vocabulary and architecture."""
    return dataclasses.replace(
        config, depth=REFERENCE_DEPTH, width=REFERENCE_WIDTH, heads=6, kv_heads=6
    )
