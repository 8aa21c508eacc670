"""What every HTTP request passes before it reaches a route.

Owns: security headers, the limits on a body's size and time, one record and one log line for each
request. Does not own: routes, or whom the server answers (access).
"""

import asyncio
import time
import urllib.parse
from collections import Counter
from collections.abc import Callable, Collection, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanochat.server.access import Access

MAX_BODY_BYTES = 1 << 20
BODY_S = 60.0  # a body that has not arrived by then is refused
MAX_LOGGED_CHARS = 200
QUIET = ("/health", "/metrics")  # asked for every few seconds, and logged only if they fail
HEADERS = {
    "content-security-policy": "default-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",  # else browsers mix the pages' files of two versions
}
VISIT = "nanochat.visit"
Scope = MutableMapping[str, Any]


@dataclass
class Visit:
    """One HTTP request as it is logged and counted.

    client: who sent it, for limits and turns: the address, and which API key if there are several.
    left: whether it left while it sent the request; the status is then 499, as in nginx.
    """

    client: str
    method: str
    path: str
    left: bool = False
    status: int = 499
    elapsed_s: float = 0.0
    prompt_tokens: int = 0
    answer_tokens: Callable[[], int] = lambda: 0

    def line(self) -> str:
        """Time, client, method, path, status, duration and tokens."""
        tokens = f"  {self.prompt_tokens}+{self.answer_tokens()} tokens"
        return (
            f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {self.client}  {self.method} {self.path}  "
            f"{self.status}  {self.elapsed_s * 1000:.0f} ms{tokens if self.prompt_tokens else ''}"
        )


class Visits:
    """The requests that have ended: logged, and counted by path and status.

    paths: those of the API; all others are counted as one, as clients choose them.
    """

    def __init__(self, paths: Collection[str], log: Callable[[str], None]) -> None:
        self.counts: Counter[tuple[str, int]] = Counter()
        self._paths = paths
        self._log = log

    def add(self, visit: Visit) -> None:
        """Count and log a request."""
        self.counts[visit.path if visit.path in self._paths else "other", visit.status] += 1
        if visit.path not in QUIET or visit.status >= 400:
            self._log(visit.line())


def visit_of(scope: Scope) -> Visit:
    """The record of the request that a scope describes."""
    visit: Visit = scope[VISIT]
    return visit


def open_paths(static: Path) -> frozenset[str]:
    """What is served without an API key: the pages, which hold no data, and /health."""
    files = {f"/{path.relative_to(static).as_posix()}" for path in static.rglob("*")}
    return frozenset({"/", "/health", "/openapi.json", "/docs", "/runs"} | files)


class Guard:
    """ASGI middleware around the whole application.

    open_paths: what is served without an API key, if keys are asked for. on_visit: called with
    every request's record when it has ended.
    """

    def __init__(
        self,
        app: Any,
        access: Access,
        *,
        open_paths: Collection[str] = (),
        on_visit: Callable[[Visit], None] = lambda visit: None,
    ) -> None:
        self._app = app
        self._access = access
        self._open_paths = open_paths
        self._on_visit = on_visit

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        visit = self._visit(scope, headers)
        send = self._sender(send, headers, visit)
        begin = time.monotonic()
        try:
            await self._answer({**scope, VISIT: visit}, headers, receive, send)
        except Exception:
            if not visit.left:  # else nobody is there to tell
                visit.status = 500
                raise
        finally:
            visit.elapsed_s = time.monotonic() - begin
            self._on_visit(visit)

    def _visit(self, scope: Scope, headers: dict[str, str]) -> Visit:
        client = scope["client"][0] if scope.get("client") else ""
        if len(self._access.keys) > 1:
            number = self._access.key_number(headers)
            client += "" if number is None else f" key {number + 1}"
        # Quoted and bounded, so that a request makes one line, whatever is in it.
        path = urllib.parse.quote(scope["path"], safe="/:")[:MAX_LOGGED_CHARS]
        return Visit(client, scope["method"][:MAX_LOGGED_CHARS], path)

    def _sender(self, send: Any, request_headers: dict[str, str], visit: Visit) -> Any:
        """`send` with the headers that every response has, and noting the status."""
        added = {**HEADERS, **self._access.cors(request_headers)}

        async def send_guarded(message: Any) -> None:
            if message["type"] == "http.response.start":
                if not visit.left:
                    visit.status = message["status"]
                sent = list(message.get("headers", ()))
                own = {name for name, _ in sent}  # a report has a policy of its own
                pairs = [(name.encode(), value.encode("latin-1")) for name, value in added.items()]
                message = {**message, "headers": [*sent, *(p for p in pairs if p[0] not in own)]}
            await send(message)

        return send_guarded

    async def _answer(self, scope: Scope, headers: dict[str, str], receive: Any, send: Any) -> None:
        from starlette.responses import JSONResponse, Response

        method = scope["method"]
        preflight = self._access.preflight(method, headers)  # browsers ask without the key
        needs_key = preflight is None and scope["path"] not in self._open_paths
        refusal = self._access.refusal(method, headers, needs_key=needs_key)
        if refusal is not None:
            answer = JSONResponse(refusal.body(), refusal.status, dict(refusal.headers))
            await answer(scope, receive, send)
        elif preflight is not None:
            await Response(status_code=204, headers=preflight)(scope, receive, send)
        else:
            await self._app(scope, _bounded(receive, visit_of(scope)), send)


def _bounded(receive: Any, visit: Visit) -> Any:
    """`receive` that raises an HTTP error for a body that is too large or takes too long."""
    from starlette.exceptions import HTTPException

    received, ended = 0, False
    until = time.monotonic() + BODY_S

    async def receive_bounded() -> Any:
        nonlocal received, ended
        if ended:  # what comes next is that the client has left, however long that takes
            return await receive()
        try:
            message = await asyncio.wait_for(receive(), max(0.0, until - time.monotonic()))
        except TimeoutError:
            raise HTTPException(408, f"the body took more than {BODY_S:.0f} s") from None
        visit.left = message["type"] == "http.disconnect"
        received += len(message.get("body", b""))
        if received > MAX_BODY_BYTES:
            raise HTTPException(413, f"the body is larger than {MAX_BODY_BYTES} bytes")
        ended = not message.get("more_body", False)
        return message

    return receive_bounded
