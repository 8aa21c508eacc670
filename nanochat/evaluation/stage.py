"""What every evaluation stage does around its measurements: the model and the record.

Owns: when config.json and result.json of such a stage are written. Does not own: the measurements.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nanochat import checkpoint_manager, report
from nanochat.checkpoint_manager import Loaded
from nanochat.gpt.start_line import start_line
from nanochat.system import device as devices
from nanochat.system import failures, storage
from nanochat.system.config import RunOptions
from nanochat.system.console import log_line
from nanochat.system.distributed import Run, from_main
from nanochat.system.metrics import duration


@dataclass
class EvalStage:
    """A running stage; collects its figures until `close` records them."""

    name: str
    title: str
    options: Any
    common: RunOptions
    run: Run
    results: list[dict[str, Any]] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    start_s: float = field(default_factory=time.perf_counter)

    @property
    def dir(self) -> Path:
        """The stage's folder."""
        return storage.stage_dir(self.common.run, self.name)

    def log_line(self, line: str) -> None:
        """Print a line, on rank 0 only."""
        if self.run.is_main:
            log_line(line)

    def load(self, source: str | None, stages: tuple[str, ...]) -> Loaded:
        """The model to evaluate: a checkpoint by path, or the newest of the run's stages.

        Collective.
        """
        if source is not None:
            path = Path(source).expanduser()
        else:
            path = from_main(self.run, lambda: checkpoint_manager.find(self.common.run, stages))
        loaded = checkpoint_manager.load(path, self.run)
        loaded.model.eval()
        self.settings["checkpoint"] = str(loaded.path)
        self.log_line(f"{self.name} of {loaded.path} on {start_line(self.run, loaded.model)}")
        return loaded

    def result(
        self,
        name: str,
        value: float,
        unit: str = "",
        *,
        stderr: float | None = None,
        n: int | None = None,
        **more: Any,
    ) -> None:
        """Add a figure to the record."""
        found = {"name": name, "value": value, "stderr": stderr, "n": n, "unit": unit, **more}
        self.results.append({key: item for key, item in found.items() if item is not None})

    def sample(self, make: Callable[[], list[dict[str, Any]]]) -> None:
        """Record and print samples; if they fail, a warning says why and the figures remain."""
        try:
            self.samples = make()
        except Exception as error:
            self.log_line(f"warning: samples skipped: {failures.describe_error(error)}")
        for sample in self.samples:
            self.log_line(f"  {sample['prompt']!r} -> {sample['text']!r}")

    def close(self) -> None:
        """Write config.json and result.json (rank 0), which completes the stage."""
        if not self.run.is_main:
            return
        seconds = time.perf_counter() - self.start_s
        report.write_config(self.dir, self.options, self.run)
        section = {
            "title": self.title,
            "seconds": seconds,
            "peak_memory_bytes": devices.memory_used(self.run.device),
            "settings": self.settings,
            "results": self.results,
            "samples": self.samples,
            "notes": self.notes,
        }
        report.record(self.dir, section)
        self.log_line(f"{self.name} done in {duration(seconds)}: {self.dir}")
