"""Conversations of your own: JSON lines in OpenAI's `messages` format.

One object a line: {"messages": [{"role": "user", "content": "..."}, ...]}. Roles are an optional
"system" first, then "user" and "assistant" in turn, the last the assistant's.
"""

from pathlib import Path
from typing import Any

from nanochat.data.jsonl import read_jsonl
from nanochat.data.tasks.common import Conversations
from nanochat.system.errors import DataError
from nanochat.tokenizer.conversation import Conversation, validate

EXAMPLE = '{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", ...}]}'


def custom_json(path: Path, *, limit: int | None = None) -> Conversations:
    """The conversations of a .jsonl, .jsonl.gz or .jsonl.zst file.

    Raises: DataError naming the file and line that is wrong, and how; or if there is none at all.
    """
    rows = [checked(row, f"{path}:{number}") for number, row in read_jsonl(path)]
    if not rows:
        raise DataError(f"{path} holds no conversation; write one a line: {EXAMPLE}")
    return Conversations(path.name, rows, lambda row: row, limit=limit)


def checked(row: Any, place: str) -> Conversation:
    """A row as a conversation to learn from; keys that are not part of one are left out.

    Raises: DataError that begins with the place.
    """
    try:
        messages = validate(row)["messages"]
    except DataError as error:
        raise DataError(f"{place}: {error}") from None
    if messages[-1]["role"] != "assistant":
        raise DataError(f'{place}: the last message must be the "assistant"\'s, to learn from')
    return {"messages": [{"role": m["role"], "content": m["content"]} for m in messages]}
