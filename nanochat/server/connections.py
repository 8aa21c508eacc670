"""Connections and the end of the server: what uvicorn leaves open.

Owns: a limit on connections, time limits on them, and draining on SIGTERM. Does not own: requests.
"""

from __future__ import annotations

import asyncio
import functools
import signal
import sys
import time
from collections.abc import Iterable
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol

from nanochat.system.console import log_line
from nanochat.system.errors import ConfigError

if TYPE_CHECKING:
    from uvicorn import Server
    from uvicorn.protocols.http.h11_impl import H11Protocol
else:  # uvicorn is an extra: create_server joins these classes to its own
    Server = H11Protocol = object

HEAD_S = 10.0  # a connection on which no complete request line and headers arrived is closed
STALLED_S = 30.0  # and one that takes no more of its answer
LAST_EVENTS_S = 2.0  # for the error events that end the streams
MAX_CONNECTIONS = 4096


class Drainable(Protocol):
    """What generates answers, and can be asked to come to an end."""

    @property
    def in_flight(self) -> int:
        """Answers waiting or running."""

    def drain(self) -> None:
        """Refuse new requests."""

    def end(self) -> None:
        """End the answers in flight with an error."""


class TimedConnection(H11Protocol):
    """A connection, closed if it takes too long to send a request or to take an answer."""

    def __init__(self, *args: Any, limit: int, **options: Any) -> None:
        super().__init__(*args, **options)
        self._limit = limit
        self._heard_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._stall: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """If there are too many, close the one that has been silent longest with no whole request.

        One that is being answered stays, so at worst the new one is closed.
        """
        others: list[Any] = [c for c in self.connections if not c.transport.is_closing()]
        super().connection_made(transport)
        self._heard_s = self.loop.time()
        if len(others) >= self._limit:
            unanswered = [c for c in others if c.waiting or c.cycle.more_body]
            min(unanswered, key=lambda c: c._heard_s, default=self).transport.abort()
        self._watch_head()

    @property
    def waiting(self) -> bool:
        """Whether it is the client's turn to send a request."""
        return self.cycle is None or self.cycle.response_complete

    def data_received(self, data: bytes) -> None:
        """Read; a request that has started must be complete in time."""
        self._heard_s = self.loop.time()
        super().data_received(data)
        self._watch_head()

    def pause_writing(self) -> None:
        """The client does not read: give it a while."""
        super().pause_writing()
        self._stall = self.loop.call_later(STALLED_S, self.transport.abort)

    def resume_writing(self) -> None:
        """The client reads again."""
        super().resume_writing()
        if self._stall is not None:
            self._stall.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timers."""
        super().connection_lost(exc)
        for timer in (self._timer, self._stall):
            if timer is not None:
                timer.cancel()

    def _watch_head(self) -> None:
        if not self.waiting and self._timer is not None:
            self._timer.cancel()
            self._timer = None
        elif self.waiting and self._timer is None:
            self._timer = self.loop.call_later(HEAD_S, self._end_head)

    def _end_head(self) -> None:
        self._timer = None
        if self.waiting:
            self.transport.abort()


class DrainingServer(Server):
    """Serves until SIGTERM or SIGINT, then finishes what is in flight, for at most `drain_s`.

    While it drains, new requests get 503, so that a load balancer sends them elsewhere. What is
    unfinished then ends with an error event. A second signal has its usual effect: the end.
    """

    def __init__(self, options: Any, services: Iterable[Drainable], drain_s: float) -> None:
        super().__init__(options)
        self._services = list(services)
        self._drain_s = drain_s

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain; from then on signals act as usual."""
        self.should_exit = True
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)

    async def main_loop(self) -> None:
        """Serve until asked to end, then drain."""
        await super().main_loop()
        for service in self._services:
            service.drain()
        if in_flight := sum(service.in_flight for service in self._services):
            limit = f"for at most {self._drain_s:g} s (Ctrl-C again stops at once)"
            log_line(f"stopping; answers in progress: {in_flight}, {limit}")
        until = time.monotonic() + self._drain_s
        while time.monotonic() < until and any(s.in_flight for s in self._services):
            await asyncio.sleep(0.05)
        for service in self._services:
            service.end()


def create_server(app: Any, services: Iterable[Drainable], *, drain_s: float) -> Server:
    """uvicorn's server with the limits above.

    Raises: ConfigError if uvicorn is not installed.
    """
    try:
        import uvicorn
        from uvicorn.protocols.http.h11_impl import H11Protocol
    except ImportError as error:
        raise ConfigError(f"the server: {error}; pip install 'nanochat[serve]'") from None

    class Connection(TimedConnection, H11Protocol):
        pass

    class Server(DrainingServer, uvicorn.Server):
        pass

    connections, backlog = limits()
    http: Any = functools.partial(Connection, limit=connections)
    options = uvicorn.Config(
        app,
        http=http,
        ws="none",
        lifespan="off",
        backlog=backlog,
        access_log=False,  # the guard's has the tokens
        log_level="error",
        server_header=False,
        timeout_graceful_shutdown=int(LAST_EVENTS_S),
    )
    return Server(options, services, drain_s)


def limits() -> tuple[int, int]:
    """How many connections to keep, and how many more may wait to be accepted.

    Both leave room below the limit on open files: beyond it, accepting fails again and again, and
    what is already connected cannot open a file. As many as may wait are accepted at once, while as
    many that were closed for others are still open.
    """
    if sys.platform == "win32":
        return MAX_CONNECTIONS, 128
    import resource

    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS, 128
    return max(1, min(MAX_CONNECTIONS, files // 2)), max(1, min(128, files // 8))
