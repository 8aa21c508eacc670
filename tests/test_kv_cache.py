"""The model gives the same output with the cache as without, for any use of the slots."""

import functools
import random

import pytest
import torch

from nanochat.engine.kv_cache import KVCache
from nanochat.gpt import GPT, GPTConfig
from nanochat.gpt.decoder import Decoder
from nanochat.system.errors import ConfigError

VARIANTS = [
    {},
    {"window_pattern": "L"},
    {"kv_heads": 1},
    {"kv_heads": 2, "positions": "learned", "norm": "layer", "activation": "gelu"},
    {"positions": "none", "smear": False, "norm": "rms_weight", "activation": "swiglu"},
    {"positions": "learned", "embedding_norm": False, "tied_head": True, "softcap": None},
    {"qk_norm": False, "value_embeddings": False, "backout": False, "residual_scalars": False},
    {"depth": 1, "kv_heads": 1, "smear": True, "positions": "learned"},
    {"pairs": 0},
    {"pairs": 1, "smear": False},
    {"convolution": False},
]
VOCAB = 61


def make_model(dtype=torch.float32, sequence_length=160, **options) -> GPT:
    sizes = {"depth": 3, "width": 64, "heads": 4} | options
    config = GPTConfig(vocab_size=VOCAB, sequence_length=sequence_length, **sizes)
    model = GPT(config, compute_dtype=dtype)
    generator = torch.Generator().manual_seed(5)
    model.init_weights(generator)
    with torch.no_grad():
        for parameter in model.parameters():  # zeros would hide a part that is not cached
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model.requires_grad_(False)


@functools.lru_cache(maxsize=1)
def decoder_of(model: GPT) -> Decoder:
    return model.for_inference(model.compute_dtype)


def make_cache(model: GPT, *, slots: int, max_len: int = 160) -> KVCache:
    return KVCache(
        model.config,
        slots=slots,
        max_len=max_len,
        dtype=model.compute_dtype,
        device=torch.device("cpu"),
    )


def some_tokens(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(VOCAB, (count,), generator=torch.Generator().manual_seed(seed))


def run(model: GPT, cache: KVCache, pieces: list[tuple[int, int, torch.Tensor]]):
    """Process (slot, start, tokens) in one right-padded call; the real logits of each row."""
    counts = [len(tokens) for _, _, tokens in pieces]
    batch = torch.full((len(pieces), max(counts)), VOCAB - 1)
    for row, (_, _, tokens) in zip(batch, pieces, strict=True):
        row[: len(tokens)] = tokens
    view = cache.view([p[0] for p in pieces], [p[1] for p in pieces], counts)
    logits = decoder_of(model)(batch, view)
    return [row[:count] for row, count in zip(logits, counts, strict=True)]


def assert_close(got, expected, tolerance):
    assert got.shape == expected.shape
    assert float((got - expected).abs().max()) < tolerance


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "dtype", "tolerance"),
    [(options, torch.float64, 1e-10) for options in VARIANTS]
    + [(options, torch.float32, 1e-4) for options in VARIANTS[2:5]],
    ids=lambda value: "-".join(value) or "default" if isinstance(value, dict) else str(value),
)
def test_every_prompt_length_then_decoding_equals_the_uncached_forward(options, dtype, tolerance):
    model = make_model(dtype, **options)
    text = some_tokens(160)
    expected = model(text[None])[0]
    cache = make_cache(model, slots=159)
    lengths = list(range(1, 160))
    rows = run(model, cache, [(n - 1, 0, text[:n]) for n in lengths])
    for n, row in zip(lengths, rows, strict=True):
        assert_close(row, expected[:n], tolerance)
    for step in range(3):
        alive = [n for n in lengths if n + step < 160]
        rows = run(model, cache, [(n - 1, n + step, text[n + step][None]) for n in alive])
        for n, row in zip(alive, rows, strict=True):
            assert_close(row[0], expected[n + step], tolerance)


