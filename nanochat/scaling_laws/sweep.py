"""Many trainings of equal compute: which there are, how long they take, and which are done.

Owns the list of trainings that follows from budgets and sizes, their processes, and the file of
their results. Knows no flags of a stage, and fits nothing.
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
POLL_S = 0.2
# Beside its steps a training imports torch, evaluates and writes, and the first of a size compiles.
# Not measured: what is said while a sweep runs goes by the trainings that have ended.
START_S, COMPILE_S = 12.0, 40.0
FEW_STEPS = 100  # fewer are hardly more than warming up
SAMPLE_DOCUMENTS = 200  # that tell how many characters a token has


@dataclass(frozen=True, kw_only=True)
class Member:
    """One training of a sweep."""

    budget: float  # FLOPs that the sweep gives it; it takes whole steps, so about as many
    model: GPTConfig
    parameters: int  # scaling parameters
    tokens: int
    tokens_per_step: int
    seed: int = 0

    @property
    def name(self) -> str:
        """What tells it from the others of its sweep, fit to be a folder's name."""
        return f"{self.budget:g}-{self.model.depth}x{self.model.width}-{self.seed}"

    @property
    def description(self) -> str:
        """Its size and tokens, as a person reads them."""
        shape = f"{self.model.depth}x{self.model.width}"
        return f"{shape} ({self.parameters:,} parameters), {self.tokens:,} tokens"

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return self.tokens // self.tokens_per_step

    @property
    def flops(self) -> float:
        """What it really takes."""
        return self.tokens * flops.flops_per_token(self.model, self.model.sequence_length)


def members(
    budgets: Sequence[float],
    models: Sequence[GPTConfig],
    seeds: Sequence[int],
    *,
    tokens_per_step: int | None,
    ratios: tuple[float, float] = (0.0, math.inf),
) -> list[Member]:
    """Every training of a sweep, the cheapest budget first.

    tokens_per_step: None takes what the scale asks for. ratios: the least and most tokens per
    parameter; others are left out.
    Raises: ConfigError for a budget that does not pay for one step, or is left without a size.
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
    """A training, its seed not chosen yet; None outside of the ratios."""
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
            f"width {model.width}, less than a step of {step_tokens:,}; give more or smaller steps"
        )
    return Member(
        budget=budget,
        model=model,
        parameters=plan.parameters,
        tokens=steps * step_tokens,
        tokens_per_step=step_tokens,
    )


def planned_seconds(members: Sequence[Member], step: StepPlan, *, peak_flops: float) -> list[float]:
    """About how long each training takes.

    step: as `time_plan` takes it; its rows are those of a forward pass at most.
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
    """What each budget is spent on, and a note on trainings that are too short to tell much."""
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
            f"note: trainings of fewer than {FEW_STEPS} steps: {len(few)}, the shortest of "
            f"{worst.steps:,} ({worst.description}); a smaller --tokens-per-step or larger "
            "--budgets give more"
        )
    return lines


def repeats(members: Sequence[Member], dataset: Dataset, encoder: Tokenizer) -> str | None:
    """A note if a training reads the text more than once: such tokens teach less."""
    characters = dataset.characters("train")
    texts = list(islice(dataset.documents("val"), SAMPLE_DOCUMENTS))
    tokens = sum(len(encoder.encode(text)) + 1 for text in texts)
    if characters is None or not tokens:
        return None
    there = characters * tokens / sum(len(text) for text in texts)
    repeated = [member for member in members if member.tokens > there]
    if not repeated:
        return None
    most = max(member.tokens for member in repeated) / there
    return (
        f"note: trainings that read the text, of about {float(f'{there:.2g}'):,.0f} tokens, more "
        f"than once: {len(repeated)}, up to {most:.1f} times; more text compares them better"
    )


def table(members: Sequence[Member], rows: dict[str, dict[str, Any]]) -> list[list[str]]:
    """What is done, as (training, parameters, tokens, bits per byte, time)."""
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
    """Run a stage as a process of its own, with what it says in a log, to its end.

    stop: whether it is to end early; it is asked to, and may save before it does.
    Raises: ConfigError with its last line if it fails.
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
        last = next((line for line in reversed(output) if line.strip()), "it said nothing")
        raise ConfigError(f"{command[2]}: {last.removeprefix('error: ')} (all it said: {log})")


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """The results so far, by the names of the trainings; a torn row is as if it were not there."""
    return {row["name"]: row for row in metrics.read_rows(folder / RESULTS) if "name" in row}


def record(folder: Path, member: Member, stage_dir: Path) -> dict[str, Any]:
    """Put a finished training's figures on record, and return them.

    Raises: DataError if it left no loss.
    """
    result = storage.read_json(stage_dir / "result.json", "stage's result")
    figures = {figure["name"]: figure.get("value") for figure in result.get("results", [])}
    if LOSS not in figures:
        raise DataError(f"{stage_dir} has no {LOSS}: its evaluation was left out")
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
        LOSS: figures[LOSS],
        "seconds": result.get("seconds"),
    }
    rows = {**read(folder), member.name: row}
    lines = "".join(f"{json.dumps(found)}\n" for found in rows.values())
    storage.write_atomic(folder / RESULTS, lines.encode())
    return row


def points(rows: Sequence[dict[str, Any]]) -> list[Point]:
    """The results as the fit takes them; a loss that is no number is not finite there."""
    return [
        Point(
            budget=row["budget"],
            parameters=row["parameters"],
            tokens=row["tokens"],
            loss=row[LOSS] if data.is_number(row[LOSS]) else float("nan"),
        )
        for row in rows
    ]


def settings(folder: Path) -> dict[str, Any]:
    """What the trainings of a sweep have in common; empty before the first."""
    path = folder / SETTINGS
    return storage.read_json(path, "sweep's record") if path.exists() else {}


def check_settings(folder: Path, wanted: dict[str, Any]) -> None:
    """Put on record what all trainings of a sweep have in common.

    Raises: ConfigError if those before had it otherwise: their losses could not be compared.
    """
    before = settings(folder)
    if not before:
        storage.write_json(folder / SETTINGS, wanted)
    for name, value in wanted.items() if before else ():
        if before.get(name) != value:
            raise ConfigError(
                f"{folder} has a sweep whose {name} is {before.get(name)!r}, not {value!r}; go on "
                "with the options of before, or give this one another --run NAME"
            )
