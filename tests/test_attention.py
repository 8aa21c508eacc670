"""Every backend gives causal windowed attention as a naive float64 loop computes it."""

import functools
import math
import os
import re
import sys
import types

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
        ConfigError, match="must be one of auto, fa4, fa3, varlen, blocks, sdpa, got 'flash'"
    ):
        attention.choose("flash", CPU)
    with pytest.raises(ConfigError, match="'varlen' needs a CUDA device, got cpu"):
        attention.choose("varlen", CPU)


@pytest.fixture
def gpu(monkeypatch):
    """Pretends to be GPUs: `gpu(major, broken={name: reason})` is a device of a capability.

    Backends that it can run pass their test unless they are in `broken`, or, with
    broken=None, are tried for real.
    """
    attention._choose_for_gpu.cache_clear()
    attention._why_not.cache_clear()

    def pretend(capability, broken=(), hip=None):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(torch.version, "hip", hip)
        monkeypatch.setattr(attention, "_installed", lambda module: True)
        monkeypatch.setattr(attention, "_backend", lambda name: Backend(name, ""))
        monkeypatch.setattr(attention, "_set_torchs_flash", lambda name: None)
        monkeypatch.setattr(attention, "_probe", lambda name, device: dict(broken).get(name))
        return torch.device("cuda", 7)

    yield pretend
    attention._choose_for_gpu.cache_clear()
    attention._why_not.cache_clear()


@pytest.mark.parametrize(
    ("capability", "broken", "name", "passed_over"),
    [
        ((9, 0), {}, "fa4", ""),
        ((10, 0), {}, "fa4", ""),
        ((9, 0), {"fa4": "slow"}, "fa3", "not fa4: slow"),
        ((9, 0), {"fa4": "old", "fa3": "no net"}, "varlen", "not fa4: old; not fa3: no net"),
        ((10, 0), {"fa4": "old"}, "varlen", "not fa4: old"),
        ((12, 0), {}, "varlen", ""),  # RTX 5090
        ((8, 9), {}, "varlen", ""),  # RTX 4090
        ((8, 0), {}, "varlen", ""),  # A100
        ((8, 0), {"varlen": "bad"}, "sdpa", "not varlen: bad"),
        ((7, 5), {}, "sdpa", ""),  # T4
        ((7, 0), {}, "sdpa", ""),  # V100
        ((6, 1), {}, "sdpa", ""),  # GTX 1080
    ],
)
def test_each_gpu_gets_its_fastest_backend_and_says_which_failed(
    gpu, capability, broken, name, passed_over
):
    backend = attention.choose("auto", gpu(capability, broken))
    assert (backend.name, backend.passed_over) == (name, passed_over)


@pytest.mark.parametrize("capability", [(9, 4), (9, 0), (11, 0)])  # MI300, MI200, RX 7900
def test_an_amd_gpu_gets_no_kernel_made_for_hopper(gpu, capability):
    device = gpu(capability, hip="7.0")
    assert attention.choose("auto", device) == Backend("varlen", "")
    for name in ("fa4", "fa3"):
        with pytest.raises(ConfigError, match=f"'{name}' does not work here: it needs an NVIDIA"):
            attention.choose(name, device)


def test_a_backend_that_fails_on_this_gpu_is_refused(gpu):
    with pytest.raises(ConfigError, match="'fa3' does not work here: broken; use 'auto'"):
        attention.choose("fa3", gpu((9, 0), {"fa3": "broken"}))
    with pytest.raises(ConfigError, match="'varlen' does not work here: it needs an Ampere GPU"):
        attention.choose("varlen", gpu((7, 5)))


def test_a_missing_package_is_named_with_its_extra(gpu, monkeypatch):
    device = gpu((9, 0))
    monkeypatch.setattr(attention, "_installed", lambda module: False)
    backend = attention.choose("auto", device)
    assert backend.name == "varlen"
    assert backend.passed_over == (
        "not fa4: the package 'flash-attn-4' is not installed (extra gpu: uv sync --extra gpu); "
        "not fa3: the package 'kernels' is not installed (extra gpu: uv sync --extra gpu)"
    )


def fake_flash(wrong_by=0, forgets_window_backward=False):
    """A kernel in bfloat16 with FlashAttention-3's signature."""

    def flash_attn_func(q, k, v, softmax_scale, causal, window_size):
        assert causal and q.dtype == torch.bfloat16
        window = None if window_size == (-1, -1) else window_size[0] + wrong_by
        attend = functools.partial(attention.attend, scale=softmax_scale, backend=SDPA)
        if not forgets_window_backward:
            return attend(q, k, v, window=window)
        full = attend(q, k, v, window=None)
        return full + (attend(q, k, v, window=window) - full).detach()

    return flash_attn_func


