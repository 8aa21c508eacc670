"""Predict what base training takes: size, tokens, FLOPs, memory and time.

nanochat plan --preset pocket
nanochat plan --depth 20 --gpus 8 --gpu H100
"""

import dataclasses
from dataclasses import dataclass
from typing import Literal

import torch

from nanochat.data.dataloader import micro_batch_rows
from nanochat.gpt import GPTConfig, flops
from nanochat.optim.scaling import DEFAULT_RATIO, ScaledPlan, scaled_plan
from nanochat.system import compiler, config, memory
from nanochat.system import device as devices
from nanochat.system.config import nested, option
from nanochat.system.distributed import DTYPES
from nanochat.system.errors import ConfigError
from nanochat.system.metrics import duration
from nanochat.system.peaks import PEAKS
from nanochat.training import batch_size, memory_plan, time_plan
from nanochat.training.memory_plan import MemoryEstimate, StepPlan


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """Predicted size, tokens, FLOPs, memory and time of base training."""

    model: GPTConfig = nested(GPTConfig)
    tokens: int | None = option(
        None, "tokens to train on; none: --ratio times the parameters", least=1
    )
    ratio: float = option(DEFAULT_RATIO, "training tokens per scaling parameter", above=0)
    tokens_per_step: int | None = option(
        None, "tokens in one optimizer step; none: from the model's scale", least=1
    )
    device_batch_size: int | Literal["auto"] = option(
        16,
        "rows in one forward pass on one device; auto: as many as fit here and still help",
        least=1,
    )
    dtype: str | None = option(
        None,
        "compute dtype; none: bfloat16 on a GPU, whichever is faster on a CPU",
        choices=tuple(DTYPES),
    )
    compile: bool = option(True, "fuse kernels with torch.compile")
    checkpoint_activations: bool = option(False, "recompute layers in the backward pass")
    save_every: int | None = option(
        None, "steps between checkpoints, whose copies take memory; none: only at the end"
    )
    gpus: int | None = option(None, "GPUs to plan for; none: this machine's", least=1)
    gpu: str | None = option(
        None,
        "model of those GPUs; none: this machine's",
        choices=tuple(PEAKS),
    )
    later_stages: float | None = option(
        None, "time of all later stages, as a multiple of base training's; none: not shown"
    )
    dollars_per_gpu_hour: float | None = option(
        None, "price of one GPU per hour; none: no cost shown"
    )


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The machine to plan for."""

    kind: str  # cpu, cuda or mps
    name: str
    count: int
    dtype: torch.dtype
    peak_flops: float | None  # of one device; None if unknown


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
    resident_bytes = memory.resident_bytes()
    machine = find_machine(cfg)
    step, passes = find_step(cfg, plan, machine, resident_bytes)
    estimate = memory_plan.estimate(sizes, step, resident_bytes=resident_bytes)
    for line in [*_memory(estimate, step, passes), *_time(cfg, plan, machine, step, passes)]:
        print(line)


def _steps(plan: ScaledPlan) -> int:
    return max(1, plan.tokens // plan.tokens_per_step)


def find_machine(cfg: PlanConfig) -> Machine:
    """The GPUs that the options name, else this machine."""
    asked = DTYPES[cfg.dtype] if cfg.dtype else None
    if cfg.gpu is not None or cfg.gpus is not None:
        name = cfg.gpu or "H100"
        dtype = asked or (torch.bfloat16 if PEAKS[name].bf16 else torch.float32)
        return Machine(
            kind="cuda",
            name=name,
            count=cfg.gpus or 1,
            dtype=dtype,
            peak_flops=PEAKS[name].flops(dtype),
        )
    device = devices.choose_device(None)
    torch.set_num_threads(devices.cores())
    dtype = asked or devices.measure_dtype(device)
    return Machine(
        kind=device.type,
        name=devices.describe(device),
        count=max(1, torch.cuda.device_count()),
        dtype=dtype,
        peak_flops=devices.peak_flops(device, dtype),
    )


def find_step(
    cfg: PlanConfig, plan: ScaledPlan, machine: Machine, resident_bytes: int
) -> tuple[StepPlan, int]:
    """What a device does in one forward pass, and the number of passes per step."""
    length = cfg.model.sequence_length
    batch_rows = max(1, plan.tokens_per_step // length)
    most = -(-batch_rows // machine.count)
    step = StepPlan(
        rows=most,
        length=length,
        dtype=machine.dtype,
        device_type=machine.kind,
        world_size=machine.count,
        compiled=cfg.compile,
        checkpoint_activations=cfg.checkpoint_activations,
        saves_meanwhile=cfg.save_every is not None,
    )
    rows = cfg.device_batch_size
    available = _available_bytes(cfg, machine, resident_bytes) if rows == "auto" else 0
    # Only now: the compiler takes memory, which the estimate adds itself.
    if cfg.compile and cfg.gpu is None and cfg.gpus is None:
        step = dataclasses.replace(
            step, compiled=compiler.probe(devices.choose_device(None)) is None
        )
    if rows == "auto":
        fits = batch_size.by_estimate(
            cfg.model, step, most=most, available_bytes=available, resident_bytes=resident_bytes
        )
        wanted = batch_size.useful_rows(most, length, machine.kind)
        rows = batch_size.largest_fitting(fits, wanted, first=wanted)
        if rows == 0:
            raise ConfigError(
                f"--device-batch-size auto: not even one row fits into {available / 1e9:.1f} GB; "
                "use --checkpoint-activations, or a smaller --sequence-length or --depth"
            )
    passes, rows = micro_batch_rows(batch_rows, rows, machine.count)
    return memory_plan.with_rows(step, rows, most), passes


def _available_bytes(cfg: PlanConfig, machine: Machine, resident_bytes: int) -> int:
    """Memory of this machine's GPU, or what a process may take on its CPU."""
    if machine.kind != "cuda":
        left = memory.memory_left()
        if left is None:
            raise ConfigError(batch_size.UNKNOWN_MEMORY)
        return resident_bytes + left
    if cfg.gpu is not None or not torch.cuda.is_available():
        raise ConfigError("--device-batch-size auto plans for this machine only; give a number")
    return torch.cuda.get_device_properties(0).total_memory


