"""Fine-tune a model on chosen conversations, or on your own (--data chats.jsonl).

nanochat chat_sft --preset pocket
"""

from dataclasses import dataclass

from nanochat.system import config
from nanochat.training import chat_stage
from nanochat.training.chat_stage import ChatTrainConfig


@dataclass(frozen=True, kw_only=True)
class ChatSftConfig(ChatTrainConfig):
    """Supervised fine-tuning on chosen conversations."""


def main(argv: list[str] | None = None) -> None:
    sources = ("mid_train", "base_train")
    chat_stage.run_stage("chat_sft", ChatSftConfig, argv, mixture="sft", sources=sources)


if __name__ == "__main__":
    config.cli(main)
