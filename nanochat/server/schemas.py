"""JSON schemas of values that the server checks by its own code, for /openapi.json.

Owns: how these rules are written as schemas. What a schema cannot say (that calls have results, or
that a prompt fits the context) is in its description.
"""

from __future__ import annotations

from typing import Any

from nanochat.tokenizer.messages import REFUSED

Schema = dict[str, Any]
MAX_PROMPTS = 64
NULL: Schema = {"type": "null"}
NOTHING: Schema = {"enum": [None, "", "null", [], "[]", {}, "{}"]}
OTHER_TEXT: Schema = {"anyOf": [{"type": "string"}, {"enum": [None, [], {}]}]}
SOME_TEXT: Schema = {"type": "string", "minLength": 1}
TOKENS: Schema = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}


def _message(roles: list[str], required: list[str], **properties: Schema) -> Schema:
    refused = dict.fromkeys(REFUSED, NOTHING)
    role: Schema = {"enum": roles}
    return {
        "type": "object",
        "properties": {**refused, "refusal": OTHER_TEXT, "role": role, **properties},
        "required": ["role", *required],
    }


def _parts(text: Schema) -> Schema:
    return {
        "type": "array",
        "items": {
            "type": "object",
            "properties": {"type": {"const": "text"}, "text": text},
            "required": ["type", "text"],
        },
    }


_TEXT = {"anyOf": [{"type": "string"}, _parts({"type": "string"}), NULL]}
_CALL: Schema = {
    "type": "object",
    "properties": {
        "id": {"type": "string"},
        "type": {"const": "function"},
        "function": {
            "type": "object",
            "properties": {"name": {"type": "string"}, "arguments": {"type": "string"}},
            "required": ["name", "arguments"],
        },
    },
    "required": ["id", "function"],
}
USER = _message(
    ["user"], ["content"], content={"anyOf": [SOME_TEXT, {**_parts(SOME_TEXT), "minItems": 1}]}
)
SYSTEM = _message(["system", "developer"], [], content=_TEXT)
ASSISTANT = _message(
    ["assistant"],
    [],
    content=_TEXT,
    tool_calls={"anyOf": [{"type": "array", "items": _CALL}, NULL]},
    weight={"enum": [0, 1, None]},
)
TOOL = _message(["tool"], ["tool_call_id"], content=_TEXT, tool_call_id={"type": "string"})

MESSAGES: Schema = {
    "type": "array",
    "minItems": 1,
    "items": {"anyOf": [USER, SYSTEM, ASSISTANT, TOOL]},
    "contains": USER,
    "description": "each call of a function needs its result, a message of role tool; if the last "
    "message is the assistant's, the answer goes on with it",
}
LIMIT: Schema = {"anyOf": [{"type": "integer", "minimum": 1}, {"const": -1}, NULL]}
LIMIT_OR_0: Schema = {"anyOf": [{"type": "integer", "minimum": 0}, {"const": -1}, NULL]}
PROMPT: Schema = {
    "anyOf": [
        {"type": "string"},
        TOKENS,
        *(
            {"type": "array", "items": kind, "minItems": 1, "maxItems": MAX_PROMPTS}
            for kind in ({"type": "string"}, TOKENS)
        ),
    ]
}
TOP_LOGPROBS_NEED_LOGPROBS: Schema = {
    "anyOf": [
        {"properties": {"top_logprobs": {"enum": [0, None]}}},
        {"properties": {"logprobs": {"const": True}}, "required": ["logprobs"]},
    ]
}
NO_STREAM_OF_PROMPT_LOGPROBS: Schema = {
    "not": {
        "properties": {
            "stream": {"const": True},
            "echo": {"const": True},
            "logprobs": {"type": "integer"},
        },
        "required": ["stream", "echo", "logprobs"],
    }
}
EITHER_TEXT_OR_MESSAGES: Schema = {
    "oneOf": [
        {
            "properties": {given: {"not": NULL}, other: NULL},
            "required": [given],
        }
        for given, other in (("text", "messages"), ("messages", "text"))
    ]
}
