"""Sizes of a model that follow from its options, and options that cannot work."""

import dataclasses

import pytest

from nanochat.gpt import GPTConfig
from nanochat.system import config as options_
from nanochat.system.errors import ConfigError


def small_config(**options) -> GPTConfig:
    sizes = {"vocab_size": 53, "sequence_length": 160, "depth": 3, "width": 32, "heads": 4}
    return GPTConfig(**(sizes | options))


def test_sizes_follow_from_the_depth_and_flags_override():
    config = GPTConfig(depth=12)
    assert (config.width, config.heads, config.kv_heads, config.head_dim) == (768, 6, 6, 128)
    config = GPTConfig(depth=4)
    assert (config.width, config.heads, config.head_dim) == (256, 4, 64)
    config = GPTConfig(depth=4, width=384, heads=3, kv_heads=1)
    assert (config.width, config.heads, config.kv_heads, config.head_dim) == (384, 3, 1, 128)
    assert GPTConfig(depth=2, heads=3).width % 6 == 0


def test_short_windows_are_a_quarter_of_the_context_in_complete_tiles():
    config = GPTConfig(depth=6, sequence_length=2048)
    assert config.windows == (512, 512, 512, None, 512, None)
    assert GPTConfig(depth=3, sequence_length=300).windows == (128, 128, None)
    assert GPTConfig(depth=3, sequence_length=128).windows == (None, None, None)


def test_rows_of_another_length_leave_a_trained_models_windows_alone():
    trained = GPTConfig(depth=3, sequence_length=2048)
    longer = GPTConfig(**{**vars(trained), "sequence_length": 4096})
    assert longer.windows == trained.windows == (512, 512, None)


def test_value_embeddings_alternate_and_include_the_last_layer():
    for depth, expected in ((1, [0]), (4, [1, 3]), (5, [0, 2, 4])):
        config = GPTConfig(depth=depth)
        assert [i for i in range(depth) if config.has_value_embedding(i)] == expected


def test_a_config_survives_json_and_replacing_a_field():
    config = small_config(kv_heads=2, softcap=None)
    assert options_.from_dict(GPTConfig, options_.to_dict(config)) == config
    assert dataclasses.replace(config, vocab_size=9).width == config.width


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"width": 100, "heads": 3}, "--width 100 must be an even multiple of --heads 3"),
        ({"width": 9, "heads": 3}, "--width 9 must be an even multiple of --heads 3"),
        ({"heads": 4, "kv_heads": 3}, "--kv-heads 3 must divide --heads 4"),
        ({"window_pattern": "SX"}, "--window-pattern must consist of S and L, got 'SX'"),
    ],
)
def test_sizes_that_cannot_work_are_refused(options, text):
    with pytest.raises(ConfigError, match=text):
        small_config(**options)
