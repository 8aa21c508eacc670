"""Available and used memory, read from simulated systems."""

import ctypes
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from nanochat.system import memory
from nanochat.system.memory import memory_left

GB = 10**9


@pytest.fixture
def root(tmp_path) -> Path:
    """A machine with 8 GB available and no limits."""
    put(tmp_path, "proc/meminfo", f"MemTotal: 9 kB\nMemAvailable:  {8 * GB // 1024} kB\n")
    return tmp_path


def put(root: Path, name: str, text: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)


def group(root: Path, folder: str, names: tuple[str, str, str], *figures: object) -> None:
    """A control group with a limit, a usage and reclaimable file pages."""
    limit, usage, files = figures
    put(root, f"{folder}/{names[0]}", f"{limit}\n")
    put(root, f"{folder}/{names[1]}", f"{usage}\n")
    put(root, f"{folder}/memory.stat", f"anon 5\n{names[2]} {files}\n")


V2 = ("memory.max", "memory.current", "inactive_file")
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def test_without_limits_it_is_what_the_system_has(root):
    assert memory_left(root) == pytest.approx(8 * GB, abs=1024)


def test_a_groups_limit_counts_and_files_in_memory_do_not(root):
    put(root, "proc/self/cgroup", "0::/jobs/one\n")
    group(root, "sys/fs/cgroup/jobs/one", V2, 4 * GB, 3 * GB, 1 * GB)
    assert memory_left(root) == 2 * GB


def test_a_limit_further_up_counts_as_well(root):
    put(root, "proc/self/cgroup", "0::/jobs/one\n")
    group(root, "sys/fs/cgroup/jobs/one", V2, "max", 3 * GB, 0)
    group(root, "sys/fs/cgroup/jobs", V2, 5 * GB, 4 * GB, 0)
    assert memory_left(root) == 1 * GB


def test_a_limit_of_version_1_counts_also_where_the_path_is_the_hosts(root):
    put(root, "proc/self/cgroup", "5:cpu:/x\n4:memory:/docker/abc\n0::/\n")
    group(root, "sys/fs/cgroup/memory", V1, 3 * GB, 1 * GB, 0)
    assert memory_left(root) == 2 * GB


def test_unlimited_groups_leave_what_the_system_has(root):
    put(root, "proc/self/cgroup", "4:memory:/a\n")
    group(root, "sys/fs/cgroup/memory/a", V1, 2**63 - 4096, 1 * GB, 0)
    assert memory_left(root) == pytest.approx(8 * GB, abs=1024)


def test_more_used_than_allowed_leaves_nothing(root):
    put(root, "proc/self/cgroup", "0::/a\n")
    group(root, "sys/fs/cgroup/a", V2, 1 * GB, 2 * GB, 0)
    assert memory_left(root) == 0


def test_without_proc_it_is_the_machines_memory(tmp_path):
    assert memory_left(tmp_path) > 2**28


@pytest.mark.parametrize(
    "groups", ["", "\n", "0::\n", "::", "memory\n", "0::/a\nx:memory\n", "4:memory:\n", "0::/a:b\n"]
)
@pytest.mark.parametrize("limit", ["", "many", "-", "1 2 x", "\xff"])
def test_malformed_groups_are_no_limits(root, groups, limit):
    put(root, "proc/self/cgroup", groups)
    for folder in ("sys/fs/cgroup/a", "sys/fs/cgroup", "sys/fs/cgroup/memory"):
        for name in (*V2[:2], *V1[:2]):
            put(root, f"{folder}/{name}", limit if name in (V2[0], V1[0]) else "five")
        put(root, f"{folder}/memory.stat", "inactive_file\ntotal_inactive_file x\n\n")
    assert memory_left(root) == pytest.approx(8 * GB, abs=1024)


@pytest.mark.parametrize("text", ["", "MemAvailable:\n", "MemAvailable: x kB\n", "\xff\n"])
def test_a_malformed_meminfo_counts_as_none(tmp_path, text):
    put(tmp_path, "proc/meminfo", text)
    assert memory_left(tmp_path) == memory.physical_bytes()


def test_what_the_system_does_not_say_is_unknown(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_lines", lambda path: [])
    if sys.platform == "linux":
        assert memory.peak_bytes() > 10_000_000  # from getrusage
    monkeypatch.setitem(sys.modules, "resource", None)
    monkeypatch.delattr(os, "sysconf", raising=False)
    assert (memory.peak_bytes(), memory.resident_bytes()) == (0, 0)
    assert memory.physical_bytes() is None
    assert memory_left(tmp_path) is None


@pytest.mark.parametrize("size", [-1, ValueError("unrecognized configuration name"), OSError()])
def test_a_sysconf_that_fails_is_unknown_memory(tmp_path, monkeypatch, size):
    def sysconf(name: str) -> int:
        if isinstance(size, Exception):
            raise size
        return size if name == "SC_PHYS_PAGES" else 4096

    monkeypatch.setattr(os, "sysconf", sysconf)
    assert memory_left(tmp_path) is None


def test_windows_is_asked_through_its_own_functions(tmp_path, monkeypatch):
    def machine(pointer):
        status = pointer._obj
        assert status.length == 64 == ctypes.sizeof(status)
        status.total, status.available = 16 * GB, 5 * GB
        return 1

    def process(handle, pointer, size):
        assert handle.value == 2**64 - 1  # the handle that stands for this process
        assert size == ctypes.sizeof(pointer._obj) == 72
        pointer._obj.peak, pointer._obj.now = 2 * GB, 1 * GB
        return 1

    current = ctypes.CFUNCTYPE(ctypes.c_void_p)(lambda: -1)
    kernel = SimpleNamespace(
        GlobalMemoryStatusEx=machine, K32GetProcessMemoryInfo=process, GetCurrentProcess=current
    )
    monkeypatch.setattr(ctypes, "WinDLL", {"kernel32": kernel}.get, raising=False)
    monkeypatch.setattr(memory, "_lines", lambda path: [])
    monkeypatch.setitem(sys.modules, "resource", None)
    assert (memory.peak_bytes(), memory.resident_bytes()) == (2 * GB, 1 * GB)
    assert (memory.physical_bytes(), memory_left(tmp_path)) == (16 * GB, 5 * GB)
