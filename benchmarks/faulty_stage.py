"""A training stage with injected faults, identical in every run; used by faults.py.

python benchmarks/faulty_stage.py base_train --run x ...
"""

import dataclasses
import errno
import importlib
import math
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nanochat.checkpoint_manager import store
from nanochat.data import Batch, BatchSource
from nanochat.system import config
from nanochat.training import chat_stage
from nanochat.training.stage import Recipe, run_training
from nanochat.training.stage_opening import Stage

NOT_FINITE = {3, 18, 19, 20, 21, 22}  # calls of next_step; five in a row make the run go back
DISK_FULL = {10, 30}  # steps whose checkpoint cannot be written


class Faulty:
    """A BatchSource that makes the loss of some steps NaN, counted by its calls."""

    def __init__(self, batches: BatchSource) -> None:
        self._batches = batches
        self._calls = 0

    def next_step(self) -> list[Batch]:
        self._calls += 1
        found = self._batches.next_step()
        if self._calls not in NOT_FINITE:
            return found
        return [Batch(b.inputs, b.targets, torch.full(b.targets.shape, math.nan)) for b in found]

    def state(self) -> dict[str, Any]:
        return {**self._batches.state(), "takes": self._calls}

    def load_state(self, state: dict[str, Any]) -> None:
        self._calls = state.pop("takes")
        self._batches.load_state(state)

    def close(self) -> None:
        self._batches.close()


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write tensors, then fail at some steps as if the disk were full."""
    real_save(tensors, path)
    if int(path.parent.name.split(".")[1].removeprefix("step_")) in DISK_FULL:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))


def run_faulty(stage: Stage, recipe: Recipe) -> None:
    """Train on batches with faults."""
    run_training(stage, dataclasses.replace(recipe, batches=Faulty(recipe.batches)))


if __name__ == "__main__":
    real_save, store._save_tensors = store._save_tensors, save_tensors
    name, *args = (arg for arg in sys.argv[1:] if arg != "--")
    sys.argv = [name, *args]
    module = importlib.import_module(f"nanochat.stages.{name}")
    for user in (module, chat_stage):  # mid_train and chat_sft train through chat_stage
        vars(user)["run_training"] = run_faulty
    config.cli(module.main)
