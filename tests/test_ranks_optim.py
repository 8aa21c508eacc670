"""Several ranks, each with its share of the batch, equal one rank with all of it."""

import os
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from nanochat import optim
from nanochat.gpt import GPT, GPTConfig
from nanochat.optim import OptimConfig, settings, sharding
from nanochat.optim.schedules import warmup_decay
from nanochat.system.distributed import Run, all_reduce_sum, single_run

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch without distributed")

pytestmark = pytest.mark.slow
STEPS = 50
ROWS = 12  # divisible by 1, 2, 3 and 4 ranks
VOCAB = 131  # times the width, it is not divisible by 3
SPLIT_STEP = 20  # where the run that changes its number of ranks is saved


def tiny_model(dtype: torch.dtype) -> GPT:
    config = GPTConfig(vocab_size=VOCAB, sequence_length=32, depth=3, width=64, heads=1)
    model = GPT(config, compute_dtype=dtype)
    model.init_weights(torch.Generator().manual_seed(3))
    return model


def build(model: GPT, run: Run, matrix_optimizer: str = "muon") -> optim.MuonAdamW:
    config = OptimConfig(matrix_optimizer=matrix_optimizer)
    return optim.build(model, config, run, tokens_per_step=ROWS * 32)


def batch(step: int, run: Run) -> tuple[Tensor, Tensor]:
    """This rank's rows of the step; some targets are ignored, so ranks count differently."""
    generator = torch.Generator().manual_seed(step)
    rows = torch.randint(0, VOCAB, (ROWS, 33), generator=generator)
    targets = rows[:, 1:].masked_fill(torch.rand(ROWS, 32, generator=generator) < 0.3, -1)
    return rows[run.rank :: run.world_size, :-1], targets[run.rank :: run.world_size]


def train(
    model: GPT, optimizer: optim.MuonAdamW, run: Run, steps: range
) -> tuple[list[float], list[float]]:
    """Losses and gradient norms of the steps; two micro-batches where the rows allow it."""
    schedule = warmup_decay(STEPS)
    losses, norms = [], []
    for step in steps:
        inputs, targets = batch(step, run)
        factor = 1 / all_reduce_sum(run, (targets >= 0).sum()).double()
        total = torch.zeros((), dtype=torch.float64)
        halves = list(zip(inputs.tensor_split(2), targets.tensor_split(2), strict=True))
        for i, (x, y) in enumerate(halves):
            with optimizer.accumulate(last=i == len(halves) - 1):
                loss = model.loss(x, y, factor)
                loss.backward()
            total += loss.detach()
        norms.append(optimizer.step(schedule(step))["grad_norm"].item())
        optimizer.zero_grad()
        losses.append(all_reduce_sum(run, total).item())
    return losses, norms


def result(dtype: torch.dtype, run: Run, matrix_optimizer: str, steps: int) -> dict:
    """The result of a run: weights, losses, norms, and the state after the first step."""
    model = tiny_model(dtype)
    optimizer = build(model, run, matrix_optimizer)
    losses, norms = train(model, optimizer, run, range(1))
    first_state = optimizer.state_by_name()
    more = train(model, optimizer, run, range(1, steps))
    return {
        "weights": dict(model.state_dict()),
        "losses": losses + more[0],
        "norms": norms + more[1],
        "first_state": first_state,
        "state": optimizer.state_by_name(),
    }


def continued(run: Run, state: dict[str, Tensor], weights: dict[str, Tensor]) -> dict:
    """A float64 run that continues from another's state at SPLIT_STEP."""
    model = tiny_model(torch.float64)
    model.load_state_dict(weights)
    optimizer = build(model, run)
    optimizer.load_state_by_name(state if run.is_main else {})
    train(model, optimizer, run, range(SPLIT_STEP, STEPS))
    return {"weights": dict(model.state_dict()), "state": optimizer.state_by_name()}


def save_at_split(run: Run, folder: Path) -> None:
    """Train to SPLIT_STEP and save weights and state for runs on different numbers of ranks."""
    model = tiny_model(torch.float64)
    optimizer = build(model, run)
    train(model, optimizer, run, range(SPLIT_STEP))
    saved = {"state": optimizer.state_by_name(), "weights": dict(model.state_dict())}
    if run.is_main:
        torch.save(saved, folder / f"saved{run.world_size}.pt")


def saved_by(world_size: int, folder: Path) -> dict:
    return torch.load(folder / f"saved{world_size}.pt", weights_only=True)


def worker(rank: int, ports: dict[int, int], folder: str) -> None:
    """A process that is a rank of four, then of three and of two if its rank is below those."""
    torch.set_num_threads(1)
    sharding.BUCKET_BYTES = 2**14  # several buckets of each shape
    sharding.SMALL_NUMEL = 2**8  # embeddings of this small model are split as well
    for world_size, port in ports.items():
        if rank >= world_size:
            continue
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        dist.init_process_group("gloo", rank=rank, world_size=world_size)
        run = Run(
            rank=rank,
            world_size=world_size,
            local_rank=rank,
            device=torch.device("cpu"),
            compute_dtype=torch.float64,
        )
        found = {2: runs_of_two, 3: runs_of_three, 4: runs_of_four}[world_size](run, Path(folder))
        torch.save(found, Path(folder) / f"rank{rank}of{world_size}.pt")
        dist.destroy_process_group()


