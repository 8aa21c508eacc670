"""Metrics, samples, traces, Weights & Biases and reports can fail; training goes on to its end."""

import contextlib
import errno
import json
import logging
import math
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from nanochat import checkpoint_manager, report
from nanochat.stages import base_train
from nanochat.system import storage, wandb_run
from nanochat.system.distributed import single_run
from nanochat.system.errors import ConfigError, Stopped
from nanochat.system.metrics import MetricsLogger, read_rows
from nanochat.training import stage_hooks

TINY = (
    "--run tiny --depth 1 --width 32 --heads 2 --sequence-length 32 --tokens-per-step 256 "
    "--device-batch-size 4 --tokens 1024 --no-compile --log-every 1 --device cpu --val-rows 4"
).split()
FULL = OSError(errno.ENOSPC, "No space left on device")


def train(base: Path, *args: str) -> Path:
    base_train.main([*TINY, "--data", str(base / "texts.jsonl"), *args])
    return base / "base" / "runs" / "tiny" / "base_train"


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def fails(*args: object, **more: object) -> None:
    raise FULL


# --- metrics.jsonl


def test_rows_that_cannot_be_written_follow_once_they_can(tmp_path, caplog):
    folder, away = tmp_path / "stage", tmp_path / "away"
    with MetricsLogger(folder, single_run()) as logger:
        logger.log(1, {"loss": 1.0})
        folder.rename(away)  # a network disk that went away
        logger.log(2, {"loss": 2.0})
        logger.log(3, {"loss": 3.0})
        away.rename(folder)
        logger.log(4, {"loss": 4.0})
    assert [row["loss"] for row in read_rows(folder / "metrics.jsonl")] == [1, 2, 3, 4]
    said = warnings_in(caplog)
    assert len(said) == 1
    assert "metrics.jsonl cannot be written ([Errno 2]" in said[0]


def test_a_row_written_in_part_is_completed(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with MetricsLogger(tmp_path, single_run()) as logger:
        logger.log(1, {"loss": 1.0})
        resource.setrlimit(resource.RLIMIT_FSIZE, (40, limits[1]))  # bytes: the row is cut
        try:
            logger.log(2, {"loss": 2.0})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert len((tmp_path / "metrics.jsonl").read_bytes()) == 40
    assert [row["loss"] for row in read_rows(tmp_path / "metrics.jsonl")] == [1, 2]


def test_a_resume_or_rewind_without_room_to_rewrite_loses_no_row(tmp_path, monkeypatch, caplog):
    with MetricsLogger(tmp_path, single_run()) as logger:
        for step in (1, 2, 3):
            logger.log(step, {"loss": float(step)})
    write = storage.write_atomic
    monkeypatch.setattr(storage, "write_atomic", fails)
    with MetricsLogger(tmp_path, single_run(), resume_step=2) as logger:
        assert len(read_rows(tmp_path / "metrics.jsonl")) == 3  # as it was
        logger.log(3, {"loss": 30.0})
        logger.log(4, {"loss": 40.0})
        monkeypatch.setattr(storage, "write_atomic", write)
        logger.log(5, {"loss": 50.0})
        rows = read_rows(tmp_path / "metrics.jsonl")
        assert [row["loss"] for row in rows] == [1, 2, 30, 40, 50]
        monkeypatch.setattr(storage, "write_atomic", fails)
        logger.rewind(3)
        monkeypatch.setattr(storage, "write_atomic", write)
    assert [row["loss"] for row in read_rows(tmp_path / "metrics.jsonl")] == [1, 2, 30]
    assert len(warnings_in(caplog)) == 1


def test_metrics_that_cannot_be_read_do_not_prevent_a_resume(base, caplog):
    folder = train(base, "--save-every", "2")
    (folder / "result.json").unlink()
    (folder / "metrics.jsonl").unlink()
    (folder / "metrics.jsonl").mkdir()
    caplog.clear()
    train(base, "--resume")
    assert report.is_complete(folder)
    assert len(warnings_in(caplog)) == 1
    report.build(folder.parent)


def test_rows_are_json_whatever_the_values_are(tmp_path):
    values = {
        "float32": np.float32(0.5), "int64": np.int64(7), "nan": math.nan, "inf": np.float64("inf"),
        "tensor": torch.tensor(2.5), "array": np.arange(2), "path": Path("a"), "text": "天\ud800",
        "nested": {1: (torch.tensor(True), -math.inf)}, "other": {1},
    }  # fmt: skip
    with MetricsLogger(tmp_path, single_run()) as logger:
        logger.log(np.int64(1), values)
    line = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(line, parse_constant=pytest.fail) == {
        "step": 1, "float32": 0.5, "int64": 7, "nan": None, "inf": None, "tensor": 2.5,
        "array": [0, 1], "path": "a", "text": "天\ud800", "nested": {"1": [True, None]},
        "other": "{1}",
    }  # fmt: skip
    report.record(tmp_path, values)
    assert storage.read_json(tmp_path / "result.json", "result")["text"] == "天\ud800"


@pytest.mark.parametrize("line", ["1", '{"step": "x"}', "[" * 9999, '{"step": null}'])
def test_damaged_rows_are_dropped(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1}}\n{line}\n')
    with MetricsLogger(tmp_path, single_run(), resume_step=3):
        assert read_rows(tmp_path / "metrics.jsonl") == [{"step": 1}]


