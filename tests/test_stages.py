"""Stages as a user runs them: on your own files, on two ranks, resumed, and with bad input."""

import dataclasses
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nanochat import checkpoint_manager, optim
from nanochat.gpt import attention
from nanochat.optim import scaling
from nanochat.stages import base_train, chat_rl, chat_sft, mid_train
from nanochat.system import device, memory
from nanochat.system.errors import CheckpointError, ConfigError, DataError
from nanochat.system.metrics import MEASURED, read_rows
from nanochat.training import memory_plan

ROOT = Path(__file__).parent.parent
TINY = (
    "--run tiny --depth 1 --width 32 --heads 2 --sequence-length 32 --tokens-per-step 256 "
    "--device-batch-size 4 --tokens 2048 --no-compile --log-every 1 --device cpu --val-rows 4"
).split()


def train(base: Path, *args: str) -> Path:
    base_train.main([*TINY, "--data", str(base / "texts.jsonl"), *args])
    return base / "base" / "runs" / "tiny" / "base_train"


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in read_rows(folder / "metrics.jsonl") if "loss" in row]


def test_base_training_learns_saves_and_records(base):
    folder = train(base, "--dtype", "float32")
    found = losses(folder)
    assert len(found) == 8
    assert found[-1] < found[0]
    result = json.loads((folder / "result.json").read_text())
    assert {row["name"] for row in result["results"]} >= {"final training loss", "val_bpb"}
    config = json.loads((folder / "config.json").read_text())
    assert config["options"]["tokens_per_step"] == 256
    assert config["compute_dtype"] == "float32"
    assert [path.name for path in checkpoint_manager.steps(folder)] == ["step_000008"]


