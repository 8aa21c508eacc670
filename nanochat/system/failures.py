"""Why a run ends, said once: what its processes tell each other when one of them fails.

Owns the keys of the run's store. A process that fails leaves its reason there before it closes its
connections; those that then lose theirs find it. Each machine prints a reason once.
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
from nanochat.system.errors import ConfigError, RankError, ReportedElsewhere, explain

JOIN_S = 600.0  # imports from a slow network disk take minutes
ANSWER_S = 10.0  # of a store that may have ended with its process
POLL_S = 0.05
REASON, HERE = "nanochat/reason", "nanochat/here"
# What gloo, NCCL and the store say when a process at the other end is gone.
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
    """Who speaks: a process of a run, on a machine."""

    rank: int
    world_size: int

    @property
    def host(self) -> str:
        """The machine's name."""
        return socket.gethostname()

    @property
    def node(self) -> str:
        """What tells machines, or launchers, apart: torchrun's number of the node."""
        return os.environ.get("GROUP_RANK", self.host)


def wait_for_all(store: dist.Store, me: Process) -> None:
    """Wait until every process of the run has come to the store. Collective.

    Raises: RankError if one of them has failed meanwhile; ConfigError if some do not come.
    """
    store.add(HERE, 1)
    begin_s = time.monotonic()
    while (here := store.add(HERE, 0)) < me.world_size:
        found = _read(store)
        if found is not None:
            raise RankError(_others_reason(found))
        if time.monotonic() - begin_s > JOIN_S:
            raise ConfigError(
                f"{here} of {me.world_size} processes have come together within "
                f"{JOIN_S / 60:.0f} minutes; see what the other machines say, and that they "
                "reach this one"
            )
        time.sleep(POLL_S)


def reported_error(error: Exception, store: dist.Store, me: Process) -> Exception:
    """What a failing process raises: its error, another's if that was the cause, or silence.

    The first process to fail leaves its reason for the others.
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
    except (RuntimeError, ValueError):  # the store has ended with the process that held it
        return RankError(_others_reason(None)) if _is_lost_connection(error) else error
    if not first:
        return ReportedElsewhere()
    return error if text == mine else RankError(_others_reason(found))


def describe_error(error: Exception) -> str:
    """An error in one line."""
    line = explain(error, base=str(storage.base_dir()))
    return line or f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _record(store: dist.Store, me: Process, text: str) -> dict[str, Any]:
    """The reason on record: this process's unless another was faster."""
    reason = json.dumps({"rank": me.rank, "host": me.host, "text": text})
    found: dict[str, Any] = json.loads(store.compare_set(REASON, "", reason))
    return found


def _read(store: dist.Store) -> dict[str, Any] | None:
    return json.loads(store.get(REASON)) if store.check([REASON]) else None


def _others_reason(found: dict[str, Any] | None) -> str:
    """Another process's reason as a line of this one."""
    if found is None:
        return (
            "the connection to another process of this run is lost and it left no reason: it was "
            "killed, its machine ran out of memory, or the network failed; start the run again "
            "with --resume"
        )
    return f"rank {found['rank']} on {found['host']} failed: {found['text']}"


def _is_lost_connection(error: Exception) -> bool:
    lost = any(phrase in str(error).lower() for phrase in LOST)
    return isinstance(error, RuntimeError) and lost
