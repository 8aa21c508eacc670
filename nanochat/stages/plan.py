"""Predict what a run takes: size, tokens, FLOPs, memory, time and dollars.

nanochat plan --preset pocket
nanochat plan --preset speedrun --gpus 8 --gpu H100
nanochat plan --preset gpu1 --gpu T4
nanochat plan --depth 20 --gpus 8 --gpu H100
"""

import dataclasses
import difflib
from dataclasses import dataclass
from typing import Any, Literal

import torch

from nanochat.data.dataloader import micro_batch_rows
from nanochat.gpt import GPTConfig, flops, fp8
from nanochat.optim.scaling import DEFAULT_RATIO, ScaledPlan, scaled_plan
from nanochat.stages.chat_rl import ChatRlConfig
from nanochat.stages.mid_train import MidTrainConfig
from nanochat.system import compiler, config, memory, peaks
from nanochat.system import device as devices
from nanochat.system.config import nested, option
from nanochat.system.distributed import DTYPES
from nanochat.system.errors import ConfigError
from nanochat.system.metrics import duration
from nanochat.system.peaks import PEAKS
from nanochat.training import batch_size, memory_plan, model_size, run_plan, time_plan
from nanochat.training.memory_plan import MemoryEstimate, StepPlan
from nanochat.training.run_plan import Seconds


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """Predicted size, tokens, FLOPs, memory, time and cost of a run."""

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
        "compute dtype; none: the one that training takes there",
        choices=tuple(DTYPES),
    )
    compile: bool = option(True, "fuse kernels with torch.compile")
    checkpoint_activations: bool = option(False, "recompute layers in the backward pass")
    fp8: bool | Literal["auto"] = option(
        False, "8-bit matrix products; auto: where the GPU has them and the model gains by them"
    )
    eval_every: int | None = option(None, "steps between evaluations; none: only at the end")
    max_hours: float = option(
        model_size.MAX_HOURS, "with --depth auto: most hours of base training", above=0
    )
    save_every: int | None = option(
        None, "steps between checkpoints, whose copies take memory; none: only at the end"
    )
    gpus: int | None = option(None, "GPUs to plan for; none: this machine's", least=1)
    processes: int | None = option(
        None,
        "processes that train together on this machine; none: one for each GPU, else one",
        least=1,
    )
    gpu: str | None = option(
        None, 'model of those GPUs, such as H100 or "RTX 4090"; none: this machine\'s'
    )
    later_stages: float | None = option(
        None, "time of all later stages, as a multiple of base training's; none: not shown"
    )
    dollars_per_gpu_hour: float | None = option(
        None, "price of one GPU per hour; none: a typical one, if it is known", above=0
    )

    def __post_init__(self) -> None:
        if self.processes is not None and (self.gpu or self.gpus) is not None:
            raise ConfigError(
                f"--processes {self.processes} is about this machine; --gpus says how many of "
                "another one's GPUs train"
            )


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The machine to plan for."""

    kind: str  # cpu, cuda or mps
    name: str
    count: int  # of devices, or of the processes that share a CPU
    dtype: torch.dtype
    peak_flops: float | None  # of one device; None if unknown
    memory_bytes: int | None = None  # of one GPU


def main(argv: list[str] | None = None) -> None:
    sections = ("tok_train", "base_train", "plan")
    cfg = config.parse(PlanConfig, argv, stage="plan", sections=sections, resolve=resolve)
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
    for line in [
        *_memory(estimate, step, passes),
        *_too_much(cfg, estimate, step, machine),
        *_time(cfg, plan, machine, step, passes, config.preset_name(argv)),
    ]:
        print(line)


def resolve(values: dict[str, Any]) -> dict[str, Any]:
    """Replaces what "auto" means on the GPU to plan for: depth and fp8."""

    def gpu(values: dict[str, Any]) -> model_size.Gpu:
        count = int(values.get("gpus") or 1)
        if values.get("gpu") or values.get("gpus"):
            dtype = DTYPES.get(str(values.get("dtype")))
            return model_size.of_sheet(values.get("gpu") or "H100", count=count, dtype=dtype)
        count = int(values.get("processes") or max(1, torch.cuda.device_count()))
        return model_size.of_this_machine(values, count)

    name = values.get("gpu")
    if name is not None and name not in PEAKS:
        close = difflib.get_close_matches(str(name), PEAKS, n=3, cutoff=0.4) or ["H100", "A100"]
        raise ConfigError(
            f"--gpu {name}: no data sheet of it; the closest are {', '.join(close)} (all: "
            "nanochat/system/peaks.py)"
        )
    values = model_size.resolver(gpu)(values)
    if values.get("fp8") == "auto":
        sizes = config.from_dict(GPTConfig, model_size.sizes_of(values))
        values["fp8"] = sizes.width >= fp8.MIN_WIDTH and _has_fp8(values)
    return values


def _has_fp8(values: dict[str, Any]) -> bool:
    """Whether the GPU to plan for multiplies in fp8."""
    name = values.get("gpu") or ("H100" if values.get("gpus") else None)
    if name is None:
        device = devices.choose_device(None)
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    sheet = peaks.find(name)
    return sheet is not None and sheet.fp8 is not None


def _steps(plan: ScaledPlan) -> int:
    return max(1, plan.tokens // plan.tokens_per_step)


def find_machine(cfg: PlanConfig) -> Machine:
    """The GPUs that the options name, else this machine."""
    asked = DTYPES[cfg.dtype] if cfg.dtype else None
    if cfg.gpu is not None or cfg.gpus is not None:
        name, count = cfg.gpu or "H100", cfg.gpus or 1
        gpu = model_size.of_sheet(name, count=count, dtype=asked)
        return Machine(
            kind="cuda",
            name=name,
            count=count,
            dtype=gpu.dtype,
            peak_flops=gpu.peak_flops,
            memory_bytes=gpu.memory_bytes,
        )
    device = devices.choose_device(None)
    torch.set_num_threads(devices.cores())
    dtype = asked or devices.measure_dtype(device)
    cuda = device.type == "cuda"
    count = cfg.processes or (max(1, torch.cuda.device_count()) if cuda else 1)
    peak = model_size.expected_flops(device, dtype)
    return Machine(
        kind=device.type,
        name=devices.describe(device),
        count=count,
        dtype=dtype,
        peak_flops=peak if cuda or peak is None else peak / count,  # processes share the cores
        memory_bytes=torch.cuda.get_device_properties(device).total_memory if cuda else None,
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
        fp8=cfg.fp8 is True and machine.kind == "cuda",
        checkpoint_activations=cfg.checkpoint_activations,
        saves_meanwhile=cfg.save_every is not None,
    )
    rows = cfg.device_batch_size
    available = _available_bytes(machine, resident_bytes) if rows == "auto" else 0
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
        rows = batch_size.largest_fitting(fits, wanted, first=wanted, step_rows=most)
        if rows == 0:
            raise ConfigError(
                f"--device-batch-size auto: not even one row fits into {available / 1e9:.1f} GB; "
                "use --checkpoint-activations, or a smaller --sequence-length or --depth"
            )
    passes, rows = micro_batch_rows(batch_rows, rows, machine.count)
    return memory_plan.with_rows(step, rows, most), passes


def _available_bytes(machine: Machine, resident_bytes: int) -> int:
    """Memory of the GPU, or what a process may take on this machine's CPU."""
    if machine.memory_bytes is not None:
        return machine.memory_bytes
    left = memory.memory_left()
    if left is None:
        raise ConfigError(batch_size.UNKNOWN_MEMORY)
    return resident_bytes + left


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


