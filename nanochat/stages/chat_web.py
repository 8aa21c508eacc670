"""Chat with a model in the browser; other programs use its OpenAI-compatible API under /v1.

nanochat chat_web --run pocket
nanochat chat_web --run pocket --stages base,sft,rl
nanochat chat_web --run pocket --host 0.0.0.0 --api-key SECRET
"""

import dataclasses
import functools
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch

from nanochat import checkpoint_manager
from nanochat.checkpoint_manager import SourceOptions
from nanochat.engine import Engine
from nanochat.engine.sampling import SamplingOptions
from nanochat.server.access import is_loopback
from nanochat.server.app import create_app
from nanochat.server.connections import create_server
from nanochat.server.listen import AddressOptions, listen, url_of
from nanochat.server.service import EngineService, Origin
from nanochat.system import config, distributed, storage
from nanochat.system.config import RunOptions, check_name, nested, option
from nanochat.system.console import log_line
from nanochat.system.errors import ConfigError

STAGES = {"base": "base_train", "mid": "mid_train", "sft": "chat_sft", "rl": "chat_rl"}


@dataclass(frozen=True, kw_only=True)
class ChatWebConfig:
    """Serve a chat page and POST /v1/chat/completions."""

    common: RunOptions = nested(RunOptions, without=("run", "dtype"))
    source: SourceOptions = nested(SourceOptions)
    sampling: SamplingOptions = nested(SamplingOptions)
    address: AddressOptions = nested(AddressOptions)
    run: tuple[str, ...] = option(
        ("default",), "name of a run in $NANOCHAT_BASE_DIR/runs; may be repeated to serve several"
    )
    stages: str | None = option(
        None,
        "stages of each run to serve side by side: some of base, mid, sft and rl, such as base,rl; "
        "none: one, as --stage says",
    )
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
        "how many of them one client may have: an address, with an API key if there are several; "
        "none: half where other machines can connect, on a loopback address all",
        least=1,
    )
    drain_s: float = option(
        10.0, "seconds to finish answers in progress after SIGTERM or Ctrl-C", least=0
    )

    def __post_init__(self) -> None:
        for name in self.run:
            check_name("--run", name)
        several = self.stages is not None or len(self.run) > 1
        if self.source.checkpoint is not None and several:
            raise ConfigError("--checkpoint names one model; leave out --stages and further --run")
        if self.stages is not None and self.source.stage is not None:
            raise ConfigError("give either --stage or --stages")
        for stage in self.stages.split(",") if self.stages else ():
            if stage not in STAGES:
                raise ConfigError(f"--stages has {stage!r}; there are {', '.join(STAGES)}")

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
    paths = checkpoints(cfg)
    # Weights of 8 bits are made from the checkpoint's own.
    of_run, of_engine = ("float32", torch.int8) if cfg.dtype == "int8" else (cfg.dtype, None)
    common = dataclasses.replace(cfg.common, dtype=of_run)
    with distributed.session(common) as run, listen(cfg.address) as listener:

        def load(path: Path) -> Engine:
            loaded = checkpoint_manager.load(path, run)
            dtype = of_engine or run.compute_dtype
            kind = str(dtype).removeprefix("torch.")
            log_line(f"model: {checkpoint_manager.describe(loaded)} in {kind} on {run.device}")
            return Engine(loaded.model, loaded.tokenizer, slots=cfg.slots, dtype=dtype)

        loads = {name: functools.partial(load, path) for name, path in paths.items()}
        serve(cfg, listener, loads, {name: origin(path) for name, path in paths.items()})


def checkpoints(cfg: ChatWebConfig) -> dict[str, Path]:
    """The checkpoints to serve, by model id: the run, with the stage where it has several.

    Runs come in the order given, the most trained stage of each first: it is the default.
    Raises: CheckpointError naming the command that creates one that is missing.
    """
    paths = {}
    for name in dict.fromkeys(cfg.run):
        common = dataclasses.replace(cfg.common, run=name)
        if cfg.stages is None:
            paths[name] = checkpoint_manager.locate(cfg.source, common, chat=True)
            continue
        named = cfg.stages.split(",")
        stages = [stage for stage in reversed(STAGES) if stage in named]
        for stage in stages:
            found = checkpoint_manager.find(name, (STAGES[stage],))
            paths[f"{name}:{stage}" if len(stages) > 1 else name] = found
    return paths


def origin(path: Path) -> Origin:
    """Run, stage and step of a checkpoint; run and stage by its place."""
    folder = (checkpoint_manager.latest(path) or path).resolve()
    stage = folder.parent.name
    step = checkpoint_manager.read_meta(folder, ()).step
    chat = stage in checkpoint_manager.CHAT_STAGES
    return Origin(run=folder.parent.parent.name, stage=stage, step=step, chat=chat)


def serve(
    cfg: ChatWebConfig,
    listener: socket.socket,
    loads: Mapping[str, Callable[[], Engine]],
    origins: Mapping[str, Origin] = MappingProxyType({}),
) -> None:
    """Serve until Ctrl-C.

    loads: what loads each model, by its id; origins: where it comes from.
    Raises: the exception that loading a model raised, if any.
    """

    def ready() -> None:
        if all(service.engine is not None for service in services.values()):
            log_line(f"chat at {url_of(cfg.address, listener)}  (Ctrl-C stops)")

    def failed() -> None:
        server.should_exit = True

    services = {
        name: EngineService(
            load,
            origin=origins.get(name),
            max_in_flight=cfg.max_in_flight,
            max_per_client=cfg.max_per_client,
            on_ready=ready,
            on_failure=failed,
        )
        for name, load in loads.items()
    }
    app = create_app(
        services,
        defaults=cfg.sampling,
        access=cfg.address.access(),
        log=log_line,
        runs_folder=storage.base_dir() / "runs",
    )
    server = create_server(app, services.values(), drain_s=cfg.drain_s)
    for service in services.values():
        service.start()
    try:
        server.run(sockets=[listener])
    finally:
        for service in services.values():
            service.stop()
    for service in services.values():
        if service.failure is not None:
            raise service.failure
    log_line("stopped")


if __name__ == "__main__":
    config.cli(main)
