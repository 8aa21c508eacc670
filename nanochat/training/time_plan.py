"""How long a training step takes, before it runs: work counted, at speeds that were measured.

Owns the work of a step beside its matrix products, and what it costs. Owns not: the peak speed of
a machine (device.py) or the FLOPs of the model (flops.py).
"""

from dataclasses import dataclass

import torch

from nanochat.gpt import GPTConfig, flops
from nanochat.gpt.layers import mlp_width
from nanochat.optim.muon import POLAR_EXPRESS
from nanochat.training.memory_plan import StepPlan

# Shares of the peak that training reaches in all. GPUs: 59% was published for d24 on 8xH100
# (99-minute run); not measured here.
EXPECTED_MFU = {"cuda": 0.5, "mps": 0.3}
RECOMPUTING_FACTOR = 4 / 3  # of a layer's forward pass, which is a third of its work, once more


@dataclass(frozen=True)
class CpuCosts:
    """What a CPU's time goes to, besides matrix products in the FLOPs that they do meanwhile."""

    matmul_share: float  # of the peak, of matrix products as they are in a model
    channel: float  # of a token in a layer: norms, rotations, activations, residuals
    score: float  # of a token, a key that it sees, and a head: attention with its products
    logit: float  # of a token and a word of the vocabulary: softcap, softmax, their gradients
    parameter: float = 30.0  # of a step: gradients, their norm, AdamW


# By compute dtype and whether kernels are fused; fitted to the time of one thread at depths 2 to 8,
# 256 to 1,024 tokens and vocabularies of 1,024 and 32,768, where they are 8% off at most: see
# benchmarks/RESULTS.md.
CPU_COSTS = {
    (torch.float32, False): CpuCosts(0.92, 3300, 2100, 2000),
    (torch.float32, True): CpuCosts(0.92, 1500, 1000, 200),
    (torch.bfloat16, False): CpuCosts(0.85, 11700, 5800, 3400),
    (torch.bfloat16, True): CpuCosts(0.85, 1000, 3800, 1000),
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
        6 * counts["matrices"] / costs.matmul_share
        + costs.channel * config.depth * config.width
        + costs.score * keys * config.heads
    )
    head = config.vocab_size * (6 * config.width / costs.matmul_share + costs.logit)
    once = muon_flops(config) / costs.matmul_share + costs.parameter * sum(counts.values())
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
