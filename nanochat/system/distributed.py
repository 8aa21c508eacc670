"""The run context and the collectives that stages use.

Owns: the process group. All ranks must call every function marked "collective".
"""

import contextlib
import dataclasses
import logging
import os
import pickle
import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from nanochat.system import console, failures, machine, signals
from nanochat.system import device as devices
from nanochat.system.config import RunOptions
from nanochat.system.errors import (
    ConfigError,
    DataError,
    OutOfMemory,
    RankError,
    ReportedElsewhere,
    Stopped,
    UserError,
    explain_memory,
)

log = logging.getLogger(__name__)

T = TypeVar("T")

# For any wait for another rank, which may have to download and encode data first.
TIMEOUT = timedelta(minutes=30)
# Where a user may have chosen how torch divides up a GPU's memory.
ALLOCATOR_SETTINGS = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
DTYPES = {name: getattr(torch, name) for name in ("float64", "float32", "bfloat16", "float16")}


@dataclass(frozen=True, kw_only=True)
class Run:
    """This process's rank, device and compute dtype."""

    device: torch.device
    compute_dtype: torch.dtype = torch.float32
    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this rank writes files and prints to the console."""
        return self.rank == 0


def single_run(device: str = "cpu", dtype: torch.dtype = torch.float32) -> Run:
    """A run of one process, without a process group: for tools and tests."""
    return Run(device=devices.choose_device(device), compute_dtype=dtype)


@dataclass(frozen=True, kw_only=True)
class StartedWith:
    """Settings a resumed stage originally started with; None if unknown or new.

    Different settings would change the last bits of sums, and after some steps the model.
    threads: per process, of world_size processes. attention: the backend. compiled: whether the
    training step is. device_rows: rows of one forward pass. fp8: whether it has 8-bit products.
    """

    dtype: str | None = None
    threads: int | None = None
    world_size: int | None = None
    attention: str | None = None
    compiled: bool | None = None
    device_rows: int | None = None
    fp8: bool | None = None


@contextlib.contextmanager
def session(options: RunOptions, started: StartedWith | None = None) -> Iterator[Run]:
    """Set up what a stage needs: threads, seeds, device, dtype and, under torchrun, the group.

    started: used where the options are None; without it the cores are divided among the processes
    and rank 0 measures the dtype. All ranks use rank 0's choice. An error in one process ends all,
    and every machine prints it once. Collective.
    """
    rank, world_size, local_rank = _place()
    me = failures.Process(rank=rank, world_size=world_size)
    console.show_log(errors_only=local_rank != 0)  # one process per machine shows the others
    with contextlib.ExitStack() as stack:
        store = None
        if world_size > 1:
            signals.stop_with_launcher()
            stack.push(_leave_group)  # after the store has the reason of a failure
            store = stack.enter_context(_store(me))
        device = devices.choose_device(options.device)
        if device.type == "cuda":
            device = _prepare_gpu(device, local_rank)
        elif device.type == "cpu":
            if options.device is None and (idle := machine.cpu_build()):
                log.warning("warning: %s; --device cpu turns this message off", idle)
            devices.keep_memory()
        torch.manual_seed(options.seed)
        if store is not None:
            _join_group(store, me, device)
        run = Run(device=device, rank=rank, world_size=world_size, local_rank=local_rank)
        # from rank 0, as the others may not have the file it was read from
        started = broadcast_object(run, started or StartedWith())
        _set_threads(options.threads, started, run)
        name = options.dtype or started.dtype
        if name is None and run.is_main:
            name = str(devices.measure_dtype(device)).removeprefix("torch.")
        name = broadcast_object(run, name)
        if error := devices.product_error(device, DTYPES[name]):
            raise ConfigError(
                f"{device} cannot compute in {name} ({error}); use another --dtype, or --device cpu"
            )
        stack.enter_context(_tensor_cores(device, DTYPES[name]))
        yield dataclasses.replace(run, compute_dtype=DTYPES[name])


def _prepare_gpu(device: torch.device, local_rank: int) -> torch.device:
    """The GPU of a process, ready for its first tensor.

    Raises: ConfigError if there are fewer GPUs than processes, or none of the number that was asked
        for, or torch has no kernels for it.
    """
    count = torch.cuda.device_count()
    if device.index is None:
        if local_rank >= count:
            raise ConfigError(
                f"this machine has {count} GPU(s) for {local_world_size()} processes; start at "
                f"most {count} on it (torchrun --nproc-per-node)"
            )
        device = torch.device("cuda", local_rank)
    elif device.index >= count:
        raise ConfigError(f"--device {device}: this machine has {count} GPU(s), counted from 0")
    # One that was asked for by its number, too: events and streams are the current GPU's.
    torch.cuda.set_device(device)
    if problem := machine.unsupported_gpu(device):
        raise ConfigError(problem)
    _expand_segments(device)
    return device


def _expand_segments(device: torch.device) -> None:
    """Let torch's blocks of the GPU's memory grow, unless the user has chosen how it divides it up.

    Shapes vary in chat training and RL: blocks of fixed sizes would leave gaps between them.
    """
    chosen = any(name in os.environ for name in ALLOCATOR_SETTINGS)
    if sys.platform != "linux" or torch.version.hip is not None or chosen:
        return
    torch._C._accelerator_setAllocatorSettings("expandable_segments:True")
    # Tried, as not every driver that offers it can do it: virtual GPUs, Jetson, some in WSL.
    if devices.product_error(device, torch.float32) is not None:
        torch._C._accelerator_setAllocatorSettings("expandable_segments:False")


@contextlib.contextmanager
def _tensor_cores(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Within it, products of float32 use the TF32 tensor cores of a GPU that has them.

    They read 10 bits of each factor's mantissa, as float16 has, and are up to eight times as fast.
    """
    wanted = (
        dtype is torch.float32
        and device.type == "cuda"
        and torch.version.hip is None
        and torch.cuda.get_device_capability(device) >= (8, 0)
        and os.environ.get("NVIDIA_TF32_OVERRIDE") != "0"  # NVIDIA's own switch
    )
    before = torch.get_float32_matmul_precision()
    if wanted:
        log.info("float32 products in TF32; NVIDIA_TF32_OVERRIDE=0 computes them in full, slower")
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        if wanted:
            torch.set_float32_matmul_precision(before)


