"""8-bit products: numerics on the CPU, where torch has a slow version of them."""

import json
import types

import pytest
import torch

from nanochat.gpt import GPT, GPTConfig, fp8
from nanochat.gpt.layers import Linear
from nanochat.stages import base_train
from nanochat.stages.base_train import BaseTrainConfig
from nanochat.system import config
from nanochat.system.errors import ConfigError
from nanochat.training import stage_record


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


class Model(GPT):
    """A model that claims to be on another device."""

    on = torch.device("cuda", 3)

    @property
    def device(self):
        return self.on


def make_model(width):
    config = GPTConfig(vocab_size=128, sequence_length=32, depth=1, width=width)
    with torch.device("meta"):
        return Model(config, compute_dtype=torch.bfloat16)


@pytest.fixture
def capability(monkeypatch):
    def pretend(capability, hip=None, name=""):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(torch.version, "hip", hip)
        properties = types.SimpleNamespace(gcnArchName=name)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)

    return pretend


@pytest.mark.parametrize("found", [(8, 9), (9, 0), (10, 0), (12, 0)])
@pytest.mark.parametrize("wanted", [True, "auto"])
def test_a_wide_model_on_a_gpu_with_fp8_is_converted(capability, found, wanted):
    capability(found)
    model = make_model(fp8.MIN_WIDTH)
    assert fp8.convert(model, wanted) == "fp8 in 6 linears"
    assert sum(isinstance(m, fp8.Fp8Linear) for m in model.modules()) == 6


@pytest.mark.parametrize("found", [(8, 0), (8, 6), (7, 5)])
def test_auto_stays_in_bf16_where_the_gpu_has_no_fp8_and_true_names_the_remedy(capability, found):
    capability(found)
    model = make_model(fp8.MIN_WIDTH)
    assert fp8.convert(model, "auto") == "no fp8 (it needs an Ada, Hopper or newer GPU)"
    with pytest.raises(
        ConfigError, match=r"newer GPU; --fp8 auto \(fp8 = \"auto\" in a preset\) tr"
    ):
        fp8.convert(model, True)
    assert not any(isinstance(m, fp8.Fp8Linear) for m in model.modules())


def test_auto_leaves_narrow_models_alone_and_true_does_not(capability):
    capability((9, 0))
    model = make_model(1280)
    reason = "it pays off from width 1,408, the model has 1,280"
    assert fp8.convert(model, "auto") == f"no fp8 ({reason})"
    assert fp8.convert(model, True) == "fp8 in 6 linears"
    assert fp8.convert(make_model(1536), False) == "no fp8"


@pytest.mark.parametrize(
    ("found", "name", "works"),
    [
        ((9, 4), "gfx942:sramecc+:xnack-", False),  # MI300: e4m3fnuz
        ((9, 0), "gfx90a:sramecc+:xnack-", False),  # MI200: none
        ((9, 5), "gfx950:sramecc+:xnack-", True),  # MI350
        ((12, 0), "gfx1201", True),
        ((11, 0), "gfx1100", False),
    ],
)
def test_an_amd_gpu_has_fp8_only_in_the_formats_used_here(capability, found, name, works):
    capability(found, hip="7.0", name=name)
    reason = fp8.why_not(torch.device("cuda"))
    assert reason is None if works else reason.startswith(f"{name.split(':')[0]} has other")


def test_a_cpu_is_refused_with_the_remedy(monkeypatch):
    model = make_model(fp8.MIN_WIDTH)
    monkeypatch.setattr(Model, "on", torch.device("cpu"))
    with pytest.raises(ConfigError, match=r"the device is cpu; --fp8 auto .* --no-fp8 turns it o"):
        fp8.convert(model, True)
    assert fp8.convert(model, "auto") == "no fp8 (it needs a GPU, the device is cpu)"


def test_the_flag_takes_auto_and_keeps_its_short_forms(capsys):
    def parsed(*args):
        return config.parse(BaseTrainConfig, list(args), stage="base_train").fp8

    assert [parsed(), parsed("--fp8"), parsed("--no-fp8")] == [False, True, False]
    assert parsed("--fp8", "auto", "--depth", "2") == "auto"
    assert parsed("--preset", "speedrun") == "auto"
    assert parsed("--preset", "gpu1", "--depth", "12") == "auto"
    assert parsed("--preset", "speedrun", "--no-fp8") is False
    with pytest.raises(ConfigError, match="--fp8 must be true or false or auto, got 'maybe'"):
        parsed("--fp8", "maybe")


@pytest.mark.parametrize(
    ("started", "wanted", "said", "warns"),
    [
        (None, "auto", "fp8 in 6 linears", False),
        ("fp8 in 6 linears", "auto", "fp8 in 6 linears", False),
        ("no fp8 (old card)", "auto", "no fp8", False),
        ("fp8 in 6 linears", False, "no fp8", True),
    ],
)
def test_a_resumed_run_keeps_to_what_it_started_with(
    capability, tmp_path, started, wanted, said, warns
):
    capability((9, 0))
    if started is not None:
        (tmp_path / "config.json").write_text(json.dumps({"fp8": started}))
    lines = []
    stage = types.SimpleNamespace(
        started_with=stage_record.started_with(tmp_path), log_line=lines.append
    )
    cfg = BaseTrainConfig(fp8=wanted)
    assert base_train.convert_to_fp8(cfg, stage, make_model(fp8.MIN_WIDTH)) == said
    assert bool(lines) == warns


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