def _memory(estimate: MemoryEstimate, step: StepPlan, passes: int) -> list[str]:
    """The parts of the memory as a table, in GB."""
    total = f"{estimate.total / 1e9:.2f} GB"
    passes_a_step = "once a step" if passes == 1 else f"{passes} times a step"
    lines = [
        f"memory      {total} on each device: {step.rows} rows of {step.length:,} tokens, "
        f"{passes_a_step}",
        f"            {'GB':<16}{'at the peak':>12}{'at most':>12}",
    ]
    for field in dataclasses.fields(estimate.peak):
        peak, most = (getattr(parts, field.name) for parts in (estimate.peak, estimate.most))
        if most:
            lines.append(f"            {field.name:<16}{peak / 1e9:>12.3f}{most / 1e9:>12.3f}")
    return lines


def _time(
    cfg: PlanConfig, plan: ScaledPlan, machine: Machine, step: StepPlan, passes: int
) -> list[str]:
    """Predicted time and cost."""
    if machine.peak_flops is None:
        return ["time        unknown: this device's peak speed is not known; name one with --gpu"]
    step_s = time_plan.seconds_per_step(
        cfg.model, step, passes=passes, peak_flops=machine.peak_flops
    )
    seconds = step_s * _steps(plan)
    peak = machine.peak_flops * machine.count
    needed = flops.flops_per_token(cfg.model, step.length) * plan.tokens_per_step
    lines = [
        f"time        about {duration(seconds)} of base training on {machine.count} x "
        f"{machine.name} ({needed / step_s / peak:.0%} of {peak / 1e12:,.2f} TFLOP/s)"
    ]
    if cfg.later_stages is not None:
        total = duration(seconds * (1 + cfg.later_stages))
        lines.append(f"            about {total} with all later stages and their evaluations")
    if cfg.dollars_per_gpu_hour is not None:
        dollars = seconds / 3600 * machine.count * cfg.dollars_per_gpu_hour
        lines.append(f"cost        about ${dollars:,.2f}")
    return lines


if __name__ == "__main__":
    config.cli(main)
