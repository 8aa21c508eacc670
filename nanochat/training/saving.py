"""Saving while training continues: copies are taken between steps and written by a thread.

Owns: when a checkpoint counts as saved, what happens on a full disk, and which checkpoints are
kept. Does not own: the format on disk (checkpoint_manager).
"""

import contextlib
import errno
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from nanochat import checkpoint_manager
from nanochat.gpt import GPT
from nanochat.report.data import is_number
from nanochat.system.errors import CheckpointError
from nanochat.system.metrics import read_rows
from nanochat.tokenizer import Tokenizer
from nanochat.training.stage_opening import Stage
from nanochat.training.trainer import REMEDY, Trainer, TrainingError

FULL_DISK = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class _Snapshot:
    """What is to be written, copied so that no step changes it."""

    step: int
    weights: Mapping[str, Tensor]
    optimizer_state: Mapping[str, Tensor]
    state: dict[str, Any]
    scores: Mapping[int, float]  # by step, of those before this one
    final: bool  # no later checkpoint could make up for a failure
    in_streak: bool  # the last steps were not finite


class Saver:
    """Writes a stage's checkpoints, one at a time. One is safe once "saved ..." is printed."""

    def __init__(self, stage: Stage, model: GPT, tokenizer: Tokenizer, total_steps: int) -> None:
        self._stage = stage
        self._model = model
        self._tokenizer = tokenizer
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="save")
        self._writing: Future[None] | None = None
        self._scores: dict[int, float] = {}  # by step
        self._total_steps = total_steps
        if stage.run.is_main:
            for row in read_rows(stage.dir / "metrics.jsonl"):
                self.record_score(row.pop("step", 0), row)

    def save(self, trainer: Trainer) -> None:
        """Copy what belongs to a checkpoint and start writing it. Collective.

        Steps, evaluations and samples run meanwhile. Waits only if training was asked to stop.
        Raises: TrainingError if the weights are not finite; the previous checkpoint is kept.
            OSError as `wait`.
        """
        # At most one write at a time: a second copy of weights and moments may not fit into memory.
        self.wait()
        progress = trainer.progress
        # A signal only sets a flag, which all ranks see after the same step; then this is the last
        # chance to save, so an error ends the process. Whoever asked may not wait long: the disk
        # comes first. At the end of training the evaluation need not wait for it (run_training).
        final = progress.step >= trainer.total_steps or trainer.stopping
        if not torch.stack([p.isfinite().all() for p in self._model.parameters()]).all():
            raise TrainingError(f"weights are not finite at step {progress.step:,}: {REMEDY}")
        optimizer_state = trainer.optimizer.state_by_name()
        if not self._stage.run.is_main:
            return
        snapshot = _Snapshot(
            step=progress.step,
            weights=checkpoint_manager.copy_of_weights(self._model),
            optimizer_state=optimizer_state,
            state={
                "progress": dict(vars(progress)),
                "loss_scale": trainer.loss_scale and trainer.loss_scale.state(),
                "batches": trainer.batches.state(),
                "total_steps": trainer.total_steps,
            },
            # Copied, as the step's own score may come before or after the disk is done: which
            # checkpoints are removed must not depend on that.
            scores=dict(self._scores),
            final=final,
            in_streak=progress.skipped_in_a_row > 0,
        )
        self._writing = self._thread.submit(self._write, snapshot)
        if trainer.stopping:
            self.wait()

    def wait(self) -> None:
        """Wait until the checkpoint being written is on disk, or its failure was reported.

        Raises: OSError if it was the final one and cannot be written.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def close(self) -> None:
        """Let the thread finish what it is writing."""
        self._thread.shutdown()

    def record_score(self, step: int, figures: Mapping[str, Any]) -> None:
        """Remember a step's score: lower is better for "val_...", higher for "pass@1 ...".

        The first figure of either kind counts.
        """
        for name, value in figures.items():
            if name.startswith(("val_", "pass@1")) and is_number(value):
                self._scores[step] = -value if name.startswith("val_") else value
                return

    def is_regular(self, step: int) -> bool:
        """Whether this step is a regular save point, not one forced by a signal.

        Which checkpoints are kept, and which one a run rewinds to, must not depend on signals.
        """
        every = self._stage.loop.save_every
        return every is None or step % every == 0 or step >= self._total_steps

    def forget_after(self, step: int) -> None:
        """Forget the scores of later steps: training has gone back to this one."""
        self._scores = {known: score for known, score in self._scores.items() if known <= step}

    def _write(self, snapshot: _Snapshot) -> None:
        try:
            try:
                path = self._write_once(snapshot)
            except OSError as error:
                if error.errno not in FULL_DISK or not self._make_room(snapshot.scores):
                    raise
                path = self._write_once(snapshot)
        except (OSError, SafetensorError) as error:
            if snapshot.final:
                raise
            self._stage.log_line(
                f"warning: checkpoint not saved at step {snapshot.step:,} ({error}); training "
                "continues, and what was saved before is intact; check the disk"
            )
            return
        # Older ones are removed only now: at every moment a complete checkpoint is on the disk.
        self._stage.log_line(f"saved {path}")
        if snapshot.in_streak:
            return  # a rewind may need a checkpoint older than this one
        try:
            self._retain(self._stage.loop.keep, snapshot.scores)
        except OSError as error:
            self._stage.log_line(f"warning: older checkpoints could not be removed ({error})")

    def _make_room(self, scores: Mapping[int, float]) -> bool:
        """Remove the least needed checkpoints from a full disk; whether there were any."""
        folder = self._stage.dir
        removed = checkpoint_manager.remove_damaged(folder)
        with contextlib.suppress(CheckpointError):
            newest, damages = checkpoint_manager.newest_valid(folder)
            if newest is not None and not damages:
                removed += self._retain(1, scores)
        if removed:
            self._stage.log_line(
                f"warning: the disk is full; {removed} older checkpoints were removed"
            )
        return removed > 0

    def _write_once(self, snapshot: _Snapshot) -> Path:
        return checkpoint_manager.save(
            self._stage.dir,
            snapshot.step,
            weights=snapshot.weights,
            config=self._model.config,
            tokenizer_=self._tokenizer,
            optimizer_state=snapshot.optimizer_state,
            state=snapshot.state,
        )

    def _retain(self, newest: int, scores: Mapping[int, float]) -> int:
        """Remove the checkpoints that need not be kept; the number removed."""
        loop, found = self._stage.loop, checkpoint_manager.steps(self._stage.dir)
        by_step = {checkpoint_manager.step_of(path): path for path in found}
        regular = [path for step, path in by_step.items() if self.is_regular(step)]
        kept = {*regular[-newest:], *found[-1:]}
        if loop.keep_every is not None:
            kept |= {path for step, path in by_step.items() if step % loop.keep_every == 0}
        scored = by_step.keys() & scores.keys()
        if loop.keep_best and scored:
            kept.add(by_step[max(scored, key=scores.__getitem__)])
        removed = [path for path in found if path not in kept]
        for path in removed:
            checkpoint_manager.remove(path)
        return len(removed)
