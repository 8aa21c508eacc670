"""What every training stage does around its loop: folder, resume, optimizer, hooks, record.

Owns the stage folder's protocol: config.json first, then metrics.jsonl and checkpoints, result.json
once all is done. A stage's script brings the model, the batches and the schedule.
"""

import contextlib
import functools
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from nanochat import checkpoint_manager, config, flops, optim, report, stage_record
from nanochat import device as devices
from nanochat.checkpoint_manager import Loaded
from nanochat.dataloader import BatchSource
from nanochat.distributed import barrier, from_main, main_only
from nanochat.errors import ConfigError, Stopped
from nanochat.gpt import GPT
from nanochat.interruption import asked_to_stop
from nanochat.metrics import MetricsLogger, read_rows
from nanochat.optim import OptimConfig
from nanochat.schedules import Schedule
from nanochat.stage_opening import Stage, claimed
from nanochat.tokenizer import Tokenizer
from nanochat.trainer import (
    REMEDY,
    Hook,
    Summary,
    Trainer,
    TrainingError,
    duration,
    token_loss,
)


def train(
    stage: Stage,
    *,
    model: GPT,
    tokenizer: Tokenizer,
    batches: BatchSource,
    schedule: Schedule,
    total_steps: int,
    tokens_per_step: int,
    optimizer_config: OptimConfig,
    evaluate: Callable[[], dict[str, float]],
    sample: Callable[[], list[dict[str, str]]],
    facts: dict[str, Any],
    use_compile: bool | None = None,
) -> Summary:
    """Train a stage from start, or from its checkpoint, to its end and record it. Collective.

    tokens_per_step: targets of a step over all ranks, about: AdamW's epsilon follows from it.
    evaluate, sample: called by all ranks while training; their figures and texts are recorded.
    facts: what the report shows beside the options (parameters, tokens, hashes, backend).
    Raises: Stopped if a signal asked for it, with a checkpoint saved.
    """
    begin_s = time.perf_counter()
    run = stage.run
    optimizer = optim.build(model, optimizer_config, run, tokens_per_step=tokens_per_step)
    path = stage.resume_from
    resumed = from_main(run, lambda: checkpoint_manager.read_meta(path)) if path else None
    if resumed is not None:
        # Refuses other data than before; first of all, so that the record of before still stands.
        batches.load_state(resumed["state"]["batches"])
        facts = {**facts, **stage_record.origin(stage.dir)}
    results: dict[str, Any] = {"evaluation": {}, "samples": []}
    with (
        claimed(stage, model),
        contextlib.closing(batches),
        _metrics(stage, resumed) as metrics,
        asked_to_stop(announce=run.is_main) as stop,
    ):
        _write_config(stage, model, tokenizer, facts)
        trainer = Trainer(
            optimizer=optimizer,
            batches=batches,
            loss_fn=token_loss(_token_losses(model, stage, use_compile)),
            schedule=schedule,
            hooks=_hooks(stage, model, tokenizer, evaluate, sample, results),
            run=run,
            total_steps=total_steps,
            metrics=metrics,
            flops_per_token=flops.flops_per_token(model.config, model.config.sequence_length),
            log_every=stage.loop.log_every,
            say=stage.say,
            stop=stop,
        )
        if resumed is not None:
            _restore(trainer, stage, resumed["state"])
            begin_s -= trainer.progress.elapsed_s  # what it took before it was interrupted
            if trainer.progress.step >= total_steps:
                results["evaluation"], results["samples"] = evaluate(), sample()
        summary = trainer.fit()
        _finish(stage, trainer, summary, results, facts, time.perf_counter() - begin_s)
    return summary


def _write_config(stage: Stage, model: GPT, tokenizer: Tokenizer, facts: dict[str, Any]) -> None:
    if stage.run.is_main:
        stage_record.write_config(
            stage.dir, stage.name, stage.options, stage.run, model, tokenizer, facts
        )


def _finish(
    stage: Stage,
    trainer: Trainer,
    summary: Summary,
    results: dict[str, Any],
    facts: dict[str, Any],
    seconds: float,
) -> None:
    """Write result.json, which says that the stage is complete. Collective.

    Raises: Stopped if it is not.
    """
    if summary.steps < trainer.total_steps:
        barrier(stage.run)  # torchrun ends the others as soon as one has ended
        stage.say(f"{stage.name} stopped at step {summary.steps:,}; --resume goes on from there")
        raise Stopped
    if stage.run.is_main:
        section = stage_record.section(stage.name, summary, stage.run, results, facts, seconds)
        report.record(stage.dir, section)
        stage.say(f"{stage.name} done in {duration(seconds)}: {stage.dir}")
    barrier(stage.run)


def _metrics(stage: Stage, resumed: dict[str, Any] | None) -> MetricsLogger:
    return MetricsLogger(
        stage.dir,
        stage.run,
        wandb_project=stage.common.wandb,
        config=config.to_dict(stage.options),
        resume_step=resumed["step"] if resumed else None,
    )


