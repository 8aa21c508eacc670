"""Measure a base model's bits per byte, and sample from it.

nanochat base_loss --preset pocket
nanochat base_loss --documents book.txt
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from nanochat.checkpoint_manager import Loaded
from nanochat.data import DataOptions, Dataset, open_data
from nanochat.data.data_files import find_files
from nanochat.data.data_splits import TRAIN
from nanochat.data.dataloader import TokenStream
from nanochat.data.text_decoding import TextReading
from nanochat.data.text_files import read_documents
from nanochat.engine import Engine, Request, SamplingParams
from nanochat.evaluation import bits_per_byte
from nanochat.evaluation.stage import EvalStage
from nanochat.system import config, distributed, storage
from nanochat.system.config import RunOptions, flat_fields, nested, option
from nanochat.system.errors import ConfigError

NAME = "base_loss"
PROMPTS, PROMPT_WORDS = 6, 6  # samples continue the first words of this many documents
BATCH_TOKENS = 16384


@dataclass(frozen=True, kw_only=True)
class BaseLossConfig:
    """How well a base model predicts text, in bits per byte, and samples from it."""

    common: RunOptions = nested(RunOptions)
    source: str | None = option(None, "checkpoint or stage folder; none: the base model of --run")
    documents: str | None = option(
        None, "text files to measure completely; none: rows of the dataset it was trained on"
    )
    text_column: str | None = option(
        None, "column or key that holds the text of --documents; none: text, or content"
    )
    window: int | None = option(
        None, "tokens of --documents per window; none: the model's sequence length", least=1
    )
    rows: int = option(512, "rows to measure of the training and of the validation text", least=1)
    sample_tokens: int = option(48, "tokens per sample; 0: no samples", least=0)


def main(argv: list[str] | None = None) -> None:
    cfg = config.parse(BaseLossConfig, argv, stage=NAME)
    with distributed.session(cfg.common) as run:
        stage = EvalStage(NAME, "Base model: bits per byte", cfg, cfg.common, run)
        loaded = stage.load(cfg.source, ("base_train",))
        if cfg.documents is not None:
            files = find_files(cfg.documents, flag="--documents", split=None)
            measure_documents(stage, loaded, cfg, files)
            texts = read_documents(files, TextReading(cfg.text_column))
        else:
            chosen = distributed.from_main(run, lambda: training_data(loaded))
            data = distributed.on_all(run, lambda: open_data(chosen, base=storage.base_dir()))
            measure_rows(stage, loaded, data, cfg.rows)
            texts = data.documents("val")
        if cfg.sample_tokens and run.is_main:
            stage.sample(lambda: samples(loaded, texts, cfg.sample_tokens, cfg.common.seed))
        stage.close()
        distributed.barrier(run)


def training_data(loaded: Loaded) -> DataOptions:
    """The dataset that the model was trained on, from its stage's config.json.

    Raises: DataError or ConfigError if it is not recorded.
    """
    described = storage.read_json(loaded.path.parent / "config.json", "description of a stage")
    recorded, known = described.get("options"), flat_fields(DataOptions)
    options = (
        {k: v for k, v in recorded.items() if k in known} if isinstance(recorded, dict) else {}
    )
    if "data" not in options:
        raise ConfigError(
            f"{loaded.path.parent} does not record its training text; give files with --documents"
        )
    if options.get("shards") == "auto":
        options["shards"] = max(1, _training_shards(described))
    return config.from_dict(DataOptions, options)


def _training_shards(described: dict[str, Any]) -> int:
    """How many shards the model was trained on, as its stage has recorded; 0 if it has not."""
    data = described.get("data")
    shards = data.get("shards") if isinstance(data, dict) else None
    rows = shards if isinstance(shards, list) else []
    return sum(isinstance(row, dict) and row.get("split") == TRAIN for row in rows)


def measure_rows(stage: EvalStage, loaded: Loaded, data: Dataset, count: int) -> None:
    """Bits per byte on rows of both splits. Collective."""
    model, tokenizer = loaded.model, loaded.tokenizer
    length = model.config.sequence_length
    for split, name in (("train", "training"), ("val", "validation")):
        stream = TokenStream(data, split, tokenizer, length, seed=0, base=storage.base_dir())
        rows = stream.rows(0, stream.rows_up_to(count))
        bpb = bits_per_byte.bits_per_byte(
            model,
            rows,
            token_bytes=tokenizer.token_bytes,
            run=stage.run,
            batch_rows=max(1, BATCH_TOKENS // length),
        )
        stage.result(f"{name} text", bpb, "bits per byte", n=len(rows))
        stage.log_line(f"{name} text: {bpb:.4f} bits per byte over {len(rows):,} rows of {length}")


def measure_documents(
    stage: EvalStage, loaded: Loaded, cfg: BaseLossConfig, files: Sequence[Path]
) -> None:
    """Bits per byte over every byte of the files of --documents. Collective.

    Raises: ConfigError if the model has fewer positions than --window, or if there is no text.
    """
    sizes, spec = loaded.model.config, cfg.documents
    if cfg.window is not None and cfg.window > sizes.max_positions:
        raise ConfigError(f"--window must be at most {sizes.max_positions}, got {cfg.window}")
    found = bits_per_byte.document_bpb(
        loaded.model,
        loaded.tokenizer,
        read_documents(files, TextReading(cfg.text_column)),
        sequence_length=cfg.window or sizes.sequence_length,
        run=stage.run,
    )
    if not found.bytes:
        raise ConfigError(f"--documents {spec!r} has no text")
    stage.result(str(spec), found.bpb, "bits per byte", n=found.documents)
    stage.log_line(
        f"{spec}: {found.bpb:.4f} bits per byte over {found.bytes:,} bytes, {found.tokens:,} "
        f"tokens, {found.documents:,} documents"
    )


def samples(loaded: Loaded, texts: Iterable[str], tokens: int, seed: int) -> list[dict[str, str]]:
    """A greedy continuation of the first words of some texts, and one sampled text without any."""
    beginnings = [" ".join(text.split()[:PROMPT_WORDS]) for text in islice(texts, PROMPTS)]
    engine = Engine(loaded.model, loaded.tokenizer, slots=8)
    bos, encode = loaded.tokenizer.bos_id, loaded.tokenizer.encode
    greedy = SamplingParams(temperature=0.0, max_new_tokens=tokens)
    free = SamplingParams(temperature=0.8, max_new_tokens=2 * tokens, seed=seed)
    prompts = [*((text, greedy) for text in beginnings), ("", free)]
    requests = [
        Request(prompt=[bos, *encode(text)], params=params, chat=False) for text, params in prompts
    ]
    done = engine.generate(requests)
    return [
        {
            "prompt": text,
            "text": completion.text,
            "group": "the likeliest continuation" if text else "freely",
        }
        for (text, _), completion in zip(prompts, done, strict=True)
    ]


if __name__ == "__main__":
    config.cli(main)
