"""Functions that a client offers: how the model is told of them, and how calls and results look.

Owns: the fields `tools`, `tool_choice` and `response_format`, and the place of calls in a
conversation. Does not own: holding the model to a format (grammar).

A call has the form in which a nanochat model knows its calculator, with JSON in place of an
expression; the client's result stands where the calculator's output would:

    <|python_start|>{"name":"f","arguments":{"x":1}}<|python_end|><|output_start|>5<|output_end|>

The functions are told in the system text, one JSON object a line.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from nanochat.server.fields import RequestModel
from nanochat.tokenizer.messages import MessageError, is_empty, shortened

INTRODUCTION = "Functions you can call:"
Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


class Function(RequestModel):
    """A function by its name and the JSON schema of its arguments."""

    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = Field(None, description="no effect: arguments always fit parameters")

    @property
    def arguments(self) -> dict[str, Any]:
        """The JSON schema of the arguments, an object."""
        return {"type": "object", **(self.parameters or {"properties": {}})}


class Tool(RequestModel):
    """A tool; functions are the only kind."""

    type: Literal["function"]
    function: Function


class FunctionName(RequestModel):
    """A function's name."""

    name: str


class NamedChoice(RequestModel):
    """The function that must be called."""

    type: Literal["function"]
    function: FunctionName


class TextFormat(RequestModel):
    """Any text."""

    type: Literal["text"]


class ObjectFormat(RequestModel):
    """Any JSON object."""

    type: Literal["json_object"]


class NamedSchema(RequestModel):
    """A JSON schema and what it is called."""

    name: Name
    description: str | None = None
    schema_: dict[str, Any] = Field({}, alias="schema")
    strict: bool | None = Field(None, description="no effect: answers always fit the schema")


class SchemaFormat(RequestModel):
    """JSON that fits a schema."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


ToolChoice = Literal["none", "auto", "required"] | NamedChoice
ResponseFormat = Annotated[TextFormat | ObjectFormat | SchemaFormat, Field(discriminator="type")]


def introduction(functions: Sequence[Function]) -> str:
    """What the system text says of the functions."""
    told = [function.model_dump(exclude={"strict"}, exclude_none=True) for function in functions]
    return "\n".join([INTRODUCTION, *map(compact, told)])


def compact(value: Any) -> str:
    """JSON without spaces, as the model writes it."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def call_of(text: str) -> dict[str, Any] | None:
    """The `function` of a tool call that this code is; None if it is a calculation or cut off."""
    if not text.startswith("{"):
        return None
    try:
        call = json.loads(text)
    except ValueError:
        return None
    return {"name": call["name"], "arguments": compact(call["arguments"])}


def with_results(messages: Sequence[Any]) -> list[Any]:
    """Messages with calls and their results as parts of one assistant's message.

    The list stays as long as it was, so that errors name the right message: what has moved leaves
    an empty message.
    Raises: MessageError for calls without a result, and results without a call.
    """
    read: list[Any] = []
    answer: list[Any] | None = None  # parts of the message that calls and results come together in
    waiting: dict[str, tuple[int, dict[str, str]]] = {}  # calls by id: place, part of the result
    for place, message in enumerate(messages):
        said = message if isinstance(message, dict) else {}
        role, calls = said.get("role"), said.get("tool_calls")
        if role == "tool":
            _take_result(said, place, waiting)
            read.append({"role": "assistant", "content": []})
            continue
        _expect_results(waiting)
        if role == "assistant" and (answer is not None or not is_empty(calls)):
            parts = _parts(said.get("content"))
            for number, call in enumerate(calls or ()):
                path = f"messages[{place}].tool_calls[{number}]"
                name, text = _read_call(call, path)
                result = {"type": "python_output", "text": ""}
                waiting[name] = (place, result)
                parts += [{"type": "python", "text": text}, result]
            rest = {key: value for key, value in said.items() if key != "tool_calls"}
            if answer is None:
                answer = parts
                read.append({**rest, "content": parts})
            else:
                answer += parts
                read.append({"role": "assistant", "content": []})
            continue
        if role == "user":
            answer = None
        read.append(message)
    _expect_results(waiting)
    return read


def _parts(content: Any) -> Any:
    """A message's content as a list of parts, which the tokenizer judges."""
    if content is None or content == "":
        return []
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content)


def _read_call(call: Any, path: str) -> tuple[str, str]:
    """The id of a call, and the call as the model writes it."""
    try:
        name, arguments = call["function"]["name"], json.loads(call["function"]["arguments"])
        identity = call["id"]
        if not isinstance(identity, str) or not isinstance(arguments, dict):
            raise TypeError
        return identity, compact({"name": name, "arguments": arguments})
    except (KeyError, TypeError, ValueError, RecursionError):
        expected = "an id and a function with name and arguments, a JSON object as text"
        raise MessageError(f"a call needs {expected}, got {shortened(call)}", path) from None


def _take_result(
    message: dict[str, Any], place: int, waiting: dict[str, tuple[int, dict[str, str]]]
) -> None:
    """Put a result where its call waits for it."""
    name, path = f"message {place + 1} (tool)", f"messages[{place}]"
    identity = message.get("tool_call_id")
    found = waiting.pop(identity, None) if isinstance(identity, str) else None
    if found is None:
        raise MessageError(
            f"{name} answers no call: tool_call_id is {shortened(identity)}", f"{path}.tool_call_id"
        )
    parts = _parts(message.get("content"))
    if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in parts):
        raise MessageError(f"{name}: a result must be text", f"{path}.content")
    found[1]["text"] = "".join(part["text"] for part in parts)


def _expect_results(waiting: dict[str, tuple[int, dict[str, str]]]) -> None:
    for identity, (place, _) in waiting.items():
        raise MessageError(
            f"message {place + 1} (assistant): the call {identity!r} has no result; send a message "
            "of role tool",
            f"messages[{place}].tool_calls",
        )
