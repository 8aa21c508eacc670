"""Checkpoints are believed only as far as they were checked: every crafted one ends in one line."""

import dataclasses
import errno
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from nanochat import checkpoint_manager, tokenizer
from nanochat.gpt import GPT, GPTConfig
from nanochat.system import storage
from nanochat.system.distributed import single_run
from nanochat.system.errors import CheckpointError, DamagedCheckpointError

FILES = ("model.safetensors", "optimizer.safetensors", "tokenizer.json")
TOKENIZER = tokenizer.train_char(["abc def"])
SIZES = GPTConfig(
    vocab_size=TOKENIZER.vocab_size, sequence_length=16, depth=1, width=32, heads=2, kv_heads=2
)


def save(stage: Path, step: int, sizes: GPTConfig = SIZES) -> Path:
    model = GPT(sizes, compute_dtype=torch.float32)
    model.init_weights(torch.Generator().manual_seed(step))
    return checkpoint_manager.save(
        stage,
        step,
        weights=checkpoint_manager.copy_of_weights(model),
        config=sizes,
        tokenizer_=TOKENIZER,
        optimizer_state={"steps_done": torch.tensor(step), "moment": torch.zeros(2)},
        state={"batches": {"next_row": 3}},
    )


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("original"), 2)


@pytest.fixture
def path(original, tmp_path) -> Path:
    """A checkpoint of its own for each test."""
    return Path(shutil.copytree(original, tmp_path / "stage" / "step_000002"))


