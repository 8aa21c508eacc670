"""What base training will take, before it starts: size, tokens, FLOPs, memory and time.

python -m scripts.plan --preset pocket
nanochat plan --depth 20 --gpus 8 --gpu H100
"""

from dataclasses import dataclass

import torch

from nanochat import config, flops
from nanochat import device as devices
from nanochat.config import nested, option
from nanochat.errors import ConfigError
from nanochat.gpt_config import GPTConfig
from nanochat.progress import duration
from nanochat.scaling import DEFAULT_RATIO, ScaledPlan, scaled_plan

# Shares of the peak that training reaches: 59% was published for d24 on 8xH100 (99-minute run);
# 54-60% was measured on two CPU cores at depth 4 in bfloat16.
EXPECTED_MFU = {"cuda": 0.5, "cpu": 0.55, "mps": 0.3}
# fp32 weights and gradients on every device; two fp32 moments, shared out over the devices
REPLICATED_BYTES_PER_PARAMETER = 8
SHARDED_BYTES_PER_PARAMETER = 8
# What a layer keeps for the backward pass, in bytes a token and channel: twenty activations of two
# bytes (residual, norms, q, k and v before and after their norms, attention, 4 + 4 of the MLP).
ACTIVATION_BYTES_PER_CHANNEL = 40


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """Size, tokens, FLOPs, memory and time of base training, before it starts."""

    model: GPTConfig = nested(GPTConfig)
    tokens: int | None = option(None, "tokens to train on; none: --ratio times the parameters")
    ratio: float = option(DEFAULT_RATIO, "training tokens per scaling parameter")
    tokens_per_step: int | None = option(None, "tokens in one optimizer step; none: from the scale")
    device_batch_size: int = option(16, "rows in one forward pass on one device")
    gpus: int | None = option(None, "GPUs to plan for; none: what this machine has")
    gpu: str | None = option(None, "their model, such as H100 or 'RTX 4090'; none: this machine's")
    later_stages: float | None = option(
        None, "time of all later stages, in base trainings, as measured; none: not known"
    )
    dollars_per_gpu_hour: float | None = option(None, "price of one GPU for an hour")

    def __post_init__(self) -> None:
        if self.gpu is not None and self.gpu not in devices.PEAK_TFLOPS_BF16:
            known = ", ".join(devices.PEAK_TFLOPS_BF16)
            raise ConfigError(f"--gpu must be one of {known}; got {self.gpu!r}")
        if self.gpus is not None and self.gpus < 1:
            raise ConfigError(f"--gpus must be at least 1 or none, got {self.gpus}")


def main(argv: list[str] | None = None) -> None:
    cfg = config.parse(PlanConfig, argv, stage="plan", sections=("tok_train", "base_train", "plan"))
    sizes = cfg.model
    plan = scaled_plan(
        sizes, ratio=cfg.ratio, tokens=cfg.tokens, tokens_per_step=cfg.tokens_per_step
    )
    counts = flops.parameter_counts(sizes)
    per_token = flops.flops_per_token(sizes, sizes.sequence_length)
    total_flops = per_token * plan.tokens
    print(
        f"model       depth {sizes.depth}, width {sizes.width}, {sum(counts.values()):,} parameters"
    )
    print(
        "            " + ", ".join(f"{name} {count:,}" for name, count in counts.items() if count)
    )
    print(f"training    {plan.tokens:,} tokens, {_steps(plan):,} steps of {plan.tokens_per_step:,}")
    print(f"compute     {total_flops:.2e} FLOPs ({per_token:.2e} a token, forward and backward)")
    print(f"memory      about {_memory(cfg, counts) / 1e9:.1f} GB on each device")
    for line in _time(cfg, total_flops):
        print(line)


def _steps(plan: ScaledPlan) -> int:
    return max(1, plan.tokens // plan.tokens_per_step)


def _memory(cfg: PlanConfig, counts: dict[str, int]) -> float:
    sizes = cfg.model
    tokens = cfg.device_batch_size * sizes.sequence_length
    activations = tokens * sizes.width * sizes.depth * ACTIVATION_BYTES_PER_CHANNEL
    devices_used = cfg.gpus or max(1, torch.cuda.device_count())
    per_parameter = REPLICATED_BYTES_PER_PARAMETER + SHARDED_BYTES_PER_PARAMETER / devices_used
    return per_parameter * sum(counts.values()) + activations


def _time(cfg: PlanConfig, total_flops: float) -> list[str]:
    """Time and cost at the share of the peak that such training reaches."""
    if cfg.gpu is not None or cfg.gpus is not None:
        name = cfg.gpu or "H100"
        kind, count = "cuda", cfg.gpus or 1
        peak = devices.PEAK_TFLOPS_BF16[name] * 1e12
    else:
        device = devices.choose_device(None)
        kind, count = device.type, max(1, torch.cuda.device_count())
        torch.set_num_threads(devices.cores())
        found = devices.peak_flops(device, devices.measure_dtype(device))
        if found is None:
            return [
                "time        unknown: this device's peak speed is not known; name one with --gpu"
            ]
        name, peak = devices.describe(device), found
    share = EXPECTED_MFU[kind]
    seconds = total_flops / (peak * count * share)
    lines = [
        f"time        about {duration(seconds)} of base training on {count} x {name} "
        f"({share:.0%} of {peak * count / 1e12:,.2f} TFLOP/s)"
    ]
    if cfg.later_stages is not None:
        whole = duration(seconds * (1 + cfg.later_stages))
        lines.append(f"            about {whole} with all later stages and their evaluations")
    if cfg.dollars_per_gpu_hour is not None:
        lines.append(f"cost        about ${seconds / 3600 * count * cfg.dollars_per_gpu_hour:,.2f}")
    return lines


if __name__ == "__main__":
    config.cli(main)
