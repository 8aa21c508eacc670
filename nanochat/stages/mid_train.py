"""Teach a base model conversations, multiple choice and tools.

nanochat mid_train --preset pocket
"""

from dataclasses import dataclass

from nanochat.system import config
from nanochat.training import conversations
from nanochat.training.conversations import ChatTrainConfig


@dataclass(frozen=True, kw_only=True)
class MidTrainConfig(ChatTrainConfig):
    """Mid-training: the base model meets conversations, multiple choice and tools."""


def main(argv: list[str] | None = None) -> None:
    sources = ("base_train",)
    conversations.run_stage("mid_train", MidTrainConfig, argv, mixture="mid", sources=sources)


if __name__ == "__main__":
    config.cli(main)
