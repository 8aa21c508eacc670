"""User mistakes and machine errors end in a one-line message and leave no damaged files."""

import errno
import io
import json
import math
import os
import sys

import pytest
import torch

from nanochat import checkpoint_manager
from nanochat.checkpoint_manager import store
from nanochat.gpt import GPTConfig
from nanochat.stages import base_train, report, tok_train
from nanochat.system import config, device, storage
from nanochat.system.config import RunOptions
from nanochat.system.distributed import single_run
from nanochat.system.errors import CheckpointError, ConfigError, DataError, explain
from nanochat.system.metrics import read_rows
from nanochat.training.trainer import TrainingError

TINY = (
    "--run tiny --depth 1 --width 32 --heads 2 --sequence-length 32 --tokens-per-step 256 "
    "--device-batch-size 4 --tokens 2048 --no-compile --log-every 1 --device cpu --val-rows 4 "
    "--dtype float32 --threads 1"
).split()


def train(base, *args):
    base_train.main([*TINY, "--data", str(base / "texts.jsonl"), *args])
    return base / "base" / "runs" / "tiny" / "base_train"


def message_of(main, capsys):
    """The one-line message with which a script ends on an error."""
    with pytest.raises(SystemExit) as end:
        config.cli(main)
    assert end.value.code == 2
    text = capsys.readouterr().err
    assert text.startswith("error: ")
    assert text.count("\n") == 1
    return text


# --- flags and presets


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["--tokens", "99999999999999999999"],
            r"--tokens must be a whole number or none, of at most 2\^53",
        ),
        (["--lr-scale", "nan"], "--lr-scale must be a number, got 'nan'"),
        (["--lr-scale", "inf"], "--lr-scale must be a number, got 'inf'"),
        (["--data", "a\0b"], "--data must be readable UTF-8 text"),
        (["--data", "caf\udce9.txt"], r"--data must be readable UTF-8 text, got 'caf\\udce9.txt'"),
        (["--seed", "-1"], "--seed must be at least 0"),
        (["--threads", "100000"], "--threads must be from 1 to 1,024"),
        (["--run", "x" * 300], "--run must be at most 100 bytes"),
        (["--run", "a\nb"], "--run must be a plain name"),
        (["--heads", "0"], "--heads must be from 1 to 4,096, got 0"),
        (["--depth", "100000"], "--depth must be from 1 to 1,024"),
        (["--rope-base", "0"], "--rope-base must be above 1"),
        (["--softcap", "0"], "--softcap must be above 0 or none, got 0"),
        (["--matrix-lr", "-1"], "--matrix-lr must be at least 0, got -1"),
        (["--ratio", "0"], "--ratio must be above 0, got 0"),
        (["--tokens", "-1"], "--tokens must be at least 1 or none, got -1"),
        (["--tokens-per-step", "0"], "--tokens-per-step must be at least 1 or none, got 0"),
        (["--warmdown-frac", "2"], "--warmdown-frac must be from 0 to 1"),
        (["--warmup-steps", "-1"], "--warmup-steps must be at least 0"),
        (["--val-rows", "0"], "--val-rows must be at least 1"),
        (["--dept", "4"], "did you mean --depth"),
    ],
)
def test_an_invalid_value_is_refused_before_anything_starts(args, message):
    with pytest.raises(ConfigError, match=message):
        config.parse(base_train.BaseTrainConfig, args, stage="base_train")


def test_an_invalid_device_is_refused():
    for name in ("cpu:x", "tpu", ":", ""):
        with pytest.raises(ConfigError, match="--device must be"):
            device.choose_device(name)


def test_an_empty_base_folder_variable_means_the_default(monkeypatch):
    monkeypatch.delenv("NANOCHAT_BASE_DIR", raising=False)
    usual = storage.base_dir()
    monkeypatch.setenv("NANOCHAT_BASE_DIR", "")
    assert storage.base_dir() == usual


def test_a_preset_that_cannot_be_read_is_named(tmp_path):
    folder = tmp_path / "folder.toml"
    folder.mkdir()
    latin = tmp_path / "latin.toml"
    latin.write_bytes(b"[common]\ndata = 'caf\xe9'\n")
    loose = tmp_path / "loose.toml"
    loose.write_text("depth = 4\n")
    for path, message in (
        (folder, "cannot be read"),
        (latin, "is not valid TOML"),
        (loose, "'depth' is outside any"),
        ("pockt", "no such preset; use one of gpu1, pocket"),
    ):
        with pytest.raises(ConfigError, match=message):
            config.parse(base_train.BaseTrainConfig, ["--preset", str(path)], stage="base_train")


def test_help_shows_the_stages_own_flags_first_and_an_example(capsys):
    with pytest.raises(SystemExit):
        config.parse(tok_train.TokTrainConfig, ["--help"], stage="tok_train")
    text = capsys.readouterr().out
    assert text.index("--vocab-size") < text.index("--threads")
    assert "nanochat tok_train --preset pocket" in text
    assert "[True]" not in text


