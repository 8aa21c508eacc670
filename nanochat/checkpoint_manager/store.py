"""Checkpoints on disk: complete or absent, self-contained, never pickled.

A checkpoint is a folder `step_000500/` with safetensors weights, optimizer state by parameter name,
the tokenizer and `meta.json` (format, step, model, state of the loop and the data, a sha256 of
every file). Nothing in it depends on the number of processes that wrote it.
"""

import contextlib
import dataclasses
import json
import os
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from nanochat import tokenizer
from nanochat.checkpoint_manager.meta import (
    FORMAT_VERSION,
    META,
    OPTIMIZER,
    STEP_NAME,
    TOKENIZER,
    WEIGHTS,
    Meta,
    digest_of,
    read_meta,
)
from nanochat.gpt import GPT, GPTConfig
from nanochat.system import storage
from nanochat.system.config import RunOptions, from_dict, option
from nanochat.system.distributed import Run, broadcast_tensors, from_main, main_only
from nanochat.system.errors import CheckpointError, ConfigError, DamagedCheckpointError, DataError
from nanochat.tokenizer import Tokenizer

DAMAGED = "damaged_"  # prefix of the name of a checkpoint that is set aside
CHAT_STAGES = ("chat_rl", "chat_sft", "mid_train")  # the last trained first
MODEL_STAGES = (*CHAT_STAGES, "base_train")
# Options of the model that old checkpoints do not record.
UNRECORDED = {"pairs": 0, "convolution": False}
TENSOR_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """Which checkpoint to use."""

    stage: str | None = option(
        None,
        "stage of the run; none: the latest chat stage to chat, the base model to continue text",
        choices=MODEL_STAGES,
    )
    checkpoint: str | None = option(
        None, "path of a checkpoint or stage folder, instead of --run and --stage"
    )


@dataclass(frozen=True)
class Loaded:
    """A model from a checkpoint, with its tokenizer and description."""

    model: GPT
    tokenizer: Tokenizer
    meta: Meta
    path: Path


@torch.no_grad()
def copy_of_weights(model: GPT) -> dict[str, Tensor]:
    """Copies of the weights by name, on the CPU."""
    return {
        name: parameter.detach().to("cpu", copy=True).contiguous()
        for name, parameter in model.named_parameters()
    }


def save(
    stage_dir: Path,
    step: int,
    *,
    weights: Mapping[str, Tensor],
    config: GPTConfig,
    tokenizer_: Tokenizer,
    optimizer_state: Mapping[str, Tensor],
    state: Mapping[str, Any],
) -> Path:
    """Write `step_<step>` and return its path; once this returns, it survives a power failure.

    weights, optimizer_state: contiguous, on the CPU. state: plain JSON values to resume from.
    Raises: OSError(ENOSPC) on a full disk; no partial checkpoint is left behind.
    """
    path = stage_dir / f"step_{step:06d}"
    # All files are written and fsynced in a temporary folder, then it is renamed: the rename is the
    # commit. A crash before it leaves no step_ folder, after it a complete one.
    with storage.atomic_folder(path) as folder:
        tokenizer.save(tokenizer_, folder / TOKENIZER)

        def write(name: str, tensors: Mapping[str, Tensor]) -> str:
            _save_tensors(dict(tensors), folder / name)
            digest = storage.sha256_of(folder / name)  # while the system writes it to the disk
            storage.fsync(folder / name)
            return digest

        # A thread per file: copying, hashing and waiting for the disk all release Python's lock.
        with ThreadPoolExecutor(2, thread_name_prefix="write") as threads:
            written = threads.map(write, (WEIGHTS, OPTIMIZER), (weights, optimizer_state))
            digests = dict(zip((WEIGHTS, OPTIMIZER), written, strict=True))
        digests[TOKENIZER] = storage.sha256_of(folder / TOKENIZER)
        meta: dict[str, Any] = {
            "format": FORMAT_VERSION,
            "step": step,
            "model": dataclasses.asdict(config),
            "tokenizer_sha256": tokenizer_.sha256,
            "state": dict(state),
            "files": dict(sorted(digests.items())),
        }
        meta = json.loads(json.dumps(meta))  # as it will be read back: keys are strings
        storage.write_json(folder / META, {**meta, "sha256": digest_of(meta)})
    return path


