"""Pretrain a base model on plain text.

nanochat base_train --preset pocket
nanochat base_train --data 'texts/*.parquet' --depth 4
torchrun --standalone --nproc_per_node=8 -m nanochat.stages.base_train -- --preset speedrun
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from nanochat import checkpoint_manager, tokenizer
from nanochat.data import DataOptions, Dataset, StreamBatches, open_data
from nanochat.data.dataloader import TokenStream
from nanochat.evaluation import bits_per_byte
from nanochat.gpt import GPT, GPTConfig, flops, fp8
from nanochat.optim import OptimConfig, schedules
from nanochat.optim.scaling import DEFAULT_RATIO, ScaledPlan, scaled_plan
from nanochat.system import config, distributed, storage
from nanochat.system.config import RunOptions, nested, option
from nanochat.system.distributed import Run, broadcast_tensors, check_same_data, from_main, on_all
from nanochat.system.errors import ConfigError
from nanochat.tokenizer import Tokenizer
from nanochat.training import batch_size, model_size
from nanochat.training.stage import Recipe, rows_per_step, run_training
from nanochat.training.stage_hooks import greedy_samples
from nanochat.training.stage_opening import LoopOptions, Stage, open_stage

NAME = "base_train"
# Share of the tokens that --packing trains on; crop's at 2,048 tokens, by nanochat's measurement.
KEPT_SHARE = {"split": 1.0, "crop": 0.65}
SAMPLE_PROMPTS = (
    "The capital of",
    "Once upon a time",
    "The opposite of hot is",
    "If yesterday was Friday, then tomorrow will be",
)


@dataclass(frozen=True, kw_only=True)
class BaseTrainConfig:
    """Pretraining on plain text; sizes and learning rates follow from --depth."""

    common: RunOptions = nested(RunOptions)
    loop: LoopOptions = nested(LoopOptions)
    model: GPTConfig = nested(GPTConfig, without=("vocab_size",))
    optimizer: OptimConfig = nested(OptimConfig)
    data: DataOptions = nested(DataOptions)
    tokenizer: str | None = option(
        None, "name in $NANOCHAT_BASE_DIR/tokenizers, or a path; none: the run's own tokenizer"
    )
    packing: str = option(
        "split",
        "split: documents that do not fit into a row continue in another; crop: every row starts "
        "with a document, and what does not fit is thrown away",
        choices=("split", "crop"),
    )
    tokens: int | None = option(
        None, "tokens to train on; none: --ratio times the scaling parameters", least=1
    )
    ratio: float = option(
        DEFAULT_RATIO, "training tokens per scaling parameter (matrices and head)", above=0
    )
    tokens_per_step: int | None = option(
        None, "tokens in one optimizer step; none: from the model's scale", least=1
    )
    max_hours: float = option(
        model_size.MAX_HOURS,
        "with --depth auto: most hours of base training, by the estimate",
        above=0,
    )
    warmup_steps: int = option(40, "warmup steps of the learning rates", least=0)
    warmdown_frac: float = option(0.65, "warmdown steps, as a share of all steps", least=0, most=1)
    final_lr_frac: float = option(
        0.05, "final learning rates, as a share of the peak", least=0, most=1
    )
    fp8: bool | Literal["auto"] = option(
        False,
        "8-bit matrix products, on Ada and Hopper GPUs and newer; auto: where the GPU has them and "
        "the model is wide enough to gain, from about depth 22",
    )
    val_rows: int = option(
        256, "validation rows to measure bits per byte on during training", least=1
    )


def main(argv: list[str] | None = None) -> None:
    cfg = config.parse(
        BaseTrainConfig, argv, stage=NAME, resolve=model_size.resolver(this_gpu, NAME)
    )
    with open_stage(NAME, cfg) as stage:
        run = stage.run
        encoder = from_main(run, lambda: tokenizer.load(tokenizer_path(cfg)))
        model = build_model(cfg, stage, encoder)
        precision = convert_to_fp8(cfg, stage, model)
        plan = scaled_plan(
            model.config, ratio=cfg.ratio, tokens=cfg.tokens, tokens_per_step=cfg.tokens_per_step
        )
        length = model.config.sequence_length
        batch_rows = rows_per_step(plan.tokens_per_step, length)
        steps = max(1, plan.tokens // (batch_rows * length))
        device_rows = batch_size.device_rows(stage, model, batch_rows=batch_rows, length=length)
        options = training_text(cfg, plan.tokens)
        data = on_all(run, lambda: open_data(options, base=storage.base_dir()))
        sizes = {"batch_rows": batch_rows, "device_rows": device_rows, "length": length}
        batches, val_rows = on_all(run, lambda: open_rows(cfg, run, data, encoder, **sizes))
        check_same_data(run, batches.state()["stream"])
        facts = {**size_facts(model, plan, steps), "device_batch_size": device_rows}
        stage.log_line(", ".join(f"{name} {value:,}" for name, value in facts.items()))
        if cfg.packing == "crop":
            facts["cropped_share"] = share = batches.stream.cropped_share
            stage.log_line(f"{share:.1%} of the tokens are thrown away by cropping")
        run_training(
            stage,
            Recipe(
                model=model,
                tokenizer=encoder,
                batches=batches,
                schedule=schedules.warmup_decay(
                    steps,
                    warmup_steps=cfg.warmup_steps,
                    warmdown_frac=cfg.warmdown_frac,
                    final_lr_frac=cfg.final_lr_frac,
                ),
                total_steps=steps,
                tokens_per_step=batch_rows * length,
                optimizer=scaled_optimizer(cfg.optimizer, plan),
                evaluate=lambda: evaluate(model, val_rows, encoder, run, device_rows),
                sample=lambda: samples(model, encoder, run),
                facts={**facts, "data": data.manifest},
                fp8=precision,
            ),
        )


def this_gpu(values: dict[str, Any]) -> model_size.Gpu:
    """What --depth auto is chosen for: this machine's GPU, once per process."""
    return model_size.of_this_machine(values, distributed.local_world_size())


