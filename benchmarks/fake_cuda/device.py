"""A process in which torch finds one NVIDIA GPU that computes nothing.

Owns: building runtime.c and starting again with it loaded. Does not own: what is checked there.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("runtime.c")
NAME = "libcuda.so.1"  # the driver's library, which torch and Triton look for by name
MARK = "FAKE_CUDA_FOLDER"  # set in the process that has the library loaded
# Versions whose calls the library is known to answer; torch 2.12 to 2.14 were not tried.
KNOWN = ("2.11", "2.15")


def why_not() -> str | None:
    """None if the fake device can be made here, else the reason."""
    import torch

    if not sys.platform.startswith("linux"):
        return "it needs Linux"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    if shutil.which("gcc") is None:
        return "gcc is not installed"
    if not torch.__version__.startswith(KNOWN):
        return f"the CUDA calls of torch {torch.__version__} are not known"
    missing = [folder for folder in _include_folders() if not folder.is_dir()]
    return f"no CUDA headers in {missing[0]}" if missing else None


def enter() -> None:
    """Start this program again with the library loaded, unless it is; removes its folder later.

    Raises: RuntimeError saying why there can be no fake device.
    """
    if MARK in os.environ:
        return
    reason = why_not()
    if reason is not None:
        raise RuntimeError(reason)
    with tempfile.TemporaryDirectory(prefix="fake_cuda_") as folder:
        library = build(Path(folder))
        env = {**os.environ, "LD_PRELOAD": str(library), MARK: folder}
        env["TORCHINDUCTOR_CACHE_DIR"] = str(Path(folder) / "inductor")
        env["TRITON_CACHE_DIR"] = str(Path(folder) / "triton")
        sys.exit(subprocess.run([sys.executable, *sys.argv], env=env).returncode)


def build(folder: Path) -> Path:
    """Compile the library into a folder."""
    import torch

    assert torch.version.cuda is not None
    major, minor = (int(part) for part in torch.version.cuda.split(".")[:2])
    library = folder / NAME
    command = ["gcc", "-O1", "-shared", "-fPIC", f"-Wl,-soname,{NAME}", "-o", str(library)]
    command += [f"-DCUDA_NUMBER={1000 * major + 10 * minor}", str(SOURCE)]
    command += [f"-I{folder}" for folder in _include_folders()]
    subprocess.run(command, check=True)
    return library


def _include_folders() -> list[Path]:
    """Where torch's and Triton's wheels keep CUDA's headers; the first lacks crt/."""
    import torch

    packages = Path(torch.__file__).parent.parent
    major = (torch.version.cuda or "").split(".")[0]
    return [
        packages / "nvidia" / f"cu{major}" / "include",
        packages / "triton" / "backends" / "nvidia" / "include",
    ]
