"""The one thread that owns the engine, and access to it from an asyncio event loop.

Owns: the engine's life cycle (loading, running, failed, stopped), the limit on requests in flight,
and the delivery of events. Requests that arrive together are generated as one batch.

Why one thread: a step of the model blocks for milliseconds and would stall every connection if it
ran on the event loop; and the KV cache is shared state, which needs no locks if one thread owns it.
The event loop sends commands through a queue; the thread sends events back with
`call_soon_threadsafe`, the only method of a loop that other threads may call.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from nanochat.engine import Engine, EngineStats, Event, Request
from nanochat.server.metrics import AnswerClock, AnswerMetrics
from nanochat.system.errors import ConfigError

log = logging.getLogger(__name__)

MAX_IN_FLIGHT = 64  # choices waiting or running before new requests are rejected


class Busy(Exception):
    """Too many requests are in flight."""


class NotReady(Exception):
    """The model is still loading, or could not be loaded."""


@dataclass(frozen=True)
class Origin:
    """Where a model's weights come from; chat: whether it was trained on conversations."""

    run: str
    stage: str
    step: int
    chat: bool


@dataclass(eq=False)
class Ticket:
    """One HTTP request's handle on its events; used on the event loop that opened it."""

    requests: Sequence[Request]
    loop: asyncio.AbstractEventLoop
    clocks: Sequence[AnswerClock]  # one for each request
    close: Callable[[], None] = lambda: None
    _queue: asyncio.Queue[tuple[int, Event] | Exception] = field(default_factory=asyncio.Queue)

    async def next(self) -> tuple[int, Event]:
        """Wait for the next event: (index of the request, event).

        Raises: the engine's exception if it failed.
        """
        item = await self._queue.get()
        if isinstance(item, Exception):
            raise item
        return item

    def answer_tokens(self) -> int:
        """How many tokens its answers have so far."""
        return sum(clock.tokens for clock in self.clocks)

    def put(self, items: Sequence[tuple[int, Event] | Exception]) -> None:
        """Hand over items; called on the ticket's event loop."""
        for item in items:
            self._queue.put_nowait(item)


def deliver(by_ticket: Mapping[Ticket, Sequence[tuple[int, Event] | Exception]]) -> None:
    """Hand items to their tickets from another thread, waking each event loop once."""

    def put(tickets: list[Ticket]) -> None:
        for ticket in tickets:
            ticket.put(by_ticket[ticket])

    for loop in {ticket.loop for ticket in by_ticket}:
        tickets = [ticket for ticket in by_ticket if ticket.loop is loop]
        try:
            loop.call_soon_threadsafe(put, tickets)
        except RuntimeError:  # the loop is closed, nobody listens
            log.debug("dropped the events of %d requests: the event loop is closed", len(tickets))


