"""The training stream is a function of its inputs; batches deal it out whatever the world size."""

import dataclasses
import json
import math
import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.data import ChatBatches, DataOptions, StreamBatches, conversation_rows, open_data
from nanochat.data import shards as shard_files
from nanochat.data.conversation_rows import ChatRows
from nanochat.data.dataloader import TokenStream, micro_batch_rows
from nanochat.system.distributed import single_run
from nanochat.system.errors import CheckpointError, DataError
from nanochat.tokenizer import train_char
from nanochat.tokenizer.conversation import render

T = 32
TEXTS = [f"Text {i}: " + "abc def " * (i % 17) + f"the end of {i}." for i in range(400)]
TOKENIZER = train_char(TEXTS)


def make_dataset(folder, texts=TEXTS, **options):
    path = folder / "a.jsonl"
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts), encoding="utf-8")
    return open_data(DataOptions(data=str(path), **options), base=folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A dataset of several shards, and its base folder."""
    base = tmp_path_factory.mktemp("base")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_files, "SHARD_CHARACTERS", 5000)
        dataset = make_dataset(base)
    assert len(dataset.shards("train")) > 4
    return dataset, base


def make_stream(data, seed=1, length=T, split="train"):
    return TokenStream(data[0], split, TOKENIZER, length, seed=seed, base=data[1])


def a_rank(rank=0, world_size=1):
    return dataclasses.replace(single_run(), rank=rank, world_size=world_size)


def real_tokens(stream, start, count):
    """The tokens of rows without what fills short rows up."""
    rows, lengths = stream._read(start, count, 1)
    return np.concatenate([row[:n] for row, n in zip(rows, lengths, strict=True)])


def test_each_epoch_holds_every_token_once(data):
    stream = make_stream(data)
    expected = np.sort(TOKENIZER.encode_batch(list(data[0].documents("train")), bos=True)[0])
    n = stream.rows_per_epoch
    for epoch in range(3):
        found = np.sort(real_tokens(stream, epoch * n, n))
        missing = len(expected) - len(found)
        assert 0 <= missing <= len(data[0].shards("train"))
        if not missing:
            assert np.array_equal(found, expected)
        counts = np.bincount(expected) - np.bincount(found, minlength=expected.max() + 1)
        assert counts.min() >= 0 and counts.sum() == missing


def test_every_document_that_fits_is_whole_in_some_row_or_split_not_cropped(data):
    stream = make_stream(data, length=255)
    rows = stream.rows(0, stream.rows_per_epoch)
    text = "\n".join(TOKENIZER.decode(row.tolist()) for row in rows)
    documents = list(data[0].documents("train"))
    whole = sum(document in text for document in documents)
    assert whole > 0.8 * len(documents)


def test_epochs_differ_in_order_and_grouping(data):
    stream = make_stream(data)
    n = stream.rows_per_epoch
    first, second = ({row.tobytes() for row in stream.rows(e * n, n)} for e in (0, 1))
    assert len(first & second) < 0.5 * n
    assert not np.array_equal(stream.rows(0, 5), stream.rows(n, 5))


def test_rows_depend_on_the_seed_and_on_nothing_else(data):
    rows = make_stream(data).rows(0, 50)
    fresh = make_stream(data)
    fresh.rows_per_epoch  # noqa: B018  (encodes everything first, in another order)
    assert np.array_equal(fresh.rows(0, 50), rows)
    assert not np.array_equal(make_stream(data, seed=2).rows(0, 50), rows)


@settings(max_examples=30, deadline=None)
@given(start=st.integers(0, 3000), count=st.integers(1, 40), stride=st.integers(1, 5))
def test_any_range_of_rows_equals_the_rows_one_by_one(data, start, count, stride):
    stream = make_stream(data)
    rows = stream.rows(start, count, stride=stride)
    again = make_stream(data)
    for i in sorted(range(count), key=lambda i: (i * 7) % count):
        assert np.array_equal(again.rows(start + i * stride, 1)[0], rows[i])


def test_shards_are_encoded_only_as_far_as_rows_are_asked_for(data, tmp_path):
    stream = TokenStream(data[0], "train", TOKENIZER, T, seed=5, base=tmp_path)
    stream.rows(0, 1)
    stream.close()
    time.sleep(0.1)
    made = len(list((tmp_path / "tokens").rglob("*.tokens.npy")))
    assert 1 <= made <= 2 < len(data[0].shards("train"))


def test_targets_are_the_next_tokens_and_short_rows_are_ignored_at_their_ends(data):
    stream = make_stream(data)
    n = stream.rows_per_epoch
    rows, lengths = stream._read(0, n, 1)
    inputs, targets = stream.inputs_targets(0, n)
    assert inputs.shape == targets.shape == (n, T)
    assert np.array_equal(inputs, rows[:, :-1])
    for row, target, length in zip(rows, targets, lengths, strict=True):
        assert np.array_equal(target[: length - 1], row[1:length])
        assert (target[length - 1 :] == -1).all()
        assert (row[length:] == TOKENIZER.bos_id).all()
    assert 0 < (lengths < T + 1).sum() <= len(data[0].shards("train"))


def test_validation_rows_come_from_validation_documents(data):
    stream = make_stream(data, split="val")
    expected = np.sort(TOKENIZER.encode_batch(list(data[0].documents("val")), bos=True)[0])
    found = np.sort(real_tokens(stream, 0, stream.rows_per_epoch))
    assert len(expected) - len(found) <= 1
    assert len(found) > 100


def steps_of(data, world_size, count, *, batch_rows=12, device_rows=5, state=None):
    """The (rows, targets) of some steps, over all ranks, in the order of the ranks' rows."""
    result = []
    sources = [
        StreamBatches(
            make_stream(data),
            batch_rows=batch_rows,
            device_rows=device_rows,
            run=a_rank(rank, world_size),
        )
        for rank in range(world_size)
    ]
    for source in sources:
        if state is not None:
            source.load_state(state)
    for _ in range(count):
        ranks = []
        for source in sources:
            batches = source.next_step()
            assert len({batch.inputs.shape for batch in batches}) == 1
            assert all(len(batch.inputs) <= device_rows for batch in batches)
            joined = [torch.cat([getattr(b, n) for b in batches]) for n in ("inputs", "targets")]
            real = (joined[1] >= 0).any(dim=1)
            ranks.append(torch.stack([part[real] for part in joined], dim=1).numpy())
        shares = [len(part) for part in ranks]
        step = np.zeros((sum(shares), 2, T), dtype=np.int64)
        for rank, part in enumerate(ranks):
            step[rank::world_size] = part
        result.append(step)
    states = [source.state() for source in sources]
    for source in sources:
        source.close()
    assert all(found == states[0] for found in states)
    return result, states[0]


@pytest.mark.parametrize("world_size", [2, 3, 4, 5])
@pytest.mark.parametrize("device_rows", [1, 2, 100])
def test_any_world_size_and_accumulation_gives_the_same_steps(data, world_size, device_rows):
    expected, state = steps_of(data, 1, 6)
    found, found_state = steps_of(data, world_size, 6, device_rows=device_rows)
    assert found_state == state and state["next_row"] == 72
    for step, other in zip(expected, found, strict=True):
        assert np.array_equal(step, other)


def test_steps_are_the_rows_of_the_stream_in_order(data):
    steps, _ = steps_of(data, 1, 40)
    inputs, targets = make_stream(data).inputs_targets(0, 480)
    assert np.array_equal(np.concatenate(steps), np.stack([inputs, targets], axis=1))


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_a_run_resumes_exactly_with_another_world_size(data, world_size):
    expected, _ = steps_of(data, 1, 50)
    _, state = steps_of(data, 2, 23)
    state = json.loads(json.dumps(state))
    found, _ = steps_of(data, world_size, 27, state=state)
    for step, other in zip(expected[23:], found, strict=True):
        assert np.array_equal(step, other)


def test_a_state_of_other_rows_is_refused(data):
    def source(**options):
        return StreamBatches(
            make_stream(data, **options), batch_rows=4, device_rows=4, run=a_rank()
        )

    state = json.loads(json.dumps(source().state()))
    source().load_state(state)
    with pytest.raises(CheckpointError, match="the seed of the training rows was 1 and is now 2"):
        source(seed=2).load_state(state)
    with pytest.raises(CheckpointError, match="the T of the training rows was 32 and is now 16"):
        source(length=16).load_state(state)
    conversations = chats(100)
    with pytest.raises(CheckpointError, match=r"the conversations .* was 100 and is now 50"):
        chat_source(conversations[:50]).load_state(chat_source(conversations).state())


def test_state_counts_what_was_taken_not_what_was_prepared(data):
    source = StreamBatches(make_stream(data), batch_rows=4, device_rows=4, run=a_rank())
    source.next_step()
    time.sleep(0.2)
    assert source.state()["next_row"] == 4
    source.close()


def test_more_ranks_than_rows_still_give_every_rank_its_micro_batches(data):
    expected, _ = steps_of(data, 1, 3, batch_rows=3)
    found, _ = steps_of(data, 4, 3, batch_rows=3)
    for step, other in zip(expected, found, strict=True):
        assert np.array_equal(step, other)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 500), st.integers(1, 64), st.integers(1, 16))
