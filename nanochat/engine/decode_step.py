"""A decoding step of fixed shapes, which a GPU replays from a recording.

A step of one token is hundreds of operations of a few microseconds. A GPU executes one in less time
than Python takes to launch it, so launching bounds the speed, whatever the batch. A CUDA graph is a
recording of all launches, which starts with one call. It repeats exactly what was recorded: the
same kernels with the same shapes on the same memory. So
- rows of the step are the first slots of the cache, read and written in place; slots that do not
  decode take part and write to the padding of their memory, where nobody reads;
- rows, and the keys attended to, are rounded up to one of a few sizes, each of which is recorded
  when it is needed first (Shape);
- what changes between steps (tokens and positions) is copied into the memory that was recorded;
- weights are replaced in place (Decoder.load), so recordings outlive a change of weights.
Sampling follows outside the recording: its launches run while the GPU is still decoding, and the
only wait of a step is for the sampled tokens.

Owns: shapes and recordings of a step. Does not own: which slots decode (scheduler), the model.
Source: PyTorch's CUDA graphs; the sizes and the shared pool of memory are as in nano-vllm and vLLM.
"""

from __future__ import annotations

import functools
import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from nanochat.engine.kv_cache import (
    BUCKET,
    KVCache,
    convolution_places,
    to_device,
    with_preceding,
)
from nanochat.engine.sequences import Slot
from nanochat.gpt.decoder import Decoder

ROWS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96)  # and multiples of 128
MOST_RECORDINGS = 64  # bounds memory; the least recently used one is dropped
# Attention that reads a mask; what torch picks by itself may prepare a plan for every shape.
KERNELS = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]

Run = Callable[[], Tensor]  # computes, or repeats, a step on memory that does not move
Recorder = Callable[[Run], Run]


