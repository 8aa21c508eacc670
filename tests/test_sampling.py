"""Sampling follows the exact distribution, the truncation rules, and the seed alone."""

from __future__ import annotations

import pytest
import torch

from nanochat.engine import SamplingParams
from nanochat.engine.sampling import SamplingBatch, _mix, sample
from nanochat.system.errors import ConfigError

CPU = torch.device("cpu")


def draws(logits: torch.Tensor, params: SamplingParams, count: int) -> torch.Tensor:
    """Sample `count` times from one row of logits, twenty seeds, consecutive positions."""
    rows, out = 5000, []
    for seed in range(count // rows):
        batch = SamplingBatch.build(
            [params] * rows, [seed] * rows, vocab_size=len(logits), device=CPU
        )
        out.append(sample(logits.expand(rows, -1), batch, torch.arange(rows)))
    return torch.cat(out)


def exact(logits: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """Work out the distribution slowly: top-k and min-p, then top-p of what is left."""
    order = sorted(range(len(logits)), key=lambda i: -logits[i].item())
    order = order[: params.top_k or len(logits)]
    weights = [float((logits[i].double() / params.temperature).exp()) for i in order]
    weights = [weight for weight in weights if weight >= (params.min_p or 0.0) * weights[0]]
    total, mass, kept = sum(weights), 0.0, []
    for index, weight in zip(order, weights, strict=False):
        if kept and mass >= (params.top_p or 1.0) * total:
            break
        kept.append((index, weight))
        mass += weight
    probs = torch.zeros(len(logits), dtype=torch.float64)
    for index, weight in kept:
        probs[index] = weight / mass
    return probs


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=0.5),
        SamplingParams(temperature=2.0, top_k=0, top_p=1.0),
        SamplingParams(top_k=5),
        SamplingParams(top_p=0.7),
        SamplingParams(top_p=0.01),
        SamplingParams(temperature=1.5, top_k=12, top_p=0.8),
        SamplingParams(top_k=1),
        SamplingParams(min_p=0.2, temperature=2.0),
        SamplingParams(min_p=0.1, top_p=0.8, top_k=9),
    ],
)
def test_frequencies_match_the_exact_distribution(params):
    logits = torch.randn(40, generator=torch.Generator().manual_seed(3)) * 1.5
    count = 100_000
    counts = torch.bincount(draws(logits, params, count), minlength=40).double()
    expected = exact(logits, params) * count
    assert counts[expected == 0].sum() == 0
    kept = expected > 0
    chi_squared = ((counts - expected) ** 2)[kept].div(expected[kept]).sum().item()
    freedom = int(kept.sum()) - 1
    # mean `freedom`, variance 2 * freedom: five standard deviations and a little for small freedom
    assert chi_squared <= freedom + 5 * (2 * freedom) ** 0.5 + 5


def test_a_flat_distribution_over_a_large_vocabulary_is_sampled_evenly():
    vocab_size, rows = 32768, 64
    batch = SamplingBatch.build(
        [SamplingParams()] * rows, list(range(rows)), vocab_size=vocab_size, device=CPU
    )
    logits = torch.zeros(rows, vocab_size)
    tokens = torch.cat([sample(logits, batch, torch.full((rows,), t)) for t in range(16)]).double()
    mean_error = (tokens.mean() - (vocab_size - 1) / 2).abs() / (vocab_size / 12**0.5)
    assert mean_error * len(tokens) ** 0.5 < 4
    assert len(tokens.unique()) > 0.95 * len(tokens)  # birthday: 1.5% of 1,024 draws collide


def test_the_mixing_function_is_splitmix64():
    def reference(x: int) -> int:
        mask = 2**64 - 1
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & mask
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB & mask
        return x ^ (x >> 31)

    values = [0, 1, 12345, 2**63 - 1, -1, -(2**63), -987654321]
    mixed = _mix(torch.tensor(values)).tolist()
    assert [m % 2**64 for m in mixed] == [reference(v % 2**64) for v in values]


def test_a_seeded_row_chooses_the_same_token_in_any_batch():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(8, 300, generator=generator)
    params = [
        SamplingParams(),
        SamplingParams(temperature=0),
        SamplingParams(top_k=5),
        SamplingParams(top_k=10_000),
        SamplingParams(top_p=0.5),
        SamplingParams(top_k=50, top_p=0.9, temperature=0.7),
        SamplingParams(temperature=3.0),
        SamplingParams(top_k=0, top_p=1.0),
    ]
    seeds = [5, 5, 5, 2**64 - 1, -3, 5, 10**30, 0]
    positions = torch.arange(8) * 7
    together = sample(
        logits, SamplingBatch.build(params, seeds, vocab_size=300, device=CPU), positions
    )
    for i in range(8):
        alone = SamplingBatch.build(params[i : i + 1], seeds[i : i + 1], vocab_size=300, device=CPU)
        assert sample(logits[i : i + 1], alone, positions[i : i + 1]).item() == together[i].item()
    assert together[1] == logits[1].argmax()


def test_seed_and_position_both_change_the_draw():
    logits = torch.zeros(200, 500)
    batch = SamplingBatch.build([SamplingParams()] * 200, [9] * 200, vocab_size=500, device=CPU)
    by_position = sample(logits, batch, torch.arange(200))
    batch = SamplingBatch.build(
        [SamplingParams()] * 200, list(range(200)), vocab_size=500, device=CPU
    )
    by_seed = sample(logits, batch, torch.zeros(200, dtype=torch.int64))
    assert len(by_position.unique()) > 140
    assert len(by_seed.unique()) > 140


def test_greedy_and_top_k_one_agree_and_very_low_temperatures_do_not_overflow():
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(2)) * 30
    for params in (
        SamplingParams(temperature=0),
        SamplingParams(top_k=1),
        SamplingParams(top_p=1e-9),
        SamplingParams(top_p=0),
        SamplingParams(temperature=1e-6),
    ):
        batch = SamplingBatch.build([params] * 4, [0, 1, 2, 3], vocab_size=50, device=CPU)
        assert torch.equal(sample(logits, batch, torch.arange(4)), logits.argmax(-1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, "temperature must be from 0 to 100, got -0.1"),
        ({"temperature": float("nan")}, "temperature must be from 0 to 100, got nan"),
        ({"top_k": -1}, "top_k must be at least 0 or none, got -1"),
        ({"top_p": -0.1}, "top_p must be from 0 to 1, got -0.1"),
        ({"top_p": 1.1}, "top_p must be from 0 to 1, got 1.1"),
        ({"max_new_tokens": -1}, "max_new_tokens must be at least 0, got -1"),
        ({"min_p": 1.5}, "min_p must be from 0 to 1, got 1.5"),
        ({"presence_penalty": 2.1}, "presence_penalty must be from -2 to 2, got 2.1"),
        ({"frequency_penalty": float("nan")}, "frequency_penalty must be from -2 to 2, got nan"),
        ({"logit_bias": {7: -101.0}}, "logit_bias of token 7 must be from -100 to 100: -101.0"),
        ({"logprobs": 21}, "logprobs must be from 0 to 20, got 21"),
        ({"stop": ("",)}, "a stop string must not be empty"),
    ],
)
def test_senseless_settings_are_refused_with_the_value(options, message):
    with pytest.raises(ConfigError) as caught:
        SamplingParams(**options)
    assert message in str(caught.value)
