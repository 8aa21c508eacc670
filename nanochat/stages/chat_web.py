"""Chat with a model in the browser; other programs use its OpenAI-compatible API under /v1.

nanochat chat_web --run pocket
nanochat chat_web --run pocket --host 0.0.0.0 --api-key SECRET
"""

import dataclasses
import socket
from collections.abc import Callable
from dataclasses import dataclass

import torch

from nanochat import checkpoint_manager
from nanochat.checkpoint_manager import SourceOptions
from nanochat.engine import Engine
from nanochat.engine.sampling import SamplingOptions
from nanochat.server.access import is_loopback
from nanochat.server.app import create_app
from nanochat.server.connections import create_server
from nanochat.server.listen import AddressOptions, listen, url_of
from nanochat.server.service import EngineService
from nanochat.system import config, distributed, storage
from nanochat.system.config import RunOptions, nested, option
from nanochat.system.console import log_line


@dataclass(frozen=True, kw_only=True)
class ChatWebConfig:
    """Serve a chat page and POST /v1/chat/completions."""

    common: RunOptions = nested(RunOptions, without=("dtype",))
    source: SourceOptions = nested(SourceOptions)
    sampling: SamplingOptions = nested(SamplingOptions)
    address: AddressOptions = nested(AddressOptions)
    dtype: str | None = option(
        None,
        "of weights and matrix products; int8: weights of 8 bits, products in bfloat16, a quarter "
        "of the memory; none measures which of float32 and bfloat16 is faster here",
        choices=("float32", "bfloat16", "float16", "int8"),
    )
    slots: int = option(16, "answers generated at the same time", least=1)
    max_in_flight: int = option(
        64, "answers queued or in progress before new requests are rejected", least=1
    )
    max_in_flight_per_client: int | None = option(
        None,
        "how many of them one client may have: an address, or an API key if there are several; "
        "none: half where other machines can connect, on a loopback address all",
        least=1,
    )
    drain_s: float = option(
        10.0, "seconds to finish answers in progress after SIGTERM or Ctrl-C", least=0
    )

    @property
    def max_per_client(self) -> int:
        """How many answers in flight one client may have."""
        # Behind a proxy on this machine, or for its one user, all clients have one address.
        half = -(-self.max_in_flight // 2)
        default = self.max_in_flight if is_loopback(self.address.host) else half
        return self.max_in_flight_per_client or default


def main(argv: list[str] | None = None) -> None:
    cfg = config.parse(ChatWebConfig, argv, stage="chat_web")
    cfg.address.access()  # a contradiction is reported before the model is loaded
    path = checkpoint_manager.locate(cfg.source, cfg.common, chat=True)
    # Weights of 8 bits are made from the checkpoint's own.
    of_run, of_engine = ("float32", torch.int8) if cfg.dtype == "int8" else (cfg.dtype, None)
    common = dataclasses.replace(cfg.common, dtype=of_run)
    with distributed.session(common) as run, listen(cfg.address) as listener:

        def load() -> Engine:
            loaded = checkpoint_manager.load(path, run)
            dtype = of_engine or run.compute_dtype
            kind = str(dtype).removeprefix("torch.")
            log_line(f"model: {checkpoint_manager.describe(loaded)} in {kind} on {run.device}")
            return Engine(loaded.model, loaded.tokenizer, slots=cfg.slots, dtype=dtype)

        serve(cfg, listener, load)


def serve(cfg: ChatWebConfig, listener: socket.socket, load: Callable[[], Engine]) -> None:
    """Serve until Ctrl-C.

    Raises: the exception that loading the model raised, if any.
    """

    def ready() -> None:
        log_line(f"chat at {url_of(cfg.address, listener)}  (Ctrl-C stops)")

    def failed() -> None:
        server.should_exit = True

    service = EngineService(
        load,
        max_in_flight=cfg.max_in_flight,
        max_per_client=cfg.max_per_client,
        on_ready=ready,
        on_failure=failed,
    )
    app = create_app(
        {cfg.common.run: service},
        defaults=cfg.sampling,
        access=cfg.address.access(),
        log=log_line,
        runs_folder=storage.base_dir() / "runs",
    )
    server = create_server(app, [service], drain_s=cfg.drain_s)
    service.start()
    try:
        server.run(sockets=[listener])
    finally:
        service.stop()
    if service.failure is not None:
        raise service.failure
    log_line("stopped")


if __name__ == "__main__":
    config.cli(main)
