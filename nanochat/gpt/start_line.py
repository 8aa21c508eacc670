"""The one line in which a stage says where and how it computes.

Owns: its words. Does not own: when it is printed (training/stage.py, evaluation/stage.py).
"""

from nanochat.gpt.model import GPT
from nanochat.system import device as devices
from nanochat.system.distributed import Run


def start_line(run: Run, model: GPT, *more: str) -> str:
    """Device and number of ranks, dtype, attention with what it replaces and why, and `more`."""
    ranks = f"{run.world_size} x " if run.world_size > 1 else ""
    dtype = str(model.compute_dtype).removeprefix("torch.")
    backend = model.attention
    missing = f" ({backend.passed_over})" if backend.passed_over else ""
    parts = (f"{ranks}{devices.describe(run.device)}", dtype, f"attention {backend.name}{missing}")
    return " | ".join((*parts, *more))
