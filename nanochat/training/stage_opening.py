"""Opening a stage: the loop's options, where its folder stands, and that nobody else is in it.

Owns the lock of a stage's folder and the choice of the checkpoint to go on from. What training does
there is `stage`'s business.
"""

import contextlib
import shutil
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

from nanochat import checkpoint_manager
from nanochat.gpt import GPT, attention
from nanochat.system import distributed, storage
from nanochat.system.config import RunOptions, option
from nanochat.system.distributed import (
    Run,
    StartedWith,
    broadcast_object,
    from_main,
    gather_objects,
    main_only,
)
from nanochat.system.errors import ConfigError
from nanochat.system.metrics import log_line
from nanochat.training import stage_record

CHECKPOINT_BYTES = 8  # of a parameter, at least: itself and one moment, both float32


@dataclass(frozen=True, kw_only=True)
class LoopOptions:
    """How the training loop runs."""

    compile: bool | None = option(
        None,
        "fuse kernels with torch.compile; none: where there is a compiler (a CPU needs a C++ "
        "compiler), and as before with --resume",
    )
    resume: bool = option(
        False, "go on from this stage's newest checkpoint, if there is one, instead of starting"
    )
    device_batch_size: int | Literal["auto"] = option(
        16,
        "rows in one forward pass on one device; auto takes as many as fit and are of use",
        least=1,
    )
    checkpoint_activations: bool = option(
        False, "compute layers again in the backward pass: far less memory, a third more time"
    )
    log_every: int = option(10, "steps between console lines and metrics rows", least=1)
    eval_every: int | None = option(
        None, "steps between evaluations; none: only at the end", least=1
    )
    sample_every: int | None = option(None, "steps between samples; none: only at the end", least=1)
    save_every: int | None = option(
        None, "steps between checkpoints; none: only at the end", least=1
    )
    keep: int = option(2, "newest checkpoints of the stage that are kept", least=1)
    keep_every: int | None = option(
        None, "checkpoints at multiples of so many steps stay as well", least=1
    )
    profile: int | None = option(
        None,
        "steps to record, after the first few, as trace.json for https://ui.perfetto.dev",
        least=1,
    )
    keep_best: bool = option(False, "the checkpoint that was best in validation stays as well")

    def __post_init__(self) -> None:
        if self.keep_every is not None and self.keep_every % (
            self.save_every or self.keep_every + 1
        ):
            raise ConfigError("--keep-every must be a multiple of --save-every")
        saved, judged = self.save_every, self.eval_every
        if self.keep_best and (saved is None or judged is None or saved % judged):
            raise ConfigError(
                "--keep-best needs evaluations where checkpoints are saved: give an --eval-every "
                "that divides --save-every"
            )


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of a run, opened."""

    name: str
    dir: Path
    run: Run
    options: Any
    common: RunOptions
    loop: LoopOptions
    resume_from: Path | None  # the newest checkpoint that is whole
    latest: Path | None  # the newest one
    started_with: StartedWith
    attention: str  # the backend, as attention.choose takes it

    def log_line(self, line: str) -> None:
        """Print a line, once for all ranks."""
        if self.run.is_main:
            log_line(line)


class StageOptions(Protocol):
    """What the options of every training stage have."""

    @property
    def common(self) -> RunOptions:
        """Options of the run."""

    @property
    def loop(self) -> LoopOptions:
        """Options of the loop."""


@contextlib.contextmanager
def open_stage(name: str, options: StageOptions) -> Iterator[Stage]:
    """Start the process group and open a stage in it. Collective; raises what `_open` does."""
    folder = storage.stage_dir(options.common.run, name)
    started_with = stage_record.started_with(folder) if options.loop.resume else StartedWith()
    with distributed.session(options.common, started_with) as run:
        yield _open(name, options, run=run, started_with=broadcast_object(run, started_with))


def _open(name: str, options: StageOptions, *, run: Run, started_with: StartedWith) -> Stage:
    """Find where the stage stands: fresh, or to be resumed. Collective.

    Raises: ConfigError if the folder already holds checkpoints and resuming was not asked for, or
        for a dtype that cannot train.
    """
    if run.compute_dtype is torch.float16:
        raise ConfigError(
            "--dtype float16 cannot train: small gradients become 0 in it; use bfloat16 or float32"
        )
    common, loop = options.common, options.loop
    folder = storage.stage_dir(common.run, name)
    latest = from_main(run, lambda: _latest_unclaimed(folder, _busy(name, common)))
    _refuse_checkpoints_elsewhere(folder, latest, name, run)
    if latest is not None and not loop.resume:
        raise ConfigError(
            f"run {common.run!r} already has {name} checkpoints in {folder}; "
            "--resume goes on from them, --run NAME starts another run"
        )
    resume_from = newest_valid_checkpoint(folder, run) if loop.resume else None
    if resume_from is not None and run.is_main:
        log_line(f"resuming {name} from {resume_from}")
    return Stage(
        name=name,
        dir=folder,
        run=run,
        options=options,
        common=common,
        loop=loop,
        resume_from=resume_from,
        latest=latest,
        started_with=started_with,
        attention=_attention(started_with, run),
    )


def newest_valid_checkpoint(
    folder: Path, run: Run, accept: Callable[[int], bool] = lambda step: True
) -> Path | None:
    """The newest checkpoint that is whole; those after it are named. Collective.

    accept: of which steps it may be.
    """

    def find() -> Path | None:
        found, damages = checkpoint_manager.newest_valid(folder, accept)
        for damage in damages:
            log_line(f"warning: {damage.what}: passing over this checkpoint")
        return found

    return from_main(run, find)


def _latest_unclaimed(folder: Path, busy: str) -> Path | None:
    """The latest checkpoint, whole or not, of a stage that nobody else is at."""
    if _lock_path(folder).exists():
        with storage.lock(_lock_path(folder), busy=busy):
            pass  # better to hear of the other process now than once the data is ready
    return checkpoint_manager.latest(folder)


def _refuse_checkpoints_elsewhere(folder: Path, latest: Path | None, name: str, run: Run) -> None:
    """Rank 0's disk is the one that counts: it must be the one with the checkpoints. Collective.

    Raises: ConfigError if another machine has newer ones; training would begin anew without.
    """
    own = checkpoint_manager.latest(folder)
    mine, here = (checkpoint_manager.step_of(path) if path else -1 for path in (own, latest))
    found = gather_objects(run, (mine, socket.gethostname(), str(own)))
    step, host, path = max(found, key=lambda row: row[0])
    if step > here:
        raise ConfigError(
            f"{host} has {path}, but rank 0 is on {found[0][1]}, which has "
            f"{latest.name if latest else 'no checkpoint'} of {name}; let {host} be the first node "
            "(torchrun --node-rank 0, or the smallest --local-addr), or remove what it has"
        )


def _attention(started_with: StartedWith, run: Run) -> str:
    """The attention backend of before; "auto" where there was none or it does not work here."""
    name = started_with.attention
    # On another kind of device nothing is as before: "blocks" is a CPU's, the others are not.
    if name is None or (name == "blocks") != (run.device.type == "cpu"):
        return "auto"
    try:
        return attention.choose(name, run.device).name
    except ConfigError as error:
        if run.is_main:
            log_line(f"warning: {error}; the last bits will be others than they would have been")
        return "auto"


def _lock_path(folder: Path) -> Path:
    return folder / ".lock"


def _busy(name: str, common: RunOptions) -> str:
    return (
        f"another process is at {name} of run {common.run!r}; wait for it, stop it, or give this "
        "one a run of its own: --run NAME"
    )


@contextlib.contextmanager
def claimed(stage: Stage, model: GPT) -> Iterator[None]:
    """Hold the stage's lock (rank 0), and clear what a killed process left. Collective.

    Raises: ConfigError if another process trains it, or did since the stage was opened, or if the
    disk is too full.
    """
    with contextlib.ExitStack() as stack:
        main_only(stage.run, lambda: _claim(stage, model, stack))
        yield


def _claim(stage: Stage, model: GPT, stack: contextlib.ExitStack) -> None:
    busy = _busy(stage.name, stage.common)
    stack.enter_context(storage.lock(_lock_path(stage.dir), busy=busy))
    storage.remove_leftovers(stage.dir, "")
    if checkpoint_manager.latest(stage.dir) != stage.latest:
        raise ConfigError(busy)
    if stage.resume_from is not None:
        checkpoint_manager.set_aside_after(stage.resume_from)
    _check_disk(stage, model)


def _check_disk(stage: Stage, model: GPT) -> None:
    """Refuse at the start what is sure to fail at the end.

    Raises: ConfigError if the disk cannot hold even one checkpoint.
    """
    parameters = sum(p.numel() for p in model.parameters())
    needed, free = CHECKPOINT_BYTES * parameters, shutil.disk_usage(stage.dir).free
    if free < needed:
        raise ConfigError(
            f"a checkpoint takes {needed / 1e9:.2g} GB, {stage.dir} has {free / 1e9:.2g} GB free; "
            "free some, or set NANOCHAT_BASE_DIR to a larger disk"
        )
