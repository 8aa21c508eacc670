"""Batches for the training loop: this rank's share of each step, prefetched.

Owns the distribution of rows to ranks and micro-batches, the prefetch thread and the copy to the
device. Does not own the rows' content: see token_stream and conversation_rows.
"""

import queue
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from nanochat.data.conversation_rows import ChatRows
from nanochat.data.packing import IGNORED, pad_rows
from nanochat.data.token_stream import TokenStream
from nanochat.system.distributed import Run
from nanochat.system.errors import CheckpointError, DataError
from nanochat.tokenizer import Tokenizer
from nanochat.tokenizer.conversation import Conversation

__all__ = ["Batch", "BatchSource", "ChatBatches", "StreamBatches", "TokenStream"]

AHEAD_STEPS = 3  # steps prepared in advance
UNRECORDED = {"packing": "split"}  # values that old checkpoints do not record


@dataclass(frozen=True)
class Batch:
    """Rows for one forward pass: inputs and targets int64 [B, T], targets -1 if without loss.

    weights: float [B, T] factors of the token losses, or None if all are 1.
    """

    inputs: Tensor
    targets: Tensor
    weights: Tensor | None = None


class BatchSource(Protocol):
    """Where the training loop gets its batches."""

    def next_step(self) -> list[Batch]:
        """This rank's micro-batches of one optimizer step, on the run's device."""

    def state(self) -> dict[str, Any]:
        """Where the next step starts, as JSON types; the same on every rank."""

    def load_state(self, state: Any) -> None:
        """Resume at a saved state; the number of ranks may have changed since."""

    def close(self) -> None:
        """Stop preparing batches."""


# From a position to this rank's inputs and targets and the position after the step.
ReadStep = Callable[[dict[str, Any]], tuple[np.ndarray, np.ndarray, dict[str, Any]]]


class _Prefetched:
    """The part of a BatchSource that does not depend on what the rows are."""

    def __init__(
        self,
        read_step: ReadStep,
        position: dict[str, Any],
        *,
        identity: dict[str, Any],
        micro_rows: int,
        run: Run,
    ) -> None:
        self.wait_s = 0.0  # time next_step spent waiting for data
        self._read_step = read_step
        self._position = position
        self._identity = identity
        self._micro_rows = micro_rows
        self._run = run
        self._queue: queue.Queue[Any] | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def next_step(self) -> list[Batch]:
        """This rank's micro-batches of one optimizer step, on the run's device.

        All of a source's micro-batches have the same shape, on every rank.
        """
        start_s = time.perf_counter()
        if self._queue is None:
            self._start()
        assert self._queue is not None
        item = self._queue.get()
        if isinstance(item, BaseException):
            self.close()
            raise item
        # The position moves when a step is taken, not when it is prepared: a checkpoint must not
        # skip the steps that are still in the queue.
        batches, self._position = item
        self.wait_s += time.perf_counter() - start_s
        device = self._run.device
        return [
            Batch(b.inputs.to(device, non_blocking=True), b.targets.to(device, non_blocking=True))
            for b in batches
        ]

    def state(self) -> dict[str, Any]:
        """Where the next step starts, as JSON types; the same on every rank."""
        return {**self._position, "stream": self._identity}

    def load_state(self, state: Any) -> None:
        """Resume at a saved state; the number of ranks may have changed since.

        Raises: CheckpointError if the state belongs to different rows, or is none.
        """
        saved = state if isinstance(state, dict) else {}
        position = {name: saved.get(name) for name in self._position}
        now, before = self._identity, saved.get("stream", {})
        if not isinstance(before, dict) or any(
            type(n) is not int or n < 0 for n in position.values()
        ):
            raise CheckpointError("cannot resume: the checkpoint does not say where in the data")
        for name in {**before, **now} if before else {}:
            was = before.get(name, UNRECORDED.get(name))
            if now.get(name) != was:
                raise CheckpointError(
                    f"cannot resume: the {name} of the training rows was {was} and is now "
                    f"{now.get(name)}; give the previous options, or start another run"
                )
        self.close()
        self._position = position

    def close(self) -> None:
        """Stop the prefetch thread and wait for it; next_step would start a new one.

        A thread still running while Python shuts down could crash the process.
        """
        self._stop.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        self._thread, self._queue = None, None

    def _start(self) -> None:
        self._stop, self._queue = threading.Event(), queue.Queue(AHEAD_STEPS)
        # The thread holds no reference to this object, so it ends when the object is collected.
        weakref.finalize(self, self._stop.set)
        self._thread = threading.Thread(
            target=_prepare,
            args=(self._read_step, self._position, self._micro_rows),
            kwargs={
                "pinned": self._run.device.type == "cuda",
                "out": self._queue,
                "stop": self._stop,
            },
            name="batches",
            daemon=True,
        )
        self._thread.start()