def _too_much(
    cfg: PlanConfig, estimate: MemoryEstimate, step: StepPlan, machine: Machine
) -> list[str]:
    """A warning with the remedy if a GPU has less memory than that."""
    if machine.memory_bytes is None:
        return []
    usable = machine.memory_bytes * (1 - batch_size.GPU_HEADROOM)
    if estimate.total <= usable:
        return []
    remedy = "use --checkpoint-activations, or a smaller --depth or --sequence-length"
    fits = batch_size.by_estimate(
        cfg.model, step, most=step.rows, available_bytes=machine.memory_bytes
    )
    if rows := batch_size.largest_fitting(fits, step.rows - 1):
        remedy = f"use --device-batch-size {rows}, or auto"
    return [
        f"            warning: {machine.name} has {machine.memory_bytes / 1e9:.1f} GB, of which "
        f"{usable / 1e9:.1f} GB can be used: {remedy}"
    ]


def _time(
    cfg: PlanConfig,
    plan: ScaledPlan,
    machine: Machine,
    step: StepPlan,
    passes: int,
    preset: str | None,
) -> list[str]:
    """Predicted time and cost."""
    if machine.peak_flops is None:
        dtype = str(machine.dtype).removeprefix("torch.")
        return [
            f"time        unknown: there is no figure for {machine.name} in {dtype}; use another "
            "--gpu or --dtype"
        ]
    if machine.kind == "cuda":
        return _stage_times(cfg, plan, machine, step, preset)
    step_s = time_plan.seconds_per_step(
        cfg.model, step, passes=passes, peak_flops=machine.peak_flops
    )
    seconds = step_s * _steps(plan)
    needed = flops.flops_per_token(cfg.model, step.length) * plan.tokens_per_step
    peak_flops = machine.peak_flops * machine.count
    processes = f"{machine.count} processes of " if machine.count > 1 else ""
    lines = [
        f"time        about {duration(seconds)} of base training on {processes}{machine.name} "
        f"({needed / step_s / peak_flops:.0%} of {peak_flops / 1e12:,.2f} TFLOP/s)"
    ]
    if cfg.later_stages is not None:
        total = duration(seconds * (1 + cfg.later_stages))
        lines.append(f"            about {total} with all later stages and their evaluations")
    return lines


