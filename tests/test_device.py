"""Device properties: dtypes, speed, memory, and what systems other than Linux lack."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nanochat.stages import doctor
from nanochat.system import compiler, device, distributed
from nanochat.system.config import RunOptions
from nanochat.system.errors import ConfigError

CPU = torch.device("cpu")

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


def test_the_speed_of_a_product_includes_waiting_for_it(monkeypatch):
    waited = []
    monkeypatch.setattr(device, "synchronize", waited.append)
    assert device.matmul_tflops(CPU, torch.float32, budget_s=0) > 0
    assert waited == [CPU] * 3


@pytest.mark.parametrize(("bfloat16_s", "expected"), [(1.1, "float32"), (0.7, "bfloat16")])
@pytest.mark.parametrize("loaded", [(0.0, 0.05), (0.05, 0.2), (0.0, 9.0), (9.0, 9.0)])
def test_a_burst_of_load_does_not_change_the_dtype(monkeypatch, loaded, bfloat16_s, expected):
    now = 0.0

    def slow(a, b):
        nonlocal now
        busy = loaded[0] <= now < loaded[1]
        now += 1e-3 * (bfloat16_s if a.dtype == torch.bfloat16 else 1.0) * (4 if busy else 1)

    monkeypatch.setattr(torch.nn.functional, "linear", slow)
    monkeypatch.setattr(device.time, "perf_counter", lambda: now)
    assert device.measure_dtype(CPU) is getattr(torch, expected)


@pytest.mark.parametrize("error", [TypeError("MPS does not support bfloat16"), RuntimeError()])
def test_a_device_without_bfloat16_computes_in_float32(monkeypatch, capsys, error):
    ones = torch.ones

    def refuse(*size, dtype=torch.float32, **more):
        if dtype is torch.bfloat16:
            raise error
        return ones(*size, dtype=dtype, **more)

    monkeypatch.setattr(torch, "ones", refuse)
    assert device.measure_dtype(CPU) is torch.float32
    options = RunOptions(device="cpu", dtype="bfloat16", run="x")
    with (
        pytest.raises(
            ConfigError, match=r"^cpu cannot compute in bfloat16 \(.*\); use another --dtype"
        ),
        distributed.session(options),
    ):
        pass
    monkeypatch.setattr(compiler, "probe", lambda device: None)
    doctor.main(["--device", "cpu"])
    assert "float32 (matrix product, TFLOP/s: float32 " in capsys.readouterr().out
    monkeypatch.setattr(device, "product_error", lambda *_: "no kernel image is available")
    doctor.main(["--device", "cpu"])
    text = capsys.readouterr().out
    assert "!! compute dtype     none works: no kernel image is available\n" in text
    assert "-> use --device cpu, or install a torch that is built for this device\n" in text


def test_memory_on_mps_is_what_its_driver_has_allocated(monkeypatch):
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 7)
    assert device.memory_used(torch.device("mps")) == 7


@pytest.mark.parametrize(
    ("build", "value", "remedy"),
    [
        (None, "found a driver", "install a CUDA build"),
        (
            "13.2",
            "not usable: The NVIDIA driver on your system is too old (found 11040)",
            "CUDA 13.2",
        ),
    ],
)
def test_the_doctor_says_why_a_gpu_is_not_used(monkeypatch, capsys, build, value, remedy):
    def refuse() -> None:
        raise RuntimeError(
            "The NVIDIA driver on your system is too old (found 11040). Please update"
        )

    monkeypatch.setattr("shutil.which", lambda name: name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", refuse)
    monkeypatch.setattr(torch.version, "cuda", build)
    monkeypatch.setattr(compiler, "probe", lambda device: None)
    doctor.main([])
    text = capsys.readouterr().out
    assert f"!! GPU               {value}\n" in text
    assert remedy in text


# What Windows, or a build of torch without torch.distributed, lacks.
WITHOUT = """
import os, select, signal, socket, sys, time
import torch, torch.distributed
for name in ("resource", "fcntl", "pwd", "grp", "termios", "tty", "pty", "readline", "syslog"):
    sys.modules[name] = None
GONE = {
    os: "sysconf sched_getaffinity getuid geteuid getgid getegid fork killpg setsid getpgid "
    "ST_NOEXEC uname chown O_DIRECTORY O_NOFOLLOW O_CLOEXEC O_PATH WNOHANG "
    "memfd_create nice getloadavg pread posix_fallocate mkfifo fdatasync",
    signal: "SIGHUP SIGUSR1 SIGUSR2 SIGKILL SIGALRM SIGPIPE SIGCHLD SIGQUIT alarm setitimer "
    "pthread_sigmask pthread_kill siginterrupt",
    socket: "AF_UNIX", time: "tzset", select: "poll epoll",
    torch.distributed: "Store PrefixStore TCPStore is_initialized all_reduce broadcast",
}
for module, names in GONE.items():
    for name in names.split():
        if hasattr(module, name):
            delattr(module, name)

import importlib, pkgutil
from pathlib import Path
import nanochat
from nanochat.stages import doctor
from nanochat.system import compiler, device, memory, signals, storage

for module in pkgutil.walk_packages(nanochat.__path__, "nanochat."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
memory._lines = lambda path: []
compiler.probe = lambda device: None
device.keep_memory()
assert device.memory_used(torch.device("cpu")) == 0
assert device.cores() >= 1
with signals.asked_to_stop(announce=True) as stop:
    assert not stop()
storage.write_atomic(Path(sys.argv[1]) / "file", b"text")
with storage.lock(Path(sys.argv[1]) / "lock", busy="busy"):
    pass
doctor.main(["--device", "cpu"])
"""


@pytest.mark.slow
def test_every_module_runs_without_what_windows_lacks(tmp_path):
    command = [sys.executable, "-c", WITHOUT, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "memory            unknown" in done.stdout


@pytest.mark.parametrize(
    ("capability", "expected"),
    [
        ((9, 0), "bfloat16"),
        ((8, 0), "bfloat16"),
        ((7, 5), "float16"),
        ((7, 0), "float16"),
        ((6, 1), "float32"),
    ],
)
def test_old_gpus_compute_in_what_their_matrix_units_have(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert device.measure_dtype(torch.device("cuda")) is getattr(torch, expected)
