"""The loop: the loss is the global token mean, hooks run in order, a run resumes correctly."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from nanochat import checkpoint_manager, optim
from nanochat.checkpoint_manager.meta import digest_of
from nanochat.data import Batch
from nanochat.gpt import GPT, GPTConfig
from nanochat.optim import OptimConfig, schedules
from nanochat.system import device
from nanochat.system.distributed import single_run
from nanochat.system.errors import CheckpointError
from nanochat.system.metrics import MEASURED, MetricsLogger, read_rows
from nanochat.tokenizer import train_char
from nanochat.training.loss_scale import LossScale
from nanochat.training.progress import Progress
from nanochat.training.trainer import Hook, Trainer, TrainingError, token_loss

V, T = 32, 16


GOLDEN = Path(__file__).parent / "golden"


def tiny_model(dtype: torch.dtype = torch.float32, width: int = 32) -> GPT:
    config = GPTConfig(vocab_size=V, sequence_length=T, depth=2, width=width, heads=2)
    model = GPT(config, compute_dtype=dtype)
    model.init_weights(torch.Generator().manual_seed(0))
    return model


class Rows:
    """A batch source of fixed random rows; its state is the next step."""

    def __init__(self, sizes: tuple[int, ...] = (2,), ignore: int = 0) -> None:
        self.sizes, self.ignore, self.step = sizes, ignore, 0

    def next_step(self) -> list[Batch]:
        rng = np.random.default_rng(self.step)
        self.step += 1
        rows = torch.from_numpy(rng.integers(0, V, (sum(self.sizes), T + 1)))
        inputs, targets = rows[:, :-1], rows[:, 1:].clone()
        targets[0, : self.ignore] = -1
        return [
            Batch(i, t)
            for i, t in zip(inputs.split(self.sizes), targets.split(self.sizes), strict=True)
        ]

    def state(self) -> dict:
        return {"step": self.step}

    def load_state(self, state: dict) -> None:
        self.step = state["step"]


def make_trainer(
    model, batches, folder, *, steps=4, hooks=(), log_every=1, resume_step=None, stop=lambda: False
):
    run = single_run()
    return Trainer(
        optimizer=optim.build(model, OptimConfig(), run, tokens_per_step=4096),
        batches=batches,
        loss_fn=token_loss(model.loss),
        schedule=schedules.warmup_decay(8, warmup_steps=2),
        hooks=hooks,
        run=run,
        total_steps=steps,
        metrics=MetricsLogger(folder, run, resume_step=resume_step),
        flops_per_token=1e6,
        log_every=log_every,
        stop=stop,
    )


class Reads(TorchDispatchMode):
    """Collects the operations after which a host has to wait for its GPU."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal", "is_nonzero")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        indices = args[1] if name == "index" else ()
        by_mask = any(i is not None and i.dtype == torch.bool for i in indices)
        if name in self.WAITING or by_mask:
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("scaled", [False, True])
def test_a_step_does_not_wait_for_the_device(tmp_path, scaled):
    """Forward, backward and update of a step between two logged rows."""
    trainer = make_trainer(tiny_model(), Rows((2, 2), ignore=3), tmp_path)
    if scaled:
        trainer.loss_scale = LossScale(trainer.run.device)
    trainer.optimizer.checks_finite_on_device = True  # as on a GPU
    trainer._step()
    with Reads() as reads:
        trainer._step()
    assert reads.found == []
    trainer.optimizer.checks_finite_on_device = False
    with Reads() as reads:
        trainer._step()
    assert reads.found == ["aten._local_scalar_dense.default"]  # so it would have been found


def test_the_loss_is_the_mean_over_all_targets_however_they_are_split(tmp_path):
    norms = []
    for name, sizes in (("whole", (4,)), ("split", (1, 3))):
        model = tiny_model()
        trainer = make_trainer(model, Rows(sizes, ignore=10), tmp_path / name, steps=1)
        trainer.fit()
        batch = Rows((4,), ignore=10).next_step()[0]
        with torch.no_grad():
            logits = tiny_model()(batch.inputs)
        expected = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), batch.targets.flatten(), ignore_index=-1
        )
        row = read_rows(tmp_path / name / "metrics.jsonl")[0]
        assert row["loss"] == pytest.approx(float(expected), rel=1e-5)
        norms.append(row["grad_norm"])
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)


