"""The encoded cache: made once, whole or made again."""

import dataclasses
import hashlib
import json
import threading

import numpy as np
import pyarrow.parquet as pq
import pytest

from nanochat.data import DataOptions, open_data, token_shards
from nanochat.data import shards as shard_files
from nanochat.data.token_shards import TokenShards
from nanochat.system import storage
from nanochat.system.errors import DataError
from nanochat.tokenizer import train_char

TEXTS = [f"Text {i} is about the number {i * 7}." for i in range(120)]


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    monkeypatch.setattr(shard_files, "SHARD_CHARACTERS", 900)
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS), encoding="utf-8")
    return open_data(DataOptions(data=str(path)), base=tmp_path)


class CountingTokenizer:
    """A tokenizer that counts how many texts it was given."""

    def __init__(self, delay=None):
        self.inner = train_char(TEXTS)
        self.sha256 = self.inner.sha256
        self.bos_id = self.inner.bos_id
        self.vocab_size = self.inner.vocab_size
        self.texts = 0
        self.delay = delay

    def encode_batch(self, texts, *, bos):
        if self.delay is not None:
            self.delay.wait(10)
        self.texts += len(texts)
        return self.inner.encode_batch(texts, bos=bos)


def decoded(tokenizer, shard):
    ends = zip(shard.offsets, shard.offsets[1:], strict=False)
    documents = [shard.tokens[a:b].tolist() for a, b in ends]
    assert all(document[0] == tokenizer.bos_id for document in documents)
    return [tokenizer.inner.decode(document[1:]) for document in documents]


def test_shards_hold_every_document_with_its_own_bos(dataset, tmp_path):
    tokenizer = CountingTokenizer()
    shards = TokenShards(dataset, "train", tokenizer, tmp_path)
    texts = [text for i in range(len(shards)) for text in decoded(tokenizer, shards.open(i))]
    assert len(shards) > 2
    assert texts == list(dataset.documents("train"))


def test_a_small_batch_size_changes_nothing(dataset, tmp_path, monkeypatch):
    tokenizer = CountingTokenizer()
    whole = TokenShards(dataset, "train", tokenizer, tmp_path / "a").open(0)
    monkeypatch.setattr(shard_files, "BATCH_ROWS", 3)
    monkeypatch.setattr(token_shards, "BATCH_BYTES", 200)
    parts = TokenShards(dataset, "train", tokenizer, tmp_path / "b").open(0)
    assert np.array_equal(whole.tokens, parts.tokens)
    assert np.array_equal(whole.offsets, parts.offsets)


def test_a_shard_is_encoded_once_and_mapped_afterwards(dataset, tmp_path):
    tokenizer = CountingTokenizer()
    for _ in range(2):
        shards = TokenShards(dataset, "train", tokenizer, tmp_path)
        for i in range(len(shards)):
            assert isinstance(shards.open(i).tokens, np.memmap)
    assert tokenizer.texts == len(list(dataset.documents("train")))


def test_another_tokenizer_has_a_cache_of_its_own(dataset, tmp_path):
    tokenizer = CountingTokenizer()
    TokenShards(dataset, "train", tokenizer, tmp_path).open(0)
    other = CountingTokenizer()
    other.inner = train_char(["other letters: xyzq", *TEXTS])
    other.sha256 = other.inner.sha256
    TokenShards(dataset, "train", other, tmp_path).open(0)
    assert other.texts == tokenizer.texts > 0


DAMAGES = {
    "cut": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "rubbish": lambda data: b"rubbish" * 99,
    "zeros": lambda data: data[:128] + bytes(len(data) - 128),
    "zip": lambda data: b"PK\x03\x04" + data[4:],
    "short header": lambda data: data[:8] + bytes([data[8] - 26]) + data[9:],
    "other header": lambda data: data.replace(b"False", b"Fals)"),
    # Still tokens and offsets as good as others: only the hash tells.
    "one bit": lambda data: data[:130] + bytes([data[130] ^ 1]) + data[131:],
    "last bit": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
}


