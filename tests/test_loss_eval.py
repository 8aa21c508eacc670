"""Bits per byte against a naive computation, token by token."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

from nanochat import report
from nanochat.evaluation import bits_per_byte
from nanochat.stages import base_loss
from nanochat.system import distributed
from nanochat.system.errors import CheckpointError, ConfigError, DataError
from tests.eval_helpers import FLAGS, make_run, result

VOCAB = 260
BOS = 259
PAIR = 256  # one token for two bytes, so that tokens and bytes differ


class PairTokenizer:
    """Bytes, with 'th' as one token; 257 and 258 are specials without bytes."""

    bos_id = BOS
    token_bytes = np.array([1] * 256 + [2, 0, 0, 0], dtype=np.int32)

    def encode(self, text):
        ids, data, at = [], text.encode(), 0
        while at < len(data):
            pair = data[at : at + 2] == b"th"
            ids.append(PAIR if pair else data[at])
            at += 2 if pair else 1
        return ids


class TinyModel(nn.Module):
    """Predicts from the sum of all tokens of its window so far: order and padding would show."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.table = nn.Parameter(torch.randn(VOCAB, VOCAB, generator=generator) * 0.3)
        self.shapes = []

    def token_losses(self, tokens, targets):
        self.shapes.append(tuple(tokens.shape))
        logits = self.table[tokens].cumsum(dim=1)
        losses = nn.functional.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), ignore_index=-1, reduction="none"
        )
        return losses.view_as(targets)


def naive_nats(model, context, target):
    logits = model.table[torch.tensor(context)].sum(dim=0)
    return -torch.log_softmax(logits.double(), dim=0)[target].item()


def texts():
    rng = np.random.default_rng(5)
    words = ["the", "moth", "é", "bath", "x", "naïve", "cat"]
    return [" ".join(rng.choice(words, size=n)) for n in (1, 9, 4, 30, 2, 17)] + [""]


def test_rows_are_scored_as_the_global_mean_over_bytes():
    rng = np.random.default_rng(0)
    rows = rng.integers(0, VOCAB, size=(7, 13)).astype(np.uint16)
    model, sizes = TinyModel(), PairTokenizer.token_bytes
    nats, size = 0.0, 0
    for row in rows:
        for at in range(1, len(row)):
            if sizes[row[at]] > 0:
                nats += naive_nats(model, row[:at].astype(np.int64), int(row[at]))
                size += int(sizes[row[at]])
    found = bits_per_byte.bits_per_byte(
        model, rows, token_bytes=sizes, run=distributed.single_run(), batch_rows=3
    )
    assert found == pytest.approx(nats / math.log(2) / size, rel=1e-5)


def test_rows_without_bytes_give_infinity():
    rows = np.full((2, 5), 257, dtype=np.uint16)
    found = bits_per_byte.bits_per_byte(
        TinyModel(), rows, token_bytes=PairTokenizer.token_bytes, run=distributed.single_run()
    )
    assert found == math.inf


@pytest.mark.parametrize("length", [4, 16, 512])
def test_every_byte_of_every_document_is_predicted_once(length):
    model, tokenizer = TinyModel(), PairTokenizer()
    nats, tokens = 0.0, 0
    for text in texts():
        ids = [BOS, *tokenizer.encode(text)]
        for at in range(1, len(ids)):
            start = (at - 1) // length * length
            nats += naive_nats(model, ids[start:at], ids[at])
            tokens += 1
    size = sum(len(text.encode()) for text in texts())
    found = bits_per_byte.document_bpb(
        model,
        tokenizer,
        iter(texts()),
        sequence_length=length,
        run=distributed.single_run(),
        batch_tokens=64,
    )
    assert (found.bytes, found.tokens, found.documents) == (size, tokens, len(texts()))
    assert found.bpb == pytest.approx(nats / math.log(2) / size, rel=1e-5)


