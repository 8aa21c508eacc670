"""Fine-tune a model on chosen conversations, or on your own (--data chats.jsonl).

nanochat chat_sft --preset pocket
"""

from dataclasses import dataclass

from nanochat.data.tasks import mixtures
from nanochat.system import config
from nanochat.system.distributed import on_all
from nanochat.training import conversations, stage_opening
from nanochat.training.conversations import ChatTrainConfig

NAME = "chat_sft"


@dataclass(frozen=True, kw_only=True)
class ChatSftConfig(ChatTrainConfig):
    """Supervised fine-tuning on chosen conversations."""


def main(argv: list[str] | None = None) -> None:
    cfg = config.parse(ChatSftConfig, argv, stage=NAME)
    with stage_opening.opened(NAME, cfg) as opened:
        train_set, val_set = on_all(
            opened.run,
            lambda: mixtures.build(
                cfg.data,
                stage="sft",
                val_data=cfg.val_data,
                count=cfg.conversations,
                seed=cfg.common.seed,
            ),
        )
        conversations.train(
            opened, cfg, train_set=train_set, val_set=val_set, sources=("mid_train", "base_train")
        )


if __name__ == "__main__":
    config.cli(main)
