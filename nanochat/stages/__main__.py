"""The `nanochat` command: `nanochat <stage> [flags]` runs a module of nanochat/stages."""

import importlib
import sys

from nanochat.system import config
from nanochat.system.errors import ConfigError

STAGES = {
    "doctor": "check what this machine can run, and how to fix what it cannot",
    "plan": "estimate size, time and memory of a run before starting it",
    "scaling_laws": "find the best model size and token count for a compute budget",
    "fetch": "download the text that base training will need",
    "tok_train": "train a tokenizer",
    "tokenize": "show how a text is split into tokens",
    "tok_eval": "compare the tokenizer with those of GPT-2 and GPT-4",
    "base_train": "train a base model on plain text",
    "base_loss": "measure bits per byte of a base model and print samples",
    "base_eval": "evaluate a base model on CORE",
    "mid_train": "train the base model on conversations, tasks and tool use",
    "chat_sft": "fine-tune on selected conversations, or on your own",
    "chat_rl": "train with reinforcement learning on problems with checkable answers",
    "chat_eval": "measure the accuracy of a chat model on tasks",
    "chat_cli": "chat with a model in the terminal",
    "chat_web": "chat with a model in the browser",
    "dashboard": "watch runs in the browser while they train",
    "sample": "continue a prompt with any model",
    "report": "write a run's report.md and report.html",
}

# A module stages/tokenize.py would shadow Python's own for scripts run by their path.
MODULES = {"tokenize": "tok_show"}


def main() -> None:
    """Run the stage named by the first argument."""
    config.cli(lambda: _run(*sys.argv[1:]))


def _run(stage: str = "--help", *args: str) -> None:
    if stage in ("-h", "--help"):
        print("nanochat STAGE [flags]\n\nStages (nanochat STAGE --help lists its flags):")
        for name, purpose in STAGES.items():
            print(f"  {name:<14}{purpose}")
        return
    name = stage.replace("-", "_")
    if name not in STAGES:
        raise ConfigError(f"nanochat has no stage {name!r}; use one of {', '.join(STAGES)}")
    importlib.import_module(f"nanochat.stages.{MODULES.get(name, name)}").main(list(args))


if __name__ == "__main__":
    main()
