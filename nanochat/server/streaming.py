"""From the engine's events to HTTP: server-sent events, or one response when all have come.

Owns: the order of chunks, pings, and clients that leave. Does not own: what a chunk says
(responses) or how events are made (service).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine, Mapping, MutableMapping, Sequence
from typing import Any, Protocol, TypeVar

from nanochat.engine import Completion, Event
from nanochat.server.errors import ApiError, Json, reported
from nanochat.server.grammar import Constraint, FreeUntilCall
from nanochat.server.service import Ticket

PING_S = 15.0  # send a comment this often, or proxies close an idle stream
Scope = MutableMapping[str, Any]
T = TypeVar("T")


class Answer(Protocol):
    """Formats the answer to a request: complete, or choice by choice in chunks."""

    def complete(self, answers: Sequence[Sequence[Event]]) -> Json:
        """The answer in one piece, from every choice's events."""

    def opening(self, index: int) -> Json | None:
        """The first chunk of a choice, if its format has one."""

    def piece(self, index: int, event: Event) -> Json | None:
        """An event's chunk; None if it has nothing that the client asked for."""

    def closing(self, index: int, completion: Completion) -> Json:
        """The last chunk of a choice."""

    def usage_chunk(self, completions: Mapping[int, Completion]) -> Json:
        """The chunk after all choices."""


def event_stream(ticket: Ticket, answer: Answer, *, include_usage: bool) -> Any:
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
    events = _events(ticket, answer, include_usage=include_usage)
    return EventStream(events, media_type="text/event-stream", headers=headers)


async def _events(ticket: Ticket, answer: Answer, *, include_usage: bool) -> AsyncIterator[str]:
    """The server-sent events of a streamed answer."""
    for index in range(len(ticket.requests)):
        opening = answer.opening(index)
        if opening is not None:
            yield _event(opening)
    completions: dict[int, Completion] = {}
    try:
        while len(completions) < len(ticket.requests):
            try:
                async with asyncio.timeout(PING_S):  # wait_for would make a task for each token
                    index, event = await ticket.next()
            except TimeoutError:
                yield ": ping\n\n"
                continue
            _check_format(ticket, index, event)
            piece = answer.piece(index, event)
            if piece is not None:
                yield _event(piece)
            if event.completion is not None:
                completions[index] = event.completion
                yield _event(answer.closing(index, event.completion))
        if include_usage:
            yield _event(answer.usage_chunk(completions))
    except Exception as error:  # status 200 has been sent, so report the error in the stream
        yield _event(reported(error).body())
    yield "data: [DONE]\n\n"


async def all_events(ticket: Ticket) -> list[list[Event]]:
    """Wait for all choices; return their events in order."""
    answers: list[list[Event]] = [[] for _ in ticket.requests]
    open_choices = len(answers)
    while open_choices:
        try:
            index, event = await ticket.next()
            _check_format(ticket, index, event)
        except Exception as error:  # anything the engine's step raised
            raise reported(error) from error
        answers[index].append(event)
        open_choices -= event.done
    return answers


def _check_format(ticket: Ticket, index: int, event: Event) -> None:
    """Raise ApiError if the answer ended because its format could not be followed any further."""
    grammar = ticket.requests[index].params.grammar
    if event.done and isinstance(grammar, Constraint | FreeUntilCall) and grammar.error:
        raise ApiError(400, f"the format is too complex: {grammar.error.splitlines()[0]}")


async def unless_disconnected(work: Coroutine[Any, Any, T], receive: Any) -> T | None:
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


def _event(value: Json) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"
