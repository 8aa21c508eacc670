"""A run's files, read for the report: stages, their curves, accuracies and samples.

Owns: reading and selecting; tolerates missing and unfinished stages and damaged files. Does not
own: Markdown, HTML or any file it reads.
"""

import json
import logging
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

from nanochat.system import metrics, storage
from nanochat.system.errors import DataError

log = logging.getLogger(__name__)

T = TypeVar("T")

# folder -> (title, CSS class of its color), in the order in which a run executes them
STAGES = {
    "tok_train": ("Tokenizer", "tok"),
    "tok_eval": ("Tokenizer compared", "tok"),
    "base_train": ("Base training", "base"),
    "base_loss": ("Base model: bits per byte", "base"),
    "base_eval": ("Base model: in-context tasks", "base"),
    "mid_train": ("Mid-training", "mid"),
    "chat_sft": ("Supervised fine-tuning", "sft"),
    "chat_rl": ("Reinforcement learning", "rl"),
    "chat_eval": ("Chat evaluation", "other"),
}
SERIES_NAMES = {
    "tok": "tokenizer",
    "base": "base",
    "mid": "mid-training",
    "sft": "SFT",
    "rl": "RL",
    "other": "other",
}
ACCURACY = "accuracy"  # the unit of results that go into the table of accuracies
CENTERED = "centred accuracy"  # spelled as in the result files of existing runs
BYTES_PER_TOKEN = "bytes a token"  # the unit of tokenizer comparisons, likewise
GAIN = "points"  # the unit of a difference of accuracies, as a fraction
# metric -> title of its plot; other metrics are plotted under their own names
PLOTS = {
    "loss": "training loss (nats per token)",
    "val_bpb": "validation bits per byte",
    "val_loss": "validation loss (nats per token)",
    "reward": "mean reward",
    "lr_scale": "learning rate (relative)",
    "grad_norm": "gradient norm",
    "tokens_per_s": "tokens per second",
}
NOT_PLOTTED = frozenset({"step", "tokens", "elapsed_s", "mfu", "data_wait_share"})


