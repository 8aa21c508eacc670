"""Communication beside computation: what is sent when, and that it changes no bit."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from nanochat import optim
from nanochat.data import Batch
from nanochat.gpt import GPT, GPTConfig
from nanochat.optim import MuonAdamW, OptimConfig, schedules, sharding
from nanochat.system.distributed import Run
from nanochat.system.metrics import MetricsLogger
from nanochat.training.overlap import LossInParts
from nanochat.training.trainer import Hook, Trainer, token_loss
from tests.node_helpers import free_port

pytestmark = [
    pytest.mark.skipif(not dist.is_available(), reason="torch without distributed"),
    pytest.mark.slow,
]
STEPS, DEPTH, VOCAB, LENGTH = 5, 4, 96, 16


class Rows:
    """Two micro-batches of random rows a step, different ones on each rank."""

    def __init__(self, run: Run) -> None:
        self.run, self.step = run, 0

    def next_step(self) -> list[Batch]:
        rng = np.random.default_rng([self.step, self.run.rank])
        self.step += 1
        rows = torch.from_numpy(rng.integers(0, VOCAB, (2, 3, LENGTH + 1)))
        return [Batch(half[:, :-1], half[:, 1:]) for half in rows]


class Logged(LossInParts):
    """Writes down when a part runs forward, and when its backward pass has ended."""

    def __init__(self, model: GPT, events: list[str], **options: Any) -> None:
        super().__init__(model, **options)
        run_layers = self._run_layers

        def logged(layers: range, streams: Any, tokens: Tensor) -> Any:
            events.append(f"forward {layers.start}")
            ended = f"backward {layers.start} ended"
            streams = (streams[0].clone(), *streams[1:])  # a gradient of this part's alone
            streams[0].register_hook(lambda _: events.append(ended))
            return run_layers(layers, streams, tokens)

        self._run_layers = logged


def log_communication(optimizer: MuonAdamW, events: list[str]) -> None:
    def wrap(bucket: sharding.Bucket) -> None:
        reduce, gather_weights = bucket.reduce, bucket.gather_weights

        def logged_reduce(out: Tensor | None = None) -> None:
            events.extend(f"sum {name}" for name in bucket.names)
            reduce(out)

        def logged_gather() -> sharding.Pending:
            events.extend(f"send {name}" for name in bucket.names)
            pending = gather_weights()
            wait = pending.wait

            def logged_wait() -> None:
                events.extend(f"arrived {name}" for name in bucket.names)
                wait()

            pending.wait = logged_wait
            return pending

        bucket.reduce, bucket.gather_weights = logged_reduce, logged_gather

    for group in optimizer.groups:
        for bucket in group.buckets:
            wrap(bucket)


def train(run: Run, folder: Path, *, compiled: bool, late: bool) -> dict[str, Any]:
    """Events and weights of a run. late: the same in parts, but nothing is sent meanwhile."""
    config = GPTConfig(vocab_size=VOCAB, sequence_length=LENGTH, depth=DEPTH, width=32, heads=2)
    model = GPT(config, compute_dtype=torch.float32)
    model.init_weights(torch.Generator().manual_seed(0))
    optimizer = optim.build(model, OptimConfig(), run, tokens_per_step=192)
    events: list[str] = []
    log_communication(optimizer, events)
    loss = Logged(model, events, optimizer=optimizer, compiled=compiled)
    if late:
        accumulate, step = optimizer.accumulate, optimizer.step
        optimizer.accumulate = lambda *, last: accumulate(last=False)

        def complete_step(*args: Any) -> dict[str, Tensor]:
            figures = step(*args)
            optimizer.complete_weights()
            return figures

        optimizer.step = complete_step
    saved: list[dict[str, Tensor]] = []

    def save(trainer: Trainer) -> None:
        saved.append({name: p.detach().clone() for name, p in model.named_parameters()})

    with MetricsLogger(folder, run) as metrics:
        trainer = Trainer(
            optimizer=optimizer,
            batches=Rows(run),
            loss_fn=token_loss(loss),
            schedule=schedules.warmup_decay(STEPS),
            hooks=[Hook(save, every=2)],
            run=run,
            total_steps=STEPS,
            metrics=metrics,
            flops_per_token=1.0,
        )
        trainer.fit()
    return {"events": events, "weights": dict(model.state_dict()), "saved": saved}


def worker(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    sharding.BUCKET_BYTES = 2**12  # several buckets of each shape
    sharding.SMALL_NUMEL = 2**8
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    run = Run(rank=rank, world_size=2, device=torch.device("cpu"))
    found = {
        (compiled, late): train(
            run, Path(folder) / f"{rank}{compiled}{late}", compiled=compiled, late=late
        )
        for compiled in (False, True)
        for late in (False, True)
    }
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("overlap")
    mp.spawn(worker, args=(free_port(), str(folder)), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.fixture(params=[False, True], ids=["eager", "compiled"])
def compiled(request) -> bool:
    return request.param


def step_events(found: dict, step: int) -> list[str]:
    """The events of a step, from 2: until weights are sent again."""
    events = found["events"]
    sent = [e.startswith("send ") for e in events]
    starts = [i for i, now in enumerate(sent) if now and not sent[i - 1]]
    return events[starts[step - 2] : starts[step - 1]]


def test_gradients_are_sent_while_the_backward_pass_runs(ranks, compiled):
    """Those of the last layers are on their way before the backward pass of the next ones ends."""
    for rank in ranks:
        # The order in which buckets are summed is learned in the first step.
        events = step_events(rank[compiled, False], 2)
        last_backward = len(events) - 1 - events[::-1].index("forward 3")
        late = events[last_backward:]
        for layer in range(1, DEPTH):
            sent = late.index(f"sum blocks.{layer}.mlp.up.weight")
            assert sent < late.index(f"backward {layer - 1} ended")
        assert late.index("sum head.weight") < late.index(f"backward {DEPTH - 1} ended")
        assert "sum head.weight" not in events[:last_backward]


def test_weights_arrive_while_the_forward_pass_runs(ranks, compiled):
    for rank in ranks:
        events = step_events(rank[compiled, False], 2)
        last_sent = max(i for i, e in enumerate(events) if e.startswith("send "))
        assert last_sent < events.index("arrived embedding.weight")  # all are on their way
        for layer in range(DEPTH):
            arrived = events.index(f"arrived blocks.{layer}.mlp.up.weight")
            assert arrived < events.index(f"forward {layer}")
            if layer >= 2:  # a bucket has the matrices of two layers
                assert arrived > events.index("forward 1")
        assert events.index("arrived head.weight") > events.index(f"forward {DEPTH - 1}")


def test_what_is_sent_when_changes_no_bit(ranks, compiled):
    for rank in ranks:
        beside, after = rank[compiled, False], rank[compiled, True]
        assert beside["weights"].keys() == after["weights"].keys()
        for name, weight in beside["weights"].items():
            assert torch.equal(weight, after["weights"][name]), name
            assert torch.equal(weight, ranks[0][compiled, False]["weights"][name]), name


def test_hooks_see_complete_weights(ranks, compiled):
    """What a checkpoint of step 2, 4 or 5 would hold is the same on both ranks."""
    first, second = (rank[compiled, False]["saved"] for rank in ranks)
    assert len(first) == len(second) == 3
    for mine, other in zip(first, second, strict=True):
        assert all(torch.equal(weight, other[name]) for name, weight in mine.items())
    assert not torch.equal(first[0]["head.weight"], first[1]["head.weight"])
