"""The chunked loss: its gradients, its range and the memory it needs."""

import math

import pytest
import torch

from nanochat.token_loss import chunk_rows, linear_cross_entropy


@pytest.mark.parametrize("softcap", [None, 2.0, 15.0, 100.0])
@pytest.mark.parametrize("rows", [1, 5, 64])
def test_chunked_loss_passes_gradcheck(softcap, rows, monkeypatch):
    monkeypatch.setattr("nanochat.token_loss.chunk_rows", lambda *_: rows)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(7, 4, dtype=torch.float64, generator=generator).requires_grad_()
    weight = (3 * torch.randn(6, 4, dtype=torch.float64, generator=generator)).requires_grad_()
    targets = torch.tensor([0, 5, -1, 2, 2, -1, 3])

    def losses(hidden, weight):
        return linear_cross_entropy(hidden, weight, targets, softcap=softcap)

    assert torch.autograd.gradcheck(losses, (hidden, weight))


def test_large_logits_do_not_overflow():
    hidden, weight = 1e4 * torch.eye(4), torch.eye(4)
    targets = torch.arange(4)
    for softcap, expected in ((None, 0.0), (15.0, math.log(1 + 3 * math.exp(-15)))):
        losses = linear_cross_entropy(hidden, weight, targets, softcap=softcap)
        assert losses.tolist() == pytest.approx([expected] * 4, abs=1e-6)


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
    with Watch():
        linear_cross_entropy(
            hidden, weight, torch.zeros(rows).long(), softcap=15.0
        ).sum().backward()
    assert largest <= chunk_rows(rows, vocab, "cpu") * vocab < rows * vocab
