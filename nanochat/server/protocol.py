"""The JSON of the chat API: requests checked and made plain, answers in OpenAI's shapes.

Owns every field name. Knows no HTTP, no engine thread.
Source: OpenAI API reference, "Create chat completion" and "chat completion chunk"; the fields
top_k, tool_activity and max_model_len are extensions.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from nanochat.engine import Completion, SamplingParams
from nanochat.system.errors import ConfigError
from nanochat.tokenizer.conversation import PART_TYPES, Message, Part, PartType

MAX_CHOICES = 8
MAX_STOPS = 4
Json = dict[str, Any]


class ApiError(Exception):
    """An error that the client is told: HTTP status and OpenAI's error object."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code

    def body(self) -> Json:
        """The error as the client reads it."""
        kinds = {429: "rate_limit_error"}
        kind = kinds.get(self.status, "server_error" if self.status >= 500 else None)
        return {
            "error": {
                "message": self.message,
                "type": kind or "invalid_request_error",
                "param": self.param,
                "code": self.code,
            }
        }


@dataclass(frozen=True, kw_only=True)
class ChatDefaults:
    """What a request gets that does not say how to sample."""

    temperature: float = 0.7
    top_k: int | None = 50
    top_p: float | None = None


@dataclass(frozen=True, kw_only=True)
class ChatCall:
    """A checked request for a chat completion."""

    messages: list[Message]
    temperature: float
    top_k: int | None
    top_p: float | None
    max_tokens: int | None
    seed: int | None
    stop: tuple[str, ...]
    choices: int
    stream: bool
    include_usage: bool
    tool_activity: bool  # show what the calculator was asked and what it answered

    def params(self, max_new_tokens: int, choice: int) -> SamplingParams:
        """The settings of one choice; a seed serves all choices, each its own way."""
        return SamplingParams(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            max_new_tokens=max_new_tokens,
            seed=None if self.seed is None else self.seed + choice,
            stop=self.stop,
        )


def parse_chat(body: Any, defaults: ChatDefaults) -> ChatCall:
    """Check a request's body; unknown fields are ignored.

    Raises: ApiError 400 naming the field, its value and what it may be.
    """
    if not isinstance(body, dict):
        raise ApiError(400, f"the body must be a JSON object, got {type(body).__name__}")
    limits = [_whole(body, name, 1, None) for name in ("max_completion_tokens", "max_tokens")]
    options = body.get("stream_options") or {}
    call = ChatCall(
        messages=parse_messages(body.get("messages")),
        temperature=_number(body, "temperature", 0, 2, defaults.temperature),
        top_k=_whole(body, "top_k", 0, None, defaults.top_k),
        top_p=_number(body, "top_p", 0, 1, defaults.top_p),
        max_tokens=limits[0] or limits[1],
        seed=_whole(body, "seed", None, None),
        stop=_stop(body.get("stop")),
        choices=_whole(body, "n", 1, MAX_CHOICES) or 1,
        stream=_flag(body, "stream"),
        include_usage=isinstance(options, dict) and _flag(options, "include_usage"),
        tool_activity=_flag(body, "tool_activity"),
    )
    try:
        call.params(1, 0)
    except ConfigError as error:
        raise ApiError(400, str(error)) from None
    return call


def parse_messages(value: Any) -> list[Message]:
    """Check messages and make them what a conversation may hold.

    System and developer messages become one at the front; neighbours of one role become one.
    Raises: ApiError 400.
    """
    if not isinstance(value, list) or not value:
        raise ApiError(400, '"messages" must be a list of one or more', param="messages")
    system: list[str] = []
    messages: list[Message] = []
    for number, message in enumerate(value):
        param = f"messages[{number}]"
        role = message.get("role") if isinstance(message, dict) else None
        if role not in ("system", "developer", "user", "assistant"):
            raise ApiError(
                400,
                f"{param} needs a role: system, developer, user or assistant; got {_short(role)}",
                param=param,
            )
        parts = _parts(message.get("content"), param)
        if role in ("system", "developer"):
            system.append("".join(part["text"] for part in parts))
        elif messages and messages[-1]["role"] == role:
            before = messages[-1]["content"]
            assert isinstance(before, list)
            before += [{"type": "text", "text": "\n\n"}, *parts]
        else:
            messages.append({"role": role, "content": parts})
    lead = "\n\n".join(text for text in system if text)
    return [*([Message(role="system", content=lead)] if lead else []), *messages]


