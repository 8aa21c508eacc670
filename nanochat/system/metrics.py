"""Logs a stage's metrics: to metrics.jsonl always, to Weights & Biases on request.

One row is one dict with a "step". Does not own: what a row contains (trainer), the console.
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

# Figures that depend on the machine: they differ between two otherwise identical runs.
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
        dropped as well, as some may be missing: the run repeats them.
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
        """Write one row and flush it; a full disk is logged once and does not raise."""
        if self._file is None:
            return
        try:
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            self._file.flush()  # on a full disk the rows stay in the buffer until the next call
        except OSError as error:
            if not self._write_failed:
                log.warning("metrics.jsonl cannot be written (%s); training continues", error)
            self._write_failed = True
        if self._wandb is not None:
            self._wandb.log({"step": step, **values})

    def rewind(self, step: int) -> None:
        """Drop the rows after a step, from which training continues."""
        if self._file is not None:
            self._file.close()
            self._file = _reopened(self._path, rows_until(self._path, step))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # must not hide the error that ended training
                self._file.close()
        if self._wandb is not None:
            self._wandb.finish(exit_code=0 if kind is None else 1)


def _reopened(path: Path, kept: Sequence[dict[str, Any]]) -> TextIO:
    """A metrics file rewritten with these rows only, open for appending."""
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
        # wandb's own step counter cannot go back, as training does when it rewinds.
        run.define_metric("*", step_metric="step")
        return run
    except wandb.Error as error:
        raise ConfigError(
            f"--wandb {project}: {error}; log in with `wandb login`, or leave the flag out"
        ) from None


def rows_until(path: Path, step: int) -> list[dict[str, Any]]:
    """The rows of a metrics file up to and including a step; an incomplete last row is dropped."""
    return [row for row in read_rows(path) if row.get("step", 0) <= step]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The complete rows of a metrics file; none if it is missing."""
    rows = []
    if path.exists():
        for line in path.read_bytes().splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                break  # the process was killed while writing this row
    return rows


def duration(seconds: float) -> str:
    """Seconds as a person reads them: 4.3s, 45s, 3m12s, 2h05m, 12d04h."""
    if 0 < seconds < 10:
        return f"{seconds:.1f}s"
    rounded = round(max(seconds, 0))
    if rounded < 60:
        return f"{rounded}s"
    if rounded < 3600:
        return f"{rounded // 60}m{rounded % 60:02d}s"
    if rounded < 48 * 3600:
        return f"{rounded // 3600}h{rounded % 3600 // 60:02d}m"
    return f"{rounded // 86400}d{rounded % 86400 // 3600:02d}h"