def remove(path: Path) -> None:
    """Remove a checkpoint; to a reader it is either complete or gone."""
    # The reverse of the commit: first the rename, then the files.
    # If killed while removing files, it must not leave a checkpoint that looks complete.
    storage.remove(path.rename(path.with_name(f".{path.name}.removed_")))


def step_of(path: Path) -> int:
    """The step in a checkpoint folder's name."""
    return int(path.name.removeprefix("step_"))


def steps(stage_dir: Path) -> list[Path]:
    """The checkpoints of a stage, oldest first."""
    return [path for path in _folders(stage_dir) if (path / META).is_file()]


def _folders(stage_dir: Path) -> list[Path]:
    """All that is named like a checkpoint, complete or not, oldest first."""
    found = stage_dir.iterdir() if stage_dir.is_dir() else ()
    return sorted((p for p in found if re.fullmatch(STEP_NAME, p.name)), key=step_of)


def latest(stage_dir: Path) -> Path | None:
    """The newest checkpoint of a stage, or None."""
    found = steps(stage_dir)
    return found[-1] if found else None


def newest_valid(
    stage_dir: Path, accept: Callable[[int], bool] = lambda step: True
) -> tuple[Path | None, list[DamagedCheckpointError]]:
    """The newest valid checkpoint of a stage, and the errors of the newer ones.

    accept: whether a checkpoint of this step may be used.
    Raises: CheckpointError if there are checkpoints but none is valid.
    """
    damages: list[DamagedCheckpointError] = []
    for path in reversed(_folders(stage_dir)):
        if not accept(step_of(path)):
            continue
        try:
            read_meta(path)
        except DamagedCheckpointError as damage:
            damages.append(damage)
        else:
            return path, damages
    if damages:
        raise CheckpointError(
            f"no checkpoint in {stage_dir} is valid ({damages[0].what}); remove the folder to "
            "train the stage again"
        )
    return None, []


def set_aside_after(path: Path) -> None:
    """Rename the checkpoints of a stage that are newer than `path`, so that none is used again.

    Checkpoints set aside earlier are removed.
    """
    remove_damaged(path.parent)
    for newer in _folders(path.parent):
        if step_of(newer) > step_of(path):
            newer.rename(newer.with_name(f"{DAMAGED}{newer.name}"))


def remove_after(path: Path) -> None:
    """Remove the checkpoints of a stage after `path`, the one that training went back to."""
    for newer in _folders(path.parent):
        if step_of(newer) > step_of(path):
            remove(newer)


def remove_damaged(stage_dir: Path) -> int:
    """Remove the checkpoints that were set aside; returns their number."""
    found = list(stage_dir.glob(f"{DAMAGED}step_*"))
    for path in found:
        storage.remove(path)
    return len(found)


def find(run_name: str, stages: tuple[str, ...] = MODEL_STAGES) -> Path:
    """The newest checkpoint of the first of `stages` that has one.

    Raises: CheckpointError naming the command that creates one.
    """
    for stage in stages:
        path = latest(storage.stage_dir(run_name, stage))
        if path is not None:
            return path
    wanted = " or ".join(dict.fromkeys(stages))
    raise CheckpointError(
        f"run {run_name!r} has no {wanted} checkpoint in {storage.run_dir(run_name)}; "
        f"train one with: nanochat {stages[-1]} --run {run_name}"
    )


def locate(source: SourceOptions, common: RunOptions, *, chat: bool) -> Path:
    """Find the checkpoint that the options name.

    chat: without --stage, accept only chat models; otherwise prefer a base model.
    Raises: CheckpointError naming the command that creates one.
    """
    if source.checkpoint is not None:
        path = Path(source.checkpoint).expanduser()
        if not path.is_dir():
            raise CheckpointError(f"--checkpoint {path}: no such folder")
        return path
    plain = ("base_train", *MODEL_STAGES)  # chat models continue plain text poorly
    stages = (source.stage,) if source.stage else CHAT_STAGES if chat else plain
    return find(common.run, stages)


def describe(loaded: Loaded) -> str:
    """A checkpoint's run, stage and step as text."""
    folder = loaded.path.resolve()
    return f"{folder.parent.parent.name}/{folder.parent.name} step {loaded.meta.step}"


