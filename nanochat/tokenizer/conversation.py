"""Conversations as tokens: rendering with a loss mask, prompts, and streaming decoding.

Owns the chat format. A conversation is {"messages": [...]}, which messages.py reads: a system text,
then turns of a user's message and its answer. Knows no dataset and no model.

    <|bos|> <|user_start|> ... <|user_end|> <|assistant_start|> ... <|assistant_end|> <|user_start|>

The system text stands in front of the first user's message. Inside an assistant's message,
<|python_start|> 2+3 <|python_end|> calls the calculator and <|output_start|> 5 <|output_end|> is
its result.
"""

import codecs
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from nanochat.system.errors import ConfigError, DataError
from nanochat.tokenizer.bpe import Tokenizer
from nanochat.tokenizer.messages import (
    BLANK_LINE,
    ROLES,
    Conversation,
    Message,
    MessageError,
    Part,
    PartType,
    Turn,
    read_messages,
    shortened,
)

__all__ = [
    "Conversation",
    "Message",
    "Part",
    "PartType",
    "Rendered",
    "StreamDecoder",
    "fit_prompt",
    "render",
    "render_prompt",
    "validate",
]

MIN_TURN = 4  # tokens: bos, user_start, one of text, user_end


@dataclass(frozen=True)
class Rendered:
    """A conversation as tokens; mask[i] is 1 if predicting token i counts in the loss, else 0."""

    tokens: list[int]
    mask: list[int]

    def add(self, tokens: Sequence[int], learned: int) -> None:
        """Append tokens that all have the same mask."""
        self.tokens.extend(tokens)
        self.mask.extend([learned] * len(tokens))


def validate(conversation: Any) -> Conversation:
    """Check a conversation and return it.

    Raises: DataError naming the message that is wrong, the error and what is expected.
    """
    if not isinstance(conversation, dict) or "messages" not in conversation:
        raise DataError(
            'a conversation must be an object with a list "messages", got '
            + shortened(conversation)
        )
    read_messages(conversation["messages"])
    return cast(Conversation, conversation)


def render(conversation: Conversation, tokenizer: Tokenizer) -> Rendered:
    """Tokens of a conversation and the mask of those that the model learns to generate.

    These are the text, the tool calls and the <|assistant_end|> of answers that are to be learned
    (see messages.py), but not tool outputs.
    Raises: DataError if the conversation is not valid.
    """
    dialogue = read_messages(conversation["messages"])
    return _render_turns(dialogue.turns, tokenizer, dialogue.system)


