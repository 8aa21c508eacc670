"""Every backend gives causal windowed attention as a naive float64 loop computes it."""

import functools
import math
import sys
import types
import warnings

import pytest
import torch

from nanochat.gpt import GPT, GPTConfig, attention, block_attention
from nanochat.gpt.attention import Backend
from nanochat.system.errors import ConfigError

CPU = torch.device("cpu")
SDPA = Backend("sdpa", "")


def naive(q, k, v, *, window, scale):
    """Query by query, head by head, in float64."""
    B, T, H, _ = q.shape
    group = H // k.shape[2]
    y = torch.zeros_like(q)
    for b in range(B):
        for h in range(H):
            for i in range(T):
                first = 0 if window is None else max(0, i - window)
                keys, values = k[b, first : i + 1, h // group], v[b, first : i + 1, h // group]
                y[b, i, h] = torch.softmax(keys @ q[b, i, h] * scale, 0) @ values
    return y


def inputs(B, T, H, H_kv, D, dtype=torch.float64, device=CPU):
    generator = torch.Generator().manual_seed(T * 100 + H)
    shapes = [(B, T, H, D), (B, T, H_kv, D), (B, T, H_kv, D), (B, T, H, D)]
    return [
        torch.randn(s, generator=generator, dtype=torch.float64).to(device, dtype) for s in shapes
    ]


@pytest.fixture(params=["sdpa", "blocks", "bounded"])
def attend(request, monkeypatch):
    """Every implementation that runs on a CPU, in blocks of 8 so that short texts have several."""
    monkeypatch.setattr(block_attention, "BLOCK", 8)
    if request.param == "bounded":
        return functools.partial(block_attention.block_attention, score_bound=30.0)
    if request.param == "blocks":
        return block_attention.block_attention
    return functools.partial(attention.attend, backend=SDPA)


@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 10, 15, 16, 17, 23, 24, 25, 33])
@pytest.mark.parametrize("window", [None, 1, 7, 8])
def test_windows_equal_the_naive_loop_at_every_length_around_block_borders(attend, length, window):
    q, k, v, _ = inputs(2, length, 2, 2, 4)
    got = attend(q, k, v, window=window, scale=0.5)
    expected = naive(q, k, v, window=window, scale=0.5)
    assert got.shape == expected.shape
    assert float((got - expected).abs().max()) < 1e-12


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 1), (4, 2), (6, 3)])
@pytest.mark.parametrize("window", [None, 5])
def test_heads_share_keys_in_order(attend, heads, kv_heads, window):
    q, k, v, _ = inputs(2, 17, heads, kv_heads, 4)
    got = attend(q, k, v, window=window, scale=1.0)
    expected = naive(q, k, v, window=window, scale=1.0)
    assert float((got - expected).abs().max()) < 1e-12


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("length", [11, 37])  # 37: several windowed blocks in one product
def test_gradients_equal_those_of_the_naive_loop(attend, length, window):
    *leaves, grad = inputs(1, length, 2, 1, 4)
    results = []
    for function in (naive, attend):
        copies = [x.clone().requires_grad_() for x in leaves]
        y = function(*copies, window=window, scale=0.3)
        results.append(torch.autograd.grad(y, copies, grad))
    for expected, got in zip(*results, strict=True):
        assert float((got - expected).abs().max()) < 1e-12


def test_a_window_that_covers_the_text_is_plain_causal_attention():
    q, k, v, _ = inputs(1, 9, 2, 2, 4)
    full = attention.attend(q, k, v, window=None, scale=1.0, backend=SDPA)
    assert torch.equal(attention.attend(q, k, v, window=8, scale=1.0, backend=SDPA), full)
    assert not torch.equal(attention.attend(q, k, v, window=7, scale=1.0, backend=SDPA), full)


@pytest.mark.parametrize("name", ["sdpa", "blocks"])
def test_half_precision_stays_close_to_float64(name):
    q, k, v, _ = inputs(2, 200, 2, 2, 32)
    scale = 1 / math.sqrt(32)
    expected = naive(q, k, v, window=64, scale=scale)
    half = (x.bfloat16() for x in (q, k, v))
    got = attention.attend(*half, window=64, scale=scale, backend=Backend(name, ""))
    assert got.dtype == torch.bfloat16
    assert float((got - expected).abs().max()) < 0.05


def test_float16_holds_values_whose_sum_over_a_long_text_it_could_not():
    q = k = torch.zeros(1, 1024, 1, 16, dtype=torch.float16)
    v = torch.full_like(q, 100)
    y = attention.attend(q, k, v, window=None, scale=1.0, backend=Backend("blocks", ""))
    torch.testing.assert_close(y, v)


@pytest.mark.parametrize(("name", "dtype"), [("sdpa", torch.float32), ("blocks", torch.bfloat16)])
def test_a_long_text_needs_no_mask_of_its_length_squared(name, dtype):
    q, k, v, _ = inputs(1, 4096, 1, 1, 2, dtype=dtype)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest = max(largest, out.numel())
            return out

    with Watch():
        attention.attend(q, k, v, window=128, scale=1.0, backend=Backend(name, ""))
    assert largest <= 2 * 128 * 4096


