"""Reinforcement learning on problems whose answers can be checked.

nanochat chat_rl --preset pocket
nanochat chat_rl --tasks gsm8k --steps 100
"""

import dataclasses
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nanochat.data.tasks.common import EvalTask
from nanochat.data.tasks.gsm8k import GSM8K, HUB
from nanochat.data.tasks.pocket import PocketProblems, PocketTask
from nanochat.evaluation import chat
from nanochat.optim import OptimConfig, schedules
from nanochat.system import config, distributed
from nanochat.system.config import RunOptions, nested, option
from nanochat.system.distributed import gather_work
from nanochat.system.errors import ConfigError
from nanochat.training import batch_size, chat_stage
from nanochat.training.rollouts import RewardTask, RolloutBatches, RolloutOptions
from nanochat.training.stage import Recipe, run_training
from nanochat.training.stage_opening import LoopOptions, open_stage

NAME = "chat_rl"


@dataclass(frozen=True, kw_only=True)
class ChatRlConfig:
    """Reinforcement learning from rewards, without a critic or a reference model."""

    common: RunOptions = nested(RunOptions)
    loop: LoopOptions = nested(LoopOptions, without=("compile",))
    optimizer: OptimConfig = nested(OptimConfig)
    rollouts: RolloutOptions = nested(RolloutOptions)
    source: str | None = option(
        None, "checkpoint or stage folder to start from; none: the previous stage of this run"
    )
    tasks: str = option("pocket", "problems to learn: pocket, gsm8k (from the hub) or gsm8k=FOLDER")
    problems: int = option(20_000, "problems of pocket; later epochs repeat them", least=1)
    steps: int | None = option(None, "optimizer steps; none: one pass over the problems", least=1)
    base_lr_frac: float = option(
        0.05, "factor on all learning rates, on top of --lr-scale", above=0
    )
    eval_items: int = option(200, "held-out problems per task to measure pass@1 on", least=1)


def main(argv: list[str] | None = None) -> None:
    cfg = config.parse(ChatRlConfig, argv, stage=NAME)
    with open_stage(NAME, cfg) as stage:
        task, held_out = distributed.on_all(stage.run, lambda: open_tasks(cfg))
        distributed.check_same_data(stage.run, task_identity(task))
        loaded = chat_stage.load_model(stage, cfg.source, ("chat_sft", "mid_train"))
        batches = RolloutBatches(
            loaded.model, loaded.tokenizer, task, cfg.rollouts, run=stage.run, seed=cfg.common.seed
        )
        # Only now: the engine's KV cache takes much memory, which the search has to leave free.
        batches.device_rows = batch_size.device_rows(
            stage,
            loaded.model,
            batch_rows=cfg.rollouts.prompts_per_step * cfg.rollouts.samples_per_prompt,
            length=batches.engine.max_len,
            may_compile=False,
        )
        steps = cfg.steps or max(1, len(task) // cfg.rollouts.prompts_per_step)
        stage.log_line(
            f"{steps:,} steps of {cfg.rollouts.prompts_per_step} prompts with "
            f"{cfg.rollouts.samples_per_prompt} answers each, from {len(task):,} problems"
        )

        def evaluate() -> dict[str, float]:
            gather_work(stage.run, lambda: batches.engine.refresh(loaded.model))
            measured = pass_at_1(batches, held_out, cfg, stage.run)
            return {**batches.figures(), **measured}

        def sample() -> list[dict[str, str]]:
            shown = min(chat_stage.SAMPLES, len(held_out[0]))
            return chat_stage.sample_answers(
                loaded, stage.run, [held_out[0][i] for i in range(shown)]
            )

        scale = cfg.optimizer.lr_scale * cfg.base_lr_frac
        run_training(
            stage,
            Recipe(
                model=loaded.model,
                tokenizer=loaded.tokenizer,
                batches=batches,
                schedule=schedules.linear_to_zero(steps),
                total_steps=steps,
                tokens_per_step=batches.tokens_per_step,
                optimizer=dataclasses.replace(cfg.optimizer, lr_scale=scale),
                evaluate=evaluate,
                sample=sample,
                facts={
                    "source": str(loaded.path),
                    "problems": len(task),
                    "device_batch_size": batches.device_rows,
                },
                watch_loss=False,  # it varies around zero with the rewards; a jump means nothing
                may_compile=False,  # every step has rows of new lengths
            ),
        )


def open_tasks(cfg: ChatRlConfig) -> tuple[RewardTask, Sequence[EvalTask]]:
    """The problems to learn from, and the held-out ones to measure pass@1 on."""
    name, given, folder = cfg.tasks.partition("=")
    if cfg.tasks == "pocket":
        rows = ("problems", "problems_new_templates")
        task = PocketProblems(seed=cfg.common.seed, size=cfg.problems)
        return task, [PocketTask(row, cfg.eval_items) for row in rows]
    if name == "gsm8k" and bool(given) == bool(folder):
        source = folder or HUB
        return GSM8K("train", source=source), [GSM8K("test", source=source)]
    raise ConfigError(f"--tasks must be pocket, gsm8k or gsm8k=FOLDER, got {cfg.tasks!r}")


def task_identity(task: RewardTask) -> dict[str, Any]:
    """What identifies a set of problems: all ranks must have the same."""
    first = [task[i]["messages"] for i in range(min(100, len(task)))]
    return {"problems": len(task), "content": f"{zlib.crc32(json.dumps(first).encode()):08x}"}


def pass_at_1(
    batches: RolloutBatches,
    held_out: Sequence[EvalTask],
    cfg: ChatRlConfig,
    run: distributed.Run,
) -> dict[str, float]:
    """Greedy accuracy on the held-out problems of each task. Collective."""
    found = [
        chat.evaluate(
            batches.engine,
            task,
            run=run,
            max_items=cfg.eval_items,
            max_new_tokens=batches.max_new_tokens,
        ).accuracy
        for task in held_out
    ]
    return {f"pass@1 {accuracy.name}": accuracy.value for accuracy in found}


if __name__ == "__main__":
    config.cli(main)
