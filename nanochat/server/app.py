"""The HTTP side of the chat server: routes, streaming and errors.

Owns: routes and responses. Does not own: what is refused before them (`guard`), the JSON
(`protocol`) or generation (`service`). FastAPI is imported where it is used, so that importing
nanochat stays cheap.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Collection, Coroutine, MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from nanochat.engine import Completion, Engine, Request
from nanochat.engine.sampling import SamplingOptions
from nanochat.server.guard import Guard
from nanochat.server.protocol import (
    Answer,
    ApiError,
    ChatRequest,
    ErrorBody,
    invalid_field,
    model_card,
)
from nanochat.server.service import Busy, EngineService, NotReady, Ticket
from nanochat.system.errors import ConfigError, UserError
from nanochat.tokenizer.conversation import render_prompt
from nanochat.tokenizer.messages import MessageError

if TYPE_CHECKING:
    from fastapi import FastAPI

STATIC = Path(__file__).parent / "static"
PING_S = 15.0  # send a comment this often, or proxies close an idle stream
RESERVED_TOKENS = 512  # room for the answer when the conversation would fill the context
Scope = MutableMapping[str, Any]
T = TypeVar("T")


def create_app(
    service: EngineService,
    *,
    model_name: str,
    defaults: SamplingOptions | None = None,
    allowed_hosts: Collection[str] | None = None,
) -> "FastAPI":
    """Create the application.

    model_name: the id in /v1/models. allowed_hosts: accepted host names in a request's Host header,
    so that other web sites cannot reach a server on this machine; None accepts any.
    """
    try:
        from fastapi import FastAPI
        from fastapi.exceptions import RequestValidationError
        from fastapi.staticfiles import StaticFiles
        from starlette.exceptions import HTTPException
    except ImportError as error:
        raise ConfigError(f"the server: {error}; pip install 'nanochat[serve]'") from None

    app = FastAPI(
        title="nanochat",
        docs_url=None,  # loads its scripts from a CDN, which our content security policy blocks
        redoc_url=None,
        responses={"default": {"model": ErrorBody, "description": "OpenAI's error object"}},
        exception_handlers={
            RequestValidationError: _invalid_request,
            HTTPException: _http_error,
            **dict.fromkeys((ApiError, NotReady, Busy, Exception), _error_response),
        },
    )
    app.add_middleware(Guard, allowed_hosts=allowed_hosts)
    _add_routes(app, service, model_name, defaults or SamplingOptions())
    # A mount at "/" would also match API paths with the wrong method and turn 405 into 404.
    app.router.default = StaticFiles(directory=STATIC, html=True)
    return app


def _add_routes(
    app: "FastAPI", service: EngineService, model_name: str, defaults: SamplingOptions
) -> None:
    import fastapi

    created = int(time.time())

    def card() -> dict[str, Any]:
        max_len = service.ready_engine().max_len
        return model_card(model_name, created, max_len=max_len, defaults=defaults)

    @app.post("/v1/chat/completions")
    async def chat(body: ChatRequest, http_request: fastapi.Request) -> Any:
        """Answer a conversation."""
        engine = service.ready_engine()
        requests = await asyncio.to_thread(engine_requests, body, engine, defaults)
        answer = Answer(
            model=model_name,
            prompt_tokens=len(requests[0].prompt),
            tool_activity=body.tool_activity,
        )
        ticket = service.open(requests)
        if body.stream:
            return _event_stream(ticket, _events(ticket, answer, body))
        try:
            completions = await _unless_disconnected(_completions(ticket), http_request.receive)
            if completions is None:
                return fastapi.Response(status_code=499)  # nobody is left to read it
            return answer.complete(completions)
        finally:
            ticket.close()

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """List the one model that is served."""
        return {"object": "list", "data": [card()]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        """Describe the model."""
        if name != model_name:
            raise ApiError(404, f"there is no model {name!r}", code="model_not_found")
        return card()

    @app.head("/health", include_in_schema=False)
    @app.get("/health")
    async def health() -> dict[str, Any]:
        """Report whether the model is loaded; 503 if not."""
        service.ready_engine()
        return {"status": "ok", "in_flight": service.in_flight}


def engine_requests(body: ChatRequest, engine: Engine, defaults: SamplingOptions) -> list[Request]:
    """One engine request per choice; drops the oldest turns if the prompt is too long.

    If the last message is the assistant's, the answer goes on with it and does not repeat it.
    Raises: ApiError 400 for messages that do not form a conversation.
    """
    limit = body.token_limit
    reserved = min(limit or RESERVED_TOKENS, engine.max_len // (4 if limit is None else 2))
    try:
        prompt = render_prompt(body.messages, engine.tokenizer, engine.max_len - reserved)
    except UserError as error:
        param = error.path if isinstance(error, MessageError) else "messages"
        raise ApiError(400, str(error), param=param) from None
    room = engine.max_len - len(prompt) + 1
    count = min(limit or room, room)
    return [
        Request(prompt=prompt, params=body.params(defaults, max_new_tokens=count, choice=choice))
        for choice in range(body.n)
    ]


def _event_stream(ticket: Ticket, events: AsyncIterator[str]) -> Any:
    """A response of server-sent events that closes the ticket at its end or on disconnect."""
    from fastapi.responses import StreamingResponse

    # Server-sent events: plain text over one long HTTP response, each event "data: ...\n\n". The
    # answer flows one way only, so a WebSocket would add a protocol and nothing else. Starlette
    # ends the call when the client disconnects; `finally` runs then too and frees the slot.
    class EventStream(StreamingResponse):
        async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
            try:
                await super().__call__(scope, receive, send)
            finally:
                ticket.close()

    # Without the second header nginx collects the events and delivers them in bursts.
    headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
    return EventStream(events, media_type="text/event-stream", headers=headers)


async def _events(ticket: Ticket, answer: Answer, body: ChatRequest) -> AsyncIterator[str]:
    """The server-sent events of a streamed answer."""
    for index in range(body.n):
        yield _event(answer.opening(index))
    completions: list[Completion] = []
    try:
        while len(completions) < body.n:
            try:
                index, event = await asyncio.wait_for(ticket.next(), PING_S)
            except TimeoutError:
                yield ": ping\n\n"
                continue
            piece = answer.piece(index, event.kind, event.text)
            if piece is not None:
                yield _event(piece)
            if event.completion is not None:
                completions.append(event.completion)
                yield _event(answer.closing(index, event.completion))
    except Exception as error:  # status 200 has been sent, so report the error in the stream
        yield _event(_failure(error).body())
        return
    if body.stream_options.include_usage:
        yield _event(answer.usage_chunk(completions))
    yield "data: [DONE]\n\n"


async def _completions(ticket: Ticket) -> list[Completion]:
    """Wait for all choices; return their completions in order."""
    completions: dict[int, Completion] = {}
    while len(completions) < len(ticket.requests):
        try:
            index, event = await ticket.next()
        except Exception as error:  # anything the engine's step raised
            raise _failure(error) from error
        if event.completion is not None:
            completions[index] = event.completion
    return [completions[index] for index in sorted(completions)]


async def _unless_disconnected(work: Coroutine[Any, Any, T], receive: Any) -> T | None:
    """Return the work's result, or cancel it and return None if the client disconnects first."""

    async def disconnected() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    # ASGI reports a disconnect only to those who call receive(), so watch it beside the work.
    task, watcher = asyncio.ensure_future(work), asyncio.ensure_future(disconnected())
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        return await task if task.done() else None
    finally:
        task.cancel()
        watcher.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


def _failure(error: Exception) -> ApiError:
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


async def _error_response(request: Any, error: Exception) -> Any:
    from fastapi.responses import JSONResponse

    reported = _failure(error)
    headers = {"retry-after": "1"} if reported.status in (429, 503) else None
    return JSONResponse(reported.body(), status_code=reported.status, headers=headers)


async def _invalid_request(request: Any, error: Any) -> Any:
    return await _error_response(request, invalid_field(error.errors()[0]))


async def _http_error(request: Any, error: Any) -> Any:
    message = f"{request.method} {request.url.path}: {error.detail}"
    return await _error_response(request, ApiError(error.status_code, message))
