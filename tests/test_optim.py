"""The optimizer against simple references and against torch's own optimizers."""

import copy
import math

import pytest
import torch
from torch import Tensor

from nanochat import optim
from nanochat.gpt import GPT, GPTConfig
from nanochat.gpt.parameters import kind_of
from nanochat.optim import OptimConfig, muon
from nanochat.optim.adamw import AdamWSettings, adamw_update
from nanochat.optim.muon import MuonRecipe, muon_update, polar_express
from nanochat.optim.schedules import StepSettings
from nanochat.system.distributed import single_run
from nanochat.system.errors import CheckpointError

F64 = torch.float64
SHAPES = [(12, 12), (24, 8), (8, 24)]


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def tiny_model(dtype: torch.dtype = F64, **changes) -> GPT:
    options = {"vocab_size": 67, "sequence_length": 16, "depth": 2, "width": 32, "heads": 2}
    model = GPT(GPTConfig(**{**options, **changes}), compute_dtype=dtype)
    model.init_weights(torch.Generator().manual_seed(1))
    return model


def build(model: GPT, config: OptimConfig) -> optim.MuonAdamW:
    return optim.build(model, config, single_run(), tokens_per_step=4096)


def tokens(step: int, vocab: int = 67) -> Tensor:
    return torch.randint(0, vocab, (4, 17), generator=torch.Generator().manual_seed(step))


def mean_loss(model: GPT, batch: Tensor) -> Tensor:
    inputs, targets = batch[:, :-1], batch[:, 1:]
    return model.loss(inputs, targets, torch.tensor(1 / targets.numel(), dtype=torch.float64))


def backward(model: GPT, optimizer: optim.MuonAdamW, step: int) -> Tensor:
    batch = tokens(step)
    with optimizer.accumulate(last=True):
        loss = mean_loss(model, batch)
        loss.backward()
    return loss.detach()


def train(model: GPT, optimizer: optim.MuonAdamW, steps: range) -> None:
    for step in steps:
        backward(model, optimizer, step)
        optimizer.step(StepSettings(lr_scale=0.2))


# AdamW


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_adamw_equals_torch_optim_adamw(dtype):
    shapes = [(5, 7), (11,), (2, 3, 4)]
    ours = [randn(*s, seed=i, dtype=dtype) for i, s in enumerate(shapes)]
    theirs = [torch.nn.Parameter(w.clone()) for w in ours]
    first, second = ([torch.zeros_like(w) for w in ours] for _ in range(2))
    settings = AdamWSettings(lr=0.03, beta1=0.8, beta2=0.96, weight_decay=0.1, eps=1e-8)
    reference = torch.optim.AdamW(
        theirs, lr=0.03, betas=(0.8, 0.96), eps=1e-8, weight_decay=0.1, foreach=False, fused=False
    )
    for step in range(30):
        grads = [randn(*s, seed=100 * step + i, dtype=dtype) for i, s in enumerate(shapes)]
        for parameter, grad in zip(theirs, grads, strict=True):
            parameter.grad = grad.clone()
        reference.step()
        adamw_update(ours, grads, first, second, steps_done=step, settings=settings)
    tolerance = 1e-13 if dtype == F64 else 1e-5
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other.detach(), rtol=tolerance, atol=tolerance)


# Muon


def naive_polar(matrix: Tensor) -> Tensor:
    """The composed polynomials applied to the singular values themselves."""
    u, s, vt = torch.linalg.svd(matrix / (matrix.norm() * 1.02 + 1e-15), full_matrices=False)
    for a, b, c in muon.POLAR_EXPRESS:
        s = a * s + b * s**3 + c * s**5
    return u @ torch.diag(s) @ vt


