"""The `nanochat` command: `nanochat <stage> [flags]` is `nanochat <stage> [flags]`."""

import importlib
import sys

from nanochat.system import config
from nanochat.system.errors import ConfigError

STAGES = {
    "doctor": "what this machine can do, and what to do about what it cannot",
    "plan": "size, time and memory of a run before it starts",
    "scaling_laws": "best size and tokens for a budget of compute, by a sweep",
    "tok_train": "train a tokenizer",
    "tokenize": "show how a text falls into tokens",
    "tok_eval": "compare the tokenizer with gpt2's and cl100k's",
    "base_train": "train a base model on plain text",
    "base_loss": "bits per byte and samples of a base model",
    "base_eval": "CORE evaluation of a base model",
    "mid_train": "train the base model on conversations, tasks and tools",
    "chat_sft": "fine-tune on chosen conversations, or on your own",
    "chat_rl": "reinforcement learning on problems with checkable answers",
    "chat_eval": "accuracies of a chat model",
    "chat_cli": "talk to a model in the terminal",
    "chat_web": "talk to a model in the browser",
    "sample": "continue a prompt with any model",
    "report": "write a run's report.md and report.html",
}

# A module scripts/tokenize.py would hide Python's own from scripts that are run by their path.
MODULES = {"tokenize": "tok_show"}


def main() -> None:
    """Run the stage named by the first word of the command line."""
    words = sys.argv[1:]
    if not words or words[0] in ("-h", "--help"):
        print("nanochat STAGE [flags]\n\nStages (nanochat STAGE --help lists its flags):")
        for name, purpose in STAGES.items():
            print(f"  {name:<14}{purpose}")
        return
    config.cli(lambda: _run(words[0].replace("-", "_"), words[1:]))


def _run(name: str, words: list[str]) -> None:
    if name not in STAGES:
        raise ConfigError(f"nanochat has no stage {name!r}; there are {', '.join(STAGES)}")
    importlib.import_module(f"nanochat.stages.{MODULES.get(name, name)}").main(words)


if __name__ == "__main__":
    main()
