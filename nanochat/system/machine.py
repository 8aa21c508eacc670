"""The GPUs of this machine: whether torch can use them, and the preset that suits them.

Owns: what is wrong between a driver, a GPU and a build of torch, and the remedy, in one line. Does
not own: which device a stage uses (`device`), or which build is installed (scripts/bootstrap.sh).
"""

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from nanochat.system import config
from nanochat.system.errors import ConfigError

# The first driver with which a build for a major version of CUDA works.
# Source: NVIDIA's CUDA release notes, minimum driver for minor version compatibility.
FIRST_DRIVER = {"12": "525.60.13", "13": "580"}
TURING = (7, 5)  # older GPUs are in the builds for CUDA 12.6 only
BLACKWELL = (10, 0)  # newer than the builds for CUDA 12.6
NO_FABRIC = 802  # the driver's error where nothing runs the NVSwitches between GPUs
INSTALL = "TORCH={build} bash speedrun.sh --setup-only in a checkout"
INDEX = "https://download.pytorch.org/whl"
HIDE = "--device cpu, or CUDA_VISIBLE_DEVICES= before the command, trains on the CPU"

# Where a loaded driver shows itself.
NVIDIA_NODE = Path("/dev/nvidiactl")
NVIDIA_VERSION = Path("/proc/driver/nvidia/version")
AMD_NODE = Path("/dev/kfd")
AMD_TOPOLOGY = Path("/sys/class/kfd/kfd/topology/nodes")
# Of the GPUs that builds for ROCm have kernels for, not of those inside processors: gfx90a = 90010.
AMD_GPUS = (90006, 90008, 90010, 90402, 90500, 100300, 110000, 110001, 120000, 120001)

# What the preset `speedrun` needs: depth 22 in bfloat16 with rows that keep the GPU busy.
SPEEDRUN_GPUS = 8
SPEEDRUN_GB = 70
SPEEDRUN_CAPABILITY = (8, 0)
GPU_PRESETS = ("speedrun", "gpu1")


@dataclass(frozen=True)
class Gpu:
    """A GPU that torch sees; memory in bytes, capability as NVIDIA numbers its architectures."""

    name: str
    memory: int
    capability: tuple[int, int]


def unusable_gpu() -> str | None:
    """What is wrong with the GPU that this machine has and torch cannot use; None if all is well.

    None, too, where there is no GPU, CUDA_VISIBLE_DEVICES hides it, or torch is a build for CPUs.
    """
    if torch.cuda.is_available() or config.gpus_hidden():
        return None
    if torch.version.hip is not None:
        if not AMD_NODE.exists():
            return None
        return (
            f"torch {torch.__version__} cannot use this machine's AMD GPU (ROCm "
            f"{torch.version.hip}): {_refusal()}; update its driver and join the groups render and "
            f"video; {HIDE}"
        )
    if torch.version.cuda is None or not has_nvidia_gpu():
        return None
    driver, cuda = driver_version(), torch.version.cuda
    needed = FIRST_DRIVER.get(cuda.split(".")[0])
    if driver and needed and _numbers(driver) < _numbers(needed):
        return (
            f"the NVIDIA driver {driver} is too old for torch {torch.__version__}, whose CUDA "
            f"{cuda} needs {needed} or later; install a build for it "
            f"({INSTALL.format(build='auto')}, else pip install torch --index-url {INDEX}/cu128) "
            f"or update the driver; {HIDE}"
        )
    refusal = _refusal()
    remedy = "see whether nvidia-smi works (a container needs --gpus all)"
    if refusal.startswith(f"Error {NO_FABRIC}:"):
        remedy = "start what connects its GPUs (systemctl start nvidia-fabricmanager)"
    return (
        f"torch {torch.__version__} cannot use this machine's NVIDIA GPU (driver "
        f"{driver or 'unknown'}, CUDA {cuda}): {refusal}; {remedy}; {HIDE}"
    )


def cpu_build() -> str | None:
    """A note that this build of torch leaves a GPU idle; None if it does not."""
    if torch.version.hip is not None or torch.cuda.is_available() or config.gpus_hidden():
        return None
    if not has_nvidia_gpu() and has_amd_gpu():
        return (
            f"torch {torch.__version__} is not built for ROCm, which leaves this machine's AMD GPU "
            f"idle; install a build for it ({INSTALL.format(build='rocm')})"
        )
    if torch.version.cuda is not None or not has_nvidia_gpu():
        return None
    return (
        f"torch {torch.__version__} is a build for CPUs, which leaves this machine's NVIDIA GPU "
        f"idle; install one for it ({INSTALL.format(build='auto')}, else pip install torch)"
    )


def unsupported_gpu(device: torch.device) -> str | None:
    """Why this build of torch has no kernels for a CUDA device, and the remedy; None if it has."""
    built = torch.cuda.get_arch_list()
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip is not None:
        name = properties.gcnArchName.split(":")[0]
        if not built or name in (each.split(":")[0] for each in built):
            return None
        return (
            f"{properties.name} ({name}) is not among the GPUs that torch {torch.__version__} is "
            f"built for ({' '.join(built)}); install another build; {HIDE}"
        )
    capability = (properties.major, properties.minor)
    if not built or any(_runs_on(each, capability) for each in built):
        return None
    build = "cu126" if capability < TURING else "cu128" if capability >= BLACKWELL else "auto"
    source = "" if build == "auto" else f", else pip install torch --index-url {INDEX}/{build}"
    return (
        f"{properties.name} has compute capability {capability[0]}.{capability[1]}, but torch "
        f"{torch.__version__} is built for {' '.join(built)}; install a build for it "
        f"({INSTALL.format(build=build)}{source}); {HIDE}"
    )


