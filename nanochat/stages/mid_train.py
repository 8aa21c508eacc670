"""Teach a base model conversations, multiple choice and tools.

nanochat mid_train --preset pocket
"""

from dataclasses import dataclass

from nanochat.system import config
from nanochat.training import chat_stage
from nanochat.training.chat_stage import ChatTrainConfig


@dataclass(frozen=True, kw_only=True)
class MidTrainConfig(ChatTrainConfig):
    """Mid-training: the base model meets conversations, multiple choice and tools."""


def main(argv: list[str] | None = None) -> None:
    sources = ("base_train",)
    chat_stage.run_stage("mid_train", MidTrainConfig, argv, mixture="mid", sources=sources)


if __name__ == "__main__":
    config.cli(main)
