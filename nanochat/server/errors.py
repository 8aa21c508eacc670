"""Errors as clients of the API see them: an HTTP status and OpenAI's error object.

Owns: the shape, and how every exception is reported. Does not own: what is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from nanochat.server.service import Busy, NotReady
from nanochat.system.errors import UserError
from nanochat.tokenizer.messages import shortened

Json = dict[str, Any]
MAX_CHARS = 1000  # of a message


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
        param = None if param is None else _sendable(param)
        self.detail = ErrorDetail(message=_sendable(message), type=kind, param=param, code=code)

    def body(self) -> Json:
        """The response body."""
        return ErrorBody(error=self.detail).model_dump()


def _sendable(text: str) -> str:
    """A text that may quote the client: not as long as what it sent, and without surrogates."""
    text = text if len(text) <= MAX_CHARS else f"{text[:MAX_CHARS]}..."
    return text.encode(errors="backslashreplace").decode()


def reported(error: Exception) -> ApiError:
    """The error as reported to the client."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, NotReady):
        return ApiError(503, f"{error}; try again in a moment", code="not_ready")
    if isinstance(error, Busy):
        return ApiError(429, f"{error}; try again soon", code="rate_limit_exceeded")
    if isinstance(error, UserError):
        return ApiError(400, str(error))
    return ApiError(500, "the model failed on this request; see the server's log")


def invalid_field(error: Mapping[str, Any]) -> ApiError:
    """A pydantic error on the request's body, as reported to the client."""
    if error["type"] == "json_invalid":
        return ApiError(400, f"the body is not JSON: {error['ctx']['error']}")
    path = [key for key in error["loc"][1:] if key != "[key]"]  # the first part is "body"
    inner = error.get("ctx", {}).get("error")
    if isinstance(inner, FieldError):
        path, message = [*path, *inner.path], str(inner)
    else:
        got = "" if error["type"] == "missing" else f", got {shortened(error['input'])}"
        message = f"{error['msg']}{got}"
    param = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path)[1:]
    return ApiError(400, f"{param or 'the body'}: {message}", param=param or None)


class FieldError(ValueError):
    """A validator's own message on a field of the model it validates; `path` leads to it."""

    def __init__(self, message: str, *path: str | int) -> None:
        super().__init__(message)
        self.path = path


async def error_response(request: Any, error: Exception) -> Any:
    """FastAPI's handler of every exception."""
    from fastapi.responses import JSONResponse

    told = reported(error)
    headers = {"retry-after": "1"} if told.status in (429, 503) else None
    return JSONResponse(told.body(), status_code=told.status, headers=headers)


async def invalid_request(request: Any, error: Any) -> Any:
    """FastAPI's handler of a body that does not fit its model."""
    return await error_response(request, invalid_field(error.errors()[0]))


async def http_error(request: Any, error: Any) -> Any:
    """FastAPI's handler of errors that the framework raises: no such path, wrong method."""
    message = f"{request.method} {request.url.path}: {error.detail}"
    response = await error_response(request, ApiError(error.status_code, message))
    response.headers.update(error.headers or {})  # 405 names the methods there are
    return response
