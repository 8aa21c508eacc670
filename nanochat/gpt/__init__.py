"""The model and nothing else: layers, attention, loss, and how large and costly it is."""

from nanochat.gpt.config import GPTConfig
from nanochat.gpt.model import GPT

__all__ = ["GPT", "GPTConfig"]
