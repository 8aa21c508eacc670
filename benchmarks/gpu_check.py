"""Test and benchmark this package on one CUDA machine in under ten minutes.

bash benchmarks/gpu_check.sh --out found              # everything, the most important first
bash benchmarks/gpu_check.sh --only "train 24 bf16" --only attention
bash benchmarks/gpu_check.sh --device cpu             # a rehearsal at tiny sizes

Times training steps and generation, counts what a step waits for and compiles again, compares
attention backends with float64 and 8-bit linears with bf16, runs base training (killed and resumed;
on all GPUs; in float32), steps of RL, all stages of pocket and the tests marked gpu. gpu_aims.py
says what must be reached. Each part runs in a separate process with a time limit: if one fails or
times out, the report says so and the rest continues; --only runs what the limit cut off. Needs
torch and no network; a part that needs another package, the compiled tokenizer or a second GPU says
so. Writes gpu_check.md (a section for HISTORY.md), gpu_check.json and gpu_check.log to the output
folder. Exit status 0: no part failed and no aim was missed.
"""

import argparse
import contextlib
import datetime
import faulthandler
import json
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gpu_aims
import gpu_report
import torch
from gpu_common import FULL, ROOT, TINY, Skipped, Work, reason, without_extension

from nanochat.system import device as devices

RESERVE_S = 8  # of a part's time, for the work after its last check of the clock
MISSING = "not here: "  # the status of a part that needs a package
CACHE = "TORCHINDUCTOR_CACHE_DIR"


@dataclass(frozen=True)
class Part:
    """A part and its arguments (name); it gets at most budget_s and is skipped below least_s."""

    name: str
    budget_s: float
    least_s: float = 20


# The most telling first: what does not fit into the time limit is named in the report, and can be
# run alone with --only.
FULL_PARTS = (
    Part("train 24 bf16", 170, 60),
    Part("train 24 fp8", 150, 60),
    Part("decode 12", 50),
    Part("attention", 60),
    Part("resume", 90, 40),
    Part("ranks", 240, 60),
    Part("float32", 60),
    Part("train 22 fp8 49152 32", 150, 60),
    Part("rl 12", 60),
    Part("tests", 60),
    Part("pocket", 200, 60),
    Part("train 22 fp8 49152 16", 150, 60),
    Part("decode 24", 60),
    Part("fp8", 75),
    Part("train 12 bf16", 90, 40),
    Part("train 12 fp8", 90, 40),
    Part("train 20 bf16", 130, 50),
    Part("decode 20", 45),
    Part("train 20 fp8", 120, 50),
)
TINY_PARTS = tuple(
    Part(name, 500, 0)
    for name in (
        "train 2 bf16",
        "train 2 fp8",
        "train 2 fp8 768 4",
        "decode 2",
        "attention",
        "resume",
        "ranks",
        "float32",
        "rl 2",
        "tests",
        "pocket",
        "fp8",
    )
)


def main() -> int:
    given = parse(sys.argv[1:])
    if given.part is not None:
        return run_here(given)
    try:
        device = devices.choose_device(given.device)
    except Exception as error:
        print(f"gpu_check: {error}", file=sys.stderr)
        return 1
    if given.device is None and device.type != "cuda":
        print(
            f"gpu_check: no CUDA GPU here (torch {torch.__version__}); --device cpu rehearses all "
            "parts at tiny sizes",
            file=sys.stderr,
        )
        return 1
    out = Path(given.out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    parts = FULL_PARTS if device.type == "cuda" else TINY_PARTS
    chosen = [part for part in parts if given.only is None or part.name in given.only]
    if not chosen:
        print(
            f"gpu_check: no such part; choose from {', '.join(p.name for p in parts)}",
            file=sys.stderr,
        )
        return 1
    facts = machine(device)
    with caches() as cache_note:
        facts["said"] = f"{facts['said']} {cache_note}"
        statuses = check(chosen, out, facts, given)
    print((out / "gpu_check.md").read_text(encoding="utf-8"))
    return 0 if green(statuses, json.loads((out / "gpu_check.json").read_text())["rows"]) else 3


def green(statuses: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]]) -> bool:
    """Whether no aim was missed, and every part ran for which the packages are installed."""
    missed = any("missed" in verdict for *_, verdict in gpu_aims.verdicts(rows))
    return not missed and all(s["status"].startswith(("ok", MISSING)) for s in statuses)


