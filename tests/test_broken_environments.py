"""The tiny pipeline, on text of four scripts, in environments that lack or break something.

Each case is a process of its own. Most are forked from a server that has imported everything, which
takes most of the time otherwise; `fresh` ones start from nothing, to import without what is absent.
"""

import contextlib
import ctypes
import errno
import importlib
import io
import json
import multiprocessing
import os
import re
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,  # most of the time is a worker's first case, which imports everything
    pytest.mark.skipif(sys.platform == "win32", reason="forks"),
]
ROOT = Path(__file__).parent.parent
NO_MOUNT = 77  # exit status: this machine does not let us mount
NEW_MOUNTS, NEW_USERS, READ_ONLY, NO_EXEC = 0x20000, 0x10000000, 1, 8
GREETINGS = ["你好，世界", "नमस्ते दुनिया", "مرحبا بالعالم", "hello 🌍🙂", "naïve café"]
STAGES = ["tok_train", "base_train", "chat_sft", "chat_cli", "sample", "report"]


# --- the environments


def no_compiler(folder: Path) -> None:
    os.environ["PATH"] = str(folder)


def broken_compiler(folder: Path) -> None:
    """Compilers that are found and tell their version, and fail on every file."""
    for name in ("g++", "clang++", "c++", "gcc", "clang", "cc"):
        script = "#!/bin/sh\n[ \"$1\" = --version ] && echo 'g++ 13.2.0' && exit 0\n"
        script += "echo \"fatal error: 'omp.h' file not found\" >&2\nexit 1\n"
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)
    os.environ["PATH"] = f"{folder}:{os.environ['PATH']}"


def noexec_temporary_folder(folder: Path) -> None:
    mount(folder, NO_EXEC, "size=2g")
    os.environ["TMPDIR"] = str(folder)


def full_temporary_folder(folder: Path) -> None:
    mount(folder, 0, "size=8k")
    with contextlib.suppress(OSError), (folder / "all").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1024))
    os.environ["TMPDIR"] = str(folder)


def temporary_folder_with_a_space(folder: Path) -> None:
    (folder / "my temporary ü 文件").mkdir()
    os.environ["TMPDIR"] = str(folder / "my temporary ü 文件")