def test_mfu_counts_from_the_second_step_on_against_a_peak_measured_after_the_first(
    tmp_path, monkeypatch
):
    measured_at = []

    def peak(*_):
        measured_at.append(trainer.progress.step)
        return 2e15

    monkeypatch.setattr(device, "peak_flops", peak)
    trainer = make_trainer(tiny_model(), Rows((4,)), tmp_path)
    trainer.fit()
    assert measured_at == [1]
    first, *rows = read_rows(tmp_path / "metrics.jsonl")
    assert first["mfu"] is None
    assert [row["mfu"] for row in rows] == [
        pytest.approx(row["tokens_per_s"] * 1e6 / 2e15) for row in rows
    ]


def test_a_peak_that_training_exceeds_was_disturbed_and_is_measured_again(tmp_path, monkeypatch):
    peaks = iter([1.0, 2e15])
    monkeypatch.setattr(device, "peak_flops", lambda *_: next(peaks))
    make_trainer(tiny_model(), Rows((4,)), tmp_path, steps=3).fit()
    _, *rows = read_rows(tmp_path / "metrics.jsonl")
    assert [row["mfu"] for row in rows] == [
        pytest.approx(row["tokens_per_s"] * 1e6 / 2e15) for row in rows
    ]


def test_training_is_at_most_as_fast_as_the_peak(tmp_path, monkeypatch):
    monkeypatch.setattr(device, "peak_flops", lambda *_: 1.0)
    make_trainer(tiny_model(), Rows((4,)), tmp_path, steps=3).fit()
    first, *rows = read_rows(tmp_path / "metrics.jsonl")
    assert first["mfu"] is None
    assert all(row["mfu"] <= 1 for row in rows)
    assert rows[0]["mfu"] == 1


def test_memory_that_is_unknown_is_left_out_of_the_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(device, "memory_used", lambda _: 0)
    lines: list[str] = []
    trainer = make_trainer(tiny_model(), Rows((4,)), tmp_path, steps=1)
    trainer.log_line = lines.append
    trainer.fit()
    assert lines
    assert not any("GB" in line for line in lines)


def test_hooks_run_in_order_every_so_often_and_at_the_end(tmp_path):
    calls: list[tuple[str, int]] = []

    def hook(name):
        return lambda trainer: calls.append((name, trainer.progress.step))

    hooks = [Hook(hook("save"), every=2), Hook(hook("look"), every=3, at_end=False)]
    make_trainer(tiny_model(), Rows(), tmp_path, steps=5, hooks=hooks).fit()
    assert calls == [("save", 2), ("look", 3), ("save", 4), ("save", 5)]


class BrokenSteps(Rows):
    """Rows whose loss is not finite in some steps."""

    def __init__(self, *broken: int) -> None:
        super().__init__()
        self.broken = broken

    def next_step(self) -> list[Batch]:
        batch = super().next_step()[0]
        weights = torch.ones(batch.targets.shape)
        if self.step in self.broken:
            weights[0, 0] = math.nan
        return [Batch(batch.inputs, batch.targets, weights)]


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(tmp_path):
    output: list[str] = []
    model = tiny_model()
    trainer = make_trainer(model, BrokenSteps(2, 3, 4, 5, 8), tmp_path, steps=8, log_every=3)
    trainer.log_line = output.append
    before: list[torch.Tensor] = []
    trainer.hooks = [
        Hook(lambda t: before.append(model.head.weight.detach().clone()), every=1, at_end=False)
    ]
    trainer.fit()
    assert not torch.equal(before[0], before[5])
    assert all(torch.equal(before[0], later) for later in before[1:5])
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [row["skipped"] for row in rows] == [0, 4, 4]
    assert all(math.isfinite(row["loss"]) for row in rows)
    message = "warning: step 4 skipped: its loss is nan, its gradient norm nan"
    assert output.count(message) == 1


def test_steps_that_are_never_finite_stop_with_a_remedy(tmp_path):
    for steps, most in ((4, 4), (20, 5)):
        model = tiny_model()
        with torch.no_grad():
            model.embedding.weight.fill_(math.nan)
        message = rf"last {most} steps, up to step {most}, were not finite: lower the learning rate"
        with pytest.raises(TrainingError, match=message):
            make_trainer(model, Rows(), tmp_path / str(steps), steps=steps).fit()


def test_the_figures_of_a_step_may_be_read_one_step_later(tmp_path):
    """On a GPU the host does not wait for a step's figures; what it does with them is the same."""
    rows = []
    for name, lag in (("now", 0), ("later", 1)):
        trainer = make_trainer(
            tiny_model(), BrokenSteps(3, 4, 9), tmp_path / name, steps=12, log_every=5
        )
        trainer._lag = lag
        trainer.fit()
        rows.append(figures(tmp_path / name))
    assert rows[0] == rows[1]
    assert [row["skipped"] for row in rows[0]] == [0, 2, 3, 3]