def test_little_is_added_to_make_shapes_equal(batch_rows, device_rows, world_size):
    count, rows = micro_batch_rows(batch_rows, device_rows, world_size)
    share = math.ceil(batch_rows / world_size)
    assert rows <= device_rows
    assert share <= count * rows < share + count
    assert count == math.ceil(share / device_rows)


def test_an_error_while_preparing_reaches_the_loop_and_ends_the_thread(data):
    stream = make_stream(data)
    source = StreamBatches(stream, batch_rows=4, device_rows=4, run=a_rank())
    stream.inputs_targets = lambda *_, **__: 1 // 0
    with pytest.raises(ZeroDivisionError):
        source.next_step()


def test_closing_waits_for_the_thread(data):
    source = StreamBatches(make_stream(data), batch_rows=4, device_rows=4, run=a_rank())
    source.next_step()
    thread = source._thread
    source.close()
    assert not thread.is_alive()


def test_the_thread_ends_with_its_source(data):
    source = StreamBatches(make_stream(data), batch_rows=4, device_rows=4, run=a_rank())
    source.next_step()
    mine = [t for t in threading.enumerate() if t.name == "batches"]
    assert mine
    del source
    for thread in mine:
        thread.join(5)
    assert not any(thread.is_alive() for thread in mine)


