"""Evaluate a base model on in-context tasks: CORE, or the small built-in bundle.

nanochat base_eval --preset pocket
nanochat base_eval --bundle core
nanochat base_eval --bundle path/to/eval_bundle --max-items 100
"""

import zipfile
from dataclasses import dataclass
from pathlib import Path

from nanochat import pocket
from nanochat.evaluation import core
from nanochat.evaluation.accuracy import Accuracy, mean_centered
from nanochat.evaluation.core import Reader
from nanochat.evaluation.stage import EvalStage
from nanochat.report.data import CENTERED
from nanochat.system import config, distributed, downloads, storage
from nanochat.system.config import RunOptions, nested, option
from nanochat.system.distributed import Run
from nanochat.system.errors import ConfigError, DataError

NAME = "base_eval"
CORE_URL = "https://karpathy-public.s3.us-west-2.amazonaws.com/eval_bundle.zip"


@dataclass(frozen=True, kw_only=True)
class BaseEvalConfig:
    """Accuracy of a base model on tasks given by examples in the prompt."""

    common: RunOptions = nested(RunOptions)
    source: str | None = option(None, "checkpoint or stage folder; none: the base model of --run")
    bundle: str = option(
        "pocket", "pocket, core (downloads 162 MB), or a folder of the same layout"
    )
    max_items: int | None = option(None, "most items per task; none: all", least=1)
    batch_tokens: int = option(16384, "tokens per forward pass; fewer need less memory", least=1)


def main(argv: list[str] | None = None) -> None:
    cfg = config.parse(BaseEvalConfig, argv, stage=NAME)
    with distributed.session(cfg.common) as run:
        stage = EvalStage(NAME, "Base model: in-context tasks", cfg, cfg.common, run)
        loaded = stage.load(cfg.source, ("base_train",))
        folder = distributed.on_all(run, lambda: open_bundle(cfg.bundle, run))
        reader = Reader(
            model=loaded.model,
            tokenizer=loaded.tokenizer,
            context=loaded.model.config.sequence_length,
            device=run.device,
            batch_tokens=cfg.batch_tokens,
        )
        found = core.evaluate(
            reader,
            folder,
            run=run,
            max_items=cfg.max_items,
            items_path=stage.dir / "items.jsonl",
            log_line=stage.log_line,
        )
        record(stage, found, cfg.max_items)
        stage.close()
        distributed.barrier(run)


def open_bundle(name: str, run: Run) -> Path:
    """The bundle's folder, created or downloaded if missing, once per machine.

    Raises: DataError if it cannot be downloaded; ConfigError if the name is not a folder.
    """
    data = storage.base_dir() / "data"
    if name == "pocket":
        folder = data / "pocket-bundle"
        if run.local_rank == 0:  # every call writes the same files, each atomically
            pocket.write_core_bundle(folder)
        return folder
    if name == "core":
        folder = data / "eval_bundle"
        with storage.lock(data / "eval_bundle.lock"):
            if not folder.exists():
                fetch_core(folder)
        return folder
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise ConfigError(f"--bundle must be pocket, core or a folder, got {name!r}")
    return folder


def fetch_core(folder: Path) -> None:
    """Download CORE's bundle and unpack it, atomically."""
    archive = folder.with_suffix(".zip")
    downloads.fetch(storage.mirrored(CORE_URL), archive)
    try:
        with storage.atomic_folder(folder) as unpacked, zipfile.ZipFile(archive) as file:
            file.extractall(unpacked)
            inner = unpacked / "eval_bundle"  # the archive contains one folder of this name
            for path in list(inner.iterdir()) if inner.is_dir() else ():
                path.rename(unpacked / path.name)
    except zipfile.BadZipFile as error:
        archive.unlink()
        raise DataError(
            f"{archive} was damaged ({error}) and has been removed; run again"
        ) from None


def record(stage: EvalStage, accuracies: list[Accuracy], max_items: int | None) -> None:
    """Record the accuracies and print their mean."""
    mean, stderr = mean_centered(accuracies)
    name = core.label(accuracies, max_items=max_items)
    stage.result(name, mean, stderr=stderr)
    for task in accuracies:
        stage.result(
            task.name,
            task.centered,
            CENTERED,
            stderr=task.centered_stderr,
            n=task.n,
            accuracy=task.value,
            baseline=task.baseline,
        )
    stage.log_line(f"{name}: {mean:.4f} +- {stderr:.4f}")


if __name__ == "__main__":
    config.cli(main)