def test_a_stage_is_not_overwritten_but_resumed(base):
    folder = train(base, "--dtype", "float32", "--save-every", "4", "--keep", "3")
    expected = losses(folder)
    with pytest.raises(ConfigError, match="already has base_train checkpoints"):
        train(base)
    last = checkpoint_manager.latest(folder)
    for file in last.iterdir():
        file.unlink()
    last.rmdir()
    (folder / "result.json").unlink()
    train(base, "--dtype", "float32", "--resume")
    assert losses(folder) == expected
    assert checkpoint_manager.latest(folder).name == "step_000008"


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_resume_skips_damaged_checkpoints(base, capsys):
    folder = train(base, "--dtype", "float32", "--save-every", "2", "--keep", "4")
    expected = losses(folder)
    (folder / "result.json").unlink()
    (folder / "step_000008" / "meta.json").unlink()
    flip_a_bit(folder / "step_000006" / "optimizer.safetensors")
    train(base, "--dtype", "float32", "--resume", "--save-every", "2", "--keep", "1")
    output = capsys.readouterr().out
    assert "step_000008/meta.json: no such checkpoint description: skipping this" in output
    assert "step_000006/optimizer.safetensors is missing or altered: skipping this" in output
    assert f"resuming base_train from {folder / 'step_000004'}" in output
    assert losses(folder) == expected
    assert [path.name for path in checkpoint_manager.steps(folder)] == ["step_000008"]
    assert {path.name for path in folder.glob("damaged_*")} == {
        "damaged_step_000006",
        "damaged_step_000008",
    }
    flip_a_bit(folder / "step_000008" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* is valid \(.*model\.safet"):
        train(base, "--dtype", "float32", "--resume")
    (folder / "step_000008" / "meta.json").unlink()
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* is valid \(.*meta\.json"):
        train(base, "--dtype", "float32", "--resume")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the ranks' processes in /proc")
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_signal_to_one_rank_saves_and_ends_all(base, ranks):
    args = [*TINY, "--data", str(base / "texts.jsonl"), "--dtype", "float32", "--threads", "1"]
    args += ["--tokens", "256000", "--log-every", "7"]
    command = [sys.executable, "-m", "nanochat.stages.base_train", *args]
    if ranks == 2:
        launch = ["torch.distributed.run", "--standalone", "--nproc_per_node=2"]
        command = [sys.executable, "-m", *launch, "-m", "nanochat.stages.base_train", "--", *args]
    process = subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    next(line for line in process.stdout if line.startswith("step 14/"))
    workers = children(process.pid) if ranks == 2 else [process.pid]
    assert len(workers) == ranks
    os.kill(workers[-1], signal.SIGTERM)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors[-2000:]
    folder = base / "base" / "runs" / "tiny" / "base_train"
    saved = checkpoint_manager.latest(folder)
    assert f"saved {saved}\n" in output
    step = int(saved.name.removeprefix("step_"))
    assert 14 <= step < 1000
    assert f"base_train stopped at step {step:,}; --resume continues from there" in output
    assert not (folder / "result.json").exists()
    args[args.index("256000")] = str(256 * (step + 8))
    base_train.main([*args, "--resume"])
    assert (folder / "result.json").exists()
    rows = [row["step"] for row in read_rows(folder / "metrics.jsonl") if "loss" in row]
    assert rows == sorted({1, *range(7, step + 8, 7), step + 8})


def children(parent: int) -> list[int]:
    """The process ids of a process's children."""
    return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def test_a_refused_resume_leaves_the_record_as_it_was(base):
    folder = train(base)
    before = {name: (folder / name).read_bytes() for name in ("config.json", "metrics.jsonl")}
    other = base / "other.jsonl"
    other.write_text((base / "texts.jsonl").read_text().replace("cat", "dog"))
    with pytest.raises(CheckpointError, match="cannot resume: the data of the training rows"):
        base_train.main([*TINY, "--data", str(other), "--resume"])
    assert {name: (folder / name).read_bytes() for name in before} == before


def ending(folder: Path) -> dict[str, Any]:
    """What a run must end with, bit for bit: its last checkpoint, and its metrics except times."""
    last = checkpoint_manager.latest(folder)
    rows = [
        {name: value for name, value in row.items() if name not in MEASURED}
        for row in read_rows(folder / "metrics.jsonl")
    ]
    files = {
        name: hashlib.sha256((last / name).read_bytes()).hexdigest()
        for name in ("model.safetensors", "optimizer.safetensors")
    }
    return {"checkpoint": last.name, "rows": rows, **files}


def record(folder: Path, **changes: Any) -> dict[str, Any]:
    """A stage's config.json, after some changes to it."""
    found = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(found))
    return found


@pytest.mark.slow
def test_a_resumed_stage_keeps_dtype_threads_backend_and_compiler(base, capsys, caplog):
    folder = train(base, "--dtype", "float64", "--threads", "1")
    before = record(folder)
    assert (before["attention"], before["threads"], before["compiled"]) == ("blocks", 1, False)
    args = [arg for arg in TINY if arg != "--no-compile"] + ["--data", f"{base}/texts.jsonl"]
    with caplog.at_level("INFO"):
        base_train.main([*args, "--tokens", "4096", "--resume"])
    found = record(folder)
    assert found["compute_dtype"] == "float64"
    kept = ("attention", "threads", "compiled")
    assert [found[name] for name in kept] == [before[name] for name in kept]
    assert len(losses(folder)) == 16
    if device.cores() > 1:
        assert "1 threads, as before; --threads" in caplog.text
    base_train.main([*args, "--tokens", "6144", "--resume", "--threads", "2", "--no-compile"])
    assert record(folder)["threads"] == 2


def test_a_resume_warns_if_it_cannot_continue_as_before(base, monkeypatch, capsys, caplog):
    folder = train(base, "--dtype", "float32")
    record(folder, threads=1000)
    choose = attention.choose

    def lost(name, where):
        if name == "blocks":
            raise ConfigError("attention backend 'blocks' does not work here")
        return choose(name, where)

    monkeypatch.setattr(attention, "choose", lost)
    train(base, "--tokens", "4096", "--resume")
    assert f"started with 1000 threads, only {device.cores()} available" in caplog.text
    assert record(folder)["threads"] == device.cores()
    output = capsys.readouterr().out
    assert "backend 'blocks' does not work here; results may differ in the last bits" in output
    record(folder, threads="many", attention=3, compute_dtype=None, world_size=[], compiled="no")
    train(base, "--tokens", "6144", "--resume", "--dtype", "float32")
    assert record(folder)["threads"] == device.cores()


def test_a_stage_killed_before_its_first_checkpoint_starts_again_as_before(base):
    folder = train(base, "--dtype", "float64")
    expected = ending(folder)
    for path in checkpoint_manager.steps(folder):
        shutil.rmtree(path)
    train(base, "--resume")
    assert record(folder)["compute_dtype"] == "float64"
    assert ending(folder) == expected


def test_epsilon_and_rates_follow_the_tokens_of_a_step(base, monkeypatch):
    asked = []
    build = optim.build

    def spy(model, cfg, run, *, tokens_per_step):
        asked.append((tokens_per_step, cfg.lr_scale))
        return build(model, cfg, run, tokens_per_step=tokens_per_step)

    monkeypatch.setattr(optim, "build", spy)
    monkeypatch.setattr(scaling, "MIN_LR_SCALE", 0.0)
    train(base)
    chat_sft.main([*CHAT, "--data", str(chats(base / "chats.jsonl")), "--lr-scale", "0.3"])
    expected = [(256, (256 / 2**19) ** 0.5), (64, 0.3 * (64 / 2**19) ** 0.5)]
    assert asked == [(tokens, pytest.approx(rate)) for tokens, rate in expected]


def chats(path: Path, count: int = 80) -> Path:
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"cat {i}"},
                {"role": "assistant", "content": f"mat {i}"},
            ]
        }
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


