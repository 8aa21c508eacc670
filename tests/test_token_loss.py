"""The chunked loss: its gradients, its range and the memory it needs."""

import math

import pytest
import torch
import torch.nn.functional as F

from nanochat.gpt.loss import IGNORED, capped, chunk_rows, cross_entropies, linear_cross_entropy


def some_inputs() -> tuple[torch.Tensor, ...]:
    """hidden, weight, targets, weights, all float64."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(7, 4, dtype=torch.float64, generator=generator).requires_grad_()
    weight = (3 * torch.randn(6, 4, dtype=torch.float64, generator=generator)).requires_grad_()
    weights = torch.randn(7, dtype=torch.float64, generator=generator)
    return hidden, weight, torch.tensor([0, 5, -1, 2, 2, -1, 3]), weights


@pytest.mark.parametrize("softcap", [None, 2.0, 15.0, 100.0])
@pytest.mark.parametrize("rows", [1, 5, 64])
def test_chunked_losses_and_gradients_are_those_of_plain_operations(softcap, rows, monkeypatch):
    monkeypatch.setattr("nanochat.gpt.loss.chunk_rows", lambda *_: rows)
    hidden, weight, targets, weights = some_inputs()
    logits = hidden @ weight.T
    logits = logits if softcap is None else softcap * (logits / softcap).tanh()
    plain = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="none")
    expected = 3 * (plain * weights).sum()
    found = 3 * linear_cross_entropy(hidden, weight, targets, weights, softcap=softcap)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    for got, wanted in zip(
        torch.autograd.grad(found, [hidden, weight]),
        torch.autograd.grad(expected, [hidden, weight]),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-11, atol=1e-12)
    losses = cross_entropies(hidden, weight, targets, softcap=softcap)
    torch.testing.assert_close(losses, plain.detach(), rtol=1e-12, atol=1e-12)
    assert not losses.requires_grad


def test_large_logits_do_not_overflow():
    hidden, weight = (1e4 * torch.eye(4)).requires_grad_(), torch.eye(4)
    targets = torch.arange(4)
    caps = ((None, 0.0), (15.0, math.log(1 + 3 * math.exp(-15))), (100.0, 0.0))
    for softcap, expected in caps:
        losses = cross_entropies(hidden, weight, targets, softcap=softcap)
        assert losses.tolist() == pytest.approx([expected] * 4, abs=2e-6)
        loss = linear_cross_entropy(hidden, weight, targets, torch.ones(4), softcap=softcap)
        (grad,) = torch.autograd.grad(loss, [hidden])
        assert bool(grad.isfinite().all())


def test_the_softcap_is_that_of_tanh():
    logits = torch.cat([torch.linspace(-400, 400, 10_001), torch.tensor([math.inf, -math.inf])])
    for cap in (1.0, 15.0, 50.0):
        exact = cap * (logits.double() / cap).tanh()
        assert float((capped(logits, cap) - exact).abs().max()) < 3e-7 * cap
    assert bool(capped(torch.tensor(math.nan), 15.0).isnan())


def test_all_logits_never_exist_at_once():
    rows, vocab = 4096, 4096
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest = max(largest, out.numel())
            return out

    hidden = torch.randn(rows, 8, requires_grad=True)
    weight = torch.randn(vocab, 8, requires_grad=True)
    targets = torch.zeros(rows).long()
    with Watch():
        linear_cross_entropy(hidden, weight, targets, torch.ones(rows), softcap=15.0).backward()
        cross_entropies(hidden, weight, targets, softcap=15.0)
    assert largest <= chunk_rows(rows, vocab, "cpu") * vocab < rows * vocab