def load(
    path: Path,
    run: Run,
    *,
    model_options: Mapping[str, Any] | None = None,
    attention_backend: str = "auto",
) -> Loaded:
    """Read the model and tokenizer of a checkpoint; both are checked against their hashes.

    The optimizer's state, the larger part of a checkpoint, is neither read nor needed.

    path: a checkpoint folder, or a stage folder (for its newest checkpoint); rank 0 reads it and
    sends it to the other ranks tensor by tensor. Collective.
    model_options: fields of GPTConfig to change, such as sequence_length.
    Raises: CheckpointError if it is missing, incomplete, altered or of a later format.
    """
    path, meta, config, encoder = from_main(run, lambda: _read(path, model_options or {}))
    model = GPT(config, compute_dtype=run.compute_dtype, attention_backend=attention_backend)
    model.to(run.device)
    load_weights(path, model, run)
    return Loaded(model=model, tokenizer=encoder, meta=meta, path=path)


def _read(path: Path, model_options: Mapping[str, Any]) -> tuple[Path, Meta, GPTConfig, Tokenizer]:
    """A checkpoint's path, meta.json, config and tokenizer; path: its folder or its stage's."""
    if not (path / META).is_file():
        newest = latest(path)
        if newest is None:
            raise CheckpointError(
                f"{path} is not a checkpoint: it has no {META}; give a step_... folder, or the "
                "folder of a stage that has one"
            )
        path = newest
    meta = read_meta(path, (WEIGHTS, TOKENIZER))
    try:
        config = from_dict(GPTConfig, {**UNRECORDED, **meta.model, **model_options})
        tokenizer_ = tokenizer.load(path / TOKENIZER)
    except (TypeError, ConfigError, DataError) as error:
        raise CheckpointError(f"{path} cannot be read by this version: {error}") from None
    if tokenizer_.sha256 != meta.tokenizer_sha256:
        raise CheckpointError(f"{path}: the tokenizer is not the one the model was trained with")
    if tokenizer_.vocab_size > config.vocab_size:  # a model may have more, for alignment
        raise CheckpointError(
            f"{path}: its tokenizer has {tokenizer_.vocab_size:,} tokens, its model only "
            f"{config.vocab_size:,}"
        )
    return path, meta, config, tokenizer_


def load_weights(path: Path, model: GPT, run: Run) -> None:
    """Load a checkpoint's weights into a model; only rank 0 reads the files. Collective."""
    main_only(run, lambda: _copy_weights(model, _load_tensors(path / WEIGHTS), path))
    broadcast_tensors(run, (parameter.detach() for parameter in model.parameters()))


def load_optimizer_state(path: Path) -> dict[str, Tensor]:
    """The optimizer's state by parameter name, on the CPU."""
    return _load_tensors(path / OPTIMIZER)


def _copy_weights(model: GPT, weights: Mapping[str, Tensor], path: Path) -> None:
    parameters = dict(model.named_parameters())
    if set(parameters) != set(weights):
        odd = sorted(set(parameters) ^ set(weights))[0]
        raise CheckpointError(f"{path}: its weights do not match its model (see {odd})")
    with torch.no_grad():
        for name, parameter in parameters.items():
            weight = weights[name]
            if parameter.shape != weight.shape:
                raise CheckpointError(f"{path}: {name} has shape {tuple(weight.shape)}")
            # The extremes are finite only if all are: one pass, ten times faster than isfinite.
            if not torch.stack(torch.aminmax(weight)).isfinite().all():
                raise CheckpointError(f"{path}: {name} has numbers that are not finite")
            parameter.copy_(weight)


def _save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    try:
        save_file(tensors, path)
        with contextlib.suppress(OSError):  # not every file system has modes
            # safetensors lets only the owner read it; the user's umask decides that.
            path.chmod(path.parent.stat().st_mode & 0o666)
    except SafetensorError as error:
        # safetensors turns the system's error into text; callers must recognize a full disk
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None


def _load_tensors(path: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    for name, tensor in tensors.items():
        if tensor.dtype not in TENSOR_DTYPES and name != "steps_done":
            raise CheckpointError(f"{path}: {name} has numbers of type {tensor.dtype}")
    return tensors
