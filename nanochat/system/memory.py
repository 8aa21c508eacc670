"""How much memory this process takes, and how much more it may take before something ends it.

Reads what the system tells; keeps no state. What a step needs is the business of memory_plan.
"""

import os
from pathlib import Path

from nanochat.system import device as devices


def resident_bytes() -> int:
    """Memory that this process takes now; where the system does not tell, what it took at most."""
    return devices.process_bytes("VmRSS")


def memory_left(root: Path = Path("/")) -> int:
    """Bytes that processes here may still take before the system or a container's limit ends them.

    root: where /proc and /sys are. Without them, all of the machine's memory.
    """
    try:
        lines = (root / "proc/meminfo").read_text(encoding="utf-8").splitlines()
        available = next(x for x in lines if x.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([int(available.split()[1]) * 1024, *_left_in_groups(root)])


def _left_in_groups(root: Path) -> list[int]:
    """What is left in each control group with a limit that holds this process, and around it."""
    mounts = root / "sys/fs/cgroup"
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    left = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # version 2
            mount, names = mounts, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            mount = mounts / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        folder = mount / path.lstrip("/")
        # In a container the path may be the host's: then its own group is at the mount itself.
        for place in (folder, *folder.parents):
            left += _left_in_group(place, *names)
            if place == mount:
                break
    return left


def _left_in_group(folder: Path, limit: str, usage: str, cache: str) -> list[int]:
    """Limit less usage, without the files' pages that the system gives up; [] without a limit."""
    try:
        most, used = ((folder / name).read_text(encoding="utf-8") for name in (limit, usage))
        stat = (folder / "memory.stat").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    if most.strip() == "max":
        return []
    files = sum(int(line.split()[1]) for line in stat if line.startswith(f"{cache} "))
    return [max(0, int(most) - int(used) + files)]
