"""What a training stage records: what it started with, and its section of the report.

Owns: how both are read and built. Does not own: the files (report/record.py), nor when they are
written (stage.py).
"""

import contextlib
import subprocess
from pathlib import Path
from typing import Any

from nanochat.gpt import fp8
from nanochat.gpt.attention import BACKENDS
from nanochat.report import data
from nanochat.system import device as devices
from nanochat.system.distributed import DTYPES, Run, StartedWith
from nanochat.training.progress import Summary


def started_with(folder: Path) -> StartedWith:
    """What a stage started with, from its config.json; None for what is missing or invalid."""
    found = data.read_object(folder / "config.json")

    def known(name: str, kind: type) -> Any:
        value = found.get(name)
        return value if type(value) is kind else None

    dtype, attention = known("compute_dtype", str), known("attention", str)
    threads, rows = known("threads", int), known("device_batch_size", int)
    precision = known("fp8", str)
    return StartedWith(
        dtype=dtype if dtype in DTYPES else None,
        threads=threads if threads and threads > 0 else None,
        world_size=known("world_size", int),
        attention=attention if attention in BACKENDS else None,
        compiled=known("compiled", bool),
        device_rows=rows if rows and rows > 0 else None,
        fp8=None if precision is None else not precision.startswith(fp8.OFF),
    )


def section(
    name: str,
    summary: Summary,
    run: Run,
    results: dict[str, Any],
    facts: dict[str, Any],
    seconds: float,
) -> dict[str, Any]:
    """The stage's section of the report.

    results: {"evaluation": {name: figure}, "samples": [...]} of the last evaluation.
    """
    figures = [
        {"name": "final training loss", "value": summary.final_loss, "unit": "nats a token"},
        {"name": "tokens", "value": summary.tokens, "unit": "tokens"},
    ]
    if summary.trained_steps:  # a resumed run may have had only its record left to write
        figures += [
            {"name": "speed", "value": summary.tokens_per_s, "unit": "tokens/s"},
            {
                # RL waits for its own model to write the answers it trains on.
                "name": "share spent sampling" if name == "chat_rl" else "data wait share",
                "value": summary.data_wait_share,
                "unit": "of training time",
            },
        ]
    figures += [{"name": key, "value": value} for key, value in results["evaluation"].items()]
    return {
        "title": name,
        "seconds": seconds,
        "peak_memory_bytes": devices.memory_used(run.device),
        "settings": {**facts, "steps": summary.steps},
        "results": figures,
        "samples": results["samples"],
        "notes": _notes(summary),
    }


def _notes(summary: Summary) -> list[str]:
    """What went wrong during training."""
    counts = {
        "steps left out, as they were not finite": summary.skipped,
        "returns to an earlier checkpoint after such steps": summary.rewinds,
        "jumps of the loss": summary.spikes,
    }
    return [f"{what}: {count:,}" for what, count in counts.items() if count]


def git_commit() -> str | None:
    """The git commit this runs from, marked -dirty if files were changed; None outside of git."""
    folder = Path(__file__).parent
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = ["git", "describe", "--always", "--dirty", "--exclude=*", "--abbrev=12"]
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, check=True, timeout=10
        )
        return done.stdout.strip()
    return None
