"""Train a tokenizer on the training split of the data.

nanochat tok_train --preset pocket
nanochat tok_train --data shakespeare.txt --tokenizer char
nanochat tok_train --data 'texts/*.parquet' --vocab-size 32768
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from nanochat import report, tokenizer
from nanochat.data import DataOptions, open_data
from nanochat.system import config, device, storage
from nanochat.system.config import RunOptions, nested, option
from nanochat.system.console import log_line, show_log
from nanochat.system.errors import ConfigError
from nanochat.system.metrics import duration
from nanochat.tokenizer import Tokenizer

NAME = "tok_train"
LOG_EVERY_S = 2.0
MAX_CHARACTERS = 2_000_000_000


@dataclass(frozen=True, kw_only=True)
class TokTrainConfig:
    """Train a tokenizer's vocabulary on text."""

    common: RunOptions = nested(RunOptions)
    data: DataOptions = nested(DataOptions)
    tokenizer: str = option(
        "bpe", "bpe: byte pair encoding; char: one token per character", choices=("bpe", "char")
    )
    vocab_size: int = option(
        32_768, "tokens, including the nine special ones; char drops the rarest characters to fit"
    )
    name: str | None = option(
        None, "folder in $NANOCHAT_BASE_DIR/tokenizers to save it in; none: the run's name"
    )
    max_characters: int | None = option(
        MAX_CHARACTERS, "train on the first this many characters of the data; none: all", least=1
    )
    max_document_characters: int | None = option(
        None, "train on the first this many characters of each document; none: all", least=1
    )
    count_memory: int | None = option(
        None,
        "memory limit for the counts of pieces, in bytes, for 100 GB of text and more; the rarest "
        "pieces are dropped and the loss is reported; none: no limit, exact counts",
        least=10_000_000,  # with less, almost nothing could be counted
    )

    def __post_init__(self) -> None:
        least = tokenizer.MIN_BPE_SIZE if self.tokenizer == "bpe" else tokenizer.MIN_CHAR_SIZE
        if self.vocab_size < least:
            rule = f"at least {least} for {self.tokenizer}"
            raise ConfigError(f"--vocab-size must be {rule}, got {self.vocab_size}")
        if self.name is not None:
            config.check_name("--name", self.name)


def main(argv: list[str] | None = None) -> None:
    cfg = config.parse(TokTrainConfig, argv, stage=NAME)
    show_log()
    start_s = time.perf_counter()
    data = cfg.data.enough_for(cfg.max_characters or MAX_CHARACTERS)
    dataset = open_data(data, base=storage.base_dir())
    counts = [shard.documents for shard in dataset.shards("train")]
    documents = None if None in counts else sum(count for count in counts if count is not None)
    characters = dataset.characters("train")
    texts = TextReader(dataset.columns("train"), cfg, characters, documents)
    trained, notes = train(cfg, texts)
    for note in notes:
        log_line(f"note: {note}")
    name = cfg.name or cfg.common.run
    path = storage.base_dir() / "tokenizers" / name / tokenizer.FILE_NAME
    tokenizer.save(trained, path)
    seconds = time.perf_counter() - start_s
    log_line(
        f"saved {trained.name} tokenizer with {trained.vocab_size:,} tokens in {seconds:.1f} s: "
        f"{path}"
    )
    folder = storage.stage_dir(cfg.common.run, NAME)
    facts: dict[str, Any] = {"tokenizer_sha256": trained.sha256, "path": str(path)}
    report.write_config(folder, cfg, data=dataset.manifest, **facts)
    report.record(folder, section(trained, texts, seconds=seconds, facts=facts, notes=notes))