def naive_muon(w, g, m, v, *, lr, beta, decay, recipe):
    """One matrix, one step, as the papers write it down. Returns new w, m, v."""
    rows, columns = w.shape
    m = beta * m + (1 - beta) * g
    u = (1 - beta) * g + beta * m if recipe.nesterov else m.clone()
    if recipe.row_equilibration:
        u = torch.stack([row / row.norm() for row in u])
    u = naive_polar(u)
    if recipe.renormalize:
        u = u / u.norm() * min(rows, columns) ** 0.5
    if recipe.variance_beta is not None:
        before = u.norm()
        mean = (u**2).mean(dim=1 if rows >= columns else 0, keepdim=True)
        v = recipe.variance_beta * v + (1 - recipe.variance_beta) * mean
        u = u / v.sqrt()
        u = u * before / u.norm()
    lr = lr * max(1, rows / columns) ** 0.5
    mask = (u * w > 0) if recipe.cautious_decay else torch.ones_like(w)
    return w - lr * u - lr * decay * w * mask, m, v


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("recipe", [MuonRecipe(), muon.PLAIN, MuonRecipe(nesterov=False)])
def test_muon_on_a_stack_equals_a_naive_reference_matrix_by_matrix(shape, recipe):
    stack = randn(3, *shape)
    momentum = torch.zeros_like(stack)
    variance = stack.new_zeros(3, *muon.variance_shape(*shape))
    expected = [(stack[i], momentum[i], variance[i]) for i in range(3)]
    for step in range(6):
        grads = randn(3, *shape, seed=step + 1)
        expected = [
            naive_muon(w, g, m, v, lr=0.02, beta=0.9, decay=0.3, recipe=recipe)
            for (w, m, v), g in zip(expected, grads, strict=True)
        ]
        muon_update(
            stack,
            grads,
            momentum,
            variance,
            lr=0.02,
            momentum_beta=0.9,
            weight_decay=0.3,
            recipe=recipe,
            polar_dtype=F64,
        )
    for i, (w, m, v) in enumerate(expected):
        torch.testing.assert_close(stack[i], w, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(momentum[i], m, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(variance[i], v, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_plain_muon_equals_torch_optim_muon_with_its_polynomial(shape, monkeypatch):
    monkeypatch.setattr(muon, "POLAR_EXPRESS", ((3.4445, -4.7750, 2.0315),) * 5)
    monkeypatch.setattr(muon, "POLAR_SAFETY", 1.0)
    weights = randn(1, *shape, dtype=torch.float32)
    parameter = torch.nn.Parameter(weights[0].clone())
    reference = torch.optim.Muon([parameter], lr=0.1, weight_decay=0.0, momentum=0.9)
    momentum, variance = torch.zeros_like(weights), torch.zeros(1, 1, 1)
    for step in range(3):
        grads = randn(1, *shape, seed=step + 1, dtype=torch.float32)
        parameter.grad = grads[0].clone()
        reference.step()
        muon_update(
            weights,
            grads,
            momentum,
            variance,
            lr=0.1,
            momentum_beta=0.9,
            weight_decay=0.0,
            recipe=muon.PLAIN,
            polar_dtype=torch.bfloat16,
        )
    # Both round to bf16, at different places.
    torch.testing.assert_close(weights[0], parameter.detach(), rtol=0, atol=6e-3)


@pytest.mark.parametrize("shape", [(32, 96), (256, 64), (128, 512)])
def test_values_far_below_the_largest_stay_bounded_in_bfloat16(shape):
    """The Gram matrix of a pair of polynomials is followed in bf16, which loses small values."""
    u, _, vt = torch.linalg.svd(randn(*shape), full_matrices=False)
    for smallest in (-2, -3, -5):
        values = torch.logspace(0, smallest, u.shape[1], dtype=F64)
        found = polar_express((u @ torch.diag(values) @ vt)[None], torch.bfloat16)[0]
        assert torch.linalg.svdvals(found.double()).max() < 1.2


@pytest.mark.parametrize("shape", [(64, 64), (96, 32), (32, 96)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, F64])
def test_polar_express_brings_singular_values_near_one_and_keeps_the_vectors(shape, dtype):
    u, _, vt = torch.linalg.svd(randn(*shape), full_matrices=False)
    values = torch.logspace(0, -2, u.shape[1], dtype=F64)
    found = polar_express((u @ torch.diag(values) @ vt)[None], dtype)[0]
    assert found.dtype == dtype
    within = u.mT @ found.double() @ vt.mT
    slack = 0.06 if dtype == torch.bfloat16 else 1e-3
    assert within.diagonal().min() > 0.858 - slack
    assert within.diagonal().max() < 1.142 + slack
    assert (within - torch.diag(within.diagonal())).abs().max() < slack


@pytest.mark.parametrize("shape", [(20, 30), (20, 50), (80, 20)])
def test_polar_express_in_float64_is_exact_to_float64(shape):
    matrix = randn(*shape)
    found = polar_express(matrix[None], F64)[0]
    torch.testing.assert_close(found, naive_polar(matrix), rtol=0, atol=1e-13)


@pytest.mark.usefixtures("torch_compile")
def test_compiled_steps_equal_plain_ones_and_their_schedule_makes_no_other_program():
    from torch._dynamo.utils import counters  # a slow import, which the other tests do not need

    torch._dynamo.reset()
    made, found = [], []
    for compile_it in (False, True):
        model = tiny_model()
        optimizer = build(model, OptimConfig(matrix_lr=0.1, weight_decay=0.3))
        if compile_it:
            optimizer.compile()
        for step in range(6):
            backward(model, optimizer, step)
            optimizer.step(StepSettings(1 / (1 + step), 0.8 + step / 100, 1 - step / 10))
            if compile_it and step in (0, 5):
                made.append(counters["stats"]["unique_graphs"])
        found.append(dict(model.named_parameters()))
    assert made[0] == made[1] > 0
    for name, weights in found[0].items():
        torch.testing.assert_close(found[1][name], weights, rtol=0, atol=2e-5)


def test_zero_gradients_change_no_matrix_and_make_no_nan():
    weights = randn(2, 6, 4, dtype=torch.float32)
    before, momentum = weights.clone(), torch.zeros_like(weights)
    for _ in range(3):
        muon_update(
            weights,
            torch.zeros_like(weights),
            momentum,
            torch.zeros(2, 6, 1),
            lr=0.1,
            momentum_beta=0.9,
            weight_decay=0.5,
            recipe=MuonRecipe(),
            polar_dtype=torch.bfloat16,
        )
    assert torch.equal(weights, before)


def test_cautious_decay_shrinks_only_weights_that_the_update_shrinks_too():
    after = {}
    for decay in (0.0, 0.5):
        weights = randn(1, 8, 8)
        muon_update(
            weights,
            randn(1, 8, 8, seed=9),
            torch.zeros(1, 8, 8, dtype=F64),
            torch.zeros(1, 8, 1, dtype=F64),
            lr=0.01,
            momentum_beta=0.9,
            weight_decay=decay,
            recipe=MuonRecipe(),
            polar_dtype=F64,
        )
        after[decay] = weights
    before = randn(1, 8, 8)
    update = before - after[0.0]
    agrees = update * before > 0
    expected = torch.where(agrees, after[0.0] - 0.01 * 0.5 * before, after[0.0])
    assert 0 < agrees.sum() < agrees.numel()
    torch.testing.assert_close(after[0.5], expected)


# The complete optimizer


ARCHITECTURES = [
    {},
    {"positions": "learned", "norm": "rms_weight", "activation": "swiglu", "tied_head": True},
    {"positions": "none", "norm": "layer", "activation": "gelu", "kv_heads": 1},
    {"qk_norm": False, "value_embeddings": False, "smear": False, "backout": False},
    {"residual_scalars": False, "embedding_norm": False},
]


@pytest.mark.parametrize("changes", ARCHITECTURES)
@pytest.mark.parametrize("matrix_optimizer", ["muon", "plain-muon", "adamw"])
def test_every_parameter_of_every_architecture_is_trained(changes, matrix_optimizer):
    model = tiny_model(**changes)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    config = OptimConfig(matrix_optimizer=matrix_optimizer)
    train(model, build(model, config), range(3))
    for name, p in model.named_parameters():
        assert p.isfinite().all(), name
        assert not torch.equal(p.detach(), before[name]), name


def after_one_step(
    config: OptimConfig, settings: StepSettings
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights and the optimizer's state, by name."""
    model = tiny_model()
    with torch.no_grad():
        for parameter in model.parameters():  # some matrices start at 0, which cannot decay
            parameter.add_(randn(*parameter.shape) * 0.1)
    made = build(model, config)
    backward(model, made, 0)
    made.step(settings)
    return {name: p.detach() for name, p in model.named_parameters()}, made.state_by_name()


@pytest.mark.parametrize("matrix_optimizer", ["muon", "plain-muon", "adamw"])
def test_the_schedule_scales_every_learning_rate(matrix_optimizer):
    half = OptimConfig(lr_scale=0.5, matrix_optimizer=matrix_optimizer)
    expected, _ = after_one_step(half, StepSettings())
    found, _ = after_one_step(
        OptimConfig(matrix_optimizer=matrix_optimizer), StepSettings(lr_scale=0.5)
    )
    assert all(torch.equal(found[name], weights) for name, weights in expected.items())


def test_the_schedule_sets_muons_momentum():
    """After one step it is the gradient times 1 - momentum."""
    short = after_one_step(OptimConfig(), StepSettings(momentum=0.5))[1]
    long = after_one_step(OptimConfig(), StepSettings(momentum=0.75))[1]
    names = [name for name in short if name.endswith(".momentum")]
    assert names
    for name in names:
        torch.testing.assert_close(short[name], 2 * long[name], rtol=1e-12, atol=0)


@pytest.mark.parametrize("matrix_optimizer", ["muon", "plain-muon", "adamw"])
def test_the_schedule_scales_the_decay_of_the_matrices_and_of_nothing_else(matrix_optimizer):
    def trained(weight_decay: float, scale: float) -> dict[str, Tensor]:
        config = OptimConfig(weight_decay=weight_decay, matrix_optimizer=matrix_optimizer)
        return after_one_step(config, StepSettings(weight_decay_scale=scale))[0]

    plain, scaled, none = trained(0.4, 1.0), trained(0.8, 0.5), trained(0.4, 0.0)
    for name, weights in plain.items():
        assert torch.equal(scaled[name], weights), name
        is_matrix = kind_of(name).optimizer_group == "matrix"
        assert torch.equal(none[name], weights) == (not is_matrix), name


def test_learning_rates_follow_the_width_where_they_should():
    model = GPTConfig(depth=3, width=192)
    settings = optim.settings.adamw_settings(OptimConfig(lr_scale=0.5), model, 2**19)
    assert settings["head"].eps == pytest.approx(1e-10)
    assert settings["embedding"].lr == pytest.approx(0.3 * 2 * 0.5)
    assert settings["value_embedding"].lr == pytest.approx(0.15 * 2 * 0.5)
    assert settings["head"].lr == pytest.approx(0.008 * 2 * 0.5)
    assert settings["x0_scale"].lr == pytest.approx(0.5 * 0.5)


def test_epsilon_follows_the_tokens_of_a_step_and_a_tied_embedding_the_head():
    model = GPTConfig(depth=3, width=192, tied_head=True)
    settings = optim.settings.adamw_settings(OptimConfig(), model, 2**14)
    assert settings["head"].eps == pytest.approx(1e-10 * 2**5)
    assert settings["embedding"] == settings["head"]


def test_the_gradient_norm_is_that_of_all_gradients_over_all_micro_batches():
    model = tiny_model()
    optimizer = build(model, OptimConfig())
    for last, step in ((False, 0), (True, 1)):
        with optimizer.accumulate(last=last):
            mean_loss(model, tokens(step)).backward()
    expected = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
    found = optimizer.step(StepSettings())["grad_norm"]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize(
    "where", ["embedding.weight", "blocks.0.mlp.up.weight", "x0_scales", "loss"]
)
def test_a_step_that_is_not_finite_changes_nothing(where, dtype, on_device):
    model = tiny_model(dtype)
    optimizer = build(model, OptimConfig())
    optimizer.checks_finite_on_device = on_device
    train(model, optimizer, range(2))
    weights = copy.deepcopy(model.state_dict())
    state = optimizer.state_by_name()
    loss = backward(model, optimizer, 2)
    broken = dict(model.named_parameters()).get(where)
    if broken is not None:
        broken.grad.view(-1)[-1] = math.inf
    share = torch.stack([loss * math.nan if where == "loss" else loss, torch.ones_like(loss)])
    stats = optimizer.step(StepSettings(), share)
    assert stats["grad_norm"].isfinite() == (where == "loss")
    assert stats["sums"].isnan().tolist() == [where == "loss", False]
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights[name]), name
    for name, value in optimizer.state_by_name().items():
        assert torch.equal(value, state[name]), name


def test_a_flag_on_the_device_leaves_finite_steps_as_they_are():
    models = [tiny_model(torch.float32) for _ in range(2)]
    for model, on_device in zip(models, (False, True), strict=True):
        optimizer = build(model, OptimConfig())
        optimizer.checks_finite_on_device = on_device
        train(model, optimizer, range(3))
        assert optimizer.steps_done == 3
    for mine, theirs in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(mine, theirs)


def test_parameters_without_a_gradient_count_as_having_a_zero_one():
    model = tiny_model()
    optimizer = build(model, OptimConfig())
    before = model.blocks[0].mlp.up.weight.detach().clone()
    with optimizer.accumulate(last=True):
        model.head.weight.square().sum().backward()
    optimizer.step(StepSettings())
    assert torch.equal(model.blocks[0].mlp.up.weight, before)
    assert all(p.isfinite().all() and p.grad is None for p in model.parameters())


def test_training_resumes_exactly_from_a_saved_state():
    model = tiny_model()
    optimizer = build(model, OptimConfig())
    train(model, optimizer, range(4))
    twin = copy.deepcopy(model)
    other = build(twin, OptimConfig())
    other.load_state_by_name(optimizer.state_by_name())
    assert other.steps_done == 4
    train(model, optimizer, range(4, 7))
    train(twin, other, range(4, 7))
    for mine, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_the_state_is_complete_and_by_parameter_name():
    model = tiny_model()
    state = build(model, OptimConfig()).state_by_name()
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    assert shapes["blocks.1.mlp.up.weight.momentum"] == (128, 32)
    assert shapes["blocks.1.mlp.up.weight.variance"] == (128, 1)
    assert shapes["blocks.0.mlp.down.weight.variance"] == (1, 128)
    assert shapes["head.weight.second_moment"] == (67, 32)
    assert len(state) == 2 * len(list(model.parameters())) + 1


def test_a_state_of_another_model_is_refused():
    state = build(tiny_model(), OptimConfig()).state_by_name()
    other = build(tiny_model(vocab_size=70), OptimConfig())
    with pytest.raises(CheckpointError, match=r"embedding\.weight\.first_moment: shape \(67, 32\)"):
        other.load_state_by_name(state)


def test_a_repeated_batch_is_memorized():
    final = {}
    for kind in ("muon", "adamw"):
        model = tiny_model(torch.float32)
        optimizer = build(model, OptimConfig(matrix_optimizer=kind))
        for _ in range(12):
            final[kind] = backward(model, optimizer, 0).item()
            optimizer.step(StepSettings())
    assert final["muon"] < final["adamw"] < 4.0  # from ln(67), 4.2
