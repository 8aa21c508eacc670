"""The model against a naive implementation; initial values, losses and options."""

import math

import pytest
import torch
import torch.nn.functional as F

from nanochat.gpt import GPT, GPTConfig
from nanochat.gpt.layers import MLP, at_least_fp32, convolved
from nanochat.gpt.parameters import kind_of
from nanochat.system.errors import ConfigError

VOCAB = 53
ABLATIONS = [
    {},
    {"positions": "learned"},
    {"positions": "none"},
    {"rope_base": 500.0},
    {"activation": "gelu"},
    {"activation": "swiglu"},
    {"norm": "rms_weight"},
    {"norm": "layer"},
    {"qk_norm": False},
    {"kv_heads": 2},
    {"kv_heads": 1, "value_embeddings": False},
    {"window_pattern": "L"},
    {"window_pattern": "SL"},
    {"value_embeddings": False},
    {"smear": False},
    {"pairs": 0},
    {"pairs": 2, "smear": False},
    {"convolution": False},
    {"backout": False},
    {"residual_scalars": False},
    {"embedding_norm": False},
    {"tied_head": True},
    {"tied_head": True, "embedding_norm": False},
    {"softcap": None},
    {"depth": 1},
    {"depth": 4},
]


def label(options: dict) -> str:
    return "-".join(f"{name}={value}" for name, value in options.items()) or "default"


def small_config(**options) -> GPTConfig:
    sizes = {"vocab_size": VOCAB, "sequence_length": 160, "depth": 3, "width": 32, "heads": 4}
    return GPTConfig(**(sizes | options))


def make_model(dtype=torch.float64, *, shake: float = 0.0, **options) -> GPT:
    """A model with its initial weights; shake adds noise so that nothing is zero."""
    model = GPT(small_config(**options), compute_dtype=dtype)
    generator = torch.Generator().manual_seed(3)
    model.init_weights(generator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += shake * torch.randn(parameter.shape, generator=generator)
    return model


def some_tokens(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))


def naive_norm(x, kind, weight):
    if kind == "layer":
        x = x - x.mean(-1, keepdim=True)
    x = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    return x if weight is None else x * weight


