"""Continue a text with any checkpoint, including a base model.

nanochat sample --run pocket --prompt "The capital of" --num-samples 3
"""

import time
from dataclasses import dataclass

from nanochat import checkpoint_manager
from nanochat.checkpoint_manager import SourceOptions
from nanochat.engine import Engine, Request
from nanochat.engine.sampling import SamplingOptions
from nanochat.system import config, console, distributed
from nanochat.system.config import RunOptions, nested, option
from nanochat.system.errors import ConfigError

SLOTS = 32  # continuations generated at the same time


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """Continue a prompt as plain text; prints the prompt and its continuation."""

    common: RunOptions = nested(RunOptions)
    source: SourceOptions = nested(SourceOptions)
    sampling: SamplingOptions = nested(SamplingOptions)
    prompt: str = option("", "text to continue; empty: start from nothing")
    num_samples: int = option(1, "number of continuations, each with its own seed", least=1)
    max_new_tokens: int = option(128, "limit of tokens per continuation", least=1)
    stats: bool = option(False, "show speed and number of tokens on stderr")


def main(argv: list[str] | None = None) -> None:
    cfg = config.parse(SampleConfig, argv, stage="sample")
    path = checkpoint_manager.locate(cfg.source, cfg.common, chat=False)
    with distributed.session(cfg.common) as run:
        loaded = checkpoint_manager.load(path, run)
        engine = Engine(loaded.model, loaded.tokenizer, slots=min(SLOTS, cfg.num_samples))
        prompt = [loaded.tokenizer.bos_id, *loaded.tokenizer.encode(cfg.prompt)]
        if len(prompt) > engine.max_len:
            raise ConfigError(
                f"--prompt has {len(prompt)} tokens but the model's context is {engine.max_len}; "
                "shorten it"
            )
        for first in range(0, cfg.num_samples, SLOTS):
            numbers = range(first, min(first + SLOTS, cfg.num_samples))
            start_s = time.perf_counter()
            completions = engine.generate([request(prompt, cfg, number) for number in numbers])
            elapsed_s = time.perf_counter() - start_s
            for number, completion in zip(numbers, completions, strict=True):
                if cfg.num_samples > 1:
                    print(f"--- {number + 1}")
                print(console.for_output(cfg.prompt + completion.text), flush=True)
            if cfg.stats:
                tokens = sum(len(completion.tokens) for completion in completions)
                speed = (
                    f"{tokens:,} tokens in {elapsed_s:.2f} s, {tokens / elapsed_s:,.0f} tokens/s"
                )
                console.error_line(f"({speed}; {len(prompt):,} of the prompt)")


def request(prompt: list[int], cfg: SampleConfig, number: int) -> Request:
    """The request for one continuation, with its own seed."""
    params = cfg.sampling.params(max_new_tokens=cfg.max_new_tokens, seed=cfg.common.seed + number)
    return Request(prompt=prompt, params=params, chat=False)


if __name__ == "__main__":
    config.cli(main)
