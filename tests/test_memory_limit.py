"""Available memory, read from simulated systems."""

from pathlib import Path

import pytest

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
