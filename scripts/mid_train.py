"""Teach a base model conversations, multiple choice and tools.

python -m scripts.mid_train --preset pocket
"""

from dataclasses import dataclass

from nanochat import chat_training, config, stage_opening
from nanochat.chat_training import ChatTrainConfig
from nanochat.distributed import on_all
from tasks import mixtures

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
        chat_training.train(
            opened, cfg, train_set=train_set, val_set=val_set, sources=("base_train",)
        )


if __name__ == "__main__":
    config.cli(main)
