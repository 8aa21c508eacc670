"""Opening a stage: the loop's options, the state of its folder, and the lock on it.

Owns: the lock of a stage's folder and the choice of the checkpoint to resume from. Does not own:
what training does there (stage.py).
"""

import contextlib
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from nanochat import checkpoint_manager
from nanochat.gpt import GPT, attention
from nanochat.system import distributed, storage, wandb_run
from nanochat.system.config import RunOptions, option
from nanochat.system.console import log_line
from nanochat.system.distributed import (
    Run,
    StartedWith,
    broadcast_object,
    from_main,
    gather_objects,
    main_only,
)
from nanochat.system.errors import ConfigError
from nanochat.training import stage_record

CHECKPOINT_BYTES = 8  # per parameter, at least: the weight and one moment, both float32


@dataclass(frozen=True, kw_only=True)
class LoopOptions:
    """How the training loop runs."""

    compile: bool | None = option(
        None,
        "fuse kernels with torch.compile; none: where that works, except on MPS; with --resume, as "
        "the run started",
    )
    resume: bool = option(
        False, "resume from this stage's newest checkpoint; start from scratch if there is none"
    )
    device_batch_size: int | Literal["auto"] = option(
        16,
        "rows in one forward pass on one device; auto: as many as fit in memory and still help",
        least=1,
    )
    checkpoint_activations: bool = option(
        False, "recompute layers in the backward pass: far less memory, a third more time"
    )
    log_every: int = option(10, "steps between console lines and metrics rows", least=1)
    eval_every: int | None = option(
        None, "steps between evaluations; none: only at the end", least=1
    )
    sample_every: int | None = option(None, "steps between samples; none: only at the end", least=1)
    save_every: int | None = option(
        None, "steps between checkpoints; none: only at the end", least=1
    )
    keep: int = option(2, "newest checkpoints of the stage to keep", least=1)
    keep_every: int | None = option(
        None, "also keep checkpoints at multiples of this many steps; none: only --keep", least=1
    )
    profile: int | None = option(
        None,
        "steps to profile, after the first few, into trace.json (open it at "
        "https://ui.perfetto.dev); none: no profile",
        least=1,
    )
    keep_best: bool = option(False, "also keep the checkpoint that was best in validation")

    def __post_init__(self) -> None:
        if self.keep_every is not None and self.keep_every % (
            self.save_every or self.keep_every + 1
        ):
            raise ConfigError("--keep-every must be a multiple of --save-every")
        saved, judged = self.save_every, self.eval_every
        if self.keep_best and (saved is None or judged is None or saved % judged):
            raise ConfigError(
                "--keep-best needs an evaluation at every saved checkpoint: give an --eval-every "
                "that divides --save-every"
            )


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage that is open: its folder, its options, and what it resumes from."""

    name: str
    dir: Path
    run: Run
    options: Any
    common: RunOptions
    loop: LoopOptions
    resume_from: Path | None  # the newest valid checkpoint, if it resumes
    latest: Path | None  # the newest checkpoint, valid or not
    started_with: StartedWith
    attention: str  # the backend, as attention.choose takes it

    def log_line(self, line: str) -> None:
        """Print a line, on rank 0 only."""
        if self.run.is_main:
            log_line(line)

    def wants_compiling(self) -> bool:
        """Whether the options ask for torch.compile, or else the run started with it.

        By default not on MPS, for which torch calls it a prototype.
        """
        choices = (self.loop.compile, self.started_with.compiled, self.run.device.type != "mps")
        return next(choice for choice in choices if choice is not None)


class StageOptions(Protocol):
    """What every training stage's options have."""

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
    """Find out whether the stage is new or resumed, and from which checkpoint. Collective.

    Raises: ConfigError if the folder has checkpoints but --resume was not given, or for --wandb
        without the package or a key.
    """
    common, loop = options.common, options.loop
    if common.wandb is not None:
        main_only(run, lambda: wandb_run.log_in(str(common.wandb)))
    folder = storage.stage_dir(common.run, name)
    latest = from_main(run, lambda: _latest_unclaimed(folder, _busy(name, common)))
    _refuse_checkpoints_elsewhere(folder, latest, name, run)
    if latest is not None and not loop.resume:
        raise ConfigError(
            f"run {common.run!r} already has {name} checkpoints in {folder}; "
            "--resume continues from them, --run NAME starts another run"
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
    """The newest valid checkpoint; warns of damaged ones after it. Collective.

    accept: whether a checkpoint of a step may be taken.
    """

    def find() -> Path | None:
        found, damages = checkpoint_manager.newest_valid(folder, accept)
        for damage in damages:
            log_line(f"warning: {damage.what}: skipping this checkpoint")
        return found

    return from_main(run, find)


def _latest_unclaimed(folder: Path, busy: str) -> Path | None:
    """The newest checkpoint, valid or not, of a stage that no other process is training.

    Raises: ConfigError(busy) if one is.
    """
    if _lock_path(folder).exists():
        with storage.lock(_lock_path(folder), busy=busy):
            pass  # report the other process now, not after the data has been prepared
    return checkpoint_manager.latest(folder)


def _refuse_checkpoints_elsewhere(folder: Path, latest: Path | None, name: str, run: Run) -> None:
    """Make sure that rank 0's disk, the one that counts, has the newest checkpoints. Collective.

    Raises: ConfigError if another machine has newer ones: training would start over without them.
    """
    own = checkpoint_manager.latest(folder)
    mine, here = (checkpoint_manager.step_of(path) if path else -1 for path in (own, latest))
    found = gather_objects(run, (mine, socket.gethostname(), str(own)))
    step, host, path = max(found, key=lambda row: row[0])
    if step > here:
        raise ConfigError(
            f"{host} has {path}, but rank 0 is on {found[0][1]}, which has "
            f"{latest.name if latest else 'no checkpoint'} of {name}; make {host} the first node "
            "(torchrun --node-rank 0, or the smallest --local-addr), or remove its checkpoints"
        )


def _attention(started_with: StartedWith, run: Run) -> str:
    """The attention backend the run started with; "auto" if unknown or not usable here."""
    name = started_with.attention
    # "blocks" runs on CPUs only, the other backends on GPUs: a change of device changes both.
    if name is None or (name == "blocks") != (run.device.type == "cpu"):
        return "auto"
    try:
        return attention.choose(name, run.device).name
    except ConfigError as error:
        if run.is_main:
            log_line(f"warning: {error}; results may differ in the last bits")
        return "auto"


def _lock_path(folder: Path) -> Path:
    return folder / ".lock"


def _busy(name: str, common: RunOptions) -> str:
    return (
        f"another process is running {name} of run {common.run!r}; wait for it, stop it, or give "
        "this one another run name: --run NAME"
    )


@contextlib.contextmanager
def claimed(stage: Stage, model: GPT) -> Iterator[None]:
    """Hold the stage's lock (rank 0) and remove what a killed process left behind. Collective.

    Raises: ConfigError if another process trains this stage, or has done so since it was opened, or
        if the disk is too full.
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
    """Fail now rather than at the first save.

    Raises: ConfigError if the disk cannot hold even one checkpoint.
    """
    parameters = sum(p.numel() for p in model.parameters())
    needed, free = CHECKPOINT_BYTES * parameters, storage.free_bytes(stage.dir)
    if free is not None and free < needed:
        raise ConfigError(
            f"a checkpoint takes {needed / 1e9:.2g} GB, {stage.dir} has {free / 1e9:.2g} GB free; "
            "free some space, or set NANOCHAT_BASE_DIR to a larger disk"
        )
