"""The same bits in every run on a CPU: compiled, on several threads, however often repeated."""

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat.gpt import GPT, GPTConfig
from nanochat.gpt.layers import Embedding


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Two threads, the least that could differ in the order of their sums."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def table(count: int, channels: int, dtype: torch.dtype = torch.float32) -> Embedding:
    embedding = Embedding(count, channels, dtype)
    generator = torch.Generator().manual_seed(1)
    embedding.weight.data = torch.randn(count, channels, generator=generator, dtype=dtype)
    return embedding


def some_ids(count: int, *shape: int) -> Tensor:
    return torch.randint(0, count, shape, generator=torch.Generator().manual_seed(2))


def repeated_gradients(
    function: Callable[[], Tensor], parameters: list[Tensor], times: int
) -> Iterator[list[Tensor]]:
    """The function's result and its gradients, repeatedly, at different memory addresses."""
    kept = []
    for i in range(times):
        kept.append(torch.empty(1000 * i + 1))
        result = function()
        yield [result.detach(), *torch.autograd.grad(result.sum(), parameters)]


def assert_repeats(function: Callable[[], Tensor], parameters: list[Tensor], times: int) -> None:
    first, *rest = repeated_gradients(function, parameters, times)
    for other in rest:
        for expected, got in zip(first, other, strict=True):
            assert torch.equal(expected, got)


@pytest.mark.slow
@pytest.mark.usefixtures("torch_compile")
def test_a_compiled_embedding_has_the_same_gradient_every_time():
    # Few ids and many rows: threads adding to one row at the same time would soon show.
    embedding, ids = table(5, 64), some_ids(5, 16, 256)
    factors = torch.randn(16, 256, 64, generator=torch.Generator().manual_seed(3))

    @torch.compile(dynamic=False)
    def scaled() -> Tensor:
        return embedding(ids) * factors

    assert_repeats(scaled, [embedding.weight], 40)


@pytest.mark.usefixtures("torch_compile")
@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_a_compiled_training_step_has_the_same_bits_every_time(dtype):
    config = GPTConfig(vocab_size=60, depth=2, width=64, heads=2, sequence_length=128)
    model = GPT(config, compute_dtype=dtype)
    generator = torch.Generator().manual_seed(4)
    model.init_weights(generator)
    for (
        parameter
    ) in model.parameters():  # weights that start at zero would hide the layers before them
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    tokens = some_ids(60, 16, 129)
    compiled = torch.compile(model.loss, dynamic=False)
    parameters = list(model.parameters())
    assert_repeats(lambda: compiled(tokens[:, :-1], tokens[:, 1:], torch.ones(())), parameters, 20)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_embeddings_gradient_is_torchs_on_any_number_of_threads(dtype):
    embedding, ids = table(7, 33, dtype), some_ids(7, 8, 200)
    factors = torch.randn(8, 200, 33, generator=torch.Generator().manual_seed(3), dtype=dtype)
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        (grad,) = torch.autograd.grad((embedding(ids) * factors).sum(), [embedding.weight])
        found.append(grad)
    torch.set_num_threads(1)
    reference = embedding.weight.detach().clone().requires_grad_()
    (expected,) = torch.autograd.grad((F.embedding(ids, reference) * factors).sum(), [reference])
    assert all(torch.equal(grad, expected) for grad in found)
