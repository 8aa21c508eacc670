"""The model: layers, attention, loss, and its size and cost."""

from nanochat.gpt.config import GPTConfig
from nanochat.gpt.model import GPT

__all__ = ["GPT", "GPTConfig"]
