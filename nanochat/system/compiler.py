"""torch.compile: whether it works on this machine, and the one way in which it is used.

Owns: the probe, whose verdict training, `plan` and `doctor` go by, and what happens where a
function cannot be compiled after all. Does not own: whether a stage wants to be compiled.
"""

import contextlib
import functools
import logging
import os
import re
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, TypeVar

import torch
import torch._functorch.config as functorch

from nanochat.system.distributed import Run, gather_objects

log = logging.getLogger(__name__)

_P = ParamSpec("_P")
_R = TypeVar("_R")

FOLDER = "set TMPDIR (and TORCHINDUCTOR_CACHE_DIR, if it is set) to a folder"
# A pattern of the reason, and the remedy; the first that applies.
REMEDIES = (
    (r"No working C\+\+ compiler", "install g++ (Debian, Ubuntu: apt install g++)"),
    (r"cannot find 'ld'", "install binutils (Debian, Ubuntu: apt install binutils)"),
    (r"find C compiler", "install gcc (Debian, Ubuntu: apt install gcc)"),
    (r"\bcl is not found", "install the C++ build tools of Visual Studio"),
    (
        r"\bomp\.h|-lg?omp|libg?omp",
        "install OpenMP (macOS: brew install libomp; Debian, Ubuntu: apt install libomp-dev)",
    ),
    (r"Python\.h", "install Python's headers (Debian, Ubuntu: apt install python3-dev)"),
    (r"space in its name", f"{FOLDER} without one"),
    (r"No space left|quota exceeded", f"free some space, or {FOLDER} on another disk"),
    (r"failed to map segment|mounted noexec", f"{FOLDER} that is not mounted noexec"),
    (
        r"ermission denied|Read-only|File exists|usable temporary|Errno 2\] .*'/",
        f"{FOLDER} that you can write to",
    ),
    (r"uid not found", "set TORCHINDUCTOR_CACHE_DIR to a folder of yours"),
    (r"too old to be supported", "use a newer GPU"),
    (r"driver", "update the GPU's driver"),
    (r"(?i)triton", "install Triton (Linux: pip install triton; Windows: triton-windows)"),
    (r"_DISABLE", "unset TORCHDYNAMO_DISABLE and TORCH_COMPILE_DISABLE"),
    (r"not supported on", "use another version of Python or torch"),
)
COMPILERS_WORD = re.compile(r"(?:fatal )?error: .*|cannot find -l.*")
EXCEPTION = re.compile(r"[A-Z]\w*(?:Error|Exception|Compiler|Failed): (?:/\S+: )?(\S.*[^:])$")


class Failure(NamedTuple):
    """Why torch.compile does not work, and what to do about it, each part of a sentence."""

    reason: str
    remedy: str


def why_not(run: Run) -> Failure | None:
    """None if torch.compile works on the devices of all ranks, else why not. Collective.

    Where one rank cannot compile none does: compiled and plain sums differ in the last bits.
    """
    found = enumerate(gather_objects(run, probe(run.device)))
    rank, failure = next(((rank, each) for rank, each in found if each is not None), (0, None))
    if failure is None or run.world_size == 1:
        return failure
    return failure._replace(reason=f"rank {rank}: {failure.reason}")


@functools.cache
def probe(device: torch.device) -> Failure | None:
    """None if torch.compile works on the device, else why not.

    Compiles and runs a small function, forward and backward. The result is kept: about a second,
    besides the imports and caches that training needs as well; no random generator is used.
    """
    try:
        _compile_something(device)
    # Not only torch's own errors, whose classes change between releases: full disks, compilers,
    # loaders and drivers raise what they like, and the answer is the same.
    except Exception as error:
        return explain(error)
    return None


