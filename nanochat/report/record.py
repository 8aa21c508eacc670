"""The result of a finished stage, and the report of a run.

Owns: config.json, samples.jsonl, result.json and report.md. Does not own: reading stages (`data`)
or the page (`page`).
A section is plain JSON, so that stages need no types from here:

    {"title": str, "seconds": float, "peak_memory_bytes": int, "settings": {name: value},
     "results": [{"name", "value", "stderr", "n", "unit"}],
     "samples": [{"prompt", "text"} or {"prompt", "turns": [{"role", "text"}]}, also "group"],
     "notes": [str]}

Every key is optional. An accuracy has unit "accuracy" and a value in [0, 1].
"""

import datetime
import json
import platform
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanochat.report import data
from nanochat.report import page as report_page
from nanochat.report.data import RunRecord
from nanochat.system import config, storage
from nanochat.system.errors import DataError
from nanochat.system.metrics import duration, plain

if TYPE_CHECKING:  # torch takes seconds to import, and who only reads a run does not need it
    from nanochat.system.distributed import Run


def write_config(stage_dir: Path, options: Any, run: "Run | None" = None, **facts: Any) -> None:
    """Write a stage's config.json: its options, what it runs on, and further facts.

    run: None for a stage whose result does not depend on the machine.
    """
    machine = {}
    if run is not None:
        import torch

        from nanochat.system import device as devices

        machine = {
            "device": devices.describe(run.device),
            "compute_dtype": str(run.compute_dtype).removeprefix("torch."),
            "world_size": run.world_size,
            "threads": torch.get_num_threads(),
            "python": platform.python_version(),
            "torch": torch.__version__,
        }
    found = {"stage": stage_dir.name, "options": config.to_dict(options), **machine, **facts}
    storage.write_json(stage_dir / "config.json", plain(found))


def record_samples(stage_dir: Path, step: int, samples: list[dict[str, Any]]) -> None:
    """Append what the model wrote after a step to samples.jsonl.

    samples: in the form of a section. Raises: OSError if the file cannot be written.
    """
    line = json.dumps(plain({"step": step, "samples": samples}))
    # The newline before it closes a line that a killed process left unfinished.
    with (stage_dir / "samples.jsonl").open("ab") as file:
        file.write(f"\n{line}\n".encode())


def record(stage_dir: Path, section: dict[str, Any]) -> None:
    """Write a stage's result.json atomically, which marks the stage as complete."""
    finished = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    storage.write_json(stage_dir / "result.json", plain({**section, "finished": finished}))


def is_complete(stage_dir: Path) -> bool:
    """Whether the stage was recorded as complete."""
    return (stage_dir / "result.json").exists()


def build(run_dir: Path) -> Path:
    """Write report.md and report.html from the files of the run's stages; return the page's path.

    Stages may be missing or unfinished. Raises: DataError if there are none.
    """
    run = data.load(run_dir) if run_dir.is_dir() else RunRecord(run_dir.name, [])
    if not run.stages:
        raise DataError(f"{run_dir} has no stages to report on; train one, or give --run NAME")
    written = datetime.datetime.now().astimezone().strftime("%d %B %Y, %H:%M")
    storage.write_atomic(
        run_dir / "report.md", markdown(run, written=written).encode(errors="replace")
    )
    page = run_dir / "report.html"
    storage.write_atomic(page, report_page.render(run, written=written).encode(errors="replace"))
    return page


def markdown(run: RunRecord, *, written: str) -> str:
    """The report as Markdown: results and samples, without plots."""
    lines = [f"# nanochat run {run.name}", "", f"Written {written}.", ""]
    empty: list[tuple[str, str, str]] = []
    tiles = data.made("headline", lambda: data.headline(run), empty)
    lines += _table(["", "", ""], [list(tile) for tile in tiles])
    parts = {
        "Accuracy": _accuracy_lines,
        "Stages": _stage_lines,
        "Figures": _figure_lines,
        "Notes": _note_lines,
        "Samples": _sample_lines,
        "Machine": _machine_lines,
        "Settings": _setting_lines,
    }
    for heading, make in parts.items():
        lines += _section(heading, data.made(heading, partial(make, run), []))
    return "\n".join(lines).rstrip() + "\n"


def _accuracy_lines(run: RunRecord) -> list[str]:
    rows = data.accuracies(run)
    series = data.series_of(rows)
    names = [data.SERIES_NAMES[s] for s in series]
    cells = []
    for name, found in rows:
        values = [data.with_error(found[s]) if s in found else "" for s in series]
        cells.append([name, *values, data.item_counts(found.values())])
    return _table(["task", *names, "items"], cells) if cells else []


def _stage_lines(run: RunRecord) -> list[str]:
    rows = []
    for stage in run.stages:
        memory, tokens = stage.peak_memory_bytes, stage.last("tokens")
        rows.append(
            [
                stage.title,
                "complete" if stage.complete else "not finished",
                duration(stage.seconds),
                data.count(tokens) if tokens else "",
                data.gigabytes(memory) if memory else "",
            ]
        )
    rows.append(["all", "", duration(run.seconds), "", data.gigabytes(run.peak_memory_bytes)])
    return _table(["stage", "state", "time", "tokens", "peak memory"], rows)


def _figure_lines(run: RunRecord) -> list[str]:
    rows = [
        [stage.title, r["name"], data.with_error(r), r.get("unit") or "", str(r.get("n") or "")]
        for stage in run.stages
        for r in stage.results
        if r.get("unit") != data.ACCURACY
    ]
    return _table(["stage", "figure", "value", "unit", "items"], rows) if rows else []


def _note_lines(run: RunRecord) -> list[str]:
    return [f"- {stage.title}: {note}" for stage in run.stages for note in stage.notes]


def _sample_lines(run: RunRecord) -> list[str]:
    lines: list[str] = []
    for stage, group, samples in data.sample_groups(run):
        lines += [f"### {group + ', ' if group else ''}{stage.title}", ""]
        for sample in samples:
            turns = sample.get("turns") or [
                {"role": "prompt", "text": sample.get("prompt", "")},
                {"role": "answer", "text": sample.get("text", "")},
            ]
            lines += [f"- **{turn['role']}**: {_one_line(turn['text'])}" for turn in turns]
            lines.append("")
    return lines


def _setting_lines(run: RunRecord) -> list[str]:
    lines: list[str] = []
    for stage in run.stages:
        rows = [[key, value] for key, value in stage.settings().items()]
        if rows:
            lines += [f"### {stage.title}", "", *_table(["setting", "value"], rows)]
    return lines


def _machine_lines(run: RunRecord) -> list[str]:
    facts = [[name, value] for name, value in data.machine(run).items()]
    return _table(["", ""], facts) if facts else []


def _section(heading: str, lines: list[str]) -> list[str]:
    return [f"## {heading}", "", *lines, ""] if lines else []


def _table(header: list[str], rows: list[list[str]]) -> list[str]:
    def line(cells: list[str]) -> str:
        return "| " + " | ".join(_one_line(cell).replace("|", "\\|") for cell in cells) + " |"

    return [line(header), "|" + "---|" * len(header), *map(line, rows), ""]


def _one_line(text: str) -> str:
    return " ".join(str(text).split())
