"""Muon and AdamW, sharded over ranks; schedules, and how to scale rates and batches."""

from nanochat.optim.optimizer import MuonAdamW, OptimConfig, build

__all__ = ["MuonAdamW", "OptimConfig", "build"]