def no_chmod(folder: Path) -> None:
    def refuse(*args: object, **more: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    os.chmod = os.fchmod = refuse


def no_folder_fsync(folder: Path) -> None:
    fsync = os.fsync

    def refuse_folders(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(handle)

    os.fsync = refuse_folders


def no_posix_modules(folder: Path) -> None:
    """As on Windows, for our own modules; torch may have them."""
    importlib.import_module("torch")
    assert not any(name.startswith("nanochat") for name in sys.modules)
    for name in ("resource", "fcntl"):
        sys.modules[name] = None  # importing it raises ImportError
    del os.sysconf


def closed_streams(folder: Path) -> None:
    os.close(0)
    os.close(1)
    sys.stdin = sys.stdout = None


def read_only_home(folder: Path) -> None:
    mount(folder, READ_ONLY, "")
    os.environ["HOME"] = str(folder)


def plain(folder: Path) -> None:
    pass


@dataclass(frozen=True)
class Case:
    """An environment, and what the pipeline says in it."""

    prepare: Callable[[Path], None]
    warning: str | None = None  # what the one warning says, as a pattern
    compiles: bool = False
    fresh: bool = False
    answers: bool = True  # whether standard output shows what it prints


CASES = {
    "no compiler": Case(
        no_compiler, r"No working C\+\+ compiler .* runs uncompiled", compiles=True
    ),
    "broken compiler": Case(broken_compiler, "'omp.h' file not found", compiles=True),
    "noexec TMPDIR": Case(noexec_temporary_folder, "is mounted noexec", compiles=True),
    "full TMPDIR": Case(full_temporary_folder, "No space left on device", compiles=True),
    "TMPDIR with a space": Case(temporary_folder_with_a_space, "has a space", compiles=True),
    "no chmod": Case(no_chmod),
    "no fsync of folders": Case(no_folder_fsync, "cannot sync folders"),
    "no resource, fcntl or sysconf": Case(no_posix_modules, "no file locks", fresh=True),
    "ASCII console": Case(plain, fresh=True),
    "closed stdin and stdout": Case(closed_streams, answers=False),
    "read-only HOME": Case(read_only_home),
}


@pytest.mark.parametrize("name", CASES)
def test_the_pipeline_runs_to_its_end(name, tmp_path):
    case = CASES[name]
    for folder in ("environment", "data", "base"):
        (tmp_path / folder).mkdir()
    write_data(tmp_path / "data")
    status = run_fresh(name, tmp_path) if case.fresh else run_forked(name, tmp_path)
    if status == NO_MOUNT:
        pytest.skip("mounting is not allowed here")
    out, err = ((tmp_path / stream).read_text("utf-8") for stream in ("stdout", "stderr"))
    assert status == 0, out + err
    assert "Traceback" not in out + err
    said = [line for line in (out + err).splitlines() if line.startswith("warning:")]
    kinds = {re.sub(rf"{tmp_path}\S*", "PATH", line) for line in said}
    assert len(kinds) == (case.warning is not None), said
    assert all(re.search(case.warning, line) for line in said)
    check_files(tmp_path / "base" / "runs" / "r")
    if case.answers:
        assert r"\u4f60\u597d" in out  # the sample's prompt, escaped


def check_files(run_dir: Path) -> None:
    """Both models load, both stages are complete, and the report shows the text as it is."""
    from nanochat import checkpoint_manager
    from nanochat.system.distributed import single_run

    for stage in ("base_train", "chat_sft"):
        found = checkpoint_manager.latest(run_dir / stage)
        checkpoint_manager.load(found, single_run())
        assert (run_dir / stage / "result.json").exists()
    assert GREETINGS[0] in (run_dir / "report.html").read_text("utf-8")


def run_forked(name: str, folder: Path) -> int | None:
    """The exit status of a case in a process forked from one that has imported everything."""
    context = multiprocessing.get_context("forkserver")
    stages = [f"nanochat.stages.{stage}" for stage in STAGES]
    context.set_forkserver_preload([__name__, *stages, "torch._inductor.compile_fx"])
    process = context.Process(target=run_case, args=(name, folder))
    process.start()
    process.join()
    return process.exitcode


def run_fresh(name: str, folder: Path) -> int:
    """The exit status of a case in a new process."""
    command = [sys.executable, "-m", __name__, name, str(folder)]
    return subprocess.run(command, cwd=ROOT, check=False).returncode


def write_data(folder: Path) -> None:
    """Text and conversations in several scripts."""
    texts = [{"text": f"{greeting} {i}. " * 20} for i in range(20) for greeting in GREETINGS]
    chats = [
        {
            "messages": [
                {"role": "user", "content": f"{greeting} {i}?"},
                {"role": "assistant", "content": f"{greeting}! 🙂"},
            ]
        }
        for i in range(8)
        for greeting in GREETINGS
    ]
    for name, rows in (("texts", texts), ("chats", chats)):
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")


# --- in the process of a case


def run_case(name: str, folder: Path) -> None:
    """Prepare the environment and run the pipeline; ends the process."""
    case = CASES[name]
    for number, stream in ((1, "stdout"), (2, "stderr")):
        with (folder / stream).open("wb") as file:
            os.dup2(file.fileno(), number)
        console = io.TextIOWrapper(
            os.fdopen(number, "wb", closefd=False), "ascii", write_through=True
        )
        setattr(sys, stream, console)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.update(NANOCHAT_BASE_DIR=str(folder / "base"), TMPDIR=str(folder))
    os.environ.pop("TORCHINDUCTOR_CACHE_DIR", None)  # torch sets it when imported
    case.prepare(folder / "environment")
    tempfile.tempdir = None  # read TMPDIR again
    from nanochat.system import config

    config.cli(lambda: pipeline(folder / "data", compiles=case.compiles))


def pipeline(data: Path, *, compiles: bool) -> None:
    """Every kind of stage, each as short as it can be."""
    from nanochat.stages import base_train, chat_cli, chat_sft, report, sample, tok_train

    run = ["--run", "r"]
    machine = [*run, "--device", "cpu", "--threads", "1", "--dtype", "float32"]
    loop = [*machine, "--device-batch-size", "4", "--tokens-per-step", "256", "--log-every", "1"]
    loop += [] if compiles else ["--no-compile"]
    model = ["--depth", "1", "--width", "32", "--heads", "2", "--sequence-length", "64"]
    tok_train.main([*run, "--data", str(data / "texts.jsonl"), "--vocab-size", "400"])
    more = ["--tokens", "1024", "--sample-every", "2", "--save-every", "2", "--val-rows", "4"]
    base_train.main([*loop, *model, *more, "--data", str(data / "texts.jsonl")])
    chat_sft.main([*loop, "--data", str(data / "chats.jsonl"), "--epochs", "0.5"])
    short = [*machine, "--max-new-tokens", "4"]
    chat_cli.main([*short, "-p", GREETINGS[1]])
    sample.main([*short, "--prompt", GREETINGS[0]])
    report.main(run)


def mount(folder: Path, flags: int, options: str) -> None:
    """Mount a tmpfs that only this process sees; ends it with NO_MOUNT if that is not allowed."""
    libc = ctypes.CDLL(None)
    user = os.getuid()
    if libc.unshare(NEW_MOUNTS) and libc.unshare(NEW_MOUNTS | NEW_USERS):
        os._exit(NO_MOUNT)
    if os.getuid() != user:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
    private = 0x44000  # MS_REC | MS_PRIVATE
    if libc.mount(b"none", b"/", None, private, None) or libc.mount(
        b"tmpfs", os.fsencode(folder), b"tmpfs", flags, options.encode()
    ):
        os._exit(NO_MOUNT)


if __name__ == "__main__":
    run_case(sys.argv[1], Path(sys.argv[2]))
