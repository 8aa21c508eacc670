"""Reads a sweep's comma-separated flags: budgets, sizes, seeds and ratios.

Owns: parsing them, with messages that name the flag. Does not own: planning or training.
"""

import math
import re
from typing import Any

from nanochat.gpt import GPTConfig
from nanochat.system.config import from_dict
from nanochat.system.errors import ConfigError

LARGEST_BUDGET = 1e30  # FLOPs; more is a typo


def budgets(text: str) -> list[float]:
    """Budgets in FLOPs. Raises: ConfigError for anything else."""
    found = []
    for item in _items(text, "budgets"):
        try:
            found.append(float(item))
        except ValueError:
            raise ConfigError(f"--budgets must be numbers such as 1e12, got {item!r}") from None
        if not 0 < found[-1] <= LARGEST_BUDGET:
            raise ConfigError(f"--budgets must be in (0, {LARGEST_BUDGET:g}], got {item!r}")
    return found


def models(text: str, **shared: Any) -> list[GPTConfig]:
    """Models as DEPTHxWIDTH or DEPTH; shared: options of GPTConfig that all of them have.

    Raises: ConfigError for an invalid size.
    """
    found = []
    for item in _items(text, "sizes"):
        match = re.fullmatch(r"(\d{1,6})(?:x(\d{1,9}))?", item)
        if match is None:
            raise ConfigError(f"--sizes must be like 4 or 4x192 (depth x width), got {item!r}")
        sizes = {"depth": match[1]} | ({"width": match[2]} if match[2] else {})
        try:
            found.append(from_dict(GPTConfig, {**shared, **sizes}))
        except ConfigError as error:
            raise ConfigError(f"--sizes {item}: {error}") from None
    return found


def seeds(text: str) -> list[int]:
    """Seeds. Raises: ConfigError for anything but whole numbers from 0."""
    items = _items(text, "seeds")
    for item in items:
        if not re.fullmatch(r"\d{1,15}", item):
            raise ConfigError(f"--seeds must be whole numbers from 0, got {item!r}")
    return [int(item) for item in items]


def ratios(text: str | None) -> tuple[float, float]:
    """The least and most tokens per parameter; None: no bounds.

    Raises: ConfigError for anything but such a pair.
    """
    if text is None:
        return 0.0, math.inf
    try:
        least, most = (float(item) for item in text.split(","))
    except ValueError:
        raise ConfigError(f"--ratios must be like 2,150 or none, got {text!r}") from None
    if not 0 <= least < most:
        raise ConfigError(f"--ratios must be a smaller and a larger number, got {text!r}")
    return least, most


def _items(text: str, flag: str) -> list[str]:
    items = [item.strip() for item in text.split(",") if item.strip()]
    if not items:
        raise ConfigError(f"--{flag} is empty")
    return items
