"""What every HTTP request passes before it reaches a route.

Owns: security headers, the limit on a body's size, and whom the server answers. Does not own:
routes.
"""

from collections.abc import Collection, MutableMapping
from typing import Any

from nanochat.server.errors import ApiError

MAX_BODY_BYTES = 1 << 20
HEADERS = {
    "content-security-policy": "default-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
Scope = MutableMapping[str, Any]


class Guard:
    """ASGI middleware: adds security headers, limits the body's size, checks the Host header.

    The Host check blocks DNS rebinding: evil.example first resolves to its own server, then to
    127.0.0.1. The browser takes both for one origin, so the page may read this server's answers;
    but the Host header still names evil.example.
    """

    def __init__(self, app: Any, allowed_hosts: Collection[str] | None = None) -> None:
        self._app = app
        self._allowed_hosts = allowed_hosts
        self._headers = [(name.encode(), value.encode()) for name, value in HEADERS.items()]

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        from starlette.exceptions import HTTPException
        from starlette.responses import JSONResponse

        received = 0

        async def receive_bounded() -> Any:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > MAX_BODY_BYTES:
                raise HTTPException(413, f"the body is larger than {MAX_BODY_BYTES} bytes")
            return message

        async def send_guarded(message: Any) -> None:
            if message["type"] == "http.response.start":
                sent = list(message.get("headers", ()))
                own = {
                    name for name, _ in sent
                }  # a report has a content security policy of its own
                missing = [(name, value) for name, value in self._headers if name not in own]
                message = {**message, "headers": [*sent, *missing]}
            await send(message)

        host = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
        if self._allowed_hosts is not None and _host_name(host) not in self._allowed_hosts:
            error = ApiError(403, f"host {host!r} is not allowed; use localhost")
            await JSONResponse(error.body(), status_code=403)(scope, receive, send_guarded)
            return
        # Parse every body as JSON: `curl -d` without a header declares a form.
        headers = [(name, value) for name, value in scope["headers"] if name != b"content-type"]
        scope = {**scope, "headers": [*headers, (b"content-type", b"application/json")]}
        await self._app(scope, receive_bounded, send_guarded)


def _host_name(host: str) -> str:
    """The host name in a Host header, without the port."""
    name = host.rsplit(":", 1)[0] if not host.endswith("]") and ":" in host else host
    return name.strip("[]").lower()
