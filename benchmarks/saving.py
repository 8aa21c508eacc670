"""What saving costs training: the same steps with and without a checkpoint written beside them.

python benchmarks/saving.py --depth 8 --rounds 4

Runs base training on random text with a checkpoint every `--every` steps, and compares the time of
the steps from one save on with that of the same number of steps before the next.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from nanochat import tokenizer
from nanochat.trainer import Hook, Trainer
from scripts import base_train

VOCAB, TOKENS_PER_STEP, SAVE_EVERY = 8192, 8192, 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depth", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--every", type=int, default=6, help="steps from save to save, here")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["NANOCHAT_BASE_DIR"] = folder
        texts = write_data(Path(folder))
        ends = train(texts, given.depth, steps=given.every * (given.rounds + 1), every=given.every)
    report(ends, given.every)


def write_data(folder: Path) -> Path:
    """Random characters of a vocabulary of the wanted size, and its tokenizer."""
    letters = [chr(0x4E00 + i) for i in range(VOCAB - 9)]
    encoder = tokenizer.train_char(["".join(letters)])
    tokenizer.save(encoder, folder / "tokenizers" / "t" / "tokenizer.json")
    rng = np.random.default_rng(0)
    path = folder / "texts.jsonl"
    with path.open("w") as file:
        for _ in range(400):
            text = "".join(letters[i] for i in rng.integers(0, len(letters), 2000))
            file.write(json.dumps({"text": text}) + "\n")
    return path


def train(texts: Path, depth: int, *, steps: int, every: int) -> list[float]:
    """The times at which each step was done, its saving begun."""
    ends: list[float] = []
    build = Trainer.__init__

    def with_clock(trainer: Trainer, **options: object) -> None:
        hooks = [*options.pop("hooks"), Hook(lambda _: ends.append(time.perf_counter()), every=1)]
        build(trainer, hooks=hooks, **options)

    Trainer.__init__ = with_clock
    words = (
        f"--depth {depth} --sequence-length 512 --tokens-per-step {TOKENS_PER_STEP} --run saving"
    )
    words += f" --tokens {steps * TOKENS_PER_STEP} --save-every {every} --val-rows 1 --tokenizer t"
    base_train.main([*words.split(), "--data", str(texts)])
    return ends


def report(ends: list[float], every: int) -> None:
    """Half of the steps between two saves are those beside the writing."""
    steps = np.diff(ends)  # of step 2, 3, ...
    half = every // 2
    costs, plain = [], []
    for save in range(every, len(ends) - every, every):
        # steps[save - 2] ends with the hook that saves after step `save`
        beside = steps[save - 2 : save - 2 + half].sum()
        rest = steps[save - 2 + half : save - 2 + 2 * half].sum()
        costs.append(beside - rest)
        plain.append(rest / half)
    step_s = statistics.median(plain)
    for cost in costs:
        print(f"a save costs {cost:.2f} s, a step takes {step_s:.2f} s")
    share = statistics.median(costs) / (SAVE_EVERY * step_s)
    print(f"every {SAVE_EVERY} steps: {share:.2%} of the training time (median of {len(costs)})")


if __name__ == "__main__":
    main()
