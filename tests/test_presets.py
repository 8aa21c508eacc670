"""What the presets for GPUs promise, by the options that the stages read from them."""

from typing import Any

import pytest

from nanochat.data.dataset import CHARACTERS_PER_TOKEN, HUB_SHARD_CHARACTERS
from nanochat.gpt import GPTConfig
from nanochat.optim.scaling import ScaledPlan, scaled_plan
from nanochat.stages.base_train import BaseTrainConfig, training_text
from nanochat.stages.chat_rl import ChatRlConfig
from nanochat.stages.chat_sft import ChatSftConfig
from nanochat.stages.mid_train import MidTrainConfig
from nanochat.stages.tok_train import TokTrainConfig
from nanochat.system import config

GPU_PRESETS = ("speedrun", "gpu1")
STAGES = {
    "tok_train": TokTrainConfig,
    "base_train": BaseTrainConfig,
    "mid_train": MidTrainConfig,
    "chat_sft": ChatSftConfig,
    "chat_rl": ChatRlConfig,
}


def on_a_24_gb_card(values: dict[str, Any]) -> dict[str, Any]:
    return {**values, "depth": 12} if values.get("depth") == "auto" else values


def options(preset: str, stage: str, *args: str):
    return config.parse(
        STAGES[stage], ["--preset", preset, *args], stage=stage, resolve=on_a_24_gb_card
    )


def base_plan(preset: str) -> ScaledPlan:
    cfg, tok = options(preset, "base_train"), options(preset, "tok_train")
    sizes = vars(cfg.model) | {"vocab_size": tok.vocab_size}
    return scaled_plan(
        GPTConfig(**sizes), ratio=cfg.ratio, tokens=cfg.tokens, tokens_per_step=cfg.tokens_per_step
    )


@pytest.mark.parametrize("preset", GPU_PRESETS)
@pytest.mark.parametrize("stage", ["base_train", "mid_train", "chat_sft", "chat_rl"])
def test_every_training_stage_finds_out_how_many_rows_fit(preset, stage):
    assert options(preset, stage).loop.device_batch_size == "auto"


@pytest.mark.parametrize("preset", GPU_PRESETS)
def test_the_shards_have_enough_text_for_one_epoch_and_not_a_quarter_more(preset):
    tokens = base_plan(preset).tokens
    text = training_text(options(preset, "base_train"), tokens)
    held = text.shards * HUB_SHARD_CHARACTERS / CHARACTERS_PER_TOKEN
    assert 1.05 * tokens < held < 1.25 * tokens


@pytest.mark.parametrize("preset", GPU_PRESETS)
def test_cropping_needs_more_shards(preset):
    cfg = options(preset, "base_train", "--packing", "crop")
    tokens = base_plan(preset).tokens
    split = training_text(options(preset, "base_train"), tokens).shards
    assert training_text(cfg, tokens).shards == pytest.approx(split / 0.65, abs=2)


@pytest.mark.parametrize("preset", GPU_PRESETS)
def test_sft_takes_more_than_a_hundred_steps(preset):
    """Of about 11.5 million tokens of conversations."""
    assert 32_768 <= options(preset, "chat_sft").tokens_per_step <= 65_536


@pytest.mark.parametrize("preset", GPU_PRESETS)
def test_reinforcement_learning_is_bounded(preset):
    cfg = options(preset, "chat_rl")
    assert cfg.steps == 100
    assert cfg.rollouts.max_rounds == 1


@pytest.mark.parametrize("preset", GPU_PRESETS)
def test_a_token_takes_two_bytes_on_disk(preset):
    vocab_size = options(preset, "tok_train").vocab_size
    assert vocab_size <= 2**16