# --- samples, traces, the record


def test_samples_that_fail_cost_a_warning_with_the_reason(base, monkeypatch, capsys):
    def refuse(*args: object, **more: object) -> None:
        raise ValueError("no such token")

    monkeypatch.setattr(stage_hooks, "Engine", refuse)
    folder = train(base, "--sample-every", "2")
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]
    assert said == ["warning: samples skipped: ValueError: no such token"] * 2
    assert storage.read_json(folder / "result.json", "result")["samples"] == []
    assert checkpoint_manager.latest(folder).name == "step_000004"


def test_a_trace_that_cannot_be_written_costs_a_warning(base, monkeypatch, capsys):
    class Profile(contextlib.nullcontext):
        export_chrome_trace = fails

        def __init__(self, *, schedule: object, on_trace_ready: Any) -> None:
            super().__init__(self)
            self.step = lambda: on_trace_ready(self)

    monkeypatch.setattr(torch.profiler, "profile", Profile)
    folder = train(base, "--profile", "1")
    assert "trace.json cannot be written ([Errno 28]" in capsys.readouterr().out
    assert report.is_complete(folder)


def test_a_record_that_cannot_be_written_is_all_that_a_resume_has_to_do(base, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(report, "record", fails)
        with pytest.raises(OSError, match="No space"):
            train(base)
    folder = base / "base" / "runs" / "tiny" / "base_train"
    weights = (folder / "step_000004" / "model.safetensors").read_bytes()
    train(base, "--resume")
    assert report.is_complete(folder)
    assert (folder / "step_000004" / "model.safetensors").read_bytes() == weights


# --- Weights & Biases


class FakeWandb:
    """Records calls; `broken` names the ones that raise."""

    def __init__(self, broken: str = "", error: BaseException | None = None) -> None:
        self.broken, self.error = broken.split(), error or RuntimeError("mailbox\nclosed")
        self.calls: list[tuple[str, Any]] = []
        kinds = {"UsageError": type("UsageError", (Exception,), {})}
        kinds["AuthenticationError"] = type("AuthenticationError", (Exception,), {})
        self.errors = SimpleNamespace(**kinds)
        self.dir = "/disk/offline-run-1/files"

    def setup(self) -> SimpleNamespace:
        return SimpleNamespace(settings=SimpleNamespace(mode="online"))

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **more: Any) -> "FakeWandb":
            self.calls.append((name, more or args))
            if name in self.broken and more.get("mode") != "offline":
                raise self.error
            return self

        return call

    def given(self, name: str) -> list[Any]:
        return [value for called, value in self.calls if called == name]


def use(monkeypatch: pytest.MonkeyPatch, fake: FakeWandb) -> FakeWandb:
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def test_a_resumed_stage_continues_its_wandb_run_and_a_new_one_does_not(base, monkeypatch):
    fake = use(monkeypatch, FakeWandb())
    args = ("--wandb", "p", "--save-every", "2")
    folder = train(base, *args)
    (folder / "result.json").unlink()
    train(base, "--resume", "--tokens", "1536")  # without --wandb: the id must not be forgotten
    train(base, *args, "--resume", "--tokens", "2048")
    first, second = fake.given("init")
    assert first["id"] == second["id"]
    assert (second["resume"], second["project"], second["name"]) == (
        "allow",
        "p",
        "tiny/base_train",
    )
    assert fake.given("define_metric") == [{"step_metric": "step"}] * 2
    rows = [row for (row,) in fake.given("log")]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4, 7, 8]
    assert fake.given("finish") == [{"exit_code": 0}] * 2
    train(base, *args, "--run", "other", "--tokenizer", "tiny")
    assert fake.given("init")[2]["id"] != first["id"]
    for step in checkpoint_manager.steps(folder):
        checkpoint_manager.remove(step)
    train(base, *args, "--resume")  # nothing is left of the first
    assert fake.given("init")[3]["id"] not in (first["id"], fake.given("init")[2]["id"])