def parse(args: Sequence[str]) -> argparse.Namespace:
    """Parse the flags; the last three are for the processes that this one starts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    folder = os.environ.get("OUT", "gpu_check")
    parser.add_argument("--out", default=folder, help="output folder [$OUT or gpu_check]")
    parser.add_argument("--device", help="cuda, or cpu for a rehearsal at tiny sizes")
    parser.add_argument("--only", action="append", help="run this part only; can be repeated")
    parser.add_argument(
        "--budget-s", type=float, default=570, help="total time limit in seconds [570]"
    )
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    for hidden in ("--part", "--rows"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)  # of time.time()
    return parser.parse_args(args)


def check(
    parts: Sequence[Part], out: Path, facts: dict[str, Any], given: argparse.Namespace
) -> list[dict[str, Any]]:
    """Run the parts one by one; the report is rewritten after each."""
    begin_s = time.perf_counter()
    log = out / "gpu_check.log"
    log.write_text("", encoding="utf-8")
    statuses: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for part in parts:
        left_s = given.budget_s - (time.perf_counter() - begin_s)
        if left_s < part.least_s or left_s <= 0:
            status = f"skipped: only {max(0.0, left_s):.0f} s left"
            statuses.append({"name": part.name, "status": status, "seconds": 0.0})
        else:
            print(f"gpu_check: {part.name}", file=sys.stderr, flush=True)
            limited = replace(part, budget_s=min(part.budget_s, left_s))
            ended, found = run_part(limited, log, device=given.device, compiled=given.compile)
            statuses.append(ended)
            rows += found
        raw = json.dumps({"facts": facts, "parts": statuses, "rows": rows}, indent=1)
        (out / "gpu_check.json").write_text(raw, encoding="utf-8")
        text = gpu_report.markdown(facts, statuses, rows)
        (out / "gpu_check.md").write_text(text, encoding="utf-8")
    return statuses


def run_part(
    part: Part, log: Path, *, device: str | None, compiled: bool
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Run a part in a separate process; returns its status and the rows it recorded."""
    begin_s = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        until = str(time.time() + part.budget_s)
        args = ["--part", part.name, "--rows", str(path), "--until", until]
        args += ["--device", device] if device else []
        args += [] if compiled else ["--no-compile"]
        with log.open("a", encoding="utf-8") as file:
            file.write(f"== {part.name}\n")
            file.flush()
            process = subprocess.Popen(
                [sys.executable, __file__, *args],
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": python_path()},
            )
            try:
                process.wait(part.budget_s)
                status = "ok"
            except subprocess.TimeoutExpired:
                status = f"cut short after {part.budget_s:.3g} s"
            # This also kills compiler workers that are still running.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        rows = [{**row, "part": part.name} for row in read_rows(path)]
    failures = [row["text"] for row in rows if row["table"] == "failure"]
    for row in rows:
        if row["table"] == "missing":
            status = f"{MISSING}{row['text']}"
    if status == "ok" and process.returncode != 0:
        last = log.read_text(encoding="utf-8", errors="replace").strip().split("\n")[-1][:200]
        status = f"failed: {failures[0] if failures else f'exit {process.returncode}: {last}'}"
    seconds = time.perf_counter() - begin_s
    return {"name": part.name, "status": status, "seconds": seconds}, rows


def python_path() -> str:
    """A PYTHONPATH that imports this checkout, even if another copy is installed."""
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a part's file."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):  # cut off: the part was killed
            rows.append(json.loads(line))
    return rows


