"""Muon and AdamW, sharded over ranks; schedules; scaling of learning rates and batches."""

from nanochat.optim.optimizer import MuonAdamW
from nanochat.optim.settings import OptimConfig, build

__all__ = ["MuonAdamW", "OptimConfig", "build"]
