"""Logs a stage's metrics: to metrics.jsonl always, to Weights & Biases on request.

One row is one dict with a "step". Does not own: what a row contains (trainer), the console.
"""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from nanochat.system import storage
from nanochat.system.errors import Stopped
from nanochat.system.wandb_run import WandbRun

if TYPE_CHECKING:  # it imports torch, which readers of metrics should not have to wait for
    from nanochat.system.distributed import Run

log = logging.getLogger(__name__)

# Figures that depend on the machine: they differ between two otherwise identical runs.
MEASURED = frozenset(
    "elapsed_s tokens_per_s step_s_p50 step_s_p99 data_wait_share mfu memory_bytes".split()
)


class MetricsLogger:
    """Appends rows to metrics.jsonl; on ranks other than 0 it does nothing.

    It raises no error: rows that cannot be written are kept and tried again with the next row.
    """

    def __init__(
        self,
        stage_dir: Path,
        run: "Run",
        *,
        wandb: WandbRun | None = None,
        resume_step: int | None = None,
    ) -> None:
        """Open the file; a resumed run drops the rows written after its checkpoint.

        wandb: gets every row, too. resume_step: the checkpoint's step; None starts an empty file.
        Evaluations at that step are dropped as well, as some may be missing: the run repeats them.
        """
        self._writes = run.is_main
        self.wandb = wandb
        self._path = stage_dir / "metrics.jsonl"
        self._unwritten = bytearray()
        self._replaces = False  # whether what is unwritten replaces the file
        self._warned = False
        if self._writes:
            self._keep(-1 if resume_step is None else resume_step, evaluations=False)

    def log(self, step: int, values: dict[str, Any]) -> None:
        """Write one row."""
        if self._writes:
            self._unwritten += _line({"step": step, **values})
            self._write()
        if self.wandb is not None:
            self.wandb.log({"step": step, **values})

    def rewind(self, step: int) -> None:
        """Drop the rows after a step, from which training continues."""
        if self._writes:
            self._keep(step)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._unwritten:
            self._write()
        if self.wandb is not None:
            self.wandb.finish(failed=kind not in (None, Stopped))

    def _keep(self, step: int, *, evaluations: bool = True) -> None:
        """Rewrite the file with its rows up to a step; evaluations: also those at the step."""
        try:
            rows = [row for row in _rows(self._path) if row.get("step", 0) <= step]
        except OSError as error:
            self._warn(error)  # replacing a file that cannot be read would lose it
            return
        rows = [row for row in rows if evaluations or row.get("step") != step or "loss" in row]
        self._unwritten[:] = b"".join(map(_line, rows))
        self._replaces = True
        self._write()

    def _write(self) -> None:
        try:
            if self._replaces:
                storage.write_atomic(self._path, bytes(self._unwritten))
                self._unwritten.clear()
                self._replaces = False
            # Opened for each row: the file may become writable again, or be on a network disk that
            # went away and came back.
            with self._path.open("ab", buffering=0) as file:
                while self._unwritten:
                    del self._unwritten[: file.write(self._unwritten)]
        except OSError as error:
            self._warn(error)

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            log.warning("warning: metrics.jsonl cannot be written (%s); training continues", error)
        self._warned = True


def plain(value: Any) -> Any:
    """A value as JSON has it: numbers of NumPy and torch converted, NaN and infinities as null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int) else str(value)


def _line(row: dict[str, Any]) -> bytes:
    return (json.dumps(plain(row)) + "\n").encode()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The complete rows of a file, up to the first that is damaged; none if it cannot be read."""
    try:
        return _rows(path)
    except OSError:
        return []


def _rows(path: Path) -> list[dict[str, Any]]:
    rows = []
    if path.is_file():  # reading a pipe or device might never end
        for line in path.read_bytes().splitlines():
            try:
                row = storage.parse_json(line)
            except ValueError:
                break  # the process was killed while writing this row
            if not isinstance(row, dict) or not isinstance(row.get("step", 0), int):
                break
            rows.append(row)
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
