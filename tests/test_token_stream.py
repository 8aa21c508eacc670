"""Rows of documents of any length, in one file or ten thousand; and rows that crop documents."""

import dataclasses
import json
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.data import DataOptions, StreamBatches, open_data
from nanochat.data import shards as shard_files
from nanochat.data.shards import Shard
from nanochat.data.token_shards import EncodedShard, TokenShards
from nanochat.data.token_stream import TokenStream, _shuffled
from nanochat.system.distributed import single_run
from nanochat.system.errors import CheckpointError
from nanochat.tokenizer import train_char

T = 32
TOKENIZER = train_char(["The quick brown fox 0123456789: abcdefghijklmnopqrstuvwxyz"])
BOS = TOKENIZER.bos_id


def dataset_of(folder: Path, texts: list[str], **options):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    return open_data(DataOptions(data=str(folder / "a.jsonl"), **options), base=folder)


def stream_of(dataset, base: Path, *, length: int = T, seed: int = 1, packing: str = "split"):
    return TokenStream(dataset, "train", TOKENIZER, length, seed=seed, base=base, packing=packing)


def tokens_of(stream, start: int, count: int) -> np.ndarray:
    rows, lengths = stream._read(start, count, 1)
    return np.concatenate([row[:n] for row, n in zip(rows, lengths, strict=True)])


@pytest.fixture
def several(tmp_path, monkeypatch):
    """A dataset of several shards."""
    monkeypatch.setattr(shard_files, "SHARD_CHARACTERS", 2000)
    return dataset_of(tmp_path, [f"fox {i}: " + "quick " * (i % 13) for i in range(300)])


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 3000) | st.integers(1, 3), min_size=1, max_size=12),
    length=st.integers(1, 200),
)
def test_documents_of_any_length_are_used_once_an_epoch(tmp_path_factory, lengths, length):
    base = tmp_path_factory.mktemp("any")
    alphabet = "abcdefghijklmnopqrstuvwxyz"
    texts = ["".join(alphabet[(i + j) % 26] for j in range(n)) for i, n in enumerate(lengths)]
    stream = stream_of(dataset_of(base, texts, val_frac=0.0), base, length=length)
    expected = np.sort(TOKENIZER.encode_batch(texts, bos=True)[0])
    n = stream.rows_per_epoch
    for epoch in range(2):
        found = np.sort(tokens_of(stream, epoch * n, n))
        missing = np.bincount(expected) - np.bincount(found, minlength=expected.max() + 1)
        assert missing.min() >= 0 and missing.sum() in (0, 1)


def test_the_first_rows_need_the_first_shards_only(several, tmp_path):
    """A measurement on some rows must not encode all the text there is."""
    encoded = lambda: len(list(tmp_path.rglob("*.tokens.npy")))  # noqa: E731
    stream = stream_of(several, tmp_path)
    assert stream.rows_up_to(3) == 3
    stream.rows(0, 3)
    stream.close()
    assert 1 <= encoded() <= 2  # and perhaps the next one, in the background
    everything = stream_of(several, tmp_path)
    assert everything.rows_up_to(10**9) == everything.rows_per_epoch > 3
    assert encoded() == len(several.shards("train")) > 2


