"""Checks what this machine can run, and how to fix what it cannot.

nanochat doctor
"""

import platform
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from nanochat.gpt import attention
from nanochat.system import compiler, config, machine, memory, storage
from nanochat.system import device as devices
from nanochat.system.config import option


@dataclass(frozen=True, kw_only=True)
class DoctorConfig:
    """Check Python, torch, GPU, compiler, speed, disk, memory and data; change nothing."""

    device: str | None = option(
        None, "device to check: cpu, cuda or mps; none picks the best one available"
    )


@dataclass(frozen=True)
class Finding:
    """One line of the diagnosis; the remedy is None if all is well."""

    name: str
    value: str
    remedy: str | None = None


def main(argv: list[str] | None = None) -> None:
    cfg = config.parse(DoctorConfig, argv, stage="doctor")
    problem = machine.unusable_gpu() if cfg.device is None else None
    device = devices.choose_device(cfg.device if problem is None else "cpu")
    findings = [
        _python(),
        _torch(),
        _rust(),
        *_device(device, problem),
        _compiler(device),
        _dtype(device),
        _attention(device),
        _memory(),
        _disk(),
        _data(),
        _runs(),
    ]
    for finding in findings:
        mark = "ok " if finding.remedy is None else "!! "
        print(f"{mark}{finding.name:<18}{finding.value}")
        if finding.remedy is not None:
            print(f"   {'':<18}-> {finding.remedy}")


def _python() -> Finding:
    remedy = None if sys.version_info >= (3, 11) else "install Python 3.11 or later"
    return Finding("Python", platform.python_version(), remedy)


def _torch() -> Finding:
    build = "CPU build"
    if torch.version.cuda:
        build = f"CUDA {torch.version.cuda}, driver {machine.driver_version() or 'none'}"
    elif torch.version.hip:
        build = f"ROCm {torch.version.hip}"
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    remedy = None if version >= (2, 11) else "update: pip install --upgrade torch"
    return Finding("torch", f"{torch.__version__} ({build})", remedy)


def _rust() -> Finding:
    try:
        import nanochat.tokenizer._rustbpe  # noqa: F401  (only tests whether it can be imported)
    except ImportError as error:
        return Finding(
            "Rust tokenizer", f"missing ({error})", "build it: uv sync, or pip install ."
        )
    return Finding("Rust tokenizer", "built")


def _device(device: torch.device, problem: str | None) -> list[Finding]:
    """The device; of GPUs, the memory that is free and what keeps them from being used."""
    found = [Finding("device", f"{device.type}: {devices.describe(device)}")]
    if device.type == "cuda":
        found += [_gpu(index) for index in range(torch.cuda.device_count())]
    elif unused := problem or machine.cpu_build():
        reason, _, remedy = unused.partition("; ")
        found.append(Finding("GPU", f"not used: {reason}", remedy))
    return found


def _gpu(index: int) -> Finding:
    free, total = torch.cuda.mem_get_info(index)
    text = f"{torch.cuda.get_device_name(index)}, {_gb(free)} of {_gb(total)} free"
    if problem := machine.unsupported_gpu(torch.device("cuda", index)):
        reason, _, remedy = problem.partition("; ")
        return Finding(f"GPU {index}", f"not usable: {reason}", remedy)
    busy = "another process holds its memory: nvidia-smi" if free < total / 2 else None
    return Finding(f"GPU {index}", text, busy)


def _compiler(device: torch.device) -> Finding:
    failure = compiler.probe(device)
    if failure is None:
        return Finding("torch.compile", "works")
    text = f"does not work here ({failure.reason}): training runs uncompiled"
    return Finding("torch.compile", text, failure.remedy)


def _dtype(device: torch.device) -> Finding:
    torch.set_num_threads(devices.cores())
    if error := devices.product_error(device, torch.float32):
        remedy = "use --device cpu, or install a torch that is built for this device"
        return Finding("compute dtype", f"none works: {error}", remedy)
    # On a CPU float16 may take minutes.
    half = () if device.type == "cpu" else (torch.float16,)
    speeds = [
        f"{str(dtype).removeprefix('torch.')} {devices.matmul_tflops(device, dtype):.2f}"
        for dtype in (torch.float32, torch.bfloat16, *half)
        if devices.product_error(device, dtype) is None
    ]
    chosen = str(devices.measure_dtype(device)).removeprefix("torch.")
    return Finding("compute dtype", f"{chosen} (matrix product, TFLOP/s: {', '.join(speeds)})")


def _attention(device: torch.device) -> Finding:
    backend = attention.choose("auto", device)
    return Finding("attention", f"{backend.name}: {backend.note}", backend.passed_over or None)


def _memory() -> Finding:
    left = memory.memory_left()
    if left is None:
        return Finding("memory", "unknown")
    remedy = "the pocket preset needs 4 GB" if left < 4e9 else None
    return Finding("memory", f"{_gb(left)} available", remedy)


def _disk() -> Finding:
    base = storage.base_dir()
    existing = next(p for p in (base, *base.parents) if p.exists())
    free = storage.free_bytes(existing)
    if free is None:
        return Finding("disk", f"free space unknown for {base}")
    remedy = "free some, or set NANOCHAT_BASE_DIR to a larger disk" if free < 2e9 else None
    return Finding("disk", f"{_gb(free)} free for {base}", remedy)


def _data() -> Finding:
    found = [_folder_size(p) for p in _folders(storage.base_dir() / "data")]
    text = ", ".join(found) if found else "none yet; stages create or download what they need"
    return Finding("data", text)


def _runs() -> Finding:
    names = [p.name for p in _folders(storage.base_dir() / "runs")]
    return Finding("runs", ", ".join(names) if names else "none yet: bash speedrun.sh")


def _folders(path: Path) -> list[Path]:
    return sorted(p for p in path.iterdir() if p.is_dir()) if path.is_dir() else []


def _folder_size(path: Path) -> str:
    return f"{path.name} ({_gb(sum(f.stat().st_size for f in path.rglob('*') if f.is_file()))})"


def _gb(count: float) -> str:
    return f"{count / 1e9:.1f} GB"


if __name__ == "__main__":
    config.cli(main)