def cache_file(base, end):
    (path,) = (base / "tokens").rglob(f"*{end}")
    return path


@pytest.mark.parametrize(
    ("end", "damage"),
    [
        *((end, damage) for end in (".tokens.npy", ".docs.npy") for damage in ("gone", *DAMAGES)),
        *((".sha256", damage) for damage in ("gone", "cut", "empty", "rubbish", "last bit")),
    ],
)
def test_a_damaged_cache_is_encoded_again(dataset, tmp_path, caplog, end, damage):
    tokenizer = CountingTokenizer()
    before = TokenShards(dataset, "train", tokenizer, tmp_path).open(0)
    expected = before.tokens.tolist(), before.offsets.tolist()
    path = cache_file(tmp_path, end)
    data = path.read_bytes()
    damaged = b"" if damage == "gone" else DAMAGES[damage](data)
    path.write_bytes(damaged)
    if damage == "gone":
        path.unlink()
    again = TokenShards(dataset, "train", tokenizer, tmp_path).open(0)
    assert (again.tokens.tolist(), again.offsets.tolist()) == expected
    assert tokenizer.texts == 2 * (len(expected[1]) - 1)
    assert path.read_bytes() == data
    assert ("is damaged; encoding it again" in caplog.text) == (damage != "gone")


def test_tokens_outside_the_vocabulary_are_encoded_again_even_with_a_fitting_hash(
    dataset, tmp_path
):
    tokenizer = CountingTokenizer()
    before = TokenShards(dataset, "train", tokenizer, tmp_path).open(0)
    expected, offsets = before.tokens.tolist(), before.offsets
    path = cache_file(tmp_path, ".tokens.npy")
    data = path.read_bytes()[:-2] + b"\xff\xff"
    path.write_bytes(data)
    digest = hashlib.sha256(data[-2 * len(expected) :] + offsets.tobytes()).hexdigest()
    cache_file(tmp_path, ".sha256").write_text(digest)
    assert TokenShards(dataset, "train", tokenizer, tmp_path).open(0).tokens.tolist() == expected


def test_tokens_are_hashed_once_in_a_process(dataset, tmp_path, monkeypatch):
    hashed, real = [], TokenShards._is_intact
    monkeypatch.setattr(
        TokenShards, "_is_intact", lambda *args: hashed.append(args[1]) or real(*args)
    )
    shards = TokenShards(dataset, "train", CountingTokenizer(), tmp_path)
    for index in (0, 1, 0, 1):
        shards.open(index)
    assert len(hashed) == 2


def test_a_cache_that_does_not_read_back_is_an_error(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(TokenShards, "_is_intact", lambda *args: False)
    with pytest.raises(DataError, match="cannot be read back as written; check the disk"):
        TokenShards(dataset, "train", CountingTokenizer(), tmp_path).open(0)


def flip(path):
    """Change one letter of an uncompressed shard, which stays a valid parquet file."""
    data = path.read_bytes()
    assert data.count(b"about the number") > 0
    path.write_bytes(data.replace(b"about the number", b"about the lumber", 1))


@pytest.fixture
def plain_dataset(tmp_path, monkeypatch):
    """A dataset whose parquet files are not compressed."""
    real = pq.ParquetWriter
    monkeypatch.setattr(
        shard_files.pq,
        "ParquetWriter",
        lambda *args, **options: real(*args, **{**options, "compression": "none"}),
    )
    path = tmp_path / "b.jsonl"
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS), encoding="utf-8")
    return open_data(DataOptions(data=str(path)), base=tmp_path)


