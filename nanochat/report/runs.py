"""All runs in a folder, as they are now: which there are, how far they are, what they recorded.

Owns: which files count, whether a stage is running, and the plain JSON that the dashboard takes.
Does not own: curves (`curves`), the files themselves or HTTP. It writes nothing and takes no lock.
Anything may be in the folder: what is no stage of ours, or lies outside, is left out.
"""

import functools
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nanochat.report import curves, data
from nanochat.report.data import RunRecord, StageData, is_number
from nanochat.system import config, storage
from nanochat.system.errors import ConfigError, DataError

LOCKS = Path("/proc/locks")  # Linux: every lock that a process holds, by device and inode
# Without a lock to see, a stage is running if it wrote a row this recently. A fresh row also counts
# where locks can be seen: those of processes in another container cannot.
FRESH_S, FRESH_UNSEEN_S = 20.0, 180.0
MAX_SNAPSHOTS = 60  # of a stage's samples; more would be no easier to compare
MAX_TEXT = 4000  # characters of a sample
FILES = ("config.json", "metrics.jsonl", "samples.jsonl", "result.json", ".lock")
FACTS = ("parameters", "steps", "tokens", "tokens_per_step", "conversations", "source")


def overview(folder: Path) -> list[dict[str, Any]]:
    """Every run with its stages, the one that was changed last first; none without the folder.

    A run is {"name", "state", "modified", "version", "stages"}, a stage {"name", "title", "series",
    "state", "modified", "step", "steps", "last", "tokens_per_s"}. state: "running", "done", or
    "stopped" for one that is neither. modified: seconds since 1970. version: changes with what
    `details` gives. step, steps: the last one logged and the last one planned, or null. last: each
    metric's value. tokens_per_s: the mean over the last rows, or null.
    """
    locks = _locks()
    found = [_run(path, locks) for path in _folders(folder)]
    runs = [run for run in found if run["stages"]]
    return sorted(runs, key=lambda run: (-run["modified"], run["name"]))


def details(run_dir: Path) -> dict[str, Any]:
    """What the stages of a run recorded: {"name", "machine", "stages"}.

    A stage is {"name", "title", "series", "seconds", "peak_memory_bytes", "settings", "results",
    "samples", "notes"}, with results and samples as in `record`, where a sample also has the
    "step" after which it was written, or null, and both have the "series" of the model.
    """
    stages = [
        StageData(
            path.name, _object(files, path, "config.json"), [], _object(files, path, "result.json")
        )
        for path, files in _stages(run_dir)
    ]
    machine = data.machine(RunRecord(run_dir.name, stages))
    described = [_described(stage, run_dir / stage.name) for stage in stages]
    return {"name": run_dir.name, "machine": machine, "stages": described}


def find(folder: Path, run: str, stage: str | None = None) -> Path:
    """The folder of a run, or of a stage of it; the names may come from anyone.

    Raises: DataError if there is none of that name within `folder`.
    """
    path = folder
    for name in (run, stage):
        if name is not None:
            path = next((p for p in _folders(path) if p.name == name), path / "")
            if path.name != name:
                raise DataError(f"there is no {'run' if name is run else 'stage'} {name!r}")
    return path


def metrics_file(stage_dir: Path) -> Path:
    """The metrics of a stage. Raises: DataError if it has none."""
    if "metrics.jsonl" not in _files(stage_dir):
        raise DataError(f"{stage_dir.name} has no metrics")
    return stage_dir / "metrics.jsonl"


def _run(run_dir: Path, locks: set[tuple[int, int]] | None) -> dict[str, Any]:
    stages = [_stage(path, files, locks) for path, files in _stages(run_dir)]
    states = [stage["state"] for stage in sorted(stages, key=lambda stage: stage["modified"])]
    return {
        "name": run_dir.name,
        "state": "running" if "running" in states else states[-1] if states else "stopped",
        "modified": max((stage["modified"] for stage in stages), default=0),
        "version": "".join(stage.pop("version") for stage in stages),
        "stages": stages,
    }


