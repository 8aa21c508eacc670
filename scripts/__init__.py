"""The stages, for running from a checkout: `python -m scripts.base_train`.

The modules are in nanochat/stages, so that the installed package has a single import name.
"""

from pathlib import Path

__path__ = [str(Path(__file__).parent.parent / "nanochat" / "stages")]
