"""What a set of questions must offer to be evaluated; the data sets in `tasks` do.

Owns the protocol alone, so that neither evaluation nor tasks import each other.
"""

from typing import Literal, Protocol

from nanochat.tokenizer.conversation import Conversation


class EvalTask(Protocol):
    """Questions a chat model can be measured on, and rewarded for."""

    @property
    def name(self) -> str:
        """What the figure is called."""

    @property
    def kind(self) -> Literal["generate", "choice"]:
        """Whether an answer is free text or one of some letters."""

    def __len__(self) -> int:
        """How many items there are."""

    def __getitem__(self, index: int, /) -> Conversation:
        """The item's conversation; its last message is the reference answer."""

    def evaluate(self, index: int, text: str) -> bool:
        """Whether a text that the model wrote answers the item."""

    def choices(self, index: int) -> list[str]:
        """The letters to choose from; empty where the answer is free text."""
