"""Compare the estimates of `nanochat plan` with the memory and time of actual base training.

python benchmarks/planner.py                       # all cases, one process each
python benchmarks/planner.py --only "d4 T256" --wall --threads 2

Every case runs the real stage on random text. Memory is the process's peak (VmHWM); the compile
cache is empty, so compilation uses as much memory as on a first run. Time is the median over all
steps except the first ones, which compile kernels. On a shared machine only the CPU time of a
single thread is reliable, so that is measured unless --wall is given. The peak speed used for the
estimate is measured with the same clock after each step.
"""

import argparse
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from nanochat import tokenizer
from nanochat.gpt import GPTConfig
from nanochat.stages import base_train
from nanochat.system import device as devices
from nanochat.system import memory as memory_limit
from nanochat.system.distributed import DTYPES
from nanochat.training import memory_plan, time_plan
from nanochat.training.memory_plan import StepPlan
from nanochat.training.trainer import Trainer

ROOT = Path(__file__).parent.parent
STEPS, WARM_STEPS = 6, 2
VAL_ROWS = 4


@dataclass(frozen=True)
class Case:
    """One configuration of base training."""

    depth: int
    length: int
    vocab: int
    rows: int
    dtype: str
    compile: bool = True
    again: bool = False  # recompute activations
    passes: int = 1  # micro-batches per step

    def __str__(self) -> str:
        dtype = {"bfloat16": "bf16", "float32": "fp32"}[self.dtype]
        kind = "compiled" if self.compile else "plain"
        parts = [f"d{self.depth} T{self.length} V{self.vocab} B{self.rows} {dtype} {kind}"]
        parts += ["checkpointing"] * self.again + [f"{self.passes} passes"] * (self.passes > 1)
        return " ".join(parts)

    def config(self) -> GPTConfig:
        return GPTConfig(depth=self.depth, sequence_length=self.length, vocab_size=self.vocab)

    def step(self) -> StepPlan:
        return StepPlan(
            rows=self.rows,
            length=self.length,
            dtype=DTYPES[self.dtype],
            accumulates=self.passes > 1,
            compiled=self.compile,
            checkpoint_activations=self.again,
        )

    def args(self, threads: int) -> list[str]:
        """The arguments of the stage."""
        per_step = self.rows * self.length * self.passes
        flags = {
            "run": f"v{self.vocab}",
            "data": texts_path(self.vocab),
            "depth": self.depth,
            "sequence-length": self.length,
            "tokens-per-step": per_step,
            "tokens": STEPS * per_step,
            "device-batch-size": self.rows,
            "dtype": self.dtype,
            "device": "cpu",
            "threads": threads,
            "log-every": 1,
            "val-rows": VAL_ROWS,
        }
        args = [arg for name, value in flags.items() for arg in (f"--{name}", str(value))]
        args.append("--compile" if self.compile else "--no-compile")
        return args + ["--checkpoint-activations"] * self.again


