"""8-bit products: numerics on the CPU, where torch has a slow version of them."""

import pytest
import torch

from nanochat.gpt import GPT, GPTConfig, fp8
from nanochat.gpt.layers import Linear
from nanochat.system.errors import ConfigError


def relative_error(got, expected):
    return float((got.float() - expected).norm() / expected.norm())


def make_linear(inputs: int, outputs: int) -> Linear:
    linear = Linear(inputs, outputs, torch.float32)
    generator = torch.Generator().manual_seed(1)
    torch.nn.init.normal_(linear.weight, std=inputs**-0.5, generator=generator)
    return linear


def test_quantized_values_use_the_full_range_and_stay_close():
    x = torch.randn(64, 128, generator=torch.Generator().manual_seed(0)) * 1e-3
    for dtype, bound in ((torch.float8_e4m3fn, 0.04), (torch.float8_e5m2, 0.08)):
        x8, factor = fp8.quantize(x, dtype)
        assert float(x8.float().abs().max()) == torch.finfo(dtype).max
        assert relative_error(x8.float() * factor, x) < bound


def test_a_tensor_of_zeros_stays_zero():
    x8, factor = fp8.quantize(torch.zeros(16, 16), torch.float8_e4m3fn)
    assert torch.isfinite(factor)
    assert not x8.float().any()


def test_output_and_gradients_are_close_to_those_of_the_plain_linear():
    linear = make_linear(128, 256)
    converted = fp8.Fp8Linear(linear)
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(4, 32, 128, generator=generator).requires_grad_()
    grad = torch.randn(4, 32, 256, generator=generator)
    results = []
    for layer in (linear, converted):
        y = layer(x)
        results.append([y.detach(), *torch.autograd.grad(y, (x, layer.weight), grad)])
    for expected, got in zip(*results, strict=True):
        assert got.shape == expected.shape
        assert got.dtype == expected.dtype
        assert 0 < relative_error(got, expected) < 0.08


def test_disabled_computes_exactly_as_the_plain_linear():
    linear = make_linear(128, 128)
    model = torch.nn.Sequential(linear)
    x = torch.randn(32, 128, generator=torch.Generator().manual_seed(3))
    expected = linear(x)
    assert fp8.swap(model) == 1
    assert not torch.equal(model(x), expected)
    with fp8.disabled(model):
        assert torch.equal(model(x), expected)
    assert not torch.equal(model(x), expected)


def test_rows_that_the_hardware_cannot_take_run_as_a_plain_linear():
    linear = make_linear(128, 128)
    x = torch.randn(17, 128, generator=torch.Generator().manual_seed(3))
    assert torch.equal(fp8.Fp8Linear(linear)(x), linear(x))


@pytest.mark.parametrize(
    ("inputs", "outputs", "expected"), [(128, 256, 1), (64, 256, 0), (136, 256, 0), (12, 2, 0)]
)
def test_only_linears_of_fitting_sizes_are_converted(inputs, outputs, expected):
    assert fp8.swap(torch.nn.Sequential(make_linear(inputs, outputs))) == expected


def test_a_converted_model_has_the_same_parameters_and_trains():
    config = GPTConfig(vocab_size=128, sequence_length=32, depth=1, width=128, heads=1)
    model = GPT(config, compute_dtype=torch.float32)
    model.init_weights(torch.Generator().manual_seed(0))
    before = dict(model.named_parameters())
    assert fp8.swap(model) == 6  # q, k, v, out, up, down; gates and the head, whose size fits, stay
    after = dict(model.named_parameters())
    assert list(before) == list(after)
    assert all(before[name] is after[name] for name in before)
    tokens = torch.randint(64, (2, 32), generator=torch.Generator().manual_seed(1))
    losses = []
    for _ in range(5):
        loss = model.loss(tokens, tokens, torch.tensor(1 / tokens.numel()))
        loss.backward()
        losses.append(loss.item())
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.1 * parameter.grad
                parameter.grad = None
    assert losses[-1] < losses[0]


def test_a_cpu_is_refused_with_the_remedy():
    model = torch.nn.Sequential(make_linear(128, 128))
    with pytest.raises(ConfigError, match=r"the device is cpu; leave --fp8 off"):
        fp8.convert(model)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_fp8_on_the_gpu_is_close_to_bf16():
    device = torch.device("cuda")
    if fp8.why_not(device):
        pytest.skip(fp8.why_not(device))
    linear = make_linear(256, 512).to(device)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 256, generator=generator).to(device, torch.bfloat16).requires_grad_()
    grad = torch.randn(64, 512, generator=generator).to(device, torch.bfloat16)
    results = []
    for layer in (linear, fp8.Fp8Linear(linear)):
        y = layer(x)
        results.append([y.detach(), *torch.autograd.grad(y, (x, linear.weight), grad)])
    for expected, got in zip(*results, strict=True):
        assert got.dtype == expected.dtype
        assert 0 < relative_error(got, expected.float()) < 0.08
