"""Many training runs of equal compute: which ones, how long they take, and which are done.

Owns: the list of runs that follows from budgets and sizes, their processes, and the file of their
results. Does not own: a stage's flags (stages/scaling_laws.py) or the fits (isoflop.py).
"""

import contextlib
import json
import math
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from nanochat.data import Dataset
from nanochat.data.dataloader import micro_batch_rows
from nanochat.gpt import GPTConfig, flops
from nanochat.optim.scaling import scaled_plan
from nanochat.report import data
from nanochat.scaling_laws.isoflop import Point
from nanochat.system import metrics, storage
from nanochat.system.errors import ConfigError, DataError
from nanochat.system.metrics import duration
from nanochat.tokenizer import Tokenizer
from nanochat.training import memory_plan, time_plan
from nanochat.training.memory_plan import StepPlan
from nanochat.training.stage import rows_per_step

RESULTS, SETTINGS = "results.jsonl", "config.json"
LOSS = "val_bpb"
FIGURES = ("budget", "parameters", "tokens")  # what the fit needs besides the loss
POLL_S = 0.2
# Besides its steps a run imports torch, evaluates and writes, and the first of a size compiles.
# Not measured: the time left that a sweep prints comes from its finished runs.
START_S, COMPILE_S = 12.0, 40.0
FEW_STEPS = 100  # fewer are hardly more than the warmup
SAMPLE_DOCUMENTS = 200  # to estimate the characters per token from


@dataclass(frozen=True, kw_only=True)
class Member:
    """One training run of a sweep."""

    budget: float  # FLOPs that the sweep assigns it; the run takes about as many, in whole steps
    model: GPTConfig
    parameters: int  # scaling parameters
    tokens: int
    tokens_per_step: int
    seed: int = 0

    @property
    def name(self) -> str:
        """Identifies it within its sweep; usable as a folder name."""
        return f"{self.budget:g}-{self.model.depth}x{self.model.width}-{self.seed}"

    @property
    def description(self) -> str:
        """Its size and tokens, for people."""
        shape = f"{self.model.depth}x{self.model.width}"
        return f"{shape} ({self.parameters:,} parameters), {self.tokens:,} tokens"

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return self.tokens // self.tokens_per_step

    @property
    def flops(self) -> float:
        """FLOPs it actually takes."""
        return self.tokens * flops.flops_per_token(self.model, self.model.sequence_length)


def members(
    budgets: Sequence[float],
    models: Sequence[GPTConfig],
    seeds: Sequence[int],
    *,
    tokens_per_step: int | None,
    ratios: tuple[float, float] = (0.0, math.inf),
) -> list[Member]:
    """Every run of a sweep, the smallest budget first.

    tokens_per_step: None: as the model's scale asks for. ratios: the least and most tokens per
    parameter; runs outside are left out.
    Raises: ConfigError for a budget that pays for less than one step, or that no size fits.
    """
    found: list[Member] = []
    for budget in sorted(set(budgets)):
        group = [m for model in models if (m := _member(budget, model, tokens_per_step, ratios))]
        if not group:
            raise ConfigError(
                f"--budgets {budget:g}: no size has between {ratios[0]:g} and {ratios[1]:g} tokens "
                "per parameter; give other --sizes or --ratios"
            )
        found += [replace(member, seed=seed) for member in group for seed in seeds]
    return list(dict.fromkeys(found))


def _member(
    budget: float, model: GPTConfig, tokens_per_step: int | None, ratios: tuple[float, float]
) -> Member | None:
    """A run without its seed; None outside of the ratios."""
    length = model.sequence_length
    asked = max(1, round(budget / flops.flops_per_token(model, length)))
    plan = scaled_plan(model, tokens=asked, tokens_per_step=tokens_per_step)
    step_tokens = rows_per_step(plan.tokens_per_step, length) * length
    if not ratios[0] <= asked / plan.parameters <= ratios[1]:
        return None
    steps = round(asked / step_tokens)
    if steps < 1:
        raise ConfigError(
            f"--budgets {budget:g} pays for {asked:,} tokens of a model of {model.depth} layers of "
            f"width {model.width}, less than a step of {step_tokens:,}; raise it or lower "
            "--tokens-per-step"
        )
    return Member(
        budget=budget,
        model=model,
        parameters=plan.parameters,
        tokens=steps * step_tokens,
        tokens_per_step=step_tokens,
    )


def planned_seconds(members: Sequence[Member], step: StepPlan, *, peak_flops: float) -> list[float]:
    """About how long each run takes.

    step: as `time_plan` takes it; its rows are the most of a forward pass.
    """
    seconds, compiled = [], set[GPTConfig]()
    for member in members:
        most = member.tokens_per_step // step.length
        passes, rows = micro_batch_rows(most, step.rows, 1)
        own = memory_plan.with_rows(step, rows, most)
        step_s = time_plan.seconds_per_step(member.model, own, passes=passes, peak_flops=peak_flops)
        first = step.compiled and member.model not in compiled
        seconds.append(START_S + (COMPILE_S if first else 0) + member.steps * step_s)
        compiled.add(member.model)
    return seconds