@pytest.mark.parametrize(
    ("kernel", "reason"),
    [
        (fake_flash(), None),
        (fake_flash(wrong_by=-1), "it is wrong by .* on a small problem"),
        (fake_flash(forgets_window_backward=True), "it is wrong by .* on a small problem"),
        (
            lambda q, k, v, **given: fake_flash()(q, k, v, **given) + (v * 0).sqrt(),
            "it is wrong by nan on a small problem",  # only the gradient is
        ),
    ],
)
def test_a_kernel_is_trusted_only_if_its_outputs_and_gradients_are_right(
    monkeypatch, kernel, reason
):
    made = {"fa3": Backend("fa3", "", kernel), "sdpa": SDPA}
    monkeypatch.setattr(attention, "_backend", made.get)
    found = attention._probe("fa3", CPU)
    assert found is None if reason is None else re.fullmatch(reason, found)


def hub(monkeypatch, get_kernel):
    monkeypatch.setitem(sys.modules, "kernels", types.SimpleNamespace(get_kernel=get_kernel))
    attention._fa3_function.cache_clear()


def test_flash_attention_3_is_loaded_from_a_fixed_commit_by_old_and_new_loaders(monkeypatch):
    flash, asked = fake_flash(), []
    interface = types.SimpleNamespace(flash_attn_func=flash)
    nested = types.SimpleNamespace(flash_attn_interface=interface)

    def before_0_14(repo_id, revision=None, version=None, user_agent=None):
        asked.append((repo_id, revision))
        return nested

    def since_0_17(repo_id, *, revision=None, version=None, trust_remote_code=False):
        if revision is None and version is None:
            raise ValueError("A kernel version or revision must be specified")
        if not trust_remote_code:
            raise ValueError("could not verify publisher trust status")
        return before_0_14(repo_id, revision)

    for loader in (before_0_14, since_0_17):
        hub(monkeypatch, loader)
        assert attention._fa3_function() is flash
    attention._fa3_function.cache_clear()
    assert asked == [attention.FA3_KERNELS[0]] * 2
    assert all(re.fullmatch("[0-9a-f]{40}", commit) for _, commit in attention.FA3_KERNELS)


def test_the_second_build_of_flash_attention_3_serves_where_the_first_does_not_fit(monkeypatch):
    flash = fake_flash()

    def get_kernel(repo_id, revision):
        if repo_id == attention.FA3_KERNELS[0][0]:
            raise FileNotFoundError("no build for torch 2.15\nmore lines")
        if flash is None:
            raise OSError("no network")
        return types.SimpleNamespace(flash_attn_func=flash)

    hub(monkeypatch, get_kernel)
    assert attention._fa3_function() is flash
    flash = None
    attention._fa3_function.cache_clear()
    with pytest.raises(
        RuntimeError,
        match=r"^varunneal/flash-attention-3: FileNotFoundError: no build for torch 2.15; "
        r"kernels-community/flash-attn3: OSError: no network$",
    ):
        attention._fa3_function()


def test_without_a_network_the_second_build_is_not_waited_for(monkeypatch):
    asked = []

    class ConnectError(Exception):
        pass

    def get_kernel(repo_id, revision):
        asked.append(repo_id)
        raise ConnectError("Name or service not known")

    hub(monkeypatch, get_kernel)
    with pytest.raises(RuntimeError, match=r"^varunneal/flash-attention-3: ConnectError: N"):
        attention._fa3_function()
    assert len(asked) == 1


def test_flash_attention_3_is_looked_up_before_compiled_code_calls_it(monkeypatch):
    flash = fake_flash()
    interface = types.SimpleNamespace(
        flash_attn_func=lambda *args, **options: (flash(*args, **options), None)
    )
    hub(monkeypatch, lambda name, revision: types.SimpleNamespace(flash_attn_interface=interface))
    backend = attention._backend("fa3")
    attention._fa3_function.cache_clear()
    monkeypatch.delitem(sys.modules, "kernels")  # compiled code finds no import to make
    q, k, v, _ = inputs(1, 9, 2, 2, 8, dtype=torch.bfloat16)
    attend = functools.partial(attention.attend, window=4, scale=1.0)
    compiled = torch.compile(attend, backend="eager", fullgraph=True, dynamic=False)
    assert torch.equal(compiled(q, k, v, backend=backend), attend(q, k, v, backend=SDPA))


def test_torch_calls_flash_attention_4_only_while_it_is_chosen(monkeypatch):
    import torch.nn.attention as torchs

    active = []
    monkeypatch.setattr(torchs._registry, "_FLASH_ATTENTION_IMPLS", {"FA4": lambda: Handle(active)})
    for name, expected in (("varlen", []), ("fa4", [1]), ("fa4", [1]), ("sdpa", []), ("fa3", [])):
        attention._set_torchs_flash(name)
        assert active == expected


