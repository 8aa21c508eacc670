"""The stages under the name that a checkout runs them by: `python -m scripts.base_train`.

They live in nanochat/stages, so that an installed package has one import name.
"""

from pathlib import Path

__path__ = [str(Path(__file__).parent.parent / "nanochat" / "stages")]
