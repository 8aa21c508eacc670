"""Memory per parameter during training: weights, gradients, optimizer state, temporaries.

python benchmarks/memory.py --depth 8 --ranks 4
python benchmarks/memory.py --depth 8 --ranks 8 --first-only

Each rank is a fresh process on the CPU. The figures are bytes per parameter on rank 0: tensor
sizes, and allocator peaks above them, in the second step. The batch is a single short row, so that
activations are negligible. VmHWM is the process's peak above its size after importing torch. gloo
keeps additional copies; with --first-only, rank 0 runs alone and a collective only copies its own
part, which is what it costs in memory with NCCL.
"""

import argparse
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.testing._internal.distributed.fake_pg import FakeStore

from nanochat import optim
from nanochat.gpt import GPT, GPTConfig
from nanochat.optim import MuonAdamW, OptimConfig
from nanochat.optim.groups import MuonGroup
from nanochat.optim.schedules import warmup_decay
from nanochat.optim.sharding import Pending, Transport
from nanochat.system.distributed import Run

TOKENS = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depth", type=int, default=8)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--vocab-size", type=int, default=32768)
    parser.add_argument("--first-only", action="store_true", help="run rank 0 only")
    options = parser.parse_args()
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    os.environ["KINETO_LOG_LEVEL"] = "99"  # the profiler's own messages
    with TemporaryDirectory() as folder:
        mp.spawn(
            rank_process,
            args=(options, port, folder),
            nprocs=1 if options.first_only else options.ranks,
        )
        found = json.loads((Path(folder) / "found.json").read_text())
    parameters = found.pop("parameters")
    print(f"depth {options.depth}, {options.ranks} rank(s), {parameters:,} parameters")
    for name, count in found.items():
        print(f"  {name:<44}{count / parameters:6.2f} bytes per parameter")


def rank_process(rank: int, options: argparse.Namespace, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    world_size = options.ranks
    if options.first_only:
        dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world_size)
        optim.settings.choose_transport = lambda *_: Alone(world_size=world_size)
    elif world_size > 1:
        address = f"tcp://127.0.0.1:{port}"
        dist.init_process_group("gloo", init_method=address, rank=rank, world_size=world_size)
    run = Run(
        rank=rank,
        world_size=world_size,
        local_rank=rank,
        device=torch.device("cpu"),
        compute_dtype=torch.bfloat16,
    )
    before = status("VmRSS")
    found = measure(run, GPTConfig(depth=options.depth, vocab_size=options.vocab_size))
    found["VmHWM above a process without a model"] = status("VmHWM") - before
    if run.is_main:
        (Path(folder) / "found.json").write_text(json.dumps(found))
    if dist.is_initialized():
        dist.destroy_process_group()


class Alone(Transport):
    """Rank 0 without the other ranks: collectives that allocate nothing."""

    def reduce_scatter(self, owned: Tensor, full: Tensor) -> Pending:
        owned.copy_(full.view(self.world_size, -1)[self.rank])
        return Pending(keep=full)

    def all_gather(self, full: Tensor, owned: Tensor) -> Pending:
        full.view(self.world_size, -1).copy_(owned)
        return Pending(keep=owned)


def measure(run: Run, config: GPTConfig) -> dict[str, int]:
    """Bytes by purpose. Collective."""
    model = GPT(config, compute_dtype=run.compute_dtype)
    model.init_weights(torch.Generator().manual_seed(1))
    optimizer = optim.build(model, OptimConfig(), run, tokens_per_step=TOKENS)
    settings = warmup_decay(10)(5)
    tokens = torch.randint(0, config.vocab_size, (1, TOKENS))

    def forward_backward() -> None:
        with optimizer.accumulate(last=True):
            model.loss(tokens, tokens, torch.tensor(1 / TOKENS)).backward()

    forward_backward()
    optimizer.step(settings)  # the first step learns the order of communication
    passes, held = allocated(forward_backward)
    step, _ = allocated(lambda: optimizer.step(settings))
    gather, _ = allocated(lambda: optimizer.state_by_name())
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "weights": sum(p.nbytes for p in model.parameters()),
        "optimizer state, this rank's share": sum(t.nbytes for t in state_tensors(optimizer)),
        "forward and backward: peak above these": passes,
        "gradients held after backward": held,
        "step: peak above all of these": step,
        "step: peak above weights and state": held + step,
        "state_by_name: peak, rank 0": gather,
    }


def state_tensors(optimizer: MuonAdamW) -> Iterator[Tensor]:
    """The optimizer moments stored on this rank."""
    for group in optimizer.groups:
        if isinstance(group, MuonGroup):
            yield from (group.momentum, group.variance)
        else:
            yield from (*group.first, *group.second)


def allocated(work: Callable[[], Any]) -> tuple[int, int]:
    """Peak and final bytes that torch allocates while `work` runs, relative to the start."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        kept = work()
    del kept
    results = profiled.profiler.kineto_results  # type: ignore[union-attr]
    changes = sorted((e.start_ns(), e.nbytes()) for e in results.events() if e.name() == "[memory]")
    now = peak = 0
    for _, change in changes:
        now += change
        peak = max(peak, now)
    return peak, now


def status(name: str) -> int:
    """A field of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(name)


if __name__ == "__main__":
    begin_s = time.perf_counter()
    main()
    sys.stderr.write(f"{time.perf_counter() - begin_s:.0f} s\n")
