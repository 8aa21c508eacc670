"""Device properties: dtypes, speed, memory, and what systems other than Linux lack."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nanochat.stages import doctor
from nanochat.system import compiler, device, distributed, peaks
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


@pytest.mark.parametrize(
    ("name", "bf16", "fp32"),
    [
        ("NVIDIA H100 80GB HBM3", 989, 67),
        ("NVIDIA H100 PCIe", 756, 51),
        ("NVIDIA H200 NVL", 835, 60),
        ("NVIDIA GB200", 2500, 80),
        ("NVIDIA A100-SXM4-80GB", 312, 19.5),
        ("NVIDIA A10", 125, 31.2),
        ("NVIDIA A10G", 70, 35),
        ("NVIDIA L4", 121, 30.3),
        ("NVIDIA L40S", 362, 91.6),
        ("NVIDIA GeForce RTX 4070 Ti SUPER", 88.2, 44.1),
        ("NVIDIA GeForce RTX 3090", 71.2, 35.6),
        ("Tesla T4", None, 8.1),
        ("Tesla V100-SXM2-16GB", None, 15.7),
        ("Tesla V100-PCIE-32GB", None, 14),
        ("NVIDIA GeForce GTX 1080 Ti", None, 11.3),
        ("AMD Instinct MI300X OAM", 1307.4, 163.4),
    ],
)
def test_a_gpus_peak_is_that_of_its_dtype(monkeypatch, name, bf16, fp32):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    gpu = torch.device("cuda", 0)
    assert device.peak_flops(gpu, torch.bfloat16) == (bf16 and pytest.approx(bf16 * 1e12))
    assert device.peak_flops(gpu, torch.float32) == fp32 * 1e12


def test_float32_on_tensor_cores_is_measured_against_their_peak(monkeypatch):
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    for name, tflops in (("NVIDIA H100 PCIe", 378), ("Tesla V100-SXM2-16GB", 15.7)):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        assert device.peak_flops(gpu, torch.float32) == tflops * 1e12


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA RTX A1000",  # not an A10 or A100
        "NVIDIA T400 4GB",
        "NVIDIA GeForce RTX 3080 Ti Laptop GPU",
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        "a new one",
    ],
)
def test_a_gpu_without_a_data_sheet_has_no_known_peak(name):
    assert peaks.find(name) is None


def test_float8_products_are_measured_against_their_own_peak():
    hopper = peaks.PEAKS["H100"]
    assert hopper.flops(torch.float8_e4m3fn) == hopper.flops(torch.float8_e5m2) == 1979e12
    assert peaks.PEAKS["A100"].flops(torch.float8_e4m3fn) is None
    assert peaks.PEAKS["T4"].flops(torch.float16) == 65e12


def test_memory_on_mps_is_what_its_driver_has_allocated(monkeypatch):
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 7)
    assert device.memory_used(torch.device("mps")) == 7


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
