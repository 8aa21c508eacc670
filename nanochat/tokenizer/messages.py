"""Messages in OpenAI's format as one dialogue: the only judge of roles, order and types of parts.

Owns: which roles, parts and fields there are, and what each means to the model. Training files, the
server, evaluation and RL all read messages here, so that all understand the same. Does not own
tokens (conversation.py) or the other formats of files (data/tasks/chat_formats.py).

- "developer" is "system". System messages, wherever they are, become one text at the front.
- Messages of the same role in a row become one, with a blank line between. An empty one adds
  nothing; a user must say something.
- Content is text, null, or a list of parts: text, and in an assistant's message also calls of the
  calculator and their outputs ("python", "python_output").
- The answer to a message is learned unless its "weight" is 0. An empty answer is not learned. An
  assistant's message before the user's first is a greeting: context, but not learned.
- What would change the meaning and cannot be rendered is refused by name: tools, pictures, sound.
  Any other field is listed in `Dialogue.unused`, so that a reader of files can say so.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Literal, NotRequired, TypedDict

from nanochat.system.errors import DataError

PartType = Literal["text", "python", "python_output"]
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
BLANK_LINE = "\n\n"

# type of a part -> what it is to the model, and the key of its text
_PARTS: dict[str, tuple[PartType, str]] = {
    "text": ("text", "text"),
    "input_text": ("text", "text"),
    "output_text": ("text", "text"),
    "refusal": ("text", "refusal"),
    "python": ("python", "text"),
    "python_output": ("python_output", "text"),
}
# Fields of a message, or of a row of messages, that must be empty, and what to say if they are not:
# an answer that calls a tool or speaks of a picture makes no sense without them.
REFUSED = {
    **dict.fromkeys(
        ("tools", "tool_calls", "tool_call_id", "functions", "function_call", "function_calls"),
        "the only tool is the calculator, as parts of type python and python_output",
    ),
    "train_detail": 'write "weight": 0 for an answer that is not to be learned',
    **dict.fromkeys(
        ("image", "images", "audio", "audios", "video", "videos"), "this model reads text only"
    ),
}
# other trainers' names for a weight of 0 or 1, and the value that means 1
_SWITCHES = {"train": True, "training": True, "loss": True, "loss_mask": True, "masked": False}
_KNOWN = {"role", "content", "refusal", "weight", *REFUSED, *_SWITCHES}


class Part(TypedDict):
    """A piece of an assistant's message."""

    type: PartType
    text: str


class Message(TypedDict):
    """One message; role is system, developer, user or assistant; weight 0: not learned."""

    role: str
    content: str | list[Part]
    weight: NotRequired[int]


class Conversation(TypedDict):
    """Messages in order."""

    messages: list[Message]


class MessageError(DataError):
    """Messages that are not a conversation; `path` is the field's, such as messages[0].role."""

    def __init__(self, message: str, path: str = "messages") -> None:
        super().__init__(message)
        self.path = path


@dataclass(frozen=True)
class Piece:
    """Part of an answer; learned: whether its message counts in the loss."""

    kind: PartType
    text: str
    learned: bool


@dataclass(frozen=True)
class Turn:
    """A user's message and its answer: None if there is none yet, and without pieces if empty.

    The user's text is empty only before a greeting. place: of its first message in the list.
    """

    user: str
    answer: Sequence[Piece] | None
    place: int = dataclasses.field(default=0, compare=False)

    @property
    def learned(self) -> bool:
        """Whether the model learns to end the answer where it ends."""
        return self.answer[-1].learned if self.answer else False


@dataclass(frozen=True)
class Dialogue:
    """What the messages say; unused: names of fields that are not empty and have no effect."""

    system: str
    turns: Sequence[Turn]
    unused: frozenset[str]

    @property
    def teaches(self) -> bool:
        """Whether there is an answer to learn from."""
        return any(
            piece.learned and piece.text for turn in self.turns for piece in turn.answer or ()
        )


@dataclass(frozen=True)
class _Said:
    """One message as read."""

    place: int
    role: str
    pieces: list[Piece]

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)


def read_messages(messages: Any) -> Dialogue:
    """The dialogue that a list of messages makes.

    Raises: MessageError naming the message that is wrong, the error and what is expected.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise MessageError(
            f'"messages" must be a list of at least one message, got {shortened(messages)}'
        )
    unused: set[str] = set()
    said = [_read_message(message, place, unused) for place, message in enumerate(messages)]
    system = [message.text for message in said if message.role == "system"]
    spoken = [message for message in said if message.role != "system"]
    return Dialogue(BLANK_LINE.join(filter(None, system)), _turns(spoken), frozenset(unused))


def is_empty(value: Any) -> bool:
    """Whether a field's value says nothing: null, or an empty text, list or object."""
    return value is None or (isinstance(value, str | list | dict) and not value)


def says_nothing(value: Any) -> bool:
    """Whether a field is empty, or holds something empty as JSON: "tools": "[]"."""
    return is_empty(value) or (isinstance(value, str) and value.strip() in ("", "[]", "{}", "null"))


