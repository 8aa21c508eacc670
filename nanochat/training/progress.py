"""How far training is and how its loss develops: what a checkpoint keeps of the loop.

Owns: the figures between two rows of the metrics, and the detection of loss spikes. Does not own:
reading numbers from a device.
"""

import math
from dataclasses import dataclass
from typing import Any, get_type_hints

from nanochat.system.errors import CheckpointError

# A loss this many standard deviations above the mean of about the last LOSSES_WATCHED is a spike:
# rare in a thousand steps of heavy-tailed noise.
SPIKE_DEVIATIONS = 6.0
SPIKE_SHARE = 0.02  # of the mean, at least: where losses hardly vary, noise is no spike
LOSSES_WATCHED = 50


@dataclass
class Progress:
    """How far training is; saved in the checkpoint.

    elapsed_s: training time up to the last row of the metrics. skipped: steps that were not finite
    and changed nothing; skipped_in_a_row: how many of the last steps. rewinds: returns to a
    checkpoint after several of them. spikes: jumps of the loss. overflows: steps in float16 that
    changed nothing but the loss scale.
    window_loss, window_steps: sum and number of the losses since the last row.
    loss_mean, loss_variance, losses_seen, in_spike: state of the spike detection.
    """

    step: int = 0
    tokens: int = 0
    elapsed_s: float = 0.0
    skipped: int = 0
    skipped_in_a_row: int = 0
    rewinds: int = 0
    spikes: int = 0
    overflows: int = 0
    window_loss: float = 0.0
    window_steps: int = 0
    loss_mean: float = 0.0
    loss_variance: float = 0.0
    losses_seen: int = 0
    in_spike: bool = False

    @classmethod
    def restored(cls, saved: Any) -> "Progress":
        """The progress that a checkpoint keeps; what only other versions know is left out.

        Raises: CheckpointError if it is something else.
        """
        found: dict[str, Any] = {}
        for name, kind in get_type_hints(cls).items() if isinstance(saved, dict) else ():
            value = found[name] = saved.get(name, getattr(cls, name))
            if type(value) not in (kind, *((int,) if kind is float else ())):
                raise CheckpointError(f"the checkpoint's progress has {name} {value!r}")
        if not found:
            raise CheckpointError("the checkpoint does not say how far training was")
        return cls(**found)

    def add_loss(self, loss: float) -> bool:
        """Count a step's loss; whether a spike starts with it."""
        self.skipped_in_a_row = 0
        self.window_loss += loss
        self.window_steps += 1
        deviation = loss - self.loss_mean
        limit = SPIKE_DEVIATIONS * math.sqrt(self.loss_variance)
        limit = max(limit, SPIKE_SHARE * abs(self.loss_mean))
        # The loss has to come down by half before another spike can start.
        bound = limit / 2 if self.in_spike else limit
        spike = self.losses_seen >= LOSSES_WATCHED and deviation > bound
        first = spike and not self.in_spike
        self.in_spike = spike
        weight = max(1 / (self.losses_seen + 1), 1 / LOSSES_WATCHED)
        # A spike moves the mean by at most the limit and leaves the variance alone: it hides no
        # later spike, and a loss that stays high becomes the new mean.
        self.loss_mean += weight * min(deviation, limit if spike else deviation)
        if not spike:
            self.loss_variance = (1 - weight) * (self.loss_variance + weight * deviation**2)
        self.losses_seen += 1
        return first

    def skip(self) -> None:
        """Count a step that was not finite."""
        self.skipped += 1
        self.skipped_in_a_row += 1

    def close_window(self) -> float:
        """The mean loss since the last row; starts the next window."""
        mean = self.window_loss / self.window_steps
        self.window_loss, self.window_steps = 0.0, 0
        return mean


@dataclass(frozen=True)
class Summary:
    """The outcome of a stage's training, including the part before a resume."""

    steps: int
    trained_steps: int  # by this process
    tokens: int
    tokens_per_s: float
    final_loss: float
    data_wait_share: float
    skipped: int
    rewinds: int
    spikes: int
