"""Conversations as tokens: rendering with a loss mask, prompts, and streaming decoding.

Owns the chat format. A conversation is {"messages": [...]}: an optional system message, then
alternating user and assistant messages. Knows no dataset and no model.

    <|bos|> <|user_start|> ... <|user_end|> <|assistant_start|> ... <|assistant_end|> <|user_start|>

Inside an assistant's message, <|python_start|> 2+3 <|python_end|> calls the calculator and
<|output_start|> 5 <|output_end|> is its result.
"""

import codecs
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict, cast

from nanochat.system.errors import ConfigError, DataError
from nanochat.tokenizer.bpe import Tokenizer

PartType = Literal["text", "python", "python_output"]
PART_TYPES: tuple[PartType, ...] = ("text", "python", "python_output")


class Part(TypedDict):
    """A piece of an assistant's message."""

    type: PartType
    text: str


class Message(TypedDict):
    """One message; role is system, user or assistant."""

    role: str
    content: str | list[Part]


class Conversation(TypedDict):
    """Messages in order."""

    messages: list[Message]


@dataclass(frozen=True)
class Rendered:
    """A conversation as tokens; mask[i] is 1 if predicting token i counts in the loss, else 0."""

    tokens: list[int]
    mask: list[int]


@dataclass(frozen=True)
class _Turn:
    """A user's message and its answer, None if there is no answer yet."""

    user: str
    answer: list[Part] | None


def validate(conversation: Any) -> Conversation:
    """Check a conversation and return it.

    Raises: DataError naming the message that is wrong, the error and what is expected.
    """
    if not isinstance(conversation, dict) or "messages" not in conversation:
        raise DataError(
            f'a conversation must be an object with a list "messages", got {_short(conversation)}'
        )
    _turns(conversation["messages"])
    return cast(Conversation, conversation)


def render(conversation: Conversation, tokenizer: Tokenizer) -> Rendered:
    """Tokens of a conversation and the mask of those that the model learns to generate.

    These are the assistant's text, its tool calls and <|assistant_end|>, but not tool outputs.
    Raises: DataError if the conversation is not valid.
    """
    system, turns = _turns(conversation["messages"])
    return _render_turns(turns, tokenizer, _system_prefix(system))


def render_prompt(
    messages: Sequence[Message], tokenizer: Tokenizer, max_tokens: int | None = None
) -> list[int]:
    """Tokens of a conversation so far, ending where the assistant's answer starts.

    max_tokens: the oldest turns are dropped until the prompt fits; the system message stays. If
        the last user message alone does not fit, its beginning is cut off. None: no limit.
    Raises: DataError if the messages are not valid or the last is not the user's; ConfigError if
        max_tokens is too small for any prompt.
    """
    system, turns = _turns(messages, for_prompt=True)
    prefix = _system_prefix(system)
    end = [tokenizer.special_id("<|assistant_start|>")]
    kept: Sequence[_Turn] = turns
    if max_tokens is not None:
        room = max_tokens - len(end)
        kept = _fitting_turns(turns, tokenizer, prefix, room)
        if not kept:
            return [*_cut_turn(turns[-1], tokenizer, prefix, room), *end]
    return [*_render_turns(kept, tokenizer, prefix).tokens, *end]


