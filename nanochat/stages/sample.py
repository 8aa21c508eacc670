"""Continue a text with any checkpoint, a base model included.

nanochat sample --run pocket --prompt "The capital of" --num-samples 3
"""

from dataclasses import dataclass

from nanochat import checkpoint_manager
from nanochat.checkpoint_manager import SourceOptions
from nanochat.engine import Engine, Request
from nanochat.engine.sampling import SamplingOptions
from nanochat.system import config, distributed
from nanochat.system.config import RunOptions, nested, option
from nanochat.system.errors import ConfigError

SLOTS = 32  # continuations written at the same time


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """Continues a prompt as plain text; the text given is printed with what follows it."""

    common: RunOptions = nested(RunOptions)
    source: SourceOptions = nested(SourceOptions)
    sampling: SamplingOptions = nested(SamplingOptions)
    prompt: str = option("", "text to continue; without one the model begins by itself")
    num_samples: int = option(1, "continuations, each with a seed of its own", least=1)
    max_new_tokens: int = option(128, "tokens after which a continuation is cut off", least=1)


def main(argv: list[str] | None = None) -> None:
    cfg = config.parse(SampleConfig, argv, stage="sample")
    path = checkpoint_manager.locate(cfg.source, cfg.common, chat=False)
    with distributed.session(cfg.common) as run:
        loaded = checkpoint_manager.load(path, run)
        engine = Engine(loaded.model, loaded.tokenizer, slots=min(SLOTS, cfg.num_samples))
        prompt = [loaded.tokenizer.bos_id, *loaded.tokenizer.encode(cfg.prompt)]
        if len(prompt) > engine.max_len:
            raise ConfigError(
                f"--prompt has {len(prompt)} tokens, the model's context {engine.max_len}; "
                "shorten it"
            )
        for first in range(0, cfg.num_samples, SLOTS):
            numbers = range(first, min(first + SLOTS, cfg.num_samples))
            done = engine.generate([request(prompt, cfg, number) for number in numbers])
            for number, completion in zip(numbers, done, strict=True):
                if cfg.num_samples > 1:
                    print(f"--- {number + 1}")
                print(cfg.prompt + completion.text, flush=True)


def request(prompt: list[int], cfg: SampleConfig, number: int) -> Request:
    """One continuation to write, with a seed of its own."""
    params = cfg.sampling.params(max_new_tokens=cfg.max_new_tokens, seed=cfg.common.seed + number)
    return Request(prompt=prompt, params=params, chat=False)


if __name__ == "__main__":
    config.cli(main)
