"""The embedded world as tasks: its evaluation rows, and word problems for RL."""

from itertools import islice
from typing import Literal, cast

from nanochat import pocket
from nanochat.data.tasks.common import Conversations, GenerateTask
from nanochat.tokenizer.conversation import Conversation

DEFAULT_ITEMS = 500


class PocketTask(Conversations):
    """One row of the pocket evaluation; see `pocket.EVAL_ROWS`."""

    kind: Literal["generate", "choice"]

    def __init__(self, row: str, max_items: int | None = None) -> None:
        """max_items: at most this many items; None means DEFAULT_ITEMS."""
        self.items = pocket.evaluation(row, max_items or DEFAULT_ITEMS)
        super().__init__(row, self.items, lambda item: cast(Conversation, item.conversation))
        self.kind = "choice" if self.items[0].kind == "choice" else "generate"

    def choices(self, index: int) -> list[str]:
        """The four letters if the row asks for a bare letter, otherwise none."""
        return list("ABCD") if self.kind == "choice" else []

    def evaluate(self, index: int, text: str) -> bool:
        """Whether the text answers the item."""
        return pocket.grade(self.items[index], text)


class PocketProblems(GenerateTask):
    """Word problems, comparisons and sums for RL: the kinds that SFT has, with new numbers.

    The engine inserts the calculator's results, so the model writes only the steps: rewarding the
    final number teaches which steps to choose, not arithmetic.
    """

    def __init__(self, *, seed: int, size: int) -> None:
        """size: number of problems, all drawn now (about ten thousand per second)."""
        self.problems = list(islice(pocket.conversations("rl", seed), size))
        super().__init__("problems", self.problems, lambda row: cast(Conversation, row))

    def evaluate(self, index: int, text: str) -> bool:
        """Whether the text gives the same answer as the reference."""
        return pocket.answers_alike(self.problems[index]["messages"][-1]["content"], text)