CHAT = (
    "--run tiny --tokens-per-step 64 --device-batch-size 4 --no-compile --log-every 1 --device cpu"
).split()


@pytest.mark.slow
def test_conversations_of_your_own_train_a_chat_model(base):
    train(base)
    data = chats(base / "chats.jsonl")
    mid_train.main([*CHAT, "--data", str(data), "--epochs", "2"])
    chat_sft.main([*CHAT, "--data", str(data), "--val-data", str(data)])
    folder = base / "base" / "runs" / "tiny" / "chat_sft"
    config = json.loads((folder / "config.json").read_text())
    assert "mid_train" in config["source"]
    found = losses(folder)
    assert found[-1] < losses(base / "base" / "runs" / "tiny" / "mid_train")[0]
    chat_sft.main(
        [*CHAT, "--data", str(data), "--val-data", str(data), "--epochs", "2", "--resume"]
    )
    config = json.loads((folder / "config.json").read_text())
    assert "mid_train" in config["source"]  # not the checkpoint that it resumed from


def test_conversations_that_do_not_fit_cost_a_warning(base, capsys):
    train(base)
    data = chats(base / "chats.jsonl")
    long = {"role": "user", "content": "the cat sat on the mat. " * 4}
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    for row in rows[::4]:
        row["messages"][0] = long
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    chat_sft.main([*CHAT, "--data", str(data), "--val-data", str(data)])
    output = capsys.readouterr().out
    assert (
        "warning: of the conversations 25% are left out because no answer starts within 32 tokens; "
        "raise --sequence-length" in output
    )
    folder = base / "base" / "runs" / "tiny" / "chat_sft"
    facts = json.loads((folder / "result.json").read_text())["settings"]
    assert facts["conversations_left_out"] == 0.25


def test_auto_takes_all_rows_of_a_step_where_they_fit_and_records_the_number(base, capsys):
    folder = train(base, "--device-batch-size", "auto", "--dtype", "float32")
    assert "--device-batch-size auto: 8 rows of 32 tokens, 1 passes" in capsys.readouterr().out
    config = json.loads((folder / "config.json").read_text())
    assert config["options"]["device_batch_size"] == "auto"
    assert config["device_batch_size"] == 8
    assert json.loads((folder / "result.json").read_text())["settings"]["device_batch_size"] == 8


@pytest.mark.slow
def test_a_resumed_auto_keeps_its_rows_where_they_fit(base, capsys):
    args = ["--device-batch-size", "auto", "--dtype", "float32"]
    folder = train(base, *args)
    record(folder, device_batch_size=3)
    train(base, *args, "--tokens", "4096", "--resume")
    assert "auto: 3 rows of 32 tokens, 3 passes per step" in capsys.readouterr().out
    record(folder, device_batch_size=10_000)
    train(base, *args, "--tokens", "6144", "--resume")
    assert "auto: 8 rows of 32 tokens, 1 passes per step" in capsys.readouterr().out


