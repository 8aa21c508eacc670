"""Saving beside training: what counts as saved, what is kept, and what failures may cost."""

import errno
import json
import math
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from nanochat import checkpoint_manager, tokenizer
from nanochat.checkpoint_manager import store
from nanochat.evaluation import bits_per_byte
from nanochat.stages import base_train
from nanochat.system import storage
from nanochat.system.distributed import single_run
from nanochat.system.errors import ConfigError, Stopped
from nanochat.system.metrics import MEASURED, read_rows
from nanochat.training import stage_hooks
from nanochat.training.trainer import MAX_REWINDS, Trainer, TrainingError

TINY = (
    "--run tiny --depth 1 --width 32 --heads 2 --sequence-length 32 --tokens-per-step 256 "
    "--device-batch-size 4 --tokens 4096 --no-compile --log-every 1 --device cpu --val-rows 4 "
    "--dtype float32"
).split()


@pytest.fixture
def base(tmp_path, monkeypatch):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
    texts = [f"The cat number {i} sat on the mat and saw {i * 7} mice.\n" * 8 for i in range(60)]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    encoder = tokenizer.train_char(texts)
    tokenizer.save(encoder, tmp_path / "base" / "tokenizers" / "tiny" / "tokenizer.json")
    return tmp_path


def train(base: Path, *args: str) -> Path:
    """Train 16 steps."""
    base_train.main([*TINY, "--data", str(base / "texts.jsonl"), *args])
    return base / "base" / "runs" / "tiny" / "base_train"


def kept(folder: Path) -> list[int]:
    return [checkpoint_manager.step_of(path) for path in checkpoint_manager.steps(folder)]


def rows(folder: Path, name: str) -> dict[int, float]:
    """A figure of the metrics by step."""
    found = read_rows(folder / "metrics.jsonl")
    return {row["step"]: row[name] for row in found if name in row}


def test_training_continues_while_a_checkpoint_is_written(base, monkeypatch, capsys):
    """The writing of step 4 ends only once step 7 is done, and holds the weights of step 4."""
    real_save, real_step = checkpoint_manager.save, base_train.StreamBatches.next_step
    asked, weights = [], {}
    reached = threading.Event()

    def next_step(batches):
        asked.append(None)
        if len(asked) == 8:
            reached.set()
        return real_step(batches)

    def slow_save(folder, step, **parts):
        if step == 4:
            weights.update({name: tensor.clone() for name, tensor in parts["weights"].items()})
            assert reached.wait(60)
            assert all(torch.equal(parts["weights"][name], w) for name, w in weights.items())
        return real_save(folder, step, **parts)

    monkeypatch.setattr(checkpoint_manager, "save", slow_save)
    monkeypatch.setattr(base_train.StreamBatches, "next_step", next_step)
    folder = train(base, "--save-every", "4", "--keep", "9")
    assert kept(folder) == [4, 8, 12, 16]
    output = [line.split("|")[0].strip() for line in capsys.readouterr().out.splitlines()]
    assert output.index("step 7/16") < output.index(f"saved {folder / 'step_000004'}")


@pytest.mark.parametrize("step", [4, 16])
def test_a_checkpoint_is_evaluated_while_it_is_written(base, monkeypatch, step):
    """The writing ends only once the evaluation and the samples of its step are done."""
    real_save, real_evaluate, real_samples = (
        checkpoint_manager.save,
        base_train.evaluate,
        stage_hooks.report.record_samples,
    )
    sampled, events = threading.Event(), []

    def slow_save(folder, saved_step, **parts):
        if saved_step == step:
            assert sampled.wait(60)
        path = real_save(folder, saved_step, **parts)
        events.append(f"saved {saved_step}")
        return path

    def evaluate(*args):
        events.append("evaluated")
        return real_evaluate(*args)

    def record_samples(folder, sampled_step, samples):
        real_samples(folder, sampled_step, samples)
        if sampled_step == step:
            events.append("sampled")
            sampled.set()

    monkeypatch.setattr(checkpoint_manager, "save", slow_save)
    monkeypatch.setattr(base_train, "evaluate", evaluate)
    monkeypatch.setattr(stage_hooks.report, "record_samples", record_samples)
    folder = train(base, "--save-every", str(step), "--eval-every", "16", "--sample-every", "4")
    before_it_was_saved = events[: events.index(f"saved {step}")]
    assert "sampled" in before_it_was_saved
    assert ("evaluated" in before_it_was_saved) == (step == 16)
    assert kept(folder)[-1] == 16