def test_a_report_of_a_run_whose_name_is_a_path_is_refused():
    with pytest.raises(ConfigError, match="--run must be a plain name"):
        report.main(["--run", "../elsewhere"])


def test_sizes_have_an_upper_limit():
    with pytest.raises(ConfigError, match=r"--vocab-size must be from 1 to 16,777,216"):
        config.from_dict(GPTConfig, {"vocab_size": 2**40})


# --- the machine's errors


def test_machine_errors_name_a_remedy():
    def of(error):
        return explain(error, base="/base")

    assert "no space left" in of(OSError(errno.ENOSPC, "No space left on device"))
    assert "/base" in of(OSError(errno.EDQUOT, "Disk quota exceeded"))
    assert "set NANOCHAT_BASE_DIR" in of(PermissionError(errno.EACCES, "Permission denied", "/x"))
    assert "a file is in the place of a folder" in of(
        NotADirectoryError(errno.ENOTDIR, "no", "/x/y")
    )
    assert of(OSError(errno.EFBIG, "File too large", "/x")).startswith("/x is larger than a file")
    assert "`ulimit -n`" in of(OSError(errno.EMFILE, "Too many open files", "/x"))
    assert "on a local disk" in of(OSError(errno.ENOSYS, "Function not implemented", "/x"))
    assert "check the disk" in of(OSError(errno.ESTALE, "Stale file handle", "/x"))
    assert "use a shorter one" in of(OSError(errno.ENAMETOOLONG, "File name too long", "/x"))
    assert "--device-batch-size" in of(torch.OutOfMemoryError("CUDA out of memory. Tried"))
    assert "--device-batch-size" in of(RuntimeError("DefaultCPUAllocator: can't allocate memory"))
    assert of(RuntimeError("shapes do not fit")) is None
    assert of(KeyError("x")) is None


def test_our_own_bugs_keep_their_traceback():
    def main() -> None:
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        config.cli(main)


def test_a_closed_output_pipe_is_not_an_error(monkeypatch):
    def main() -> None:
        sys.stdout.write("a line")
        sys.stdout.flush()

    read, write = os.pipe()
    os.close(read)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(os.fdopen(write, "wb")))
    with pytest.raises(SystemExit) as end:
        config.cli(main)
    assert end.value.code == 141


def test_a_closed_pipe_other_than_the_output_is_not_passed_over():
    def main() -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        config.cli(main)


def test_a_base_folder_that_is_a_file_is_named(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    (tmp_path / "text.txt").write_text("some words to learn from\n" * 50)
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "file" / "base"))
    args = ["--data", str(tmp_path / "text.txt"), "--tokenizer", "char"]
    text = message_of(lambda: tok_train.main(args), capsys)
    assert "a file is in the place of a folder" in text


def test_a_full_disk_at_the_final_save_leaves_nothing_half_written(base, monkeypatch, capsys):
    def refuse(tensors, path):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(store, "_save_tensors", refuse)
    text = message_of(lambda: train(base), capsys)
    assert "no space left on the disk" in text
    folder = base / "base" / "runs" / "tiny" / "base_train"
    names = {p.name for p in folder.iterdir()}
    assert names == {".lock", "config.json", "metrics.jsonl", "samples.jsonl"}


def test_a_disk_without_room_for_a_checkpoint_is_refused_at_the_start(base, monkeypatch):
    monkeypatch.setattr(storage, "free_bytes", lambda folder: 1000)
    with pytest.raises(ConfigError, match=r"a checkpoint takes .* GB, .*base_train has 1e-06 GB"):
        train(base)


def test_older_checkpoints_make_room_for_the_last_one(base, monkeypatch):
    real = store._save_tensors
    folder = base / "base" / "runs" / "tiny" / "base_train"

    def only_two_fit(tensors, path):
        if len(checkpoint_manager.steps(folder)) >= 2:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        real(tensors, path)

    monkeypatch.setattr(store, "_save_tensors", only_two_fit)
    train(base, "--save-every", "2", "--keep", "5")
    assert [p.name for p in checkpoint_manager.steps(folder)] == ["step_000006", "step_000008"]


def test_metrics_after_damaged_bytes_are_dropped(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n\xbf\x00\xff\n{"step": 2}\n')
    assert read_rows(tmp_path / "metrics.jsonl") == [{"step": 1}]


# --- killed and concurrent processes


def test_two_processes_cannot_train_the_same_stage(base):
    folder = base / "base" / "runs" / "tiny" / "base_train"
    with (
        storage.lock(folder / ".lock"),
        pytest.raises(ConfigError, match="another process is running base_train of run 'tiny'"),
    ):
        train(base)
    assert not (folder / "config.json").exists()
    train(base)


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path):
    with storage.atomic_folder(tmp_path / "step_000001") as folder:
        (folder / "meta.json").write_text("{}")
    (tmp_path / ".step_000002.ab_cd123").mkdir()
    (tmp_path / ".config.json.ab_cd123").write_text("{")
    (tmp_path / ".lock").write_text("")
    (tmp_path / ".step.lock").write_text("")
    storage.remove_leftovers(tmp_path, "step")
    assert (tmp_path / ".config.json.ab_cd123").exists()
    storage.remove_leftovers(tmp_path, "")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", ".step.lock", "step_000001"]