class StreamDecoder:
    """Decode tokens one by one without ever returning part of a character.

    The outputs of `push` and `flush` add up to `tokenizer.decode` of all the tokens.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The text that this token completes."""
        # A token may end inside a character (tokens are bytes): the decoder keeps the rest.
        return self._decoder.decode(self._tokenizer.decode_bytes([token]))

    def flush(self) -> str:
        """The text held back at the end: U+FFFD for an incomplete character, else nothing."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest


def _system_prefix(system: str) -> str:
    """The system message as the start of the first user message; there is no system turn."""
    return f"{system}\n\n" if system else ""


def _render_turns(turns: Sequence[_Turn], tokenizer: Tokenizer, prefix: str) -> Rendered:
    rendered = Rendered([tokenizer.bos_id], [0])
    for number, turn in enumerate(turns):
        _append_turn(rendered, turn, tokenizer, prefix if number == 0 else "")
    return rendered


def _append_turn(rendered: Rendered, turn: _Turn, tokenizer: Tokenizer, prefix: str) -> None:
    def add(ids: Sequence[int], learned: int) -> None:
        rendered.tokens.extend(ids)
        rendered.mask.extend([learned] * len(ids))

    def special(name: str) -> list[int]:
        return [tokenizer.special_id(f"<|{name}|>")]

    # Loss only on what the model itself will generate. Learning to predict user messages would
    # waste capacity; learning to predict tool outputs would teach it to make results up.
    add(special("user_start"), 0)
    add(tokenizer.encode(prefix + turn.user), 0)
    add(special("user_end"), 0)
    if turn.answer is None:
        return
    add(special("assistant_start"), 0)  # the prompt ends with it, so it is never generated
    for part in turn.answer:
        ids = tokenizer.encode(part["text"])
        if part["type"] == "python":
            add([*special("python_start"), *ids, *special("python_end")], 1)
        elif part["type"] == "python_output":
            # Computed by the engine and inserted: the model reads it but never writes it.
            add([*special("output_start"), *ids, *special("output_end")], 0)
        else:
            add(ids, 1)
    add(special("assistant_end"), 1)  # without loss here the model would never stop


def _fitting_turns(
    turns: Sequence[_Turn], tokenizer: Tokenizer, prefix: str, room: int
) -> Sequence[_Turn]:
    """The most recent turns that fit; empty if not even the last one does.

    Turns older than those that fit are not encoded, however many there are.
    """
    kept: Sequence[_Turn] = ()
    later = 0  # tokens of the later turns
    if len(tokenizer.encode(prefix)) > room:
        return kept
    for first in reversed(range(len(turns))):
        turn = turns[first : first + 1]
        if later + len(_render_turns(turn, tokenizer, prefix).tokens) > room:
            break
        kept = turns[first:]
        later += len(_render_turns(turn, tokenizer, "").tokens) - 1  # without <|bos|>
    return kept


def _cut_turn(turn: _Turn, tokenizer: Tokenizer, prefix: str, room: int) -> list[int]:
    """A turn cut to fit; the system message gets at most half of the room."""
    start, end = tokenizer.special_id("<|user_start|>"), tokenizer.special_id("<|user_end|>")
    text_room = room - 3  # bos, start and end
    if text_room < 1:
        raise ConfigError(f"a prompt needs room for at least 5 tokens, got {room + 1}")
    head = tokenizer.encode(prefix)[: text_room // 2]
    tail = tokenizer.encode(turn.user)[-(text_room - len(head)) :]
    return [tokenizer.bos_id, start, *head, *tail, end]


def _turns(messages: Any, *, for_prompt: bool = False) -> tuple[str, list[_Turn]]:
    """Check messages and return the system text and the turns.

    for_prompt: the last message must be the user's, and earlier answers may be empty.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise DataError(
            f'"messages" must be a list of at least one message, got {_short(messages)}'
        )
    system, turns = "", list[_Turn]()
    for number, message in enumerate(messages, start=1):
        role, parts = _parse_message(message, number)
        text = "".join(part["text"] for part in parts)
        wanted = "assistant" if turns and turns[-1].answer is None else "user"
        if role == "system" and number == 1:
            system = text
        elif role != wanted:
            raise DataError(f'message {number} has role {role!r}, expected "{wanted}"')
        if role == "user":
            turns.append(_Turn(text, None))
        elif role == "assistant":
            turns[-1] = _Turn(turns[-1].user, parts)
        if not text and not (for_prompt and role == "assistant"):
            raise DataError(f"message {number} ({role}) is empty; remove it or add text")
    if not turns:
        raise DataError('a conversation needs a message of role "user"')
    if for_prompt and turns[-1].answer is not None:
        raise DataError('the last message must have role "user" for the assistant to answer')
    return system, turns


def _parse_message(message: Any, number: int) -> tuple[str, list[Part]]:
    if not isinstance(message, dict):
        raise DataError(f"message {number} is not an object with role and content")
    role, content = message.get("role"), message.get("content")
    if role not in ("system", "user", "assistant"):
        raise DataError(
            f"message {number} has role {role!r}, expected system (first only), user or assistant"
        )
    if isinstance(content, str):
        return role, [{"type": "text", "text": content}]
    allowed = PART_TYPES if role == "assistant" else ("text",)
    if isinstance(content, list) and all(_is_part(part, allowed) for part in content):
        return role, content
    raise DataError(
        f"message {number} ({role}): content must be text or a list of parts "
        f'{{"type": "{"|".join(allowed)}", "text": "..."}}, got {_short(content)}'
    )


def _is_part(part: Any, allowed: Sequence[str]) -> bool:
    return (
        isinstance(part, dict) and part.get("type") in allowed and isinstance(part.get("text"), str)
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
