"""The tasks under their short name, in a checkout: `from tasks.gsm8k import GSM8K`.

They live in nanochat/data/tasks, so that an installed package has one import name.
"""

from pathlib import Path

__path__ = [str(Path(__file__).parent.parent / "nanochat" / "data" / "tasks")]