def digest_of(meta: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def bend(path: Path, change: Callable[[dict[str, Any]], Any], *, signed: bool = True) -> None:
    """Change meta.json; signed: as another program would write it, with a matching sha256."""
    meta = json.loads((path / "meta.json").read_text())
    del meta["sha256"]
    change(meta)
    meta["sha256"] = digest_of(meta) if signed else "0" * 64
    (path / "meta.json").write_text(json.dumps(meta))


def rehash(path: Path) -> None:
    """Make meta.json fit the files again."""
    hashes = {name: hashlib.sha256((path / name).read_bytes()).hexdigest() for name in FILES}
    bend(path, lambda meta: meta.update(files=hashes))


def load(path: Path) -> checkpoint_manager.Loaded:
    return checkpoint_manager.load(path, single_run())


def one_line(error: pytest.ExceptionInfo[CheckpointError]) -> bool:
    text = str(error.value)
    return "\n" not in text and "step_000002" in text


def test_a_checkpoint_reads_back(path):
    loaded = load(path)
    assert loaded.meta.step == 2
    assert loaded.meta.state == {"batches": {"next_row": 3}}
    assert loaded.model.config == SIZES
    assert checkpoint_manager.load_optimizer_state(path)["steps_done"] == 2


def test_the_first_versions_checkpoints_without_a_digest_still_load(path):
    meta = json.loads((path / "meta.json").read_text())
    del meta["sha256"]
    (path / "meta.json").write_text(json.dumps(meta))
    assert load(path).meta.step == 2


def test_a_model_saved_before_there_were_pairs_and_convolutions_has_none(tmp_path):
    without = dataclasses.replace(SIZES, pairs=0, convolution=False)
    path = save(tmp_path / "old", 2, without)
    unknown = ("pairs", "convolution")
    bend(path, lambda meta: [meta["model"].pop(name) for name in unknown])
    assert checkpoint_manager.load(path, single_run()).model.config == without


def test_a_checkpoint_made_of_links_to_files_loads(path):
    """As in the caches of model hubs."""
    blobs = path.parent / "blobs"
    path.rename(blobs)
    path.mkdir()
    for file in blobs.iterdir():
        (path / file.name).symlink_to(file)
    assert load(path).meta.step == 2


# --- damaged: an older checkpoint takes its place


def replace_by(name: str, make: Callable[[Path], Any]) -> Callable[[Path], Any]:
    def damage(path: Path) -> None:
        (path / name).unlink()
        make(path / name)

    return damage


def append(name: str, data: bytes) -> Callable[[Path], Any]:
    return lambda path: (path / name).write_bytes((path / name).read_bytes() + data)


def as_a_whole(value: Any) -> Callable[[Path], Any]:
    return lambda path: (path / "meta.json").write_text(json.dumps(value))


def unsigned(**changes: Any) -> Callable[[Path], Any]:
    return lambda path: bend(path, lambda meta: meta.update(changes), signed=False)


def first_version(**changes: Any) -> Callable[[Path], Any]:
    def damage(path: Path) -> None:
        meta = json.loads((path / "meta.json").read_text()) | changes
        del meta["sha256"]
        (path / "meta.json").write_text(json.dumps(meta))

    return damage


DAMAGES = {
    **{f"{name} gone": (lambda path, name=name: (path / name).unlink()) for name in FILES},
    **{f"{name} longer": append(name, b" ") for name in FILES},
    **{f"{name} a pipe": replace_by(name, os.mkfifo) for name in FILES},
    **{f"{name} a folder": replace_by(name, Path.mkdir) for name in FILES},
    **{f"{name} a device": replace_by(name, lambda p: p.symlink_to("/dev/zero")) for name in FILES},
    "meta a pipe": replace_by("meta.json", os.mkfifo),
    "meta a folder": replace_by("meta.json", Path.mkdir),
    "meta a device": replace_by("meta.json", lambda p: p.symlink_to("/dev/zero")),
    "meta a list": as_a_whole([]),
    "meta null": as_a_whole(None),
    "meta empty": as_a_whole({}),
    "meta only format": as_a_whole({"format": 1}),
    "meta cut": lambda path: (path / "meta.json").write_text('{"format": 1, "step"'),
    "meta not UTF-8": lambda path: (path / "meta.json").write_bytes(b'{"format": "\xff"}'),
    "meta deep": lambda path: (path / "meta.json").write_text("[" * 100_000),
    "meta long number": lambda path: (path / "meta.json").write_text("9" * 5000),
    "another step": unsigned(step=3),
    "another state": unsigned(state={"batches": {"next_row": 4}}),
    "first version, files a list": first_version(files=list(FILES)),
    "first version, model null": first_version(model=None),
}


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such files")
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_older_one_used(path, original, damage, request):
    older = path.with_name("step_000001")
    shutil.copytree(original, older)
    bend(older, lambda meta: meta.update(step=1))
    damage(path)
    with pytest.raises(DamagedCheckpointError) as error:
        checkpoint_manager.read_meta(path)
    assert one_line(error)
    found, damages = checkpoint_manager.newest_valid(path.parent)
    assert found == older
    assert [damaged.path for damaged in damages] == [path]
    if request.node.callspec.id.startswith("optimizer"):
        assert load(path).meta.step == 2  # the model is whole
        return
    with pytest.raises(CheckpointError) as error:
        load(path)
    assert one_line(error)


# --- whole, but not what this version writes: refused, not set aside


def signed(**changes: Any) -> Callable[[Path], Any]:
    return lambda path: bend(path, lambda meta: meta.update(changes))


def without(key: str) -> Callable[[Path], Any]:
    return lambda path: bend(path, lambda meta: meta.pop(key))


def with_file(name: str, digest: Any = "0" * 64) -> Callable[[Path], Any]:
    return lambda path: bend(path, lambda meta: meta["files"].update({name: digest}))


FOREIGN = {
    "format 2": signed(format=2),
    "format 2, signed otherwise": unsigned(format=2),
    "format true": signed(format=True),
    "format text": signed(format="1"),
    "no files": signed(files={}),
    "files a list": signed(files=list(FILES)),
    "files null": signed(files=None),
    "one file missing": lambda path: bend(path, lambda meta: meta["files"].popitem()),
    "a device among the files": with_file("/dev/zero"),
    "a path among the files": with_file("../../elsewhere"),
    "NUL among the files": with_file("a\0b"),
    "a surrogate among the files": with_file("\ud800"),
    "an unknown file": with_file("ema.safetensors"),
    "no model": without("model"),
    "no files at all": without("files"),
    "no tokenizer hash": without("tokenizer_sha256"),
    "no state": without("state"),
    "no step": without("step"),
    "step text": signed(step="2"),
    "step a fraction": signed(step=2.0),
    "step true": signed(step=True),
    "step negative": signed(step=-2),
    "step of another folder": signed(step=3),
    "state a list": signed(state=[]),
    "model a list": signed(model=[]),
    "unknown key": signed(ema="yes"),
}


@pytest.mark.parametrize("change", FOREIGN.values(), ids=FOREIGN)
def test_what_another_program_wrote_is_refused_and_stays(path, change):
    change(path)
    for read in (checkpoint_manager.read_meta, load):
        with pytest.raises(CheckpointError) as error:
            read(path)
        assert one_line(error)
        assert not isinstance(error.value, DamagedCheckpointError)
    with pytest.raises(CheckpointError, match="step_000002"):
        checkpoint_manager.newest_valid(path.parent)


def sizes(**changes: Any) -> Callable[[Path], Any]:
    return lambda path: bend(path, lambda meta: meta["model"].update(changes))


def weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], Any]:
    def damage(path: Path) -> None:
        tensors = load_file(path / FILES[0])
        change(tensors)
        save_file(tensors, path / FILES[0])
        rehash(path)

    return damage


