"""Whether torch.compile works is tried out, and where it does not, training goes on without it."""

import dataclasses
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from nanochat.stages import base_train, doctor
from nanochat.system import compiler
from nanochat.system.compiler import Failure
from nanochat.system.distributed import StartedWith, single_run
from nanochat.system.errors import ConfigError
from nanochat.training.stage import _compiles
from tests import test_broken_environments as environments

TINY = (
    "--run tiny --depth 1 --width 32 --heads 2 --sequence-length 32 --tokens-per-step 128 "
    "--device-batch-size 4 --tokens 256 --device cpu --val-rows 4 --dtype float32"
).split()
NO_OPENMP = Failure("fatal error: omp.h: No such file or directory", "install OpenMP")
HINT = "\n\nSet TORCHDYNAMO_VERBOSE=1 for the full Dynamo stack trace (please do this)"


@pytest.fixture
def folders(monkeypatch) -> SimpleNamespace:
    """Where torch builds, without importing the compiler, which takes seconds."""
    inductor = SimpleNamespace(cache_dir=lambda: "/tmp")
    monkeypatch.setitem(sys.modules, "torch._inductor.codecache", inductor)
    monkeypatch.setattr(tempfile, "tempdir", "/tmp")
    return inductor


@pytest.mark.usefixtures("folders")
@pytest.mark.parametrize(
    ("text", "reason", "remedy"),
    [
        (
            "CppCompileError: C++ compile error\n\nCommand:\ng++ /tmp/a.cpp -o /tmp/a.so\n\n"
            "Output:\nIn file included from /tmp/a.cpp:1:\n"
            "/usr/b.h:1:10: fatal error: omp.h: No such file or directory\n"
            "    1 | #include <omp.h>\ncompilation terminated.\n",
            "fatal error: omp.h: No such file or directory",
            "brew install libomp",
        ),
        (
            "CppCompileError: C++ compile error\n\nCommand:\ng++\n\nOutput:\n"
            "a.cpp:1:10: schwerwiegender Fehler: Python.h: Datei oder Verzeichnis nicht gefunden\n",
            "a.cpp:1:10: schwerwiegender Fehler: Python.h: Datei oder Verzeichnis nicht gefunden",
            "apt install python3-dev",
        ),
        (
            "CppCompileError: C++ compile error\n\nCommand:\nclang++\n\nOutput:\n"
            "/usr/bin/ld: cannot find -lgomp: No such file or directory\n"
            "clang: error: linker command failed with exit code 1\n",
            "cannot find -lgomp: No such file or directory",
            "install OpenMP",
        ),
        (
            "CppCompileError: C++ compile error\n\nCommand:\ng++\n\nOutput:\n"
            "g++: fatal error: Killed signal terminated program cc1plus\n",
            "fatal error: Killed signal terminated program cc1plus",
            "repair the compiler",
        ),
        (
            "InvalidCxxCompiler: No working C++ compiler found in "
            "torch._inductor.config.cpp.cxx: (None, 'g++')",
            "No working C++ compiler found in torch._inductor.config.cpp.cxx: (None, 'g++')",
            "install g++",
        ),
        (
            "OSError: /x/a.so: failed to map segment from shared object.  The most common reason "
            "this may occur is if the /x folder is mounted with noexec.",
            "failed to map segment from shared object",
            "set TMPDIR (and TORCHINDUCTOR_CACHE_DIR, if it is set) to a folder that is not",
        ),
        ("OSError: [Errno 28] No space left on device", None, "free some space, or set TMPDIR"),
        ("[Errno 2] No such file or directory: '/x'", None, "to a folder that you can write to"),
        (
            "Output:\ncollect2: fatal error: cannot find 'ld'\ncompilation terminated.",
            "fatal error: cannot find 'ld'",
            "install binutils",
        ),
        ("[Errno 13] Permission denied: '/x'", None, "to a folder that you can write to"),
        (
            "Cannot find a working triton installation. Either the package is not installed or it "
            "is too old. More information on installing Triton can be found at: https://x",
            "Cannot find a working triton installation",
            "install Triton",
        ),
        (
            "Found Tesla P100 which is too old to be supported by the triton GPU compiler, which "
            "is used as the backend. Triton only supports devices of CUDA Capability >= 7.0",
            "Found Tesla P100 which is too old to be supported by the triton GPU compiler, which "
            "is used as the backend",
            "use a newer GPU",
        ),
        (
            "SubprocException: An exception occurred in a subprocess:\n\nTraceback (most recent "
            "call last):\n  File a\nRuntimeError: Failed to find C compiler. Please specify",
            "Failed to find C compiler",
            "install gcc",
        ),
        ("RuntimeError: Compiler: cl is not found.", "Compiler: cl is not found", "Visual Studio"),
        (
            "CppCompileError: C++ compile error\n\nCommand:\ng++ x\n\nOutput:\n",
            "the compiler fails and does not say why",
            "repair the compiler",
        ),
        ("", "RuntimeError", "repair the compiler"),
    ],
)
def test_the_reason_is_the_line_that_matters_and_has_a_remedy(text, reason, remedy):
    found = compiler.explain(RuntimeError(text + HINT if text else ""))
    assert found.reason == (reason or text.removeprefix("OSError: "))
    assert remedy in found.remedy


