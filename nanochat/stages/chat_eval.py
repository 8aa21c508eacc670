"""Evaluate a run's chat models, stage by stage: accuracies and sample answers.

nanochat chat_eval --preset pocket
nanochat chat_eval --tasks gsm8k=path/to/gsm8k,mmlu --stages chat_sft --max-items 200
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from nanochat import checkpoint_manager, pocket
from nanochat.data.tasks import evaluations
from nanochat.data.tasks.common import EvalTask
from nanochat.engine import Engine
from nanochat.evaluation import chat
from nanochat.evaluation.accuracy import Accuracy, paired_gain
from nanochat.evaluation.chat import Outcome
from nanochat.evaluation.stage import EvalStage
from nanochat.report.data import ACCURACY, GAIN
from nanochat.system import config, distributed, storage
from nanochat.system.config import RunOptions, nested, option
from nanochat.system.errors import ConfigError

NAME = "chat_eval"
CHAT_STAGES = checkpoint_manager.CHAT_STAGES[::-1]  # in the order of training


@dataclass(frozen=True, kw_only=True)
class ChatEvalConfig:
    """Accuracies of chat models, with standard errors and paired gains between stages."""

    common: RunOptions = nested(RunOptions)
    source: str | None = option(None, "checkpoint or stage folder; none: --stages of --run")
    stages: str = option(
        "all", "chat stages to evaluate, separated by commas; all: those that --run has"
    )
    tasks: str = option(
        "pocket",
        "tasks, separated by commas: pocket, full (ChatCORE's six), a name, or NAME=FOLDER",
    )
    max_items: int | None = option(None, "most items per task; none: the task's default", least=1)
    write_choices: bool = option(
        False, "also let the model write its answers to choice tasks, not only compare letters"
    )
    max_new_tokens: int = option(256, "most tokens per answer", least=1)
    slots: int = option(32, "answers generated at the same time; fewer need less memory", least=1)


def main(argv: list[str] | None = None) -> None:
    cfg = config.parse(ChatEvalConfig, argv, stage=NAME)
    with distributed.session(cfg.common) as run:
        stage = EvalStage(NAME, "Chat evaluation", cfg, cfg.common, run)
        models = distributed.from_main(run, lambda: find_models(cfg))
        tasks = distributed.on_all(
            run, lambda: evaluations.open_tasks(cfg.tasks, max_items=cfg.max_items)
        )
        rows: dict[str, dict[str, list[dict[str, Any]]]] = {}
        engine: Engine | None = None
        for name, path in models.items():
            engine = None  # only one model and its cache may fit into memory
            engine = open_engine(stage, path, cfg.slots)
            rows[name] = evaluate(stage, engine, tasks, name, cfg)
        compare(stage, rows)
        if run.is_main:
            write_items(stage.dir, rows)
            of_pocket = any(word.strip() in ("pocket", "all") for word in cfg.tasks.split(","))
            if engine is not None and of_pocket:
                stage.samples = sample_answers(engine, list(models)[-1])
        stage.close()
        distributed.barrier(run)


def open_engine(stage: EvalStage, path: Path, slots: int) -> Engine:
    """An engine for a checkpoint, which has all of the model that is kept. Collective."""
    loaded = stage.load(str(path), ())
    return Engine(loaded.model, loaded.tokenizer, slots=slots)


def find_models(cfg: ChatEvalConfig) -> dict[str, Path]:
    """The checkpoints to evaluate, by stage, in the order of training.

    Raises: CheckpointError if there is none; ConfigError for a stage that is not a chat stage.
    """
    if cfg.source is not None:
        path = Path(cfg.source).expanduser()
        stage = next((part for part in (path.name, path.parent.name) if part in CHAT_STAGES), None)
        return {stage or "model": path}
    if cfg.stages != "all":
        names = [name.strip() for name in cfg.stages.split(",")]
        unknown = [name for name in names if name not in CHAT_STAGES]
        if unknown:
            known = ", ".join(CHAT_STAGES)
            raise ConfigError(f"--stages must be all or some of {known}, got {unknown[0]!r}")
        return {name: checkpoint_manager.find(cfg.common.run, (name,)) for name in names}
    found = {
        name: newest
        for name in CHAT_STAGES
        if (newest := checkpoint_manager.latest(storage.stage_dir(cfg.common.run, name)))
    }
    return found or {"": checkpoint_manager.find(cfg.common.run, checkpoint_manager.CHAT_STAGES)}


def evaluate(
    stage: EvalStage, engine: Engine, tasks: Sequence[EvalTask], model: str, cfg: ChatEvalConfig
) -> dict[str, list[dict[str, Any]]]:
    """Evaluate one model on all tasks; return the items by result name. Collective."""
    outcomes: list[Outcome] = []
    for task in tasks:
        modes: tuple[chat.Mode, ...] = ("write",)
        if task.kind == "choice":
            modes = ("letters", "write") if cfg.write_choices else ("letters",)
        for mode in modes:
            outcome = chat.evaluate(
                engine,
                task,
                run=stage.run,
                mode=mode,
                max_items=cfg.max_items,
                max_new_tokens=cfg.max_new_tokens,
            )
            outcomes.append(outcome)
            record(stage, outcome.accuracy, model)
    mean = chat.chat_core([outcome.accuracy for outcome in outcomes])
    if mean is not None:
        stage.result(f"ChatCORE of {model}", mean[0], stderr=mean[1])
        stage.log_line(f"{model} | ChatCORE: {mean[0]:.4f} +- {mean[1]:.4f}")
    return {outcome.accuracy.name: outcome.rows for outcome in outcomes}


def record(stage: EvalStage, found: Accuracy, model: str) -> None:
    """Record an accuracy and print it."""
    stage.result(found.name, found.value, ACCURACY, stderr=found.stderr, n=found.n, stage=model)
    stage.log_line(
        f"{model} | {found.name}: {found.value:.1%} +- {found.stderr:.1%} of {found.n:,}"
    )


def compare(stage: EvalStage, rows: dict[str, dict[str, list[dict[str, Any]]]]) -> None:
    """Record how much each stage gained over the previous one, paired by item."""
    for before, after in pairwise(rows):
        for name in rows[after]:
            pair = [[row["correct"] for row in rows[m].get(name, [])] for m in (before, after)]
            if len(pair[0]) != len(pair[1]) or len(pair[0]) < 2:
                continue
            gain = paired_gain(*pair)
            title = f"{name}: gain of {after} over {before}, paired"
            stage.result(title, gain.value, GAIN, stderr=gain.stderr, n=gain.n)
            if gain.significant:
                stage.notes.append(
                    f"{name}: {after} gains {100 * gain.value:.1f} ± {100 * gain.stderr:.1f} "
                    f"points over {before} on the same {gain.n:,} items"
                )


def write_items(folder: Path, rows: dict[str, dict[str, list[dict[str, Any]]]]) -> None:
    """Write each model's answers, one JSON row per item."""
    for model, tasks in rows.items():
        lines = [
            json.dumps({**row, "figure": name}, ensure_ascii=False)
            for name, items in tasks.items()
            for row in items
        ]
        text = "".join(line + "\n" for line in lines)
        storage.write_atomic(folder / f"items-{model or 'model'}.jsonl", text.encode())


def sample_answers(engine: Engine, model: str) -> list[dict[str, Any]]:
    """One model's answers to the hand-written prompts, and the scripted dialogues."""
    answers = chat.answer_prompts(engine, pocket.hand_prompts())
    dialogues = chat.hold_dialogues(engine, pocket.scripted_dialogues())
    return [
        *({**sample, "stage": model, "group": "hand-written prompts"} for sample in answers),
        *({**sample, "stage": model, "group": "scripted dialogues"} for sample in dialogues),
    ]


if __name__ == "__main__":
    config.cli(main)
