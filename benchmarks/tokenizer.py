"""Compare our tokenizer with PyPI rustbpe, Hugging Face tokenizers and tiktoken on the same text.

python benchmarks/tokenizer.py                        # 100 MB of text found on this machine
python benchmarks/tokenizer.py --megabytes 400 --vocab-size 65536 --rounds 5
python benchmarks/tokenizer.py --generated 1000       # 1000 MB of synthetic text, our trainer only

Every figure is the median over rounds in which the contenders take turns, each in a separate
process: wall time and CPU time of the work alone (text in memory, nothing precomputed), and the
peak memory of the process, including the text. The resulting merges and tokens are compared too.
"""

import argparse
import hashlib
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SHARED = Path(__file__).parent.parent.parent / "shared" / "data" / "corpora"
ROOTS = [SHARED, Path(sysconfig.get_paths()["purelib"]), *map(Path, ("/usr/share", "/usr/lib"))]
KINDS = {".py", ".pyi", ".md", ".rst", ".txt", ".html", ".rs", ".c", ".h", ".hpp", ".js", ".pm"}
LARGEST_FILE = 3_000_000
ROW_GROUP = 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=100, help="size of the text [100]")
    parser.add_argument("--vocab-size", type=int, default=32_768, help="excludes special tokens")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="run contenders whose name starts with this")
    parser.add_argument(
        "--generated", type=int, help="train on this many MB of synthetic text instead"
    )
    parser.add_argument(
        "--text",
        type=Path,
        action="append",
        help="a folder to read; repeatable [files on this machine]",
    )
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)  # a contender in its own process
    given = parser.parse_args()
    if given.one:
        name, folder = given.one
        print(json.dumps(measure(CONTENDERS[name], Path(folder), given.vocab_size)))
        return
    if given.generated:
        train_on_generated(given.generated, given.vocab_size)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        size = write_corpus(given.text or ROOTS, given.megabytes * 1_000_000, folder)
        found = {name: [] for name in CONTENDERS if name.startswith(given.only)}
        for number, contender in itertools.product(range(given.rounds), list(found)):
            print(f"round {number + 1} of {given.rounds}: {contender}", file=sys.stderr)
            found[contender].append(in_own_process(contender, folder, given.vocab_size))
    show(found, size / 1e6)


# --- text


def write_corpus(roots: list[Path], size: int, folder: Path) -> int:
    """Write the distinct documents under the roots to a parquet file; returns their bytes."""
    seen: set[bytes] = set()
    total = 0
    schema = pa.schema([("text", pa.string())])
    with pq.ParquetWriter(folder / "text.parquet", schema, compression="zstd") as writer:
        batches = itertools.batched if sys.version_info >= (3, 12) else _batched
        for texts in batches(documents(roots), ROW_GROUP):
            kept = []
            for text in texts:
                data = text.encode()
                digest = hashlib.sha256(data).digest()
                if digest not in seen and total < size:
                    seen.add(digest)
                    kept.append(text)
                    total += len(data)
            if kept:
                writer.write_table(pa.table({"text": kept}, schema=schema))
            if total >= size:
                break
    print(f"{total / 1e6:.1f} MB in {len(seen):,} documents from {', '.join(map(str, roots))}")
    return total


def documents(roots: list[Path]) -> Iterator[str]:
    """Texts from parquet files first, then source code and documentation."""
    for root in roots:
        for path in sorted(root.glob("*.parquet")):
            yield from filter(None, pq.read_table(path)["text"].to_pylist())
    for root in roots:
        for folder, _, names in sorted(os.walk(root)):
            for name in sorted(names):
                path = Path(folder, name)
                if path.suffix in KINDS and path.is_file() and not path.is_symlink():
                    try:
                        yield path.read_text("utf-8")[:LARGEST_FILE]
                    except (OSError, UnicodeDecodeError):
                        continue


def _batched(items: Iterator[str], count: int) -> Iterator[list[str]]:
    while batch := list(itertools.islice(items, count)):
        yield batch


def read_texts(folder: Path) -> list[str]:
    return pq.read_table(folder / "text.parquet")["text"].to_pylist()


def read_columns(folder: Path) -> list[pa.Array]:
    return pq.read_table(folder / "text.parquet")["text"].chunks


# --- contenders: prepare(folder, vocab size) returns work(), whose results are compared by hash

Work = Callable[[], Any]