@contextlib.contextmanager
def _store(me: failures.Process) -> Iterator["dist.Store"]:
    """The run's store, hosted by torchrun; failures are reported through it. Collective."""
    store, _, _ = next(dist.rendezvous("env://", me.rank, me.world_size, timeout=TIMEOUT))
    try:
        yield store
    except (Stopped, ReportedElsewhere):
        raise
    except Exception as error:
        raised = failures.reported_error(error, store, me)
        if raised is error:
            raise
        raise raised from None


def _join_group(store: "dist.Store", me: failures.Process, device: torch.device) -> None:
    """Start the process group once every process has connected. Collective."""
    # init_process_group alone would wait for a process that has failed until the timeout.
    failures.wait_for_all(store, me)
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        timeout=TIMEOUT,
        device_id=device if device.type == "cuda" else None,
        store=dist.PrefixStore("group", store),
        rank=me.rank,
        world_size=me.world_size,
    )


def _leave_group(kind: type[BaseException] | None, *_: object) -> None:
    """End the process group; kind: of the error that ends the session, if one does."""
    if not dist.is_initialized():
        return
    # NCCL ends its group in all processes together. After an error the others may be in the middle
    # of a step: this process would wait for them until the timeout, with all GPUs, while torchrun
    # waits for it to end.
    if kind in (None, Stopped) or dist.get_backend() != "nccl":
        dist.destroy_process_group()


def main_only(run: Run, work: Callable[[], T]) -> T | None:
    """Call `work` on rank 0; the others get None. Its error is raised on all. Collective."""
    found, error = _attempt(work) if run.is_main else (None, None)
    # If rank 0 raised without telling the others, they would wait for it in the next collective
    # until the timeout.
    sent = broadcast_object(run, error and _portable(error))
    if error := error or sent:
        raise error
    return found


def from_main(run: Run, work: Callable[[], T]) -> T:
    """The result of `work` on rank 0, on every rank; its error likewise. Collective.

    Machines need not share a file system: only rank 0 is sure to have the run's files.
    """
    return cast(T, broadcast_object(run, main_only(run, work)))


def on_all(run: Run, work: Callable[[], T]) -> T:
    """Call `work` on every rank; an error on any rank is raised on all. Collective."""
    found, error = _attempt(work)
    failure = error and (socket.gethostname(), failures.describe_error(error))
    failed = {rank: each for rank, each in enumerate(gather_objects(run, failure)) if each}
    if error is not None and (len(failed) == run.world_size or not isinstance(error, UserError)):
        raise error
    for rank, (host, text) in failed.items():
        raise RankError(f"rank {rank} on {host} failed: {text}") from error
    return cast(T, found)