def test_waiting_is_measured_and_small_when_steps_take_time(data):
    source = StreamBatches(make_stream(data), batch_rows=8, device_rows=8, run=a_rank())
    source.next_step()
    waited_s = source.wait_s
    for _ in range(20):
        time.sleep(0.01)
        source.next_step()
    assert waited_s > 0
    assert source.wait_s - waited_s < 0.1
    source.close()


def test_too_little_text_for_one_batch_is_refused_with_figures(tmp_path):
    data = make_dataset(tmp_path, TEXTS[:6]), tmp_path
    with pytest.raises(DataError, match=r"tokens make \d+ rows of 32, one batch needs 500; give"):
        StreamBatches(make_stream(data), batch_rows=500, device_rows=8, run=a_rank())


def test_the_smallest_text_gives_one_row_an_epoch(tmp_path):
    stream = make_stream((make_dataset(tmp_path, ["a", "b"]), tmp_path))
    assert stream.rows_per_epoch == 1  # BOS and a letter
    assert (stream.inputs_targets(0, 3)[1] >= 0).sum() == 3


def chats(count, seed=0, longest=20):
    rng = np.random.default_rng(seed)
    return [
        {
            "messages": [
                {"role": "user", "content": f"Text {i} " + "abc " * int(rng.integers(longest))},
                {"role": "assistant", "content": f"the end {i} " + "d" * int(rng.integers(30))},
            ]
        }
        for i in range(count)
    ]


CHAT_T = 127


def chat_source(conversations, rank=0, world_size=1, *, batch_rows=6, device_rows=4, seed=3):
    return ChatBatches(
        conversations,
        TOKENIZER,
        T=CHAT_T,
        batch_rows=batch_rows,
        device_rows=device_rows,
        run=a_rank(rank, world_size),
        seed=seed,
    )


def chat_steps(conversations, world_size, count, *, state=None, **options):
    """Input and target rows of some steps, over all ranks, in the order of the ranks' rows."""
    result = []
    sources = [chat_source(conversations, r, world_size, **options) for r in range(world_size)]
    for source in sources:
        if state is not None:
            source.load_state(state)
    for _ in range(count):
        ranks = []
        for source in sources:
            batches = source.next_step()
            joined = [torch.cat([getattr(b, n) for b in batches]) for n in ("inputs", "targets")]
            real = (joined[1] >= 0).any(dim=1)
            ranks.append(torch.stack([part[real] for part in joined], dim=1).numpy())
        step = np.zeros((sum(map(len, ranks)), 2, CHAT_T), dtype=np.int64)
        for rank, part in enumerate(ranks):
            step[rank::world_size] = part
        result.append(step)
    states = [source.state() for source in sources]
    for source in sources:
        source.close()
    assert all(found == states[0] for found in states)
    return result, states[0]


@pytest.fixture
def small_buckets(monkeypatch):
    monkeypatch.setattr(conversation_rows, "BUCKET", 32)


def epoch_rows(conversations, epoch=0, seed=3):
    rows = ChatRows(conversations, TOKENIZER, CHAT_T, seed=seed)
    buckets = [rows.bucket(epoch, i) for i in range(rows.buckets)]
    return (
        np.concatenate([bucket.inputs for bucket in buckets]),
        np.concatenate([bucket.targets for bucket in buckets]),
        [bucket.counts for bucket in buckets],
    )


def test_an_epoch_holds_every_conversation_once_with_its_mask(small_buckets):
    conversations = chats(100)
    inputs, targets, counts = epoch_rows(conversations)
    rendered = [render(conversation, TOKENIZER) for conversation in conversations]
    wanted = sum(sum(r.mask) for r in rendered)
    assert (targets >= 0).sum() == sum(c.supervised_tokens for c in counts) == wanted
    assert sum(c.conversations for c in counts) == 100
    text = "\n".join(TOKENIZER.decode(row.tolist()) for row in inputs)
    for i in range(100):
        assert text.count(f"Text {i} ") == 1
    learned = TOKENIZER.decode(targets[targets >= 0].tolist())
    assert "Text" not in learned and "the end 7 " in learned


