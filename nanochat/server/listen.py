"""Where a server listens: the options for it, and the socket.

Owns: addresses and ports. Does not own: what is served there.
"""

import errno
import socket
from dataclasses import dataclass

from nanochat.system.config import option
from nanochat.system.errors import ConfigError

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, kw_only=True)
class AddressOptions:
    """Where the server listens."""

    host: str = option("127.0.0.1", "address to listen on; 0.0.0.0 accepts other machines")
    port: int = option(8000, "port to listen on; 0: any free port", least=0, most=65535)

    @property
    def allowed_hosts(self) -> tuple[str, ...] | None:
        """The names that a request's Host header may have; None for any."""
        return LOOPBACK if self.host in LOOPBACK else None


def listen(address: AddressOptions) -> socket.socket:
    """Open the socket to serve on.

    Raises: ConfigError if the address cannot be used.
    """
    host, port = address.host, address.port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(128)
    except (OSError, OverflowError) as error:
        listener.close()
        code = getattr(error, "errno", None)
        if code == errno.EADDRINUSE:
            remedy = f"it is in use; try another port, such as --port {port + 1}"
        elif code == errno.EACCES:
            remedy = "you lack the permission; choose a --port above 1024"
        else:
            remedy = f"{error}; check --host {host}"
        raise ConfigError(f"cannot listen on port {port}: {remedy}") from None
    return listener


def url_of(address: AddressOptions, listener: socket.socket) -> str:
    """The address to open in a browser on this machine."""
    host = "127.0.0.1" if address.host in ("0.0.0.0", "::") else address.host
    return f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