@contextlib.contextmanager
def caches() -> Iterator[str]:
    """An empty compile cache shared by all parts, unless one is set; yields a note about it."""
    if CACHE in os.environ:
        yield f"Compile cache: {os.environ[CACHE]}."
        return
    with tempfile.TemporaryDirectory(prefix="gpu_check_", ignore_cleanup_errors=True) as folder:
        os.environ[CACHE] = folder
        yield "Compile cache empty at the start and kept from part to part."


def machine(device: torch.device) -> dict[str, Any]:
    """What the report says about the machine."""
    commit = None
    with contextlib.suppress(ImportError):  # a package that only some parts need
        from nanochat.training import stage_record

        commit = stage_record.git_commit()
    peak = devices.peak_flops(device, torch.bfloat16) if device.type == "cuda" else None
    facts = {
        "date": datetime.date.today().isoformat(),
        "device": devices.describe(device),
        "driver": driver() if device.type == "cuda" else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpu": f"{devices.cpu_name()}, {devices.cores()} cores",
        "command": shlex.join(["bash", "benchmarks/gpu_check.sh", *without_out(sys.argv[1:])]),
        "commit": commit,
        "said": "A rehearsal at tiny sizes: its figures are meaningless.",
    }
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
        facts["said"] = f"{memory / 1e9:.0f} GB; {facts['cpu']}; " + (
            f"peak {peak / 1e12:,.0f} TFLOP/s in bf16." if peak else "peak unknown, so no MFU."
        )
    return facts


def without_out(args: Sequence[str]) -> list[str]:
    """The flags without --out, which does not affect the figures."""
    kept, args = [], list(args)
    while args:
        arg = args.pop(0)
        if arg == "--out":
            args = args[1:]
        elif not arg.startswith("--out="):
            kept.append(arg)
    return kept


def driver() -> str | None:
    """The driver version according to nvidia-smi; None if unknown."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
        return done.stdout.strip().split("\n")[0] or None
    return None


def run_here(given: argparse.Namespace) -> int:
    """Run one part in this process."""
    device = devices.choose_device(given.device)
    if device.type == "cuda":
        device = torch.device("cuda", device.index or 0)
        torch.cuda.set_device(device)
    left_s = given.until - time.time()
    work = Work(
        device=device,
        scale=FULL if device.type == "cuda" else TINY,
        compiled=given.compile,
        deadline_s=time.perf_counter() + left_s - RESERVE_S,
        path=Path(given.rows),
    )
    # Log a traceback shortly before the part is killed.
    faulthandler.dump_traceback_later(max(left_s - 2, 0.1))
    try:
        run_named(work, given.part)
    except (Skipped, ModuleNotFoundError) as error:
        work.add("missing", text=str(error))
    except BaseException as error:
        traceback.print_exc()
        work.add("failure", text=reason(error))
        return 1
    return 0


def run_named(work: Work, name: str) -> None:
    """Run the part of this name."""
    import gpu_kernels
    import gpu_tests

    match name.split():
        case ["train", depth, precision, *sizes]:
            import gpu_models

            gpu_models.check_training(work, int(depth), precision, *map(int, sizes))
        case ["decode", depth]:
            import gpu_models

            gpu_models.check_decoding(work, int(depth))
        case ["rl", depth]:
            import gpu_stages

            gpu_stages.check_rl(work, int(depth))
        case ["resume" | "ranks" | "float32" | "pocket" as what]:
            import gpu_stages

            getattr(gpu_stages, {"resume": "check_resuming"}.get(what, f"check_{what}"))(work)
        case ["attention"]:
            gpu_kernels.check_attention(work)
        case ["fp8"]:
            gpu_kernels.check_fp8(work)
        case ["tests"]:
            gpu_tests.run_tests(work)
        case _:
            raise ValueError(f"no part is called {name!r}")


if __name__ == "__main__":
    if without_extension():
        print("gpu_check: the compiled tokenizer is not built; using a stand-in")
    sys.exit(main())