def train_ours(texts: list[Any], size: int) -> Work:
    from nanochat.tokenizer import _rustbpe

    return lambda: _rustbpe.train(texts, size, _rustbpe.PATTERN)


def train_rustbpe(folder: Path, size: int) -> Work:
    import rustbpe
    from nanochat.tokenizer import _rustbpe

    texts, trainer = read_texts(folder), rustbpe.Tokenizer()

    def work() -> list[bytes]:
        trainer.train_from_iterator(iter(texts), size, pattern=_rustbpe.PATTERN)
        return [bytes(token) for token, _ in trainer.get_mergeable_ranks()]

    return work


def train_tokenizers(folder: Path, size: int) -> Work:
    import tokenizers

    from nanochat.tokenizer import _rustbpe

    texts = read_texts(folder)
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(_rustbpe.PATTERN), "isolated")
    level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trained = tokenizers.Tokenizer(tokenizers.models.BPE())
    trained.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([split, level])
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )

    def work() -> None:  # breaks ties differently, so its merges are not compared
        trained.train_from_iterator(texts, trainer)

    return work


def vocabulary(folder: Path, size: int) -> list[bytes]:
    """Our vocabulary for this text, trained once and cached."""
    from nanochat.tokenizer import _rustbpe

    path = folder / f"{size}.npy"
    if not path.exists():
        tokens = _rustbpe.train(read_columns(folder), size, _rustbpe.PATTERN)
        np.save(path, np.array(tokens, dtype=object), allow_pickle=True)
    return list(np.load(path, allow_pickle=True))


def encode_ours(folder: Path, size: int, *, warm: bool) -> Work:
    from nanochat.tokenizer import _rustbpe

    texts, encoder = (
        read_texts(folder),
        _rustbpe.Encoder(vocabulary(folder, size), _rustbpe.PATTERN),
    )
    if warm:
        encoder.encode_batch(texts, threads=1)
    return lambda: np.frombuffer(encoder.encode_batch(texts, threads=1)[0], np.uint32)


def encode_tiktoken(folder: Path, size: int, *, warm: bool, threads: int = 1) -> Work:
    import tiktoken

    from nanochat.tokenizer import _rustbpe

    texts = read_texts(folder)
    ranks = {token: rank for rank, token in enumerate(vocabulary(folder, size))}
    encoding = tiktoken.Encoding(
        "it", pat_str=_rustbpe.PATTERN, mergeable_ranks=ranks, special_tokens={}
    )

    def work() -> np.ndarray:
        if threads > 1:
            lists = encoding.encode_ordinary_batch(texts, num_threads=threads)
        else:
            lists = [encoding.encode_ordinary(text) for text in texts]
        return Lists(lists)

    if warm:
        work()
    return work


class Lists(list[list[int]]):
    """Tokens of each text; joined outside the measured time."""


def encode_to_shards(folder: Path, size: int) -> Work:
    """From a parquet shard to token files on disk, as in base training."""
    from nanochat.data import Dataset, shards
    from nanochat.data.token_shards import TokenShards
    from nanochat.system import storage
    from nanochat.tokenizer import BpeTokenizer

    own = BpeTokenizer(vocabulary(folder, size))
    path = folder / "text.parquet"
    shard = shards.Shard(
        file=path.name,
        split="train",
        bytes=path.stat().st_size,
        digest=storage.sha256_of(path),
    )
    base = folder / f"{time.time_ns():x}"  # without tokens of an earlier measurement
    data = Dataset(name="text", folder=folder, all_shards=(shard,))
    assert own.encode_batch(next(shards.read_columns(folder, shard)), bos=True)  # warm up

    def work() -> WithBos:
        return WithBos(TokenShards(data, "train", own, base).open(0).tokens, own.bos_id)

    return work


class WithBos(NamedTuple):
    """Tokens of many texts with a BOS before each; other contenders add no BOS."""

    tokens: np.ndarray
    bos: int


CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
CONTENDERS: dict[str, Callable[[Path, int], Work]] = {
    "train: ours, from strings": lambda folder, size: train_ours(read_texts(folder), size),
    "train: ours, from Arrow": lambda folder, size: train_ours(read_columns(folder), size),
    "train: PyPI rustbpe": train_rustbpe,
    "train: HF tokenizers": train_tokenizers,
    "encode, one thread, cold: ours": lambda *given: encode_ours(*given, warm=False),
    "encode, one thread, cold: tiktoken": lambda *given: encode_tiktoken(*given, warm=False),
    "encode, one thread, warm: ours": lambda *given: encode_ours(*given, warm=True),
    "encode, one thread, warm: tiktoken": lambda *given: encode_tiktoken(*given, warm=True),
    "encode, all cores: ours, parquet to token shards": encode_to_shards,
    "encode, all cores: tiktoken, list to lists": lambda *given: encode_tiktoken(
        *given, warm=False, threads=CORES
    ),
}


