"""Your own conversations: JSON lines in OpenAI's `messages` format.

One object per line: {"messages": [{"role": "user", "content": "..."}, ...]}. The roles are
"system" (optional, first), then "user" and "assistant" alternately, ending with "assistant".
"""

from pathlib import Path
from typing import Any

from nanochat.data.tasks.common import Conversations
from nanochat.data.text_files import read_rows
from nanochat.system.errors import DataError
from nanochat.tokenizer.conversation import Conversation, validate

EXAMPLE = '{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", ...}]}'


def custom_json(path: Path, *, limit: int | None = None) -> Conversations:
    """The conversations of a .jsonl, .jsonl.gz or .jsonl.zst file.

    Raises: DataError naming the file, the line and what is wrong; or if the file is empty.
    """
    rows = [checked(row, place) for place, row in read_rows(path)]
    if not rows:
        raise DataError(f"{path} contains no conversations; write one per line: {EXAMPLE}")
    return Conversations(path.name, rows, lambda row: row, limit=limit)


def checked(row: Any, location: str) -> Conversation:
    """A row as a conversation to learn from, without any other keys.

    location: where the row comes from, for errors.
    Raises: DataError that starts with the location.
    """
    try:
        messages = validate(row)["messages"]
    except DataError as error:
        raise DataError(f"{location}: {error}") from None
    if messages[-1]["role"] != "assistant":
        raise DataError(
            f'{location}: the last message must have the role "assistant", to learn from'
        )
    return {"messages": [{"role": m["role"], "content": m["content"]} for m in messages]}