def naive_rotate(x, position, base):
    """One head vector rotated by its position: pairs (i, i + D / 2) as complex numbers."""
    half = len(x) // 2
    angle = position * base ** (-torch.arange(half, dtype=torch.float64) / half)
    turned = torch.complex(x[:half], x[half:]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([turned.real, turned.imag])


def naive_attention(x, tokens, w, config, layer):
    """Attention of one row (T, C), query by query and head by head."""
    length, D = len(tokens), config.head_dim
    q, k, v = (x @ w[f"blocks.{layer}.attention.{n}.weight"].T for n in "qkv")
    q, k, v = (y.view(length, -1, D) for y in (q, k, v))
    if config.has_value_embedding(layer):
        gate = 3 * torch.sigmoid(x[:, :12] @ w[f"blocks.{layer}.attention.value_gate.weight"].T)
        table = w[f"value_embeddings.{layer}.weight"]
        v = v + gate[:, :, None] * table[tokens].view(v.shape)
    if config.qk_norm:
        kind = "rms"
        prefix = f"blocks.{layer}.attention."
        q = 1.2 * naive_norm(q, kind, w.get(prefix + "q_norm.weight"))
        k = 1.2 * naive_norm(k, kind, w.get(prefix + "k_norm.weight"))
    if config.positions == "rope":
        q, k = (
            torch.stack([torch.stack([naive_rotate(h, t, config.rope_base) for h in y[t]])
                         for t in range(length)])
            for y in (q, k)
        )  # fmt: skip
    out = torch.zeros(length, config.heads, D, dtype=x.dtype)
    window = config.windows[layer]
    for t in range(length):
        first = 0 if window is None else max(0, t - window)
        for h in range(config.heads):
            shared = h * config.kv_heads // config.heads
            scores = k[first : t + 1, shared] @ q[t, h] / math.sqrt(D)
            out[t, h] = torch.softmax(scores, 0) @ v[first : t + 1, shared]
    return out.view(length, -1) @ w[f"blocks.{layer}.attention.out.weight"].T


def naive_convolution(x, weights):
    rows = [
        x[t] + sum(w * x[t - back] for back, w in enumerate(weights) if back <= t)
        for t in range(len(x))
    ]
    return torch.stack(rows)


def naive_mlp(x, w, config, layer):
    prefix = f"blocks.{layer}.mlp."
    h = x @ w[prefix + "up.weight"].T
    if config.activation == "swiglu":
        h = F.silu(x @ w[prefix + "gate.weight"].T) * h
    else:
        h = h.clamp(min=0) ** 2 if config.activation == "relu2" else F.gelu(h)
    return h @ w[prefix + "down.weight"].T


def naive_logits(model: GPT, tokens: torch.Tensor) -> torch.Tensor:
    """Logits (T, V) of one row of tokens, computed from the weights alone."""
    config, w = model.config, {n: p.detach() for n, p in model.named_parameters()}
    x = w["embedding.weight"][tokens].clone()
    if config.pair_rows:
        table, before = w["pair_embedding.weight"], config.vocab_size
        for t, token in enumerate(tokens.tolist()):
            mixed = (token * 0x4F1BBCDD) ^ (before * 0x2545F491)
            mixed ^= mixed >> 15
            sign, row = divmod(mixed % (2 * len(table)), len(table))
            x[t, : config.width // 2] += (1 - 2 * sign) * table[row]
            before = token
    if config.positions == "learned":
        x = x + w["position_embedding.weight"][: len(tokens)]
    if config.embedding_norm:
        x = naive_norm(x, config.norm, w.get("embedding_norm.weight"))
    if config.smear:
        gate = torch.sigmoid(x[:, :24] @ w["smear_gate.weight"].T) * w["smear_scale"]
        x = torch.cat([x[:1], x[1:] + gate[1:] * x[:-1]])
    x0 = x
    for layer in range(config.depth):
        if config.residual_scalars:
            x = w["residual_scales"][layer] * x + w["x0_scales"][layer] * x0
        prefix = f"blocks.{layer}."
        h = naive_norm(x, config.norm, w.get(prefix + "attention_norm.weight"))
        if config.convolution:
            h = naive_convolution(h, w[prefix + "convolution"])
        x = x + naive_attention(h, tokens, w, config, layer)
        h = naive_norm(x, config.norm, w.get(prefix + "mlp_norm.weight"))
        x = x + naive_mlp(h, w, config, layer)
        if layer == config.depth // 2:
            middle = x
    if config.backout:
        x = x - w["backout_scale"] * middle
    x = naive_norm(x, config.norm, w.get("final_norm.weight"))
    logits = x @ w["embedding.weight" if config.tied_head else "head.weight"].T
    return logits if config.softcap is None else config.softcap * (logits / config.softcap).tanh()


@pytest.mark.parametrize("options", ABLATIONS, ids=label)
def test_logits_equal_the_naive_model(options):
    length = 140 if "S" in options.get("window_pattern", "") else 12
    model = make_model(shake=0.3, **options)
    tokens = some_tokens(1, length)
    got = model(tokens)[0].detach()
    expected = naive_logits(model, tokens[0])
    assert got.dtype == torch.float64
    assert float((got - expected).abs().max()) < 1e-10


@pytest.mark.parametrize("activation", ["relu2", "gelu", "swiglu"])
def test_the_gradient_of_an_mlp_is_that_of_finite_differences(activation):
    mlp = MLP(small_config(activation=activation), torch.float64)
    for parameter in mlp.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    width = mlp.up.weight.shape[1]
    assert torch.autograd.gradcheck(mlp, torch.randn(3, width).double().requires_grad_())


@pytest.mark.parametrize("options", ABLATIONS, ids=label)
def test_a_token_changes_no_earlier_output(options):
    model = make_model(shake=0.3, **options)
    tokens = some_tokens(1, 20)
    changed = tokens.clone()
    changed[0, 11] = (changed[0, 11] + 1) % VOCAB
    before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :11], after[:, :11])
    assert not torch.equal(before[:, 11], after[:, 11])
    if options.get("positions") != "none":
        assert not torch.equal(before[:, 19], after[:, 19])


@pytest.mark.parametrize("options", ABLATIONS, ids=label)
def test_every_switch_trains(options):
    model = make_model(torch.float32, **options)
    tokens = some_tokens(2, 33)
    losses = []
    for _ in range(4):
        loss = model.loss(tokens[:, :-1], tokens[:, 1:], torch.tensor(1 / 64))
        loss.backward()
        losses.append(loss.item())
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                assert parameter.grad is not None, name
                parameter -= 0.1 * parameter.grad / (parameter.grad.norm() + 1e-6)
                parameter.grad = None
    assert abs(losses[0] - math.log(VOCAB)) < 0.8
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("options", ABLATIONS, ids=label)
def test_every_parameter_gets_its_initial_value_also_from_the_meta_device(options):
    with torch.device("meta"):
        model = GPT(small_config(**options), compute_dtype=torch.float32)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
    model.init_weights(torch.Generator().manual_seed(3))
    expected = dict(make_model(torch.float32, **options).named_parameters())
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, expected[name]), name
    tokens = some_tokens(1, 9)
    assert torch.equal(model(tokens), make_model(torch.float32, **options)(tokens))