@pytest.mark.parametrize("lag", [0, 1])
def test_a_run_goes_back_and_leaves_out_the_data_that_broke_it(tmp_path, lag):
    model = tiny_model()
    batches = BrokenSteps(*range(4, 10))
    trainer = make_trainer(model, batches, tmp_path, steps=10, log_every=100)
    trainer._lag = lag
    kept: list[tuple] = []

    def keep(trainer):
        if trainer.progress.step == 3:
            weights = [p.detach().clone() for p in model.parameters()]
            kept.append((weights, trainer.optimizer.state_by_name()))

    def rewind(trainer):
        ((weights, state),) = kept
        with torch.no_grad():
            for parameter, value in zip(model.parameters(), weights, strict=True):
                parameter.copy_(value)
        trainer.optimizer.load_state_by_name(state)
        trainer.progress = Progress(step=3, tokens=3 * 64)

    trainer.rewind, trainer.hooks = rewind, [Hook(keep, every=3, at_end=False)]
    summary = trainer.fit()
    # Five steps in a row were bad, of which the last is known when the next one has run.
    assert (summary.rewinds, summary.skipped) == (1, 6)
    assert batches.step == 3 + 5 + lag + 7
    assert summary.steps == 10 and math.isfinite(summary.final_loss)


def figures(folder: Path) -> list[dict]:
    """The rows of the metrics but for the machine's figures."""
    return [
        {key: value for key, value in row.items() if key not in MEASURED}
        for row in read_rows(folder / "metrics.jsonl")
    ]


def test_a_loss_that_jumps_is_a_spike_once():
    rng = np.random.default_rng(0)
    progress = Progress()
    losses = 3 - 0.002 * np.arange(400) + 0.05 * rng.standard_normal(400)
    losses[[200, 201, 202, 300]] += 1.0
    flagged = [step for step, loss in enumerate(losses) if progress.add_loss(float(loss))]
    assert flagged == [200, 300]


def test_a_spike_hides_no_other_and_a_new_level_is_one_only_once():
    rng = np.random.default_rng(0)
    progress = Progress()
    losses = 3 + 0.05 * rng.standard_normal(900)
    losses[100:103] += 1.0  # three steps long
    losses[120] += 0.5
    losses[300:] += 1.0  # and stays there
    losses[800] += 1.0
    flagged = [step for step, loss in enumerate(losses) if progress.add_loss(float(loss))]
    assert flagged == [100, 120, 300, 800]


def test_losses_that_hardly_vary_have_no_spikes():
    progress = Progress()
    assert not any(progress.add_loss(loss) for loss in [2.0] * 100 + [2.0001] * 100)


def test_spikes_are_printed_and_counted_in_the_metrics(tmp_path):
    output: list[str] = []
    trainer = make_trainer(tiny_model(), Rows(), tmp_path, steps=3)
    trainer.progress = Progress(loss_mean=0.5, loss_variance=1e-6, losses_seen=100)
    trainer.log_line = output.append
    trainer.fit()
    assert sum("warning: step 1: the loss jumps from about 0.5000 to 3." in line for line in output)
    assert [row["spikes"] for row in read_rows(tmp_path / "metrics.jsonl")] == [1, 1, 1]


def save(trainer, model, folder):
    return checkpoint_manager.save(
        folder,
        trainer.progress.step,
        weights=checkpoint_manager.copy_of_weights(model),
        config=model.config,
        tokenizer_=train_char(["abc"]),
        optimizer_state=trainer.optimizer.state_by_name(),
        state={"progress": dict(vars(trainer.progress)), "batches": trainer.batches.state()},
    )


def resumed(path, folder, **options):
    """A trainer that resumes from a checkpoint, and its model."""
    loaded = checkpoint_manager.load(path, single_run())
    step = loaded.meta.step
    trainer = make_trainer(loaded.model, Rows(), folder, resume_step=step, **options)
    trainer.optimizer.load_state_by_name(checkpoint_manager.load_optimizer_state(path))
    trainer.batches.load_state(loaded.meta.state["batches"])
    vars(trainer.progress).update(loaded.meta.state["progress"])
    return trainer, loaded.model


