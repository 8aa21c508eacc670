"""Watch runs in the browser: curves, samples and accuracies, live while training writes them.

nanochat dashboard
"""

from dataclasses import dataclass

from nanochat.server.connections import create_server
from nanochat.server.listen import AddressOptions, listen, url_of
from nanochat.server.runs import create_dashboard
from nanochat.system import config, storage
from nanochat.system.config import nested
from nanochat.system.console import log_line


@dataclass(frozen=True, kw_only=True)
class DashboardConfig:
    """Show the runs in $NANOCHAT_BASE_DIR in the browser; reads files only, and needs no model."""

    address: AddressOptions = nested(AddressOptions)


def main(argv: list[str] | None = None) -> None:
    cfg = config.parse(DashboardConfig, argv, stage="dashboard")
    app = create_dashboard(storage.base_dir() / "runs", cfg.address.access())
    server = create_server(app, [], drain_s=0)
    with listen(cfg.address) as listener:
        log_line(f"runs at {url_of(cfg.address, listener)}/runs  (Ctrl-C stops)")
        server.run(sockets=[listener])
        log_line("stopped")


if __name__ == "__main__":
    config.cli(main)