def test_targets_are_the_next_inputs_wherever_there_is_loss(small_buckets):
    inputs, targets, _ = epoch_rows(chats(100))
    shifted = np.roll(inputs, -1, axis=1)[:, :-1]
    kept = targets[:, :-1] >= 0
    assert np.array_equal(targets[:, :-1][kept], shifted[kept])


def test_conversations_of_another_epoch_are_ordered_anew(small_buckets):
    conversations = chats(100)
    first, again, second = (epoch_rows(conversations, epoch)[0] for epoch in (0, 0, 1))
    assert np.array_equal(first, again)
    assert first.shape != second.shape or not np.array_equal(first, second)


def test_overlong_conversations_are_cut_and_those_without_an_answer_dropped():
    long_answer = {"role": "assistant", "content": "abc " * 100}
    long_question = {"role": "user", "content": "abc " * 100}
    short = {"role": "user", "content": "abc"}
    conversations = [
        {"messages": [short, long_answer]},
        {"messages": [long_question, {"role": "assistant", "content": "d"}]},
        *chats(20),
    ]
    inputs, targets, counts = epoch_rows(conversations)
    assert (counts[0].truncated, counts[0].dropped) == (1, 1)
    assert ((targets >= 0).any(axis=1)).all()
    assert inputs.shape[1] == CHAT_T


def test_conversations_without_any_answer_end_in_an_error_not_in_a_loop():
    question = {"role": "user", "content": "abc " * 100}
    conversations = [{"messages": [question, {"role": "assistant", "content": "d"}]}] * 50
    with pytest.raises(DataError, match="50 conversations make 0 rows of 127 tokens"):
        chat_source(conversations)
    rows = ChatRows(conversations, TOKENIZER, CHAT_T, seed=0)
    with pytest.raises(DataError, match="none of the 50 conversations has an assistant's answer"):
        rows.read({"epoch": 0, "bucket": 0, "row": 0}, 1)


def test_too_few_conversations_are_refused_with_figures():
    with pytest.raises(DataError, match=r"2 conversations make [12] rows .*one batch needs 6"):
        chat_source(chats(2))
    with pytest.raises(DataError, match="there are no conversations"):
        chat_source([])


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_chat_steps_do_not_depend_on_the_world_size(small_buckets, world_size):
    conversations = chats(200)
    expected, state = chat_steps(conversations, 1, 30)
    found, found_state = chat_steps(conversations, world_size, 30, device_rows=1)
    assert found_state == state
    assert state["epoch"] > 0
    for step, other in zip(expected, found, strict=True):
        assert np.array_equal(step, other)


@pytest.mark.parametrize("world_size", [1, 2])
def test_chat_resumes_exactly(small_buckets, world_size):
    conversations = chats(200)
    expected, _ = chat_steps(conversations, 1, 20)
    for done in (1, 7, 13):
        _, state = chat_steps(conversations, 2, done)
        found, _ = chat_steps(conversations, world_size, 5, state=json.loads(json.dumps(state)))
        for step, other in zip(expected[done:], found, strict=False):
            assert np.array_equal(step, other)


def test_rows_of_an_epoch_are_counted_or_estimated(small_buckets):
    conversations = chats(700)
    exact = len(epoch_rows(conversations)[0])
    estimate = chat_source(conversations).rows_per_epoch
    assert abs(estimate - exact) < 0.05 * exact
    few = chats(150)
    assert chat_source(few).rows_per_epoch == len(epoch_rows(few)[0])


def test_conversations_are_rendered_only_when_their_turn_comes(small_buckets):
    class Lazy:
        asked = 0

        def __len__(self):
            return 1_000_000

        def __getitem__(self, index):
            self.asked += 1
            return chats(1, seed=index)[0]

    lazy = Lazy()
    source = chat_source(lazy)
    source.next_step()
    assert lazy.asked < 1000
    source.close()


def test_rows_are_well_filled():
    *_, counts = epoch_rows(chats(1000, longest=10))
    assert counts[0].tokens / (counts[0].rows * (CHAT_T + 1)) > 0.95


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_batches_arrive_on_the_gpu_unchanged(data):
    run = dataclasses.replace(a_rank(), device=torch.device("cuda"))
    source = StreamBatches(make_stream(data), batch_rows=8, device_rows=4, run=run)
    (first, _), (inputs, _) = source.next_step(), make_stream(data).inputs_targets(0, 4)
    assert first.inputs.is_cuda
    assert np.array_equal(first.inputs.cpu().numpy(), inputs)
    source.close()