class TextReader:
    """Columns of documents, cut to the limits of the options; counts them and prints progress.

    all_characters, all_documents: in the data, if known.
    """

    def __init__(
        self,
        columns: Iterable[pa.StringArray],
        cfg: TokTrainConfig,
        all_characters: int | None,
        all_documents: int | None,
    ) -> None:
        self._source = columns
        self._limit = cfg.max_characters
        self._document_limit = cfg.max_document_characters
        self._all_characters = all_characters
        self._all_documents = all_documents
        self.documents = 0
        self.characters = 0

    @property
    def share(self) -> float | None:
        """How much has been read of the data or of the limit, what ends first; None: unknown."""
        pairs = (
            (self.characters, self._limit),
            (self.characters, self._all_characters),
            (self.documents, self._all_documents),
        )
        return max((done / total for done, total in pairs if total), default=None)

    def __iter__(self) -> Iterator[pa.StringArray]:
        start_s = printed_s = time.monotonic()
        for column in self._source:
            yield self._within_limits(column)
            if self._limit is not None and self.characters >= self._limit:
                return
            if time.monotonic() - printed_s > LOG_EVERY_S:
                printed_s = time.monotonic()
                read = f"read {self.characters / 1e6:,.1f} million characters"
                log_line(read + progress_text(printed_s - start_s, self.share))

    def _within_limits(self, column: pa.StringArray) -> pa.StringArray:
        if self._document_limit is not None:
            column = pc.utf8_slice_codeunits(column, 0, self._document_limit)
        ends = self.characters + np.cumsum(pc.utf8_length(column).to_numpy())
        if self._limit is not None and len(ends) and ends[-1] > self._limit:
            last = int(np.searchsorted(ends, self._limit))
            text = column[last].as_py()
            cut = text[: len(text) + self._limit - int(ends[last])]
            column = pa.concat_arrays([column[:last], pa.array([cut], column.type)])
            ends = np.append(ends[:last], self._limit)
        self.documents += len(column)
        self.characters = int(ends[-1]) if len(ends) else self.characters
        return column


def progress_text(elapsed_s: float, share: float | None) -> str:
    """The share done and the time left if it took `elapsed_s`; "" if the share is unknown."""
    if not share:
        return ""
    return f", {share:.0%}, {duration(elapsed_s / share - elapsed_s)} left"


def train(cfg: TokTrainConfig, texts: TextReader) -> tuple[Tokenizer, list[str]]:
    """Train the tokenizer; the notes describe where the result differs from the options."""
    if cfg.tokenizer == "char":
        strings = (text for column in texts for text in column.to_pylist())
        return tokenizer.train_char(strings, cfg.vocab_size), []
    start_s = printed_s = time.monotonic()
    notes = []

    def counted(text: tokenizer.TrainingText) -> None:
        nonlocal start_s
        start_s = time.monotonic()
        log_line(f"{text.pieces:,} different pieces in {text.bytes / 1e6:,.1f} MB")
        if text.lost_bytes:
            notes.append(
                f"--count-memory dropped rare pieces, {text.lost_bytes / text.bytes:.2%} of the "
                f"text; each count is too low by at most {text.lost_count:,}"
            )

    def progress(tokens: int) -> None:
        nonlocal printed_s
        if time.monotonic() - printed_s > LOG_EVERY_S:
            printed_s = time.monotonic()
            rest = progress_text(printed_s - start_s, tokens / cfg.vocab_size)
            log_line(f"learned {tokens:,} of {cfg.vocab_size:,} tokens{rest}")

    trained = tokenizer.train_bpe(
        texts,
        cfg.vocab_size,
        threads=cfg.common.threads,
        memory=cfg.count_memory,
        counted=counted,
        progress=progress,
    )
    if trained.vocab_size < cfg.vocab_size:
        notes.append(
            f"the text only had enough pairs for {trained.vocab_size:,} tokens, not "
            f"{cfg.vocab_size:,}; train on more text"
        )
    return trained, notes


def section(
    trained: Tokenizer,
    texts: TextReader,
    *,
    seconds: float,
    facts: dict[str, Any],
    notes: list[str],
) -> dict[str, Any]:
    """The stage's section of the report."""
    lengths = trained.token_bytes[trained.token_bytes > 0]
    return {
        "title": NAME,
        "seconds": seconds,
        "peak_memory_bytes": device.memory_used(torch.device("cpu")),
        "settings": facts,
        "results": [
            {"name": "vocabulary", "value": trained.vocab_size, "unit": "tokens"},
            {"name": "documents read", "value": texts.documents, "unit": "documents"},
            {"name": "text read", "value": texts.characters, "unit": "characters"},
            {"name": "mean token", "value": float(lengths.mean()), "unit": "bytes"},
            {"name": "longest token", "value": int(lengths.max()), "unit": "bytes"},
        ],
        "notes": notes,
    }


if __name__ == "__main__":
    config.cli(main)
