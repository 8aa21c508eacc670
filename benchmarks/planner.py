"""Compare what `nanochat plan` estimates with what base training takes: memory and time.

python benchmarks/planner.py                       # every case, a process each
python benchmarks/planner.py --only "d4 T256 V1024" --threads 1

Every case is the real stage on random text. Memory is the process's peak (VmHWM). Time is that of
the fastest step but the first, in which kernels are built; the peak speed that the estimate goes
by is measured in the same process right before and right after, and the better one counts. An
empty compile cache makes the compiler's memory that of a first run.
"""

import argparse
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from nanochat import device as devices
from nanochat import memory_limit, memory_plan, time_plan, tokenizer
from nanochat.distributed import DTYPES
from nanochat.gpt_config import GPTConfig
from nanochat.memory_plan import StepPlan
from nanochat.metrics import read_rows
from scripts import base_train

ROOT = Path(__file__).parent.parent
STEPS = 6
VAL_ROWS = 4


@dataclass(frozen=True)
class Case:
    """One configuration of a base training."""

    depth: int
    length: int
    vocab: int
    rows: int
    dtype: str
    compile: bool = True
    again: bool = False  # activations computed again
    passes: int = 1  # micro-batches of a step

    def __str__(self) -> str:
        dtype = {"bfloat16": "bf16", "float32": "fp32"}[self.dtype]
        kind = "compiled" if self.compile else "plain"
        words = [f"d{self.depth} T{self.length} V{self.vocab} B{self.rows} {dtype} {kind}"]
        words += ["checkpointing"] * self.again + [f"{self.passes} passes"] * (self.passes > 1)
        return " ".join(words)

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

    def words(self, threads: int) -> list[str]:
        """The command line of the stage."""
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
        words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
        words.append("--compile" if self.compile else "--no-compile")
        return words + ["--checkpoint-activations"] * self.again


def cases() -> list[Case]:
    """Small and large vocabularies, short and long texts, narrow and wide; with and without."""
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
    parser.add_argument("--only", default="", help="cases whose name begins so")
    parser.add_argument("--threads", type=int, default=devices.cores())
    parser.add_argument("--case", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.case:
        print(json.dumps(measure(Case(**json.loads(given.case)), given.threads)))
        return
    print("| case | memory MB | estimate | | ms a step | estimate | | peak TFLOP/s |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for case in cases():
            if str(case).startswith(given.only):
                print(row(case, run(case, given.threads, Path(folder))), flush=True)


def run(case: Case, threads: int, folder: Path) -> dict[str, float]:
    """Measure a case in a process of its own, with an empty compile cache."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "NANOCHAT_BASE_DIR": str(folder / str(case)),
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "compiled" / str(case)),
    }
    words = [sys.executable, __file__, "--case", json.dumps(asdict(case))]
    words += ["--threads", str(threads)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{case} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(case: Case, threads: int) -> dict[str, float]:
    """Train here; what it took and what was estimated."""
    resident = memory_limit.resident_bytes()
    torch.set_num_threads(threads)
    peaks = [peak(case)]
    prepare(case)
    base_train.main(case.words(threads))
    peaks.append(peak(case))
    folder = Path(os.environ["NANOCHAT_BASE_DIR"]) / "runs" / f"v{case.vocab}" / "base_train"
    rates = [r["tokens_per_s"] for r in read_rows(folder / "metrics.jsonl") if "loss" in r]
    tokens = case.rows * case.length * case.passes
    memory = memory_plan.estimate(case.config(), case.step(), resident_bytes=resident)
    seconds = time_plan.seconds_per_step(
        case.config(), case.step(), passes=case.passes, peak_flops=max(peaks)
    )
    return {
        "memory_bytes": devices.memory_used(torch.device("cpu")),
        "estimated_bytes": memory.total,
        "step_s": tokens / max(rates[1:]),
        "estimated_step_s": seconds,
        "peak_flops": max(peaks),
    }


def peak(case: Case) -> float:
    """FLOP/s of matrix products here and now, the best of a second."""
    device, dtype = torch.device("cpu"), DTYPES[case.dtype]
    return devices.matmul_tflops(device, dtype, budget_s=1.0) * 1e12


def prepare(case: Case) -> None:
    """Random text with a character tokenizer of just this vocabulary."""
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
    """A line of the table."""

    def compared(measured: str, estimated: str, unit: float) -> str:
        a, b = found[measured] / unit, found[estimated] / unit
        return f"{a:,.0f} | {b:,.0f} | {b / a - 1:+.0%}"

    memory = compared("memory_bytes", "estimated_bytes", 1e6)
    seconds = compared("step_s", "estimated_step_s", 1e-3)
    return f"| {case} | {memory} | {seconds} | {found['peak_flops'] / 1e12:.2f} |"


if __name__ == "__main__":
    main()
