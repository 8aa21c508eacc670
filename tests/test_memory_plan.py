"""The memory estimate against tensors counted by hand, and against a process that trains."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nanochat import optim
from nanochat.gpt import GPT, GPTConfig
from nanochat.optim import OptimConfig
from nanochat.system.distributed import single_run
from nanochat.training import memory_plan
from nanochat.training.memory_plan import MOST, StepPlan

ROOT = Path(__file__).parent.parent


def small(**options) -> GPTConfig:
    sizes = {"vocab_size": 300, "sequence_length": 64, "depth": 3, "width": 64, "heads": 2}
    return GPTConfig(**(sizes | options))


def plan(**options) -> StepPlan:
    chosen = {"rows": 4, "length": 64, "dtype": torch.float32, "compiled": False}
    return StepPlan(**(chosen | options))


def bytes_of(tensors) -> int:
    return sum(x.numel() * x.itemsize for x in tensors)


def test_weights_gradients_and_optimizer_are_those_of_a_real_model():
    config = small()
    model = GPT(config, compute_dtype=torch.float32)
    model.init_weights(torch.Generator().manual_seed(0))
    optimizer = optim.build(model, OptimConfig(), single_run(), tokens_per_step=64)
    states = [x for name, x in optimizer.state_by_name().items() if name != "steps_done"]
    parts = memory_plan.rehearse(config, plan())
    tables = bytes_of(model.rope)
    assert parts["loss"].weights == bytes_of(model.parameters()) + tables
    assert parts["loss"].optimizer == pytest.approx(bytes_of(states), rel=0.01)
    assert parts[MOST].gradients == bytes_of(model.parameters())


def test_activations_are_what_autograd_keeps():
    config = small()
    model = GPT(config, compute_dtype=torch.float32)
    model.init_weights(torch.Generator().manual_seed(0))
    model(torch.zeros(4, 64, dtype=torch.int64))
    kept = {}

    def note(x: torch.Tensor) -> torch.Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    tokens = torch.zeros(4, 64, dtype=torch.int64)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    weights |= {x.untyped_storage().data_ptr() for x in model.rope}
    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        hidden = model.hidden(tokens)
    expected = sum(size for key, size in kept.items() if key not in weights)
    parts = memory_plan.rehearse(config, plan())
    assert hidden.shape == (4, 64, 64)
    assert parts["loss"].activations == pytest.approx(expected, rel=0.02)


@pytest.mark.slow
def test_activations_grow_with_rows_and_shrink_when_they_are_computed_again():
    config = small()
    four, eight = (memory_plan.rehearse(config, plan(rows=n))[MOST].activations for n in (4, 8))
    assert eight == pytest.approx(2 * four, rel=0.01)
    again = memory_plan.rehearse(config, plan(rows=8, checkpoint_activations=True))
    assert (
        again["loss"].activations
        < 0.2 * memory_plan.rehearse(config, plan(rows=8))["loss"].activations
    )


def test_gradients_stand_beside_activations_from_the_second_micro_batch_on():
    config = small()
    one, two = (memory_plan.rehearse(config, plan(accumulates=x))["loss"] for x in (False, True))
    assert one.gradients == 0
    assert two.gradients == bytes_of(GPT(config, compute_dtype=torch.float32).parameters())
    assert two.activations == one.activations


def test_the_optimizer_is_shared_out_over_ranks():
    one, four = (memory_plan.estimate(small(), plan(world_size=n)).peak for n in (1, 4))
    assert four.optimizer == pytest.approx(one.optimizer / 4, abs=1)
    assert four.weights == one.weights


@pytest.mark.slow
def test_a_rehearsal_draws_nothing_and_keeps_nothing():
    before = torch.random.get_rng_state()
    config = GPTConfig(depth=12, sequence_length=1024)  # 5 GB of activations at 8 rows
    total = memory_plan.estimate(config, plan(rows=8, length=1024)).total
    assert total > 5e9
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.slow
@pytest.mark.parametrize(("with_fp8", "kept_gb"), [(False, 39.5), (True, 35.2)])
def test_activations_on_a_gpu_are_what_torchs_partitioner_keeps(with_fp8, kept_gb):
    """Kept by CUDA code generation on fake tensors: depth 24, 16 rows of 2,048 tokens."""
    config = GPTConfig(depth=24, vocab_size=32768)
    step = StepPlan(rows=16, length=2048, dtype=torch.bfloat16, device_type="cuda", fp8=with_fp8)
    found = memory_plan.estimate(config, step).peak.activations
    assert found == pytest.approx(kept_gb * 1e9, rel=0.03)


# A process that trains with the real trainer, and prints its peak memory.
CHILD = """
import json, sys
from pathlib import Path
import torch
from nanochat import optim
from nanochat.data import Batch
from nanochat.gpt import GPT, GPTConfig
from nanochat.optim import schedules
from nanochat.system import device, memory
from nanochat.system.config import RunOptions
from nanochat.system.distributed import session
from nanochat.system.metrics import MetricsLogger
from nanochat.training.trainer import Trainer, token_loss

class Same:
    def next_step(self):
        rows = torch.zeros(ROWS, 256, dtype=torch.int64)
        return [Batch(rows, rows)]

ROWS, again = json.loads(sys.argv[1])
resident = memory.resident_bytes()
with session(RunOptions(device="cpu", dtype="float32", threads=1)) as run:
    config = GPTConfig(depth=4, sequence_length=256, vocab_size=2000)
    model = GPT(config, compute_dtype=run.compute_dtype)
    model.checkpoint_activations = again
    model.init_weights(torch.Generator().manual_seed(0))
    trainer = Trainer(
        optimizer=optim.build(model, optim.OptimConfig(), run, tokens_per_step=ROWS * 256),
        batches=Same(), loss_fn=token_loss(model.loss),
        schedule=schedules.linear_to_zero(3), hooks=[], run=run, total_steps=3,
        metrics=MetricsLogger(Path(sys.argv[2]), run),
        flops_per_token=1.0,
    )
    trainer.fit()
print(json.dumps([resident, device.memory_used(run.device)]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
@pytest.mark.parametrize(("rows", "again"), [(16, False), (16, True)])
def test_the_estimate_is_within_15_per_cent_of_what_a_process_takes(rows, again, tmp_path):
    args = [sys.executable, "-c", CHILD, json.dumps([rows, again]), str(tmp_path)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "NANOCHAT_BASE_DIR": str(tmp_path)}
    done = subprocess.run(args, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    resident, taken = json.loads(done.stdout.splitlines()[-1])
    config = GPTConfig(depth=4, sequence_length=256, vocab_size=2000)
    step = plan(rows=rows, length=256, checkpoint_activations=again)
    estimated = memory_plan.estimate(config, step, resident_bytes=resident).total
    assert estimated == pytest.approx(taken, rel=0.15)
