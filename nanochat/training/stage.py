"""What every training stage does around its loop: folder, resume, optimizer, record.

Owns: the order of a stage folder's files: config.json first, then metrics.jsonl and checkpoints,
and result.json when training is complete. Does not own: the model, the batches and the schedule,
which each stage's script brings.
"""

import contextlib
import functools
import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nanochat import checkpoint_manager, optim, report
from nanochat.checkpoint_manager import Meta
from nanochat.data import BatchSource
from nanochat.gpt import GPT, flops, fp8
from nanochat.gpt.start_line import start_line
from nanochat.optim import OptimConfig
from nanochat.optim.schedules import Schedule
from nanochat.report.data import is_number, read_object
from nanochat.system import compiler, config
from nanochat.system.distributed import barrier, from_main, main_only
from nanochat.system.errors import ConfigError, Stopped
from nanochat.system.metrics import MetricsLogger, duration, read_rows
from nanochat.system.signals import asked_to_stop
from nanochat.system.wandb_run import WandbRun
from nanochat.tokenizer import Tokenizer
from nanochat.training import stage_hooks, stage_record
from nanochat.training.loss_scale import LossScale
from nanochat.training.overlap import training_loss
from nanochat.training.progress import Progress, Summary
from nanochat.training.saving import Saver
from nanochat.training.stage_opening import Stage, claimed, newest_valid_checkpoint
from nanochat.training.trainer import Trainer, TrainingError, token_loss

