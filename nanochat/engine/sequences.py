"""Requests at work in the engine, and which of them share a slot of the cache.

Owns the state of a request (row) and of a slot in use (branch). What happens to them is engine.py's
business.
"""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field

from nanochat.engine.requests import Request, Transcript

PREFILL_CHUNK = 512  # tokens of a text read in one step; bounds how long decoding rows wait
PREFILL_TOKENS = 16_384  # of all texts together in one step; bounds memory


@dataclass(eq=False, slots=True)
class ActiveRequest:
    """A request at work."""

    id: int
    request: Request
    seed: int
    transcript: Transcript
    live: bool  # its text is needed token by token: it streams, or has stop strings
    stream: bool
    text: list[int]  # prompt and answer
    mask: list[int] = field(default_factory=list)
    branch: Branch | None = None  # none: it waits in the queue
    code_start: int | None = None  # index in text of what follows <|python_start|>
    calls: int = 0
    tool: Future[str] | None = None  # runs while the branch is parked

    @property
    def tokens(self) -> list[int]:
        """The answer so far."""
        return self.text[len(self.request.prompt) :]


@dataclass(eq=False, slots=True)
class Branch:
    """A slot of the cache with the rows whose text it holds; their texts are equal."""

    slot: int
    rows: list[ActiveRequest]
    cached: int = 0  # tokens of the text that the cache has read

    @property
    def unread(self) -> int:
        return len(self.rows[0].text) - self.cached

    @property
    def tools(self) -> list[Future[str]]:
        """What is being computed for its rows; it is parked until all of it is there."""
        return [row.tool for row in self.rows if row.tool is not None]

    def next_tokens(self) -> list[int]:
        """What is to be read next, at most a chunk."""
        return self.rows[0].text[self.cached : self.cached + PREFILL_CHUNK]


def fitting(branches: list[Branch]) -> list[Branch]:
    """The first branches whose next chunks, padded to the longest, fit into one step."""
    longest = 0
    for count, branch in enumerate(branches):
        longest = max(longest, min(branch.unread, PREFILL_CHUNK))
        if count and longest * (count + 1) > PREFILL_TOKENS:
            return branches[:count]
    return branches
