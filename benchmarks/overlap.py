"""When communication runs: a step of several processes, as a whole and in parts.

python benchmarks/overlap.py --ranks 2 --compile

Trains a small model with gloo on this machine and prints how much of the time of its collectives
lies within the backward pass (sums of gradients) or the forward pass (new weights). gloo has no
reduce-scatter of its own: gradients are summed by all-reduce, which tells when it is done.
"""

import argparse
import dataclasses
import os
import socket
import threading
import time
from collections import deque
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from nanochat import optim
from nanochat.gpt import GPT, GPTConfig
from nanochat.optim import OptimConfig, settings, sharding
from nanochat.optim.schedules import warmup_decay
from nanochat.system.distributed import Run
from nanochat.training.overlap import training_loss

STEPS, ROWS, LENGTH, VOCAB = 6, 4, 128, 4096


class Clock:
    """The interval of each collective, from its launch until it is found to be done."""

    def __init__(self) -> None:
        self.intervals: list[tuple[str, float, float]] = []
        self._running: deque[tuple[str, float, Any]] = deque()
        threading.Thread(target=self._watch, daemon=True).start()

    def wrap(self, name: str) -> None:
        """Time a method of the transport."""
        original = getattr(sharding.Transport, name)

        def timed(*args: Any) -> sharding.Pending:
            start = time.perf_counter()
            pending: sharding.Pending = original(*args)
            self._running.append((name, start, pending.work))
            return pending

        setattr(sharding.Transport, name, timed)

    def _watch(self) -> None:
        while True:
            for item in list(self._running):
                if item[2].is_completed():
                    self.intervals.append((item[0], item[1], time.perf_counter()))
                    self._running.remove(item)
            time.sleep(0.0003)


def work(rank: int, given: argparse.Namespace, port: int, in_parts: bool) -> None:
    """One process: train, and print the last but one step's figures on rank 0."""
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=given.ranks)
    run = Run(rank=rank, world_size=given.ranks, device=torch.device("cpu"))
    sharding.BUCKET_BYTES = 2**18  # as many buckets as a large model has
    choose = settings.choose_transport
    settings.choose_transport = lambda *a: dataclasses.replace(choose(*a), can_scatter=False)
    clock = Clock()
    clock.wrap("reduce_scatter")
    clock.wrap("all_gather")
    config = GPTConfig(
        vocab_size=VOCAB, sequence_length=LENGTH, depth=given.depth, width=given.width, heads=2
    )
    model = GPT(config, compute_dtype=torch.float32)
    model.init_weights(torch.Generator().manual_seed(1))
    tokens_per_step = ROWS * LENGTH * given.ranks
    muon_adamw = optim.build(model, OptimConfig(), run, tokens_per_step=tokens_per_step)
    if given.compile:
        muon_adamw.compile()
    loss = training_loss(model, muon_adamw, compiled=given.compile, in_parts=in_parts)
    generator = torch.Generator().manual_seed(rank)
    schedule = warmup_decay(STEPS)
    passes: list[tuple[float, float, float]] = []  # start, end of forward, end of backward
    for step in range(STEPS):
        rows = torch.randint(0, VOCAB, (ROWS, LENGTH + 1), generator=generator)
        with muon_adamw.accumulate(last=True):
            start = time.perf_counter()
            result = loss(rows[:, :-1], rows[:, 1:], torch.tensor(1 / tokens_per_step))
            middle = time.perf_counter()
            result.backward()
        passes.append((start, middle, time.perf_counter()))
        muon_adamw.step(schedule(step))
    muon_adamw.complete_weights()
    time.sleep(0.1)
    if rank == 0:
        report(clock, passes, "in parts" if in_parts else "as a whole")
    dist.destroy_process_group()


def report(clock: Clock, passes: list[tuple[float, float, float]], how: str) -> None:
    """Print the shares of the steps after the first two, which compile and learn the order."""
    print(f"{how}:")
    for name, first in (("reduce_scatter", 1), ("all_gather", 0)):
        inside, total, done = 0.0, 0.0, 0.0
        for _, start, end in sorted(each for each in clock.intervals if each[0] == name):
            if not passes[1][2] < start < passes[-1][2]:
                continue
            start = max(start, done)  # several are on their way at a time
            done = max(end, start)
            total += done - start
            inside += sum(max(0.0, min(done, p[first + 1]) - max(start, p[first])) for p in passes)
        where = "backward" if first else "forward"
        print(f"  {name}: {inside / total:.0%} of {total * 1e3:.0f} ms within the {where} pass")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--compile", action="store_true")
    given = parser.parse_args()
    for in_parts in (False, True):
        with socket.socket() as server:
            server.bind(("127.0.0.1", 0))
            port = server.getsockname()[1]
        mp.spawn(work, args=(given, port, in_parts), nprocs=given.ranks)


if __name__ == "__main__":
    main()
