"""Whom a server answers: host names, web pages of other origins, API keys.

Owns: the rules and their messages. Does not own: sockets (listen) or how a refusal is sent (guard).
It imports no framework, as the dashboard starts in a moment.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]
Headers = Mapping[str, str]  # names in lower case
HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^:\[\]]*)(:\d*)?", re.IGNORECASE)
KEY_COOKIE = "nanochat-key"
PREFLIGHT_S = 600  # how long a browser may remember what it was allowed


@dataclass(frozen=True)
class Refusal:
    """Why a request is not answered: HTTP status, OpenAI's error object, and more headers."""

    status: int
    message: str
    code: str
    headers: Mapping[str, str] = field(default_factory=dict)

    def body(self) -> Json:
        """The response body."""
        kinds = {401: "authentication_error", 403: "permission_error"}
        kind = kinds.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": None, "code": self.code}}


@dataclass(frozen=True, kw_only=True)
class Access:
    """The rules of one server.

    hosts: names that a Host header may have, besides those of this machine; None: any.
    origins: web origins whose pages may use the server, such as https://example.org; "*": all.
    keys: API keys, one of which must be sent; empty: none is asked for.
    """

    hosts: tuple[str, ...] | None = None
    origins: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()

    def refusal(self, method: str, headers: Headers, *, needs_key: bool) -> Refusal | None:
        """Why a request is refused; None if it is not.

        needs_key: whether the path is one that asks for a key.
        """
        found = self._wrong_host(headers) or self._wrong_origin(method, headers)
        if found is None and needs_key and self.keys and self.key_number(headers) is None:
            found = _missing_key("authorization" in headers)
        return found or _wrong_type(method, headers)

    def key_number(self, headers: Headers) -> int | None:
        """Which of the keys a request has; None without a valid one."""
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            given = _cookie(headers)
        # Comparing every key, each in constant time, tells nothing about them by how long it takes.
        sent = given.strip().encode("utf-8", "surrogateescape")
        matches = [hmac.compare_digest(sent, key.encode()) for key in self.keys]
        return matches.index(True) if any(matches) else None

    def cors(self, headers: Headers) -> dict[str, str]:
        """Headers that let the page of an allowed origin read the answer."""
        origin = headers.get("origin")
        if not self.origins:
            return {}
        if origin is None or not self._listed(origin):
            return {"vary": "origin"}
        return {
            "vary": "origin",
            "access-control-allow-origin": origin,
            "access-control-expose-headers": "retry-after",
        }

    def preflight(self, method: str, headers: Headers) -> dict[str, str] | None:
        """The answer to a browser's question whether a page may send a request; None if not one."""
        if method != "OPTIONS" or "access-control-request-method" not in headers:
            return None
        private = "access-control-allow-private-network"
        return {
            **({private: "true"} if private.replace("allow", "request") in headers else {}),
            "access-control-allow-methods": "GET, HEAD, POST",
            # OpenAI's clients send a dozen headers of their own; what they say is never used.
            "access-control-allow-headers": headers.get("access-control-request-headers", ""),
            "access-control-max-age": str(PREFLIGHT_S),
        }

    def _listed(self, origin: str) -> bool:
        return "*" in self.origins or origin.lower() in self.origins

    def _wrong_host(self, headers: Headers) -> Refusal | None:
        """Blocks DNS rebinding.

        evil.example first resolves to its own server, then to 127.0.0.1. The browser takes both for
        one origin, so the page may read this server's answers; but the Host header still names
        evil.example.
        """
        host = headers.get("host", "")
        name = host_name(host)
        if self.hosts is None or name in self.hosts or _is_this_machine(name):
            return None
        remedy = "use localhost, or start the server with --allowed-host NAME"
        return Refusal(403, f"host {host!r} is not allowed; {remedy}", "host_not_allowed")

    def _wrong_origin(self, method: str, headers: Headers) -> Refusal | None:
        """Blocks pages of other sites, which can send requests though they cannot read answers."""
        origin = headers.get("origin")
        if method in ("GET", "HEAD"):  # they change nothing and cost nothing
            return None
        if origin is None:
            foreign = headers.get("sec-fetch-site", "none") in ("cross-site", "same-site")
            origin = "another site"
        else:
            own = origin.lower().partition("://")[2] == headers.get("host", "").lower()
            foreign = not own and not self._listed(origin)
        if not foreign:
            return None
        remedy = "start the server with --cors-origin ORIGIN to allow it"
        return Refusal(
            403, f"a page of {origin} may not use this server; {remedy}", "origin_not_allowed"
        )


def host_name(host: str) -> str | None:
    """The name in a Host header without port, brackets or the final dot; None if malformed."""
    found = HOST.fullmatch(host.lower())
    return found[1].strip("[]").rstrip(".") if found else None


def is_loopback(host: str) -> bool:
    """Whether an address to listen on is reachable from this machine only."""
    return _is_this_machine(host.lower().rstrip("."))


def _cookie(headers: Headers) -> str:
    """The key in the cookie of the runs page, whose frames and links cannot send headers."""
    for pair in headers.get("cookie", "").split(";"):
        name, _, value = pair.strip().partition("=")
        if name == KEY_COOKIE:
            return urllib.parse.unquote(value)
    return ""


def _is_this_machine(name: str | None) -> bool:
    if name is None or name == "localhost":
        return name is not None
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _missing_key(sent: bool) -> Refusal:
    wrong = "this is not an API key of this server" if sent else "this server asks for an API key"
    message = f"{wrong}; send the header 'Authorization: Bearer KEY'"
    return Refusal(401, message, "invalid_api_key", {"www-authenticate": "Bearer"})


def _wrong_type(method: str, headers: Headers) -> Refusal | None:
    """Only JSON: a page of another site can send forms and plain text without being asked."""
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    empty = headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers
    if method != "POST" or empty or kind == "application/json":
        return None
    said = f"Content-Type is {kind!r}" if kind else "Content-Type is missing"
    remedy = "send application/json (curl: -H 'Content-Type: application/json')"
    return Refusal(415, f"{said}; {remedy}", "unsupported_media_type")
