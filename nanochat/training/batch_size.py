"""--device-batch-size auto: how many rows one forward pass takes on this machine.

Owns: the search for the most rows that fit in memory and still help, by the memory estimate on a
CPU and by trial on a GPU. The answer does not change what is trained: rows are assigned to steps
and ranks before they are cut into passes.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import torch

from nanochat.data.dataloader import micro_batch_rows
from nanochat.gpt import GPT, GPTConfig, fp8
from nanochat.system import compiler, memory
from nanochat.system import device as devices
from nanochat.system.distributed import Run, gather_objects, local_world_size
from nanochat.system.errors import ConfigError, explain_memory
from nanochat.training import memory_plan
from nanochat.training.memory_plan import StepPlan
from nanochat.training.stage_opening import Stage

Fits = Callable[[int], bool]
ESTIMATE_ERROR = 0.15  # how far a run may exceed its estimate, see benchmarks/HISTORY.md
# Share of a GPU's memory for what a trial does not see: fragmentation, buffers of collectives.
GPU_HEADROOM = 0.08
# How much more of an uncompiled pass's memory than the estimate's share a compiled one may take.
COMPILED_MARGIN = 0.1
# On a CPU larger passes take more memory and no less time; measured with two threads, see
# benchmarks/HISTORY.md.
TOKENS_PER_THREAD = 1024
UNKNOWN_MEMORY = (
    "--device-batch-size auto: this system does not say how much memory is free; give a number"
)


def device_rows(
    stage: Stage,
    model: GPT,
    *,
    batch_rows: int,
    length: int,
    may_compile: bool = True,
) -> int:
    """Rows of one forward pass on one device: as requested, or as many as fit. Collective.

    Call it after the model is built and before the optimizer is; it leaves the model unchanged.
    batch_rows: rows of a step over all ranks. length: most tokens of a row. may_compile: whether
    training is compiled if the options allow it.
    Raises: ConfigError on all ranks if not even one row fits.
    """
    asked = stage.loop.device_batch_size
    if asked != "auto":
        return asked
    run = stage.run
    most = -(-batch_rows // run.world_size)
    step = StepPlan(
        rows=most,
        length=length,
        dtype=run.compute_dtype,
        device_type=run.device.type,
        world_size=run.world_size,
        compiled=may_compile and stage.wants_compiling(),
        fp8=any(isinstance(module, fp8.Fp8Linear) for module in model.modules()),
        checkpoint_activations=stage.loop.checkpoint_activations,
        saves_meanwhile=stage.loop.save_every is not None,
    )
    wanted = useful_rows(most, length, run.device.type)
    own, how = _own_rows(stage, model, step, wanted)
    # Every rank runs the same number of passes: the collectives of a step have to match.
    found = min(gather_objects(run, own))
    if found == 0:
        raise ConfigError(
            f"--device-batch-size auto: not even one row of {length:,} tokens fits ({how}); "
            "use --checkpoint-activations, or a smaller --sequence-length or --depth"
        )
    count, rows = micro_batch_rows(batch_rows, found, run.world_size)
    why = f"{found} would fit"
    if found == most:
        why = "a step has no more"
    elif found == wanted:
        why = "more would not be faster"
    stage.log_line(
        f"--device-batch-size auto: {rows} rows of {length:,} tokens, {count} passes per step on "
        f"each device ({how}; {why})"
    )
    return rows


def _own_rows(stage: Stage, model: GPT, step: StepPlan, wanted: int) -> tuple[int, str]:
    """The most rows up to `wanted` that fit on this rank, and how they were found.

    step: with all rows that the rank has in a step.
    """
    # On a CPU larger passes stop being faster, so the search starts at the most rows that still
    # help; a trial could get the process killed, so memory is estimated instead.
    if step.device_type == "cuda":
        # Start at one row: a GPU asked for far too much memory may fail in worse ways.
        fits, how, first = by_trial(model, step), "tried on this GPU", 1
    else:
        fits, how = _by_memory_left(stage.run, model, step)
        first = wanted
    started = stage.started_with
    before = started.device_rows if started.world_size == step.world_size else None
    if before is not None and before <= step.rows and fits(before):
        return before, f"as before; {how}"  # other splits would change the last bits
    return largest_fitting(fits, wanted, first=first, step_rows=step.rows), how


def useful_rows(most: int, length: int, device_type: str) -> int:
    """Rows of `length` tokens beyond which a pass gets no faster; at most `most`, a step's."""
    if device_type != "cpu":
        return most
    return min(most, max(1, TOKENS_PER_THREAD * torch.get_num_threads() // length))


def largest_fitting(fits: Fits, most: int, *, first: int = 1, step_rows: int | None = None) -> int:
    """The largest number up to `most` that fits, 0 if 1 does not.

    first: the number to try first. Doubles until one does not fit, then bisects. step_rows: rows of
    a step on one device; the search ends once more rows would not save a pass.
    """
    low, high = 0, most + 1
    attempt = first
    while high - low > 1:
        if step_rows and low and -(-step_rows // low) == -(-step_rows // (high - 1)):
            break
        if fits(attempt):
            low = attempt
        else:
            high = attempt
        attempt = min(2 * low, most) if high > most else (low + high) // 2
    return low


def by_estimate(
    config: GPTConfig, step: StepPlan, *, most: int, available_bytes: int, resident_bytes: int = 0
) -> Fits:
    """Whether rows fit by the estimate, with its error (on a GPU: what a trial leaves) as headroom.

    most: rows of a step on one device. available_bytes: what the process may take in total.
    resident_bytes: what it takes without a model.
    """

    def fits(rows: int) -> bool:
        plan = memory_plan.with_rows(step, rows, most)
        needed = memory_plan.estimate(config, plan, resident_bytes=resident_bytes)
        if step.device_type == "cuda":
            return needed.total <= available_bytes * (1 - GPU_HEADROOM)
        return needed.total * (1 + ESTIMATE_ERROR) <= available_bytes

    return fits


def _by_memory_left(run: Run, model: GPT, step: StepPlan) -> tuple[Fits, str]:
    """The estimate for this rank's share of the free memory, and a description of it. Collective.

    Raises: ConfigError if the system does not say how much is free.
    """
    most = step.rows
    # The first rehearsal imports modules, which must be in memory before it is measured.
    memory_plan.rehearse(model.config, memory_plan.with_rows(step, 1, most))
    resident, left = memory.resident_bytes(), memory.memory_left()
    if left is None:
        raise ConfigError(UNKNOWN_MEMORY)
    available = resident + left // local_world_size()
    loaded = sum(p.numel() * p.itemsize for p in model.parameters())
    without = max(0, resident - loaded)
    # Only now: the estimate adds the compiler's memory itself.
    step = replace(step, compiled=step.compiled and compiler.why_not(run) is None)
    fits = by_estimate(
        model.config, step, most=most, available_bytes=available, resident_bytes=without
    )
    return fits, f"estimated, for {available / 1e9:.1f} GB"


def by_trial(model: GPT, step: StepPlan) -> Fits:
    """Whether rows fit on the GPU, by trial in uncompiled passes.

    Those take more memory than compiled ones: for these, as many rows are tried as take what they
    will take. The optimizer's memory is reserved meanwhile. The global random generators are not
    used.
    """
    device = model.device
    share = 1.0
    if step.compiled:
        share = min(1.0, (1 + COMPILED_MARGIN) * memory_plan.compiled_share(step))
    optimizer = memory_plan.estimate(model.config, memory_plan.with_rows(step, 1, 1)).most.optimizer
    headroom = int(GPU_HEADROOM * torch.cuda.get_device_properties(device).total_memory)

    def fits(rows: int) -> bool:
        fitted = True
        try:
            _try_step(model, math.ceil(share * rows), step.length, optimizer + headroom)
        except (MemoryError, RuntimeError) as error:
            if explain_memory(error) is None:
                raise
            fitted = False
        # Outside of the except block the error no longer keeps the tensors alive.
        for parameter in model.parameters():
            parameter.grad = None
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return fitted

    return fits


def _try_step(model: GPT, rows: int, length: int, reserve_bytes: int) -> None:
    """Two forward and backward passes over random tokens; the second with gradients in memory.

    Raises: torch.OutOfMemoryError if memory does not suffice.
    """
    device = model.device
    reserve = torch.empty(reserve_bytes, dtype=torch.uint8, device=device)
    generator = torch.Generator().manual_seed(0)
    shape = (rows, length)
    tokens = torch.randint(model.config.vocab_size, shape, generator=generator).to(device)
    # Twice: from the second pass on, gradients of earlier passes exist besides the activations.
    for _ in range(2):
        model.loss(tokens, tokens, torch.ones((), device=device)).backward()
    devices.synchronize(device)
    del reserve
