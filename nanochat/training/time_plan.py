"""Predicts how long a training step takes: counted work at measured speeds.

Owns: the work of a step besides its matrix products, and its cost. Does not own: the peak speed of
a machine (device.py) or the FLOPs of the model (flops.py).
"""

from dataclasses import dataclass

import torch

from nanochat.gpt import GPTConfig, flops
from nanochat.gpt.layers import mlp_width
from nanochat.optim.muon import polar_flops
from nanochat.training.memory_plan import StepPlan

# Shares of the peak that training reaches. For GPUs 59% was published for d24 on 8xH100 (99-minute
# run); not measured here.
EXPECTED_MFU = {"cuda": 0.5, "mps": 0.3}
RECOMPUTING_FACTOR = 4 / 3  # one more forward pass, which is a third of a layer's work


@dataclass(frozen=True)
class CpuCosts:
    """Where a CPU's time goes; costs in FLOPs that matrix products would do in the same time."""

    matmul_share: float  # of the peak that a model's matrix products reach
    channel: float  # per token, layer and channel: norms, rotations, activations, residuals
    score: float  # per token, visible key and head: attention including its products
    logit: float  # per token and vocabulary entry: softcap, softmax, their gradients
    parameter: float = 30.0  # per parameter and step: gradients, their norm, AdamW


# By compute dtype and whether kernels are fused. Fitted to the time of one thread at depths 2 to 8,
# 256 to 1,024 tokens and vocabularies of 1,024 and 32,768, to within 8%: see benchmarks/HISTORY.md.
CPU_COSTS = {
    (torch.float32, False): CpuCosts(0.92, 3300, 2100, 2000),
    (torch.float32, True): CpuCosts(0.92, 1500, 1000, 200),
    (torch.bfloat16, False): CpuCosts(0.85, 11700, 5800, 3400),
    (torch.bfloat16, True): CpuCosts(0.85, 1000, 3800, 1000),
}


def seconds_per_step(config: GPTConfig, step: StepPlan, *, passes: int, peak_flops: float) -> float:
    """Seconds of an optimizer step, with the same work on every device.

    passes: forward passes per step on each device. peak_flops: FLOP/s of one device.
    """
    tokens = passes * step.rows * step.length
    recompute = RECOMPUTING_FACTOR if step.checkpoint_activations else 1.0
    if step.device_type != "cpu":
        needed = flops.flops_per_token(config, step.length) * tokens * recompute
        return needed / (peak_flops * EXPECTED_MFU[step.device_type])
    costs = CPU_COSTS[step.dtype if step.dtype == torch.bfloat16 else torch.float32, step.compiled]
    counts = flops.parameter_counts(config)
    # 6 FLOPs per weight and token: a product and a sum, forward once and backward twice. The rest
    # (norms, scores, softmax) is bound by memory rather than by FLOPs, so its costs are measured.
    keys = sum(flops.visible_keys(step.length, window) for window in config.windows)
    layers = (
        6 * counts["matrices"] / costs.matmul_share
        + costs.channel * config.depth * config.width
        + costs.score * keys * config.heads
    )
    head = config.vocab_size * (6 * config.width / costs.matmul_share + costs.logit)
    # Once per step whatever its tokens: this is why small steps are slow.
    once = muon_flops(config) / costs.matmul_share + costs.parameter * sum(counts.values())
    return (tokens * (recompute * layers + head) + once / step.world_size) / peak_flops


def muon_flops(config: GPTConfig) -> float:
    """FLOPs of orthogonalizing every matrix of the layers, once per step."""
    kv_width = config.kv_heads * config.head_dim
    inner = mlp_width(config)
    matrices = [(config.width, config.width)] * 2 + [(config.width, kv_width)] * 2
    matrices += [(config.width, inner)] * (3 if config.activation == "swiglu" else 2)
    return float(config.depth * sum(polar_flops(*shape) for shape in matrices))
