"""Schedules of the learning rate, Muon's momentum and the weight decay.

A schedule is a pure function of the step, so a resumed run needs only the step.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

MOMENTUM_START = 0.85
MOMENTUM_PEAK = 0.97
MOMENTUM_END = 0.90
MOMENTUM_STEPS = 400


@dataclass(frozen=True)
class StepSettings:
    """The scheduled values of one step.

    lr_scale: factor on every learning rate. momentum: of Muon. weight_decay_scale: factor on the
    matrices' weight decay.
    """

    lr_scale: float = 1.0
    momentum: float = 0.95
    weight_decay_scale: float = 1.0


Schedule = Callable[[int], StepSettings]


def warmup_decay(
    total_steps: int,
    *,
    warmup_steps: int = 40,
    warmdown_frac: float = 0.65,
    final_lr_frac: float = 0.05,
) -> Schedule:
    """Linear warmup, constant, linear warmdown over the last `warmdown_frac` of the steps.

    Muon's momentum rises over the first steps and falls during the warmdown; the weight decay
    follows half a cosine to 0. In short runs warmup takes at most a tenth of the steps and the rise
    of the momentum at most a fifth. Steps count from 0.
    """
    warmup = min(warmup_steps, math.ceil(total_steps * 0.1))
    warmdown = min(round(total_steps * warmdown_frac), total_steps - warmup)
    rise = min(MOMENTUM_STEPS, math.ceil(total_steps * 0.2))

    def settings(step: int) -> StepSettings:
        left = _fraction(total_steps - step, warmdown)  # 1 before the warmdown, to 0 at the end
        # Warmup: the first gradients are large and the moments not yet averages of many.
        if step < warmup:
            lr_scale = (step + 1) / warmup
        else:
            # Warmdown: at a constant rate the noise of batches keeps weights moving around a
            # minimum; smaller and smaller steps average it out, which lowers the loss much further.
            lr_scale = final_lr_frac + (1 - final_lr_frac) * left
        # Early gradients change fast, so old ones mislead: a short memory first, then a long one.
        momentum = MOMENTUM_START + (MOMENTUM_PEAK - MOMENTUM_START) * _fraction(step, rise)
        momentum += (MOMENTUM_END - MOMENTUM_PEAK) * (1 - left)
        # The decay ends with the run, so that the last weights are not pulled away from what fits.
        decay = 0.5 * (1 + math.cos(math.pi * _fraction(step, total_steps)))
        return StepSettings(lr_scale, momentum, decay)

    return settings


def linear_to_zero(total_steps: int, *, momentum: float = 0.95) -> Schedule:
    """Linear decay of the learning rate to 0, without weight decay; for RL.

    A short stage on few kinds of text must not shrink what earlier stages have learned.
    """

    def settings(step: int) -> StepSettings:
        left = _fraction(total_steps - step, total_steps)
        return StepSettings(left, momentum, weight_decay_scale=0.0)

    return settings


def _fraction(part: float, total: float) -> float:
    """part / total, clamped to [0, 1]; 1 if total is 0."""
    return min(max(part / total, 0.0), 1.0) if total else 1.0
