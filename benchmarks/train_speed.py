"""Tokens per second of base training, and its FLOP/s relative to this machine's matrix products.

python benchmarks/train_speed.py                             # depth 4 in bf16 and fp32, depth 8
python benchmarks/train_speed.py --only "4 512 bfloat16" --steps 30
python benchmarks/train_speed.py --only "8 1024 bfloat16" --tokens-per-step 32768 --steps 6

The probe measures the speed of the model's own matrix products (forward and both backward ones,
same dtype) between steps of the same process. A step's time includes data, forward, backward and
optimizer. Its FLOPs are those of the model only: 6 per weight and token, plus causal attention over
the keys that a query sees.
"""

import argparse
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field

import base_training
import torch
from torch import Tensor

from nanochat.gpt import GPT, GPTConfig, flops
from nanochat.system import device as devices
from nanochat.system.distributed import DTYPES
from nanochat.training.batch_size import useful_rows
from nanochat.training.trainer import Hook, Trainer

VOCAB = 8192
CASES = ("4 512 bfloat16", "4 512 float32", "8 1024 bfloat16")  # depth, sequence length, dtype
SKIPPED = 3  # steps that build kernels and warm up
PROBE_EVERY = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="one case: DEPTH SEQUENCE_LENGTH DTYPE")
    parser.add_argument("--steps", type=int, default=24, help="number of timed steps [24]")
    parser.add_argument("--tokens-per-step", type=int, default=8192)
    parser.add_argument("--rows", type=int, help="per micro-batch [as --device-batch-size auto]")
    given = parser.parse_args()
    if given.only is not None:
        measure(given)
        return
    for case in CASES:  # each in a separate process, to measure its memory
        subprocess.run([sys.executable, __file__, *sys.argv[1:], "--only", case], check=True)


def measure(given: argparse.Namespace) -> None:
    """Train one case and print a line of results."""
    depth, length, dtype = given.only.split()
    sizes = GPTConfig(vocab_size=VOCAB, depth=int(depth), sequence_length=int(length))
    tokens_per_step = given.tokens_per_step
    max_rows = tokens_per_step // sizes.sequence_length
    rows = given.rows or useful_rows(max_rows, sizes.sequence_length, "cpu")
    tokens = (given.steps + SKIPPED) * tokens_per_step
    args = f"--depth {depth} --sequence-length {length} --dtype {dtype} --val-rows 1 --run speed"
    args += f" --tokens-per-step {tokens_per_step} --tokens {tokens} --warmup-steps 0"
    args += f" --device-batch-size {rows} --log-every 1000"
    probe = Probe(sizes, rows * sizes.sequence_length, DTYPES[dtype])
    clock = Clock(probe)
    base_training.run(
        args.split(), lambda _: [Hook(clock.tick, every=1)], vocab_size=VOCAB, tokens=tokens
    )
    step_s = statistics.median(clock.steps_s)
    rate = statistics.median(clock.rates)
    achieved = flops.flops_per_token(sizes, sizes.sequence_length) * tokens_per_step / step_s
    print(
        f"depth {depth}, width {sizes.width}, T {length}, {dtype}, {tokens_per_step:,} tokens per "
        f"step, {rows} rows per pass: {tokens_per_step / step_s:,.0f} tokens/s, "
        f"{achieved / 1e9:,.0f} GFLOP/s of {rate / 1e9:,.0f} in the probe: {achieved / rate:.1%}; "
        f"peak memory {clock.memory_bytes / 1e9:.2f} GB"
    )


@dataclass
class Clock:
    """Step times, and the probe's rates between them."""

    probe: "Probe"
    steps_s: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    begin_s: float = 0.0
    memory_bytes: int = 0  # peak, before the probe allocates tensors

    def tick(self, trainer: Trainer) -> None:
        """After a step: record its time, maybe run the probe, and restart the clock."""
        step = trainer.progress.step
        if step > SKIPPED:
            self.steps_s.append(time.perf_counter() - self.begin_s)
        if step == SKIPPED:
            self.memory_bytes = devices.memory_used(torch.device("cpu"))
        if step >= SKIPPED and step % PROBE_EVERY == 0:
            self.rates.append(self.probe.rate())
        self.begin_s = time.perf_counter()


class Probe:
    """The matrix products of one micro-batch, without the rest of the model."""

    def __init__(self, sizes: GPTConfig, tokens: int, dtype: torch.dtype) -> None:
        with torch.device("meta"):
            model = GPT(sizes, compute_dtype=dtype)
        self.tokens = tokens
        self.shapes: dict[torch.Size, int] = {}  # weight shapes (out, in) and their counts
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and ("blocks." in name or name.startswith("head")):
                self.shapes[parameter.shape] = self.shapes.get(parameter.shape, 0) + 1
        self.dtype = dtype
        self.tensors: dict[torch.Size, tuple[Tensor, Tensor, Tensor]] = {}

    def rate(self) -> float:
        """FLOP/s over a forward and both backward products of every weight."""
        spent_s, done = 0.0, 0.0
        for shape, count in self.shapes.items():
            if shape not in self.tensors:
                rows, columns = shape
                sizes = ((self.tokens, columns), (rows, columns), (self.tokens, rows))
                a, b, c = (torch.randn(size).to(self.dtype) for size in sizes)
                self.tensors[shape] = (a, b, c)
            inputs, weight, grads = self.tensors[shape]
            begin_s = time.perf_counter()
            _ = inputs @ weight.T
            _ = grads @ weight
            _ = grads.T @ inputs
            spent_s += count * (time.perf_counter() - begin_s)
            done += count * 6 * self.tokens * shape.numel()
        return done / spent_s


if __name__ == "__main__":
    main()
