"""How long a training step takes, before it runs: work counted, at speeds that were measured.

Owns the work of a step beside its matrix products, and what it costs. Owns not: the peak speed of
a machine (device.py) or the FLOPs of the model (flops.py).
"""

from dataclasses import dataclass

import torch

from nanochat import flops
from nanochat.gpt_config import GPTConfig
from nanochat.layers import mlp_width
from nanochat.memory_plan import StepPlan
from nanochat.muon import POLAR_EXPRESS

# Shares of the peak that training reaches in all. GPUs: 59% was published for d24 on 8xH100
# (99-minute run); not measured here.
EXPECTED_MFU = {"cuda": 0.5, "mps": 0.3}
# Of a step's time without the compiler's help or with layers computed again, against with and
# without: published for GPUs of the same generations, not measured here.
RECOMPUTING_FACTOR = 4 / 3
MATMUL_SHARE = 0.85  # of the peak, of matrix products as they are in a model


@dataclass(frozen=True)
class CpuCosts:
    """Work beside matrix products, in the FLOPs that they would do at their peak meanwhile."""

    channel: float  # of a token in a layer: norms, rotations, activations, residuals
    score: float  # of a token, a key that it sees, and a head: attention, with its products
    logit: float  # of a token and a word of the vocabulary: softcap, softmax, their gradients
    parameter: float = 30.0  # of a step: AdamW, gradients, norms


# Fitted to one thread's time at depths 2 to 8 on the machine of benchmarks/RESULTS.md.
CPU_COSTS = {
    (torch.float32, False): CpuCosts(5100, 1200, 1700),
    (torch.bfloat16, False): CpuCosts(11600, 5800, 3400),
    (torch.float32, True): CpuCosts(4300, 1500, 2300),
    (torch.bfloat16, True): CpuCosts(16000, 6700, 4600),
}


def seconds_per_step(config: GPTConfig, step: StepPlan, *, passes: int, peak_flops: float) -> float:
    """Time of an optimizer step on devices that all do the same.

    passes: forward passes of a step on each device. peak_flops: FLOP/s of one device.
    """
    tokens = passes * step.rows * step.length
    again = RECOMPUTING_FACTOR if step.checkpoint_activations else 1.0
    if step.device_type != "cpu":
        needed = flops.flops_per_token(config, step.length) * tokens * again
        return needed / (peak_flops * EXPECTED_MFU[step.device_type])
    costs = CPU_COSTS[step.dtype if step.dtype == torch.bfloat16 else torch.float32, step.compiled]
    counts = flops.parameter_counts(config)
    keys = sum(flops.visible_keys(step.length, window) for window in config.windows)
    layers = (
        6 * counts["matrices"] / MATMUL_SHARE
        + costs.channel * config.depth * config.width
        + costs.score * keys * config.heads
    )
    head = config.vocab_size * (6 * config.width / MATMUL_SHARE + costs.logit)
    once = muon_flops(config) / MATMUL_SHARE + costs.parameter * sum(counts.values())
    return (tokens * (again * layers + head) + once / step.world_size) / peak_flops


def muon_flops(config: GPTConfig) -> float:
    """Operations of orthogonalising every matrix of the layers, once a step."""
    kv_width = config.kv_heads * config.head_dim
    inner = mlp_width(config)
    matrices = [(config.width, config.width)] * 2 + [(config.width, kv_width)] * 2
    matrices += [(config.width, inner)] * (3 if config.activation == "swiglu" else 2)
    one_step = sum(
        4 * min(shape) ** 2 * max(shape) + 2 * min(shape) ** 3  # two with the matrix, one square
        for shape in matrices
    )
    return float(config.depth * len(POLAR_EXPRESS) * one_step)