def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(tmp_path):
    uninterrupted = tiny_model()
    make_trainer(uninterrupted, Rows(), tmp_path / "whole", steps=6).fit()
    first = tiny_model()
    trainer = make_trainer(first, Rows(), tmp_path / "part", steps=3)
    trainer.fit()
    path = save(trainer, first, tmp_path / "part")

    second, model = resumed(path, tmp_path / "part", steps=6)
    second.fit()
    for (name, a), b in zip(uninterrupted.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(a, b), name
    losses = [
        [row["loss"] for row in read_rows(tmp_path / run / "metrics.jsonl")]
        for run in ("whole", "part")
    ]
    assert losses[0] == losses[1]


def test_a_run_that_is_stopped_continues_as_if_it_had_not_been(tmp_path):
    uninterrupted = tiny_model()
    make_trainer(uninterrupted, Rows(), tmp_path / "whole", steps=11, log_every=4).fit()
    part = tiny_model()
    saved: list[Path] = []
    hook = Hook(
        lambda trainer: saved.append(save(trainer, part, tmp_path / "part")),
        at_end=False,
        on_stop=True,
    )
    asked = iter([False] * 5 + [True])
    trainer = make_trainer(
        part,
        Rows(),
        tmp_path / "part",
        steps=11,
        log_every=4,
        hooks=[hook],
        stop=lambda: next(asked),
    )
    assert trainer.fit().steps == 6
    assert [path.name for path in saved] == ["step_000006"]

    second, model = resumed(saved[0], tmp_path / "part", steps=11, log_every=4)
    assert second.fit().steps == 11
    for (name, a), b in zip(uninterrupted.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(a, b), name
    rows = [figures(tmp_path / run) for run in ("whole", "part")]
    assert [row["step"] for row in rows[0]] == [1, 4, 8, 11]
    assert rows[0] == rows[1]


def test_a_checkpoint_says_what_is_wrong_with_it(tmp_path):
    model = tiny_model()
    trainer = make_trainer(model, Rows(), tmp_path, steps=1)
    trainer.fit()
    path = save(trainer, model, tmp_path)
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        checkpoint_manager.load(tmp_path / "nowhere", single_run())
    weights = path / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-1] + b"x")
    with pytest.raises(CheckpointError, match=r"model\.safetensors is missing or altered"):
        checkpoint_manager.load(path, single_run())
    weights.write_bytes(data)
    meta = json.loads((path / "meta.json").read_text())
    later = {**meta, "format": 99}
    del later["sha256"]
    later["sha256"] = digest_of(later)
    (path / "meta.json").write_text(json.dumps(later))
    with pytest.raises(CheckpointError, match="has format 99, this version reads"):
        checkpoint_manager.load(path, single_run())


def test_a_checkpoint_of_the_first_format_still_trains_on(tmp_path):
    """tests/golden/step_000003 was saved by this file's trainer after 3 of 5 steps of
    tiny_model(width=16); losses.json holds the losses of the other steps of an uninterrupted run.
    """
    trainer, _ = resumed(GOLDEN / "step_000003", tmp_path, steps=5)
    trainer.fit()
    found = [row["loss"] for row in read_rows(tmp_path / "metrics.jsonl")]
    assert found == pytest.approx(json.loads((GOLDEN / "losses.json").read_text()), rel=1e-5)


def test_checkpoints_are_found_in_the_order_of_their_steps(tmp_path):
    model = tiny_model()
    trainer = make_trainer(model, Rows(), tmp_path, steps=1)
    trainer.fit()
    for step in (999_999, 2, 1_000_000, 10):
        trainer.progress.step = step
        save(trainer, model, tmp_path)
    (tmp_path / "step_by_step").mkdir()
    (tmp_path / "step_by_step" / "meta.json").write_text("{}")
    found = [checkpoint_manager.step_of(path) for path in checkpoint_manager.steps(tmp_path)]
    assert found == [2, 10, 999_999, 1_000_000]
    checkpoint_manager.remove(tmp_path / "step_1000000")
    assert checkpoint_manager.latest(tmp_path).name == "step_999999"


def test_metrics_drop_the_rows_after_the_checkpoint_and_a_torn_one(tmp_path):
    with MetricsLogger(tmp_path, single_run()) as metrics:
        for step in (1, 2, 3):
            metrics.log(step, {"loss": 1.0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    with MetricsLogger(tmp_path, single_run(), resume_step=2) as metrics:
        metrics.log(3, {"loss": 2.0})
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [(row["step"], row["loss"]) for row in rows] == [(1, 1.0), (2, 1.0), (3, 2.0)]


def test_rows_hold_the_times_of_steps_and_the_memory(tmp_path):
    make_trainer(tiny_model(), Rows(), tmp_path, steps=5).fit()
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert rows[0]["step_s_p50"] is None  # the first step builds kernels
    assert 0 < rows[-1]["step_s_p50"] <= rows[-1]["step_s_p99"] < 60
    assert rows[-1]["memory_bytes"] > 1e7
