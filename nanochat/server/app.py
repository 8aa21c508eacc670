"""The HTTP side of the chat server: routes, streaming, errors and the headers that keep it safe.

Owns what is HTTP. JSON is in `protocol`, generation in `service`. FastAPI is imported on use.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Collection, MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanochat.engine import Completion, Engine, Request
from nanochat.server.protocol import (
    Answer,
    ApiError,
    ChatCall,
    ChatDefaults,
    model_card,
    parse_chat,
)
from nanochat.server.service import Busy, EngineService, NotReady, Ticket
from nanochat.system.errors import UserError
from nanochat.tokenizer.conversation import render_prompt

if TYPE_CHECKING:
    from fastapi import FastAPI

STATIC = Path(__file__).parent / "static"
MAX_BODY_BYTES = 1 << 20
PING_S = 15.0  # a comment this often keeps proxies from closing a quiet stream
RESERVED_TOKENS = 512  # kept free for the answer when a conversation fills the context
HEADERS = {
    "content-security-policy": "default-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
Scope = MutableMapping[str, Any]


def create_app(
    service: EngineService,
    *,
    model_name: str,
    defaults: ChatDefaults | None = None,
    allowed_hosts: Collection[str] | None = None,
) -> FastAPI:
    """Make the application.

    model_name: as /v1/models names it. allowed_hosts: host names that requests may be addressed
    to, which keeps other web sites from reaching a server on this machine; None allows any.
    """
    from fastapi import FastAPI
    from fastapi.staticfiles import StaticFiles
    from starlette.exceptions import HTTPException
    from starlette.routing import Mount, Route

    api = ChatApi(service, model_name, defaults or ChatDefaults())
    app = FastAPI(
        title="nanochat",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        routes=[
            Mount(
                "/v1",
                routes=[
                    Route("/chat/completions", api.chat, methods=["POST"]),
                    Route("/models", api.models),
                    Route("/models/{name:path}", api.model),
                ],
            ),
            Route("/health", api.health),
            Mount("/", StaticFiles(directory=STATIC, html=True)),
        ],
        exception_handlers={
            ApiError: _api_error,
            HTTPException: _http_error,
            Exception: _unforeseen,
        },
    )
    app.add_middleware(Guard, allowed_hosts=allowed_hosts)
    return app


class ChatApi:
    """The handlers of the routes."""

    def __init__(self, service: EngineService, model_name: str, defaults: ChatDefaults) -> None:
        self._service = service
        self._model_name = model_name
        self._defaults = defaults
        self._created = int(time.time())

    async def chat(self, request: Any) -> Any:
        """POST /v1/chat/completions."""
        from fastapi.responses import JSONResponse, Response

        engine = self._engine()
        call = parse_chat(await _json(request), self._defaults)
        requests = await asyncio.to_thread(make_requests, call, engine)
        answer = Answer(
            model=self._model_name,
            prompt_tokens=len(requests[0].prompt),
            tool_activity=call.tool_activity,
        )
        ticket = self._open(requests)
        if call.stream:
            return EventStream(ticket, _chunks(ticket, answer, call))
        try:
            whole = asyncio.ensure_future(_whole(ticket))
            if not await _finishes(whole, request.receive):
                return Response(status_code=499)  # the client has gone, nobody reads this
            return JSONResponse(answer.whole(whole.result()))
        finally:
            ticket.close()

    async def models(self, request: Any) -> Any:
        """GET /v1/models."""
        from fastapi.responses import JSONResponse

        return JSONResponse({"object": "list", "data": [self._card()]})

    async def model(self, request: Any) -> Any:
        """GET /v1/models/{name}."""
        from fastapi.responses import JSONResponse

        name = request.path_params["name"]
        if name != self._model_name:
            raise ApiError(404, f"there is no model {name!r}", code="model_not_found")
        return JSONResponse(self._card())

    async def health(self, request: Any) -> Any:
        """GET /health: 200 when questions can be answered."""
        from fastapi.responses import JSONResponse

        self._engine()
        return JSONResponse({"status": "ok", "in_flight": self._service.in_flight})

    def _card(self) -> dict[str, Any]:
        return model_card(
            self._model_name,
            self._created,
            max_len=self._engine().max_len,
            defaults=self._defaults,
        )

    def _engine(self) -> Engine:
        try:
            return self._service.ready_engine()
        except NotReady as error:
            raise ApiError(503, f"{error}; try again in a moment", code="not_ready") from None

    def _open(self, requests: list[Request]) -> Ticket:
        try:
            return self._service.open(requests)
        except Busy as error:
            raise ApiError(429, f"{error}; try again soon", code="rate_limit_exceeded") from None


def make_requests(call: ChatCall, engine: Engine) -> list[Request]:
    """Render a call's prompt, the oldest turns left out if need be, once a choice.

    Raises: ApiError 400 for a conversation that is not one.
    """
    wanted = call.max_tokens or RESERVED_TOKENS
    reserved = min(wanted, engine.max_len // (4 if call.max_tokens is None else 2))
    try:
        prompt = render_prompt(call.messages, engine.tokenizer, engine.max_len - reserved)
    except UserError as error:
        raise ApiError(400, str(error), param="messages") from None
    room = engine.max_len - len(prompt) + 1
    count = min(call.max_tokens or room, room)
    return [
        Request(prompt=prompt, params=call.params(count, choice)) for choice in range(call.choices)
    ]


class EventStream:
    """A response of server-sent events that ends, and aborts its ticket, when the client goes."""

    def __init__(self, ticket: Ticket, chunks: AsyncIterator[str]) -> None:
        self._ticket = ticket
        self._chunks = chunks

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        try:
            await _finishes(asyncio.ensure_future(self._send(send)), receive)
        finally:
            self._ticket.close()

    async def _send(self, send: Any) -> None:
        headers = {
            "content-type": "text/event-stream; charset=utf-8",
            "cache-control": "no-cache",
            "x-accel-buffering": "no",
        }
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": 200, "headers": raw})
        async for chunk in self._chunks:
            body = chunk.encode()
            await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _chunks(ticket: Ticket, answer: Answer, call: ChatCall) -> AsyncIterator[str]:
    """The events of a streamed answer."""
    for index in range(call.choices):
        yield _data(answer.opening(index))
    completions: list[Completion] = []
    try:
        while len(completions) < call.choices:
            try:
                index, event = await asyncio.wait_for(ticket.next(), PING_S)
            except TimeoutError:
                yield ": ping\n\n"
                continue
            piece = answer.piece(index, event.kind, event.text)
            if piece is not None:
                yield _data(piece)
            if event.completion is not None:
                completions.append(event.completion)
                yield _data(answer.closing(index, event.completion))
    except Exception as error:  # the status line has gone out: the error goes into the stream
        yield _data(_failure(error).body())
        return
    if call.include_usage:
        yield _data(answer.usage_chunk(completions))
    yield "data: [DONE]\n\n"


async def _whole(ticket: Ticket) -> list[Completion]:
    """Wait for every choice's end; completions in the order of the choices."""
    completions: dict[int, Completion] = {}
    while len(completions) < len(ticket.requests):
        try:
            index, event = await ticket.next()
        except Exception as error:  # whatever ended the engine's step
            raise _failure(error) from error
        if event.completion is not None:
            completions[index] = event.completion
    return [completions[index] for index in sorted(completions)]


