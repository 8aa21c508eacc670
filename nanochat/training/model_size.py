"""--depth auto: the largest model that this GPU holds and trains in a few hours.

Owns: the choice. Does not own: the estimates of memory and time. The choice follows from the GPU's
model, not from the memory that is free at the moment, and a resumed run keeps what it started with.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nanochat.gpt import GPTConfig
from nanochat.optim.scaling import DEFAULT_RATIO, scaled_plan
from nanochat.report.data import read_object
from nanochat.system import config, distributed, peaks, storage
from nanochat.system import device as devices
from nanochat.system.config import flat_fields
from nanochat.system.errors import ConfigError
from nanochat.training import batch_size, run_plan
from nanochat.training.memory_plan import StepPlan

DEPTHS = range(4, 33, 2)
UNKNOWN_SPEED_DEPTH = 12  # the most for a GPU whose speed is not known
MAX_HOURS = 4.0


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A GPU as far as the choice depends on it. peak_flops: of one; None if it is not known."""

    memory_bytes: int
    dtype: torch.dtype
    peak_flops: float | None
    count: int = 1

    @property
    def products(self) -> str:
        """The kind of its matrix products, as run_plan names them."""
        return str(self.dtype).removeprefix("torch.")


def sheet_dtype(sheet: peaks.Peaks) -> torch.dtype:
    """The compute dtype that device.measure_dtype chooses on a GPU of this data sheet."""
    if sheet.bf16:
        return torch.bfloat16
    # From Volta on; the GPUs before have no unit for it.
    return torch.float16 if (sheet.fp16 or 0) > 2 * sheet.fp32 else torch.float32


def of_sheet(name: str, *, count: int = 1, dtype: torch.dtype | None = None) -> Gpu:
    """A GPU by its name in peaks.PEAKS."""
    sheet = peaks.PEAKS[name]
    chosen = dtype or sheet_dtype(sheet)
    memory_bytes = round(sheet.memory_gb * 2**30)
    return Gpu(memory_bytes=memory_bytes, dtype=chosen, peak_flops=sheet.flops(chosen), count=count)


def of_this_machine(values: dict[str, Any], count: int) -> Gpu:
    """This machine's GPU, computing in the dtype that the options name.

    Raises: ConfigError if there is none.
    """
    device = devices.choose_device(values.get("device"))
    if device.type != "cuda":
        raise ConfigError(
            f"--depth auto: it is chosen by a GPU's memory and speed, but the device is {device}; "
            "give a number"
        )
    asked = distributed.DTYPES.get(str(values.get("dtype")))
    dtype = asked or devices.measure_dtype(device)
    return Gpu(
        memory_bytes=torch.cuda.get_device_properties(device).total_memory,
        dtype=dtype,
        peak_flops=expected_flops(device, dtype),
        count=count,
    )


def expected_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """Peak FLOP/s as far as it is known, of a laptop's GPU an estimate; None if it is unknown."""
    found = devices.peak_flops(device, dtype)
    if found is not None or device.type != "cuda":
        return found
    sheet = peaks.roughly(torch.cuda.get_device_name(device))
    return None if sheet is None else sheet.flops(dtype)


def resolver(
    gpu: Callable[[dict[str, Any]], Gpu], stage: str | None = None
) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """For config.parse: replaces depth "auto" by a number.

    stage: a resumed run keeps the depth that this stage's config.json records.
    """

    def resolve(values: dict[str, Any]) -> dict[str, Any]:
        if values.get("depth") != "auto":
            return values
        started = None
        if stage is not None and values.get("resume"):
            started = recorded_depth(storage.stage_dir(values.get("run", "default"), stage))
        return {**values, "depth": started or largest_depth(values, gpu(values))}

    return resolve


def recorded_depth(folder: Path) -> int | None:
    """The depth that a stage started with; None if it has not started."""
    options = read_object(folder / "config.json").get("options")
    depth = options.get("depth") if isinstance(options, dict) else None
    return depth if type(depth) is int else None


def largest_depth(values: dict[str, Any], gpu: Gpu) -> int:
    """The largest depth that trains within --max-hours by the estimate and fits in memory.

    values: the other options, by name. Raises: ConfigError if not even the smallest does.
    """
    hours = float(values.get("max_hours", MAX_HOURS))

    def sizes(depth: int) -> GPTConfig:
        return config.from_dict(GPTConfig, {**sizes_of(values), "depth": depth})

    def in_time(depth: int) -> bool:
        if gpu.peak_flops is None:
            return depth <= UNKNOWN_SPEED_DEPTH
        ratio = float(values.get("ratio", DEFAULT_RATIO))
        tokens = int(values.get("tokens") or scaled_plan(sizes(depth), ratio=ratio).tokens)
        machine = run_plan.Machine(
            peak_flops=gpu.peak_flops, count=gpu.count, products=gpu.products
        )
        return run_plan.training(sizes(depth), tokens, machine).likely <= 3600 * hours

    # Larger models take longer and more memory: the first that suffices, from above.
    for depth in filter(in_time, reversed(DEPTHS)):
        if rows_fitting(sizes(depth), gpu, most=1):
            return depth
    raise ConfigError(
        f"--depth auto: not even depth {DEPTHS[0]} trains on this GPU in {hours:g} hours by the "
        "estimate; raise --max-hours, or give a number"
    )


def sizes_of(values: dict[str, Any]) -> dict[str, Any]:
    """Those of the values that are options of the model."""
    fields = flat_fields(GPTConfig)
    return {name: value for name, value in values.items() if name in fields}


def rows_fitting(sizes: GPTConfig, gpu: Gpu, *, most: int) -> int:
    """Rows of one forward pass, up to `most`, that fit into the GPU by the estimate."""
    step = StepPlan(
        rows=most + 1,
        length=sizes.sequence_length,
        dtype=gpu.dtype,
        device_type="cuda",
        world_size=gpu.count,
    )
    fits = batch_size.by_estimate(sizes, step, most=most + 1, available_bytes=gpu.memory_bytes)
    return batch_size.largest_fitting(fits, most)
