"""Write a run's report.md and report.html.

nanochat report --run pocket
"""

from dataclasses import dataclass

from nanochat import report
from nanochat.system import config, storage
from nanochat.system.config import option
from nanochat.system.errors import DataError


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """The report of a run, from what its stages have recorded so far."""

    run: str = option("default", "name of the run; its files are in $NANOCHAT_BASE_DIR/runs/NAME")

    def __post_init__(self) -> None:
        config.check_name("--run", self.run)


def main(argv: list[str] | None = None) -> None:
    cfg = config.parse(ReportConfig, argv, stage="report")
    folder = storage.run_dir(cfg.run)
    if not folder.is_dir():
        names = sorted(p.name for p in folder.parent.glob("*")) if folder.parent.is_dir() else []
        known = f"existing runs: {', '.join(names)}" if names else f"{folder.parent} has none yet"
        raise DataError(f"--run {cfg.run}: no such run; {known}")
    print(report.build(folder))


if __name__ == "__main__":
    config.cli(main)