def plan_lines(members: Sequence[Member]) -> list[str]:
    """What each budget is spent on, and a note on runs too short to be informative."""
    lines = []
    for budget in dict.fromkeys(member.budget for member in members):
        group = sorted((m for m in members if m.budget == budget), key=lambda m: m.parameters)
        small, large = group[0], group[-1]
        lines.append(
            f"{budget:.3g} FLOPs: from {small.parameters:,} parameters and {small.tokens:,} tokens "
            f"to {large.parameters:,} and {large.tokens:,}"
        )
    if few := [member for member in members if member.steps < FEW_STEPS]:
        worst = min(few, key=lambda member: member.steps)
        lines.append(
            f"note: runs of fewer than {FEW_STEPS} steps: {len(few)}, the shortest of "
            f"{worst.steps:,} ({worst.description}); a smaller --tokens-per-step or larger "
            "--budgets give more"
        )
    return lines


def repeats(members: Sequence[Member], dataset: Dataset, encoder: Tokenizer) -> str | None:
    """A note if a run reads the text more than once: repeated tokens teach less."""
    characters = dataset.characters("train")
    texts = list(islice(dataset.documents("val"), SAMPLE_DOCUMENTS))
    tokens = sum(len(encoder.encode(text)) + 1 for text in texts)
    if characters is None or not tokens:
        return None
    available = characters * tokens / sum(len(text) for text in texts)
    repeated = [member for member in members if member.tokens > available]
    if not repeated:
        return None
    most = max(member.tokens for member in repeated) / available
    return (
        f"note: runs that read the text, of about {float(f'{available:.2g}'):,.0f} tokens, more "
        f"than once: {len(repeated)}, up to {most:.1f} times; more text makes a fairer comparison"
    )


def table(members: Sequence[Member], rows: dict[str, dict[str, Any]]) -> list[list[str]]:
    """The finished runs as (run, parameters, tokens, bits per byte, time)."""
    return [
        [
            member.name,
            f"{member.parameters:,}",
            f"{member.tokens:,}",
            f"{rows[member.name][LOSS]:.4f}",
            duration(rows[member.name]["seconds"]),
        ]
        for member in members
        if member.name in rows
    ]


def run(command: Sequence[str], log: Path, stop: Callable[[], bool]) -> None:
    """Run a stage in its own process to its end, with its output in a log.

    stop: whether to stop early; the process is then asked to, and may save before it exits.
    Raises: ConfigError with the last line of its output if it fails.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        asked = False
        try:
            while process.poll() is None:
                if stop() and not asked:
                    process.terminate()
                    asked = True
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(POLL_S)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    if process.returncode and not asked:
        output = log.read_text(encoding="utf-8", errors="replace").split("\n")
        last = next((line for line in reversed(output) if line.strip()), "no output")
        raise ConfigError(f"{command[2]}: {last.removeprefix('error: ')} (full output: {log})")


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """The results so far by run name; rows that are cut off or lack a figure are ignored."""
    rows = metrics.read_rows(folder / RESULTS)
    return {row["name"]: row for row in rows if isinstance(row.get("name"), str) and _is_whole(row)}


def _is_whole(row: dict[str, Any]) -> bool:
    return LOSS in row and all(data.is_number(row.get(key)) for key in FIGURES)


def record(folder: Path, member: Member, stage_dir: Path) -> dict[str, Any]:
    """Record a finished run's figures and return them.

    Raises: DataError if it recorded no loss.
    """
    result = storage.read_json(stage_dir / "result.json", "stage's result")
    results, seconds = result.get("results"), result.get("seconds")
    rows = [row for row in results if isinstance(row, dict)] if isinstance(results, list) else []
    loss = next((row for row in rows if row.get("name") == LOSS), None)
    if loss is None:
        raise DataError(f"{stage_dir} has no {LOSS}: its evaluation was skipped")
    row = {
        "name": member.name,
        "budget": member.budget,
        "depth": member.model.depth,
        "width": member.model.width,
        "seed": member.seed,
        "parameters": member.parameters,
        "tokens": member.tokens,
        "tokens_per_step": member.tokens_per_step,
        "flops": member.flops,
        LOSS: _number(loss.get("value")),
        "seconds": seconds if data.is_number(seconds) else 0.0,
    }
    found = {**read(folder), member.name: row}
    lines = "".join(f"{json.dumps(each)}\n" for each in found.values())
    storage.write_atomic(folder / RESULTS, lines.encode())
    return row


def points(rows: Sequence[dict[str, Any]]) -> list[Point]:
    """The results as the fit takes them; an invalid loss becomes NaN."""
    return [
        Point(
            budget=row["budget"],
            parameters=row["parameters"],
            tokens=row["tokens"],
            loss=_number(row[LOSS]),
        )
        for row in rows
    ]


def _number(value: Any) -> float:
    """A recorded figure; NaN if it is none, as of a run that diverged."""
    return value if data.is_number(value) else math.nan


def settings(folder: Path) -> dict[str, Any]:
    """The settings that all runs of a sweep share; empty before the first."""
    path = folder / SETTINGS
    return storage.read_json(path, "sweep's record") if path.exists() else {}


def check_settings(folder: Path, wanted: dict[str, Any]) -> None:
    """Record the settings that all runs of a sweep share.

    Raises: ConfigError if earlier runs had different ones: their losses would not be comparable.
    """
    before = settings(folder)
    if not before:
        storage.write_json(folder / SETTINGS, wanted)
    for name, value in wanted.items() if before else ():
        if before.get(name) != value:
            raise ConfigError(
                f"{folder} has a sweep whose {name} is {before.get(name)!r}, not {value!r}; "
                "continue with the same options, or give this one another name: --run NAME"
            )
