"""SmolTalk: general conversations, written for small models.

Source: Ben Allal et al. 2025, arXiv 2502.02737; hub HuggingFaceTB/smol-smoltalk.
"""

from nanochat.data.tasks.common import Conversations, Record, load_rows
from nanochat.tokenizer.conversation import Conversation

HUB = "HuggingFaceTB/smol-smoltalk"


def smoltalk(split: str, *, source: str = HUB, limit: int | None = None) -> Conversations:
    """The conversations of a split, "train" or "test"; limit keeps the first ones."""
    return Conversations("SmolTalk", load_rows(source, split=split), convert, limit=limit)


def convert(row: Record) -> Conversation:
    """A row in the hub's layout."""
    return {
        "messages": [
            {"role": message["role"], "content": message["content"]} for message in row["messages"]
        ]
    }
