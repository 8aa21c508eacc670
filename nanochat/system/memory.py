"""How much memory this process uses, and how much more it can use before it would be killed.

Keeps no state. Does not own: estimates of what a training step needs (memory_plan).
"""

import os
from pathlib import Path

from nanochat.system import device as devices


def resident_bytes() -> int:
    """Bytes of memory that this process uses now; its peak on systems without /proc."""
    return devices.process_bytes("VmRSS")


def memory_left(root: Path = Path("/")) -> int:
    """Bytes that processes here can still use before the system or a container limit is reached.

    root: the parent folder of /proc and /sys. Without /proc: all of the machine's memory.
    """
    try:
        lines = (root / "proc/meminfo").read_text(encoding="utf-8").splitlines()
        available = next(x for x in lines if x.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([int(available.split()[1]) * 1024, *_left_in_groups(root)])


def _left_in_groups(root: Path) -> list[int]:
    """Bytes left in each control group with a limit that contains this process, and its parents."""
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
        # In a container the path may be the host's; the container's group is then the mount itself.
        for place in (folder, *folder.parents):
            left += _left_in_group(place, *names)
            if place == mount:
                break
    return left


def _left_in_group(folder: Path, limit: str, usage: str, cache: str) -> list[int]:
    """Limit minus usage, not counting reclaimable file pages; [] without a limit."""
    try:
        most, used = ((folder / name).read_text(encoding="utf-8") for name in (limit, usage))
        stat = (folder / "memory.stat").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    if most.strip() == "max":
        return []
    files = sum(int(line.split()[1]) for line in stat if line.startswith(f"{cache} "))
    return [max(0, int(most) - int(used) + files)]
