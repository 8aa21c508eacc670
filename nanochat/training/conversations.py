"""Supervised training on conversations: what mid-training and SFT share.

The stages differ in their mixture and their defaults, not in their code. The conversations are
brought by the scripts.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nanochat import checkpoint_manager
from nanochat.checkpoint_manager import Loaded
from nanochat.data import ChatBatches
from nanochat.data.conversation_rows import ChatRows
from nanochat.engine import Engine, Request, SamplingParams
from nanochat.optim import OptimConfig, schedules
from nanochat.optim.scaling import batch_lr_scale
from nanochat.system.config import RunOptions, nested, option
from nanochat.system.distributed import Run, check_same_data, from_main, gather_work, on_all
from nanochat.system.errors import ConfigError
from nanochat.tokenizer.conversation import Conversation, Message, render_prompt
from nanochat.training import batch_size, stage
from nanochat.training.stage_opening import LoopOptions, Stage


@dataclass(frozen=True, kw_only=True)
class ChatTrainConfig:
    """Supervised training on conversations."""

    common: RunOptions = nested(RunOptions)
    loop: LoopOptions = nested(LoopOptions)
    optimizer: OptimConfig = nested(OptimConfig)
    source: str | None = option(
        None, "checkpoint or stage folder to start from; none: the stage before, in this run"
    )
    data: str = option("pocket", "mixture (pocket, full) or a .jsonl of your own conversations")
    val_data: str | None = option(
        None, "a .jsonl of validation conversations; none: the mixture's, or a share of yours"
    )
    epochs: float = option(1.0, "passes over the conversations; the number may be a fraction")
    conversations: int = option(40_000, "conversations an epoch of pocket has")
    tokens_per_step: int = option(
        4096, "tokens in one optimizer step, over all ranks; small ones lower the learning rates"
    )
    sequence_length: int | None = option(
        None, "tokens of a row, and of the model's context from then on; none: the model's own"
    )
    warmup_frac: float = option(0.02, "share of the steps that warm the learning rates up, [0, 1]")
    warmdown_frac: float = option(0.5, "share of the steps that bring them down, [0, 1]")
    final_lr_frac: float = option(0.0, "learning rates at the end, as a share of the full ones")

    def __post_init__(self) -> None:
        for name in ("warmup_frac", "warmdown_frac", "final_lr_frac"):
            if not 0 <= getattr(self, name) <= 1:
                flag = "--" + name.replace("_", "-")
                raise ConfigError(f"{flag} must be in [0, 1], got {getattr(self, name)}")
        for name in ("conversations", "tokens_per_step", "sequence_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
        if self.epochs <= 0:
            raise ConfigError(f"--epochs must be above 0, got {self.epochs}")


def train(
    opened: Stage,
    cfg: ChatTrainConfig,
    *,
    train_set: Sequence[Conversation],
    val_set: Sequence[Conversation],
    sources: tuple[str, ...],
) -> None:
    """Run one supervised stage over conversations. Collective.

    sources: stages of this run to start from, the preferred one first.
    """
    loaded = load_model(opened, cfg.source, sources, cfg.sequence_length)
    model = loaded.model
    length = model.config.sequence_length
    batch_rows = stage.rows_per_step(cfg.tokens_per_step, length, "tokens-per-step")
    rows = batch_size.device_rows(opened, model, batch_rows=batch_rows, length=length)
    batches = _open_batches(opened, cfg, loaded, train_set, batch_rows=batch_rows, device_rows=rows)
    steps = max(1, round(cfg.epochs * batches.rows_per_epoch / batch_rows))
    opened.say(
        f"{len(train_set):,} conversations in {batches.rows_per_epoch:,} rows of {length} tokens; "
        f"{steps:,} steps of {batch_rows} rows"
    )
    lost = _lost_shares(batches, length, opened)

    def evaluate() -> dict[str, float]:
        if not val_set:
            return {}
        return {"val_loss": validation_loss(loaded, val_set, run=opened.run, at_once=rows)}

    lr_scale = cfg.optimizer.lr_scale * batch_lr_scale(batch_rows * length)
    stage.train(
        opened,
        stage.Recipe(
            model=model,
            tokenizer=loaded.tokenizer,
            batches=batches,
            schedule=schedules.warmup_decay(
                steps,
                warmup_steps=round(cfg.warmup_frac * steps),
                warmdown_frac=cfg.warmdown_frac,
                final_lr_frac=cfg.final_lr_frac,
            ),
            total_steps=steps,
            tokens_per_step=batch_rows * length,
            optimizer=dataclasses.replace(cfg.optimizer, lr_scale=lr_scale),
            evaluate=evaluate,
            sample=lambda: answers(loaded, opened, val_set),
            facts={
                "source": str(loaded.path),
                "conversations": len(train_set),
                "device_batch_size": rows,
                **lost,
            },
        ),
    )


def _open_batches(
    opened: Stage,
    cfg: ChatTrainConfig,
    loaded: Loaded,
    train_set: Sequence[Conversation],
    *,
    batch_rows: int,
    device_rows: int,
) -> ChatBatches:
    """The conversations in rows, the same on every rank. Collective."""
    batches = on_all(
        opened.run,
        lambda: ChatBatches(
            train_set,
            loaded.tokenizer,
            T=loaded.model.config.sequence_length,
            batch_rows=batch_rows,
            device_rows=device_rows,
            run=opened.run,
            seed=cfg.common.seed,
        ),
    )
    check_same_data(opened.run, {**batches.state()["stream"], "content": batches.digest})
    return batches


def _lost_shares(batches: ChatBatches, length: int, opened: Stage) -> dict[str, float]:
    """Shares of the conversations that rows are too short for; a warning where there are any."""
    counts = batches.sampled
    left_out = counts.dropped / counts.conversations
    cut_off = counts.truncated / counts.conversations
    if left_out or cut_off:
        opened.say(
            f"warning: {100 * left_out:.3g}% of the conversations are left out, as no answer "
            f"begins within {length} tokens; {100 * cut_off:.3g}% are cut off there; "
            "--sequence-length takes longer ones"
        )
    return {"conversations_left_out": left_out, "conversations_cut_off": cut_off}


@torch.no_grad()
def validation_loss(
    loaded: Loaded, conversations: Sequence[Conversation], *, run: Run, at_once: int
) -> float:
    """Mean loss in nats over the supervised tokens of some conversations. Collective.

    at_once: rows of one forward pass on one device.
    """
    length = loaded.model.config.sequence_length
    rows = ChatRows(conversations, loaded.tokenizer, length, seed=0)

    def measure() -> tuple[float, int]:
        nats, count = 0.0, 0
        for index in range(rows.buckets):
            bucket = rows.bucket(0, index)
            for start in range(run.rank * at_once, len(bucket.inputs), run.world_size * at_once):
                part = slice(start, start + at_once)
                inputs = torch.from_numpy(bucket.inputs[part]).long().to(run.device)
                targets = torch.from_numpy(bucket.targets[part]).long().to(run.device)
                nats += float(loaded.model.token_losses(inputs, targets).cpu().double().sum())
                count += int((bucket.targets[part] >= 0).sum())
        return nats, count

    nats, counts = zip(*gather_work(run, measure), strict=True)
    return sum(nats) / max(sum(counts), 1)


def load_model(
    opened: Stage, source: str | None, stages: tuple[str, ...], sequence_length: int | None
) -> Loaded:
    """The model a chat stage starts from. Collective."""
    if source is not None:
        path = Path(source).expanduser()
    elif opened.resume_from is not None:
        path = opened.resume_from
    else:
        path = from_main(opened.run, lambda: checkpoint_manager.find(opened.common.run, stages))
    options: dict[str, Any] = {}
    if sequence_length is not None:
        options["sequence_length"] = sequence_length
    return stage.load_for_training(opened, path, **options)


def answers(
    loaded: Loaded, opened: Stage, conversations: Sequence[Conversation], count: int = 8
) -> list[dict[str, str]]:
    """The model's greedy answers to the first questions of some conversations."""
    if not opened.run.is_main:
        return []
    engine = Engine(loaded.model, loaded.tokenizer, slots=count)
    prompts = [opening(conversation) for conversation in conversations[:count]]
    params = SamplingParams(temperature=0, max_new_tokens=64)
    requests = [
        Request(prompt=render_prompt(messages, loaded.tokenizer), params=params)
        for messages in prompts
    ]
    done = engine.generate(requests)
    texts = [(str(m[-1]["content"]), c.text) for m, c in zip(prompts, done, strict=True)]
    return stage.first_texts(texts)


def opening(conversation: Conversation) -> list[Message]:
    """A conversation up to its first question: what stands before its first answer."""
    messages = conversation["messages"]
    first = next(i for i, message in enumerate(messages) if message["role"] == "assistant")
    return messages[:first]
