"""The run context and the collectives that stages use.

Owns the process group. Every function marked "collective" is called by all ranks.
"""

import contextlib
import dataclasses
import logging
import os
import pickle
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from nanochat.system import device as devices
from nanochat.system import failures
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

# Of any wait for another rank: one may have to download and encode data that the others have.
TIMEOUT = timedelta(minutes=30)
DTYPES = {name: getattr(torch, name) for name in ("float64", "float32", "bfloat16", "float16")}


@dataclass(frozen=True, kw_only=True)
class Run:
    """Who this process is and what it computes on."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device
    compute_dtype: torch.dtype

    @property
    def is_main(self) -> bool:
        """Whether this rank writes files and speaks to the console."""
        return self.rank == 0


def single_run(device: str = "cpu", dtype: torch.dtype = torch.float32) -> Run:
    """A run of one process, without a process group: for tools and tests."""
    return Run(
        rank=0,
        world_size=1,
        local_rank=0,
        device=devices.choose_device(device),
        compute_dtype=dtype,
    )


@dataclass(frozen=True, kw_only=True)
class StartedWith:
    """What a stage that goes on was begun with; None where that is not known, or it is new.

    Other choices than these would give other last bits, and after some steps another model.
    threads: of each of world_size processes. attention: the backend. compiled: the training step.
    device_rows: of one forward pass.
    """

    dtype: str | None = None
    threads: int | None = None
    world_size: int | None = None
    attention: str | None = None
    compiled: bool | None = None
    device_rows: int | None = None


@contextlib.contextmanager
def session(options: RunOptions, started: StartedWith | None = None) -> Iterator[Run]:
    """Start what a stage needs: threads, seeds, device, dtype and, under torchrun, the group.

    started: taken where the options name nothing; without it the cores are shared out, and rank 0
    measures the dtype. Rank 0's choice is everyone's. An error in one process reaches all, and
    every machine prints it once. Collective.
    """
    rank, world_size, local_rank = _place()
    # What libraries log is shown once a machine: progress of its downloads, its fall-backs.
    logging.basicConfig(
        level=logging.INFO if local_rank == 0 else logging.ERROR, format="%(message)s"
    )
    with contextlib.ExitStack() as stack:
        store = None
        if world_size > 1:
            stack.callback(_leave_group)  # after the store has the reason for it
            store = stack.enter_context(_store(rank, world_size))
        device = devices.choose_device(options.device)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", local_rank)
            torch.cuda.set_device(device)
        elif device.type == "cpu":
            devices.keep_memory()
        torch.manual_seed(options.seed)
        if store is not None:
            _join_group(store, rank, world_size, device)
        run = Run(
            rank=rank,
            world_size=world_size,
            local_rank=local_rank,
            device=device,
            compute_dtype=torch.float32,
        )
        # rank 0's: the others may lack the record it is from
        started = broadcast_object(run, started or StartedWith())
        _set_threads(options.threads, started, run)
        name = options.dtype or started.dtype
        if name is None and run.is_main:
            name = str(devices.measure_dtype(device)).removeprefix("torch.")
        name = broadcast_object(run, name)
        yield dataclasses.replace(run, compute_dtype=DTYPES[name])


@contextlib.contextmanager
def _store(rank: int, world_size: int) -> Iterator[dist.Store]:
    """The store of the run that torchrun names; failures go through it. Collective."""
    store, _, _ = next(dist.rendezvous("env://", rank, world_size, timeout=TIMEOUT))
    me = failures.Process(rank=rank, world_size=world_size)
    try:
        yield store
    except (Stopped, ReportedElsewhere):
        raise
    except Exception as error:
        raised = failures.reported_error(error, store, me)
        if raised is error:
            raise
        raise raised from None


def _join_group(store: dist.Store, rank: int, world_size: int, device: torch.device) -> None:
    """Start the process group once every process is there. Collective."""
    failures.wait_for_all(store, failures.Process(rank=rank, world_size=world_size))
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        timeout=TIMEOUT,
        device_id=device if device.type == "cuda" else None,
        store=dist.PrefixStore("group", store),
        rank=rank,
        world_size=world_size,
    )


def _leave_group() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def main_only(run: Run, work: Callable[[], T]) -> T | None:
    """Do something on rank 0 and give the others None; its error is raised on all. Collective."""
    found, error = _attempt(work) if run.is_main else (None, None)
    sent = broadcast_object(run, error and _portable(error))
    if error := error or sent:
        raise error
    return found


def from_main(run: Run, work: Callable[[], T]) -> T:
    """What rank 0 makes or reads, on every rank; its error likewise. Collective.

    What a run has on disk is only sure to be on rank 0's: machines may share no file system.
    """
    found: T = broadcast_object(run, main_only(run, work))
    return found


def on_all(run: Run, work: Callable[[], T]) -> T:
    """Do something on every rank; an error on some is raised on all. Collective."""
    found, error = _attempt(work)
    failure = error and (socket.gethostname(), failures.describe_error(error))
    failed = {rank: each for rank, each in enumerate(gather_objects(run, failure)) if each}
    if error is not None and (len(failed) == run.world_size or not isinstance(error, UserError)):
        raise error
    for rank, (host, text) in failed.items():
        raise RankError(f"rank {rank} on {host} failed: {text}") from error
    return cast(T, found)


def _attempt(work: Callable[[], T]) -> tuple[T | None, Exception | None]:
    """What `work` gives, or what it raises."""
    try:
        return work(), None
    except Exception as error:
        return None, error


def check_same_data(run: Run, value: Mapping[str, Any]) -> None:
    """Make sure that all ranks are about to train on the same rows. Collective.

    value: what the rows depend on, JSON types by name.
    Raises: DataError naming the first rank that differs from rank 0, its machine, and in what.
    """
    found = gather_objects(run, (socket.gethostname(), dict(value)))
    host, expected = found[0]
    for rank, (other_host, other) in enumerate(found):
        for name, item in expected.items():
            if other.get(name) != item:
                raise DataError(
                    f"rank {rank} on {other_host} has other data than rank 0 on {host}: "
                    f"its {name} is {other.get(name)}, not {item}; give both the same files and "
                    "versions of this program"
                )


def _portable(error: Exception) -> Exception:
    """An error that can be sent: itself, or its words where it cannot."""
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
    """What `work` gives on every rank, in rank order, on every rank. Collective.

    work: uses no collective, so that it may fail on one rank while the others go on.
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
        torch.cuda.empty_cache()  # now that the error no longer holds what was computed
    gathered = gather_objects(run, (result, failure))
    for rank, (_, failure) in enumerate(gathered):
        if failure is not None:
            raise OutOfMemory(f"rank {rank}: {failure}" if run.world_size > 1 else failure)
    return [result for result, _ in gathered]


def broadcast_tensors(run: Run, tensors: Iterable[Tensor]) -> None:
    """Put rank 0's values into every rank's tensors, one after another, in place. Collective."""
    if run.world_size > 1:
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


def barrier(run: Run) -> None:
    """Wait for all ranks. Collective."""
    if run.world_size > 1:
        dist.barrier(device_ids=[run.local_rank] if run.device.type == "cuda" else None)


def local_world_size() -> int:
    """Processes of this run on this machine, among which its cores and memory are shared out."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _place() -> tuple[int, int, int]:
    """Rank, world size and local rank as torchrun tells them, else a world of one."""
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
    """Share the cores out between the processes of this machine, or take as many as before.

    torchrun sets OMP_NUM_THREADS=1, which would leave cores idle when ranks are few.
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
            log.info("%d threads, as before; --threads %d takes all cores", before, threads)
            threads = before
    torch.set_num_threads(threads)
