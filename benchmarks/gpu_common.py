"""Shared by the parts of gpu_check: sizes, timing, and recording of results."""

import json
import statistics
import sys
import time
import types
from collections.abc import Callable
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import torch

import nanochat
from nanochat.system import device as devices

ROOT = Path(__file__).parent.parent
EXTENSION = "nanochat.tokenizer._rustbpe"


class Skipped(Exception):
    """A part cannot run here; the message says what is missing."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Sizes of everything that is measured: realistic, or tiny for a rehearsal."""

    depths: tuple[int, ...]  # most important first
    sequence_length: int
    vocab_size: int
    device_rows: tuple[int, ...]  # rows per forward pass, tried in this order until one fits
    tokens_per_step: int
    steps: int
    # Attention problems: (rows, length, heads, key heads, channels per head, window).
    attention: tuple[tuple[int, int, int, int, int, int | None], ...]
    attention_speed: tuple[int, int, int, int]  # rows, length, heads, channels per head
    decode_batches: tuple[int, ...]
    prompt: int  # tokens
    new_tokens: int
    rl_tokens: int  # of an answer
    stage_depth: int  # of the short runs of base training
    text_vocab: int  # of their random text
    pocket_tokens: int  # of base training in pocket
    sample_s: float  # minimum duration of one timing sample


FULL = Scale(
    depths=(24, 12, 20),
    sequence_length=2048,
    vocab_size=32768,
    device_rows=(16, 8, 4, 2, 1),
    tokens_per_step=2**17,  # the share of one of eight GPUs in a step of 2^20
    steps=16,
    attention=(
        (2, 128, 4, 4, 128, None),
        (2, 300, 4, 4, 128, 64),
        (2, 300, 4, 2, 64, None),
        (2, 1024, 6, 2, 128, 256),
        (2, 1024, 4, 1, 128, None),
        (1, 2048, 4, 4, 128, 512),
        (1, 2048, 4, 4, 128, None),
        (1, 4001, 2, 2, 128, 1024),
    ),
    attention_speed=(16, 2048, 12, 128),
    decode_batches=(1, 64),
    prompt=1024,
    new_tokens=128,
    rl_tokens=256,
    stage_depth=8,
    text_vocab=2048,
    pocket_tokens=400_000,
    sample_s=0.02,
)
TINY = Scale(
    depths=(2,),
    sequence_length=64,
    vocab_size=512,
    device_rows=(2, 1),
    tokens_per_step=256,
    steps=5,
    attention=((1, 17, 2, 2, 16, None), (2, 40, 4, 2, 16, 8)),
    attention_speed=(1, 64, 2, 16),
    decode_batches=(1, 3),
    prompt=12,
    new_tokens=4,
    rl_tokens=4,
    stage_depth=1,
    text_vocab=64,
    pocket_tokens=20_000,
    sample_s=0.0,
)


@dataclass(frozen=True, kw_only=True)
class Work:
    """The context of a part: its device, sizes, deadline, and file for results."""

    device: torch.device
    scale: Scale
    compiled: bool
    deadline_s: float  # of time.perf_counter()
    path: Path  # of JSON lines

    def add(self, table: str, **values: Any) -> None:
        """Write a row of figures immediately, as the part may be killed at any time."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"table": table, **values}) + "\n")

    def note(self, text: str) -> None:
        """Record a note for the reader of the report."""
        self.add("notes", text=text)

    def late(self, needed_s: float = 0.0) -> bool:
        """Whether the part has less than needed_s left."""
        return time.perf_counter() + needed_s > self.deadline_s

    def milliseconds(self, function: Callable[[], object], *, samples: int = 5) -> float:
        """Median time of a call after warming up; short calls are timed in groups."""
        once = self._time(function, 3) / 3
        calls = max(1, round(self.scale.sample_s / max(once, 1e-6)))
        return 1e3 * statistics.median(self._time(function, calls) / calls for _ in range(samples))

    def _time(self, function: Callable[[], object], calls: int) -> float:
        function()
        devices.synchronize(self.device)
        begin_s = time.perf_counter()
        for _ in range(calls):
            function()
        devices.synchronize(self.device)
        return time.perf_counter() - begin_s


def without_extension() -> bool:
    """Whether the compiled tokenizer is missing; if so, this installs a stand-in.

    Nothing that is measured here encodes text, but the training and generation modules import it.
    """
    # Not importlib.util.find_spec: it would import the package, which imports the extension.
    folder = Path(nanochat.__file__).parent / "tokenizer"
    if PathFinder.find_spec(EXTENSION, [str(folder)]) is not None:
        return False
    stand_in = types.ModuleType(EXTENSION)
    stand_in.__dict__.update(PATTERNS=(), Encoder=None)
    sys.modules[EXTENSION] = stand_in
    return True


def reason(error: BaseException) -> str:
    """An error as a single line."""
    first = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {first}"[:300]
