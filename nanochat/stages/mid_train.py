"""Teach a base model conversations, multiple choice and tools.

nanochat mid_train --preset pocket
"""

from dataclasses import dataclass

from nanochat.data.tasks import mixtures
from nanochat.system import config
from nanochat.system.distributed import on_all
from nanochat.training import conversations, stage_opening
from nanochat.training.conversations import ChatTrainConfig

NAME = "mid_train"


@dataclass(frozen=True, kw_only=True)
class MidTrainConfig(ChatTrainConfig):
    """Mid-training: the base model meets conversations, multiple choice and tools."""


def main(argv: list[str] | None = None) -> None:
    cfg = config.parse(MidTrainConfig, argv, stage=NAME)
    with stage_opening.opened(NAME, cfg) as opened:
        train_set, val_set = on_all(
            opened.run,
            lambda: mixtures.build(
                cfg.data,
                stage="mid",
                val_data=cfg.val_data,
                count=cfg.conversations,
                seed=cfg.common.seed,
            ),
        )
        conversations.train(
            opened, cfg, train_set=train_set, val_set=val_set, sources=("base_train",)
        )


if __name__ == "__main__":
    config.cli(main)