@pytest.mark.parametrize("kind", [RuntimeError, SystemExit])
def test_a_wandb_that_fails_while_training_costs_one_warning(base, monkeypatch, caplog, kind):
    fake = use(monkeypatch, FakeWandb("define_metric log finish", kind("mailbox\nclosed")))
    folder = train(base, "--wandb", "p")
    assert warnings_in(caplog) == [
        f"warning: Weights & Biases fails ({kind.__name__}: mailbox closed); training continues; "
        "metrics.jsonl has the figures"
    ]
    assert len(fake.given("log")) == 5  # it is tried again: the service may come back
    assert report.is_complete(folder)


def test_a_wandb_that_does_not_answer_is_logged_to_offline(monkeypatch, caplog):
    fake = use(monkeypatch, FakeWandb("init", TimeoutError("timed out after 90 s")))
    run = wandb_run.WandbRun("p", name="n", config={}, run_id="abc")
    run.log({"step": 1})
    assert fake.given("init")[1] == {
        "project": "p", "name": "n", "config": {}, "id": "abc", "mode": "offline",
    }  # fmt: skip
    assert fake.given("log") == [({"step": 1},)]
    assert warnings_in(caplog) == [
        "warning: Weights & Biases fails (TimeoutError: timed out after 90 s); training continues; "
        "`wandb sync /disk/offline-run-1` uploads the run afterwards"
    ]


def test_no_key_for_wandb_is_a_users_mistake_before_any_work(base, monkeypatch):
    use(monkeypatch, FakeWandb("login", ValueError("No API key configured.")))
    with pytest.raises(ConfigError, match=r"--wandb p: No API key configured\.; log in with"):
        train(base, "--wandb", "p")
    assert not (base / "base" / "runs").exists()
    fake = FakeWandb("init")
    fake.error = fake.errors.UsageError("bad project name")
    use(monkeypatch, fake)
    with pytest.raises(ConfigError, match="--wandb p: bad project name; log in with"):
        wandb_run.WandbRun("p", name="n", config={})


def test_a_stop_is_no_failure_of_the_wandb_run(tmp_path, monkeypatch):
    fake = use(monkeypatch, FakeWandb())
    for error in (Stopped, ValueError):
        run = wandb_run.WandbRun("p", name="n", config={})
        with pytest.raises(error), MetricsLogger(tmp_path, single_run(), wandb=run):
            raise error
    assert fake.given("finish") == [{"exit_code": 0}, {"exit_code": 1}]


@pytest.mark.slow
def test_the_real_wandb_continues_an_offline_run_under_its_id(base, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.chdir(base)
    for name, value in {"MODE": "offline", "SILENT": "true", "CONFIG_DIR": "c", "DIR": "."}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    folder = train(base, "--wandb", "p", "--save-every", "2")
    (folder / "result.json").unlink()
    train(base, "--wandb", "p", "--resume", "--tokens", "1536")
    run_id = storage.read_json(folder / "config.json", "config")["wandb_id"]
    # offline-run-<date>_<time>-<id>, and "-1" for a second one within the same second
    found = [path.name.split("-")[3] for path in (base / "wandb").glob("offline-run-*")]
    assert found == [run_id, run_id]


# --- speedrun.sh


STAND_IN = """#!/usr/bin/env bash
# For "$PYTHON": every stage records that it is complete, and the report fails.
case "$*" in
    *machine*) echo 0 ;;
    *run_dir*) echo "$NANOCHAT_BASE_DIR/run" ;;
    *scripts.report*) exit 2 ;;
    *scripts.plan*) exit 141 ;;
    *scripts.chat_web*) echo served >"$NANOCHAT_BASE_DIR/served" ;;
    *)
        stage=$NANOCHAT_BASE_DIR/run/${2#scripts.}
        mkdir -p "$stage"
        echo {} >"$stage/result.json"
        ;;
esac
"""


def test_a_run_whose_report_fails_or_whose_output_is_not_read_is_served_nevertheless(tmp_path):
    root = Path(__file__).parent.parent
    shutil.copy(root / "speedrun.sh", tmp_path)
    (tmp_path / "scripts").mkdir()
    stand_in = tmp_path / "python"
    stand_in.write_text(STAND_IN)
    stand_in.chmod(0o755)
    log = next(
        line
        for line in (root / "scripts" / "bootstrap.sh").read_text().splitlines()
        if line.startswith("log()")
    )
    bootstrap = f"{log}\nbootstrap() {{ PYTHON={stand_in}; }}\n"
    (tmp_path / "scripts" / "bootstrap.sh").write_text(bootstrap)
    done = subprocess.run(
        ["bash", "-c", "bash speedrun.sh 2>&1 | head -1"],
        cwd=tmp_path,
        env={**os.environ, "NANOCHAT_BASE_DIR": str(tmp_path / "base"), "PRESET": "pocket"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("== setup took")
    assert len(list((tmp_path / "base" / "run").glob("*/result.json"))) == 9
    assert (tmp_path / "base" / "served").exists()
