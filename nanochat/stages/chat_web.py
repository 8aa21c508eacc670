"""Chat with a model in the browser; other programs use its OpenAI-compatible API under /v1.

nanochat chat_web --run pocket
"""

import socket
from collections.abc import Callable
from dataclasses import dataclass

from nanochat import checkpoint_manager
from nanochat.checkpoint_manager import SourceOptions
from nanochat.engine import Engine
from nanochat.engine.sampling import SamplingOptions
from nanochat.server.app import create_app
from nanochat.server.listen import AddressOptions, listen, url_of
from nanochat.server.service import EngineService
from nanochat.system import config, distributed
from nanochat.system.config import RunOptions, nested, option
from nanochat.system.console import log_line
from nanochat.system.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ChatWebConfig:
    """Serve a chat page and POST /v1/chat/completions."""

    common: RunOptions = nested(RunOptions)
    source: SourceOptions = nested(SourceOptions)
    sampling: SamplingOptions = nested(SamplingOptions)
    address: AddressOptions = nested(AddressOptions)
    slots: int = option(16, "answers generated at the same time", least=1)
    max_in_flight: int = option(
        64, "answers queued or in progress before new requests are rejected", least=1
    )


def main(argv: list[str] | None = None) -> None:
    cfg = config.parse(ChatWebConfig, argv, stage="chat_web")
    path = checkpoint_manager.locate(cfg.source, cfg.common, chat=True)
    with distributed.session(cfg.common) as run, listen(cfg.address) as listener:

        def load() -> Engine:
            loaded = checkpoint_manager.load(path, run)
            log_line(f"model: {checkpoint_manager.describe(loaded)} on {run.device}")
            return Engine(loaded.model, loaded.tokenizer, slots=cfg.slots)

        serve(cfg, listener, load)


def serve(cfg: ChatWebConfig, listener: socket.socket, load: Callable[[], Engine]) -> None:
    """Serve until Ctrl-C.

    Raises: the exception that loading the model raised, if any.
    """
    try:
        import uvicorn
    except ImportError as error:
        raise ConfigError(f"chat_web: {error}; pip install 'nanochat[serve]'") from None

    def ready() -> None:
        log_line(f"chat at {url_of(cfg.address, listener)}  (Ctrl-C stops)")

    def failed() -> None:
        server.should_exit = True

    service = EngineService(
        load, max_in_flight=cfg.max_in_flight, on_ready=ready, on_failure=failed
    )
    app = create_app(
        {cfg.common.run: service},
        defaults=cfg.sampling,
        allowed_hosts=cfg.address.allowed_hosts,
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