def _stage(
    path: Path, files: dict[str, os.stat_result], locks: set[tuple[int, int]] | None
) -> dict[str, Any]:
    metrics = files.get("metrics.jsonl")
    tail = curves.Tail()
    if metrics is not None:
        tail = _tail(path / "metrics.jsonl", *_identity(metrics))
    steps = _object(files, path, "config.json").get("steps")
    parts = [files[name].st_mtime_ns for name in FILES[:4] if name in files]
    version = [files[name].st_mtime_ns for name in FILES[:4] if name in files and name != FILES[1]]
    stage = StageData(path.name)
    return {
        "name": path.name,
        "title": stage.title,
        "series": stage.series,
        "state": _state(files, locks),
        "modified": max(parts) / 1e9,
        "step": tail.step,
        "steps": steps if is_number(steps) and steps > 0 else None,
        "last": tail.values,
        "tokens_per_s": tail.tokens_per_s,
        "version": f"{max(version, default=0):x}.",
    }


def _state(files: dict[str, os.stat_result], locks: set[tuple[int, int]] | None) -> str:
    lock, metrics = files.get(".lock"), files.get("metrics.jsonl")
    if lock is not None and locks is not None and _held(lock, locks):
        return "running"
    if "result.json" in files:
        return "done"
    quiet_s = time.time() - metrics.st_mtime if metrics is not None else float("inf")
    seen = lock is not None and locks is not None and os.major(lock.st_dev) != 0
    return "running" if quiet_s < (FRESH_S if seen else FRESH_UNSEEN_S) else "stopped"


def _held(lock: os.stat_result, locks: set[tuple[int, int]]) -> bool:
    if os.major(lock.st_dev) != 0:
        return (lock.st_dev, lock.st_ino) in locks
    # Layered and network file systems show programs another device than the kernel's list.
    return any(inode == lock.st_ino for _, inode in locks)


def _locks() -> set[tuple[int, int]] | None:
    """(device, inode) of every lock held on this machine; None where the system does not tell.

    Trying to take a stage's lock would tell as well, but could make a run fail that starts then.
    """
    try:
        lines = LOCKS.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    held = set()
    for line in lines:  # 1: FLOCK  ADVISORY  WRITE 16962 fe:00:9980216 0 EOF
        for word in line.split():
            major, *rest = word.split(":")
            if len(rest) == 2 and all(rest):
                held.add((os.makedev(int(major, 16), int(rest[0], 16)), int(rest[1])))
    return held


def _stages(run_dir: Path) -> list[tuple[Path, dict[str, os.stat_result]]]:
    """(folder, files) of the stages that recorded anything, in the order of a run."""
    found = [
        (path, files) for path in _folders(run_dir) if (files := _files(path)).keys() - {".lock"}
    ]
    order = list(data.STAGES)
    rank = {name: place for place, name in enumerate(order)}
    return sorted(found, key=lambda item: (rank.get(item[0].name, len(order)), item[0].name))


def _folders(folder: Path) -> Iterator[Path]:
    """The folders in a folder that have plain names and do not lead out of it."""
    try:
        entries = list(os.scandir(folder))
    except OSError:  # missing, or not ours to read
        return
    for entry in entries:
        try:
            config.check_name("a run", entry.name)
            inside = not entry.is_symlink() or folder.resolve() in Path(entry).resolve().parents
            if inside and entry.is_dir():
                yield folder / entry.name
        except (ConfigError, OSError, ValueError):
            continue


def _files(stage_dir: Path) -> dict[str, os.stat_result]:
    """The files of a stage by name; links, pipes and devices of these names are none."""
    found = {}
    for name in FILES:
        try:
            status = (stage_dir / name).lstat()
        except OSError:
            continue
        if stat.S_ISREG(status.st_mode):
            found[name] = status
    return found