def _parts(content: Any, param: str) -> list[Part]:
    if isinstance(content, str) or content is None:
        return [{"type": "text", "text": content or ""}]
    parts: list[Any] = content if isinstance(content, list) else [None]
    if all(isinstance(p, dict) and isinstance(p.get("text"), str) for p in parts) and all(
        part.get("type") in PART_TYPES for part in parts
    ):
        return [Part(type=part["type"], text=part["text"]) for part in parts]
    raise ApiError(
        400,
        f'{param}.content must be text or a list of {{"type": "text", "text": "..."}} parts',
        param=f"{param}.content",
    )


def _number(body: Json, name: str, low: float, high: float, default: Any = None) -> Any:
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ApiError(
            400, f"{name} must be a number in [{low}, {high}], got {_short(value)}", param=name
        )
    return float(value)


def _whole(
    body: Json, name: str, low: int | None, high: int | None, default: int | None = None
) -> int | None:
    value = body.get(name)
    if value is None:
        return default
    right = isinstance(value, int) and not isinstance(value, bool)
    if not right or (low is not None and value < low) or (high is not None and value > high):
        least = "" if low is None else f" of at least {low}"
        most = "" if high is None else f" and at most {high}"
        raise ApiError(
            400, f"{name} must be a whole number{least}{most}, got {_short(value)}", param=name
        )
    return int(value)


def _flag(body: Json, name: str) -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise ApiError(400, f"{name} must be true or false, got {_short(value)}", param=name)
    return bool(value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _stop(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value or []
    right = isinstance(stops, list) and len(stops) <= MAX_STOPS
    if not right or not all(isinstance(stop, str) and stop for stop in stops):
        raise ApiError(
            400, f"stop must be a string or up to {MAX_STOPS} non-empty strings", param="stop"
        )
    return tuple(stops)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Writes one request's answer, whole or in chunks."""

    model: str
    prompt_tokens: int
    tool_activity: bool
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, completions: Sequence[Completion]) -> Json:
        """The answer in one piece."""
        choices = []
        for index, completion in enumerate(completions):
            message: Json = {"role": "assistant", "content": completion.text}
            if self.tool_activity:
                message["tool_activity"] = completion.parts
            choices.append(
                {
                    "index": index,
                    "message": message,
                    "logprobs": None,
                    "finish_reason": completion.finish_reason,
                }
            )
        return {
            **self._head("chat.completion"),
            "choices": choices,
            "usage": self.usage(completions),
        }

    def opening(self, index: int) -> Json:
        """The first chunk of a choice."""
        return self._chunk(index, {"role": "assistant", "content": ""})

    def piece(self, index: int, kind: PartType, text: str) -> Json | None:
        """A chunk with more of a choice; None if the client does not want that kind."""
        if not text:
            return None
        if kind == "text":
            return self._chunk(index, {"content": text})
        if self.tool_activity:
            return self._chunk(index, {"tool_activity": {"type": kind, "text": text}})
        return None

    def closing(self, index: int, completion: Completion) -> Json:
        """The last chunk of a choice."""
        return self._chunk(index, {}, completion.finish_reason)

    def usage_chunk(self, completions: Sequence[Completion]) -> Json:
        """The chunk after all choices, for clients that ask for it."""
        return {
            **self._head("chat.completion.chunk"),
            "choices": [],
            "usage": self.usage(completions),
        }

    def usage(self, completions: Sequence[Completion]) -> Json:
        """Tokens read and written, forced tool output included."""
        written = sum(len(completion.tokens) for completion in completions)
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": written,
            "total_tokens": self.prompt_tokens + written,
        }

    def _head(self, kind: str) -> Json:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _chunk(self, index: int, delta: Json, reason: str | None = None) -> Json:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
        return {**self._head("chat.completion.chunk"), "choices": [choice]}


def model_card(name: str, created: int, *, max_len: int, defaults: ChatDefaults) -> Json:
    """A model as /v1/models lists it."""
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "nanochat",
        "max_model_len": max_len,
        "defaults": {
            "temperature": defaults.temperature,
            "top_k": defaults.top_k,
            "top_p": defaults.top_p,
        },
    }