def _compile_something(device: torch.device) -> None:
    """Compile and run a function that no cache can have.

    Raises: whatever the compiler does; RuntimeError if the function runs uncompiled.
    """
    _refuse_noexec()
    # A cached kernel would be loaded without a compiler. The constant is a part of the forward
    # kernel only, so that the backward one comes from the cache: half the time.
    unique = 1 + time.time_ns() % 10**9 / 1e9

    def tiny(x: torch.Tensor) -> torch.Tensor:
        return (x * x.sigmoid() + (unique if torch.compiler.is_compiling() else 0)).sum()

    with torch.enable_grad():
        x = torch.zeros(64, device=device, requires_grad=True)
        y = _compile(tiny)(x)  # []
        y.backward()
    if y.item() == 0:
        raise RuntimeError("TORCHDYNAMO_DISABLE or TORCH_COMPILE_DISABLE is set")


def _refuse_noexec() -> None:
    """Say at once what the compiler would find out after building for twenty seconds.

    Raises: OSError if compiled code cannot be loaded from its folder.
    """
    from torch._inductor.codecache import cache_dir

    if hasattr(os, "ST_NOEXEC") and os.statvfs(cache_dir()).f_flag & os.ST_NOEXEC:  # Linux only
        raise OSError(f"{cache_dir()} is mounted noexec")


def explain(error: Exception) -> Failure:
    """The reason in a compiler's error, which may have a hundred lines, and the remedy."""
    if isinstance(error, IndexError | UnicodeDecodeError):  # torch fails to read what it answers
        return Failure("the compiler's answer makes no sense", "repair the compiler")
    found = _reason(str(error)) or type(error).__name__
    for reason in (found, _folder_with_a_space() or found):
        for pattern, remedy in REMEDIES:
            if re.search(pattern, reason):
                return Failure(reason, remedy)
    return Failure(found, "repair the compiler")


def _folder_with_a_space() -> str | None:
    """torch splits its command lines at spaces, and what then fails does not say so."""
    with contextlib.suppress(Exception):  # what is wrong may well be here, and has been told
        from torch._inductor.codecache import cache_dir

        for folder in (tempfile.gettempdir(), cache_dir()):
            if " " in folder:
                return f"the temporary folder {folder} has a space in its name"
    return None


def _reason(text: str) -> str:
    """The part of an error's text that says what is wrong."""
    if "non-zero exit status" in text and not _has_headers():
        return "Python.h: No such file or directory"  # Triton leaves it to gcc to say so
    _, _, output = text.rpartition("Output:\n")  # of the C++ compiler
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    if lines and "TORCHDYNAMO_VERBOSE" in lines[0]:  # torch's own words follow at once
        return "the compiler fails and does not say why"
    found = [match[0] for line in lines if (match := COMPILERS_WORD.search(line))]
    found += [match[1] for line in reversed(lines) if (match := EXCEPTION.match(line))]
    first = next(iter(found + lines), "")
    return re.split(r"\.\s", first)[0][:160].rstrip(".")


def _has_headers() -> bool:
    return Path(sysconfig.get_path("include"), "Python.h").exists()


def compiled(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """A function that is compiled at its first call with each set of shapes.

    If that fails, although the probe went well, a warning says so and the function runs uncompiled
    from then on. It must have no effect before it is compiled as a whole.
    """
    import torch._dynamo.exc as exceptions

    fast: Callable[_P, _R] | None = _compile(function)

    @functools.wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        nonlocal fast
        if fast is not None:
            try:
                return fast(*args, **kwargs)
            except exceptions.TorchDynamoException as error:
                fast = None
                # As an error: below that only one rank of a machine is heard.
                log.error(
                    "warning: torch.compile failed (%s): %s runs uncompiled from here on",
                    explain(error).reason,
                    getattr(function, "__name__", "a part"),
                )
        return function(*args, **kwargs)

    return call


def _compile(function: Callable[_P, _R]) -> Callable[_P, _R]:
    # By default the compiler does not cache graphs with custom autograd functions, as these may
    # depend on state outside the graph; ours do not. It makes a second start four seconds shorter.
    functorch.autograd_cache_allow_custom_autograd_functions = True
    # Backward code is built with the forward code, before anything runs: if it fails, the function
    # can still be called uncompiled.
    functorch.force_non_lazy_backward_lowering = True
    # Fused multiply-add: one instruction, one rounding.
    options: dict[str, Any] = {"cpp.enable_floating_point_contract_flag": "fast"}
    return torch.compile(function, dynamic=False, options=options)
