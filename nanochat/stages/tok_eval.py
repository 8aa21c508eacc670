"""Compare the run's tokenizer with gpt2's and cl100k's: bytes per token by kind of text.

nanochat tok_eval --preset pocket
"""

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

import nanochat
from nanochat import report, tokenizer
from nanochat.data import DataOptions, open_data
from nanochat.system import config, device, storage
from nanochat.system.config import RunOptions, nested, option
from nanochat.system.console import log_line, show_log
from nanochat.system.errors import ConfigError
from nanochat.tokenizer import Tokenizer, published

NAME = "tok_eval"
Encode = Callable[[str], list[int]]
DATA_SPLITS = {"training text": "train", "validation text": "val"}
REFERENCES = {"gpt2": "gpt2", "cl100k": "cl100k_base"}
CHUNK_CHARACTERS = published.TIKTOKEN_CHARACTERS  # every published tokenizer can encode this
OTHER_TEXTS = {
    "numbers": " ".join(f"{n} + {n * 7 % 1000} = {n + n * 7 % 1000};" for n in range(1, 3000, 37)),
    "mathematics": r"Let $f(x) = x^2 - 3x + 2$. Then $f'(x) = 2x - 3 = 0$ at $x = \frac{3}{2}$, so "
    r"$\min f = -\frac{1}{4}$. For $n \ge 1$: $\sum_{k=1}^{n} k^2 = \frac{n(n+1)(2n+1)}{6}$. ",
    "German": "Am Morgen ging die alte Fischerin zum Hafen, weil sie wissen wollte, ob das Boot "
    "ihres Sohnes schon zurückgekehrt war. Über dem Wasser lag Nebel, und die Möwen schwiegen.",
    "Spanish": "El panadero se levantó antes del amanecer y encendió el horno. Cuando llegaron los "
    "niños de la escuela, el olor del pan ya llenaba toda la calle y nadie quería marcharse. ",
    "Russian": "Вечером мы сидели у реки и слушали, как шумит лес. Никто не говорил ни слова, но "
    "все понимали, что завтра придётся ехать домой. ",
    "Chinese": "冬天的早晨,街上几乎没有人。卖豆浆的老人推着小车慢慢走过,热气在冷空气里升起来。",
    "Korean": "할머니는 마당에서 고추를 말리고 계셨다. "
    "바람이 불 때마다 매운 냄새가 집 안까지 들어왔다.",
    "emoji": "Well done 🎉🎉 see you at 8 👋🏽 — bring 🍕, 🧃 and the 👨‍👩‍👧‍👦! ",
}


@dataclass(frozen=True, kw_only=True)
class TokEvalConfig:
    """Compare the tokenizer with those of GPT-2 and GPT-4."""

    common: RunOptions = nested(RunOptions)
    data: DataOptions = nested(DataOptions)
    name: str | None = option(
        None, "tokenizer in $NANOCHAT_BASE_DIR/tokenizers, or a path; none: the run's"
    )
    eval_characters: int = option(
        2_000_000, "number of characters to encode from each split of the data", least=1
    )


def main(argv: list[str] | None = None) -> None:
    cfg = config.parse(TokEvalConfig, argv, stage=NAME)
    show_log()
    start_s = time.perf_counter()
    own = tokenizer.load(tokenizer.locate(cfg.name or cfg.common.run))
    texts = domains(cfg)
    references, notes = load_references()
    rows = [compare(domain, chunks, own, references) for domain, chunks in texts.items()]
    log_line(table(rows, ["ours", *references]))
    for note in notes:
        log_line(f"note: {note}")
    folder = storage.stage_dir(cfg.common.run, NAME)
    storage.write_json(folder / "config.json", {"stage": NAME, "options": config.to_dict(cfg)})
    results = [*figures(rows), *vocabulary_use(own, texts)]
    notes = [longest_tokens(own), *notes]
    log_line(notes[0])
    report.record(
        folder,
        {
            "title": NAME,
            "seconds": time.perf_counter() - start_s,
            "peak_memory_bytes": device.memory_used(torch.device("cpu")),
            "settings": {"tokenizer_sha256": own.sha256, "vocab_size": own.vocab_size},
            "results": results,
            "notes": notes,
        },
    )


