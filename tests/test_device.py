"""Device properties: freed memory is kept for reuse."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import re
from pathlib import Path
import torch
from nanochat.system import device

if KEEP:
    device.keep_memory()
torch.ones(100, 2**20)
heaps = Path("/proc/self/smaps").read_text().split("[heap]")[1:]
in_heap = sum(int(re.search(r"^Rss: *(\\d+) kB", heap, re.M)[1]) * 1024 for heap in heaps)
huge_pages = any(re.search(r"^VmFlags:.* hg", heap, re.M) for heap in heaps)
print(in_heap / 1e6, huge_pages)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="is about glibc's heap")
def test_freed_memory_is_kept_in_huge_pages():
    kept_mb, huge_pages = heap_left_by_a_tensor(keep=True)
    default_mb, _ = heap_left_by_a_tensor(keep=False)
    assert kept_mb > default_mb + 400  # of the tensor's 419
    if Path("/sys/kernel/mm/transparent_hugepage").exists():
        assert huge_pages == "True"


def heap_left_by_a_tensor(*, keep: bool) -> tuple[float, str]:
    """MB of a process's heap after a large tensor was freed, and whether it has huge pages."""
    program = PROGRAM.replace("KEEP", str(keep))
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    in_heap, huge_pages = done.stdout.split()
    return float(in_heap), huge_pages