def test_initial_values_follow_the_recipe():
    model = make_model(torch.float32, width=256, heads=2, vocab_size=4000)
    w = dict(model.named_parameters())
    unit = 256**-0.5
    for name, std in (
        ("embedding.weight", 0.8),
        ("head.weight", 0.001),
        ("value_embeddings.2.weight", unit),
        ("blocks.0.attention.q.weight", unit),
        ("blocks.1.mlp.up.weight", 0.4 * unit),
        ("blocks.1.mlp.down.weight", 0),
        ("blocks.2.attention.out.weight", 0),
    ):
        assert w[name].std().item() == pytest.approx(std, rel=0.03), name
    assert w["residual_scales"].tolist() == pytest.approx([1.15, 1.10, 1.05])
    assert w["x0_scales"].tolist() == pytest.approx([0.20, 0.125, 0.05])
    assert (w["backout_scale"].item(), w["smear_scale"].item()) == (pytest.approx(0.2), 0)
    gate = w["blocks.0.attention.value_gate.weight"]
    assert 0 <= gate.min().item() <= gate.max().item() <= 0.02


def test_a_parameter_of_no_kind_is_an_error():
    with pytest.raises(AssertionError, match="mystery matches 0 rows"):
        kind_of("mystery")


def test_token_losses_equal_plain_cross_entropy_and_ignore_minus_one():
    model = make_model(shake=0.3)
    tokens, targets = some_tokens(3, 17), some_tokens(3, 17, seed=1)
    targets[0, 5] = targets[2] = -1
    expected = F.cross_entropy(
        model(tokens).flatten(0, 1), targets.flatten(), ignore_index=-1, reduction="none"
    )
    got = model.token_losses(tokens, targets)
    assert got.shape == (3, 17)
    assert (got.flatten() - expected).abs().max().item() < 1e-12
    assert not got[2].any()
    parameters = list(model.parameters())
    weights = torch.rand(3, 17, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    loss = model.loss(tokens, targets, weights)
    torch.testing.assert_close(loss, expected @ weights.flatten(), rtol=1e-12, atol=1e-10)
    for a, b in zip(
        torch.autograd.grad(loss, parameters),
        torch.autograd.grad(expected @ weights.flatten(), parameters),
        strict=True,
    ):
        assert float((a - b).abs().max()) < 1e-10


def test_half_precision_losses_and_gradients_are_near_those_of_float64():
    tokens, targets = some_tokens(2, 40), some_tokens(2, 40, seed=1)
    results = []
    for dtype in (torch.float64, torch.bfloat16):
        model = make_model(dtype, shake=0.1)
        losses = model.token_losses(tokens, targets)
        model.loss(tokens, targets, torch.tensor(1 / targets.numel())).backward()
        results.append((losses, model.blocks[1].attention.v.weight.grad))
    (exact, exact_grad), (losses, grad) = results
    assert (losses.dtype, grad.dtype) == (torch.float32, torch.float32)
    assert float((losses - exact).abs().mean()) < 0.03
    assert float((grad - exact_grad).norm() / exact_grad.norm()) < 0.05


def test_float64_is_never_lowered():
    model = make_model(torch.float64)
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    tokens = some_tokens(1, 9)
    assert model.hidden(tokens).dtype == model(tokens).dtype == torch.float64
    assert model.token_losses(tokens, tokens).dtype == torch.float64
    assert model.loss(tokens, tokens, torch.ones(())).dtype == torch.float64
    assert at_least_fp32(torch.ones(1, dtype=torch.float64)).dtype == torch.float64
    assert at_least_fp32(torch.ones(1, dtype=torch.bfloat16)).dtype == torch.float32


def test_a_state_dict_turns_a_model_on_the_meta_device_into_a_real_one():
    model = make_model(torch.float32, shake=0.2)
    with torch.device("meta"):
        other = GPT(model.config, compute_dtype=torch.float32)
    other.load_state_dict(model.state_dict(), assign=True)
    tokens = some_tokens(1, 30)
    assert torch.equal(other(tokens), model(tokens))


def compiled_and_plain(model: GPT, backend: str) -> None:
    """Loss and gradients of the compiled model equal those of the plain one."""
    tokens, targets = some_tokens(2, 140), some_tokens(2, 140, seed=1)
    targets[0, :9] = -1
    torch.compiler.reset()
    compiled = torch.compile(model.loss, fullgraph=True, dynamic=False, backend=backend)
    results = []
    for function in (model.loss, compiled):
        loss = function(tokens, targets, torch.ones(()))
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        results.append([loss.detach(), *gradients])
    for expected, got in zip(*results, strict=True):
        assert float((got - expected).abs().max()) < 1e-4 * max(1, float(expected.abs().max()))


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{}, {"kv_heads": 2, "norm": "rms_weight", "tied_head": True, "positions": "learned"}],
    ids=label,
)
def test_the_loss_is_a_single_graph(options):
    compiled_and_plain(make_model(torch.float32, shake=0.1, depth=2, **options), "aot_eager")