def domains(cfg: TokEvalConfig) -> dict[str, list[str]]:
    """Texts by kind, in chunks: the data's two splits, Python code, and several built-in texts."""
    dataset = open_data(cfg.data.enough_for(cfg.eval_characters), base=storage.base_dir())
    present = {shard.split for shard in dataset.all_shards}
    texts = {
        domain: chunked(dataset.documents(split), cfg.eval_characters)
        for domain, split in DATA_SPLITS.items()
        if split in present
    }
    source = sorted(Path(nanochat.__file__).parent.rglob("*.py"))
    texts["Python code"] = chunked((path.read_text("utf-8") for path in source), 200_000)
    return texts | {name: [text] for name, text in OTHER_TEXTS.items()}


def chunked(documents: Iterable[str], characters: int) -> list[str]:
    """The first `characters` of the documents, in chunks that every encoder accepts."""
    chunks: list[str] = []
    for document in documents:
        for start in range(0, len(document), CHUNK_CHARACTERS):
            chunks.append(document[start : start + CHUNK_CHARACTERS][:characters])
            characters -= len(chunks[-1])
            if characters <= 0:
                return chunks
    return chunks


def load_references() -> tuple[dict[str, Encode], list[str]]:
    """The published tokenizers that can be loaded, and a note on each that cannot."""
    loaded: dict[str, Encode] = {}
    notes: list[str] = []
    with ThreadPoolExecutor() as pool:
        futures = {name: pool.submit(published.load, full) for name, full in REFERENCES.items()}
    for name, future in futures.items():
        try:
            loaded[name] = future.result().encode
        except ConfigError as error:
            notes.append(f"{name} is left out: {error}")
    return loaded, notes


@dataclass(frozen=True)
class Comparison:
    """A kind of text: its size, and its number of tokens by tokenizer."""

    domain: str
    size_bytes: int
    characters: int
    tokens: dict[str, int]


def compare(
    domain: str, chunks: Sequence[str], own: Tokenizer, references: dict[str, Encode]
) -> Comparison:
    """Count a text's tokens by each tokenizer; ours only if it can represent the text."""
    ids, offsets = own.encode_batch(chunks, bos=False)
    tokens = {name: sum(map(len, map(encode, chunks))) for name, encode in references.items()}
    if [own.decode(ids[i:j].tolist()) for i, j in pairwise(offsets)] == list(chunks):
        tokens = {"ours": len(ids), **tokens}
    size = sum(len(chunk.encode("utf-8", "replace")) for chunk in chunks)
    return Comparison(domain, size, sum(map(len, chunks)), tokens)


def table(rows: Sequence[Comparison], names: Sequence[str]) -> str:
    """Bytes per token, one line per kind of text; "-" if a tokenizer lacks its characters."""
    lines = ["bytes per token".ljust(20) + "".join(name.rjust(10) for name in [*names, "bytes"])]
    for row in rows:
        counts = [row.tokens.get(name) for name in names]
        cells = [f"{row.size_bytes / max(1, n):.2f}" if n is not None else "-" for n in counts]
        cells.append(f"{row.size_bytes:,}")
        lines.append(row.domain.ljust(20) + "".join(cell.rjust(10) for cell in cells))
    return "\n".join(lines)


def figures(rows: Sequence[Comparison]) -> list[dict[str, Any]]:
    """The comparison as results of the report."""
    return [
        {"name": f"{row.domain}, {name}", "value": size / max(1, count), "unit": f"{unit} a token"}
        for row in rows
        for name, count in row.tokens.items()
        for unit, size in (("bytes", row.size_bytes), ("characters", row.characters))
    ]


def longest_tokens(own: Tokenizer, count: int = 20) -> str:
    """The longest tokens as text: they show what the vocabulary was spent on."""
    order = np.argsort(-own.token_bytes, kind="stable")[:count]
    return "longest tokens: " + ", ".join(repr(own.decode([int(token)])) for token in order)


def vocabulary_use(own: Tokenizer, texts: dict[str, list[str]]) -> list[dict[str, Any]]:
    """The share of the vocabulary that occurs in the data's text."""
    chunks = [chunk for domain in DATA_SPLITS for chunk in texts.get(domain, [])]
    ids = own.encode_batch(chunks, bos=False)[0]
    counts = np.bincount(ids, minlength=own.vocab_size)
    ordinary = own.token_bytes > 0
    share = float((counts[ordinary] > 0).mean())
    log_line(f"{share:.1%} of the vocabulary occurs in {len(ids):,} tokens of the data")
    return [{"name": "vocabulary that occurs in the data", "value": share, "unit": "of all tokens"}]


if __name__ == "__main__":
    config.cli(main)