# --- measuring


def measure(prepare: Callable[[Path, int], Work], folder: Path, size: int) -> dict[str, Any]:
    work = prepare(folder, size)
    before, begin_s = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    result = work()
    wall_s, after = time.perf_counter() - begin_s, resource.getrusage(resource.RUSAGE_SELF)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "wall_s": wall_s,
        "cpu_s": cpu_s,
        "peak_mb": peak_mb(),
        "hash": digest_of(result),
    }


def peak_mb() -> float:
    """Peak resident memory of this process; ru_maxrss would count its parent's too."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def digest_of(result: Any) -> str | None:
    """A hash that depends only on the tokens, not on their container."""
    if result is None:
        return None
    if isinstance(result, WithBos):
        result = result.tokens[result.tokens != result.bos].astype(np.uint32)
    if isinstance(result, Lists):
        result = np.fromiter(itertools.chain.from_iterable(result), np.uint32)
    data = result.tobytes() if isinstance(result, np.ndarray) else repr(result).encode()
    return hashlib.sha256(data).hexdigest()


def in_own_process(contender: str, folder: Path, size: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--one", contender, str(folder), "--vocab-size", str(size)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def show(found: dict[str, list[dict[str, Any]]], megabytes: float) -> None:
    """Print a table; ratios are relative to the first contender of each group."""
    print("| | wall s | MB/s | CPU s | peak MB | relative to ours |\n|---|---|---|---|---|---|")
    ours: dict[str, float] = {}
    hashes: dict[str, set[str]] = {}
    for contender, rounds in found.items():
        group = contender.split(":")[0]
        wall_s, cpu_s, memory = (
            statistics.median(each[name] for each in rounds)
            for name in ("wall_s", "cpu_s", "peak_mb")
        )
        ours.setdefault(group, wall_s)
        hashes.setdefault(group.split(",")[0], set()).update(
            each["hash"] for each in rounds if each["hash"]
        )
        print(
            f"| {contender} | {wall_s:.2f} | {megabytes / wall_s:.1f} | {cpu_s:.2f} | "
            f"{memory:.0f} | {wall_s / ours[group]:.1f}x |"
        )
    for group, distinct in hashes.items():
        print(f"{group}: {'identical results' if len(distinct) == 1 else 'RESULTS DIFFER'}")


def train_on_generated(megabytes: int, size: int) -> None:
    """Train on text with a steady stream of new words: a tenth of the size, then all of it."""
    from nanochat.tokenizer import _rustbpe

    reports: list[tuple[int, ...]] = []
    for part in (megabytes // 10, megabytes):
        begin_s = time.perf_counter()
        texts = generated(part * 1_000_000)
        _rustbpe.train(texts, size, _rustbpe.PATTERN, counted=lambda *facts: reports.append(facts))
        wall_s = time.perf_counter() - begin_s
        print(
            f"{reports[-1][0] / 1e6:,.0f} MB, {reports[-1][1]:,} distinct pieces: {wall_s:.1f} s, "
            f"{wall_s / part * 1000:.1f} ms per MB, peak memory {peak_mb():,.0f} MB",
            flush=True,
        )


def generated(size: int) -> Iterator[bytes]:
    """300 kB documents of common words and 1 in 16 random ones. Faster than training is."""
    rng = np.random.default_rng(1)

    def words(count: int, letters: int) -> np.ndarray:
        rows = rng.integers(ord("a"), ord("z") + 1, (count, letters + 1), dtype=np.uint8)
        rows[:, -1] = ord(" ")
        return rows

    common = {letters: words(4_000, letters) for letters in range(2, 10)}
    made = 0
    while made < size:
        letters = int(rng.integers(2, 10))
        rows = common[letters][rng.integers(0, 4_000, 300_000 // (letters + 1))]
        rows[::16] = words(len(rows[::16]), letters)
        made += rows.size
        yield rows.tobytes()


if __name__ == "__main__":
    main()