def render_prompt(
    messages: Sequence[Message], tokenizer: Tokenizer, max_tokens: int | None = None
) -> list[int]:
    """Tokens of a conversation so far, ending where the model is to go on.

    This is where the assistant's answer starts; or, if the last message is the assistant's, after
    what it has said so far.
    max_tokens: the oldest turns are dropped until the prompt fits; the system message stays. If
        the last turn alone does not fit, the beginning of its messages is cut off. None: no limit.
    Raises: DataError if the messages are not valid; ConfigError if max_tokens is too small for any
        prompt.
    """
    asked = _Asked.read(messages, tokenizer)
    if max_tokens is None:
        return asked.prompt(asked.turns, asked.so_far)
    room = max_tokens - 1  # without assistant_start
    so_far = asked.so_far
    kept = _fitting_turns(asked.turns, tokenizer, asked.system, room - len(so_far))
    if not kept:
        # A long beginning of an answer keeps its end; the question gets the other half.
        so_far = so_far[max(0, len(so_far) - max(0, room - MIN_TURN) // 2) :]
        room -= len(so_far)
        kept = _fitting_turns(asked.turns, tokenizer, asked.system, room)
    if not kept:
        cut = _cut_turn(asked.turns[-1], tokenizer, asked.system, room)
        return [*cut, tokenizer.special_id("<|assistant_start|>"), *so_far]
    return asked.prompt(kept, so_far)


def fit_prompt(
    messages: Sequence[Message], tokenizer: Tokenizer, max_tokens: int
) -> tuple[list[int], int]:
    """The prompt of `render_prompt` without as many of the oldest turns as it takes to fit.

    Nothing is cut: the system message and the last turn stay as they are. Also returns how many
    messages were left out.
    Raises: DataError if the messages are not valid; ConfigError if those two alone do not fit.
    """
    asked = _Asked.read(messages, tokenizer)
    room = max_tokens - 1 - len(asked.so_far)
    kept = _fitting_turns(asked.turns, tokenizer, asked.system, room)
    if not kept:
        raise ConfigError(f"the last message and the system's take more than {max_tokens} tokens")
    left_out = [ROLES[message["role"]] for message in messages[: kept[0].place]]
    return asked.prompt(kept, asked.so_far), len(left_out) - left_out.count("system")


@dataclass(frozen=True)
class _Asked:
    """Messages that wait for an answer; so_far: tokens of the answer to go on with."""

    tokenizer: Tokenizer
    system: str
    turns: Sequence[Turn]  # the last one without its answer
    so_far: list[int]

    @classmethod
    def read(cls, messages: Sequence[Message], tokenizer: Tokenizer) -> "_Asked":
        dialogue = read_messages(messages)
        last = dialogue.turns[-1]
        if last.answer and last.answer[-1].kind == "python":
            raise MessageError("the answer to go on with ends in a python part without its output")
        turns = [*dialogue.turns[:-1], replace(last, answer=None)]
        return cls(tokenizer, dialogue.system, turns, _answer_tokens(last, tokenizer).tokens)

    def prompt(self, turns: Sequence[Turn], so_far: Sequence[int]) -> list[int]:
        start = self.tokenizer.special_id("<|assistant_start|>")
        return [*_render_turns(turns, self.tokenizer, self.system).tokens, start, *so_far]


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


def _render_turns(turns: Sequence[Turn], tokenizer: Tokenizer, system: str) -> Rendered:
    """Turns as tokens; there is no system turn, its text starts the first user message."""
    rendered = Rendered([tokenizer.bos_id], [0])
    for number, turn in enumerate(turns):
        _append_turn(rendered, turn, tokenizer, system if number == 0 else "")
    return rendered


def _append_turn(rendered: Rendered, turn: Turn, tokenizer: Tokenizer, system: str) -> None:
    # Loss only on what the model itself will generate. Learning to predict user messages would
    # waste capacity; learning to predict tool outputs would teach it to make results up.
    user = BLANK_LINE.join(filter(None, (system, turn.user)))
    rendered.add([tokenizer.special_id("<|user_start|>")], 0)
    rendered.add(tokenizer.encode(user), 0)
    rendered.add([tokenizer.special_id("<|user_end|>")], 0)
    if turn.answer is None:
        return
    # the prompt ends with it, so it is never generated
    rendered.add([tokenizer.special_id("<|assistant_start|>")], 0)
    answer = _answer_tokens(turn, tokenizer)
    rendered.tokens.extend(answer.tokens)
    rendered.mask.extend(answer.mask)
    # without loss here the model would never stop
    rendered.add([tokenizer.special_id("<|assistant_end|>")], int(turn.learned))


def _answer_tokens(turn: Turn, tokenizer: Tokenizer) -> Rendered:
    """What the assistant says in a turn, without the tokens around it."""
    said = Rendered([], [])

    def special(name: str) -> int:
        return tokenizer.special_id(f"<|{name}|>")

    for piece in turn.answer or ():
        ids, learned = tokenizer.encode(piece.text), int(piece.learned)
        if piece.kind == "python":
            said.add([special("python_start"), *ids, special("python_end")], learned)
        elif piece.kind == "python_output":
            # Computed by the engine and inserted: the model reads it but never writes it.
            said.add([special("output_start"), *ids, special("output_end")], 0)
        else:
            said.add(ids, learned)
    return said


def _fitting_turns(
    turns: Sequence[Turn], tokenizer: Tokenizer, system: str, room: int
) -> Sequence[Turn]:
    """The most recent turns that fit; empty if not even the last one does.

    Turns older than those that fit are not encoded, however many there are.
    """
    kept: Sequence[Turn] = ()
    later = 0  # tokens of the later turns
    if len(tokenizer.encode(system)) > room:
        return kept
    for first in reversed(range(len(turns))):
        turn = turns[first : first + 1]
        if later + len(_render_turns(turn, tokenizer, system).tokens) > room:
            break
        kept = turns[first:]
        later += len(_render_turns(turn, tokenizer, "").tokens) - 1  # without <|bos|>
    return kept


def _cut_turn(turn: Turn, tokenizer: Tokenizer, system: str, room: int) -> list[int]:
    """A user's message cut to fit; the system message gets at most half of the room."""
    start, end = tokenizer.special_id("<|user_start|>"), tokenizer.special_id("<|user_end|>")
    if room < MIN_TURN:
        raise ConfigError(f"a prompt needs room for at least 5 tokens, got {room + 1}")
    text_room = room - 3  # bos, start and end
    prefix = system + BLANK_LINE if system else ""
    head = tokenizer.encode(prefix)[: text_room // 2]
    tail = tokenizer.encode(turn.user)[-(text_room - len(head)) :]
    return [tokenizer.bos_id, start, *head, *tail, end]
