"""The cost of saving: training steps with and without a checkpoint being written in the background.

python benchmarks/saving.py --depth 8 --rounds 4

Runs base training on random text with a checkpoint every `--every` steps. Compares the time of the
steps right after each save with that of the same number of steps right before the next.
"""

import argparse
import statistics
import time

import base_training
import numpy as np

from nanochat.training.trainer import Hook

VOCAB, TOKENS_PER_STEP, SAVE_EVERY = 8192, 8192, 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depth", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--every", type=int, default=6, help="steps between saves in this run [6]")
    given = parser.parse_args()
    tokens = given.every * (given.rounds + 1) * TOKENS_PER_STEP
    args = f"--depth {given.depth} --sequence-length 512 --tokens-per-step {TOKENS_PER_STEP}"
    args += f" --tokens {tokens} --save-every {given.every} --val-rows 1 --run saving"
    ends: list[float] = []  # of each step, including any wait for the save that follows it
    clock = Hook(lambda _: ends.append(time.perf_counter()), every=1)
    base_training.run(args.split(), lambda _: [clock], vocab_size=VOCAB, tokens=tokens)
    report(ends, given.every)


def report(ends: list[float], every: int) -> None:
    """Compare the half of the steps after a save, during the writing, with the other half."""
    steps = np.diff(ends)  # of step 2, 3, ...
    half = every // 2
    costs, plain = [], []
    for save in range(every, len(ends) - every + 1, every):
        during = steps[save - 2 : save - 2 + half].sum()  # starts with the step that is saved
        rest = steps[save - 2 + half : save - 2 + 2 * half].sum()
        costs.append(during - rest)
        plain.append(rest / half)
    step_s = statistics.median(plain)
    for cost in costs:
        print(f"a save costs {cost:.2f} s, a step takes {step_s:.2f} s")
    share = statistics.median(costs) / (SAVE_EVERY * step_s)
    print(f"every {SAVE_EVERY} steps: {share:.2%} of the training time (median of {len(costs)})")


if __name__ == "__main__":
    main()
