"""What a training stage does between steps: save, evaluate, sample.

Owns: the order of these, and which of their failures end a run. Does not own: when they are due
(trainer.py), writing checkpoints (saving.py), or what is evaluated, which each stage brings.
"""

from collections.abc import Callable, Sequence
from typing import Any

from nanochat import report
from nanochat.engine import Engine, Request, SamplingParams
from nanochat.gpt import GPT
from nanochat.system import failures
from nanochat.system.distributed import Run, gather_work
from nanochat.system.errors import OutOfMemory, explain_memory
from nanochat.tokenizer import Tokenizer
from nanochat.training.saving import Saver
from nanochat.training.stage_opening import Stage
from nanochat.training.trainer import Hook, Trainer


def hooks(
    stage: Stage,
    saver: Saver,
    evaluation: Callable[[], dict[str, float]],
    samples: Callable[[], list[dict[str, str]]],
    results: dict[str, Any],
) -> list[Hook]:
    """Save, then evaluate, then sample: a failing evaluation must not cost a checkpoint.

    The checkpoint is written meanwhile: on many GPUs, all would wait for one process's disk.
    evaluation, samples: called by all ranks. results: gets the latest "evaluation" and "samples";
    if an evaluation runs out of memory or samples fail in any way, the previous ones stay and
    training continues.
    """

    def evaluate(trainer: Trainer) -> None:
        try:
            results["evaluation"] = figures = evaluation()
        except OutOfMemory as error:
            stage.log_line(f"warning: evaluation skipped: {error}")
            return
        if figures:
            saver.record_score(trainer.progress.step, figures)
            trainer.metrics.log(trainer.progress.step, dict(figures))
            shown = " | ".join(f"{name} {value:.4f}" for name, value in figures.items())
            stage.log_line(f"step {trainer.progress.step:,} | {shown}")

    def sample(trainer: Trainer) -> None:
        try:
            found = gather_work(stage.run, attempt)[0]
        except OutOfMemory as error:
            found = str(error)
        if isinstance(found, str):
            stage.log_line(f"warning: samples skipped: {found}")
            return
        results["samples"] = found
        if stage.run.is_main:
            _record_samples(stage, trainer.progress.step, found)
        for item in found[:4]:
            stage.log_line(f"  {item['prompt']!r} -> {item['text']!r}")

    def attempt() -> list[dict[str, str]] | str:
        """The samples, or why there are none: they are for the report only."""
        try:
            return samples()
        except Exception as error:
            if explain_memory(error):
                raise
            return failures.describe_error(error)

    loop = stage.loop
    return [
        Hook(saver.save, every=loop.save_every, on_stop=True),
        Hook(evaluate, every=loop.eval_every),
        Hook(sample, every=loop.sample_every),
    ]


def _record_samples(stage: Stage, step: int, samples: list[dict[str, str]]) -> None:
    try:
        report.record_samples(stage.dir, step, samples)
    except OSError as error:
        stage.log_line(f"warning: samples.jsonl cannot be written ({error}); training continues")


def greedy_samples(
    model: GPT,
    tokenizer: Tokenizer,
    run: Run,
    prompts: Sequence[tuple[str, list[int]]],
    *,
    slots: int,
    max_new_tokens: int,
    chat: bool = True,
) -> list[dict[str, str]]:
    """Greedy completions in the form the report takes; empty on all ranks but 0.

    prompts: (text to show, token ids).
    """
    if not run.is_main:
        return []
    engine = Engine(model, tokenizer, slots=slots)
    params = SamplingParams(temperature=0, max_new_tokens=max_new_tokens)
    requests = [Request(prompt=tokens, params=params, chat=chat) for _, tokens in prompts]
    done = engine.generate(requests)
    return [{"prompt": text, "text": c.text} for (text, _), c in zip(prompts, done, strict=True)]
