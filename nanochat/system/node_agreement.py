"""One agreed value: between stages, the first machine of a run sends it to all others.

speedrun.sh needs it because only the first machine knows which stages are complete. It uses plain
sockets, which start quickly. Does not own: communication within a stage (torch's process group).
"""

import contextlib
import socket
import time

from nanochat.system.errors import ConfigError

PATIENCE_S = 12 * 3600.0  # the other machines wait while the first trains the tokenizer
POLL_S = 0.5
READ_S = 5.0  # limit for a connection that sends nothing
MAX_LINE_BYTES = 200


def agree(
    about: str, value: str, *, nodes: int, rank: int, address: str, patience_s: float = PATIENCE_S
) -> str:
    """The first machine's value, on every machine; each calls this once with the same `about`.

    about: the question, one line. address: HOST:PORT of the first machine, rank 0.
    Raises: ConfigError if a machine does not connect in time.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ConfigError(f"the first node's address must be HOST:PORT, got {address!r}")
    if rank == 0:
        return _answer(about, value, range(1, nodes), int(port), time.monotonic() + patience_s)
    return _ask(about, rank, host, int(port), time.monotonic() + patience_s)


def _answer(about: str, value: str, ranks: range, port: int, deadline_s: float) -> str:
    """Answer each of the other machines once."""
    waiting = set(ranks)
    with socket.create_server(("", port)) as server:
        server.settimeout(POLL_S)
        while waiting:
            _check_time(deadline_s, about, f"nodes {sorted(waiting)} did not connect")
            with contextlib.suppress(OSError):
                connection, _ = server.accept()
                with connection:
                    asked = _line(connection)
                    rank = asked.removeprefix(f"{about} ")
                    if rank.isdecimal() and int(rank) in ranks:
                        connection.sendall(f"{value}\n".encode())
                        waiting.discard(int(rank))
    return value


def _ask(about: str, rank: int, host: str, port: int, deadline_s: float) -> str:
    """Ask the first machine until it is up and has reached the same question."""
    while True:
        with (
            contextlib.suppress(OSError),
            socket.create_connection((host, port), READ_S) as connection,
        ):
            connection.sendall(f"{about} {rank}\n".encode())
            if value := _line(connection):
                return value
        _check_time(deadline_s, about, f"node 0 at {host}:{port} did not answer")
        time.sleep(POLL_S)


def _line(connection: socket.socket) -> str:
    """One complete line without its newline, or ""."""
    connection.settimeout(READ_S)
    with connection.makefile("rb") as file:
        found = file.readline(MAX_LINE_BYTES)
    return found[:-1].decode(errors="replace") if found.endswith(b"\n") else ""


def _check_time(deadline_s: float, about: str, what: str) -> None:
    if time.monotonic() > deadline_s:
        raise ConfigError(f"{about}: {what}; see its log, and check MASTER and the firewall")
