"""Counts of parameters and operations against independent counts."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from nanochat.gpt import GPT, GPTConfig, flops
from nanochat.system import device as devices


def config(**options) -> GPTConfig:
    sizes = {"vocab_size": 100, "sequence_length": 512, "depth": 4, "width": 64, "heads": 2}
    return GPTConfig(**(sizes | options))


def test_groups_of_parameters_by_hand():
    assert flops.parameter_counts(config()) == {
        "embedding": 6400,
        "pair_embedding": 8 * 100 * 64 // 2,
        "positions": 0,
        "value_embeddings": 2 * 6400,
        "matrices": 4 * 12 * 64 * 64,
        "gates": 2 * 12 * 2 + 24,
        "head": 6400,
        "scalars": 4 + 4 + 1 + 1 + 4 * 4 * 64,
    }


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"kv_heads": 1, "activation": "swiglu", "norm": "rms_weight"},
        {"positions": "learned", "norm": "layer", "tied_head": True, "smear": False},
    ],
)
def test_groups_add_up_to_the_model(options):
    model = GPT(config(**options), compute_dtype=torch.float32)
    counted = sum(flops.parameter_counts(model.config).values())
    assert counted == sum(p.numel() for p in model.parameters())


def test_scaling_parameters_count_the_head_also_where_it_is_tied():
    expected = 4 * 12 * 64 * 64 + 6400
    assert flops.scaling_parameters(config()) == expected
    assert flops.scaling_parameters(config(tied_head=True)) == expected


@pytest.mark.parametrize(("length", "window"), [(1, None), (7, None), (9, 3), (5, 4), (5, 9)])
def test_visible_keys_equal_counting_them(length, window):
    seen = [min(i + 1, length if window is None else window + 1) for i in range(length)]
    assert flops.visible_keys(length, window) == pytest.approx(sum(seen) / length)


def test_matrix_flops_equal_what_torch_counts():
    small = config(window_pattern="L", tied_head=True)
    model = GPT(small, compute_dtype=torch.float32)
    model.init_weights(torch.Generator().manual_seed(0))
    tokens = torch.zeros(1, 8, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        model(tokens).sum().backward()
    counts = counter.get_flop_counts()["Global"]
    matrices = sum(n for op, n in counts.items() if "attention" not in str(op)) / 8
    keys = 4 * flops.visible_keys(8, None)
    assert flops.flops_per_token(small, 8) - 12 * keys * 64 == pytest.approx(matrices, rel=1e-3)


def test_windows_cost_less():
    full = flops.flops_per_token(config(window_pattern="L"), 512)
    windowed = flops.flops_per_token(config(window_pattern="SSSL"), 512)
    saved = 3 * (flops.visible_keys(512, None) - flops.visible_keys(512, 128))
    assert full - windowed == pytest.approx(12 * 64 * saved)


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989.0),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H100 NVL", 835.0),
        ("NVIDIA H200", 989.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA A10G", 70.0),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA L40", 181.0),
        ("NVIDIA L4", 121.0),
    ],
)
def test_the_peak_is_that_of_the_gpu_and_of_no_name_within_its_name(monkeypatch, name, tflops):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    peak = devices.peak_flops(torch.device("cuda", 0), torch.bfloat16)
    assert peak == tflops * 1e12