@dataclass(frozen=True)
class StageData:
    """One stage of a run, as read from its folder."""

    name: str
    config: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    result: dict[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The stage's title in the report."""
        return STAGES.get(self.name, (self.name.replace("_", " "), ""))[0]

    @property
    def series(self) -> str:
        """The CSS class of the stage's color."""
        return STAGES.get(self.name, ("", "other"))[1]

    @property
    def complete(self) -> bool:
        """Whether the stage finished."""
        return bool(self.result)

    @property
    def seconds(self) -> float:
        """Duration in seconds; up to the last logged row if the stage is unfinished."""
        return self._number("seconds") or self.last("elapsed_s") or 0.0

    @property
    def peak_memory_bytes(self) -> float:
        """The stage's peak of memory; 0 if unknown."""
        return self._number("peak_memory_bytes")

    @property
    def results(self) -> list[dict[str, Any]]:
        """The stage's results with numeric values."""
        return [r for r in self._objects("results") if is_number(r.get("value"))]

    @property
    def samples(self) -> list[dict[str, Any]]:
        """The stage's samples, in the form of `record`."""
        return self._objects("samples")

    @property
    def notes(self) -> list[str]:
        """The stage's remarks on its results."""
        return [note for note in self._list("notes") if isinstance(note, str)]

    def _number(self, key: str) -> float:
        value = self.result.get(key)
        return value if is_number(value) else 0.0

    def _list(self, key: str) -> list[Any]:
        value = self.result.get(key)
        return value if isinstance(value, list) else []

    def _objects(self, key: str) -> list[dict[str, Any]]:
        return [item for item in self._list(key) if isinstance(item, dict)]

    def last(self, key: str) -> float | None:
        """The last value of a metric."""
        return next((row[key] for row in reversed(self.rows) if is_number(row.get(key))), None)

    def curve(self, key: str, x_key: str) -> list[tuple[float, float]]:
        """A metric over steps or tokens; rows without `x_key` use the previous row's value."""
        points, x = [], 0.0
        for row in self.rows:
            x = row[x_key] if is_number(row.get(x_key)) else x
            if is_number(row.get(key)):
                points.append((float(x), float(row[key])))
        return points

    def plotted(self) -> list[str]:
        """The metrics with at least two values: those in PLOTS first, then the rest."""
        counts: dict[str, int] = {}
        for row in self.rows:
            for key, value in row.items():
                if is_number(value) and key not in NOT_PLOTTED:
                    counts[key] = counts.get(key, 0) + 1
        curves = [key for key, points in counts.items() if points > 1]
        known = [key for key in PLOTS if key in curves]
        return known + [key for key in curves if key not in PLOTS]

    def settings(self) -> dict[str, str]:
        """Options and other settings as short texts."""
        merged: dict[str, Any] = {}
        for part in (self.config.get("options"), self.config.get("model")):
            merged.update(part if isinstance(part, dict) else {})
        more = self.result.get("settings")
        merged.update(more if isinstance(more, dict) else {})
        return {key: text for key, value in merged.items() if (text := short_value(value))}


@dataclass(frozen=True)
class RunRecord:
    """Everything the report knows about a run."""

    name: str
    stages: list[StageData]

    def get(self, name: str) -> StageData:
        """A stage by name; an empty one if the run has none of that name."""
        return next((stage for stage in self.stages if stage.name == name), StageData(name))

    @property
    def seconds(self) -> float:
        """Total time of all stages."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def peak_memory_bytes(self) -> float:
        """The largest peak of any stage."""
        return max((stage.peak_memory_bytes for stage in self.stages), default=0)


def made(part: str, make: Callable[[], T], without: T) -> T:
    """A part of a report; if it cannot be made, a warning names it and the report does without."""
    try:
        return make()
    except Exception as error:
        log.warning("warning: the report has no %s (%s: %s)", part, type(error).__name__, error)
        return without


def load(run_dir: Path) -> RunRecord:
    """Read the stages that exist, in the order in which a run executes them."""
    folders = [path for path in run_dir.iterdir() if path.is_dir() and path.name[0] != "."]
    stages = [stage for path in folders if (stage := _load_stage(path)) is not None]
    order = list(STAGES)
    stages.sort(key=lambda s: (order.index(s.name) if s.name in order else len(order), s.name))
    return RunRecord(run_dir.name, stages)


def machine(run: RunRecord) -> dict[str, str]:
    """The machine and software of the run, each fact from the first stage that has it."""
    names = {
        "device": "device",
        "world_size": "processes",
        "threads": "threads per process",
        "compute_dtype": "compute dtype",
        "attention": "attention",
        "python": "Python",
        "torch": "torch",
        "git_commit": "commit",
    }
    facts: dict[str, str] = {}
    for key, name in names.items():
        values = (stage.config.get(key) for stage in run.stages)
        value = next((v for v in values if v is not None), None)
        if value is not None:
            facts[name] = str(value)
    return facts


def accuracies(run: RunRecord) -> list[tuple[str, dict[str, dict[str, Any]]]]:
    """(row, {series: result}) of every accuracy, in the order in which stages recorded them.

    A result's "stage" names the stage of the evaluated model; the default is its own stage.
    """
    rows: dict[str, dict[str, dict[str, Any]]] = {}
    for stage in run.stages:
        for result in stage.results:
            if result.get("unit") == ACCURACY:
                series = STAGES.get(result.get("stage", stage.name), ("", "other"))[1]
                rows.setdefault(result["name"], {})[series] = result
    return list(rows.items())


def series_of(rows: Iterable[tuple[str, dict[str, dict[str, Any]]]]) -> list[str]:
    """The series in the rows, in the order of the stages."""
    seen = {series for _, results in rows for series in results}
    return [series for series in SERIES_NAMES if series in seen]


def item_counts(results: Iterable[dict[str, Any]]) -> str:
    """The distinct numbers of items that results were computed over, as text."""
    counts = sorted({n for result in results if is_number(n := result.get("n")) and n})
    return " / ".join(f"{n:,}" for n in counts)


def sample_groups(run: RunRecord) -> list[tuple[StageData, str, list[dict[str, Any]]]]:
    """(stage of the model, group, samples); the group is "" for samples without one.

    A sample's "stage" names the stage of the model that wrote it; the default is its own stage.
    """
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for stage in run.stages:
        for sample in stage.samples:
            key = (stage.name, sample.get("stage", stage.name), sample.get("group", ""))
            groups.setdefault(key, []).append(sample)
    return [(run.get(model), group, samples) for (_, model, group), samples in groups.items()]


def headline(run: RunRecord) -> list[tuple[str, str, str]]:
    """(name, figure, note) of the most important figures; unknown ones are left out."""
    base = run.get("base_train")
    tiles = [("time", metrics.duration(run.seconds), f"over {len(run.stages)} stages")]
    if run.peak_memory_bytes:
        tiles.append(("peak memory", gigabytes(run.peak_memory_bytes), "of one process"))
    parameters = base.config.get("parameters") or base.result.get("settings", {}).get("parameters")
    if is_number(parameters):
        depth = (base.config.get("model") or {}).get("depth", "unknown")
        tiles.append(("parameters", count(parameters), f"depth {depth}"))
    trained = [s.last("tokens") or 0 for s in run.stages]
    if any(trained):
        tiles.append(("tokens trained on", count(sum(trained)), "over all stages"))
    bpb = base.last("val_bpb")
    if bpb is not None:
        tiles.append(("bits per byte", f"{bpb:.3f}", "base model, validation text"))
    rows = accuracies(run)
    if rows:
        last = series_of(rows)[-1]
        values = [results[last]["value"] for _, results in rows if last in results]
        note = f"mean over {len(values)} rows after {SERIES_NAMES[last]}"
        tiles.append(("accuracy", f"{sum(values) / len(values):.1%}", note))
    return tiles


def with_error(result: dict[str, Any]) -> str:
    """A value with its standard error, formatted for its unit.

    >>> with_error({"value": 0.975, "stderr": 0.007, "unit": "accuracy"})
    '97.5% ± 0.7'
    """
    value, stderr, unit = result["value"], result.get("stderr"), result.get("unit")
    if unit == ACCURACY:
        return f"{value:.1%}" + (f" ± {100 * stderr:.1f}" if is_number(stderr) else "")
    if unit == GAIN:
        return f"{100 * value:+.1f}" + (f" ± {100 * stderr:.1f}" if is_number(stderr) else "")
    text = f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"
    if isinstance(value, float) and abs(value) >= 10_000:
        text = f"{value:,.0f}"
    return text + (f" ± {stderr:.2g}" if is_number(stderr) else "")


def gigabytes(size: float) -> str:
    """Bytes as GB or MB."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def count(value: float) -> str:
    """A large number with a unit prefix: 4.4 M."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:g}"


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value is a finite number; a bool is not."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= sys.float_info.max  # not for NaN, infinities and integers beyond a float


def short_value(value: Any, limit: int = 120) -> str:
    """A setting as text; "" if it is too long to show."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, str):
        return value if len(value) <= limit else value[: limit - 1] + "…"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= limit else ""


def _load_stage(path: Path) -> StageData | None:
    config, result = read_object(path / "config.json"), read_object(path / "result.json")
    rows = metrics.read_rows(path / "metrics.jsonl")
    if not (config or rows or result):
        return None
    return StageData(path.name, config, rows, result)


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty if the file is missing or damaged."""
    try:
        return storage.read_json(path, "record")
    except (OSError, DataError):
        return {}