def test_one_document_is_a_data_set(tmp_path):
    stream = stream_of(dataset_of(tmp_path, ["quick fox " * 50], val_frac=0.0), tmp_path)
    n = stream.rows_per_epoch
    assert n == -(-500 // (T + 1))
    rows = stream.rows(0, 2 * n)
    assert {r.tobytes() for r in rows[:n]} == {r.tobytes() for r in rows[n:]}
    assert not np.array_equal(rows[:n], rows[n:])  # another epoch, another order


def test_rows_of_a_shard_do_not_depend_on_the_other_shards(several, tmp_path):
    def rows_by_shard(dataset, base):
        stream = stream_of(dataset, base)
        found: dict[int, list[bytes]] = {}
        for i in range(stream.rows_per_epoch):
            _, position, _ = stream._locate(i)
            shard = int(stream._order(0)[position])
            found.setdefault(shard, []).append(stream.rows(i, 1).tobytes())
        return found, stream._order(0)

    before, order = rows_by_shard(several, tmp_path)
    first = several.shards("train")[order[0]]
    replaced = dataset_of(tmp_path / "other", ["brown " * 300], val_frac=0.0).shards("train")[0]
    file = tmp_path / "other" / "data" / "x"
    other = dataclasses.replace(
        several,
        all_shards=tuple(
            dataclasses.replace(replaced, file=str(file)) if shard is first else shard
            for shard in several.all_shards
        ),
    )
    source = next((tmp_path / "other" / "data").glob("a-*")) / replaced.file
    file.write_bytes(source.read_bytes())
    after, _ = rows_by_shard(other, tmp_path)
    assert after[order[0]] != before[order[0]]
    for shard in order[1:]:
        assert after[shard] == before[shard]


@pytest.mark.slow
def test_ten_thousand_files_are_one_data_set(tmp_path):
    files = tmp_path / "files"
    files.mkdir()
    for i in range(10_000):
        (files / f"{i:05d}.jsonl").write_text(json.dumps({"text": f"fox {i}"}) + "\n")
    dataset = open_data(DataOptions(data=str(files)), base=tmp_path)
    batches = StreamBatches(
        stream_of(dataset, tmp_path), batch_rows=16, device_rows=16, run=single_run()
    )
    batches.next_step()
    batches.close()
    assert len(dataset.all_shards) == 2  # whatever the number of files
    assert sum(1 for split in ("train", "val") for _ in dataset.documents(split)) == 10_000


class ManyShards(TokenShards):
    """Shards of one document of 100 tokens each, made up when opened."""

    def __init__(self, count: int) -> None:
        self.shards = [Shard(file="", split="train", bytes=0, digest=str(i)) for i in range(count)]
        self.opened: list[int] = []

    def open(self, index: int) -> EncodedShard:
        self.opened.append(index)
        return EncodedShard(np.full(100, index, dtype=np.uint16), np.array([0, 100]))

    def prepare(self, index: int) -> None:
        """Nothing to do."""


@pytest.mark.slow
def test_ten_thousand_shards_are_opened_as_needed_and_cost_little_a_row(several, tmp_path):
    stream = stream_of(several, tmp_path, length=49)
    stream._shards = shards = ManyShards(10_000)
    stream._counts = np.zeros(10_000, dtype=np.int64)
    stream.rows(0, 10)
    assert len(set(shards.opened)) == 5  # two rows a shard
    assert stream.rows_per_epoch == 20_000
    assert sorted(set(shards.opened)) == list(range(10_000))
    uses, order_of = [], stream._order
    stream._order = lambda epoch: uses.append(epoch) or order_of(epoch)
    drawn = _shuffled.cache_info().misses
    first, second = stream.rows(0, 20_000), stream.rows(20_000, 20_000)
    assert len(uses) <= 20_002  # a shard and epoch, not a row
    assert _shuffled.cache_info().misses - drawn <= 2
    assert not np.array_equal(first, second)
    for epoch in (first, second):
        assert np.array_equal(np.unique(epoch[:, 0]), np.arange(10_000))
    assert len(stream._plans) <= 2


def test_the_next_shard_is_encoded_while_rows_of_one_are_read(several, tmp_path):
    stream = stream_of(several, tmp_path / "cold")
    names: list[str] = []
    encode = stream._shards._encode

    def noted(shard, stem):
        names.append(threading.current_thread().name)
        encode(shard, stem)

    stream._shards._encode = noted
    stream.rows(0, 200)
    assert len(names) > 4
    assert names[0] == threading.current_thread().name
    assert all(name.startswith("encode") for name in names[1:])


def test_cropped_rows_begin_with_a_document_and_the_share_is_told(several, tmp_path):
    stream = stream_of(several, tmp_path, length=20, packing="crop")
    n = stream.rows_per_epoch
    rows = stream.rows(0, n)
    assert (rows[:, 0] == BOS).all()
    kept = len(tokens_of(stream, 0, n))
    total = len(TOKENIZER.encode_batch(list(several.documents("train")), bos=True)[0])
    assert stream.cropped_share == pytest.approx(1 - kept / total)
    assert stream.cropped_share > 0.02
    assert np.array_equal(
        rows[5:9], stream_of(several, tmp_path, length=20, packing="crop").rows(5, 4)
    )
    assert not np.array_equal(rows, stream.rows(n, n))
    assert stream_of(several, tmp_path, length=20).cropped_share == 0


def test_a_state_belongs_to_a_way_of_packing_and_older_ones_to_splitting(several, tmp_path):
    def source(packing):
        stream = stream_of(several, tmp_path, packing=packing)
        return StreamBatches(stream, batch_rows=4, device_rows=4, run=single_run())

    old = source("split").state()
    old["stream"] = {name: old["stream"][name] for name in ("data", "tokenizer", "T", "seed")}
    source("split").load_state(old)
    source("crop").load_state(source("crop").state())
    for state in (old, source("split").state()):
        with pytest.raises(
            CheckpointError, match="the packing of the training rows was split and is now crop"
        ):
            source("crop").load_state(state)