def cases() -> list[Case]:
    """Small and large vocabularies, sequence lengths and widths; plain and compiled."""
    plain = [
        Case(2, 256, 1024, 16, "float32", compile=False),
        Case(4, 256, 1024, 16, "bfloat16", compile=False),
        Case(4, 256, 1024, 16, "bfloat16", compile=False, again=True),
        Case(4, 512, 8192, 8, "float32", compile=False),
        Case(4, 512, 8192, 8, "float32", compile=False, again=True),
        Case(4, 512, 8192, 4, "float32", compile=False, passes=2),
        Case(6, 1024, 8192, 4, "bfloat16", compile=False),
        Case(6, 512, 32768, 8, "bfloat16", compile=False),
    ]
    compiled = [
        Case(2, 256, 1024, 16, "bfloat16"),
        Case(4, 256, 1024, 16, "bfloat16"),
        Case(4, 256, 1024, 16, "float32"),
        Case(4, 256, 1024, 16, "bfloat16", again=True),
        Case(4, 512, 8192, 8, "bfloat16"),
        Case(4, 1024, 1024, 4, "bfloat16"),
        Case(6, 256, 8192, 16, "bfloat16"),
        Case(6, 512, 32768, 8, "bfloat16"),
    ]
    return plain + compiled


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="run cases whose name starts with this")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--wall", action="store_true", help="measure wall time, not CPU time")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.case:
        clock = time.perf_counter if given.wall else time.process_time
        print(json.dumps(measure(Case(**json.loads(given.case)), given.threads, clock)))
        return
    print("| case | memory MB | estimate | | ms per step | estimate | | peak TFLOP/s |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for case in cases():
            if str(case).startswith(given.only):
                print(row(case, run(case, given, Path(folder))), flush=True)


def run(case: Case, given: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Measure a case in a separate process with an empty compile cache."""
    name = str(case).replace(" ", "_")
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "NANOCHAT_BASE_DIR": str(folder / name),
        "THP_MEM_ALLOC_ENABLE": "1",  # set here, as the probe's tensors already need it
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "compiled" / name),
    }
    command = [sys.executable, __file__, "--case", json.dumps(asdict(case))]
    command += ["--threads", str(given.threads)] + ["--wall"] * given.wall
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{case} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(case: Case, threads: int, clock: Callable[[], float]) -> dict[str, float]:
    """Train in this process; returns measured and estimated values."""
    prepare(case)
    probe = Probe(DTYPES[case.dtype], clock)
    resident = memory_limit.resident_bytes()
    steps_s: list[float] = []
    rates: list[float] = []
    step_of_trainer = Trainer._step

    def timed(trainer: Trainer) -> None:
        begin_s = clock()
        step_of_trainer(trainer)
        steps_s.append(clock() - begin_s)
        rates.append(probe.rate())

    Trainer._step = timed  # type: ignore[method-assign]
    base_train.main(case.args(threads))
    memory_bytes = devices.memory_used(torch.device("cpu"))
    peak = statistics.median(rates)
    memory = memory_plan.estimate(case.config(), case.step(), resident_bytes=resident)
    return {
        "memory_bytes": memory_bytes,
        "estimated_bytes": memory.total,
        "step_s": statistics.median(steps_s[WARM_STEPS:]),
        "estimated_step_s": time_plan.seconds_per_step(
            case.config(), case.step(), passes=case.passes, peak_flops=peak
        ),
        "peak_flops": peak,
    }


class Probe:
    """The matrix product whose peak speed `nanochat plan` measures, on preallocated tensors."""

    def __init__(self, dtype: torch.dtype, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.a, self.b = torch.ones(4096, 256, dtype=dtype), torch.ones(256, 1024, dtype=dtype)
        self.out = self.a @ self.b

    def rate(self) -> float:
        """FLOP/s, measured for 0.2 seconds."""
        count, begin_s = 0, self.clock()
        while self.clock() - begin_s < 0.2:
            torch.mm(self.a, self.b, out=self.out)
            count += 1
        return 2 * self.a.numel() * self.b.shape[1] * count / (self.clock() - begin_s)


def prepare(case: Case) -> None:
    """Write random text and a character tokenizer with exactly this vocabulary size."""
    specials = tokenizer.train_char(["a"]).vocab_size - 1
    blocks = itertools.chain(range(0x3400, 0x4DC0), range(0x4E00, 0xA000), range(0xAC00, 0xD7A4))
    letters = [chr(code) for code in itertools.islice(blocks, case.vocab - specials)]
    dice = random.Random(0)
    size = 8 * STEPS * case.rows * case.passes
    texts = ["".join(dice.choices(letters, k=case.length // 4)) for _ in range(size)]
    path = texts_path(case.vocab)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    folder = path.parent / "tokenizers" / f"v{case.vocab}"
    tokenizer.save(tokenizer.train_char(["".join(letters)]), folder / "tokenizer.json")


def texts_path(vocab: int) -> Path:
    return Path(os.environ["NANOCHAT_BASE_DIR"]) / f"texts{vocab}.jsonl"


def row(case: Case, found: dict[str, float]) -> str:
    """One row of the table."""

    def compared(measured: str, estimated: str, unit: float) -> str:
        a, b = found[measured] / unit, found[estimated] / unit
        return f"{a:,.0f} | {b:,.0f} | {b / a - 1:+.0%}"

    memory = compared("memory_bytes", "estimated_bytes", 1e6)
    seconds = compared("step_s", "estimated_step_s", 1e-3)
    return f"| {case} | {memory} | {seconds} | {found['peak_flops'] / 1e12:.2f} |"


if __name__ == "__main__":
    main()
