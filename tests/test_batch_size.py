"""The most rows that fit: the search, and what a trial leaves behind."""

import dataclasses

import pytest
import torch

from nanochat.gpt import GPT, GPTConfig
from nanochat.training import batch_size, memory_plan
from nanochat.training.batch_size import by_estimate, by_trial, largest_fitting, useful_rows
from nanochat.training.memory_plan import StepPlan

CONFIG = GPTConfig(vocab_size=50, sequence_length=32, depth=1, width=32, heads=2)
STEP = StepPlan(rows=8, length=32, dtype=torch.float32, compiled=False)


@pytest.mark.parametrize("most", [1, 2, 3, 7, 8, 100])
def test_the_largest_that_fits_is_found_whatever_the_limit(most):
    for limit in range(most + 3):
        tried = []

        def fits(rows: int, limit: int = limit, tried: list[int] = tried) -> bool:
            tried.append(rows)
            return rows <= limit

        assert largest_fitting(fits, most) == min(limit, most)
        assert len(set(tried)) == len(tried) <= 2 * most.bit_length()
        assert all(1 <= rows <= most for rows in tried)
        # Never more than twice of what is known to fit: a GPU is not asked for the absurd.
        assert all(rows <= 2 * max(1, limit) for rows in tried)
        assert largest_fitting(fits, most, first=most) == min(limit, most)


@pytest.mark.parametrize(("limit", "tries"), [(40, 7), (16, 8), (64, 7), (5, 6)])
def test_the_search_ends_once_more_rows_would_not_save_a_pass(limit, tries):
    """A step of 64 rows is cut into equal passes: 17 to 21 rows are the same four passes as 16."""
    tried = []

    def fits(rows: int) -> bool:
        tried.append(rows)
        return rows <= limit

    found = largest_fitting(fits, 64, step_rows=64)
    assert found <= limit
    assert -(-64 // found) == -(-64 // limit)
    assert len(tried) <= tries


@pytest.mark.parametrize(("with_fp8", "tried"), [(False, 12), (True, 10)])
def test_a_trial_for_compiled_passes_takes_the_memory_that_those_will(
    model, monkeypatch, with_fp8, tried
):
    """16 compiled rows keep 0.68 of what uncompiled rows keep, with fp8 0.56; and a margin."""
    seen = []
    monkeypatch.setattr(batch_size, "_try_step", lambda model, rows, *rest: seen.append(rows))
    step = dataclasses.replace(STEP, device_type="cuda", compiled=True, fp8=with_fp8)
    assert by_trial(model, step)(16)
    assert by_trial(model, dataclasses.replace(step, compiled=False))(16)
    assert seen == [tried, 16]


def test_a_cpu_takes_passes_of_1024_tokens_a_thread_and_a_gpu_all_that_fits(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert useful_rows(16, 512, "cpu") == 4
    assert useful_rows(3, 512, "cpu") == 3
    assert useful_rows(16, 4096, "cpu") == 1
    assert useful_rows(16, 512, "cuda") == 16


def test_the_estimate_decides_with_its_error_as_headroom():
    needed = memory_plan.estimate(CONFIG, memory_plan.with_rows(STEP, 4, 8)).total
    for share, expected in ((1.14, False), (1.16, True)):
        fits = by_estimate(CONFIG, STEP, most=8, available_bytes=int(share * needed))
        assert fits(4) == expected
    assert not by_estimate(CONFIG, STEP, most=8, available_bytes=2 * needed, resident_bytes=needed)(
        4
    )


@pytest.fixture
def model(monkeypatch) -> GPT:
    """A model on the CPU, whose trials think that they are on a GPU of 1 GB."""

    class Properties:
        total_memory = 10**9

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    found = GPT(CONFIG, compute_dtype=torch.float32)
    found.init_weights(torch.Generator().manual_seed(0))
    return found


def test_a_trial_leaves_weights_gradients_and_generators_as_they_were(model):
    weights = {name: p.clone() for name, p in model.named_parameters()}
    before = torch.random.get_rng_state()
    assert by_trial(model, STEP)(4)
    assert torch.equal(torch.random.get_rng_state(), before)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, weights[name])
        assert parameter.grad is None


def test_a_trial_that_runs_out_of_memory_is_a_no_and_any_other_error_an_error(model, monkeypatch):
    real_step = batch_size._try_step

    def trial(model: GPT, rows: int, length: int, reserve_bytes: int) -> None:
        real_step(model, rows, length, reserve_bytes)
        if rows > 5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")

    monkeypatch.setattr(batch_size, "_try_step", trial)
    assert largest_fitting(by_trial(model, STEP), 64) == 5
    assert all(p.grad is None for p in model.parameters())

    def broken(*args: object) -> None:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(batch_size, "_try_step", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        by_trial(model, STEP)(1)
