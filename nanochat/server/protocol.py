"""The JSON of the chat API: a request's fields, and responses in OpenAI's format.

Owns: every field name. Does not own: HTTP or the engine's thread.
Source: OpenAI API reference, "Create chat completion" and "chat completion chunk"; the fields
top_k, tool_activity and max_model_len are extensions.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from nanochat.engine import Completion, SamplingParams
from nanochat.engine.sampling import SamplingOptions
from nanochat.tokenizer.conversation import PartType
from nanochat.tokenizer.messages import ROLES, shortened

MAX_CHOICES = 8
MAX_STOPS = 4
Json = dict[str, Any]


class ErrorDetail(BaseModel):
    """What is wrong; `param` is the path of the field, such as messages[0].content."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """OpenAI's error object."""

    error: ErrorDetail


class ApiError(Exception):
    """An error reported to the client: HTTP status and OpenAI's error object."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        kinds = {429: "rate_limit_error"}
        kind = kinds.get(status, "server_error" if status >= 500 else "invalid_request_error")
        self.detail = ErrorDetail(message=message, type=kind, param=param, code=code)

    def body(self) -> Json:
        """The response body."""
        return ErrorBody(error=self.detail).model_dump()


class RequestModel(BaseModel):
    """Base of request models: no type conversion; null is the same as leaving a field out."""

    model_config = ConfigDict(strict=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, data: Any) -> Any:
        return {k: v for k, v in data.items() if v is not None} if isinstance(data, dict) else data


def _whole(number: Any) -> Any:
    """24.0 and 1e3 are whole numbers, as JSON has only one kind; true is not one."""
    whole = isinstance(number, float) and number.is_integer()
    return int(number) if whole else number


def _stops(stop: Any) -> Any:
    stops = [stop] if isinstance(stop, str) else stop
    return [text for text in stops if text != ""] if isinstance(stops, list) else stops


def _limit(number: Any) -> Any:
    number = _whole(number)
    return None if number == -1 else number


Whole = Annotated[int, BeforeValidator(_whole)]
# Clients write "no limit" as -1 too.
Limit = Annotated[int | None, Field(ge=1), BeforeValidator(_limit)]
TopK = Annotated[int, Field(ge=0), BeforeValidator(lambda k: 0 if (k := _whole(k)) == -1 else k)]
MESSAGES_SCHEMA = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "properties": {
            "role": {"enum": list(ROLES)},
            "content": {"anyOf": [{"type": "string"}, {"type": "array"}, {"type": "null"}]},
        },
        "required": ["role"],
    },
}


class StreamOptions(RequestModel):
    """Options of a streamed response."""

    include_usage: bool = False


class ChatRequest(RequestModel):
    """A request for a chat completion. Unknown fields are ignored.

    The tokenizer judges the messages (tokenizer/messages.py), here as in training.
    """

    messages: Annotated[list[Any], WithJsonSchema(MESSAGES_SCHEMA)] = Field(min_length=1)
    temperature: float | None = Field(None, ge=0, le=2, description="default: see /v1/models")
    top_k: TopK | None = Field(None, description="0 or -1 keeps every token")
    top_p: float | None = Field(None, ge=0, le=1, description="0: always the likeliest token")
    max_completion_tokens: Limit = Field(None, description="-1: no limit")
    max_tokens: Limit = Field(None, description="older name of max_completion_tokens")
    seed: Whole | None = None
    stop: Annotated[
        list[str],
        Field(max_length=MAX_STOPS),
        BeforeValidator(_stops, json_schema_input_type=str | list[str]),
    ] = []
    n: Whole = Field(1, ge=1, le=MAX_CHOICES, description="number of answers")
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    tool_activity: bool = Field(False, description="also return the calculator's input and output")

    @property
    def token_limit(self) -> int | None:
        """The client's limit on the answer's tokens, if it set one."""
        return self.max_completion_tokens or self.max_tokens

    def params(
        self, defaults: SamplingOptions, *, max_new_tokens: int, choice: int
    ) -> SamplingParams:
        """Sampling settings of one choice; each choice gets its own seed."""
        given = self.model_dump(include={"temperature", "top_k", "top_p"}, exclude_none=True)
        return SamplingParams(
            **{**asdict(defaults), **given},
            max_new_tokens=max_new_tokens,
            seed=None if self.seed is None else self.seed + choice,
            stop=tuple(self.stop),
        )


def invalid_field(error: Mapping[str, Any]) -> ApiError:
    """A pydantic error on the request's body, as reported to the client."""
    if error["type"] == "json_invalid":
        return ApiError(400, f"the body is not JSON: {error['ctx']['error']}")
    path = error["loc"][1:]  # the first part is "body"
    param = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path)[1:]
    got = "" if error["type"] == "missing" else f", got {shortened(error['input'])}"
    return ApiError(400, f"{param or 'the body'}: {error['msg']}{got}", param=param or None)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Formats the answer to one request, complete or in chunks."""

    model: str
    prompt_tokens: int
    tool_activity: bool
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def complete(self, completions: Sequence[Completion]) -> Json:
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
        return self._head("chat.completion", choices) | {"usage": self.usage(completions)}

    def opening(self, index: int) -> Json:
        """The first chunk of a choice."""
        return self._chunk(index, {"role": "assistant", "content": ""})

    def piece(self, index: int, kind: PartType, text: str) -> Json | None:
        """The next chunk of a choice; None if the client did not ask for this kind of text."""
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
        """The chunk after all choices, sent if the client set include_usage."""
        return self._head("chat.completion.chunk", []) | {"usage": self.usage(completions)}

    def usage(self, completions: Sequence[Completion]) -> Json:
        """Token counts; the completion's include forced tool output."""
        completion_tokens = sum(len(completion.tokens) for completion in completions)
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": self.prompt_tokens + completion_tokens,
        }

    def _chunk(self, index: int, delta: Json, reason: str | None = None) -> Json:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
        return self._head("chat.completion.chunk", [choice])

    def _head(self, kind: str, choices: list[Json]) -> Json:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }


def model_card(name: str, created: int, *, max_len: int, defaults: SamplingOptions) -> Json:
    """The model's entry in /v1/models."""
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "nanochat",
        "max_model_len": max_len,
        "defaults": asdict(defaults),
    }
