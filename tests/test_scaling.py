"""Sizes and plans that follow from the depth."""

import pytest

from nanochat.gpt import GPTConfig
from nanochat.optim.scaling import scaled_plan


@pytest.mark.parametrize("depth", range(1, 41))
def test_every_depth_gives_valid_sizes_and_a_plan(depth):
    config = GPTConfig(depth=depth)
    assert config.width == config.heads * config.head_dim
    assert config.head_dim == (64 if depth < 8 else 128)
    assert 0 <= config.width - 64 * depth < 128
    assert len(config.windows) == depth
    assert config.windows[-1] is None
    plan = scaled_plan(config)
    assert plan.tokens_per_step % config.sequence_length == 0
    assert plan.tokens > plan.tokens_per_step


def test_the_reference_is_its_own_plan():
    plan = scaled_plan(GPTConfig(depth=12))
    assert plan.parameters == 12 * 12 * 768**2 + 32768 * 768
    assert plan.tokens == round(10.5 * plan.parameters)
    assert plan.tokens_per_step == 2**19
    assert plan.lr_scale == 1.0
    assert plan.weight_decay_scale == pytest.approx(1.0)


def test_a_larger_model_follows_the_laws():
    reference, plan = scaled_plan(GPTConfig(depth=12)), scaled_plan(GPTConfig(depth=24))
    share = plan.parameters / reference.parameters
    assert plan.tokens_per_step == 2**20  # 2^19 x share^0.383 = 2^20.05
    assert plan.lr_scale == pytest.approx(2**0.5)
    assert plan.weight_decay_scale == pytest.approx(2**0.5 / share)


def test_what_the_caller_gives_is_kept():
    config = GPTConfig(depth=4, vocab_size=1040, sequence_length=256)
    plan = scaled_plan(config, tokens=3_000_000, tokens_per_step=4096)
    assert (plan.tokens, plan.tokens_per_step) == (3_000_000, 4096)
    assert plan.lr_scale == 0.5
    assert scaled_plan(config, ratio=2.0).tokens == 2 * plan.parameters


def test_the_batch_is_complete_rows_of_any_length():
    plan = scaled_plan(GPTConfig(depth=4, sequence_length=384))
    assert plan.tokens_per_step % 384 == 0
