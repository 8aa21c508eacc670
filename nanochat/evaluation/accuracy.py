"""Accuracies with standard errors, and how they are averaged and compared.

Owns the statistics of correct and wrong answers. Knows no model and no task.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from nanochat.system.errors import ConfigError


@dataclass(frozen=True)
class Accuracy:
    """The share of correct answers, its standard error and the number of items.

    baseline: the accuracy of guessing, in [0, 1).
    """

    name: str
    value: float
    stderr: float
    n: int
    baseline: float = 0.0

    @property
    def centered(self) -> float:
        """0 for guessing, 1 if all answers are correct."""
        # Guessing gets 25% with four options and 50% with two: uncentered, a mean over such tasks
        # would mostly show how many options they have.
        return (self.value - self.baseline) / (1 - self.baseline)

    @property
    def centered_stderr(self) -> float:
        """Standard error of `centered`."""
        return self.stderr / (1 - self.baseline)


@dataclass(frozen=True)
class Gain:
    """How much one model's accuracy exceeds another's on the same items."""

    value: float
    stderr: float
    n: int

    @property
    def significant(self) -> bool:
        """Whether the gain exceeds two standard errors."""
        return self.value > 2 * self.stderr


def accuracy(name: str, correct: Sequence[bool], baseline: float = 0.0) -> Accuracy:
    """The share of correct answers, with its binomial standard error."""
    n = len(correct)
    value = sum(correct) / n if n else math.nan
    stderr = math.sqrt(value * (1 - value) / n) if n else math.nan
    return Accuracy(name, value, stderr, n, baseline)


def mean_centered(accuracies: Sequence[Accuracy]) -> tuple[float, float]:
    """The mean centered accuracy over tasks, and its standard error."""
    mean = sum(found.centered for found in accuracies) / len(accuracies)
    variance = sum(found.centered_stderr**2 for found in accuracies)
    return mean, math.sqrt(variance) / len(accuracies)


def paired_gain(before: Sequence[bool], after: Sequence[bool]) -> Gain:
    """The gain in accuracy and its standard error, from differences item by item.

    Pairing removes the variance of items that are easy or hard for both, so small gains show.
    """
    if len(before) != len(after) or len(before) < 2:
        raise ConfigError(
            f"a paired comparison needs the same two or more items on both sides, "
            f"got {len(before)} and {len(after)}"
        )
    differences = [int(b) - int(a) for a, b in zip(before, after, strict=True)]
    n = len(differences)
    mean = sum(differences) / n
    variance = sum((d - mean) ** 2 for d in differences) / (n - 1)
    return Gain(mean, math.sqrt(variance / n), n)