@pytest.mark.slow
def test_auto_splits_a_step_where_memory_is_short_and_trains_the_same(base, monkeypatch, capsys):
    train(base, "--dtype", "float64", "--run", "whole", "--tokenizer", "tiny")
    expected = losses(base / "base" / "runs" / "whole" / "base_train")
    args = ["--dtype", "float64", "--device-batch-size", "auto"]
    estimate = memory_plan.estimate
    taken = memory.resident_bytes()
    monkeypatch.setattr(memory, "resident_bytes", lambda: taken)
    short = []

    def note(config, step, *, resident_bytes):
        found = estimate(config, step, resident_bytes=resident_bytes)
        short.append(step.rows)
        there = taken + memory.memory_left()
        # As if the memory were enough for three rows.
        return dataclasses.replace(
            found, peak=dataclasses.replace(found.peak, heap=0 if step.rows <= 3 else 2 * there)
        )

    monkeypatch.setattr(memory_plan, "estimate", note)
    found = losses(train(base, *args))
    assert short[0] == 8
    assert "auto: 3 rows of 32 tokens, 3 passes" in capsys.readouterr().out
    assert found == pytest.approx(expected, rel=1e-9)
    monkeypatch.setattr(memory, "memory_left", lambda: -taken)
    with pytest.raises(ConfigError, match=r"auto: not even one row of 32 tokens fits.*estimated"):
        train(base, *args, "--run", "none", "--tokenizer", "tiny")


@pytest.mark.slow
def test_every_chat_stage_takes_auto_and_computes_layers_again(base):
    train(base, "--checkpoint-activations")
    chat = [arg if arg != "4" else "auto" for arg in CHAT] + ["--checkpoint-activations"]
    data = ["--data", str(chats(base / "chats.jsonl"))]
    chat_sft.main([*chat, *data])
    tasks = ["--tasks", f"gsm8k={problems(base / 'gsm8k')}", "--steps", "2", "--eval-items", "2"]
    rollouts = ["--prompts-per-step", "2", "--samples-per-prompt", "3", "--max-new-tokens", "4"]
    rl = [arg for arg in chat if arg not in ("--tokens-per-step", "64", "--no-compile")]
    chat_rl.main([*rl, *tasks, *rollouts])
    for stage, rows in (("chat_sft", 2), ("chat_rl", 6)):
        folder = base / "base" / "runs" / "tiny" / stage
        assert json.loads((folder / "config.json").read_text())["device_batch_size"] == rows


def problems(folder: Path) -> Path:
    """A folder in GSM8K's layout with problems of one step."""
    folder.mkdir()
    for name in ("train", "test"):
        rows = [
            {"question": f"cat {i} and {i}?", "answer": f"<<{i}+{i}={2 * i}>>{2 * i}\n#### {2 * i}"}
            for i in range(20)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_what_is_missing_is_named_with_its_remedy(base):
    with pytest.raises(ConfigError, match=r"no tokenizer 'other'.*nanochat tok_train"):
        train(base, "--run", "other")
    with pytest.raises(CheckpointError, match=r"has no base_train checkpoint.*nanochat base_train"):
        mid_train.main([*CHAT, "--data", str(chats(base / "c.jsonl"))])
    with pytest.raises(DataError, match="nowhere"):
        train(base, "--data", str(base / "nowhere.jsonl"))
    with pytest.raises(DataError, match="too small"):
        train(base, "--tokens-per-step", "1000000", "--tokens", "1000000")
    with pytest.raises(ConfigError, match="--tokens-per-step 8 is less than one row"):
        train(base, "--tokens-per-step", "8")
    assert not (base / "base" / "runs" / "tiny" / "base_train").exists()


def test_every_preset_fits_the_stages_it_is_for():
    import importlib
    import tomllib

    from nanochat.stages.__main__ import STAGES
    from nanochat.system import config

    for path in (ROOT / "nanochat" / "presets").glob("*.toml"):
        sections = tomllib.loads(path.read_text())
        common = set(sections.pop("common", {}))
        used = set()
        assert set(sections) <= set(STAGES)
        for stage in sections:
            module = importlib.import_module(f"nanochat.stages.{stage}")
            names = [
                n
                for n in vars(module)
                if n.endswith("Config") and n.lower().startswith(stage.replace("_", ""))
            ]
            # "auto" would need a GPU.
            options = config.parse(
                vars(module)[names[0]],
                ["--preset", path.stem],
                stage=stage,
                resolve=lambda values: values | dict.fromkeys(values.keys() & {"depth"}, 12),
            )
            used |= {name.replace("_", "-") for name in config.to_dict(options)}
        assert common <= used, f"{path.name}: no stage has {common - used}"
