"""Download the text that base training needs, ahead of it.

nanochat fetch --preset speedrun
"""

from dataclasses import dataclass

from nanochat.data import open_data
from nanochat.data.hub import HUB_SHARDS
from nanochat.gpt import GPTConfig
from nanochat.optim.scaling import scaled_plan
from nanochat.stages.base_train import BaseTrainConfig, training_text
from nanochat.system import config, storage
from nanochat.system.config import nested
from nanochat.system.console import log_line, show_log

NAME = "fetch"


@dataclass(frozen=True, kw_only=True)
class FetchConfig(BaseTrainConfig):
    """Download shards of text; give it what base_train will be given."""

    model: GPTConfig = nested(GPTConfig)


def main(argv: list[str] | None = None) -> None:
    cfg = config.parse(FetchConfig, argv, stage=NAME, sections=("tok_train", "base_train"))
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
