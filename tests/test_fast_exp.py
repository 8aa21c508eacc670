"""The polynomial exponential, alone and in the compiled kernels that use it."""

import pytest
import torch
import torch.nn.functional as F

from nanochat.gpt import GPT, GPTConfig
from nanochat.gpt.block_attention import block_attention
from nanochat.gpt.fast_exp import bounded_exp, exp_for
from nanochat.gpt.loss import linear_cross_entropy
from nanochat.system.compiler import compiled


@pytest.mark.parametrize(
    ("bound", "error"), [(0.1, 1e-6), (1.0, 4e-6), (11.5, 5e-5), (15.0, 5e-5), (60.0, 2e-4)]
)
def test_the_polynomial_is_the_exponential_as_far_as_the_bound(bound, error):
    x = torch.linspace(-bound, bound, 10_001)
    exact = x.double().exp()
    assert float(((bounded_exp(x, bound) - exact) / exact).abs().max()) < error


def test_rounding_beyond_the_bound_does_no_harm():
    found = bounded_exp(torch.tensor([-11.6, 11.6]), 11.52)
    assert found.tolist() == pytest.approx([9.166e-6, 109_098], rel=1e-3)


def test_only_bfloat16_in_compiled_code_gets_the_polynomial(monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    x = torch.linspace(-15, 15, 101)
    exact = (x / 2).exp().square()
    torch.testing.assert_close(exp_for(torch.float32, x, bound=15.0), exact, rtol=3e-6, atol=0)
    torch.testing.assert_close(exp_for(torch.bfloat16, x, bound=None), exact, rtol=3e-6, atol=0)
    fast = exp_for(torch.bfloat16, x, bound=15.0)
    assert torch.equal(fast, bounded_exp(x, 15.0))


@pytest.mark.slow
@pytest.mark.usefixtures("torch_compile")
def test_the_compiled_loss_in_bfloat16_is_that_of_plain_operations():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(32, 16, generator=generator).bfloat16().requires_grad_()
    weight = torch.randn(64, 16, generator=generator).bfloat16().float().requires_grad_()
    targets = torch.randint(0, 64, (32,), generator=generator)
    weights = torch.full((32,), 1 / 32)

    @compiled
    def loss(hidden, weight):
        return linear_cross_entropy(hidden, weight, targets, weights, softcap=15.0)

    found = loss(hidden, weight)
    logits = (hidden @ weight.bfloat16().T).double()
    expected = F.cross_entropy(15 * (logits / 15).tanh(), targets)
    assert found.item() == pytest.approx(expected.item(), rel=2e-5)
    exact = torch.autograd.grad(expected, [hidden, weight])
    for got, wanted in zip(torch.autograd.grad(found, [hidden, weight]), exact, strict=True):
        assert float((got - wanted).norm() / wanted.norm()) < 0.01


@pytest.mark.slow
@pytest.mark.usefixtures("torch_compile")
def test_compiled_bounded_attention_in_bfloat16_is_that_of_exact_weights():
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 40, 2, 16, generator=generator) for _ in range(3))
    q, k, v = (F.rms_norm(x, (16,)).bfloat16().requires_grad_() for x in (q, k, v))

    @compiled
    def attend(q, k, v):
        return block_attention(q, k, v, window=12, scale=0.36, score_bound=0.36 * 16)

    found = attend(q, k, v)
    wide = [x.detach().double().requires_grad_() for x in (q, k, v)]
    expected = block_attention(*wide, window=12, scale=0.36)
    factors = torch.randn(expected.shape, generator=generator)
    pairs = zip(
        [found.detach(), *torch.autograd.grad((found * factors).sum(), [q, k, v])],
        [expected.detach(), *torch.autograd.grad((expected * factors).sum(), wide)],
        strict=True,
    )
    for got, wanted in pairs:
        assert float((got - wanted).norm() / wanted.norm()) < 0.01


@pytest.mark.parametrize("norm", ["rms", "rms_weight", "layer"])
def test_a_layer_knows_a_bound_of_its_scores_where_there_is_one(norm):
    config = GPTConfig(vocab_size=16, sequence_length=32, depth=1, width=32, heads=2, norm=norm)
    model = GPT(config, compute_dtype=torch.bfloat16)
    attention = model.blocks[0].attention
    if norm != "rms":  # weights of the norms may make vectors of any length
        assert attention.score_bound is None
        return
    assert attention.score_bound == pytest.approx(1.44 * 4)
    x = 100 * torch.randn(4, 64, 2, 16).bfloat16()
    scores = torch.einsum("bqhd,bkhd->bhqk", attention.q_norm(x), attention.k_norm(x)).float()
    assert float(scores.abs().max()) * attention.scale < 1.01 * attention.score_bound