@pytest.mark.usefixtures("folders")
def test_a_missing_header_that_triton_does_not_report_is_found(monkeypatch, tmp_path):
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    error = RuntimeError("CalledProcessError: Command '['gcc']' returned non-zero exit status 1.")
    assert compiler.explain(error).reason == "Python.h: No such file or directory"
    (tmp_path / "Python.h").write_text("")
    assert "non-zero exit status" in compiler.explain(error).reason


@pytest.mark.usefixtures("folders")
def test_a_gpu_without_pythons_headers_trains_uncompiled_and_names_the_remedy(
    monkeypatch, tmp_path
):
    def build(device: torch.device) -> None:  # as Triton does with its module for the driver
        raise RuntimeError("CalledProcessError: Command '['gcc']' returned non-zero exit status 1.")

    monkeypatch.setattr(compiler, "_compile_something", build)
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(compiler, "probe", compiler.probe.__wrapped__)
    run = dataclasses.replace(single_run(), device=torch.device("cuda", 0))
    lines: list[str] = []
    stage = SimpleNamespace(
        run=run,
        loop=SimpleNamespace(compile=None),
        started_with=StartedWith(),
        wants_compiling=lambda: True,
        log_line=lines.append,
    )
    assert "Python.h" in _compiles(stage)
    assert "does not work here (Python.h: No such file or directory)" in lines[0]
    assert "training runs uncompiled, slower; to compile it, install Python's headers" in lines[0]
    stage.loop.compile = True
    with pytest.raises(ConfigError, match=r"^--compile: .*; install Python's headers \(Debian"):
        _compiles(stage)


def test_a_space_in_the_temporary_folder_is_named_as_torch_does_not_name_it(monkeypatch, folders):
    folder = "/tmp/my folder"
    error = RuntimeError("g++: fatal error: no input files")
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "tempdir", folder)
        found = compiler.explain(error)
    assert found.reason == f"the temporary folder {folder} has a space in its name"
    assert found.remedy.endswith("to a folder without one")
    folders.cache_dir = lambda: folder
    assert compiler.explain(error) == found
    assert compiler.explain(RuntimeError("Compiler: cl is not found.")).reason.startswith("Comp")


