"""How much memory this process uses, and how much more it can use before it would be killed.

Keeps no state. Linux has /proc; elsewhere the system is asked through what it has, and 0 or None
stands for "unknown". Does not own: estimates of what a training step needs (memory_plan).
"""

import contextlib
import ctypes
import os
import sys
from pathlib import Path
from typing import Any


def peak_bytes() -> int:
    """The most bytes of memory that this process has used so far; 0 if unknown."""
    return _of_process("VmHWM") or _windows_process().peak or _peak_of_unix()


def resident_bytes() -> int:
    """Bytes of memory that this process uses now; its peak on macOS, 0 if unknown."""
    return _of_process("VmRSS") or _windows_process().now or _peak_of_unix()


def physical_bytes() -> int | None:
    """The machine's memory; None if unknown."""
    if windows := _windows_machine():
        return windows.total
    try:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # no such function, or no such figure
        return None
    return size if size > 0 else None


def memory_left(root: Path = Path("/")) -> int | None:
    """Bytes that processes here can still use before the system or a container limit is reached.

    root: the parent folder of /proc and /sys. Without /proc: what Windows has available, else all
    of the machine's memory; None if unknown.
    """
    available = _figure(_lines(root / "proc/meminfo"), "MemAvailable:")
    if available is not None:
        return min([available * 1024, *_left_in_groups(root)])
    windows = _windows_machine()
    return windows.available if windows else physical_bytes()


def _left_in_groups(root: Path) -> list[int]:
    """Bytes left in each control group with a limit that contains this process, and its parents."""
    mounts = root / "sys/fs/cgroup"
    left = []
    for line in _lines(root / "proc/self/cgroup"):
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "" and path:  # version 2
            mount, names = mounts, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            mount = mounts / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        folder = mount / path.lstrip("/")
        # In a container the path may be the host's; the container's group is then the mount itself.
        for place in (folder, *folder.parents):
            left += _left_in_group(place, *names)
            if place == mount:
                break
    return left


def _left_in_group(folder: Path, limit: str, usage: str, cache: str) -> list[int]:
    """Limit minus usage, not counting reclaimable file pages; [] without a limit."""
    most, used = (_figure(_lines(folder / name)) for name in (limit, usage))
    if most is None or used is None:  # "max" is no limit
        return []
    files = _figure(_lines(folder / "memory.stat"), cache) or 0
    return [max(0, most - used + files)]


def _of_process(field: str) -> int | None:
    kilobytes = _figure(_lines(Path("/proc/self/status")), f"{field}:")
    return None if kilobytes is None else kilobytes * 1024


def _lines(path: Path) -> list[str]:
    """The lines of a file of the system; none if it cannot be read."""
    try:
        return path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return []


def _figure(lines: list[str], name: str | None = None) -> int | None:
    """The whole number after a name, or of the first line; None if there is none."""
    for line in lines:
        words = line.split()
        if name is not None:
            if words[:1] != [name]:
                continue
            words = words[1:]
        with contextlib.suppress(ValueError, IndexError):
            return int(words[0])
        return None
    return None


def _peak_of_unix() -> int:
    try:
        import resource
    except ImportError:
        return 0
    # Not used on Linux, where it includes the peak of the parent process before exec.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class _MachineStatus(ctypes.Structure):
    """MEMORYSTATUSEX of Windows."""

    _fields_ = (
        ("length", ctypes.c_uint32),
        ("load", ctypes.c_uint32),
        ("total", ctypes.c_uint64),
        ("available", ctypes.c_uint64),
        ("of_page_file_and_address_space", 5 * ctypes.c_uint64),
    )


class _ProcessCounters(ctypes.Structure):
    """PROCESS_MEMORY_COUNTERS of Windows."""

    _fields_ = (
        ("length", ctypes.c_uint32),
        ("page_faults", ctypes.c_uint32),
        ("peak", ctypes.c_size_t),
        ("now", ctypes.c_size_t),
        ("of_pools_and_page_file", 6 * ctypes.c_size_t),
    )


def _windows_machine() -> _MachineStatus | None:
    """None on other systems."""
    status = _MachineStatus(length=ctypes.sizeof(_MachineStatus))
    kernel = _windows_kernel()
    return status if kernel and kernel.GlobalMemoryStatusEx(ctypes.byref(status)) else None


def _windows_process() -> _ProcessCounters:
    """All zero on other systems."""
    counters = _ProcessCounters(length=ctypes.sizeof(_ProcessCounters))
    if kernel := _windows_kernel():
        kernel.GetCurrentProcess.restype = ctypes.c_void_p
        process = ctypes.c_void_p(kernel.GetCurrentProcess())
        kernel.K32GetProcessMemoryInfo(process, ctypes.byref(counters), counters.length)
    return counters


def _windows_kernel() -> Any:
    load = getattr(ctypes, "WinDLL", None)
    return load and load("kernel32")
