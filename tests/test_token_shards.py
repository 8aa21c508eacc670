"""The encoded cache: made once, whole or made again."""

import json
import threading
from pathlib import Path

import numpy as np
import pytest

from nanochat.data import DataOptions, open_data, token_shards
from nanochat.data import shards as shard_files
from nanochat.data.token_shards import TokenShards
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


@pytest.mark.parametrize("kind", ["tokens", "docs"])
@pytest.mark.parametrize(
    "damage", ["cut", "empty", "gone", "rubbish", "zeros", "zip", "short header", "other header"]
)
def test_a_torn_cache_is_made_again(dataset, tmp_path, kind, damage):
    tokenizer = CountingTokenizer()
    before = TokenShards(dataset, "train", tokenizer, tmp_path).open(0)
    expected = before.tokens.tolist(), before.offsets.tolist()
    (path,) = Path(tmp_path / "tokens").rglob(f"*.{kind}.npy")
    data = path.read_bytes()
    if damage == "gone":
        path.unlink()
    elif damage == "zeros" and kind == "tokens":
        pytest.skip("zeros are tokens as good as others")
    else:
        path.write_bytes(
            {
                "cut": data[: len(data) // 2],
                "empty": b"",
                "rubbish": b"rubbish" * 99,
                "zeros": data[:128] + bytes(len(data) - 128),
                "zip": b"PK\x03\x04" + data[4:],
                "short header": data[:8] + bytes([data[8] - 26]) + data[9:],
                "other header": data.replace(b"False", b"Fals)"),
            }[damage]
        )
    again = TokenShards(dataset, "train", tokenizer, tmp_path).open(0)
    assert (again.tokens.tolist(), again.offsets.tolist()) == expected
    assert tokenizer.texts == 2 * (len(expected[1]) - 1)


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