COMPILED, NOT_COMPILED = "compiled", "not compiled"
SILENT_S = 5.0  # a first step that takes longer says why


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a stage's script brings to the loop.

    tokens_per_step: approximate targets per step over all ranks; AdamW's epsilon depends on it.
    evaluate, sample: called by all ranks during training; their figures and texts are recorded.
    facts: what the report shows besides the options (parameters, tokens, hashes, backend).
    fp8: what fp8.convert says of the model.
    may_compile: whether the loss is compiled if the options say so.
    watch_loss: whether a jump of the loss is worth a warning.
    """

    model: GPT
    tokenizer: Tokenizer
    batches: BatchSource
    schedule: Schedule
    total_steps: int
    tokens_per_step: int
    optimizer: OptimConfig
    evaluate: Callable[[], dict[str, float]]
    sample: Callable[[], list[dict[str, str]]]
    facts: dict[str, Any]
    fp8: str = fp8.OFF
    may_compile: bool = True
    watch_loss: bool = True


def run_training(stage: Stage, recipe: Recipe) -> None:
    """Train a stage to its end, from scratch or from its checkpoint, and record it. Collective.

    Raises: Stopped if a signal asked for it; a checkpoint has been saved.
    """
    start_s = time.perf_counter()
    run, model, facts = stage.run, recipe.model, recipe.facts
    optimizer = optim.build(model, recipe.optimizer, run, tokens_per_step=recipe.tokens_per_step)
    resumed = _resumed(stage, recipe.batches)
    before = read_object(stage.dir / "config.json") if resumed is not None else {}
    facts = {**facts, **{k: v for k, v in before.items() if k == "source"}}
    results: dict[str, Any] = {"evaluation": {}, "samples": []}
    # Before signals are caught: Ctrl-C ends the C++ compiler, which would then seem not to work.
    said = _compiles(stage) if recipe.may_compile else NOT_COMPILED
    compiled = said == COMPILED
    stage.log_line(f"{stage.name} on {start_line(run, model, recipe.fp8, said)}")
    with (
        claimed(stage, model),
        contextlib.closing(recipe.batches),
        MetricsLogger(
            stage.dir,
            run,
            wandb=_wandb_run(stage, before.get("wandb_id")),
            resume_step=resumed.step if resumed else None,
        ) as metrics,
        contextlib.closing(Saver(stage, model, recipe.tokenizer, recipe.total_steps)) as saver,
        asked_to_stop(announce=run.is_main) as stop,
        _profiler(stage) as profile_step,
        _patience(stage) as patience,
    ):
        wandb_id = metrics.wandb.id if metrics.wandb else before.get("wandb_id")
        more = {"steps": recipe.total_steps, "compiled": compiled, "wandb_id": wandb_id}
        more["fp8"] = recipe.fp8
        _write_config(stage, model, recipe.tokenizer, {**facts, **more})
        if compiled:
            optimizer.compile()
        # What may not be compiled, RL, generates between steps: it needs all weights by then.
        in_parts = run.world_size > 1 and recipe.may_compile
        loss = training_loss(model, optimizer, compiled=compiled, in_parts=in_parts)
        hooks = stage_hooks.hooks(stage, saver, recipe.evaluate, recipe.sample, results)

        def after_step() -> None:
            patience.cancel()
            profile_step()

        trainer = Trainer(
            optimizer=optimizer,
            batches=recipe.batches,
            loss_fn=token_loss(loss),
            schedule=recipe.schedule,
            hooks=hooks,
            run=run,
            total_steps=recipe.total_steps,
            metrics=metrics,
            flops_per_token=flops.flops_per_token(model.config, model.config.sequence_length),
            log_every=stage.loop.log_every,
            log_line=stage.log_line,
            stop=stop,
            rewind=functools.partial(_rewind, stage, saver, model),
            after_step=after_step,
            watch_loss=recipe.watch_loss,
            loss_scale=LossScale(run.device) if run.compute_dtype is torch.float16 else None,
        )
        if resumed is not None and stage.resume_from is not None:
            _restore(trainer, stage.resume_from, resumed.state)
            start_s -= trainer.progress.elapsed_s  # count the time before the interruption
            trainer.run_due(hooks[1:])
        if compiled:
            patience.start()
        summary = trainer.fit()
        saver.wait()  # a stage is complete only once its last checkpoint is on the disk
        _finish(stage, trainer, summary, results, facts, time.perf_counter() - start_s)


def _resumed(stage: Stage, batches: BatchSource) -> Meta | None:
    """The metadata of the checkpoint to resume from, if there is one. Collective.

    Raises: CheckpointError if it was trained on different data, before any file is changed.
    """
    path = stage.resume_from
    if path is None:
        return None
    # Its files were checked when it was chosen: hashing them again would take as long as reading.
    meta = from_main(stage.run, lambda: checkpoint_manager.read_meta(path, ()))
    batches.load_state(meta.state.get("batches"))
    return meta


def _wandb_run(stage: Stage, run_id: Any) -> WandbRun | None:
    """The stage's run on Weights & Biases, if --wandb asks for it, on rank 0.

    run_id: of the run that a resumed stage continues, so that its curves stay in one piece.
    Raises: ConfigError for a wrong key or project.
    """
    if stage.common.wandb is None or not stage.run.is_main:
        return None
    return WandbRun(
        stage.common.wandb,
        name=f"{stage.common.run}/{stage.name}",
        config=config.to_dict(stage.options),
        run_id=run_id if isinstance(run_id, str) else None,
    )


def _write_config(stage: Stage, model: GPT, tokenizer: Tokenizer, facts: dict[str, Any]) -> None:
    if stage.run.is_main:
        report.write_config(
            stage.dir,
            stage.options,
            stage.run,
            model=dict(vars(model.config)),
            tokenizer_sha256=tokenizer.sha256,
            attention=model.attention.name,
            git_commit=stage_record.git_commit(),
            **facts,
        )


def _finish(
    stage: Stage,
    trainer: Trainer,
    summary: Summary,
    results: dict[str, Any],
    facts: dict[str, Any],
    seconds: float,
) -> None:
    """Write result.json, which marks the stage as complete. Collective.

    Raises: Stopped if it is not complete.
    """
    if summary.steps < trainer.total_steps:
        barrier(stage.run)  # torchrun kills the other ranks as soon as one exits
        stage.log_line(
            f"{stage.name} stopped at step {summary.steps:,}; --resume continues from there"
        )
        raise Stopped
    if stage.run.is_main:
        section = stage_record.section(stage.name, summary, stage.run, results, facts, seconds)
        report.record(stage.dir, section)
        stage.log_line(f"{stage.name} done in {duration(seconds)}: {stage.dir}")
    barrier(stage.run)


@contextlib.contextmanager
def _profiler(stage: Stage) -> Iterator[Callable[[], object]]:
    """Profile the steps that --profile asks for, on rank 0; yields what to call after a step."""
    if stage.loop.profile is None or not stage.run.is_main:
        yield lambda: None
        return

    def write(profiler: torch.profiler.profile) -> None:
        path = stage.dir / "trace.json"
        try:
            profiler.export_chrome_trace(str(path))
        except (OSError, RuntimeError) as error:
            stage.log_line(f"warning: {path} cannot be written ({error})")
            return
        stage.log_line(f"trace of {stage.loop.profile} steps: {path}")

    # The first steps build kernels; the last one before recording warms up the profiler.
    plan = torch.profiler.schedule(wait=3, warmup=1, active=stage.loop.profile, repeat=1)
    with torch.profiler.profile(schedule=plan, on_trace_ready=write) as profiler:
        yield profiler.step


@contextlib.contextmanager
def _patience(stage: Stage) -> Iterator[threading.Timer]:
    """Yields what, once started and until it is canceled, says why the first step is slow."""
    line = "compiling the training step: a minute or a few, less where it has been compiled before"
    timer = threading.Timer(SILENT_S, stage.log_line, [line])
    timer.daemon = True
    try:
        yield timer
    finally:
        timer.cancel()


def _compiles(stage: Stage) -> str:
    """COMPILED if the options ask for it and every rank can, else a phrase with the reason.

    Collective.

    Raises: ConfigError if --compile was given and one cannot.
    """
    if not stage.wants_compiling():
        return NOT_COMPILED
    failure = compiler.why_not(stage.run)
    if failure is None:
        return COMPILED
    problem = f"torch.compile does not work here ({failure.reason})"
    if stage.loop.compile:
        raise ConfigError(f"--compile: {problem}; {failure.remedy}, or leave the flag out")
    change = "; results may differ in the last bits" if stage.started_with.compiled else ""
    slower = "about half as fast" if stage.run.device.type == "cpu" else "slower"
    stage.log_line(
        f"warning: {problem}: training runs uncompiled, {slower}{change}; to compile it, "
        f"{failure.remedy}; --no-compile turns this message off"
    )
    return f"{NOT_COMPILED} ({failure.reason})"


def _rewind(stage: Stage, saver: Saver, model: GPT, trainer: Trainer) -> None:
    """Take model, optimizer, progress and metrics back to a checkpoint. Collective.

    It is the newest valid one from before the non-finite steps; later ones are removed.
    Raises: TrainingError if there is none.
    """
    saver.wait()
    healthy = trainer.progress.step - trainer.progress.skipped_in_a_row

    def accept(step: int) -> bool:
        return step <= healthy and saver.is_regular(step)

    path = newest_valid_checkpoint(stage.dir, stage.run, accept)
    if path is None:
        raise TrainingError(
            "several steps in a row were not finite, and there is no checkpoint to go back to: "
            "lower the learning rates (--lr-scale 0.5)"
        )
    stage.log_line(f"back to {path}, continuing with the data that comes next")
    saver.forget_after(checkpoint_manager.step_of(path))
    main_only(stage.run, lambda: checkpoint_manager.remove_after(path))
    meta = from_main(stage.run, lambda: checkpoint_manager.read_meta(path, ()))  # as in _resumed
    checkpoint_manager.load_weights(path, model, stage.run)
    main_only(stage.run, lambda: trainer.metrics.rewind(meta.step))
    _restore(trainer, path, meta.state)


def _restore(trainer: Trainer, path: Path, state: dict[str, Any]) -> None:
    """Restore optimizer and progress from a checkpoint. Collective."""
    rows = read_rows(path.parent / "metrics.jsonl") if trainer.run.is_main else []
    trainer.last_loss = next(
        (row["loss"] for row in reversed(rows) if is_number(row.get("loss"))), math.nan
    )
    saved = main_only(trainer.run, lambda: checkpoint_manager.load_optimizer_state(path))
    trainer.optimizer.load_state_by_name(saved or {})
    trainer.progress = Progress.restored(state.get("progress"))
    if trainer.loss_scale is not None:
        trainer.loss_scale.load_state(state.get("loss_scale"))


def rows_per_step(tokens_per_step: int, sequence_length: int) -> int:
    """Rows of `sequence_length` in a step.

    Raises: ConfigError if a step is shorter than one row.
    """
    if tokens_per_step < sequence_length:
        raise ConfigError(
            f"--tokens-per-step {tokens_per_step} is less than one row of {sequence_length} tokens;"
            " raise it"
        )
    return tokens_per_step // sequence_length