class EngineService:
    """Loads an engine in its own thread and generates for every open ticket.

    load: creates the engine. origin: what it loads. max_per_client: how many of `max_in_flight`
    one client may have; None: all. on_ready, on_failure: called when loading succeeds or fails; the
    exception is then in `failure`. All three functions run in the engine's thread.
    """

    def __init__(
        self,
        load: Callable[[], Engine],
        *,
        origin: Origin | None = None,
        max_in_flight: int = MAX_IN_FLIGHT,
        max_per_client: int | None = None,
        on_failure: Callable[[], None] = lambda: None,
        on_ready: Callable[[], None] = lambda: None,
    ) -> None:
        self.failure: Exception | None = None
        self.engine: Engine | None = None  # set when loaded; other threads only read settings
        self.origin = origin
        self._load = load
        self._on_failure = on_failure
        self._on_ready = on_ready
        self.metrics = AnswerMetrics()
        self._max_in_flight = max_in_flight
        self._max_per_client = max_per_client or max_in_flight
        self._open: set[Ticket] = set()  # used on the event loop
        self._draining = False
        # (ticket, True) submits, (ticket, False) aborts, None stops
        self._commands: queue.SimpleQueue[tuple[Ticket, bool] | None] = queue.SimpleQueue()
        self._owners: dict[int, tuple[Ticket, int]] = {}
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    @property
    def in_flight(self) -> int:
        """Choices waiting or running."""
        return sum(len(ticket.requests) for ticket in self._open)

    def start(self) -> None:
        """Start loading the model."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread after its current step."""
        self._commands.put(None)
        if self._thread.is_alive():
            self._thread.join(timeout=10)

    def drain(self) -> None:
        """Refuse new requests from now on; those in flight go on."""
        self._draining = True

    def end(self) -> None:
        """End all requests in flight with an error."""
        for ticket in self._open:
            ticket.put([NotReady("the server is stopping")])

    def ready_engine(self) -> Engine:
        """The loaded engine, for reading its settings.

        Raises: NotReady if it is not loaded.
        """
        if self._draining:
            raise NotReady("the server is stopping")
        if self.engine is None:
            raise NotReady(str(self.failure) if self.failure else "the model is loading")
        return self.engine

    def stats(self) -> EngineStats:
        """What the engine is doing; may be called from any thread.

        Raises: NotReady if it is not loaded.
        """
        return self.ready_engine().stats()

    def open(self, requests: Sequence[Request]) -> Ticket:
        """Submit requests; call the ticket's `close` when done, which aborts any still running.

        Raises: NotReady; Busy if too many are in flight; ConfigError for more than ever may be.
        """
        self.ready_engine()
        self._check_room(requests)
        clocks = [AnswerClock() for _ in requests]
        ticket = Ticket(requests, asyncio.get_running_loop(), clocks)
        self._open.add(ticket)

        # A client that leaves must not keep a slot of the batch busy. This only queues the abort;
        # the engine's thread frees the slot between two steps, when nothing reads the cache.
        def close() -> None:
            if ticket in self._open:
                self._open.remove(ticket)
                self._commands.put((ticket, False))

        ticket.close = close
        self._commands.put((ticket, True))
        return ticket

    def _check_room(self, requests: Sequence[Request]) -> None:
        most = min(self._max_in_flight, self._max_per_client)
        if len(requests) > most:
            raise ConfigError(f"a request may ask for {most} answers, not {len(requests)}")
        in_flight = self.in_flight
        if in_flight + len(requests) > self._max_in_flight:
            raise Busy(f"{in_flight} of {self._max_in_flight} answers are in progress")
        client = requests[0].client
        own = sum(len(t.requests) for t in self._open if t.requests[0].client == client)
        if own + len(requests) > self._max_per_client:
            raise Busy(f"{own} of this client's {self._max_per_client} answers are in progress")

    def _run(self) -> None:
        try:
            self.engine = self._load()
        except Exception as error:  # reported to every request and through on_failure
            self.failure = error
            self._on_failure()
            return
        self._on_ready()
        while self._take_commands(self.engine):
            try:
                self._dispatch(self.engine.step())
            except Exception as error:  # one failed step must not stop the server
                log.exception("the engine failed; dropping its requests")
                self.engine.clear()
                deliver({ticket: [error] for ticket, _ in self._owners.values()})
                self._owners.clear()

    def _take_commands(self, engine: Engine) -> bool:
        """Run queued commands, waiting for one if the engine is idle; False means stop."""
        # Draining the queue between steps is continuous batching: a new request joins the batch at
        # the next step instead of waiting for the answers in progress to end.
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
            except Exception as error:  # an invalid request: report it to its sender
                deliver({ticket: [error]})

    def _dispatch(self, events: list[Event]) -> None:
        """Hand a step's events to their tickets."""
        by_ticket: dict[Ticket, list[tuple[int, Event] | Exception]] = {}
        for event in events:
            ticket, index = self._owners[event.request_id]
            by_ticket.setdefault(ticket, []).append((index, event))
            self.metrics.count(ticket.clocks[index], event)
            if event.done:
                del self._owners[event.request_id]
        deliver(by_ticket)