def set_one(value: float) -> Callable[[Path], Any]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["embedding.weight"][-1, -1] = value

    return weights(change)


def cast(dtype: torch.dtype) -> Callable[[Path], Any]:
    return weights(lambda t: t.update({"embedding.weight": t["embedding.weight"].to(dtype)}))


def other_bytes(name: str, data: bytes) -> Callable[[Path], Any]:
    def damage(path: Path) -> None:
        (path / name).write_bytes(data)
        rehash(path)

    return damage


def larger_tokenizer(path: Path) -> None:
    other = tokenizer.train_char(["abc defg"])
    tokenizer.save(other, path / FILES[2])
    rehash(path)
    bend(path, lambda meta: meta.update(tokenizer_sha256=other.sha256))


HEADER = b'{"a":{"dtype":"%s","shape":[1],"data_offsets":[0,1]}}  '
UNUSABLE = {
    "activation": (sizes(activation="evil"), "--activation must be one of"),
    "rope_base nan": (sizes(rope_base=float("nan")), "--rope-base must be a number"),
    "rope_base infinite": (sizes(rope_base=float("inf")), "--rope-base must be a number"),
    "width a fraction": (sizes(width=32.5), "--width must be a whole number"),
    "width text": (sizes(width="wide"), "--width must be a whole number"),
    "width null": (sizes(width=None), "--width must have a value"),
    "depth huge": (sizes(depth=10**30), "--depth must be"),
    "depth zero": (sizes(depth=0), "--depth must be from 1"),
    "heads": (sizes(heads=3), "--heads 3"),
    "pattern a list": (sizes(window_pattern=["S"]), "--window-pattern must be"),
    "pattern letters": (sizes(window_pattern="XY"), "--window-pattern must consist of S and L"),
    "qk_norm text": (sizes(qk_norm="yes"), "--qk-norm must be true or false"),
    "unknown size": (sizes(experts=8), "has no option 'experts'"),
    "deeper": (sizes(depth=2), "its weights do not match its model"),
    "another vocabulary": (sizes(vocab_size=TOKENIZER.vocab_size + 1), "has shape"),
    "a larger tokenizer": (larger_tokenizer, "its tokenizer has 18 tokens, its model only 17"),
    "a tokenizer of another model": (signed(tokenizer_sha256="0" * 64), "is not the one the model"),
    "nan": (set_one(float("nan")), "embedding.weight has numbers that are not finite"),
    "infinite": (set_one(float("-inf")), "embedding.weight has numbers that are not finite"),
    "whole numbers": (cast(torch.int64), "embedding.weight has numbers of type torch.int64"),
    "complex": (cast(torch.complex64), "embedding.weight has numbers of type torch.complex64"),
    "float8": (cast(torch.float8_e4m3fn), "has numbers of type torch.float8_e4m3fn"),
    "one missing": (weights(lambda t: t.pop("embedding.weight")), "see embedding.weight"),
    "one more": (weights(lambda t: t.update(more=torch.ones(1))), "see more"),
    "transposed": (
        weights(lambda t: t.update({"head.weight": t["head.weight"].T.contiguous()})),
        "head.weight has shape",
    ),
    "weights empty": (other_bytes(FILES[0], b""), "model.safetensors cannot be read"),
    "weights rubbish": (other_bytes(FILES[0], b"rubbish" * 9), "model.safetensors cannot be read"),
    "weights of unknown type": (
        other_bytes(FILES[0], bytes([56, *[0] * 7]) + HEADER % b"F4" + b"x"),
        "model.safetensors cannot be read",
    ),
    "weights of bool": (
        other_bytes(FILES[0], bytes([len(HEADER % b"BOOL"), *[0] * 7]) + HEADER % b"BOOL" + b"\1"),
        "a has numbers of type torch.bool",
    ),
    "tokenizer deep": (other_bytes(FILES[2], b"[" * 100_000), "nested too deeply"),
    "tokenizer a list": (other_bytes(FILES[2], b"[]"), "not a readable tokenizer"),
    "tokenizer long number": (other_bytes(FILES[2], b"9" * 5000), "not a readable tokenizer"),
}


