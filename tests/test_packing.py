"""Packing: nothing lost, rows full, and no conversation torn."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.data.packing import (
    batches,
    crop_documents,
    document_rows,
    pack_conversations,
    pack_documents,
    pad_rows,
)


def offsets_of(lengths):
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def used_tokens(plan):
    """Every token position that the plan uses, with repeats, sorted."""
    parts = [np.arange(s, s + n) for s, n in zip(plan.starts, plan.lengths, strict=True)]
    parts = [parts[p] for row in range(len(plan)) for p in plan.pieces(row)]
    return np.sort(np.concatenate(parts)) if parts else np.zeros(0, dtype=np.int64)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 60), max_size=40), st.integers(2, 24), st.integers(0, 5))
def test_every_token_is_used_once_and_every_row_but_the_last_is_full(lengths, row_tokens, seed):
    offsets = offsets_of(lengths)
    total = int(offsets[-1])
    plan = pack_documents(offsets, row_tokens, np.random.default_rng(seed))
    assert len(plan) == document_rows(total, row_tokens)
    used = used_tokens(plan)
    assert len(np.unique(used)) == len(used)
    assert total - len(used) in ((1,) if total % row_tokens == 1 else (0,))
    sizes = [sum(plan.lengths[p] for p in plan.pieces(row)) for row in range(len(plan))]
    assert all(size == row_tokens for size in sizes[:-1])
    assert not sizes or 1 < sizes[-1] <= row_tokens


def test_documents_that_fill_rows_exactly_are_not_split():
    lengths = [7, 3, 6, 4, 5, 5] * 20
    offsets = offsets_of(lengths)
    plan = pack_documents(offsets, 10, np.random.default_rng(0))
    assert sorted(plan.lengths) == sorted(lengths)
    assert set(plan.starts) <= set(offsets)


def test_a_long_document_is_split_and_its_parts_are_in_order_within_it():
    plan = pack_documents(offsets_of([2_000_000]), 2049, np.random.default_rng(0))
    tokens = np.arange(2_000_000)
    row = np.zeros(2049, dtype=np.int64)
    for i in range(len(plan) - 1):
        assert plan.fill(tokens, i, row) == 2049
        assert np.array_equal(row, np.arange(i * 2049, (i + 1) * 2049))


def test_another_generator_groups_documents_anew():
    lengths = [9, 11] * 100
    plans = [pack_documents(offsets_of(lengths), 20, np.random.default_rng(s)) for s in (1, 1, 2)]
    assert np.array_equal(plans[0].starts, plans[1].starts)
    assert not np.array_equal(plans[0].starts, plans[2].starts)


def test_ten_million_tokens_of_short_documents_are_packed_with_few_splits():
    lengths = np.random.default_rng(0).integers(20, 180, 100_000)
    plan = pack_documents(offsets_of(lengths), 513, np.random.default_rng(1))
    assert len(plan) == document_rows(int(lengths.sum()), 513)
    split = len(plan.starts) - len(lengths)
    assert split < 0.1 * len(lengths)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 16), max_size=60))
def test_conversations_stay_whole_and_fit_their_rows(lengths):
    rows = pack_conversations(lengths, 16)
    assert sorted(item for row in rows for item in row) == list(range(len(lengths)))
    assert all(0 < sum(lengths[item] for item in row) <= 16 for row in rows)


def test_conversations_leave_little_room():
    lengths = np.random.default_rng(0).integers(20, 400, 1000)
    rows = pack_conversations(lengths, 513)
    assert lengths.sum() / (len(rows) * 513) > 0.97


def test_a_conversation_goes_into_the_fullest_row_that_has_room():
    assert pack_conversations([7, 5, 3], 10) == [[0, 2], [1]]
    assert pack_conversations([3, 5, 7], 10) == [[2, 0], [1]]


def test_no_conversations_make_no_rows():
    assert pack_conversations([], 16) == []


@pytest.mark.parametrize(("tokens", "rows"), [(0, 0), (1, 0), (2, 1), (10, 1), (11, 1), (12, 2)])
def test_row_counts_follow_from_the_number_of_tokens(tokens, rows):
    assert document_rows(tokens, 10) == rows


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(2, 60), max_size=40), st.integers(2, 24), st.integers(0, 5))
def test_cropped_rows_begin_with_a_document_and_hold_beginnings_only(lengths, row_tokens, seed):
    offsets = offsets_of(lengths)
    plan = crop_documents(offsets, row_tokens, np.random.default_rng(seed))
    assert len(np.unique(plan.starts)) == len(plan.starts) == len(lengths)
    sizes = dict(zip(offsets[:-1].tolist(), lengths, strict=True))
    assert all(
        n <= sizes[s] for s, n in zip(plan.starts.tolist(), plan.lengths.tolist(), strict=True)
    )
    rows = [[int(plan.lengths[p]) for p in plan.pieces(row)] for row in range(len(plan))]
    assert all(sum(row) == row_tokens for row in rows[:-1])
    assert not rows or 1 < sum(rows[-1]) <= row_tokens
    other = crop_documents(offsets, row_tokens, np.random.default_rng(seed + 1))
    assert np.array_equal(other.row_ends, plan.row_ends)
    assert np.array_equal(other.lengths, plan.lengths)


def test_cropping_takes_the_longest_that_fits_and_throws_the_rest_of_the_shortest_away():
    plan = crop_documents(offsets_of([7, 2, 4, 30, 9]), 10, np.random.default_rng(0))
    rows = [[int(plan.lengths[p]) for p in plan.pieces(row)] for row in range(len(plan))]
    assert rows == [[9, 1], [7, 3], [10]]  # of the 2 and the 4 one token is lost each, of the 30 20


def test_padding_fills_rows_on_the_right_and_missing_rows_below():
    padded = pad_rows([[1, 2, 3], np.array([4])], (3, 4), -1)
    assert padded.dtype == np.int64
    assert padded.tolist() == [[1, 2, 3, -1], [4, -1, -1, -1], [-1, -1, -1, -1]]


def test_batches_hold_as_many_items_as_fit_with_padding_and_at_least_one():
    found = list(batches([9, 4, 4, 3, 1, 1], 8, lambda width: width))
    assert found == [[9], [4, 4], [3, 1], [1]]
    assert list(batches([], 8, len)) == []