def earlier(dataset):
    """The same dataset as prepared before shards had a hash of their file."""
    shards = tuple(dataclasses.replace(shard, sha256=None) for shard in dataset.all_shards)
    shard_files.write_manifest(dataset.folder, list(shards), {})
    manifest = dataset.folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace(',\n      "sha256": null', ""))
    assert "sha256" not in manifest.read_text()
    assert tuple(shard_files.read_manifest(dataset.folder)) == shards
    return dataclasses.replace(dataset, all_shards=shards)


def hub(dataset):
    """The same files as downloaded from the hub: named by the hash of the file."""
    shards = tuple(
        dataclasses.replace(
            shard,
            digest=storage.sha256_of(dataset.folder / shard.file),
            characters=None,
            sha256=None,
        )
        for shard in dataset.all_shards
    )
    return dataclasses.replace(dataset, all_shards=shards)


@pytest.mark.parametrize("kind", [lambda dataset: dataset, earlier, hub])
def test_a_shard_that_has_changed_is_named_before_its_text_is_used(plain_dataset, tmp_path, kind):
    dataset = kind(plain_dataset)
    whole = list(dataset.documents("train"))
    assert len(whole) > 100
    shards = TokenShards(dataset, "train", CountingTokenizer(), tmp_path)
    flip(dataset.folder / shards.shards[0].file)
    reads = (
        lambda: next(dataset.documents("train")),
        lambda: next(dataset.columns("train")),
        lambda: shards.open(0),
    )
    for read in reads:
        with pytest.raises(DataError, match=r"shard_00000\.parquet is damaged .*delete it and run"):
            read()
    assert not list((tmp_path / "tokens").rglob("*.npy"))


@pytest.mark.parametrize(
    "change",
    [
        {"file": "../../../etc/passwd"},
        {"file": "/dev/zero"},
        {"file": 3},
        {"bytes": "many"},
        {"digest": None},
        {"digest": "../x"},
        {"split": ["train"]},
        {"unknown": 1},
    ],
)
def test_a_manifest_that_lists_something_else_is_none(dataset, change):
    path = dataset.folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["shards"][0] |= change
    path.write_text(json.dumps(manifest))
    assert shard_files.read_manifest(dataset.folder) == []


@pytest.mark.parametrize("content", ["[]", "3", "{", '{"format": 1}', "[" * 100_000, "9" * 5000])
def test_a_manifest_that_cannot_be_read_is_none(dataset, content):
    (dataset.folder / "manifest.json").write_text(content)
    assert shard_files.read_manifest(dataset.folder) == []


def test_shards_are_encoded_ahead_in_the_background(dataset, tmp_path):
    go = threading.Event()
    tokenizer = CountingTokenizer(delay=go)
    shards = TokenShards(dataset, "train", tokenizer, tmp_path)
    shards.prepare(1)
    shards.prepare(1)
    assert tokenizer.texts == 0
    go.set()
    assert decoded(tokenizer, shards.open(1))
    made = tokenizer.texts
    shards.open(1)
    assert tokenizer.texts == made
    shards.close()


def test_an_error_in_the_background_reaches_the_one_who_asks(dataset, tmp_path):
    shards = TokenShards(dataset, "train", CountingTokenizer(), tmp_path)
    (dataset.folder / shards.shards[0].file).unlink()
    shards.prepare(0)
    with pytest.raises(Exception, match="is missing; run again"):
        shards.open(0)


def test_two_that_ask_at_once_encode_each_shard_once(dataset, tmp_path):
    tokenizers = [CountingTokenizer(), CountingTokenizer()]
    totals = []

    def open_all(tokenizer):
        shards = TokenShards(dataset, "train", tokenizer, tmp_path)
        totals.append(sum(int(shards.open(i).tokens.sum()) for i in range(len(shards))))

    workers = [threading.Thread(target=open_all, args=(each,)) for each in tokenizers]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert len(totals) == 2 and totals[0] == totals[1]
    documents = len(list(dataset.documents("train")))
    assert sum(tokenizer.texts for tokenizer in tokenizers) == documents
