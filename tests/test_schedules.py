"""Values of the schedules."""

import itertools

import pytest

from nanochat.optim import schedules


def test_the_learning_rate_warms_up_stays_and_falls_linearly():
    schedule = schedules.warmup_decay(1000)
    scale = [schedule(step).lr_scale for step in range(1000)]
    assert scale[:2] == [1 / 40, 2 / 40]
    assert scale[39] == 1.0
    assert set(scale[40:351]) == {1.0}
    assert scale[675] == pytest.approx(0.05 + 0.95 / 2)
    assert scale[999] == pytest.approx(0.05 + 0.95 / 650)
    assert all(a >= b for a, b in itertools.pairwise(scale[40:]))


def test_momentum_rises_then_falls_with_the_warmdown():
    schedule = schedules.warmup_decay(4000)
    assert schedule(0).momentum == pytest.approx(0.85)
    assert schedule(200).momentum == pytest.approx(0.91)
    assert schedule(400).momentum == pytest.approx(0.97)
    assert schedule(1400).momentum == pytest.approx(0.97)
    assert schedule(2700).momentum == pytest.approx(0.935)
    assert schedule(4000).momentum == pytest.approx(0.90)


def test_weight_decay_follows_half_a_cosine():
    schedule = schedules.warmup_decay(100)
    found = [schedule(step).weight_decay_scale for step in (0, 50, 100)]
    assert found == pytest.approx([1.0, 0.5, 0.0], abs=1e-12)


def test_short_runs_shorten_warmup_and_momentum_rise():
    schedule = schedules.warmup_decay(50)
    assert schedule(4).lr_scale == 1.0
    assert schedule(10).momentum == pytest.approx(0.97)


@pytest.mark.parametrize("total", [1, 2, 3, 7])
def test_every_length_of_run_has_settings_within_bounds(total):
    schedule = schedules.warmup_decay(total, warmdown_frac=1.0, final_lr_frac=0.0)
    for step in range(total):
        settings = schedule(step)
        assert 0 < settings.lr_scale <= 1
        assert 0.75 < settings.momentum <= 0.97
        assert 0 <= settings.weight_decay_scale <= 1


def test_no_warmdown_keeps_the_learning_rate():
    schedule = schedules.warmup_decay(20, warmup_steps=0, warmdown_frac=0.0)
    assert [schedule(step).lr_scale for step in (0, 10, 19)] == [1.0, 1.0, 1.0]


def test_the_linear_schedule_falls_to_zero():
    linear = schedules.linear_to_zero(10)
    assert [linear(step).lr_scale for step in (0, 5, 9)] == pytest.approx([1.0, 0.5, 0.1])