def shortened(value: Any) -> str:
    """A value for a message, of at most 60 characters."""
    try:
        text = repr(value)
    except RecursionError:
        text = f"a deeply nested {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _turns(spoken: Sequence[_Said]) -> list[Turn]:
    """The turns that the messages of users and assistants make."""
    turns: list[Turn] = []
    for role, group in groupby(spoken, key=lambda message: message.role):
        said = list(group)
        if role == "user":
            text = BLANK_LINE.join(message.text for message in said if message.text)
            if not text:
                where = said[0].place
                raise MessageError(
                    f"message {where + 1} (user) is empty; remove it or add text",
                    f"messages[{where}].content",
                )
            turns.append(Turn(text, None, said[0].place))
        elif turns:
            turns[-1] = replace(turns[-1], answer=_merged(said))
        elif greeting := _merged(said):
            # It answers nobody: the engine never starts a chat, so learning it would be in vain.
            # After an empty message of the user's it stands where answers always stand, and the
            # system message stays in front of it.
            unlearned = [replace(piece, learned=False) for piece in greeting]
            turns.append(Turn("", unlearned, said[0].place))
    if not any(turn.user for turn in turns):
        raise MessageError('a conversation needs a message of role "user"')
    return turns


def _merged(said: Sequence[_Said]) -> list[Piece]:
    """Consecutive answers as one; text that is learned differently stays apart."""
    pieces: list[Piece] = []
    for message in said:
        if not message.text:
            continue
        first, *rest = message.pieces
        if pieces:
            if first.kind != "text":
                first, rest = Piece("text", "", first.learned), message.pieces
            first = replace(first, text=BLANK_LINE + first.text)
            if pieces[-1].kind == "text" and pieces[-1].learned == first.learned:
                first = replace(first, text=pieces.pop().text + first.text)
        pieces += [first, *rest]
    return pieces


def _read_message(message: Any, place: int, unused: set[str]) -> _Said:
    path, name = f"messages[{place}]", f"message {place + 1}"
    if not isinstance(message, dict):
        raise MessageError(f"{name} is not an object with role and content", path)
    given = message.get("role")
    role = ROLES.get(given) if isinstance(given, str) else None
    if role is None:
        raise MessageError(
            f"{name} has role {shortened(given)}, expected system, developer, user or assistant",
            f"{path}.role",
        )
    name = f"{name} ({given})"
    for field in REFUSED:
        if field in message and not says_nothing(message[field]):
            value = shortened(message[field])
            raise MessageError(
                f'{name} has "{field}": {value}; {REFUSED[field]}', f"{path}.{field}"
            )
    learned = _is_learned(message, name, path) if role == "assistant" else False
    unused |= {
        key for key, value in message.items() if key not in _KNOWN and not says_nothing(value)
    }
    pieces = [Piece(*part, learned) for part in _read_parts(message, role, name, path, unused)]
    return _Said(place, role, pieces)


def _is_learned(message: dict[str, Any], name: str, path: str) -> bool:
    """Whether an answer counts in the loss, by its weight."""
    for field, as_usual in _SWITCHES.items():
        value = message.get(field)
        if value is not None and value != as_usual:
            raise MessageError(
                f'{name} has "{field}": {shortened(value)}; write "weight": 0 for an answer that '
                "is not to be learned",
                f"{path}.{field}",
            )
    weight = message.get("weight")
    if weight is not None and (isinstance(weight, bool) or weight not in (0, 1)):
        raise MessageError(
            f'{name} has "weight": {shortened(weight)}; it must be 0 (not learned) or 1',
            f"{path}.weight",
        )
    return weight != 0


def _read_parts(
    message: dict[str, Any], role: str, name: str, path: str, unused: set[str]
) -> list[tuple[PartType, str]]:
    """The kinds and texts of a message's content, and of its refusal if it has one."""
    content, refusal = message.get("content"), message.get("refusal")
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, list | None):
        raise MessageError(
            f"{name}: content must be text or a list of parts, got {shortened(content)}",
            f"{path}.content",
        )
    read = [
        _read_part(part, role, name, f"{path}.content[{i}]", unused)
        for i, part in enumerate(content or ())
    ]
    if not is_empty(refusal):
        read.append(_read_part({"type": "refusal", "refusal": refusal}, role, name, path, unused))
    return read


def _read_part(
    part: Any, role: str, name: str, path: str, unused: set[str]
) -> tuple[PartType, str]:
    known = [kind for kind in _PARTS if role == "assistant" or not kind.startswith("python")]
    if not isinstance(part, dict):
        raise MessageError(f"{name}: content has {shortened(part)} for a part", path)
    given = part.get("type")
    if given not in known:
        raise MessageError(
            f"{name}: content has a part of type {shortened(given)}; known are {', '.join(known)}",
            f"{path}.type",
        )
    kind, key = _PARTS[given]
    text = part.get(key)
    if not isinstance(text, str):
        raise MessageError(
            f'{name}: "{key}" of a part must be text, got {shortened(text)}', f"{path}.{key}"
        )
    unused |= {k for k, value in part.items() if k not in ("type", key) and not is_empty(value)}
    return kind, text