def test_batches_hold_windows_of_similar_length_and_stay_under_the_limit():
    model = TinyModel()
    bits_per_byte.document_bpb(
        model,
        PairTokenizer(),
        texts() * 20,
        sequence_length=64,
        run=distributed.single_run(),
        batch_tokens=256,
    )
    assert all(rows * width <= 256 for rows, width in model.shapes)
    assert {width for _, width in model.shapes} <= {32, 64}


def test_two_ranks_together_measure_each_document_once(monkeypatch):
    model, tokenizer = TinyModel(), PairTokenizer()
    one = distributed.single_run()

    def measure(run):
        return bits_per_byte.document_bpb(model, tokenizer, texts(), sequence_length=16, run=run)

    total = measure(one)
    parts = []
    monkeypatch.setattr(
        distributed, "gather_objects", lambda run, value: parts.append(value) or [value]
    )
    for rank in range(2):
        measure(dataclasses.replace(one, rank=rank, world_size=2))
    monkeypatch.setattr(distributed, "gather_objects", lambda run, value: parts)
    both = measure(dataclasses.replace(one, rank=0, world_size=2))
    assert dataclasses.astuple(both)[1:] == dataclasses.astuple(total)[1:]
    assert both.bpb == pytest.approx(total.bpb, rel=1e-6)


def test_the_stage_measures_the_text_the_model_was_trained_on(tmp_path, monkeypatch):
    run = make_run(tmp_path, monkeypatch)
    base_loss.main([*FLAGS, "--rows", "20", "--sample-tokens", "4"])
    found = result(run, "base_loss")
    assert [row["name"] for row in found["results"]] == ["training text", "validation text"]
    assert all(2 < row["value"] < 20 and row["n"] > 0 for row in found["results"])
    assert found["samples"][0]["prompt"].startswith("The cat number")
    assert found["samples"][-1]["group"] == "freely"
    report.build(run)


def test_the_stage_measures_every_byte_of_named_files(tmp_path, monkeypatch):
    run = make_run(tmp_path, monkeypatch)
    (tmp_path / "own.txt").write_text("A book.\n\nIt ends.", encoding="utf-8")
    base_loss.main([*FLAGS, "--documents", str(tmp_path / "own.txt"), "--sample-tokens", "0"])
    (figure,) = result(run, "base_loss")["results"]
    assert figure["unit"] == "bits per byte" and figure["n"] == 1
    (tmp_path / "own.jsonl").write_text('{"body": "A book.\\n\\nIt ends."}\n', encoding="utf-8")
    named = ["--documents", str(tmp_path / "own.jsonl"), "--text-column", "body"]
    base_loss.main([*FLAGS, *named, "--sample-tokens", "0"])
    assert result(run, "base_loss")["results"][0]["value"] == figure["value"]
    args = ["--documents", str(tmp_path / "own.txt"), "--sample-tokens", "0"]
    values = []
    for window in (1, 2, 512):
        base_loss.main([*FLAGS, *args, "--window", str(window)])
        values.append(result(run, "base_loss")["results"][0]["value"])
    assert len(set(values)) == 3  # what is read together is predicted from more
    with pytest.raises(ConfigError, match="--window must be at most 512, got 513"):
        base_loss.main([*FLAGS, *args, "--window", "513"])
    with pytest.raises(DataError, match="no such file"):
        base_loss.main([*FLAGS, "--documents", str(tmp_path / "missing.txt")])


def test_the_stage_names_what_is_missing(tmp_path, monkeypatch):
    run = make_run(tmp_path, monkeypatch)
    with pytest.raises(ConfigError, match="--rows must be at least 1, got 0"):
        base_loss.main([*FLAGS, "--rows", "0"])
    for recorded in ("{}", '{"options": ["data"]}'):
        (run / "base_train" / "config.json").write_text(recorded)
        with pytest.raises(ConfigError, match="does not record its training text"):
            base_loss.main(FLAGS)
    (run / "base_train" / "config.json").write_text("[]")
    with pytest.raises(DataError, match=r"config\.json is not a readable description of a stage"):
        base_loss.main(FLAGS)
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "empty"))
    with pytest.raises(CheckpointError, match="has no base_train checkpoint"):
        base_loss.main(FLAGS)
