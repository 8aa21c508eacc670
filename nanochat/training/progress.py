"""How far training is and how its loss goes: what a checkpoint keeps of the loop.

Owns the figures between two rows of the metrics and the eye for losses that jump. Knows no device:
it deals in numbers that have already been read.
"""

import math
from dataclasses import dataclass

# A loss this many standard deviations above the mean of about the last LOSSES_WATCHED is a spike:
# rare enough in a thousand steps of noise with a heavy tail.
SPIKE_DEVIATIONS = 6.0
SPIKE_SHARE = 0.02  # of the mean, at least: losses that hardly vary have no spikes of nothing
LOSSES_WATCHED = 50


@dataclass
class Progress:
    """How far training is; saved in the checkpoint.

    elapsed_s: training time up to the last row of the metrics. skipped: steps that were not finite,
    and which changed nothing; skipped_in_a_row: how many of them are the last steps. rewinds: times
    that the run went back to a checkpoint after many of them. spikes: times that the loss jumped.
    window_loss, window_steps: sum and number of the losses since the last row.
    loss_mean, loss_variance, losses_seen, in_spike: what a jump is measured by.
    """

    step: int = 0
    tokens: int = 0
    elapsed_s: float = 0.0
    skipped: int = 0
    skipped_in_a_row: int = 0
    rewinds: int = 0
    spikes: int = 0
    window_loss: float = 0.0
    window_steps: int = 0
    loss_mean: float = 0.0
    loss_variance: float = 0.0
    losses_seen: int = 0
    in_spike: bool = False

    def add_loss(self, loss: float) -> bool:
        """Count a step's loss; whether it is a spike's first."""
        self.skipped_in_a_row = 0
        self.window_loss += loss
        self.window_steps += 1
        deviation = loss - self.loss_mean
        limit = SPIKE_DEVIATIONS * math.sqrt(self.loss_variance)
        limit = max(limit, SPIKE_SHARE * abs(self.loss_mean))
        # It has to come down by half before another one can begin.
        bound = limit / 2 if self.in_spike else limit
        spike = self.losses_seen >= LOSSES_WATCHED and deviation > bound
        first = spike and not self.in_spike
        self.in_spike = spike
        weight = max(1 / (self.losses_seen + 1), 1 / LOSSES_WATCHED)
        # A spike moves the mean as far as the limit does, and does not widen it: it hides no other,
        # and a loss that stays up becomes the new mean.
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
        """The mean loss since the last row; the next window is open."""
        mean = self.window_loss / self.window_steps
        self.window_loss, self.window_steps = 0.0, 0
        return mean


@dataclass(frozen=True)
class Summary:
    """What a stage's training came to, with what it had before it was resumed."""

    steps: int
    trained_steps: int  # since it was resumed
    tokens: int
    tokens_per_s: float
    final_loss: float
    data_wait_share: float
    skipped: int
    rewinds: int
    spikes: int
