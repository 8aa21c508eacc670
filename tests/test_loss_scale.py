"""float16 trains: gradients keep their small values, and an overflow is no fault."""

import math
import shutil

import pytest
import torch

from nanochat import checkpoint_manager
from nanochat.gpt.loss import linear_cross_entropy
from nanochat.system.distributed import single_run
from nanochat.system.errors import CheckpointError
from nanochat.system.metrics import read_rows
from nanochat.training import loss_scale
from nanochat.training.loss_scale import LossScale
from nanochat.training.trainer import TrainingError
from tests.test_stages import train
from tests.test_trainer import BrokenSteps, Rows, make_trainer, tiny_model

CPU = torch.device("cpu")


def half_trainer(folder, *, batches=None, dtype=torch.float16, **options):
    model = tiny_model(dtype)
    trainer = make_trainer(model, batches or Rows(), folder, **options)
    if dtype is torch.float16:
        trainer.loss_scale = LossScale(CPU)
    return trainer, model


def rows_of(folder):
    return read_rows(folder / "metrics.jsonl")


def test_the_scale_halves_after_an_overflow_and_doubles_after_many_good_steps(monkeypatch):
    monkeypatch.setattr(loss_scale, "GROW_AFTER", 3)
    scale = LossScale(CPU)
    values = []
    for finite in (False, True, True, False, True, True, True, True):
        scale.update(torch.tensor(finite))
        values.append(float(scale.value) / loss_scale.INITIAL)
    assert values == [0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.5, 0.5]
    for _ in range(60):
        scale.update(torch.tensor(False))
    assert float(scale.value) == 1.0


def test_without_a_scale_the_gradients_of_a_large_step_vanish_in_float16():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(8, 16, generator=generator).half().requires_grad_()
    head = (0.02 * torch.randn(64, 16, generator=generator)).requires_grad_()
    targets = torch.arange(8)
    share = 2.0**-26  # one token's share of a step of 2^26 tokens
    grads = {}
    for factor in (1.0, 2.0**20):
        weights = torch.full((8,), share * factor)
        loss = linear_cross_entropy(hidden, head, targets, weights, softcap=15.0)
        grads[factor] = torch.autograd.grad(loss, head)[0] / (share * factor)
    reference = torch.nn.functional.cross_entropy(
        15 * torch.tanh(hidden.float() @ head.T / 15), targets, reduction="sum"
    )
    expected = torch.autograd.grad(reference, head)[0]
    assert torch.allclose(grads[2.0**20], expected, atol=0.02)
    assert not torch.allclose(grads[1.0], expected, atol=0.3)


class OneRow(Rows):
    """The same batch in every step: it can be learned by heart."""

    def next_step(self):
        self.step = 0
        return super().next_step()


def test_training_in_float16_follows_training_in_float32(tmp_path):
    for dtype in (torch.float16, torch.float32):
        folder = tmp_path / str(dtype)
        half_trainer(folder, batches=OneRow(), dtype=dtype, steps=40)[0].fit()
    half, full = (rows_of(tmp_path / str(dtype)) for dtype in (torch.float16, torch.float32))
    for key in ("loss", "grad_norm"):  # AdamW's first steps turn rounding into other signs
        assert half[0][key] == pytest.approx(full[0][key], rel=1e-3), key
    assert half[-1]["loss"] < 0.5 * half[0]["loss"] and full[-1]["loss"] < 0.5 * full[0]["loss"]
    assert half[-1]["loss_scale"] == 2.0**16 and "loss_scale" not in full[-1]


def test_an_overflow_changes_the_scale_and_nothing_else_and_is_no_fault(tmp_path):
    output: list[str] = []
    trainer, model = half_trainer(tmp_path, steps=30)
    trainer.loss_scale.value.fill_(2.0**32)
    trainer.log_line = output.append
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    unchanged = []

    def step_and_compare(step=trainer._step):
        step()
        same = all(torch.equal(p, before[name]) for name, p in model.named_parameters())
        unchanged.append(same)

    trainer._step = step_and_compare
    summary = trainer.fit()
    overflows = sum(unchanged)
    assert 5 < overflows < 25 and unchanged == sorted(unchanged, reverse=True)
    rows = rows_of(tmp_path)
    assert rows[-1]["overflows"] == overflows
    assert rows[-1]["loss_scale"] == 2.0 ** (32 - overflows)
    # More in a row than the faults that would end the run.
    assert (summary.skipped, summary.rewinds) == (0, 0)
    assert not any("warning" in line for line in output)


def test_a_loss_that_is_not_finite_is_still_a_fault(tmp_path):
    trainer, _ = half_trainer(tmp_path, batches=BrokenSteps(3), steps=6)
    assert trainer.fit().skipped == 1
    assert rows_of(tmp_path)[-1]["overflows"] == 0


def test_gradients_that_overflow_even_without_a_scale_stop_training(tmp_path):
    trainer, model = half_trainer(tmp_path, steps=30)
    trainer.loss_scale.value.fill_(1.0)
    model.head.weight.register_hook(lambda grad: grad * math.inf)
    with pytest.raises(TrainingError, match="were not finite"):
        trainer.fit()


def test_a_checkpoint_keeps_the_scale(tmp_path):
    scale = LossScale(CPU)
    scale.update(torch.tensor(False))
    scale.update(torch.tensor(True))
    other = LossScale(CPU)
    other.load_state(scale.state())
    assert other.state() == scale.state() == {"value": 2.0**15, "good": 1}
    other.load_state(None)  # of a run in bfloat16
    assert other.state() == scale.state()
    with pytest.raises(CheckpointError, match="loss scale is 'x'"):
        other.load_state("x")


@pytest.mark.slow
def test_a_stage_in_float16_resumes_with_the_same_bits(base, monkeypatch):
    monkeypatch.setattr(loss_scale, "INITIAL", 2.0**32)  # overflows at first
    monkeypatch.setattr(loss_scale, "GROW_AFTER", 3)
    halves = ("--dtype", "float16", "--save-every", "4", "--keep", "4")
    folder = train(base, *halves)
    last = folder / "step_000008"
    expected = model_and_scale(last)
    shutil.rmtree(last)
    (folder / "result.json").unlink()
    train(base, *halves, "--resume")
    weights, state = model_and_scale(last)
    assert state == expected[1] and state["progress"]["overflows"] > 0
    assert all(torch.equal(value, weights[name]) for name, value in expected[0].items())


def model_and_scale(path):
    loaded = checkpoint_manager.load(path, single_run())
    state = {key: loaded.meta.state[key] for key in ("loss_scale", "progress")}
    del state["progress"]["elapsed_s"]
    return loaded.model.state_dict(), state
