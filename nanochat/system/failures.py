"""Reports why a run failed: its processes share the reason, and each machine prints it once.

Owns: the keys of the run's store. A failing process writes its reason there before it closes its
connections; processes whose connections drop read the reason there.
"""

import hashlib
import json
import os
import socket
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from nanochat.system import storage
from nanochat.system.errors import (
    SHARED_MEMORY,
    ConfigError,
    RankError,
    ReportedElsewhere,
    explain,
)

JOIN_S = 600.0  # imports from a slow network disk take minutes
ANSWER_S = 10.0  # limit for a store that may have ended with its process
POLL_S = 0.05
REASON, HERE = "nanochat/reason", "nanochat/here"
# Errors of gloo, NCCL and the store when the process at the other end is gone.
LOST = (
    "connection closed by peer",
    "connection reset by peer",
    "connection refused",
    "broken pipe",
    "remote process exited",
    "ncclremoteerror",
    "ncclsystemerror",
    "failed to recv",
    "socket timeout",
    "connection was likely closed",
)


@dataclass(frozen=True)
class Process:
    """One process of a run."""

    rank: int
    world_size: int

    @property
    def host(self) -> str:
        """The machine's name."""
        return socket.gethostname()

    @property
    def node(self) -> str:
        """The node number from torchrun, else the host: tells machines or launchers apart."""
        return os.environ.get("GROUP_RANK", self.host)


def wait_for_all(store: "dist.Store", me: Process) -> None:
    """Wait until every process of the run has connected to the store. Collective.

    Raises: RankError if one of them fails meanwhile; ConfigError if some do not connect.
    """
    store.add(HERE, 1)
    start_s = time.monotonic()
    while (here := store.add(HERE, 0)) < me.world_size:
        found = _read(store)
        if found is not None:
            raise RankError(_others_reason(found))
        if time.monotonic() - start_s > JOIN_S:
            raise ConfigError(
                f"only {here} of {me.world_size} processes connected within "
                f"{JOIN_S / 60:.0f} minutes; check the logs of the other machines, and that they "
                "can reach this one"
            )
        time.sleep(POLL_S)


def reported_error(error: Exception, store: "dist.Store", me: Process) -> Exception:
    """What a failing process raises: its own error, another's that caused it, or ReportedElsewhere.

    The first process to fail records its reason for the others.
    """
    mine = describe_error(error)
    try:
        store.set_timeout(timedelta(seconds=ANSWER_S))
        found = _read(store)
        if found is None and not _is_lost_connection(error):
            found = _record(store, me, mine)
        text = found["text"] if found else ""
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        first = store.add(f"nanochat/reported/{me.node}/{digest}", 1) == 1
    except (RuntimeError, ValueError):  # the store ended with the process that hosted it
        return RankError(_others_reason(None)) if _is_lost_connection(error) else error
    if not first:
        return ReportedElsewhere()
    return error if text == mine else RankError(_others_reason(found))


def describe_error(error: Exception) -> str:
    """An error in one line."""
    line = explain(error, base=str(storage.base_dir()))
    return line or f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _record(store: "dist.Store", me: Process, text: str) -> dict[str, Any]:
    """Record the reason unless another process already has; returns the recorded one."""
    reason = json.dumps({"rank": me.rank, "host": me.host, "text": text})
    return json.loads(store.compare_set(REASON, "", reason))


def _read(store: "dist.Store") -> dict[str, Any] | None:
    return json.loads(store.get(REASON)) if store.check([REASON]) else None


def _others_reason(found: dict[str, Any] | None) -> str:
    """Another process's reason, as the message of this process."""
    if found is None:
        return (
            "lost the connection to another process of this run, which gave no reason: it was "
            "killed, its machine ran out of memory, or the network failed; start the run again "
            "with --resume"
        )
    return f"rank {found['rank']} on {found['host']} failed: {found['text']}"


def _is_lost_connection(error: Exception) -> bool:
    text = str(error).lower()
    lost = any(phrase in text for phrase in LOST) and SHARED_MEMORY not in text
    return isinstance(error, RuntimeError) and lost
