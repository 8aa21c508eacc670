"""One row of a file of conversations, in any of the usual formats, as messages.

Owns the formats and what a row's own fields mean. Does not own messages (tokenizer/messages.py) or
files (custom_json.py).

- OpenAI: {"messages": [{"role": "user", "content": "..."}, ...]}, or the bare list
- ShareGPT: {"conversations": [{"from": "human", "value": "..."}, ...]}
- Alpaca: {"instruction": "...", "input": "...", "output": "...", "history": [["...", "..."], ...]}
- prompt/completion: {"prompt": "...", "completion": "..."}, either also a list of messages. As
  elsewhere only the completion is learned, so answers inside the prompt get the weight 0.

"system" beside any of them is a system message.
"""

from typing import Any

from nanochat.system.errors import DataError
from nanochat.tokenizer.conversation import Conversation
from nanochat.tokenizer.messages import (
    BLANK_LINE,
    REFUSED,
    is_empty,
    read_messages,
    says_nothing,
    shortened,
)

HARMLESS = {"id", "metadata", "source"}  # keys of a row that need no word
SYSTEM = ("system", "system_prompt")
PREFERENCE = ("chosen", "rejected", "rejected_response", "preferred_output", "non_preferred_output")
SPEAKERS = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "assistant", "bing", "bard", "bot", "model"), "assistant"),
}
WANTED = (
    '{"messages": [...]}, {"conversations": [...]} (ShareGPT), instruction and output (Alpaca), '
    "or prompt and completion"
)


def conversation_of(row: dict[str, Any]) -> tuple[str, Conversation, frozenset[str]]:
    """A row's format, its conversation, and the names of fields that are not used.

    Raises: DataError saying why the row cannot be learned from.
    """
    given = {key for key, value in row.items() if not says_nothing(value)}
    _refuse(row, given)
    kind, messages, used = _messages_of(row)
    system = [{"role": "system", "content": _text(row, key)} for key in SYSTEM if key in given]
    messages = [*system, *messages]
    dialogue = read_messages(messages)
    if not dialogue.teaches:
        raise DataError("no answer to learn from: none follows a user's message and has text")
    unused = dialogue.unused | (given - {*used, *SYSTEM, *HARMLESS, "weight"})
    return kind, {"messages": [_essence(message) for message in messages]}, unused


def _refuse(row: dict[str, Any], given: set[str]) -> None:
    for key in REFUSED:
        if key in given:
            raise DataError(f'"{key}": {shortened(row[key])} cannot be used; {REFUSED[key]}')
    weight = row.get("weight")
    if weight is not None and (isinstance(weight, bool) or weight != 1):
        raise DataError(
            f'"weight" of a row: {shortened(weight)} cannot be used; give it to answers'
        )
    found = [key for key in PREFERENCE if key in given]
    if isinstance(row.get("label"), bool) and "completion" in given:
        found.append("label")
    bad = [key for key in ("label", "kto_tag") if row.get(key) is False]  # KTO: an answer to avoid
    # With "messages" beside them these are still a conversation, as in ultrafeedback_binarized.
    if bad or (found and "messages" not in given):
        names = ", ".join(dict.fromkeys(found + bad))
        raise DataError(
            f"a preference row ({names}), which says what is better; SFT needs the answer to learn"
        )


def _messages_of(row: dict[str, Any]) -> tuple[str, list[Any], set[str]]:
    """The format's name, the messages, and the keys they are from."""
    for key in ("messages", "conversations", "conversation"):
        said = row.get(key)
        if said is not None:
            if not isinstance(said, list):
                raise DataError(f'"{key}" must be a list, got {shortened(said)}')
            spoken = any(isinstance(m, dict) and ("from" in m or "value" in m) for m in said)
            kind = "ShareGPT" if spoken else "OpenAI"
            return kind, [_from_sharegpt(message) for message in said], {key}
    if "instruction" in row and "output" in row:
        used = {"instruction", "input", "output", "history"}
        return "Alpaca", _from_alpaca(row), used
    if "prompt" in row and "completion" in row:
        messages = [*_side(row, "prompt", "user"), *_side(row, "completion", "assistant")]
        return "prompt/completion", messages, {"prompt", "completion"}
    if "text" in row and "role" not in row:
        raise DataError("plain text, not a conversation; it is data for base_train")
    keys = ", ".join(map(repr, list(row)[:6])) or "none"
    raise DataError(
        f"no conversation; keys: {keys}; known are {WANTED}. To rename keys: "
        "jq -c '{prompt: .question, completion: .answer}'"
    )


def _from_sharegpt(message: Any) -> Any:
    """A message with ShareGPT's keys or speakers, in whole or in part, in OpenAI's."""
    if not isinstance(message, dict) or message.keys().isdisjoint(("from", "value")):
        return message
    rest = {key: value for key, value in message.items() if key not in ("from", "value")}
    speaker = message.get("from", message.get("role"))
    role = SPEAKERS.get(speaker, speaker) if isinstance(speaker, str) else speaker
    value = message.get("value")
    return {**rest, "role": role, "content": message.get("content") if is_empty(value) else value}


def _from_alpaca(row: dict[str, Any]) -> list[Any]:
    history = row.get("history") or []
    if not isinstance(history, list):
        raise DataError(f'"history" must be a list of pairs, got {shortened(history)}')
    messages: list[Any] = []
    for pair in history:
        if not (isinstance(pair, list) and len(pair) == 2):
            raise DataError(f'"history" must hold pairs of texts, got {shortened(pair)}')
        messages += [
            {"role": "user", "content": pair[0]},
            {"role": "assistant", "content": pair[1]},
        ]
    asked = [_text(row, key) for key in ("instruction", "input") if not is_empty(row.get(key))]
    return [
        *messages,
        {"role": "user", "content": BLANK_LINE.join(asked)},
        {"role": "assistant", "content": _text(row, "output")},
    ]


def _side(row: dict[str, Any], key: str, role: str) -> list[Any]:
    """The messages of a prompt or a completion."""
    side = row[key]
    if not isinstance(side, list):
        return [{"role": role, "content": _text(row, key)}]
    messages = [_from_sharegpt(message) for message in side]
    if key == "completion":
        return messages
    return [{**m, "weight": 0} if isinstance(m, dict) else m for m in messages]


def _text(row: dict[str, Any], key: str) -> str:
    text = row[key]
    if not isinstance(text, str):
        raise DataError(f'"{key}" must be text, got {shortened(text)}')
    return text


def _essence(message: Any) -> Any:
    """A message without the fields that have no effect."""
    kept = {"role": message["role"], "content": message.get("content") or ""}
    if not is_empty(message.get("refusal")):
        kept["refusal"] = message["refusal"]
    if message["role"] == "assistant" and message.get("weight") == 0:
        kept["weight"] = 0
    return kept