def _identity(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_size, status.st_mtime_ns


def _object(files: dict[str, os.stat_result], stage_dir: Path, name: str) -> dict[str, Any]:
    status = files.get(name)
    return {} if status is None else _cached_object(stage_dir / name, *_identity(status))


@functools.lru_cache(maxsize=512)  # the pages ask every two seconds; most files never change again
def _cached_object(path: Path, *identity: int) -> dict[str, Any]:
    return data.read_object(path)


@functools.lru_cache(maxsize=512)
def _tail(path: Path, *identity: int) -> curves.Tail:
    try:
        return curves.tail(path)
    except (OSError, DataError):
        return curves.Tail()


def _described(stage: StageData, path: Path) -> dict[str, Any]:
    facts = {key: text for key in FACTS if (text := data.short_value(stage.config.get(key)))}
    settings = facts | StageData(stage.name, stage.config).settings()  # as known from the start
    return {
        "name": stage.name,
        "title": stage.title,
        "series": stage.series,
        "seconds": stage.seconds or None,
        "peak_memory_bytes": stage.peak_memory_bytes or None,
        "settings": {key: text for key, text in settings.items() if text != "null"},
        "results": [found for result in stage.results if (found := _result(result, stage.name))],
        "samples": _samples(stage, path),
        "notes": stage.notes,
    }


def _result(result: dict[str, Any], stage: str) -> dict[str, Any] | None:
    """A result whose fields have the types that the page expects."""
    name, unit, model = result.get("name"), result.get("unit"), result.get("stage")
    if not isinstance(name, str):
        return None
    model = model if isinstance(model, str) else stage
    return {
        "name": name,
        "value": result["value"],
        "stderr": result.get("stderr") if is_number(result.get("stderr")) else None,
        "n": result.get("n") if is_number(result.get("n")) else None,
        "unit": unit if isinstance(unit, str) else "",
        "series": StageData(model).series,
    }


def _samples(stage: StageData, path: Path) -> list[dict[str, Any]]:
    """The samples written during training, then those of the result if they differ."""
    rows = _snapshots(path / "samples.jsonl") if "samples.jsonl" in _files(path) else []
    final = stage.samples
    if final and not (rows and rows[-1][1] == final):
        settings = stage.result.get("settings")
        steps = settings.get("steps") if isinstance(settings, dict) else None
        rows.append((steps if is_number(steps) else None, final))
    return [
        shown
        for step, items in rows
        for item in items
        if (shown := _sample(item, step, stage.name))
    ]


def _snapshots(path: Path) -> list[tuple[float | None, list[dict[str, Any]]]]:
    """(step, samples) of the rows of a file; of many, some evenly spread ones and the last."""
    rows: list[tuple[float | None, list[dict[str, Any]]]] = []
    every, seen = 1, 0
    last: tuple[float | None, list[dict[str, Any]]] | None = None
    try:
        with storage.open_regular(path) as file:
            for _, row in curves.rows(file, 0):
                items = row.get("samples") if row is not None else None
                if row is None or not isinstance(items, list):
                    continue
                while rows and rows[-1][0] is not None and rows[-1][0] >= row["step"]:
                    rows.pop()  # training went back: later rows are void
                last = (row["step"], [item for item in items if isinstance(item, dict)])
                if seen % every == 0:
                    rows.append(last)
                if len(rows) > 2 * MAX_SNAPSHOTS:
                    rows, every = rows[::2], every * 2
                seen += 1
    except (OSError, DataError):
        pass
    return rows if last is None or (rows and rows[-1] is last) else [*rows, last]


def _sample(item: dict[str, Any], step: float | None, stage: str) -> dict[str, Any] | None:
    turns = item.get("turns")
    if not isinstance(turns, list):
        turns = [{"role": "assistant", "text": item.get("text")}]
    texts = [
        {"role": str(turn.get("role")), "text": turn["text"][:MAX_TEXT]}
        for turn in turns
        if isinstance(turn, dict) and isinstance(turn.get("text"), str)
    ]
    prompt, model, group = item.get("prompt"), item.get("stage"), item.get("group")
    if not texts or not isinstance(prompt, str):
        return None
    return {
        "step": step,
        "series": StageData(model if isinstance(model, str) else stage).series,
        "group": group if isinstance(group, str) else "",
        "prompt": prompt[:MAX_TEXT],
        "turns": texts,
    }
