"""Stages on several ranks: trouble on one of them, and runs that change their number of ranks."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist
from safetensors.torch import load_file

from nanochat import checkpoint_manager, tokenizer
from nanochat.system.metrics import read_rows

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch without distributed")

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent
ARGS = (
    "--depth 1 --width 32 --heads 2 --sequence-length 32 --tokens-per-step 256 --tokens 4096 "
    "--device-batch-size 2 --no-compile --log-every 1 --device cpu --val-rows 8 --dtype float64 "
    "--threads 1 --tokenizer t --save-every 4 --keep 9"
).split()
# What happens to rank 1 alone, or to all: NaN in the loss, no memory for an evaluation.
TROUBLE = """
import os
import torch
from nanochat.evaluation import bits_per_byte
from nanochat.stages import base_train
from nanochat.system import config

calls = {"step": 0, "sum": 0}
next_step, sums = base_train.StreamBatches.next_step, bits_per_byte._sum_losses

def broken_step(batches):
    calls["step"] += 1
    found = next_step(batches)
    if os.environ["RANK"] == "1" and calls["step"] in (2, 7, 8, 9, 10, 11):
        weights = torch.full(found[0].targets.shape, float("nan"))
        found[0] = type(found[0])(found[0].inputs, found[0].targets, weights)
    return found

def broken_sums(*args):
    calls["sum"] += 1
    if os.environ["RANK"] == "1" and calls["sum"] == 1:
        raise MemoryError
    return sums(*args)

base_train.StreamBatches.next_step = broken_step
bits_per_byte._sum_losses = broken_sums
config.cli(base_train.main)
"""


# Rank 1 has room for two rows of one pass, rank 0 for four.
UNEQUAL = """
import os
from nanochat.stages import base_train
from nanochat.system import config
from nanochat.training import batch_size

room = {"0": 4, "1": 2}[os.environ["RANK"]]
batch_size._by_memory_left = lambda *args: (lambda rows: rows <= room, "estimated")
batch_size.useful_rows = lambda most, length, kind: most
config.cli(base_train.main)
"""


@pytest.fixture
def base(tmp_path) -> Path:
    texts = [f"The cat number {i} sat on the mat and saw {i * 7} mice.\n" * 8 for i in range(60)]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    encoder = tokenizer.train_char(texts)
    tokenizer.save(encoder, tmp_path / "base" / "tokenizers" / "t" / "tokenizer.json")
    return tmp_path


def launch(base: Path, ranks: int, *args: str, script: str = "") -> str:
    """Train on this many ranks; the output."""
    target = ["-m", "nanochat.stages.base_train", "--"]
    if script:
        (base / "script.py").write_text(script)
        target = [str(base / "script.py"), "--"]
    command = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", *target]
    done = subprocess.run(
        [sys.executable, *command, *ARGS, "--data", str(base / "texts.jsonl"), *args],
        cwd=base,
        env={
            **os.environ,
            "NANOCHAT_BASE_DIR": str(base / "base"),
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def stage(base: Path, run: str) -> Path:
    return base / "base" / "runs" / run / "base_train"


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in read_rows(folder / "metrics.jsonl") if "loss" in row]


def forget_after(folder: Path, step: int) -> None:
    """Leave a stage as if it had been killed before its next checkpoint."""
    for path in checkpoint_manager.steps(folder):
        if checkpoint_manager.step_of(path) > step:
            checkpoint_manager.remove(path)
    (folder / "result.json").unlink()


def test_one_two_and_four_ranks_train_alike_and_hand_over_to_each_other(base):
    launch(base, 1, "--run", "alone")
    alone = stage(base, "alone")
    expected = losses(alone)
    weights = load_file(alone / "step_000016" / "model.safetensors")
    assert len(expected) == 16
    launch(base, 4, "--run", "moved")
    moved = stage(base, "moved")
    assert losses(moved) == pytest.approx(expected, rel=1e-9)
    for step, ranks in ((4, 2), (8, 4), (12, 1)):
        forget_after(moved, step)
        launch(base, ranks, "--run", "moved", "--resume")
        assert losses(moved) == pytest.approx(expected, rel=1e-9)
        assert json.loads((moved / "config.json").read_text())["world_size"] == ranks
    found = load_file(moved / "step_000016" / "model.safetensors")
    assert found.keys() == weights.keys()
    assert max((found[name] - w).abs().max().item() for name, w in weights.items()) < 1e-8


def test_trouble_on_one_rank_reaches_all(base):
    """A step that is not finite, five of them, and an evaluation without memory, on rank 1 only."""
    output = launch(base, 2, "--run", "two", "--eval-every", "4", script=TROUBLE)
    assert "warning: step 2 skipped: its loss is nan" in output
    assert f"back to {stage(base, 'two') / 'step_000004'}, continuing with the data" in output
    assert "warning: evaluation skipped: rank 1: out of memory" in output
    rows = read_rows(stage(base, "two") / "metrics.jsonl")
    assert [row["step"] for row in rows if "val_bpb" in row] == [8, 12, 16]
    assert (rows[-2]["skipped"], rows[-2]["rewinds"]) == (6, 1)
    assert all(math.isfinite(loss) for loss in losses(stage(base, "two")))


def test_all_ranks_take_the_rows_that_fit_on_the_fullest(base):
    said = launch(base, 2, "--run", "unequal", "--device-batch-size", "auto", script=UNEQUAL)
    assert "auto: 2 rows of 32 tokens, 2 passes per step on each device" in said
    same = launch(base, 2, "--run", "given")
    assert "auto" not in same
    assert losses(stage(base, "unequal")) == losses(stage(base, "given"))