def _attempt(work: Callable[[], T]) -> tuple[T | None, Exception | None]:
    """The result of `work` and None, or None and what it raises."""
    try:
        return work(), None
    except Exception as error:
        return None, error


def check_same_data(run: Run, value: Mapping[str, Any]) -> None:
    """Check that all ranks will train on the same rows. Collective.

    value: what the rows depend on, JSON types by name.
    Raises: DataError naming the first rank that differs from rank 0, its machine and the value.
    """
    found = gather_objects(run, (socket.gethostname(), dict(value)))
    host, expected = found[0]
    for rank, (other_host, other) in enumerate(found):
        for name, item in expected.items():
            if other.get(name) != item:
                raise DataError(
                    f"rank {rank} on {other_host} has different data from rank 0 on {host}: "
                    f"its {name} is {other.get(name)}, not {item}; give both the same files and "
                    "the same version of this program"
                )


def _portable(error: Exception) -> Exception:
    """The error itself if it can be pickled, else a RuntimeError with its text."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def all_reduce_sum(run: Run, tensor: Tensor) -> Tensor:
    """Sum a tensor over all ranks, in place. Collective."""
    if run.world_size > 1:
        dist.all_reduce(tensor)
    return tensor


def broadcast_object(run: Run, value: Any) -> Any:
    """Rank 0's value on every rank. Collective."""
    if run.world_size == 1:
        return value
    box = [value]
    device = run.device if run.device.type == "cuda" else None
    dist.broadcast_object_list(box, src=0, device=device)
    return box[0]


def gather_objects(run: Run, value: Any) -> list[Any]:
    """Every rank's value, in rank order, on every rank. Collective."""
    if run.world_size == 1:
        return [value]
    result: list[Any] = [None] * run.world_size
    dist.all_gather_object(result, value)
    return result


def gather_work(run: Run, work: Callable[[], T]) -> list[T]:
    """The results of `work` from every rank, in rank order, on every rank. Collective.

    work: uses no collective, so that it can fail on one rank without blocking the others.
    Raises: OutOfMemory on all ranks if any of them ran out of memory.
    """
    result, failure = None, None
    try:
        result = work()
    except (MemoryError, RuntimeError) as error:
        failure = explain_memory(error)
        if failure is None:
            raise
    if failure is not None and run.device.type == "cuda":
        torch.cuda.empty_cache()  # now that the error no longer keeps the tensors alive
    gathered = gather_objects(run, (result, failure))
    for rank, (_, failure) in enumerate(gathered):
        if failure is not None:
            raise OutOfMemory(f"rank {rank}: {failure}" if run.world_size > 1 else failure)
    return [result for result, _ in gathered]


def broadcast_tensors(run: Run, tensors: Iterable[Tensor]) -> None:
    """Copy rank 0's values into every rank's tensors, in place. Collective."""
    if run.world_size > 1:
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


def barrier(run: Run) -> None:
    """Wait for all ranks. Collective."""
    if run.world_size > 1:
        dist.barrier(device_ids=[run.local_rank] if run.device.type == "cuda" else None)


def local_world_size() -> int:
    """Processes of this run on this machine, which share its cores and memory."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _place() -> tuple[int, int, int]:
    """Rank, world size and local rank from torchrun's variables, else a world of one."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    values = [os.environ.get(name) for name in names]
    if all(value is None for value in values):
        return 0, 1, 0
    try:
        rank, world_size, local_rank = (int(value or "") for value in values)
    except ValueError:
        shown = ", ".join(f"{n}={v}" for n, v in zip(names, values, strict=True))
        raise ConfigError(
            f"torchrun's variables are incomplete ({shown}); start with torchrun"
        ) from None
    return rank, world_size, local_rank


def _set_threads(threads: int | None, started: StartedWith, run: Run) -> None:
    """Divide the cores among the processes of this machine, or use as many as before.

    torchrun sets OMP_NUM_THREADS=1, which would leave cores idle with few ranks.
    """
    if threads is None:
        threads = max(1, devices.cores() // local_world_size())
        same_ranks = run.device.type == "cpu" and started.world_size == run.world_size
        before = (same_ranks and started.threads) or threads
        if before > threads:
            log.warning(
                "warning: started with %d threads, only %d available: results may differ in the "
                "last bits",
                before,
                threads,
            )
        elif before < threads:
            log.info("%d threads, as before; --threads %d uses all cores", before, threads)
            threads = before
    torch.set_num_threads(threads)