@pytest.mark.slow
@pytest.mark.usefixtures("torch_compile")
def test_the_compiled_loss_and_gradients_equal_the_plain_ones():
    model = make_model(torch.float32, shake=0.1, depth=1)
    compiled_and_plain(model, "inductor")


def gradients(model: GPT, loss) -> dict[str, torch.Tensor]:
    """Gradients of every parameter by name; the model keeps none."""
    tokens = some_tokens(3, 96)
    loss(tokens, tokens.roll(-1, 1), torch.ones(())).backward()
    found = {name: p.grad for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = None
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"tied_head": True, "residual_scalars": False}], ids=label)
def test_layers_computed_again_give_the_same_gradients_bit_for_bit_and_each_once(dtype, options):
    model = make_model(dtype, shake=0.05, **options)
    kept = gradients(model, model.loss)
    fired = []
    for name, parameter in model.named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda _, name=name: fired.append(name))
    model.checkpoint_activations = True
    again = gradients(model, model.loss)
    assert sorted(fired) == sorted(kept)
    assert all(torch.equal(again[name], gradient) for name, gradient in kept.items())


def test_layers_are_computed_again_for_gradients_only(monkeypatch):
    model = make_model(torch.float32)
    model.checkpoint_activations = True
    calls = []
    layer = GPT._layer
    monkeypatch.setattr(GPT, "_layer", lambda self, *a: calls.append(a[0]) or layer(self, *a))
    tokens = some_tokens(1, 8)
    with torch.no_grad():
        model.token_losses(tokens, tokens)
    assert calls == [0, 1, 2]
    model.loss(tokens, tokens, torch.ones(())).backward()
    assert calls == [0, 1, 2, 0, 1, 2, 2, 1, 0]


@pytest.mark.slow
@pytest.mark.usefixtures("torch_compile")
def test_layers_computed_again_give_the_same_gradients_compiled():
    model = make_model(torch.float32, shake=0.05)
    kept = gradients(model, model.loss)
    model.checkpoint_activations = True
    torch._dynamo.reset()
    again = gradients(model, torch.compile(model.loss, dynamic=False, fullgraph=True))
    for name, gradient in kept.items():
        assert torch.allclose(again[name], gradient, rtol=1e-3, atol=1e-5), name


def test_a_text_beyond_the_last_position_is_refused():
    for positions, limit in (("learned", 160), ("rope", 1280)):
        model = make_model(torch.float32, positions=positions)
        with pytest.raises(
            ConfigError, match=f"{limit + 1} tokens exceeds the model's {limit} pos"
        ):
            model.hidden(some_tokens(1, limit + 1))


@pytest.mark.parametrize("length", [1, 3, 7])
def test_the_gradients_of_a_convolution_are_those_of_its_definition(length):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, length, 5, dtype=torch.float64, generator=generator, requires_grad=True)
    weights = torch.randn(4, 5, dtype=torch.float64, generator=generator, requires_grad=True)
    expected = torch.stack([naive_convolution(row, weights) for row in x])
    found = convolved(x, weights)
    torch.testing.assert_close(found, expected)
    share = torch.randn(expected.shape, dtype=torch.float64, generator=generator)
    wanted = torch.autograd.grad(expected, (x, weights), share)
    for mine, other in zip(torch.autograd.grad(found, (x, weights), share), wanted, strict=True):
        torch.testing.assert_close(mine, other)
