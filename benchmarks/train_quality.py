"""Bits per byte on unseen text after a fixed training time, excluding all preparation.

python benchmarks/train_quality.py --train 'a.parquet,b.parquet' --test c.parquet
python benchmarks/train_quality.py --train ... --test ... -- --depth 4 --tokens-per-step 8192

The tokenizer is trained on the same text beforehand. A short rehearsal with the same options
prepares the tokens on disk and the compiled kernels, and measures how many steps fit in the time.
Time counts from the end of the first step and includes everything except the final evaluation.
Every byte of the unseen text is scored once: each document starts with a BOS and is divided into
windows of 512 tokens without overlap. Arguments after `--` are options of base_train; the defaults
are the best known.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
RECIPE = "--depth 4 --sequence-length 256 --tokens-per-step 4096 --matrix-lr 0.06 --pairs 0".split()
REHEARSAL_STEPS, WARM_STEPS = 60, 20
SAFE = 0.98  # plan for this share of the time, as the speed of machines drifts
WINDOW = 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", required=True, help="files to train on, comma-separated")
    parser.add_argument("--test", required=True, help="files to score, comma-separated")
    parser.add_argument("--seconds", type=float, default=300.0, help="training time [300]")
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--folder", type=Path, help="keeps tokenizer, tokens, kernels [temporary]")
    parser.add_argument("options", nargs="*", help="options of base_train, after --")
    given = parser.parse_args()
    options = given.options or RECIPE
    with contextlib.ExitStack() as stack:
        folder = given.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        os.environ["NANOCHAT_BASE_DIR"] = str(folder.resolve())
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder.resolve() / "compiled"))
        tokenizer = f"v{given.vocab_size}"
        if not (folder / "tokenizers" / tokenizer).exists():
            size = str(given.vocab_size)
            stage("tok_train", "--data", given.train, "--vocab-size", size, "--run", tokenizer)
        common = ["--data", given.train, "--tokenizer", tokenizer, *options]
        rehearsed = train(folder, [*common, "--run", "rehearsal"], steps=REHEARSAL_STEPS)
        steps = 1 + int(SAFE * given.seconds / rehearsed["step_s"])
        trained = train(folder, [*common, "--run", "quality"], steps=steps)
        stage("base_loss", "--run", "quality", "--documents", given.test, "--window", str(WINDOW))
        record = json.loads((folder / "runs" / "quality" / "base_loss" / "result.json").read_text())
        print(json.dumps({**trained, "results": record["results"]}))


def train(folder: Path, args: list[str], *, steps: int) -> dict[str, float]:
    """Run base training for `steps` steps; returns its speed according to its metrics."""
    tokens_per_step = int(args[args.index("--tokens-per-step") + 1])
    args = [*args, "--tokens", str(steps * tokens_per_step), "--log-every", "10"]
    begin_s = time.perf_counter()
    stage("base_train", *args, "--val-rows", "64")
    run = args[args.index("--run") + 1]
    lines = (folder / "runs" / run / "base_train" / "metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if "elapsed_s" in row]
    first, last = rows[0], rows[-1]
    warm = next((row for row in rows if row["step"] >= WARM_STEPS), first)
    return {
        "steps": last["step"],
        "tokens": last["tokens"],
        "training_s": last["elapsed_s"] - first["elapsed_s"],
        "step_s": (last["elapsed_s"] - warm["elapsed_s"]) / max(1, last["step"] - warm["step"]),
        "process_s": time.perf_counter() - begin_s,
    }


def stage(name: str, *args: str) -> None:
    """Run a stage in a separate process."""
    subprocess.run([sys.executable, "-m", f"scripts.{name}", *args], cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