def _runs_on(built: str, capability: tuple[int, int]) -> bool:
    """Whether code for an entry of torch's list of architectures runs on a GPU.

    built: such as "sm_86", machine code, which runs on the same major version from its minor
    version on; "sm_90a", which runs on that version only; "compute_80", which the driver translates
    for every later GPU.
    """
    match = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", built)
    if match is None:
        return False
    version = (int(match[2]), int(match[3]))
    if match[4] == "a":
        return version == capability
    return version <= capability and (match[1] == "compute" or version[0] == capability[0])


def has_nvidia_gpu() -> bool:
    """Whether the machine has an NVIDIA GPU whose driver is loaded, usable or not."""
    return NVIDIA_NODE.exists() or (torch.version.hip is None and torch.cuda.device_count() > 0)


def has_amd_gpu() -> bool:
    """Whether the machine has an AMD GPU that builds of torch for ROCm have kernels for."""
    for file in AMD_TOPOLOGY.glob("*/properties"):
        try:
            text = file.read_text(encoding="utf-8")
        except OSError:  # such as the GPU of another user's container
            continue
        found = re.search(r"^gfx_target_version (\d+)$", text, re.MULTILINE)
        if found and int(found[1]) in AMD_GPUS:
            return True
    return False


def driver_version() -> str | None:
    """The version of NVIDIA's driver, such as "535.104.05"; None if it is not known."""
    try:
        text = NVIDIA_VERSION.read_text(encoding="utf-8")
    except OSError:
        text = ""
    if found := re.search(r"NVRM version:.*?\s(\d{3,}\.\d[\d.]*)\s", text):
        return found[1]
    program = shutil.which("nvidia-smi")  # all there is in WSL and on Windows
    if program is None:
        return None
    command = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(r"\d{3,}\.\d[\d.]*", done.stdout)
    return found[0] if found else None


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]


def _refusal() -> str:
    """What the driver says when torch is asked to use the GPU, else torch's first sentence."""
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        text = str(error).split("\n")[0] or type(error).__name__
        drivers = re.search(r"\bError \d+: .*", text)  # after general words of torch
        return (drivers[0] if drivers else text).split(". ")[0].rstrip(".")
    return "no GPU is visible"


def gpus() -> list[Gpu]:
    """The GPUs that torch can use.

    Raises: ConfigError if the machine has one that it cannot use, or has no kernels for.
    """
    if problem := unusable_gpu():
        raise ConfigError(problem)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    problems = [unsupported_gpu(torch.device("cuda", index)) for index in range(count)]
    if problem := next(filter(None, problems), None):
        fit = ",".join(str(index) for index, each in enumerate(problems) if each is None)
        if fit and "CUDA_VISIBLE_DEVICES" not in os.environ:  # which would number them otherwise
            problem += f"; CUDA_VISIBLE_DEVICES={fit} before it trains on the rest"
        raise ConfigError(problem)
    found = []
    for index in range(count):
        properties = torch.cuda.get_device_properties(index)
        capability = (properties.major, properties.minor)
        found.append(Gpu(properties.name, properties.total_memory, capability))
    return found


def choose_preset(found: Sequence[Gpu]) -> tuple[str, str]:
    """The preset for a machine's GPUs, and why.

    `speedrun` needs eight GPUs, each with enough memory and fast bfloat16; `gpu1` trains on any.
    """
    if not found:
        return "pocket", "no NVIDIA or AMD GPU that torch can use"
    least = min(found, key=lambda gpu: gpu.memory)
    oldest = min(found, key=lambda gpu: gpu.capability)
    seen = f"{len(found)} x {least.name} with {least.memory / 1e9:.0f} GB"
    missing = []
    if len(found) < SPEEDRUN_GPUS:
        missing.append(f"{SPEEDRUN_GPUS} GPUs")
    if least.memory < SPEEDRUN_GB * 1e9:
        missing.append(f"{SPEEDRUN_GB} GB each")
    if oldest.capability < SPEEDRUN_CAPABILITY:
        missing.append("bfloat16, from Ampere on")
    if missing:
        return "gpu1", f"{seen}; speedrun needs {' and '.join(missing)}"
    return "speedrun", seen


def for_speedrun(preset: str) -> str:
    """The number of GPUs and, unless a preset is given, one that suits them and why.

    preset: what the user chose, empty if nothing.
    Raises: ConfigError if the machine has a GPU that torch cannot use, or none for a preset that
    needs one.
    """
    if preset and config.load_preset(preset, "common").get("device") == "cpu":
        return "0"
    found = gpus()
    idle = cpu_build()
    if preset in GPU_PRESETS and not found:
        raise ConfigError(
            f"PRESET={preset} needs a CUDA GPU: {idle or 'torch finds none here'}; "
            "PRESET=pocket trains on a CPU"
        )
    if preset:
        return f"{len(found)}"
    chosen, reason = choose_preset(found)
    return f"{len(found)} {chosen} {idle or reason}"
