"""What one CUDA machine makes of this package, in under ten minutes, as tables for RESULTS.md.

bash benchmarks/gpu_check.sh --out found              # everything, the most important first
bash benchmarks/gpu_check.sh --only "train 24 bf16" --only attention
bash benchmarks/gpu_check.sh --device cpu             # a rehearsal at tiny sizes

The tests marked gpu, attention backends against float64, 8-bit linears, training steps, generation.
Each part is a process of its own with a share of the time: what fails or takes too long is said in
the report and the rest goes on. It needs torch and what nanochat imports; no network, no pytest and
no compiled tokenizer. Written to the folder: gpu_check.md, gpu_check.json and gpu_check.log.
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

import gpu_report
import torch
from gpu_common import FULL, TINY, Work, reason, without_extension

from nanochat.system import device as devices

ROOT = Path(__file__).parent.parent
RESERVE_S = 8  # of a part's time, for what it does after it has looked at the clock
CACHE = "TORCHINDUCTOR_CACHE_DIR"


@dataclass(frozen=True)
class Part:
    """A process: its name is its first words, budget_s its longest time, least_s its shortest."""

    name: str
    budget_s: float
    least_s: float = 20


FULL_PARTS = (
    Part("train 24 bf16", 190, 60),
    Part("train 24 fp8", 170, 60),
    Part("tests", 60),
    Part("attention", 60),
    Part("decode 24", 60),
    Part("train 12 bf16", 90, 40),
    Part("fp8", 75),
    Part("train 20 bf16", 130, 50),
    Part("decode 12", 40),
    Part("decode 20", 45),
    Part("train 20 fp8", 120, 50),
    Part("train 12 fp8", 90, 40),
)
TINY_PARTS = (
    Part("train 2 bf16", 120, 0),
    Part("train 2 fp8", 120, 0),
    Part("tests", 120, 0),
    Part("attention", 120, 0),
    Part("decode 2", 120, 0),
    Part("fp8", 120, 0),
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
        print(f"gpu_check: the parts are {', '.join(p.name for p in parts)}", file=sys.stderr)
        return 1
    facts = machine(device)
    with caches() as said:
        facts["said"] = f"{facts['said']} {said}"
        statuses = check(chosen, out, facts, given)
    print((out / "gpu_check.md").read_text(encoding="utf-8"))
    return 0 if all(status["status"] == "ok" for status in statuses) else 3


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The flags; the last three are for the processes that this one starts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    folder = os.environ.get("OUT", "gpu_check")
    parser.add_argument("--out", default=folder, help="folder of the report [$OUT or gpu_check]")
    parser.add_argument("--device", help="cuda, or cpu for a rehearsal at tiny sizes")
    parser.add_argument("--only", action="append", help="a part's name; may be given again")
    parser.add_argument("--budget-s", type=float, default=570, help="seconds of all parts [570]")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    for hidden in ("--part", "--rows"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)  # of time.time()
    return parser.parse_args(words)


def check(
    parts: Sequence[Part], out: Path, facts: dict[str, Any], given: argparse.Namespace
) -> list[dict[str, Any]]:
    """Run the parts one after another; the report is written anew after each."""
    begin_s = time.perf_counter()
    log = out / "gpu_check.log"
    log.write_text("", encoding="utf-8")
    statuses: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for part in parts:
        left_s = given.budget_s - (time.perf_counter() - begin_s)
        if left_s < part.least_s or left_s <= 0:
            status = f"skipped: {max(0.0, left_s):.0f} s are left"
            statuses.append({"name": part.name, "status": status, "seconds": 0.0})
        else:
            print(f"gpu_check: {part.name}", file=sys.stderr, flush=True)
            whole = replace(part, budget_s=min(part.budget_s, left_s))
            ended, found = run_part(whole, log, device=given.device, compiled=given.compile)
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
    """A part in a process of its own: how it ended, and its figures up to there."""
    begin_s = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        until = str(time.time() + part.budget_s)
        words = ["--part", part.name, "--rows", str(path), "--until", until]
        words += ["--device", device] if device else []
        words += [] if compiled else ["--no-compile"]
        with log.open("a", encoding="utf-8") as file:
            file.write(f"== {part.name}\n")
            file.flush()
            process = subprocess.Popen(
                [sys.executable, __file__, *words],
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
            # The compiler's helpers, if any are left, end with it.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        rows = [{**row, "part": part.name} for row in read_rows(path)]
    failures = [row["text"] for row in rows if row["table"] == "failure"]
    if status == "ok" and process.returncode != 0:
        last = log.read_text(encoding="utf-8", errors="replace").strip().split("\n")[-1][:200]
        status = f"failed: {failures[0] if failures else f'exit {process.returncode}: {last}'}"
    seconds = time.perf_counter() - begin_s
    return {"name": part.name, "status": status, "seconds": seconds}, rows


def python_path() -> str:
    """Where this checkout is imported from, whatever is installed."""
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a part's file."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):  # torn: the part was killed
            rows.append(json.loads(line))
    return rows


@contextlib.contextmanager
def caches() -> Iterator[str]:
    """An empty compile cache for all parts together, unless one is named; says which in words."""
    if CACHE in os.environ:
        yield f"Compile cache: {os.environ[CACHE]}."
        return
    with tempfile.TemporaryDirectory(prefix="gpu_check_", ignore_cleanup_errors=True) as folder:
        os.environ[CACHE] = folder
        yield "Compile cache empty at the start and kept from part to part."


def machine(device: torch.device) -> dict[str, Any]:
    """What the report says of the machine."""
    commit = None
    with contextlib.suppress(ImportError):  # of a package that only some parts need
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
        "command": shlex.join(["bash", "benchmarks/gpu_check.sh", *shown(sys.argv[1:])]),
        "commit": commit,
        "said": "A rehearsal at tiny sizes: its figures mean nothing.",
    }
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
        facts["said"] = f"{memory / 1e9:.0f} GB; {facts['cpu']}; " + (
            f"peak {peak / 1e12:,.0f} TFLOP/s in bf16." if peak else "no peak known, so no MFU."
        )
    return facts


def shown(words: Sequence[str]) -> list[str]:
    """The flags without the folder, which changes no figure."""
    kept, words = [], list(words)
    while words:
        word = words.pop(0)
        if word == "--out":
            words = words[1:]
        elif not word.startswith("--out="):
            kept.append(word)
    return kept


def driver() -> str | None:
    """The driver's version, as nvidia-smi has it."""
    if shutil.which("nvidia-smi") is None:
        return None
    words = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(words, capture_output=True, text=True, timeout=20)
        return done.stdout.strip().split("\n")[0] or None
    return None


def run_here(given: argparse.Namespace) -> int:
    """One part, in this process."""
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
    # Shortly before it is killed the log gets to know where it was.
    faulthandler.dump_traceback_later(max(left_s - 2, 0.1))
    try:
        run_words(work, given.part.split())
    except BaseException as error:
        traceback.print_exc()
        work.add("failure", text=reason(error))
        return 1
    return 0


def run_words(work: Work, words: Sequence[str]) -> None:
    """The part that the words name."""
    import gpu_kernels
    import gpu_models
    import gpu_tests

    match words:
        case ["train", depth, precision]:
            gpu_models.check_training(work, int(depth), precision)
        case ["decode", depth]:
            gpu_models.check_decoding(work, int(depth))
        case ["attention"]:
            gpu_kernels.check_attention(work)
        case ["fp8"]:
            gpu_kernels.check_fp8(work)
        case ["tests"]:
            gpu_tests.run_tests(work)
        case _:
            raise ValueError(f"no part is called {' '.join(words)!r}")


if __name__ == "__main__":
    if without_extension():
        print("gpu_check: the compiled tokenizer is not built: a stand-in takes its place")
    sys.exit(main())