def test_a_stage_whose_last_checkpoint_fails_is_not_complete(base, monkeypatch):
    real = checkpoint_manager.save

    def full_at_last(folder, step, **parts):
        if step == 16:
            raise OSError(errno.EIO, "Input/output error", str(folder))
        return real(folder, step, **parts)

    monkeypatch.setattr(checkpoint_manager, "save", full_at_last)
    with pytest.raises(OSError, match="Input/output error"):
        train(base, "--save-every", "8")
    folder = base / "base" / "runs" / "tiny" / "base_train"
    assert kept(folder) == [8]
    assert not (folder / "result.json").exists()
    monkeypatch.setattr(checkpoint_manager, "save", real)
    train(base, "--save-every", "8", "--resume")
    assert (folder / "result.json").exists()


def test_what_a_stop_saves_is_on_the_disk_before_the_process_ends(base, monkeypatch):
    stopped_at([6], monkeypatch)
    with pytest.raises(Stopped):
        train(base, "--save-every", "8")
    assert kept(base / "base" / "runs" / "tiny" / "base_train") == [6]


def test_a_score_does_not_change_what_its_own_checkpoint_removes(base, monkeypatch):
    """However slow the disk: the score of step 4 is known before its checkpoint is written."""
    losses = iter([3.0, 1.0, 2.0, 2.0])
    real_save, real_wait = checkpoint_manager.save, stage_hooks.Saver.wait
    scored, found = threading.Event(), {}

    def evaluate(*args):
        return {"val_bpb": next(losses)}

    def record(saver, step, figures):
        real_record(saver, step, figures)
        if step == 8:
            scored.set()

    def slow_save(folder, step, **parts):
        if step == 8:
            assert scored.wait(60)
        return real_save(folder, step, **parts)

    def wait(saver):
        real_wait(saver)
        found.setdefault(len(found), kept(base / "base" / "runs" / "tiny" / "base_train"))

    real_record = stage_hooks.Saver.record_score
    monkeypatch.setattr(base_train, "evaluate", evaluate)
    monkeypatch.setattr(stage_hooks.Saver, "record_score", record)
    monkeypatch.setattr(stage_hooks.Saver, "wait", wait)
    monkeypatch.setattr(checkpoint_manager, "save", slow_save)
    train(base, *"--save-every 4 --eval-every 4 --keep 1 --keep-best".split())
    assert list(found.values()) == [[], [4], [4, 8], [8, 12], [8, 16]]


def test_the_newest_the_best_and_every_nth_checkpoint_stay(base, monkeypatch):
    losses = iter([5.0, 3.0, 1.0, 2.0, 4.0, 4.0, 4.0, 4.0])
    monkeypatch.setattr(base_train, "evaluate", lambda *args: {"val_bpb": next(losses)})
    args = "--save-every 2 --eval-every 2 --keep 1 --keep-every 8 --keep-best".split()
    folder = train(base, *args)
    assert kept(folder) == [6, 8, 16]
    assert rows(folder, "val_bpb")[6] == 1.0


def test_the_best_is_still_known_after_a_resume(base, monkeypatch):
    losses = iter([5.0, 1.0, 2.0, 2.0, 2.0, 4.0, 4.0, 4.0, 4.0])  # step 8 twice
    monkeypatch.setattr(base_train, "evaluate", lambda *args: {"val_bpb": next(losses)})
    args = "--save-every 2 --eval-every 2 --keep 1 --keep-best".split()
    first = [arg if arg != "4096" else "2048" for arg in TINY]
    base_train.main([*first, "--data", str(base / "texts.jsonl"), *args])
    assert kept(train(base, *args, "--resume")) == [4, 16]