def training_text(cfg: BaseTrainConfig, tokens: int) -> DataOptions:
    """The options of the data, with enough of it for this many tokens of training."""
    return cfg.data.enough_for_tokens(tokens / KEPT_SHARE[cfg.packing])


def tokenizer_path(cfg: BaseTrainConfig) -> Path:
    """The path of the tokenizer that the options name."""
    name = cfg.tokenizer or cfg.common.run
    path = tokenizer.locate(name)
    if not path.exists():
        raise ConfigError(
            f"no tokenizer {name!r} in {path.parent}; train one with: "
            f"nanochat tok_train --data {cfg.data.data} --run {cfg.common.run}"
        )
    return path


def open_rows(
    cfg: BaseTrainConfig,
    run: Run,
    data: Dataset,
    encoder: Tokenizer,
    *,
    batch_rows: int,
    device_rows: int,
    length: int,
) -> tuple[StreamBatches, np.ndarray]:
    """The batches to train on and the rows to validate on; encodes the text they need."""
    base, seed = storage.base_dir(), cfg.common.seed
    stream = TokenStream(data, "train", encoder, length, seed=seed, base=base, packing=cfg.packing)
    val_stream = TokenStream(data, "val", encoder, length, seed=0, base=base)
    val_rows = val_stream.rows(0, val_stream.rows_up_to(cfg.val_rows))
    batches = StreamBatches(stream, batch_rows=batch_rows, device_rows=device_rows, run=run)
    return batches, val_rows


def build_model(cfg: BaseTrainConfig, stage: Stage, encoder: Tokenizer) -> GPT:
    """A new model, or the one of the checkpoint to resume from."""
    sizes = dataclasses.replace(cfg.model, vocab_size=encoder.vocab_size)
    if stage.resume_from is not None:
        loaded = checkpoint_manager.load(
            stage.resume_from, stage.run, attention_backend=stage.attention
        )
        if loaded.tokenizer.sha256 != encoder.sha256:
            raise ConfigError(
                f"{loaded.path} was trained with a different tokenizer than "
                f"{tokenizer.locate(cfg.tokenizer or cfg.common.run)}; "
                "start another run: --run NAME"
            )
        model = loaded.model
        for name, value in vars(sizes).items():
            found = getattr(model.config, name)
            if found != value:
                flag = "--" + name.replace("_", "-")
                raise ConfigError(
                    f"{flag} is {value}, but {loaded.path} was trained with {found}; resume with "
                    "the same options, or start another run: --run NAME"
                )
    else:
        model = GPT(
            sizes,
            compute_dtype=stage.run.compute_dtype,
            attention_backend=stage.attention,
        )
        model.to(stage.run.device)
        generator = torch.Generator(device=stage.run.device).manual_seed(cfg.common.seed)
        model.init_weights(generator)
        # The same seed may give different numbers on different kinds of devices.
        broadcast_tensors(stage.run, (parameter.detach() for parameter in model.parameters()))
    model.checkpoint_activations = cfg.loop.checkpoint_activations
    return model


def convert_to_fp8(cfg: BaseTrainConfig, stage: Stage, model: GPT) -> str:
    """Convert the model if --fp8 says so; a resumed run with "auto" stays as it started.

    Returns a phrase that says so.
    """
    started = stage.started_with.fp8
    wanted = False if cfg.fp8 == "auto" and started is False else cfg.fp8
    precision = fp8.convert(model, wanted)
    if started and precision.startswith(fp8.OFF):
        stage.log_line(f"warning: started with fp8, resumes with {precision}; the loss may differ")
    return precision


def scaled_optimizer(options: OptimConfig, plan: ScaledPlan) -> OptimConfig:
    """The optimizer's options, scaled to the batch size."""
    return dataclasses.replace(
        options,
        lr_scale=options.lr_scale * plan.lr_scale,
        weight_decay=options.weight_decay * plan.weight_decay_scale,
    )


def size_facts(model: GPT, plan: ScaledPlan, steps: int) -> dict[str, float]:
    """The size of the model and of its training."""
    return {
        "parameters": sum(flops.parameter_counts(model.config).values()),
        "steps": steps,
        "tokens_per_step": plan.tokens_per_step,
        "tokens": steps * plan.tokens_per_step,
    }


def evaluate(
    model: GPT, rows: np.ndarray, encoder: Tokenizer, run: Run, device_rows: int
) -> dict[str, float]:
    """Bits per byte on the validation rows. Collective."""
    with fp8.disabled(model):
        bpb = bits_per_byte.bits_per_byte(
            model, rows, token_bytes=encoder.token_bytes, run=run, batch_rows=device_rows
        )
    return {"val_bpb": bpb}


def samples(model: GPT, encoder: Tokenizer, run: Run) -> list[dict[str, str]]:
    """Greedy completions of a few prompts."""
    prompts = [(text, [encoder.bos_id, *encoder.encode(text)]) for text in SAMPLE_PROMPTS]
    return greedy_samples(
        model, encoder, run, prompts, slots=len(prompts), max_new_tokens=24, chat=False
    )


if __name__ == "__main__":
    config.cli(main)