def test_a_run_killed_before_its_record_resumes_to_the_same_record(base):
    folder = train(base, "--log-every", "3")
    first = json.loads((folder / "result.json").read_text())
    (folder / "result.json").unlink()
    train(base, "--log-every", "3", "--resume")
    again = json.loads((folder / "result.json").read_text())
    figures = {row["name"]: row["value"] for row in again["results"]}
    assert math.isfinite(figures["final training loss"])
    assert figures["final training loss"] == first["results"][0]["value"]
    assert again["settings"]["steps"] == first["settings"]["steps"] == 8


def test_resuming_with_another_size_names_the_flag(base):
    train(base, "--save-every", "4")
    with pytest.raises(ConfigError, match=r"--depth is 2, but .*step_000008 was trained with 1"):
        train(base, "--resume", "--depth", "2")


def test_weights_that_are_not_finite_are_not_saved(base, monkeypatch):
    monkeypatch.setattr(base_train, "scaled_optimizer", lambda options, plan: options)
    with pytest.raises(TrainingError, match="lower the learning rates"):
        train(base, "--lr-scale", "1e300", "--log-every", "100", "--save-every", "2")
    folder = base / "base" / "runs" / "tiny" / "base_train"
    for path in checkpoint_manager.steps(folder):
        loaded = checkpoint_manager.load(path, single_run())
        assert all(p.isfinite().all() for p in loaded.model.parameters()), path


@pytest.mark.skipif(os.name == "nt", reason="Windows has no named pipes")
def test_pipes_in_the_place_of_records_are_passed_over_by_report_and_resume(base):
    folder = train(base, "--save-every", "4", "--keep", "9")
    checkpoint_manager.remove(folder / "step_000008")
    names = ("config.json", "result.json", "metrics.jsonl")
    for name in names:
        (folder / name).unlink()
        os.mkfifo(folder / name)
    with pytest.raises(DataError, match="has no stages to report on"):
        report.main(["--run", "tiny"])
    train(base, "--save-every", "4", "--resume")
    assert all((folder / name).is_file() for name in names)
    assert [row["step"] for row in read_rows(folder / "metrics.jsonl")][:4] == [5, 6, 7, 8]


@pytest.mark.parametrize("content", ["[]", "{}", "{", '{"format": 1}'])
def test_a_checkpoint_with_an_invalid_description_is_named(base, content):
    path = checkpoint_manager.latest(train(base))
    (path / "meta.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"step_000008.* to fall back to an older one"):
        checkpoint_manager.load(path, single_run())


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, "does not say where in the data"),
        ({"batches": None}, "does not say where in the data"),
        ({"batches": {"next_row": "8"}}, "does not say where in the data"),
        ({"batches": {"next_row": -8}}, "does not say where in the data"),
        ({"batches": {"next_row": 8, "stream": []}}, "does not say where in the data"),
        ({"batches": {"next_row": 8}}, "does not say how far training was"),
        ({"batches": {"next_row": 8}, "progress": [1]}, "does not say how far training was"),
        ({"batches": {"next_row": 8}, "progress": {"step": "4"}}, "progress has step '4'"),
        ({"batches": {"next_row": 8}, "progress": {"loss_mean": None}}, "has loss_mean None"),
    ],
)
def test_a_resume_from_a_state_of_another_program_is_refused(base, monkeypatch, state, message):
    real = checkpoint_manager.save
    monkeypatch.setattr(
        checkpoint_manager, "save", lambda *args, **parts: real(*args, **{**parts, "state": state})
    )
    train(base)
    with pytest.raises(CheckpointError, match=message):
        train(base, "--resume")


# --- data


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", b"", "the data has no text"),
        ("blank.txt", b" \n\n", "the data has no text"),
        ("rubbish.parquet", b"PAR1 and no more", "rubbish.parquet is damaged"),
        ("latin.txt", b"caf\xe9 " * 100, "latin.txt, line 1, byte 3: not UTF-8"),
        ("rows.jsonl", b'{"txt": "a"}\n', "line 1: no column 'text' or 'content'"),
        ("torn.jsonl.gz", b"\x1f\x8b\x08\x00", "is damaged or cut short"),
        ("image.png", b"\x89PNG", "this kind of file is not read"),
    ],
)
def test_data_that_is_not_text_is_named(base, name, content, message):
    (base / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        tok_train.main(["--data", str(base / name), "--tokenizer", "char"])
    assert [p for p in (base / "base" / "data").glob("*") if p.suffix != ".lock"] == []


def test_a_run_name_must_be_a_plain_folder_name():
    for name in ("a/b", "a\\b", "", ".hidden", "a:b", "a\tb"):
        with pytest.raises(ConfigError, match="plain name"):
            RunOptions(run=name)
    assert RunOptions(run="Mein Lauf 2").run == "Mein Lauf 2"