def test_the_best_needs_evaluations_where_it_is_saved(base):
    with pytest.raises(
        ConfigError, match="--keep-best needs an evaluation at every saved checkpoint"
    ):
        train(base, "--save-every", "4", "--eval-every", "3", "--keep-best")


def test_a_full_disk_in_the_middle_costs_a_warning(base, monkeypatch, capsys):
    real = store._save_tensors

    def full_at_first(tensors, path):
        if "step_000004" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        real(tensors, path)

    monkeypatch.setattr(store, "_save_tensors", full_at_first)
    folder = train(base, "--save-every", "4", "--keep", "9")
    assert kept(folder) == [8, 12, 16]
    assert "warning: checkpoint not saved at step 4 ([Errno 28]" in capsys.readouterr().out
    assert not list(folder.glob(".step*"))


def test_resuming_hashes_the_optimizer_once_and_using_a_model_never(base, monkeypatch):
    folder = train(base, "--save-every", "4", "--keep", "9")
    forget_after(folder, 12)
    real, hashed = storage.sha256_of, []

    def count(path):
        hashed.append(path.name)
        return real(path)

    monkeypatch.setattr(storage, "sha256_of", count)
    train(base, "--save-every", "100", "--resume")
    assert hashed.count("optimizer.safetensors") == 2  # of the one read and of the last one saved
    hashed.clear()
    checkpoint_manager.load(folder, single_run())
    assert sorted(hashed) == ["model.safetensors", "tokenizer.json"]


# --- steps that are not finite


def broken_steps(monkeypatch, *broken: int) -> list[int]:
    """Make the loss of some batches NaN; returns the first row of every batch taken."""
    real, taken = base_train.StreamBatches.next_step, []

    def next_step(batches):
        taken.append(batches.state()["next_row"])
        found = real(batches)
        if len(taken) not in broken:
            return found
        nothing = torch.full(found[0].targets.shape, math.nan)
        return [type(batch)(batch.inputs, batch.targets, nothing) for batch in found]

    monkeypatch.setattr(base_train.StreamBatches, "next_step", next_step)
    return taken


def test_a_run_goes_back_to_its_checkpoint_and_leaves_the_bad_data_out(base, monkeypatch, capsys):
    taken = broken_steps(monkeypatch, *range(7, 12))
    folder = train(base, "--save-every", "4")
    output = capsys.readouterr().out
    assert "the last 5 steps, up to step 11, were not finite: going back to a checkpoint" in output
    assert f"back to {folder / 'step_000004'}, continuing with the data that comes next" in output
    assert taken == [8 * i for i in range(11 + 12)]  # no row is taken twice
    found = rows(folder, "loss")
    assert list(found) == list(range(1, 17))
    assert all(math.isfinite(loss) for loss in found.values())
    assert rows(folder, "rewinds")[4] == 0
    assert rows(folder, "rewinds")[16] == 1
    assert rows(folder, "skipped")[16] == 5
    assert json.loads((folder / "result.json").read_text())["notes"] == [
        "steps left out, as they were not finite: 5",
        "returns to an earlier checkpoint after such steps: 1",
    ]
    state = checkpoint_manager.read_meta(checkpoint_manager.latest(folder)).state
    assert state["batches"]["next_row"] == 8 * 23


def test_a_rewound_run_that_is_killed_ends_as_if_it_had_not_been(base, monkeypatch):
    """The same steps are not finite again, so the run goes back again, to the same weights."""
    taken = broken_steps(monkeypatch, *range(7, 12))
    folder = train(base, "--save-every", "4", "--keep", "9")
    expected, weights = rows(folder, "loss"), (folder / "step_000016" / "model.safetensors")
    before = weights.read_bytes()
    for step in (16, 12, 8):
        checkpoint_manager.remove(folder / f"step_{step:06d}")
    (folder / "result.json").unlink()
    del taken[4:]  # it resumes from step 4, with the stream where it was then
    train(base, "--save-every", "4", "--resume")
    assert rows(folder, "loss") == expected
    assert weights.read_bytes() == before


