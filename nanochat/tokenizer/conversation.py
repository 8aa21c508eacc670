"""Conversations as tokens: rendering with a loss mask, prompts, and decoding as tokens arrive.

Owns the chat format. A conversation is {"messages": [...]}: an optional system message, then user
and assistant in turn. Knows no data set and no model.

    <|bos|> <|user_start|> ... <|user_end|> <|assistant_start|> ... <|assistant_end|> <|user_start|>

Inside an assistant's message, <|python_start|> 2+3 <|python_end|> calls the calculator and
<|output_start|> 5 <|output_end|> is what it answered.
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
    """What people and the assistant said, in order."""

    messages: list[Message]


@dataclass(frozen=True)
class Rendered:
    """A conversation as tokens; mask[i] is 1 where token i is to be predicted, else 0."""

    tokens: list[int]
    mask: list[int]


@dataclass(frozen=True)
class _Turn:
    """A user's message and the answer to it, if there is one yet."""

    user: str
    answer: list[Part] | None


def validate(conversation: Any) -> Conversation:
    """Check a conversation and return it.

    Raises: DataError saying which message is wrong, how, and what would be right.
    """
    if not isinstance(conversation, dict) or "messages" not in conversation:
        raise DataError(
            f'a conversation must be an object with a list "messages", got {_short(conversation)}'
        )
    _turns(conversation["messages"])
    return cast(Conversation, conversation)


def render(conversation: Conversation, tokenizer: Tokenizer) -> Rendered:
    """Tokens of a whole conversation, with the mask of what the model learns to say.

    That is the assistant's text, its tool calls and <|assistant_end|>; not what a tool answered.
    Raises: DataError if the conversation is not valid.
    """
    system, turns = _turns(conversation["messages"])
    return _render_turns(turns, tokenizer, _system_lead(system))


def render_prompt(
    messages: Sequence[Message], tokenizer: Tokenizer, max_tokens: int | None = None
) -> list[int]:
    """Tokens of a conversation so far, ending where the assistant is to speak.

    max_tokens: the oldest turns are left out until the prompt fits; the system message stays. If
        the last user message alone does not fit, its beginning is cut off.
    Raises: DataError if the messages are not valid or the last is not the user's; ConfigError if
        max_tokens leaves no room at all.
    """
    system, turns = _turns(messages, for_prompt=True)
    lead = _system_lead(system)
    end = [tokenizer.special_id("<|assistant_start|>")]
    kept: Sequence[_Turn] = turns
    if max_tokens is not None:
        room = max_tokens - len(end)
        kept = _fitting_turns(turns, tokenizer, lead, room)
        if not kept:
            return [*_cut_turn(turns[-1], tokenizer, lead, room), *end]
    return [*_render_turns(kept, tokenizer, lead).tokens, *end]


class StreamDecoder:
    """Decode tokens one by one, never showing half a character.

    What `push` and `flush` give adds up to `tokenizer.decode` of all the tokens.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The text that has become certain with this token."""
        return self._decoder.decode(self._tokenizer.decode_bytes([token]))

    def flush(self) -> str:
        """What was held back, as no token follows: U+FFFD for a broken character, else nothing."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest


def _system_lead(system: str) -> str:
    """What the first user message begins with; the format has no system turn."""
    return f"{system}\n\n" if system else ""


def _render_turns(turns: Sequence[_Turn], tokenizer: Tokenizer, lead: str) -> Rendered:
    rendered = Rendered([tokenizer.bos_id], [0])
    for number, turn in enumerate(turns):
        _append_turn(rendered, turn, tokenizer, lead if number == 0 else "")
    return rendered


def _append_turn(rendered: Rendered, turn: _Turn, tokenizer: Tokenizer, lead: str) -> None:
    def add(ids: Sequence[int], learnt: int) -> None:
        rendered.tokens.extend(ids)
        rendered.mask.extend([learnt] * len(ids))

    def special(name: str) -> list[int]:
        return [tokenizer.special_id(f"<|{name}|>")]

    add(special("user_start"), 0)
    add(tokenizer.encode(lead + turn.user), 0)
    add(special("user_end"), 0)
    if turn.answer is None:
        return
    add(special("assistant_start"), 0)
    for part in turn.answer:
        ids = tokenizer.encode(part["text"])
        if part["type"] == "python":
            add([*special("python_start"), *ids, *special("python_end")], 1)
        elif part["type"] == "python_output":
            add([*special("output_start"), *ids, *special("output_end")], 0)
        else:
            add(ids, 1)
    add(special("assistant_end"), 1)


def _fitting_turns(
    turns: Sequence[_Turn], tokenizer: Tokenizer, lead: str, room: int
) -> Sequence[_Turn]:
    """The longest end of the conversation that fits, or nothing if not even the last turn does.

    Older turns than fit are not looked at, however many there are.
    """
    fitting: Sequence[_Turn] = ()
    later = 0  # tokens of the turns behind the one that is looked at
    if len(tokenizer.encode(lead)) > room:
        return fitting
    for first in reversed(range(len(turns))):
        turn = turns[first : first + 1]
        if later + len(_render_turns(turn, tokenizer, lead).tokens) > room:
            break
        fitting = turns[first:]
        later += len(_render_turns(turn, tokenizer, "").tokens) - 1  # without <|bos|>
    return fitting


def _cut_turn(turn: _Turn, tokenizer: Tokenizer, lead: str, room: int) -> list[int]:
    """A turn that does not fit, as long as fits: at most half of the room is the system's."""
    start, end = tokenizer.special_id("<|user_start|>"), tokenizer.special_id("<|user_end|>")
    text_room = room - 3  # bos, start and end
    if text_room < 1:
        raise ConfigError(f"a prompt needs room for 5 tokens at least, got {room + 1}")
    head = tokenizer.encode(lead)[: text_room // 2]
    tail = tokenizer.encode(turn.user)[-(text_room - len(head)) :]
    return [tokenizer.bos_id, start, *head, *tail, end]


def _turns(messages: Any, *, for_prompt: bool = False) -> tuple[str, list[_Turn]]:
    """The system text and the turns of checked messages.

    for_prompt: the last message must be the user's, and answers given so far may be empty.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise DataError(f'"messages" must be a list of one message or more, got {_short(messages)}')
    system, turns = "", list[_Turn]()
    for number, message in enumerate(messages, start=1):
        role, parts = _checked(message, number)
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
            raise DataError(f"message {number} ({role}) is empty; leave it out or fill it in")
    if not turns:
        raise DataError('a conversation needs a message of role "user"')
    if for_prompt and turns[-1].answer is not None:
        raise DataError('the last message must be the "user"\'s for the assistant to answer')
    return system, turns


def _checked(message: Any, number: int) -> tuple[str, list[Part]]:
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
