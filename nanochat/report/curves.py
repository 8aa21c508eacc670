"""A stage's metrics as curves, read while training writes them.

Owns: reading metrics.jsonl from a position on, which rows count, and thinning long curves. Does not
own: the file (system/metrics.py) or drawing.
"""

import math
import os
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from nanochat.report.data import is_number
from nanochat.system import storage

MAX_LINE_BYTES = 1 << 20  # longer ones are no rows of ours
MAX_STEP = 2**53  # a browser counts no further
MAX_CURVES = 200  # a file of other origin may have a key of its own in every row
MAX_POINTS = 1200  # per curve: the lowest and highest value for each of a wide plot's pixels
DIGITS = 7  # significant ones sent: a float32 has no more


@dataclass
class Curve:
    """A metric's values over steps, which ascend."""

    steps: array = field(default_factory=lambda: array("d"))
    values: array = field(default_factory=lambda: array("d"))

    def cut(self, step: float) -> None:
        """Drop the points at this step and later."""
        while self.steps and self.steps[-1] >= step:
            self.steps.pop()
            self.values.pop()


@dataclass(frozen=True)
class Reading:
    """What a file had from a position on.

    file, end: where to go on reading. start: where this reading began; 0 if the file is another one
    than before, so that what was read before no longer counts. thinned: some curves have more
    points than are given.
    """

    file: str
    start: int
    end: int
    curves: dict[str, Curve]
    thinned: bool

    def as_json(self) -> dict[str, Any]:
        """The reading as JSON has it: for each metric [steps, values]."""
        shown = {
            name: [[int(step) for step in curve.steps], [_rounded(v) for v in curve.values]]
            for name, curve in self.curves.items()
        }
        position = {"file": self.file, "start": self.start, "end": self.end}
        return {**position, "thinned": self.thinned, "curves": shown}


def read(
    path: Path,
    *,
    file: str = "",
    start: int = 0,
    steps: tuple[float, float] = (0, math.inf),
    most: int = MAX_POINTS,
) -> Reading:
    """Read the complete rows of a metrics file, from a byte position on.

    file, start: the end of an earlier reading; a file that was replaced or cut is read from 0.
    steps: the first and last step wanted. most: points per curve.
    Raises: OSError or DataError if the file cannot be read.
    """
    with storage.open_regular(path) as opened:
        status = os.fstat(opened.fileno())
        name = f"{status.st_ino:x}"
        if file != name or not 0 <= start <= status.st_size:
            start = 0
        opened.seek(start)
        curves: dict[str, Curve] = {}
        end, last = start, -1
        for position, row in rows(opened, start):
            end = position
            if row is None:
                continue
            if row["step"] < last:  # training went back to a checkpoint: later rows are void
                for curve in curves.values():
                    curve.cut(row["step"] + 1)
            last = row["step"]
            _add(curves, row)
    low, high = steps
    chosen = {key: _between(curve, low, high) for key, curve in curves.items()}
    shown = {key: thinned(curve, most) for key, curve in chosen.items()}
    cut = any(len(shown[key].steps) < len(chosen[key].steps) for key in shown)
    return Reading(name, start, end, shown, cut)


@dataclass(frozen=True)
class Tail:
    """The end of a metrics file: the last step, each metric's last value, and the mean speed.

    tokens_per_s: over the rows read, evaluations left out; None for fewer than two.
    """

    step: int | None = None
    values: dict[str, float] = field(default_factory=dict)
    tokens_per_s: float | None = None


def tail(path: Path, size: int = 1 << 14) -> Tail:
    """What the last `size` bytes of a metrics file say.

    Raises: OSError or DataError if the file cannot be read.
    """
    with storage.open_regular(path) as opened:
        start = max(0, os.fstat(opened.fileno()).st_size - size)
        opened.seek(start)
        if start:
            opened.readline(MAX_LINE_BYTES)  # most likely the end of a row
        found = [row for _, row in rows(opened, start) if row is not None]
    values = {key: value for row in found for key, value in row.items() if is_number(value)}
    marks = [
        (row["elapsed_s"], row["tokens"])
        for row in found
        if is_number(row.get("elapsed_s")) and is_number(row.get("tokens"))
    ]
    speed = None
    if marks and marks[-1][0] > marks[0][0]:
        speed = (marks[-1][1] - marks[0][1]) / (marks[-1][0] - marks[0][0])
    step = values.pop("step", None)
    return Tail(None if step is None else int(step), values, speed)


def thinned(curve: Curve, most: int) -> Curve:
    """At most about `most` points: the lowest and highest of each stretch, the first and the last.

    Averages would hide the spikes that one looks for.
    """
    count = len(curve.steps)
    if count <= most:
        return curve
    stretches = max(1, (most - 2) // 2)
    kept = {0, count - 1}
    for i in range(stretches):
        start = i * count // stretches
        part = curve.values[start : (i + 1) * count // stretches]
        kept |= {start + part.index(min(part)), start + part.index(max(part))}
    order = sorted(kept)
    return Curve(
        array("d", [curve.steps[i] for i in order]), array("d", [curve.values[i] for i in order])
    )


def rows(file: BinaryIO, position: int) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """(position after it, row) of every complete line; None for a line that is no row.

    The last line is left for the next reading if its end is still to be written.
    """
    while line := file.readline(MAX_LINE_BYTES):
        if not line.endswith(b"\n") and len(line) < MAX_LINE_BYTES:
            return
        position += len(line)
        try:
            row = storage.parse_json(line)
        except ValueError:
            row = None
        step = row.get("step") if isinstance(row, dict) else None
        yield position, row if is_number(step) and 0 <= step <= MAX_STEP else None


def _add(curves: dict[str, Curve], row: dict[str, Any]) -> None:
    step = row["step"]
    for key, value in row.items():
        if key == "step" or not is_number(value):
            continue
        curve = curves.get(key)
        if curve is None:
            if len(curves) == MAX_CURVES:
                continue
            curve = curves[key] = Curve()
        if curve.steps and curve.steps[-1] >= step:
            curve.cut(step)  # a step may be repeated: the later row counts
        curve.steps.append(step)
        curve.values.append(value)


def _between(curve: Curve, low: float, high: float) -> Curve:
    if not curve.steps or (low <= curve.steps[0] and curve.steps[-1] <= high):
        return curve
    inside = [i for i, step in enumerate(curve.steps) if low <= step <= high]
    return Curve(
        array("d", [curve.steps[i] for i in inside]), array("d", [curve.values[i] for i in inside])
    )


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