@pytest.mark.parametrize("options", VARIANTS, ids=lambda o: "-".join(o) or "default")
def test_sequences_cut_into_any_pieces_in_any_slots_equal_the_uncached_forward(options):
    model = make_model(torch.float64, **options)
    rng = random.Random(7)
    slots = 7
    cache = make_cache(model, slots=slots)
    texts = [some_tokens(rng.randint(130, 160), seed) for seed in range(slots)]
    expected = [model(text[None])[0] for text in texts]
    done = [0] * slots
    while any(done[i] < len(texts[i]) for i in range(slots)):
        unfinished = [i for i in range(slots) if done[i] < len(texts[i])]
        chosen = rng.sample(unfinished, rng.randint(1, len(unfinished)))
        widest = rng.choice((1, 1, 5, 40))
        pieces = []
        for i in chosen:
            count = min(rng.randint(1, widest), len(texts[i]) - done[i])
            pieces.append((i, done[i], texts[i][done[i] : done[i] + count]))
        for (i, start, tokens), row in zip(pieces, run(model, cache, pieces), strict=True):
            assert_close(row, expected[i][start : start + len(tokens)], 1e-10)
            done[i] += len(tokens)
            assert cache.lengths[i] == done[i]


def test_a_reused_slot_knows_nothing_of_its_first_sequence():
    model = make_model(torch.float64)
    cache = make_cache(model, slots=2)
    run(model, cache, [(0, 0, some_tokens(150, 1)), (1, 0, some_tokens(90, 2))])
    cache.reset(0)
    assert cache.lengths == [0, 90]
    text = some_tokens(20, 3)
    first = run(model, cache, [(0, 0, text[:3])])[0]
    second = run(model, cache, [(0, 3, text[3:4]), (1, 90, text[:1])])[0]
    third = run(model, cache, [(0, 4, text[4:])])[0]
    assert_close(torch.cat([first, second, third]), model(text[None])[0], 1e-10)


def test_a_slot_can_be_rewound_to_a_shared_prefix():
    model = make_model(torch.float64)
    cache = make_cache(model, slots=1)
    text, other = some_tokens(60, 1), some_tokens(60, 2)
    run(model, cache, [(0, 0, text)])
    cache.reset(0, 25)
    got = run(model, cache, [(0, 25, other[25:])])[0]
    expected = model(torch.cat([text[:25], other[25:]])[None])[0]
    assert_close(got, expected[25:], 1e-10)


def test_padding_at_the_end_of_a_full_slot_changes_nothing():
    model = make_model(torch.float64, window_pattern="L")
    cache = make_cache(model, slots=2, max_len=40)
    text = some_tokens(40, 1)
    run(model, cache, [(0, 0, text[:38]), (1, 0, text[:5])])
    got = run(model, cache, [(0, 38, text[38:]), (1, 5, text[5:40])])
    expected = model(text[None])[0]
    assert_close(got[0], expected[38:], 1e-10)
    assert_close(got[1], expected[5:], 1e-10)


def test_half_precision_is_stored_as_float32_on_a_cpu_and_stays_close():
    model = make_model(torch.bfloat16)
    cache = make_cache(model, slots=1)
    assert cache.k.dtype == torch.float32
    text = some_tokens(100)
    expected = model(text[None])[0]
    got = [run(model, cache, [(0, i, text[i][None])])[0][0] for i in range(100)]
    error = (torch.stack(got) - expected).abs()
    assert float(error.mean()) < 0.02 * float(expected.abs().mean())


def test_a_cache_longer_than_the_models_positions_is_refused():
    model = make_model(positions="learned")
    with pytest.raises(ConfigError, match="max_len 161 is beyond the model's 160 positions"):
        make_cache(model, slots=1, max_len=161)


def test_memory_of_keys_values_and_tokens():
    cache = make_cache(make_model(torch.float32), slots=2, max_len=9)
    positions = 32 + 1  # a multiple of 32 and one for padding
    keys_and_values = 2 * 3 * 2 * positions * 64 * 4
    stored = (cache.k, cache.v, cache.tokens)
    assert sum(x.nbytes for x in stored) == keys_and_values + 2 * positions * 8