def test_the_choice_on_a_cpu_is_reported():
    assert attention.choose("auto", CPU).name == "blocks"
    assert attention.choose("sdpa", CPU).name == "sdpa"
    assert attention.choose("auto", CPU).note.startswith("matrix products in blocks in bfloat16")


def test_a_backend_that_cannot_work_here_is_refused():
    with pytest.raises(
        ConfigError, match="must be one of auto, fa3, varlen, blocks, sdpa, got 'flash'"
    ):
        attention.choose("flash", CPU)
    with pytest.raises(ConfigError, match="'varlen' needs a CUDA device, got cpu"):
        attention.choose("varlen", CPU)


def test_a_gpu_without_windowed_kernels_falls_back_and_warns_once(monkeypatch):
    monkeypatch.setattr(attention, "_why_not", lambda name, device: "broken")
    attention._choose_for_gpu.cache_clear()
    device = torch.device("cuda", 7)
    with pytest.warns(UserWarning, match=r"fa3: broken; varlen: broken.*windows run in blocks"):
        assert attention.choose("auto", device).name == "sdpa"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert attention.choose("auto", device).name == "sdpa"
    with pytest.raises(ConfigError, match="'fa3' does not work here: broken; use 'auto'"):
        attention.choose("fa3", device)
    attention._choose_for_gpu.cache_clear()


def test_flash_attention_3_is_looked_up_before_compiled_code_calls_it(monkeypatch):
    def flash_attn_func(q, k, v, softmax_scale, causal, window_size):
        assert causal
        return attention.attend(
            q, k, v, window=window_size[0], scale=softmax_scale, backend=SDPA
        ), None

    interface = types.SimpleNamespace(flash_attn_func=flash_attn_func)
    hub = types.SimpleNamespace(
        get_kernel=lambda name: types.SimpleNamespace(flash_attn_interface=interface)
    )
    monkeypatch.setitem(sys.modules, "kernels", hub)
    attention._fa3_function.cache_clear()
    backend = attention._backend("fa3")
    attention._fa3_function.cache_clear()
    monkeypatch.delitem(sys.modules, "kernels")  # compiled code finds no import to make
    q, k, v, _ = inputs(1, 9, 2, 2, 4)
    attend = functools.partial(attention.attend, window=4, scale=1.0)
    compiled = torch.compile(attend, backend="eager", fullgraph=True, dynamic=False)
    assert torch.equal(compiled(q, k, v, backend=backend), attend(q, k, v, backend=SDPA))


def test_a_kernel_is_tried_with_gradients_even_where_none_are_kept(monkeypatch):
    tried = []

    def probe(name, device):
        tried.append(torch.is_grad_enabled() and not torch.is_inference_mode_enabled())
        return attention_probe(name, device)

    attention_probe = attention._probe
    monkeypatch.setattr(attention, "_probe", probe)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    attention._why_not.cache_clear()
    with torch.inference_mode():
        assert attention._why_not("sdpa", CPU) is None
    attention._why_not.cache_clear()
    assert tried == [True]


@pytest.mark.parametrize("name", attention.GPU_BACKENDS)
def test_a_model_for_a_gpu_is_built_elsewhere_first(name):
    """A resumed run does so, with the backend it used before."""
    config = GPTConfig(vocab_size=16, sequence_length=8, depth=1, width=8, heads=2)
    model = GPT(config, compute_dtype=torch.float32, attention_backend=name)
    assert model.attention.name == "blocks"
    assert model.attention_backend == name
    model.init_weights(torch.Generator().manual_seed(0))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["fa3", "varlen", "sdpa"])
@pytest.mark.parametrize(("window", "heads", "kv_heads"), [(None, 2, 2), (64, 2, 2), (100, 4, 2)])
def test_gpu_backends_equal_the_naive_loop(name, window, heads, kv_heads):
    device = torch.device("cuda")
    try:
        backend = attention.choose(name, device)
    except ConfigError as error:
        pytest.skip(str(error))
    q, k, v, grad = inputs(2, 300, heads, kv_heads, 64, dtype=torch.bfloat16, device=device)
    results = []
    for chosen, dtype in ((SDPA, torch.float64), (backend, torch.bfloat16)):
        leaves = [x.to("cpu" if dtype == torch.float64 else device, dtype) for x in (q, k, v)]
        leaves = [x.requires_grad_() for x in leaves]
        y = attention.attend(*leaves, window=window, scale=0.125, backend=chosen)
        results.append([y.detach(), *torch.autograd.grad(y, leaves, grad.to(y.device, dtype))])
    for expected, got in zip(*results, strict=True):
        assert float((got.double().cpu() - expected).abs().max()) < 0.06
