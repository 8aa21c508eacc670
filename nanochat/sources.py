"""Which checkpoint a command talks to and how it samples: options shared by chat and sampling."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nanochat import checkpoint_manager
from nanochat.checkpoint_manager import CHAT_STAGES, MODEL_STAGES, Loaded
from nanochat.engine import SamplingParams
from nanochat.system.config import RunOptions, option
from nanochat.system.errors import CheckpointError, ConfigError


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """Which checkpoint is used."""

    stage: str | None = option(
        None,
        "stage of the run to take; none: the last one to chat with, the first to continue text",
        choices=MODEL_STAGES,
    )
    checkpoint: str | None = option(
        None, "path of a checkpoint or stage folder, in place of --run and --stage"
    )


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How words are chosen."""

    temperature: float = option(0.6, "0 always takes the likeliest token; 1 samples as trained")
    top_k: int | None = option(50, "sample from this many likeliest tokens; none: from all")
    top_p: float | None = option(None, "sample from the likeliest with this total probability")

    def __post_init__(self) -> None:
        self.params(max_new_tokens=1)

    def params(self, *, max_new_tokens: int, seed: int | None = None) -> SamplingParams:
        """The settings of one request."""
        try:
            return SamplingParams(
                temperature=self.temperature,
                top_k=self.top_k,
                top_p=self.top_p,
                max_new_tokens=max_new_tokens,
                seed=seed,
            )
        except ConfigError as error:
            name, _, rest = str(error).partition(" ")
            raise ConfigError(f"--{name.replace('_', '-')} {rest}") from None


def locate(source: SourceOptions, common: RunOptions, *, chat: bool) -> Path:
    """Find the checkpoint that the options name.

    chat: without --stage, take only a model that was taught to chat; else rather one that was not.
    Raises: CheckpointError naming the command that makes one.
    """
    if source.checkpoint is not None:
        path = Path(source.checkpoint).expanduser()
        if not path.is_dir():
            raise CheckpointError(f"--checkpoint {path}: there is no such folder")
        return path
    plain = ("base_train", *MODEL_STAGES)  # one that chats continues no other text well
    stages = (source.stage,) if source.stage else CHAT_STAGES if chat else plain
    return checkpoint_manager.find(common.run, stages)


def describe(loaded: Loaded) -> str:
    """The checkpoint in a few words: run, stage, step."""
    folder = loaded.path.resolve()
    return f"{folder.parent.parent.name}/{folder.parent.name} step {loaded.meta['step']}"
