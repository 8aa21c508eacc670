"""Properties of the machine: device, compute dtype, peak speed, memory in use.

Keeps no state: distributed.session chooses once and passes the choice on.
"""

import ctypes
import mmap
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from nanochat.system import machine, memory, peaks
from nanochat.system.errors import ConfigError

PRODUCT = (4096, 256, 1024)  # rows, inputs and outputs of a layer of a small model

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4  # of glibc's malloc.h
_MMAP_MAX_DEFAULT = 65536
_MADV_HUGEPAGE = 14
_KEPT_BYTES = 1 << 30  # larger tensors are mappings of their own


def choose_device(name: str | None) -> torch.device:
    """The requested device, or the best one available: CUDA, then MPS, then CPU.

    Raises: ConfigError if the requested device is not available, or the machine has a GPU that
    torch cannot use: training on the CPU instead would take a hundred times as long.
    """
    if name is None:
        if problem := machine.unusable_gpu():
            raise ConfigError(problem)
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.mps.is_available() else "cpu")
    kind = name.split(":")[0]
    if kind not in ("cpu", "cuda", "mps"):
        raise ConfigError(f"--device must be cpu, cuda or mps, got {name!r}")
    if kind != "cpu" and not getattr(torch, kind).is_available():
        reason = machine.unusable_gpu() or machine.cpu_build() if kind == "cuda" else None
        raise ConfigError(
            f"--device {name}: {reason or 'not available here; leave the flag out or use cpu'}"
        )
    try:
        return torch.device(name)
    except RuntimeError:
        raise ConfigError(f"--device must be like cuda or cuda:1, got {name!r}") from None


def keep_memory() -> None:
    """Make glibc keep freed memory for reuse, in huge pages. Does nothing with other C libraries.

    By default every large activation is a new mapping, whose pages are faulted in and zeroed one
    by one: a step of the pocket model then takes a sixth longer (see benchmarks/HISTORY.md).
    The heap is extended once, as address space only, so that huge pages can be requested for all
    of it. Torch has a switch for them (THP_MEM_ALLOC_ENABLE), but it aligns every tensor to a page,
    and a freed block is then slightly too short for the next tensor of the same size.
    Call it before the first large tensor is created.
    """
    physical = memory.physical_bytes()
    if platform.libc_ver()[0] != "glibc" or physical is None:
        return
    library = ctypes.CDLL(None)
    library.malloc.restype = ctypes.c_void_p
    library.mallopt(_M_TRIM_THRESHOLD, -1)  # never
    library.mallopt(_M_MMAP_MAX, 0)
    page, size = mmap.PAGESIZE, physical // 4
    block = library.malloc(ctypes.c_size_t(size))
    if block is not None:  # None where address space is limited: pages stay small
        start = -(-block // page) * page
        library.madvise(ctypes.c_void_p(start), ctypes.c_size_t(size - page), _MADV_HUGEPAGE)
        library.free(ctypes.c_void_p(block))
    library.mallopt(_M_MMAP_MAX, _MMAP_MAX_DEFAULT)
    library.mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)


def product_error(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the device cannot multiply in a dtype, in a line; None if it can.

    MPS has no bfloat16 before macOS 14; a torch built for newer GPUs has no kernels for old ones.
    """
    try:
        one = torch.ones(1, 1, dtype=dtype, device=device)
        (one @ one).item()
    except (TypeError, RuntimeError) as error:
        return next(iter(str(error).splitlines()), type(error).__name__)[:160]
    return None


def measure_dtype(device: torch.device) -> torch.dtype:
    """The faster of bfloat16 and float32 in a matrix product; float32 where there is no bfloat16.

    bfloat16 must be faster by a fifth, because it is less precise. float16, whose range is narrow
    (training then scales the loss), is chosen for Volta and Turing GPUs only: they emulate bfloat16
    and multiply float16 up to eight times as fast as float32, which older GPUs do not.
    """
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        if capability >= (8, 0):
            return torch.bfloat16
        return torch.float16 if capability >= (7, 0) else torch.float32
    if product_error(device, torch.bfloat16) is not None:
        return torch.float32
    # In turns: while another process takes the cores, both are slowed. One after the other, one run
    # of a loaded machine chose bfloat16 and the next float32, and a model's answers differ by it.
    times = product_times(device, (torch.float32, torch.bfloat16), budget_s=0.1)
    return torch.bfloat16 if 1.2 * times[torch.bfloat16] < times[torch.float32] else torch.float32


def matmul_tflops(device: torch.device, dtype: torch.dtype, *, budget_s: float = 0.05) -> float:
    """Speed of a matrix product of a small model's shape, in TFLOP/s; the best of several runs."""
    rows, inner, columns = PRODUCT
    return 2 * rows * inner * columns / product_times(device, (dtype,), budget_s)[dtype] / 1e12


def product_times(
    device: torch.device, dtypes: Sequence[torch.dtype], budget_s: float
) -> dict[torch.dtype, float]:
    """Seconds of a matrix product in each dtype: the best of several runs, made in turns.

    budget_s: how long to go on, of each dtype's runs at least three.
    """
    rows, inner, columns = PRODUCT
    inputs = {
        dtype: (
            torch.ones(rows, inner, dtype=dtype, device=device),  # [N, C]
            torch.ones(columns, inner, dtype=dtype, device=device),  # [4C, C], as in nn.Linear
        )
        for dtype in dtypes
    }
    best_s = dict.fromkeys(dtypes, float("inf"))
    tries, spent_s = 0, 0.0
    while spent_s < budget_s or tries < 3:
        for dtype, (a, b) in inputs.items():
            start_s = time.perf_counter()
            torch.nn.functional.linear(a, b)  # [N, 4C]
            synchronize(device)
            elapsed_s = time.perf_counter() - start_s
            best_s[dtype] = min(best_s[dtype], elapsed_s)
            spent_s += elapsed_s
        tries += 1
    return best_s


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """Peak FLOP/s, the denominator of MFU; None if unknown.

    GPUs: the data sheet's figure, for float32 that of TF32 where torch may use it. CPUs: the
    fastest matrix product measured here. dtype: a float8 dtype means the products of fp8 training.
    """
    if device.type == "cpu":
        return matmul_tflops(device, dtype) * 1e12
    sheet = peaks.find(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    tf32 = torch.get_float32_matmul_precision() != "highest"
    return None if sheet is None else sheet.flops(dtype, tf32=tf32)


def cores() -> int:
    """The number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def describe(device: torch.device) -> str:
    """The device's name for people."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{cpu_name()}, {cores()} cores"


def cpu_name() -> str:
    """The processor's model name, or its architecture where the system does not give one."""
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def memory_used(device: torch.device) -> int:
    """Peak bytes so far: allocated on a GPU, resident in this process on a CPU; 0 if unknown.

    On MPS, which keeps no peak: the bytes allocated now.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    return memory.peak_bytes()


def synchronize(device: torch.device) -> None:
    """Wait for queued work to finish, so that a clock read next includes it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


class HostCopy:
    """Numbers on their way from the device; on a CPU they are available at once."""

    def __init__(self, values: torch.Tensor) -> None:
        self._host, self._copied = values, None
        if values.device.type == "cuda":
            self._host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._host.copy_(values, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()

    def read(self) -> list[float]:
        """The numbers, once they have arrived."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._host.tolist()
