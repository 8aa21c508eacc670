"""Download the text that base training needs, ahead of it.

nanochat fetch --preset speedrun
"""

from dataclasses import dataclass
from typing import Any

import torch

from nanochat.data import open_data
from nanochat.data.hub import HUB_SHARDS
from nanochat.gpt import GPTConfig
from nanochat.optim.scaling import scaled_plan
from nanochat.stages.base_train import BaseTrainConfig, training_text
from nanochat.system import config, storage
from nanochat.system.config import nested
from nanochat.system.console import log_line, show_log
from nanochat.training import model_size

NAME = "fetch"


@dataclass(frozen=True, kw_only=True)
class FetchConfig(BaseTrainConfig):
    """Download shards of text; give it what base_train will be given."""

    model: GPTConfig = nested(GPTConfig)


def this_gpu(values: dict[str, Any]) -> model_size.Gpu:
    """What base training will run on: all GPUs of this machine."""
    return model_size.of_this_machine(values, max(1, torch.cuda.device_count()))


def main(argv: list[str] | None = None) -> None:
    sections = ("tok_train", "base_train")
    resolve = model_size.resolver(this_gpu)
    cfg = config.parse(FetchConfig, argv, stage=NAME, sections=sections, resolve=resolve)
    show_log()
    if cfg.data.data not in HUB_SHARDS:
        log_line(f"--data {cfg.data.data} has no shards to download")
        return
    plan = scaled_plan(
        cfg.model, ratio=cfg.ratio, tokens=cfg.tokens, tokens_per_step=cfg.tokens_per_step
    )
    data = open_data(training_text(cfg, plan.tokens), base=storage.base_dir())
    count = len(data.shards("train"))
    log_line(f"{data.name}: {count} shards for {plan.tokens:,} tokens are in {data.folder}")


if __name__ == "__main__":
    config.cli(main)