@pytest.mark.parametrize(("given", "used"), [(None, "1"), ("0", "0")])
def test_flash_attention_4_compiles_a_kernel_once_for_all_processes(monkeypatch, given, used):
    import torch.nn.attention as torchs

    monkeypatch.setenv(attention.FA4_CACHE, given or "")
    if given is None:
        monkeypatch.delenv(attention.FA4_CACHE)
    found = []

    def register() -> Handle:
        found.append(os.environ.get(attention.FA4_CACHE))
        return Handle([])

    monkeypatch.setattr(torchs._registry, "_FLASH_ATTENTION_IMPLS", {"FA4": register})
    attention._set_torchs_flash("varlen")
    assert found == []
    attention._set_torchs_flash("fa4")
    attention._set_torchs_flash("varlen")
    assert found == [used]


class Handle:
    def __init__(self, active):
        self.remove = active.clear
        active.append(1)


def test_a_kernel_is_tried_with_gradients_even_where_none_are_kept(gpu, monkeypatch):
    tried = []

    def probe(name, device):
        tried.append(torch.is_grad_enabled() and not torch.is_inference_mode_enabled())

    device = gpu((9, 0))
    monkeypatch.setattr(attention, "_probe", probe)
    with torch.inference_mode():
        assert attention._why_not("varlen", device) is None
    assert tried == [True]


@pytest.mark.parametrize("name", ["fa4", "fa3", "varlen"])
@pytest.mark.parametrize(
    ("dtype", "size"), [(torch.float32, 16), (torch.float64, 16), (torch.bfloat16, 12)]
)
@pytest.mark.parametrize("window", [None, 4])
def test_what_flash_attention_does_not_take_is_computed_by_torch(name, dtype, size, window):
    """Their kernels refuse float32 and head sizes that are no multiple of 8."""

    def refuses(*args, **options):
        raise AssertionError("only fp16 and bf16")

    q, k, v, _ = inputs(1, 9, 4, 2, size, dtype=dtype)
    attend = functools.partial(attention.attend, q, k, v, window=window, scale=1.0)
    assert torch.equal(attend(backend=Backend(name, "", refuses)), attend(backend=SDPA))


def test_without_flash_attention_a_gpu_gets_no_grouped_heads(monkeypatch):
    """torch would store all T x T scores: its other kernels do not take them."""
    from torch._subclasses import FakeTensorMode

    calls = []

    def watch(q, k, v, **options):
        calls.append((q.shape[1], k.shape[1], options["enable_gqa"]))
        return torch.empty_like(q)

    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", watch)
    flash, plain = Backend("fa4", ""), SDPA
    with FakeTensorMode():
        for backend, dtype, window in (
            (plain, torch.float16, None),
            (plain, torch.float16, 4),
            (flash, torch.float32, 4),
            (flash, torch.bfloat16, None),
        ):
            shapes = [(1, 16, heads, 8) for heads in (4, 2, 2)]
            q, k, v = (torch.empty(shape, dtype=dtype, device="cuda") for shape in shapes)
            attention.attend(q, k, v, window=window, scale=1.0, backend=backend)
    assert calls == [(4, 4, False)] * 5 + [(4, 2, True)]


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
@pytest.mark.parametrize("name", ["fa4", "fa3", "varlen", "sdpa"])
@pytest.mark.parametrize(("window", "heads", "kv_heads"), [(None, 2, 2), (64, 2, 2), (100, 4, 2)])
@pytest.mark.parametrize("given", [torch.bfloat16, torch.float16, torch.float32])
def test_gpu_backends_equal_the_naive_loop(name, window, heads, kv_heads, given):
    device = torch.device("cuda")
    try:
        backend = attention.choose(name, device)
    except ConfigError as error:
        pytest.skip(str(error))
    if given == torch.bfloat16 and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("this GPU has no bfloat16")
    q, k, v, grad = inputs(2, 300, heads, kv_heads, 64, dtype=given, device=device)
    results = []
    for chosen, dtype in ((SDPA, torch.float64), (backend, given)):
        leaves = [x.to("cpu" if dtype == torch.float64 else device, dtype) for x in (q, k, v)]
        leaves = [x.requires_grad_() for x in leaves]
        y = attention.attend(*leaves, window=window, scale=0.125, backend=chosen)
        results.append([y.detach(), *torch.autograd.grad(y, leaves, grad.to(y.device, dtype))])
    for expected, got in zip(*results, strict=True):
        assert float((got.double().cpu() - expected).abs().max()) < 0.06