def test_a_compiler_that_cannot_even_be_imported_does_not_work(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch._inductor.codecache", None)
    failure = compiler.probe.__wrapped__(torch.device("cpu"))
    assert "torch._inductor.codecache" in failure.reason


def test_where_one_rank_cannot_compile_none_does(monkeypatch):
    monkeypatch.setattr(compiler, "probe", lambda device: None)
    run = dataclasses.replace(single_run(), world_size=2)
    monkeypatch.setattr(compiler, "gather_objects", lambda run, own: [own, own])
    assert compiler.why_not(run) is None
    monkeypatch.setattr(compiler, "gather_objects", lambda run, own: [own, NO_OPENMP])
    assert compiler.why_not(run) == Failure(f"rank 1: {NO_OPENMP.reason}", NO_OPENMP.remedy)


def test_without_a_compiler_training_warns_once_and_goes_on(base, monkeypatch, capsys):
    monkeypatch.setattr(compiler, "probe", lambda device: NO_OPENMP)
    args = [*TINY, "--data", f"{base}/texts.jsonl"]
    base_train.main(args)
    warnings = [line for line in capsys.readouterr().out.splitlines() if "warning" in line]
    assert warnings == [
        "warning: torch.compile does not work here (fatal error: omp.h: No such file or "
        "directory): training runs uncompiled, about half as fast; to compile it, install OpenMP; "
        "--no-compile turns this message off"
    ]
    config = base / "base" / "runs" / "tiny" / "base_train" / "config.json"
    facts = json.loads(config.read_text())
    assert facts["compiled"] is False
    config.write_text(json.dumps({**facts, "compiled": True}))
    base_train.main([*args, "--resume", "--tokens", "384"])
    assert "results may differ in the last bits; to compile it" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"^--compile: torch.compile does not work here \(fatal"):
        base_train.main([*args, "--run", "other", "--tokenizer", "tiny", "--compile"])


def test_uncompiled_training_does_not_try_the_compiler(base, monkeypatch):
    monkeypatch.setattr(compiler, "probe", lambda device: pytest.fail("it was tried"))
    base_train.main([*TINY, "--data", f"{base}/texts.jsonl", "--no-compile"])


def test_the_doctor_says_what_training_says(base, monkeypatch, capsys):
    monkeypatch.setattr(compiler, "probe", lambda device: NO_OPENMP)
    doctor.main(["--device", "cpu"])
    text = capsys.readouterr().out
    assert f"!! torch.compile     does not work here ({NO_OPENMP.reason})" in text
    assert f"-> {NO_OPENMP.remedy}\n" in text
    monkeypatch.setattr(compiler, "probe", lambda device: None)
    doctor.main(["--device", "cpu"])
    assert "ok torch.compile     works\n" in capsys.readouterr().out


# --- with the real compiler; test_broken_environments.py has more of what can be wrong with it


def with_dynamo_disabled() -> object:
    compiler.probe.cache_clear()
    torch._dynamo.config.disable = True
    return compiler.probe(torch.device("cpu"))


def that_breaks_later(folder: Path) -> list[object]:
    """The probe's verdict, whether it left the random states alone, and what a function does then.

    folder: for a compiler that does not work.
    """
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    verdict = compiler.probe(torch.device("cpu"))
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    environments.broken_compiler(folder)
    calls, unique = [], time.time_ns() % 1000 / 999

    def double(x: torch.Tensor) -> torch.Tensor:
        if not torch.compiler.is_compiling():
            calls.append(x.shape)
        return 2 * x + unique

    fast = compiler.compiled(double)
    x = torch.ones(3, requires_grad=True)
    for _ in range(2):
        fast(x).sum().backward()
    return [verdict, before == after, len(calls), x.grad.tolist()]


@pytest.mark.slow
def test_a_compiler_that_fails_after_the_probe_costs_a_warning(tmp_path):
    command = [sys.executable, "-m", __name__, str(tmp_path)]
    done = subprocess.run(
        command, cwd=environments.ROOT, capture_output=True, text=True, check=True
    )
    later, disabled = json.loads(done.stdout)
    assert disabled[0] == "TORCHDYNAMO_DISABLE or TORCH_COMPILE_DISABLE is set"
    assert later == [None, True, 2, [4, 4, 4]]
    assert done.stderr.splitlines() == [
        "warning: torch.compile failed (fatal error: 'omp.h' file not found): double runs "
        "uncompiled from here on"
    ]


if __name__ == "__main__":
    later = that_breaks_later(Path(sys.argv[1]))
    sys.stdout.write(json.dumps([later, with_dynamo_disabled()]))


def test_an_answer_that_torch_cannot_read_is_the_compilers_fault():
    for error in (
        IndexError("list index out of range"),
        UnicodeDecodeError("utf-8", b"", 0, 1, ""),
    ):
        assert compiler.explain(error).reason == "the compiler's answer makes no sense"
