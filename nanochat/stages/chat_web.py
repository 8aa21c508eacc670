"""Chat with a model in the browser; other programs use its OpenAI-compatible API under /v1.

nanochat chat_web --run pocket
"""

import errno
import socket
from collections.abc import Callable
from dataclasses import dataclass

from nanochat import checkpoint_manager
from nanochat.checkpoint_manager import SourceOptions
from nanochat.engine import Engine
from nanochat.engine.sampling import SamplingOptions
from nanochat.server.app import create_app
from nanochat.server.service import EngineService
from nanochat.system import config, distributed
from nanochat.system.config import RunOptions, nested, option
from nanochat.system.console import log_line
from nanochat.system.errors import ConfigError

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, kw_only=True)
class ChatWebConfig:
    """Serve a chat page and POST /v1/chat/completions."""

    common: RunOptions = nested(RunOptions)
    source: SourceOptions = nested(SourceOptions)
    sampling: SamplingOptions = nested(SamplingOptions)
    host: str = option("127.0.0.1", "address to listen on; 0.0.0.0 accepts other machines")
    port: int = option(8000, "port to listen on; 0: any free port", least=0, most=65535)
    slots: int = option(16, "answers generated at the same time", least=1)
    max_in_flight: int = option(
        64, "answers queued or in progress before new requests are rejected", least=1
    )


def main(argv: list[str] | None = None) -> None:
    cfg = config.parse(ChatWebConfig, argv, stage="chat_web")
    path = checkpoint_manager.locate(cfg.source, cfg.common, chat=True)
    with distributed.session(cfg.common) as run, listen(cfg.host, cfg.port) as listener:

        def load() -> Engine:
            loaded = checkpoint_manager.load(path, run)
            log_line(f"model: {checkpoint_manager.describe(loaded)} on {run.device}")
            return Engine(loaded.model, loaded.tokenizer, slots=cfg.slots)

        serve(cfg, listener, load)


def listen(host: str, port: int) -> socket.socket:
    """Open the socket to serve on.

    Raises: ConfigError if the address cannot be used.
    """
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


def serve(cfg: ChatWebConfig, listener: socket.socket, load: Callable[[], Engine]) -> None:
    """Serve until Ctrl-C.

    Raises: the exception that loading the model raised, if any.
    """
    try:
        import uvicorn
    except ImportError as error:
        raise ConfigError(f"chat_web: {error}; pip install 'nanochat[serve]'") from None

    port = listener.getsockname()[1]
    shown_host = "127.0.0.1" if cfg.host in ("0.0.0.0", "::") else cfg.host

    def ready() -> None:
        log_line(f"chat at http://{shown_host}:{port}  (Ctrl-C stops)")

    def failed() -> None:
        server.should_exit = True

    service = EngineService(
        load, max_in_flight=cfg.max_in_flight, on_ready=ready, on_failure=failed
    )
    app = create_app(
        service,
        model_name=cfg.common.run,
        defaults=cfg.sampling,
        allowed_hosts=LOOPBACK if cfg.host in LOOPBACK else None,
    )
    options = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2)
    server = uvicorn.Server(options)
    service.start()
    try:
        server.run(sockets=[listener])
    except KeyboardInterrupt:
        log_line("stopped")
    finally:
        service.stop()
    if service.failure is not None:
        raise service.failure


if __name__ == "__main__":
    config.cli(main)
