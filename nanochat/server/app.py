"""The HTTP side of the chat server: routes.

Owns: paths and methods. Does not own: what is refused before them (guard), the JSON (protocol,
responses), streams (streaming) or generation (service). FastAPI is imported where it is used, so
that importing nanochat stays cheap.
"""

import asyncio
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanochat.engine import Request
from nanochat.engine.sampling import SamplingOptions
from nanochat.server.access import Access
from nanochat.server.errors import (
    ApiError,
    ErrorBody,
    error_response,
    http_error,
    invalid_request,
)
from nanochat.server.guard import Guard, Visits, open_paths, visit_of
from nanochat.server.metrics import CONTENT_TYPE, render
from nanochat.server.models import Models
from nanochat.server.prompts import (
    chat_prompt,
    chat_requests,
    detokenized,
    text_requests,
    tokenized,
)
from nanochat.server.protocol import (
    ChatRequest,
    DetokenizeRequest,
    GenerationRequest,
    TextRequest,
    TokenizeRequest,
)
from nanochat.server.responses import ChatAnswer, Head, token_list
from nanochat.server.runs import add_run_routes
from nanochat.server.service import Busy, EngineService, NotReady
from nanochat.server.streaming import Answer, Scope, all_events, event_stream, unless_disconnected
from nanochat.server.text_answers import TextAnswer
from nanochat.system.errors import ConfigError

if TYPE_CHECKING:
    from fastapi import FastAPI

API_PATHS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/models",
    "/tokenize",
    "/detokenize",
    "/health",
    "/metrics",
)
STATIC = Path(__file__).parent / "static"
STREAMED: dict[int | str, dict[str, Any]] = {
    200: {"description": "the answer; in events if stream is true"}
}
STREAMED[200]["content"] = {"application/json": {}, "text/event-stream": {}}


def create_app(
    services: Mapping[str, EngineService],
    *,
    defaults: SamplingOptions | None = None,
    access: Access | None = None,
    log: Callable[[str], None] = lambda line: None,
    runs_folder: Path | None = None,
) -> "FastAPI":
    """Create the application.

    services: what answers, by the model's id in /v1/models; the first is the default.
    defaults: sampling settings of requests that leave them out. access: whom the server answers;
    None: everybody. log: takes a line for each request. runs_folder: training runs to show at
    /runs; None shows none.
    """
    try:
        from fastapi import FastAPI
        from fastapi.exceptions import RequestValidationError
        from starlette.exceptions import HTTPException
    except ImportError as error:
        raise ConfigError(f"the server: {error}; pip install 'nanochat[serve]'") from None

    app = FastAPI(
        title="nanochat",
        docs_url=None,  # loads its scripts from a CDN, which our content security policy blocks
        redoc_url=None,
        responses={"default": {"model": ErrorBody, "description": "OpenAI's error object"}},
        exception_handlers={
            RequestValidationError: invalid_request,
            HTTPException: http_error,
            **dict.fromkeys((ApiError, NotReady, Busy, Exception), error_response),
        },
    )
    visits = Visits(API_PATHS, log)
    app.add_middleware(
        Guard, access=access or Access(), open_paths=open_paths(STATIC), on_visit=visits.add
    )
    models = Models(services, defaults)
    _add_answers(app, models, functools.cache(log))
    _add_models(app, models)
    _add_tokens(app, models)
    _add_metrics(app, models, visits)
    if runs_folder is not None:
        add_run_routes(app, runs_folder)
    # A mount at "/" would also match API paths with the wrong method and turn 405 into 404.
    app.router.default = _page(app)
    return app


def _add_answers(app: "FastAPI", models: Models, log_once: Callable[[str], None]) -> None:
    import fastapi

    @app.post("/v1/chat/completions", responses=STREAMED)
    async def chat(body: ChatRequest, http_request: fastapi.Request) -> Any:
        """Answer a conversation."""
        name, service = models.find(body.model)
        engine = service.ready_engine()
        prompt = await asyncio.to_thread(chat_prompt, body, engine)
        client = visit_of(http_request.scope).client
        requests = await asyncio.to_thread(
            chat_requests, body, prompt, engine, models.defaults, client
        )
        if prompt.dropped_tools:
            log_once(f"{name}: definitions of tools that do not fit are left out of prompts")
        answer = ChatAnswer(
            head=Head.new(name, "chatcmpl"),
            tokenizer=engine.tokenizer,
            prompt_tokens=len(prompt.tokens),
            logprobs=body.logprobs,
            tool_activity=body.tool_activity,
            functions=bool(prompt.functions),
            dropped=prompt.dropped,
            dropped_tools=prompt.dropped_tools,
        )
        return await _respond(body, service, requests, answer, http_request)

    @app.post("/v1/completions", responses=STREAMED)
    async def complete(body: TextRequest, http_request: fastapi.Request) -> Any:
        """Continue texts."""
        name, service = models.find(body.model)
        engine = service.ready_engine()
        client = visit_of(http_request.scope).client
        requests = await asyncio.to_thread(text_requests, body, engine, models.defaults, client)
        answer = TextAnswer(
            Head.new(name, "cmpl"),
            engine.tokenizer,
            requests,
            n=body.n,
            logprobs=body.logprobs is not None,
            echo=body.echo,
            hidden=int(isinstance(body.prompt[0], str)),
        )
        return await _respond(body, service, requests, answer, http_request)


