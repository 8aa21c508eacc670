"""What a run left on disk, read for the report: stages, their curves, accuracies and samples.

Owns reading and picking; tolerates stages that are missing, unfinished or torn. Writes nothing and
knows neither Markdown nor HTML.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from nanochat.system import metrics

# folder -> (title, class of its colour), in the order in which a run goes through them
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
CENTERED = "centred accuracy"
BYTES_A_TOKEN = "bytes a token"  # the unit of tokenizers compared
GAIN = "points"  # the unit of a difference of accuracies, as a share
# metric -> what its plot is called; others that a stage logs are plotted under their own names
PLOTS = {
    "loss": "training loss (nats a token)",
    "val_bpb": "validation bits per byte",
    "val_loss": "validation loss (nats a token)",
    "reward": "mean reward",
    "lr_scale": "learning rate (relative)",
    "grad_norm": "gradient norm",
    "tokens_per_s": "tokens a second",
}
NOT_PLOTTED = frozenset({"step", "tokens", "elapsed_s", "mfu", "data_wait_share"})


@dataclass(frozen=True)
class StageData:
    """One stage of a run as its folder tells it."""

    name: str
    config: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    result: dict[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """What the stage is called in the report."""
        return STAGES.get(self.name, (self.name.replace("_", " "), ""))[0]

    @property
    def series(self) -> str:
        """The class of the stage's colour."""
        return STAGES.get(self.name, ("", "other"))[1]

    @property
    def complete(self) -> bool:
        """Whether the stage came to its end."""
        return bool(self.result)

    @property
    def seconds(self) -> float:
        """How long it took; of an unfinished stage, as far as its last row knows."""
        return self.result.get("seconds") or self.last("elapsed_s") or 0.0

    @property
    def results(self) -> list[dict[str, Any]]:
        """The stage's figures that are numbers."""
        return [r for r in self.result.get("results") or [] if is_number(r.get("value"))]

    @property
    def notes(self) -> list[str]:
        """The stage's remarks on its results."""
        return list(self.result.get("notes") or [])

    def last(self, key: str) -> float | None:
        """The last value of a metric."""
        return next((row[key] for row in reversed(self.rows) if is_number(row.get(key))), None)

    def curve(self, key: str, x_key: str) -> list[tuple[float, float]]:
        """A metric over steps or tokens; rows without tokens take those of the row before."""
        points, x = [], 0.0
        for row in self.rows:
            x = row[x_key] if is_number(row.get(x_key)) else x
            if is_number(row.get(key)):
                points.append((float(x), float(row[key])))
        return points

    def plotted(self) -> list[str]:
        """The metrics with two values or more: the known ones first, then what else there is."""
        keys: dict[str, int] = {}
        for row in self.rows:
            for key, value in row.items():
                if is_number(value) and key not in NOT_PLOTTED:
                    keys[key] = keys.get(key, 0) + 1
        curves = [key for key, points in keys.items() if points > 1]
        known = [key for key in PLOTS if key in curves]
        return known + [key for key in curves if key not in PLOTS]

    def settings(self) -> dict[str, str]:
        """Options and facts as short texts."""
        merged: dict[str, Any] = {}
        for part in (self.config.get("options"), self.config.get("model")):
            merged.update(part if isinstance(part, dict) else {})
        merged.update(self.result.get("settings") or {})
        return {key: text for key, value in merged.items() if (text := short_value(value))}


@dataclass(frozen=True)
class RunRecord:
    """All that is known of a run."""

    name: str
    stages: list[StageData]

    def get(self, name: str) -> StageData:
        """A stage; an empty one if the run has not come to it."""
        return next((stage for stage in self.stages if stage.name == name), StageData(name))

    @property
    def seconds(self) -> float:
        """Time of all stages together."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def peak_memory_bytes(self) -> int:
        """The largest peak of any stage."""
        return max((s.result.get("peak_memory_bytes") or 0 for s in self.stages), default=0)


def load(run_dir: Path) -> RunRecord:
    """Read whatever stages there are, in the order in which a run goes through them."""
    folders = [path for path in run_dir.iterdir() if path.is_dir() and path.name[0] != "."]
    stages = [stage for path in folders if (stage := _load_stage(path)) is not None]
    order = list(STAGES)
    stages.sort(key=lambda s: (order.index(s.name) if s.name in order else len(order), s.name))
    return RunRecord(run_dir.name, stages)


def machine(run: RunRecord) -> dict[str, str]:
    """What the run was made on and with, as the first stage that tells it says."""
    names = {
        "device": "device",
        "world_size": "processes",
        "threads": "threads a process",
        "compute_dtype": "compute dtype",
        "attention": "attention",
        "python": "Python",
        "torch": "torch",
        "git_commit": "commit",
    }
    found: dict[str, str] = {}
    for key, name in names.items():
        values = (stage.config.get(key) for stage in run.stages)
        value = next((v for v in values if v is not None), None)
        if value is not None:
            found[name] = str(value)
    return found


def accuracies(run: RunRecord) -> list[tuple[str, dict[str, dict[str, Any]]]]:
    """(row, {series: result}) of every accuracy, in the order in which stages recorded them.

    A result says by "stage" which model it is of; without that it is of the stage it stands in.
    """
    rows: dict[str, dict[str, dict[str, Any]]] = {}
    for stage in run.stages:
        for result in stage.results:
            if result.get("unit") == ACCURACY:
                series = STAGES.get(result.get("stage", stage.name), ("", "other"))[1]
                rows.setdefault(result["name"], {})[series] = result
    return list(rows.items())


def series_of(rows: Iterable[tuple[str, dict[str, dict[str, Any]]]]) -> list[str]:
    """The series that occur, in the order of the stages."""
    seen = {series for _, results in rows for series in results}
    return [series for series in SERIES_NAMES if series in seen]


def item_counts(results: Iterable[dict[str, Any]]) -> str:
    """Over how many items results were computed: the numbers that occur."""
    counts = sorted({result["n"] for result in results if result.get("n")})
    return " / ".join(f"{n:,}" for n in counts)


def sample_groups(run: RunRecord) -> list[tuple[StageData, str, list[dict[str, Any]]]]:
    """(stage, group, samples), the stage being that of the model that wrote them.

    That is what a sample's "stage" says, or else where it stands; samples of no group are under "".
    """
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for stage in run.stages:
        for sample in stage.result.get("samples") or []:
            key = (stage.name, sample.get("stage", stage.name), sample.get("group", ""))
            groups.setdefault(key, []).append(sample)
    return [(run.get(model), group, samples) for (_, model, group), samples in groups.items()]


def headline(run: RunRecord) -> list[tuple[str, str, str]]:
    """(name, figure, remark) of what one wants to know first; what is unknown is left out."""
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
        remark = f"mean over {len(values)} rows after {SERIES_NAMES[last]}"
        tiles.append(("accuracy", f"{sum(values) / len(values):.1%}", remark))
    return tiles


def with_error(result: dict[str, Any]) -> str:
    """A figure with its standard error, as its unit wants it.

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
    """A large number in words' short form: 4.4 M."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:g}"


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value is a finite number (a bool is none)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def short_value(value: Any, limit: int = 120) -> str:
    """A setting as text; "" for one too long to show."""
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
    rows = [row for row in metrics.read_rows(path / "metrics.jsonl") if isinstance(row, dict)]
    if not (config or rows or result):
        return None
    return StageData(path.name, config, rows, result)


def read_object(path: Path) -> dict[str, Any]:
    """The object in a file; nothing if it is missing or torn."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError):
        return {}
    return value if isinstance(value, dict) else {}