def test_going_back_again_and_again_ends_with_a_remedy(base, monkeypatch):
    broken_steps(monkeypatch, *range(7, 100))
    with pytest.raises(TrainingError, match="as before on different data from the checkpoint"):
        train(base, "--save-every", "4")
    folder = base / "base" / "runs" / "tiny" / "base_train"
    assert kept(folder) == [4]
    assert MAX_REWINDS == 3


def test_without_a_checkpoint_there_is_nothing_to_go_back_to(base, monkeypatch):
    broken_steps(monkeypatch, *range(3, 100))
    with pytest.raises(TrainingError, match="no checkpoint to go back to: lower the learning rat"):
        train(base, "--save-every", "10")


# --- evaluations that fail


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA out of memory. Tried to")])
def test_an_evaluation_without_memory_does_not_end_training(base, monkeypatch, capsys, error):
    real, calls = bits_per_byte._sum_losses, []

    def fails_at_first(*args):
        calls.append(None)
        if len(calls) == 1:
            raise error
        return real(*args)

    monkeypatch.setattr(bits_per_byte, "_sum_losses", fails_at_first)
    folder = train(base, "--save-every", "4", "--eval-every", "4")
    assert "warning: evaluation skipped: out of memory; reduce it" in capsys.readouterr().out
    assert list(rows(folder, "val_bpb")) == [8, 12, 16]
    assert (folder / "result.json").exists()


def test_samples_without_memory_do_not_end_training(base, monkeypatch, capsys):
    monkeypatch.setattr(stage_hooks, "Engine", lambda *a, **k: (_ for _ in ()).throw(MemoryError()))
    folder = train(base)
    assert "warning: samples skipped: out of memory" in capsys.readouterr().out
    result = json.loads((folder / "result.json").read_text())
    assert result["samples"] == []


def test_an_evaluation_that_fails_otherwise_is_not_hidden(base, monkeypatch):
    def broken(*args):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(bits_per_byte, "_sum_losses", broken)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        train(base)


def test_steps_are_recorded_where_that_is_asked_for(base):
    folder = train(base, "--profile", "2")
    trace = json.loads((folder / "trace.json").read_text())
    steps = {e["name"] for e in trace["traceEvents"] if e["name"].startswith("ProfilerStep")}
    assert steps == {"ProfilerStep#4", "ProfilerStep#5"}
    assert any(event["name"] == "aten::mm" for event in trace["traceEvents"])


# --- what a kill or a signal must not change


def test_an_evaluation_that_a_kill_cut_off_is_made_up(base, monkeypatch):
    """Killed between saving step 8 and its evaluation, or before the last one."""
    args = ["--save-every", "4", "--eval-every", "4", "--keep", "9"]
    folder = train(base, *args)
    expected = read_rows(folder / "metrics.jsonl")
    for step in (8, 16):
        forget_after(folder, step)
        rows_before = (folder / "metrics.jsonl").read_text().splitlines()
        cut = next(i for i, row in enumerate(rows_before) if f'"step": {step}, "val_bpb"' in row)
        (folder / "metrics.jsonl").write_text("\n".join(rows_before[:cut]) + "\n")
        train(base, *args, "--resume")
        assert without_times(read_rows(folder / "metrics.jsonl")) == without_times(expected)


def without_times(found: list[dict]) -> list[dict]:
    return [{k: v for k, v in row.items() if k not in MEASURED} for row in found]


def forget_after(folder: Path, step: int) -> None:
    """Leave a stage as if it had been killed before its next checkpoint."""
    for path in checkpoint_manager.steps(folder):
        if checkpoint_manager.step_of(path) > step:
            checkpoint_manager.remove(path)
    (folder / "result.json").unlink(missing_ok=True)