async def _respond(
    body: GenerationRequest,
    service: EngineService,
    requests: Sequence[Request],
    answer: Answer,
    http_request: Any,
) -> Any:
    """The response to a request for text, streamed or complete."""
    from fastapi import Response

    ticket = service.open(requests)
    visit = visit_of(http_request.scope)
    visit.prompt_tokens = sum(len(request.prompt) for request in requests)
    visit.answer_tokens = ticket.answer_tokens
    if body.stream:
        return event_stream(ticket, answer, include_usage=body.stream_options.include_usage)
    try:
        answers = await unless_disconnected(all_events(ticket), http_request.receive)
        if answers is None:
            return Response(status_code=499)  # nobody is left to read it
        return answer.complete(answers)
    finally:
        ticket.close()


def _add_models(app: "FastAPI", models: Models) -> None:
    @app.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        """List the models that are served; the first is the default."""
        return {"object": "list", "data": [models.card(name) for name in models.services]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        """Describe a model."""
        return models.card(name)

    @app.head("/health", include_in_schema=False)
    @app.get("/health")
    async def health() -> dict[str, Any]:
        """Report on the models; 503 until all are loaded."""
        return {
            "status": "ok",
            "in_flight": sum(service.in_flight for service in models.services.values()),
            "models": [models.health(name) for name in models.services],
        }


def _add_tokens(app: "FastAPI", models: Models) -> None:
    from fastapi.responses import JSONResponse

    @app.post("/tokenize")
    async def tokenize(body: TokenizeRequest) -> JSONResponse:
        """Split a text, or the prompt that messages make, into tokens."""
        name, service = models.find(body.model)
        engine = service.ready_engine()

        def answer() -> JSONResponse:
            tokens = tokenized(body, engine.tokenizer)
            return JSONResponse(
                {
                    "model": name,
                    "count": len(tokens),
                    "max_model_len": engine.max_len,
                    "tokens": token_list(tokens, engine.tokenizer),
                }
            )

        # The JSON can be 20 times as long as the text: a second that streams must not wait for.
        return await asyncio.to_thread(answer)

    @app.post("/detokenize")
    async def detokenize(body: DetokenizeRequest) -> dict[str, Any]:
        """Join tokens to a text; special tokens by name."""
        engine = models.find(body.model)[1].ready_engine()
        return {"text": detokenized(body.tokens, engine.tokenizer)}


def _add_metrics(app: "FastAPI", models: Models, visits: Visits) -> None:
    from fastapi.responses import PlainTextResponse

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> PlainTextResponse:
        """Counters and latencies for Prometheus; models that are loading are left out."""
        loaded = [(name, s, s.engine) for name, s in models.services.items() if s.engine]
        stats = {name: engine.stats() for name, _, engine in loaded}
        answers = {name: service.metrics for name, service, _ in loaded}
        text = render(stats, answers, visits.counts)
        return PlainTextResponse(text, media_type=CONTENT_TYPE)


def _page(app: "FastAPI") -> Any:
    """What answers all other paths: the files of the page, and a hint to clients of the API."""
    from fastapi.responses import FileResponse
    from fastapi.staticfiles import StaticFiles

    files = StaticFiles(directory=STATIC, html=True)

    async def docs(request: Any) -> FileResponse:
        return FileResponse(STATIC / "docs.html")

    app.add_route("/docs", docs)

    async def page(scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["method"] not in ("GET", "HEAD"):
            said = f"{scope['method']} {scope['path']}: no such path; the API has "
            raise ApiError(404, said + ", ".join(app.openapi()["paths"]))
        await files(scope, receive, send)

    return page