def runs_of_four(run: Run, folder: Path) -> dict:
    save_at_split(run, folder)
    return {
        "float64": result(torch.float64, run, "muon", STEPS),
        "from 1": continued(run, **saved_by(1, folder)),
    }


def runs_of_three(run: Run, folder: Path) -> dict:
    return {"short": result(torch.float64, run, "muon", 5)}


def runs_of_two(run: Run, folder: Path) -> dict:
    found = {
        "float64": result(torch.float64, run, "muon", STEPS),
        "float32": result(torch.float32, run, "muon", 1),
        "adamw": result(torch.float64, run, "adamw", 5),
        "from 1": continued(run, **saved_by(1, folder)),
        "from 4": continued(run, **saved_by(4, folder)),
    }
    # A backend that has neither reduce_scatter nor all_gather into one tensor.
    plain = sharding.Transport(rank=run.rank, world_size=run.world_size)
    original, settings.choose_transport = settings.choose_transport, lambda *_: plain
    found["fallback"] = result(torch.float64, run, "muon", 5)
    settings.choose_transport = original
    return found


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> dict:
    """All runs that the tests compare, computed once."""
    folder = tmp_path_factory.mktemp("ranks")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    run = single_run(dtype=torch.float64)
    save_at_split(run, folder)
    found = {
        "float64": result(torch.float64, run, "muon", STEPS),
        "float32": result(torch.float32, run, "muon", 1),
        "adamw": result(torch.float64, run, "adamw", 5),
        "short": result(torch.float64, run, "muon", 5),
    }
    ports = {world_size: free_port() for world_size in (4, 3, 2)}
    mp.spawn(worker, args=(ports, str(folder)), nprocs=4)
    found["from 4"] = continued(run, **saved_by(4, folder))
    torch.set_num_threads(threads)
    for path in folder.glob("rank*.pt"):
        found[path.stem.removeprefix("rank")] = torch.load(path, weights_only=True)
    return found


def furthest(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


@pytest.mark.parametrize("rank", ["0of2", "1of2", "0of4", "1of4", "2of4", "3of4"])
def test_fifty_float64_steps_leave_the_same_weights(outcomes, rank):
    one, many = outcomes["float64"], outcomes[rank]["float64"]
    assert all(value.dtype == torch.float64 for value in many["weights"].values())
    assert furthest(one["weights"], many["weights"]) < 1e-8
    assert one["losses"] == pytest.approx(many["losses"], rel=1e-9)
    assert one["norms"] == pytest.approx(many["norms"], rel=1e-9)
    assert one["losses"][-1] != one["losses"][0]


@pytest.mark.parametrize("rank", ["0of3", "1of3", "2of3"])
def test_three_ranks_agree_where_nothing_divides_by_three(outcomes, rank):
    one, many = outcomes["short"], outcomes[rank]["short"]
    assert furthest(one["weights"], many["weights"]) < 1e-10
    assert one["norms"] == pytest.approx(many["norms"], rel=1e-10)


def test_the_state_saved_by_many_ranks_is_that_of_one(outcomes):
    one = outcomes["float64"]["state"]
    assert furthest(one, outcomes["0of2"]["float64"]["state"]) < 1e-8
    assert outcomes["1of2"]["float64"]["state"] == {}
    assert furthest(outcomes["short"]["state"], outcomes["0of3"]["short"]["state"]) < 1e-10


def test_the_first_float32_step_has_the_same_loss_and_gradients(outcomes):
    """After one step the first moments are the gradients, times a factor."""
    one, many = outcomes["float32"], outcomes["0of2"]["float32"]
    assert one["losses"] == pytest.approx(many["losses"], rel=1e-5)
    assert one["norms"] == pytest.approx(many["norms"], rel=1e-5)
    compared = 0
    for name, value in one["first_state"].items():
        if name.endswith(("momentum", "first_moment")):
            error = (value - many["first_state"][name]).norm().item()
            # Scales of a normed stream have gradients of zero at first: all rounding.
            assert error <= 1e-5 * value.norm().item() + 1e-9 * one["norms"][0], name
            compared += 1
    assert compared == len(one["weights"])


@pytest.mark.parametrize(
    ("ranks", "before"), [("0of2", 1), ("1of2", 1), ("0of4", 1), ("3of4", 1), ("1of2", 4)]
)
def test_a_run_resumes_equally_on_a_different_number_of_ranks(outcomes, ranks, before):
    found = outcomes[ranks][f"from {before}"]
    assert furthest(outcomes["float64"]["weights"], found["weights"]) < 1e-8
    if ranks.startswith("0"):
        assert furthest(outcomes["float64"]["state"], found["state"]) < 1e-8


def test_a_run_saved_by_four_ranks_resumes_equally_on_one(outcomes):
    found = outcomes["from 4"]
    assert furthest(outcomes["float64"]["weights"], found["weights"]) < 1e-8
    assert furthest(outcomes["float64"]["state"], found["state"]) < 1e-8


def test_adamw_alone_and_backends_without_reduce_scatter_agree_too(outcomes):
    two = outcomes["0of2"]
    assert furthest(outcomes["adamw"]["weights"], two["adamw"]["weights"]) < 1e-10
    assert furthest(outcomes["short"]["weights"], two["fallback"]["weights"]) < 1e-10