@pytest.mark.parametrize(("change", "message"), UNUSABLE.values(), ids=UNUSABLE)
def test_a_model_that_cannot_be_used_is_refused_with_the_reason(path, change, message):
    change(path)
    with pytest.raises(CheckpointError, match=message) as error:
        load(path)
    assert one_line(error)
    assert not isinstance(error.value, DamagedCheckpointError)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_weights_of_other_precision_load(path, dtype):
    cast(dtype)(path)
    assert load(path).model.embedding.weight.dtype == torch.float32


def test_optimizer_state_of_whole_numbers_is_refused(path):
    save_file({"steps_done": torch.tensor(1), "moment": torch.tensor([1])}, path / FILES[1])
    rehash(path)
    with pytest.raises(CheckpointError, match=r"moment has numbers of type torch\.int64"):
        checkpoint_manager.load_optimizer_state(path)


# --- what lies beside the checkpoints


@pytest.mark.parametrize("name", ["step_000009", "damaged_step_000009"])
@pytest.mark.parametrize("kind", ["link to a folder", "link to a file", "broken link", "file"])
def test_a_stray_link_or_file_does_not_stop_a_resume_and_its_target_stays(path, name, kind):
    target = path.parent.parent / "target"
    target.mkdir()
    (target / "precious").write_text("x")
    stray = path.with_name(name)
    if kind == "file":
        stray.write_text("x")
    else:
        places = {"link to a folder": target, "link to a file": target / "precious"}
        stray.symlink_to(places.get(kind, target / "nothing"))
    for _ in range(2):  # set aside, then removed
        found, _ = checkpoint_manager.newest_valid(path.parent)
        assert found == path
        checkpoint_manager.set_aside_after(path)
    assert [p.name for p in path.parent.iterdir()] == ["step_000002"]
    assert (target / "precious").read_text() == "x"


def test_removing_a_linked_checkpoint_keeps_its_target(path):
    target = path.rename(path.parent.parent / "target")
    path.symlink_to(target)
    assert load(path).meta.step == 2
    checkpoint_manager.remove(path)
    assert list(path.parent.iterdir()) == []
    assert len(list(target.iterdir())) == 4


def test_a_checkpoint_that_is_being_removed_is_none(path, monkeypatch):
    """Killed among its files, what is left must not be taken for a damaged checkpoint."""

    def killed(path: Path) -> None:
        next(path.glob("*.safetensors")).unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(storage, "remove", killed)
        checkpoint_manager.remove(path)
    assert checkpoint_manager.newest_valid(path.parent) == (None, [])
    storage.remove_leftovers(path.parent, "")
    assert list(path.parent.iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="Windows has no modes")
def test_the_umask_decides_who_may_read_a_checkpoint_and_nothing_needs_chmod(tmp_path, monkeypatch):
    before = os.umask(0o027)
    try:
        path = save(tmp_path, 1)
    finally:
        os.umask(before)
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.iterdir()} == {0o640}

    def refuse(*args, **kwargs):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "chmod", refuse)
    assert load(save(tmp_path, 2)).meta.step == 2