def _prepare(
    read_step: ReadStep,
    position: dict[str, Any],
    micro_rows: int,
    *,
    pinned: bool,
    out: "queue.Queue[Any]",
    stop: threading.Event,
) -> None:
    """Keep a queue filled with pairs of (micro-batches, next position)."""
    while not stop.is_set():
        item: Any
        try:
            inputs, targets, position = read_step(position)
            item = _micro_batches(inputs, targets, micro_rows, pinned=pinned), position
        except BaseException as error:  # raised again in next_step
            item = error
        while not stop.is_set():
            try:
                out.put(item, timeout=0.2)
                break
            except queue.Full:
                continue
        if isinstance(item, BaseException):
            return


def _micro_batches(
    inputs: np.ndarray, targets: np.ndarray, micro_rows: int, *, pinned: bool
) -> list[Batch]:
    batches = []
    for start in range(0, len(inputs), micro_rows):
        parts = [torch.from_numpy(a[start : start + micro_rows]) for a in (inputs, targets)]
        if pinned:  # only from pinned memory can a copy to the GPU overlap with its work
            parts = [part.pin_memory() for part in parts]
        batches.append(Batch(*parts))  # [micro_rows, T] each
    return batches


def micro_batch_rows(batch_rows: int, device_rows: int, world_size: int) -> tuple[int, int]:
    """Micro-batches per rank and rows per micro-batch, the same on all ranks.

    The rows of a step are distributed evenly. Short micro-batches are padded with rows that have
    no targets; there are fewer of these than micro-batches on all ranks together.
    """
    per_rank = -(-batch_rows // world_size)
    count = -(-per_rank // device_rows)
    return count, -(-per_rank // count)


class StreamBatches(_Prefetched):
    """Batches of the document stream; a BatchSource.

    batch_rows: rows of a step over all ranks. device_rows: at most this many rows per micro-batch.
    Raises: DataError if the data has fewer rows than one step needs.
    """

    def __init__(self, stream: TokenStream, *, batch_rows: int, device_rows: int, run: Run) -> None:
        stream.require(batch_rows)
        self.stream = stream
        count, micro_rows = micro_batch_rows(batch_rows, device_rows, run.world_size)
        shape = count * micro_rows, stream.T
        share = len(range(run.rank, batch_rows, run.world_size))
        pad = stream.pad_id

        def read_step(position: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
            # Rank r of w takes rows r, r + w, ... of the step: together the ranks read the same
            # batch_rows rows, whatever w is, so a run can resume on a different number of GPUs.
            row = position["next_row"]
            inputs, targets = stream.inputs_targets(row + run.rank, share, stride=run.world_size)
            inputs = pad_rows(inputs, shape, pad)  # [count * micro_rows, T]
            targets = pad_rows(targets, shape, IGNORED)  # the same shape; padding has no loss
            return inputs, targets, {"next_row": row + batch_rows}

        super().__init__(
            read_step, {"next_row": 0}, identity=stream.identity, micro_rows=micro_rows, run=run
        )


class ChatBatches(_Prefetched):
    """Batches of packed conversations, epoch after epoch; a BatchSource.

    batch_rows: rows of a step over all ranks. device_rows: at most this many rows per micro-batch.
    Raises: DataError if the conversations do not fill one step.
    """

    def __init__(
        self,
        conversations: Sequence[Conversation],
        tokenizer: Tokenizer,
        *,
        T: int,
        batch_rows: int,
        device_rows: int,
        run: Run,
        seed: int,
    ) -> None:
        rows = ChatRows(conversations, tokenizer, T, seed=seed)
        self.sampled, scale = rows.sample()
        self.digest = rows.digest()
        self.rows_per_epoch = round(self.sampled.rows * scale)
        if self.rows_per_epoch < batch_rows:
            raise DataError(
                f"{len(conversations):,} conversations make {self.rows_per_epoch:,} rows of {T} "
                f"tokens, one batch needs {batch_rows:,}; give more conversations or a smaller "
                "--tokens-per-step"
            )
        count, micro_rows = micro_batch_rows(batch_rows, device_rows, run.world_size)
        shape = count * micro_rows, T
        pad = tokenizer.bos_id

        def read_step(position: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
            found, after = rows.read(position, batch_rows)
            mine = found[run.rank :: run.world_size]
            inputs = pad_rows((bucket.inputs[row] for bucket, row in mine), shape, pad)
            targets = pad_rows((bucket.targets[row] for bucket, row in mine), shape, IGNORED)
            return inputs, targets, after

        start = {"epoch": 0, "bucket": 0, "row": 0}
        super().__init__(read_step, start, identity=rows.identity, micro_rows=micro_rows, run=run)