def row_bucket(count: int) -> int:
    """The number of rows of a step in which the first `count` slots decode."""
    return next((rows for rows in ROWS if rows >= count), -(-count // 128) * 128)


class Shape(NamedTuple):
    """What a recording depends on: rows, and positions of keys; see `shape_of`."""

    rows: int
    first: int  # no query is at an earlier position
    end: int  # every query is at an earlier position


def shape_of(slots: Sequence[Slot], cache: KVCache) -> Shape:
    """The shape of a step that decodes the slots' next tokens."""
    positions = [slot.cached for slot in slots]
    end = max(positions) + 1
    end = min(-(-end // _grain(end)) * _grain(end), cache.padding)
    first = min(positions)
    first = first // _grain(first) * _grain(first)
    shortest = min((w for w in cache.windows if w is not None), default=end)
    rows = min(row_bucket(max(slot.index for slot in slots) + 1), cache.slots)
    # Earlier keys can be left out only where a window ends after them.
    return Shape(rows, first if first > shortest else 0, end)


def _grain(length: int) -> int:
    return 128 if length <= 512 else 256


class FixedView:
    """The first rows of a cache as a batch of one token each; see decoder.Cache.

    inputs: [5, rows] int64, on the device: tokens, their positions, the places where they are
    stored (cache.padding for a row that does not decode), and the tokens two and one before them.
    """

    at_start = False  # the table's row for the lack of a token is among the tokens before

    def __init__(self, cache: KVCache, shape: Shape, inputs: Tensor) -> None:
        self.cache = cache
        self.shape = shape
        _, positions, self.places, *_ = inputs.unbind()  # [rows] each
        self._before = inputs[3:].T  # [rows, 2]
        self.positions = positions[:, None]  # [rows, 1]
        self._masks: dict[int | None, tuple[slice, Tensor]] = {}

    def previous_tokens(self, count: int) -> Tensor:
        """The `count` tokens before each row's, [rows, count]."""
        return self._before[:, -count:]

    def store_tokens(self, tokens: Tensor) -> None:
        """Store the tokens [rows, 1]."""
        self.cache.tokens.index_put_((self._rows, self.places), tokens[:, 0])

    @functools.cached_property
    def _rows(self) -> Tensor:
        return torch.arange(self.shape.rows, device=self.places.device)

    @functools.cached_property
    def _stored(self) -> tuple[Tensor, Tensor, Tensor]:
        """Slot, head and position of where keys and values are stored, for [rows, H_kv]."""
        heads = torch.arange(self.cache.k.shape[2], device=self.places.device)
        return self._rows[:, None], heads[None], self.places[:, None]

    def with_preceding(self, layer: int, x: Tensor) -> Tensor:
        """Store the inputs [rows, 1, C] of a convolution; return [rows, BEFORE + 1, C]."""
        return with_preceding(self.cache.input_rows[layer], *self._convolution_places, x)

    @functools.cached_property
    def _convolution_places(self) -> tuple[Tensor, Tensor]:
        return convolution_places(self.cache, self._rows, self.places, self.places[:, None])

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
        """Store keys and values [rows, 1, H_kv, D]; return attention of the queries."""
        memories = self.cache.layers[layer]  # [slots, H_kv, S, D] each
        for memory, new in zip(memories, (k, v), strict=True):
            if new.dtype != memory.dtype:
                new = new.to(memory.dtype)
            memory.index_put_(self._stored, new[:, 0])
        span, mask = self._seen(self.cache.windows[layer])
        keys, values = (memory[: self.shape.rows, :, span] for memory in memories)
        # The heads that share a key head become queries of one head, as in KVCache.
        grouped = q.reshape(q.shape[0], keys.shape[1], -1, q.shape[3])
        if grouped.dtype != keys.dtype:
            grouped = grouped.to(keys.dtype)
        y = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask, scale=scale)
        return y.reshape(q.shape)

    def _seen(self, window: int | None) -> tuple[slice, Tensor]:
        """The keys that a layer reads, and their mask [rows, 1, 1, S]."""
        if window not in self._masks:
            begin = 0 if window is None else max(0, self.shape.first - window) // BUCKET * BUCKET
            span = slice(begin, self.shape.end)
            self._masks[window] = span, self.cache.mask(window, self.positions, span)
        return self._masks[window]


class DecodeStep:
    """Reads one token of each of some slots, by a recording for the shape of the step."""

    def __init__(self, cache: KVCache, recorder: Recorder) -> None:
        self.cache = cache
        self.recordings: OrderedDict[Shape, Run] = OrderedDict()
        self._recorder = recorder
        self._inputs: dict[int, Tensor] = {}  # by rows: [5, rows], see FixedView

    def read(self, model: Decoder, slots: list[Slot]) -> Tensor:
        """Process the next token of the slots; return their hidden states [B, 1, C].

        They may be in the memory of a recording: the next call overwrites them.
        """
        shape = shape_of(slots, self.cache)
        self._fill(shape, slots, nothing=model.config.vocab_size)
        hidden = self._recording(model, shape)()  # [rows, 1, C]
        for slot in slots:
            self.cache.advance(slot.index, slot.cached, 1)
            slot.cached += 1
        indices = [slot.index for slot in slots]
        if indices == list(range(len(indices))):
            return hidden[: len(indices)]
        return hidden[to_device(indices, self.cache.device)]

    def _fill(self, shape: Shape, slots: list[Slot], *, nothing: int) -> None:
        """Copy tokens and positions to the memory that the recordings read."""
        # A row that does not decode needs a position with a key to see.
        idle = [0, min(shape.end, self.cache.max_len) - 1, self.cache.padding, nothing, nothing]
        rows = [idle] * shape.rows
        for slot in slots:
            place, tokens = slot.cached, slot.tokens
            before = [tokens[place - back] if place >= back else nothing for back in (2, 1)]
            rows[slot.index] = [tokens[place], place, place, *before]
        columns = list(zip(*rows, strict=True))
        if shape.rows not in self._inputs:
            self._inputs[shape.rows] = torch.zeros(
                5, shape.rows, dtype=torch.int64, device=self.cache.device
            )
        self._inputs[shape.rows].copy_(to_device(columns, self.cache.device))

    def _recording(self, model: Decoder, shape: Shape) -> Run:
        if shape in self.recordings:
            self.recordings.move_to_end(shape)
            return self.recordings[shape]
        while len(self.recordings) >= MOST_RECORDINGS:
            self.recordings.popitem(last=False)
        inputs = self._inputs[shape.rows]

        def run() -> Tensor:
            return model.hidden(inputs[0][:, None], FixedView(self.cache, shape, inputs))

        self.recordings[shape] = self._recorder(run)
        return self.recordings[shape]


def unrecorded(run: Run) -> Run:
    """A recorder that records nothing: the step is computed each time."""
    return run


class CudaGraphs:
    """A recorder of CUDA graphs, which share one pool of memory."""

    # They may share it because only the result of a graph is read after it has run.

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = None  # a handle
        self._stream: torch.cuda.Stream | None = None
        self._failed = False

    def __call__(self, run: Run) -> Run:
        """Run once, and record. Where a graph cannot be recorded, warns once and runs each time."""
        if self._failed:
            return run
        try:
            with torch.cuda.device(self._device):
                return self._record(run)
        except RuntimeError as error:
            self._failed = True
            reason = f"{type(error).__name__}: {error}".split("\n")[0]
            warnings.warn(
                f"no CUDA graph of a decoding step could be recorded ({reason}); answers stay the "
                "same but are generated more slowly",
                stacklevel=2,
            )
            return run

    def _record(self, run: Run) -> Run:
        if self._stream is None:
            self._stream = torch.cuda.Stream()
            self._pool = torch.cuda.graph_pool_handle()
        with sdpa_kernel(KERNELS):
            # The first run loads kernels and reserves work space, which a recording must not.
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                run()
            torch.cuda.current_stream().wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            # Other threads may use the device meanwhile: "thread_local".
            with torch.cuda.graph(
                graph,
                pool=self._pool,
                stream=self._stream,
                capture_error_mode="thread_local",
            ):
                hidden = run()

        def replay() -> Tensor:
            graph.replay()
            return hidden

        return replay


def default_recorder(device: torch.device) -> Recorder | None:
    """CUDA graphs on a GPU; None elsewhere: steps of exactly the needed shape are faster."""
    return CudaGraphs(device) if device.type == "cuda" else None
