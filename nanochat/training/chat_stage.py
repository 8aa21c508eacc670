"""What the chat stages share: the model they start from, supervised training, sample answers.

Owns: mid-training and SFT, which differ in their mixture and their starting model, not in their
code. Does not own: the mixtures (data/tasks/mixtures.py) or RL (rollouts.py).
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from nanochat import checkpoint_manager
from nanochat.checkpoint_manager import Loaded
from nanochat.data import ChatBatches
from nanochat.data.conversation_rows import ChatRows
from nanochat.data.tasks import mixtures
from nanochat.optim import OptimConfig, schedules
from nanochat.optim.scaling import batch_lr_scale
from nanochat.system import config
from nanochat.system.config import RunOptions, nested, option
from nanochat.system.distributed import Run, check_same_data, from_main, gather_work, on_all
from nanochat.tokenizer.conversation import Conversation, Message, render_prompt
from nanochat.tokenizer.messages import read_messages
from nanochat.training import batch_size
from nanochat.training.stage import Recipe, rows_per_step, run_training
from nanochat.training.stage_hooks import greedy_samples
from nanochat.training.stage_opening import LoopOptions, Stage, open_stage

SAMPLES = 8  # answers shown in the report


@dataclass(frozen=True, kw_only=True)
class ChatTrainConfig:
    """Supervised training on conversations."""

    common: RunOptions = nested(RunOptions)
    loop: LoopOptions = nested(LoopOptions)
    optimizer: OptimConfig = nested(OptimConfig)
    source: str | None = option(
        None, "checkpoint or stage folder to start from; none: the previous stage of this run"
    )
    data: str = option(
        "pocket",
        "conversations: pocket, full (public datasets), hf:ORG/NAME[:CONFIG][:SPLIT], or .jsonl, "
        ".json or .parquet files (also .gz, .zst), folders, globs or a comma-separated list; rows "
        "in OpenAI's, ShareGPT's or Alpaca's format, or with prompt and completion",
    )
    val_data: str | None = option(
        None,
        "validation conversations: files or hf:ORG/NAME; none: the mixture's, or validation files "
        "in the folders of --data, or a share of --data",
    )
    bad_rows: str = option(
        "error",
        "rows that cannot be learned from: stop with an error before training, or skip them",
        choices=("error", "skip"),
    )
    epochs: float = option(1.0, "passes over the conversations; may be a fraction", above=0)
    conversations: int = option(40_000, "conversations per epoch of pocket", least=1)
    tokens_per_step: int = option(
        4096,
        "tokens in one optimizer step, over all ranks; small steps lower the learning rates",
        least=1,
    )
    sequence_length: int | None = option(
        None,
        "tokens of a row, and of the model's context from now on; none: the model's own",
        least=1,
    )
    warmup_frac: float = option(0.02, "warmup steps, as a share of all steps", least=0, most=1)
    warmdown_frac: float = option(0.5, "warmdown steps, as a share of all steps", least=0, most=1)
    final_lr_frac: float = option(
        0.0, "final learning rates, as a share of the peak", least=0, most=1
    )


def run_stage(
    name: str,
    options: type[ChatTrainConfig],
    argv: list[str] | None,
    *,
    mixture: mixtures.Stage,
    sources: tuple[str, ...],
) -> None:
    """Run a supervised stage over conversations from its command line. Collective.

    mixture: which conversations it trains on. sources: stages of this run to start from, in order
    of preference.
    """
    cfg = config.parse(options, argv, stage=name)
    with open_stage(name, cfg) as stage:
        train_set, val_set = on_all(
            stage.run,
            lambda: mixtures.build(
                cfg.data,
                stage=mixture,
                val_data=cfg.val_data,
                bad_rows=cfg.bad_rows,
                count=cfg.conversations,
                seed=cfg.common.seed,
            ),
        )
        loaded = load_model(stage, cfg.source, sources, cfg.sequence_length)
        train(stage, cfg, loaded, train_set, val_set)


def train(
    stage: Stage,
    cfg: ChatTrainConfig,
    loaded: Loaded,
    train_set: Sequence[Conversation],
    val_set: Sequence[Conversation],
) -> None:
    """Train a model on conversations and record it. Collective."""
    model = loaded.model
    length = model.config.sequence_length
    batch_rows = rows_per_step(cfg.tokens_per_step, length)
    rows = batch_size.device_rows(stage, model, batch_rows=batch_rows, length=length)
    batches = _open_batches(stage, cfg, loaded, train_set, batch_rows=batch_rows, device_rows=rows)
    steps = max(1, round(cfg.epochs * batches.rows_per_epoch / batch_rows))
    stage.log_line(
        f"{len(train_set):,} conversations in {batches.rows_per_epoch:,} rows of {length} tokens; "
        f"{steps:,} steps of {batch_rows} rows"
    )
    lost = _lost_shares(batches, length, stage)

    def evaluate() -> dict[str, float]:
        if not val_set:
            return {}
        return {"val_loss": validation_loss(loaded, val_set, run=stage.run, device_rows=rows)}

    lr_scale = cfg.optimizer.lr_scale * batch_lr_scale(batch_rows * length)
    run_training(
        stage,
        Recipe(
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
            sample=lambda: sample_answers(loaded, stage.run, val_set),
            facts={
                "source": str(loaded.path),
                "conversations": len(train_set),
                "device_batch_size": rows,
                **lost,
            },
        ),
    )


def _open_batches(
    stage: Stage,
    cfg: ChatTrainConfig,
    loaded: Loaded,
    train_set: Sequence[Conversation],
    *,
    batch_rows: int,
    device_rows: int,
) -> ChatBatches:
    """The conversations packed into rows, the same on every rank. Collective."""
    batches = on_all(
        stage.run,
        lambda: ChatBatches(
            train_set,
            loaded.tokenizer,
            T=loaded.model.config.sequence_length,
            batch_rows=batch_rows,
            device_rows=device_rows,
            run=stage.run,
            seed=cfg.common.seed,
        ),
    )
    check_same_data(stage.run, {**batches.state()["stream"], "content": batches.digest})
    return batches


def _lost_shares(batches: ChatBatches, length: int, stage: Stage) -> dict[str, float]:
    """Shares of the conversations that do not fit into a row; warns if there are any."""
    counts = batches.sampled
    left_out = counts.dropped / counts.conversations
    cut_off = counts.truncated / counts.conversations
    shares = {
        f"are left out because no answer starts within {length} tokens": left_out,
        f"are cut off after {length} tokens": cut_off,
    }
    found = [f"{100 * share:.2g}% {what}" for what, share in shares.items() if share]
    if found:
        stage.log_line(
            f"warning: of the conversations {' and '.join(found)}; raise --sequence-length to fit "
            "them"
        )
    return {"conversations_left_out": left_out, "conversations_cut_off": cut_off}


@torch.no_grad()
def validation_loss(
    loaded: Loaded, conversations: Sequence[Conversation], *, run: Run, device_rows: int
) -> float:
    """Mean loss in nats over the supervised tokens of some conversations. Collective.

    device_rows: rows of one forward pass on one device.
    """
    length = loaded.model.config.sequence_length
    rows = ChatRows(conversations, loaded.tokenizer, length, seed=0)

    def measure() -> tuple[float, int]:
        nats, count = 0.0, 0
        for index in range(rows.buckets):
            bucket = rows.bucket(0, index)
            starts = range(0, len(bucket.inputs), device_rows)
            for start in starts[run.rank :: run.world_size]:
                part = slice(start, start + device_rows)
                # [B, T] each; targets of padding and of the user's turns are negative
                inputs = torch.from_numpy(bucket.inputs[part]).long().to(run.device)
                targets = torch.from_numpy(bucket.targets[part]).long().to(run.device)
                nats += float(loaded.model.token_losses(inputs, targets).cpu().double().sum())
                count += int((bucket.targets[part] >= 0).sum())
        return nats, count

    nats, counts = zip(*gather_work(run, measure), strict=True)
    return sum(nats) / max(sum(counts), 1)


def load_model(
    stage: Stage, source: str | None, stages: tuple[str, ...], sequence_length: int | None = None
) -> Loaded:
    """The model a chat stage starts from; its own checkpoint when it resumes. Collective."""
    run = stage.run
    if stage.resume_from is not None:
        path = stage.resume_from
    elif source is not None:
        path = Path(source).expanduser()
    else:
        path = from_main(run, lambda: checkpoint_manager.find(stage.common.run, stages))
    sizes = {} if sequence_length is None else {"sequence_length": sequence_length}
    loaded = checkpoint_manager.load(
        path, run, model_options=sizes, attention_backend=stage.attention
    )
    loaded.model.checkpoint_activations = stage.loop.checkpoint_activations
    if stage.resume_from is None:
        stage.log_line(f"starting {stage.name} from {loaded.path}")
    return loaded


def sample_answers(
    loaded: Loaded, run: Run, conversations: Sequence[Conversation]
) -> list[dict[str, str]]:
    """The model's greedy answers to the first questions of some conversations."""
    asked = [prompt_messages(conversation) for conversation in conversations[:SAMPLES]]
    prompts = [
        (read_messages(messages).turns[-1].user, render_prompt(messages, loaded.tokenizer))
        for messages in asked
    ]
    return greedy_samples(
        loaded.model, loaded.tokenizer, run, prompts, slots=SAMPLES, max_new_tokens=64
    )


def prompt_messages(conversation: Conversation) -> list[Message]:
    """The messages of a conversation before the first answer to a user."""
    messages = conversation["messages"]
    roles = [message["role"] for message in messages]
    return messages[: roles.index("assistant", roles.index("user"))]
