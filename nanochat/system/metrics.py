"""Where a stage's figures go: metrics.jsonl always, Weights & Biases if asked.

One row is one dict with a "step". The console line is the trainer's.
"""

import contextlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self, TextIO

from nanochat.system import storage
from nanochat.system.distributed import Run
from nanochat.system.errors import ConfigError

log = logging.getLogger(__name__)

# Figures of the machine in a row: they differ between two runs that are otherwise the same.
MEASURED = frozenset(
    "elapsed_s tokens_per_s step_s_p50 step_s_p99 data_wait_share mfu memory_bytes".split()
)


class MetricsLogger:
    """Appends rows to metrics.jsonl; on ranks other than 0 it does nothing."""

    def __init__(
        self,
        stage_dir: Path,
        run: Run,
        *,
        wandb_project: str | None = None,
        config: dict[str, Any] | None = None,
        resume_step: int | None = None,
    ) -> None:
        """Open the file; a resumed run drops the rows written after its checkpoint.

        resume_step: the checkpoint's step; None starts an empty file. Evaluations at that step are
        dropped as well: the run makes them again, as some may not have been written.
        """
        self._file: TextIO | None = None
        self._write_failed = False
        self._wandb = None
        if not run.is_main:
            return
        stage_dir.mkdir(parents=True, exist_ok=True)
        self._path = stage_dir / "metrics.jsonl"
        kept = [] if resume_step is None else rows_until(self._path, resume_step)
        kept = [row for row in kept if row["step"] != resume_step or "loss" in row]
        self._file = _reopened(self._path, kept)
        if wandb_project is not None:
            self._wandb = _open_wandb(wandb_project, stage_dir, config)

    def log(self, step: int, values: dict[str, Any]) -> None:
        """Write one row; it is in the file when this returns, unless the disk is full."""
        if self._file is None:
            return
        try:
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            self._file.flush()  # what a full disk refuses stays in the buffer for the next time
        except OSError as error:
            if not self._write_failed:
                log.warning("metrics.jsonl cannot be written (%s); training goes on", error)
            self._write_failed = True
        if self._wandb is not None:
            self._wandb.log({"step": step, **values})

    def rewind(self, step: int) -> None:
        """Drop the rows after a step: training goes on from there."""
        if self._file is not None:
            self._file.close()
            self._file = _reopened(self._path, rows_until(self._path, step))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # the checkpoint's error is the one to show
                self._file.close()
        if self._wandb is not None:
            self._wandb.finish(exit_code=0 if kind is None else 1)


def _reopened(path: Path, kept: Sequence[dict[str, Any]]) -> TextIO:
    """A metrics file with just these rows, open for more."""
    storage.write_atomic(path, "".join(json.dumps(row) + "\n" for row in kept).encode())
    return path.open("a", encoding="utf-8")


def _open_wandb(project: str, stage_dir: Path, config: dict[str, Any] | None) -> Any:
    try:
        import wandb
    except ImportError as error:
        raise ConfigError(f"--wandb: {error}; pip install 'nanochat[wandb]'") from None

    name = f"{stage_dir.parent.name}/{stage_dir.name}"
    try:
        run = wandb.init(project=project, name=name, config=config)
        # Its own count of steps could not go back when training does.
        run.define_metric("*", step_metric="step")
        return run
    except wandb.Error as error:
        raise ConfigError(
            f"--wandb {project}: {error}; log in with `wandb login`, or leave the flag out"
        ) from None


def rows_until(path: Path, step: int) -> list[dict[str, Any]]:
    """The whole rows of a metrics file up to and including a step; a torn last row is left out."""
    return [row for row in read_rows(path) if row.get("step", 0) <= step]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The whole rows of a metrics file; a missing file has none."""
    rows = []
    if path.exists():
        for line in path.read_bytes().splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                break  # the row being written when the process was killed
    return rows
