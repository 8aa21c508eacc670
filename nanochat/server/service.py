"""The one thread that owns the engine, and the way to it from an asyncio event loop.

Owns the engine's life (loading, working, failed, stopped), the bound on requests in flight, and
the delivery of events. Requests that arrive together are generated together.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from nanochat.engine import Engine, Event, Request

log = logging.getLogger(__name__)

MAX_IN_FLIGHT = 64  # choices waiting or running before new requests are turned away


class Busy(Exception):
    """Too many requests are in flight."""


class NotReady(Exception):
    """The model is still loading, or could not be loaded."""


@dataclass(eq=False)
class Ticket:
    """One HTTP request's way to its events; used on the event loop that opened it."""

    requests: Sequence[Request]
    loop: asyncio.AbstractEventLoop
    close: Callable[[], None] = lambda: None
    _queue: asyncio.Queue[tuple[int, Event] | Exception] = field(default_factory=asyncio.Queue)

    async def next(self) -> tuple[int, Event]:
        """Wait for the next event: (which of the requests, event).

        Raises: what made the engine fail.
        """
        item = await self._queue.get()
        if isinstance(item, Exception):
            raise item
        return item

    def deliver(self, items: list[tuple[int, Event] | Exception]) -> None:
        """Take items from the engine's thread."""

        def put() -> None:
            for item in items:
                self._queue.put_nowait(item)

        try:
            self.loop.call_soon_threadsafe(put)
        except RuntimeError:  # the loop has closed, nobody listens
            log.debug("dropped %d events of a closed loop", len(items))


class EngineService:
    """Loads an engine in a thread of its own and works for whoever opens a ticket.

    load: makes the engine, called in that thread. on_failure: called there if loading fails; what
    it raised is in `failure`.
    """

    def __init__(
        self,
        load: Callable[[], Engine],
        *,
        max_in_flight: int = MAX_IN_FLIGHT,
        on_failure: Callable[[], None] = lambda: None,
        on_ready: Callable[[], None] = lambda: None,
    ) -> None:
        self.failure: Exception | None = None
        self.engine: Engine | None = None  # set once it is loaded; its settings may be read
        self._load = load
        self._on_failure = on_failure
        self._on_ready = on_ready
        self._max_in_flight = max_in_flight
        self._in_flight = 0
        # (ticket, True) submits, (ticket, False) aborts, None stops
        self._commands: queue.SimpleQueue[tuple[Ticket, bool] | None] = queue.SimpleQueue()
        self._owners: dict[int, tuple[Ticket, int]] = {}
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)

    @property
    def in_flight(self) -> int:
        """Choices waiting or running."""
        return self._in_flight

    def start(self) -> None:
        """Begin to load the model."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread after the step it is in."""
        self._commands.put(None)
        if self._thread.is_alive():
            self._thread.join(timeout=10)

    def ready_engine(self) -> Engine:
        """The loaded engine, for its settings.

        Raises: NotReady while there is none.
        """
        if self.engine is None:
            raise NotReady(str(self.failure) if self.failure else "the model is loading")
        return self.engine

    def open(self, requests: Sequence[Request]) -> Ticket:
        """Hand requests to the engine; `ticket.close()` must follow, and aborts what still runs.

        Raises: NotReady; Busy if too many are in flight.
        """
        self.ready_engine()
        if self._in_flight + len(requests) > self._max_in_flight:
            raise Busy(f"{self._in_flight} requests are in flight, the most that are taken")
        ticket = Ticket(requests, asyncio.get_running_loop())
        self._in_flight += len(requests)
        closed = False

        def close() -> None:
            nonlocal closed
            if not closed:
                closed = True
                self._in_flight -= len(requests)
                self._commands.put((ticket, False))

        ticket.close = close
        self._commands.put((ticket, True))
        return ticket

    def _work(self) -> None:
        try:
            self.engine = self._load()
        except Exception as error:  # told to every request and to whoever started the service
            self.failure = error
            self._on_failure()
            return
        self._on_ready()
        while self._take_commands(self.engine):
            try:
                self._dispatch(self.engine.step())
            except Exception as error:  # one bad step must not end the server
                log.exception("the engine failed; its requests are dropped")
                self.engine.clear()
                for ticket in {ticket for ticket, _ in self._owners.values()}:
                    ticket.deliver([error])
                self._owners.clear()

    def _take_commands(self, engine: Engine) -> bool:
        """Do what was asked meanwhile; wait if there is nothing to do. False: stop."""
        while True:
            try:
                command = self._commands.get(block=engine.idle)
            except queue.Empty:
                return True
            if command is None:
                return False
            ticket, submit = command
            if submit:
                self._submit(engine, ticket)
            else:
                for request_id in [i for i, (t, _) in self._owners.items() if t is ticket]:
                    engine.abort(request_id)
                    del self._owners[request_id]

    def _submit(self, engine: Engine, ticket: Ticket) -> None:
        for index, request in enumerate(ticket.requests):
            try:
                self._owners[engine.submit(request)] = (ticket, index)
            except Exception as error:  # a request that cannot be: its sender is told
                ticket.deliver([error])

    def _dispatch(self, events: list[Event]) -> None:
        """Hand events to their tickets, one call a ticket and step."""
        by_ticket: dict[Ticket, list[tuple[int, Event] | Exception]] = {}
        for event in events:
            ticket, index = self._owners[event.request_id]
            by_ticket.setdefault(ticket, []).append((index, event))
            if event.done:
                del self._owners[event.request_id]
        for ticket, items in by_ticket.items():
            ticket.deliver(items)