async def _finishes(work: asyncio.Future[Any], receive: Any) -> bool:
    """Wait until the work is done, or cancel it and return False if the client goes away."""

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    watcher = asyncio.ensure_future(gone())
    try:
        await asyncio.wait({work, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            return False
        await work  # raises what it raised
        return True
    finally:
        for task in (work, watcher):
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task


async def _json(request: Any) -> Any:
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_BODY_BYTES:
            raise ApiError(413, f"the body is larger than {MAX_BODY_BYTES} bytes")
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not JSON: {error}") from None


def _data(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


def _failure(error: Exception) -> ApiError:
    if isinstance(error, UserError):
        return ApiError(400, str(error))
    return ApiError(500, "the model failed on this request; the server's log says why")


async def _api_error(request: Any, error: ApiError) -> Any:
    from fastapi.responses import JSONResponse

    headers = {"retry-after": "1"} if error.status in (429, 503) else None
    return JSONResponse(error.body(), status_code=error.status, headers=headers)


async def _http_error(request: Any, error: Any) -> Any:
    message = f"{request.method} {request.url.path}: {error.detail}"
    return await _api_error(request, ApiError(error.status_code, message))


async def _unforeseen(request: Any, error: Exception) -> Any:
    return await _api_error(request, _failure(error))


class Guard:
    """ASGI middleware: safe headers on every response, and no requests for other hosts' names.

    The second defeats DNS rebinding: a page elsewhere whose name is made to point to this machine.
    """

    def __init__(self, app: Any, allowed_hosts: Collection[str] | None = None) -> None:
        self._app = app
        self._allowed_hosts = allowed_hosts
        self._headers = [(name.encode(), value.encode()) for name, value in HEADERS.items()]

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *self._headers]}
            await send(message)

        host = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
        if self._allowed_hosts is not None and _host_name(host) not in self._allowed_hosts:
            from fastapi.responses import JSONResponse

            error = ApiError(403, f"this server does not answer for host {host!r}")
            await JSONResponse(error.body(), status_code=403)(scope, receive, send_guarded)
            return
        await self._app(scope, receive, send_guarded)


def _host_name(host: str) -> str:
    """The host header without its port."""
    name = host.rsplit(":", 1)[0] if not host.endswith("]") and ":" in host else host
    return name.strip("[]").lower()