def _stage_times(
    cfg: PlanConfig, plan: ScaledPlan, machine: Machine, step: StepPlan, preset: str | None
) -> list[str]:
    """Time and cost of every stage on GPUs as a table."""
    assert machine.peak_flops is not None
    products = "fp8" if step.fp8 else str(machine.dtype).removeprefix("torch.")
    found = run_plan.stages(
        cfg.model,
        run_plan.Machine(peak_flops=machine.peak_flops, count=machine.count, products=products),
        tokens=plan.tokens,
        evaluations=_steps(plan) // cfg.eval_every if cfg.eval_every else 1,
        factor=time_plan.RECOMPUTING_FACTOR if cfg.checkpoint_activations else 1.0,
        chat=chat_plan(preset),
    )
    total = sum(found.values(), Seconds(0, 0, 0))
    price = cfg.dollars_per_gpu_hour or run_plan.price(machine.name)
    per_hour = None if price is None else price * machine.count
    at = "" if per_hour is None else f", at ${per_hour:,.2f} an hour"
    shares = run_plan.TRAINING_SHARES[products]
    speed = machine.peak_flops * machine.count / 1e12
    lines = [
        f"time        estimated for {machine.count} x {machine.name} in {products}{at}; "
        "not measured on a GPU",
        f"            training at {shares[0]:.0%}, {shares[1]:.0%} or {shares[2]:.0%} of "
        f"{speed:,.0f} TFLOP/s",
        f"            {'':<21}{'at best':>9}{'likely':>9}{'at worst':>10}"
        + ("" if per_hour is None else f"{'likely cost':>13}"),
    ]
    for name, one in {**found, "together": total}.items():
        cost = "" if per_hour is None else f"{f'${one.likely / 3600 * per_hour:,.2f}':>13}"
        times = (duration(seconds) for seconds in (one.best, one.likely, one.worst))
        best, likely, worst = times
        lines.append(f"            {name:<21}{best:>9}{likely:>9}{worst:>10}{cost}")
    if per_hour is not None:
        low, high = (seconds / 3600 * per_hour for seconds in (total.best, total.worst))
        lines.append(f"cost        ${low:,.0f} to ${high:,.0f}")
    return lines


def chat_plan(preset: str | None) -> run_plan.ChatPlan | None:
    """What a preset's stages after base training do; None where their data are not known."""
    if preset is None:
        return None
    args = ["--preset", preset]
    if config.parse(MidTrainConfig, args, stage="mid_train").data != "full":
        return None
    rl = config.parse(ChatRlConfig, args, stage="chat_rl")
    rollouts = rl.rollouts
    steps = rl.steps or run_plan.GSM8K_PROBLEMS // rollouts.prompts_per_step
    return run_plan.ChatPlan(
        **run_plan.FULL_MIXTURE,
        rl_steps=steps,
        rl_answers_per_step=rollouts.prompts_per_step
        * rollouts.samples_per_prompt
        * rollouts.max_rounds,
        rl_new_tokens=rollouts.max_new_tokens or run_plan.ANSWER_TOKENS,
        rl_evaluated=rl.eval_items,
    )


if __name__ == "__main__":
    config.cli(main)
