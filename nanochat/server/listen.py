"""Where a server listens: the options for it, and the socket.

Owns: addresses and ports. Does not own: what is served there.
"""

import errno
import re
import socket
from dataclasses import dataclass

from nanochat.server.access import Access, host_name, is_loopback
from nanochat.system import config
from nanochat.system.config import option
from nanochat.system.errors import ConfigError

ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s]*", re.IGNORECASE)
API_KEY = "NANOCHAT_API_KEY"


@dataclass(frozen=True, kw_only=True)
class AddressOptions:
    """Where the server listens, and whom it answers."""

    host: str = option(
        "127.0.0.1",
        "address to listen on; 0.0.0.0 accepts other machines, and then --api-key is required",
    )
    port: int = option(8000, "port to listen on; 0: any free port", least=0, most=65535)
    api_key: tuple[str, ...] = option(
        (),
        f"key that clients must send; may be repeated, one for each client; {API_KEY} in the "
        "environment is one more, which other users of this machine cannot see; none: open to all",
    )
    no_api_key: bool = option(False, "answer other machines without a key")
    allowed_host: tuple[str, ...] = option(
        (),
        "name of this server that requests may use, beside localhost; may be repeated; none: on a "
        "loopback address no other, elsewhere any",
    )
    cors_origin: tuple[str, ...] = option(
        (),
        "origin whose pages may use the server, such as https://example.org; may be repeated; '*' "
        "allows every page; none: only the server's own",
    )

    def access(self) -> Access:
        """The rules for whom the server answers.

        Raises: ConfigError if other machines could reach it, and whether they may is not said.
        """
        secret = config.secret(API_KEY)
        keys = (*self.api_key, *([secret] if secret else []))
        for key in keys:
            if not key.isascii() or not key.isprintable() or not key or " " in key:
                raise ConfigError("an API key is one word of ASCII characters; choose another")
        if keys and self.no_api_key:
            raise ConfigError("--no-api-key contradicts --api-key; leave one of them out")
        local = is_loopback(self.host)
        if not keys and not local and not self.no_api_key:
            raise ConfigError(
                f"--host {self.host} lets other machines in; set --api-key (or {API_KEY}), or "
                "--no-api-key to let them in without one"
            )
        for origin in self.cors_origin:
            if origin != "*" and not ORIGIN.fullmatch(origin):
                example = "https://example.org or http://localhost:3000"
                raise ConfigError(f"--cors-origin must be like {example}, or '*', got {origin!r}")
        hosts = tuple(map(_plain_name, self.allowed_host))
        return Access(
            hosts=hosts if hosts or local else None,
            origins=tuple(origin.lower() for origin in self.cors_origin),
            keys=keys,
        )


def _plain_name(host: str) -> str:
    name = host_name(host)
    if not host.isascii():
        raise ConfigError(f"--allowed-host must be as browsers send it, xn--..., got {host!r}")
    if not name or name != host.lower().strip("[]").rstrip("."):
        raise ConfigError(f"--allowed-host must be a name without a port, got {host!r}")
    return name


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