def stopped_at(steps: Sequence[int], monkeypatch) -> None:
    """Have a run be asked to stop in each of some steps, once."""
    build, asked = Trainer.__init__, []

    def init(trainer, **options):
        def stop():
            step = trainer.progress.step + 1
            return step in steps and step not in asked and not asked.append(step)

        build(trainer, **{**options, "stop": stop})

    monkeypatch.setattr(Trainer, "__init__", init)


@pytest.mark.slow
@pytest.mark.parametrize("stops", [(6, 10), (8,)])
def test_what_a_signal_saves_changes_neither_a_rewind_nor_what_is_kept(base, monkeypatch, stops):
    """Steps 7 to 11 are not finite; the run is stopped before, in or within them, and resumed."""
    args = ["--save-every", "4", "--eval-every", "4", "--keep", "1", "--keep-best"]
    taken = broken_steps(monkeypatch, *range(7, 12))
    folder = train(base, *args)
    expected, weights = rows(folder, "loss"), (folder / "step_000016" / "model.safetensors")
    evaluated, before, stayed = rows(folder, "val_bpb"), weights.read_bytes(), kept(folder)
    folder.rename(folder.with_name("whole"))
    del taken[:]
    stopped_at(stops, monkeypatch)
    for stop in stops:
        with pytest.raises(Stopped):
            train(base, *args, "--resume")
        assert kept(folder)[-1] == stop
    train(base, *args, "--resume")
    assert rows(folder, "loss") == expected
    assert rows(folder, "val_bpb") == evaluated
    assert weights.read_bytes() == before
    assert kept(folder) == stayed


def test_an_altered_description_is_skipped(base, capsys):
    folder = train(base, "--save-every", "4", "--keep", "9")
    expected = rows(folder, "loss")
    meta = folder / "step_000016" / "meta.json"
    text = meta.read_text()
    for old, new in (('"next_row": 128', '"next_row": 160'), ('"state"', '"sta4e"')):
        forget_after(folder, 16)
        assert old in text
        meta.write_text(text.replace(old, new))
        train(base, "--save-every", "4", "--keep", "9", "--resume")
        assert "step_000016/meta.json is altered: skipping this" in capsys.readouterr().out
        assert rows(folder, "loss") == expected


def test_a_file_that_cannot_be_read_is_skipped(base, monkeypatch, capsys):
    folder = train(base, "--save-every", "4", "--keep", "9")
    forget_after(folder, 16)
    real = storage.sha256_of

    def bad_sector(path):
        if path.parent.name == "step_000016":
            raise OSError(errno.EIO, "Input/output error", str(path))
        return real(path)

    monkeypatch.setattr(storage, "sha256_of", bad_sector)
    assert checkpoint_manager.newest_valid(folder)[0].name == "step_000012"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_errors_of_safetensors_about_the_disk_are_understood(base, monkeypatch, capsys, number):
    """The saves of steps 8 and 12 fail; older checkpoints make room on a full disk only."""
    real = store.save_file

    def fails(tensors, path):
        if path.parent.name.startswith((".step_000008", ".step_000012")):
            raise SafetensorError(f"Error while serializing: I/O error: x (os error {number})")
        real(tensors, path)

    monkeypatch.setattr(store, "save_file", fails)
    folder = train(base, "--save-every", "2", "--keep", "9")
    output = capsys.readouterr().out
    assert f"warning: checkpoint not saved at step 12 ([Errno {number}]" in output
    assert ("the disk is full; 2 older" in output) == (number != errno.EIO)
    assert kept(folder) == ([2, 4, 6, 10, 14, 16] if number == errno.EIO else [10, 14, 16])


def test_older_checkpoints_that_cannot_be_removed_cost_a_warning(base, monkeypatch, capsys):
    def refuse(path):
        raise OSError(errno.ENOTEMPTY, "Directory not empty", str(path))

    monkeypatch.setattr(checkpoint_manager, "remove", refuse)
    folder = train(base, "--save-every", "4", "--keep", "1")
    assert "warning: older checkpoints could not be removed" in capsys.readouterr().out
    assert kept(folder) == [4, 8, 12, 16]