def load_for_training(stage: Stage, source: Path, **model_options: Any) -> Loaded:
    """The model a stage starts from: its own checkpoint when resuming, else the source's."""
    path = stage.resume_from or source
    loaded = checkpoint_manager.load(path, stage.run, model_options=model_options)
    if stage.resume_from is None:
        stage.say(f"starting {stage.name} from {loaded.path}")
    return loaded


def _token_losses(model: GPT, stage: Stage, wanted: bool | None) -> Callable[..., torch.Tensor]:
    """The model's loss, compiled where that is asked for (None: by --compile) and possible."""
    if not (stage.loop.compile if wanted is None else wanted):
        return model.token_losses
    if stage.run.device.type == "cpu" and not devices.has_compiler():
        stage.say(
            "warning: no C++ compiler (g++ or clang++) found: training runs uncompiled, about "
            "half as fast; install one to change that"
        )
        return model.token_losses
    return torch.compile(model.token_losses, dynamic=False)


def _hooks(
    stage: Stage,
    model: GPT,
    tokenizer: Tokenizer,
    evaluate: Callable[[], dict[str, float]],
    sample: Callable[[], list[dict[str, str]]],
    results: dict[str, Any],
) -> list[Hook]:
    """Save, then evaluate, then sample: what an evaluation breaks must not cost a checkpoint."""

    def save(trainer: Trainer) -> None:
        _save(stage, trainer, model, tokenizer)

    def evaluate_hook(trainer: Trainer) -> None:
        figures = evaluate()
        results["evaluation"] = figures
        trainer.metrics.log(trainer.progress.step, dict(figures))
        shown = " | ".join(f"{name} {value:.4f}" for name, value in figures.items())
        stage.say(f"step {trainer.progress.step:,} | {shown}")

    def sample_hook(trainer: Trainer) -> None:
        results["samples"] = sample()
        for item in results["samples"][:4]:
            stage.say(f"  {item['prompt']!r} -> {item['text']!r}")

    loop = stage.loop
    return [
        Hook(save, every=loop.save_every, on_stop=True),
        Hook(evaluate_hook, every=loop.eval_every),
        Hook(sample_hook, every=loop.sample_every),
    ]


def _save(stage: Stage, trainer: Trainer, model: GPT, tokenizer: Tokenizer) -> None:
    """Write a checkpoint. Collective.

    Raises: TrainingError if the weights are not finite; the checkpoint before stands.
    A disk that is full in the middle of training costs a warning; at its end, it is an error.
    """
    tensors = trainer.optimizer.state_by_name()
    if stage.run.is_main:
        progress = trainer.progress
        if not all(bool(weight.isfinite().all()) for weight in model.parameters()):
            raise TrainingError(f"weights are not finite at step {progress.step:,}: {REMEDY}")
        state = {
            "progress": dict(vars(progress)),
            "batches": trainer.batches.state(),
            "total_steps": trainer.total_steps,
        }
        write = functools.partial(
            checkpoint_manager.save,
            stage.dir,
            progress.step,
            model=model,
            tokenizer_=tokenizer,
            optimizer_state=tensors,
            state=state,
        )
        try:
            try:
                path = write()
            except OSError:
                # The older ones are the first to go where there is no room for all.
                if len(checkpoint_manager.steps(stage.dir)) < 2:
                    raise
                checkpoint_manager.keep_newest(stage.dir, 1)
                path = write()
        except OSError as error:
            if progress.step >= trainer.total_steps or trainer.stopping:
                raise
            stage.say(f"warning: checkpoint not saved at step {progress.step}: {error}")
            return
        checkpoint_manager.keep_newest(stage.dir, stage.loop.keep)
        stage.say(f"saved {path}")


def _restore(trainer: Trainer, stage: Stage, state: dict[str, Any]) -> None:
    """Bring optimizer and progress to where the checkpoint was written. Collective."""
    path = stage.resume_from
    assert path is not None
    rows = read_rows(stage.dir / "metrics.jsonl") if stage.run.is_main else []
    trainer.last_loss = next((row["loss"] for row in reversed(rows) if "loss" in row), math.nan)
    saved = main_only(stage.run, lambda: checkpoint_manager.load_optimizer_state(path))
    trainer.optimizer.load_state_by_name(saved or {})
    for name, value in state["progress"].items():
        setattr(trainer.progress, name, value)


def rows_per_step(tokens_per_step: int, sequence_length: int, name: str) -> int:
    """Rows of `sequence_length` in a step.

    Raises: ConfigError if a step holds no whole row.
    """
    if tokens_per_step < sequence_length:
        raise ConfigError(
            f"--{name} {tokens_per_step} is less than one row of {sequence_length} tokens; raise it"
        )
    return tokens_per_step // sequence_length


def first_texts(samples: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    """Prompts and their texts as the report takes them."""
    return [{"prompt": prompt, "text": text} for prompt, text in samples]
