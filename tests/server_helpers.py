"""Applications to talk to, in process or through a real uvicorn, for the tests of the server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx

from nanochat.engine import Engine
from nanochat.server.app import create_app
from nanochat.server.service import EngineService

HELLO = [{"role": "user", "content": "hi"}]
CHAT = "/v1/chat/completions"


@contextlib.contextmanager
def serving(engine: Engine, **options: Any) -> Iterator[EngineService]:
    service = EngineService(lambda: engine, **options)
    service.start()
    try:
        wait_for(lambda: service.engine is not None)
        yield service
    finally:
        service.stop()


def wait_for(condition: Any) -> None:
    while not condition():
        time.sleep(0.005)


def call(app: Any, *requests: tuple[str, str, Any]) -> list[httpx.Response]:
    """Send requests to an application in process, concurrently."""

    async def send() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await asyncio.gather(
                *(client.request(method, path, json=body) for method, path, body in requests)
            )

    return asyncio.run(send())


def ask(service: EngineService, **body: Any) -> httpx.Response:
    app = create_app({"m": service})
    return call(app, ("POST", CHAT, {"messages": HELLO, **body}))[0]


def chunks(response: httpx.Response) -> list[Any]:
    """The parsed events of a stream, with "[DONE]" left as text."""
    lines = [x.removeprefix("data: ") for x in response.text.split("\n\n") if x.startswith("data")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


@contextlib.contextmanager
def listening(app: Any) -> Iterator[str]:
    """Serve an application with uvicorn on a free port; yields its URL."""
    import uvicorn

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            wait_for(lambda: server.started)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(10)


def send(app: Any, method: str, path: str, **options: Any) -> httpx.Response:
    """One request to an application in process, with headers of its own."""

    async def sent() -> httpx.Response:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.request(method, path, **options)

    return asyncio.run(sent())


def error_of(response: httpx.Response) -> Any:
    return response.json()["error"]
