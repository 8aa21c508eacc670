"""The decoder computes what the model computes, for every option of the architecture."""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from nanochat.engine.decode_step import FixedView, Shape
from nanochat.engine.kv_cache import KVCache
from nanochat.gpt import GPT, GPTConfig, products
from nanochat.gpt.decoder import Decoder
from nanochat.gpt.products import product, quantize

VOCAB = 61
OPTIONS = [
    {},
    {"window_pattern": "L", "kv_heads": 1},
    {"kv_heads": 2, "positions": "learned", "norm": "layer", "activation": "gelu"},
    {"kv_heads": 2, "norm": "rms_weight", "activation": "swiglu"},
    {"positions": "none", "norm": "rms_weight", "tied_head": True, "smear": False},
    {"positions": "learned", "embedding_norm": False, "norm": "layer", "tied_head": True},
    {"qk_norm": False, "value_embeddings": False, "backout": False, "residual_scalars": False},
    {"qk_norm": False, "embedding_norm": False, "softcap": None, "heads": 3, "width": 60},
    {"depth": 1, "norm": "rms_weight", "positions": "learned", "smear": True},
    {"pairs": 0},
    {"pairs": 1, "embedding_norm": False},
    {"convolution": False},
]


def shaken_model(dtype=torch.float32, seed=5, **options) -> GPT:
    """A model whose parameters are all random, so that each of them changes the logits."""
    sizes = {"depth": 3, "width": 64, "heads": 4, "window": 20} | options
    config = GPTConfig(vocab_size=VOCAB, sequence_length=96, **sizes)
    model = GPT(config, compute_dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    model.init_weights(generator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model.requires_grad_(False)


def some_tokens(rows: int, length: int) -> torch.Tensor:
    return torch.randint(VOCAB, (rows, length), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(o) or "default")
def test_logits_equal_the_models(options):
    tokens = some_tokens(3, 70)
    for dtype, tolerance in ((torch.float64, 1e-11), (torch.float32, 1e-4)):
        model = shaken_model(dtype, **options)
        got = model.for_inference(dtype)(tokens)
        assert got.dtype == dtype
        assert float((got - model(tokens)).abs().max()) < tolerance


@pytest.mark.parametrize("options", OPTIONS[:4], ids=lambda o: "-".join(o) or "default")
def test_bfloat16_is_nearer_to_the_exact_logits_than_the_model_in_bfloat16(options):
    tokens = some_tokens(3, 70)
    exact = shaken_model(torch.float32, **options)(tokens)
    model = shaken_model(torch.bfloat16, **options)
    own = float((model(tokens) - exact).abs().mean())
    got = model.for_inference(torch.bfloat16)(tokens)
    assert got.dtype == torch.float32
    assert float((got - exact).abs().mean()) < 1.1 * own


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(o) or "default")
def test_the_operations_of_a_gpu_compute_the_same(options):
    tokens = some_tokens(3, 70)
    for dtype, tolerance in ((torch.float64, 1e-11), (torch.float32, 1e-4)):
        model = shaken_model(dtype, **options)
        decoder = model.for_inference(dtype)
        decoder.use_operations_of("cuda")
        assert float((decoder(tokens) - model(tokens)).abs().max()) < tolerance
    exact = shaken_model(torch.float32, **options)(tokens)
    model = shaken_model(torch.bfloat16, **options)
    decoder = model.for_inference(torch.bfloat16)
    decoder.use_operations_of("cuda")
    own = float((model(tokens) - exact).abs().mean())
    assert float((decoder(tokens) - exact).abs().mean()) < 1.2 * own


class Operations(TorchDispatchMode):
    """Counts what a GPU would launch: everything but views and allocations."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        if name not in ("scaled_dot_product_attention", "rms_norm"):  # one launch each on a GPU
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        if not func.is_view and not name.startswith("empty") and name != "_unsafe_view":
            self.count[name] += 1
        return func(*args, **kwargs)


@pytest.mark.parametrize(("depth", "most"), [(12, 285), (24, 550)])
def test_a_token_takes_few_launches_on_a_gpu(depth, most, monkeypatch):
    monkeypatch.setattr(products, "_packs", lambda dtype: False)
    model = shaken_model(torch.bfloat16, depth=depth, heads=1, width=32)
    decoder = model.for_inference(torch.bfloat16)
    decoder.use_operations_of("cuda")
    cache = KVCache(
        model.config, slots=2, max_len=96, dtype=torch.bfloat16, device=torch.device("cpu")
    )
    # A GPU stores keys and values in the dtype in which they are computed.
    cache.k, cache.v = cache.k.bfloat16(), cache.v.bfloat16()
    cache.layers = list(zip(cache.k, cache.v, strict=True))
    cache._bands = {window: band.bfloat16() for window, band in cache._bands.items()}
    inputs = torch.zeros(4, 2, dtype=torch.int64)
    with torch.inference_mode(), Operations() as operations:
        hidden = decoder.hidden(inputs[0][:, None], FixedView(cache, Shape(2, 0, 96), inputs))
        logits = decoder.logits(hidden)
    assert logits.shape == (2, 1, VOCAB)
    count = operations.count
    assert count.total() <= most, count
    # In each layer two normed streams become bfloat16, and q and k float32 and bfloat16 again.
    assert count["_to_copy"] <= 4 * depth + 6, count


def test_int8_stays_close_to_the_exact_logits():
    tokens = some_tokens(3, 70)
    exact = shaken_model()(tokens)
    for rows in (3, 70):  # few rows and many are multiplied in different ways
        got = shaken_model().for_inference(torch.int8)(tokens[:, :rows])
        assert got.dtype == torch.float32
        error = (got - exact[:, :rows]).abs().mean() / exact[:, :rows].abs().mean()
        assert float(error) < 0.05


def test_int8_weights_are_off_by_half_a_step_at_most():
    weight = torch.randn(7, 33, generator=torch.Generator().manual_seed(0))
    weight[2] = 0
    stored, scale = quantize(weight)
    assert stored.dtype == torch.int8
    assert torch.equal(scale[:2], weight[:2].abs().amax(dim=1) / 127)
    assert ((stored * scale[:, None] - weight).abs() <= scale[:, None] / 2 + 1e-7).all()


def test_a_product_of_int8_weights_is_the_same_for_few_and_many_rows():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(48, 64, generator=generator).bfloat16()
    x = torch.randn(20, 64, generator=generator).bfloat16()
    multiply = product(weight, int8=True).multiply
    few = torch.cat([multiply(x[:4]), multiply(x[4:8])])
    assert torch.allclose(few.float(), multiply(x)[:8].float(), rtol=0.02, atol=0.05)


def test_a_text_beyond_the_models_positions_is_refused():
    from nanochat.system.errors import ConfigError

    decoder = shaken_model(positions="learned").for_inference(torch.float32)
    with pytest.raises(ConfigError, match="a text of 97 tokens exceeds the model's 96 positions"):
        decoder(some_tokens(1, 97))


def test_the_decoder_shares_no_memory_with_the_model():
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.int8):
        model = shaken_model(torch.float32 if dtype == torch.int8 else dtype, norm="rms_weight")
        decoder = model.for_inference(dtype)
        assert isinstance(decoder, Decoder)
        before = decoder(some_tokens(1, 20))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        assert torch.equal(decoder(some_tokens(1, 20)), before)
