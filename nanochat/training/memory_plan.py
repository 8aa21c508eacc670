"""Predicts how much memory a training step takes, part by part.

Owns: the rehearsal, one step of the real model and the real optimizer on tensors that have a shape
but no values, with a ledger of the live ones. Nothing of the architecture is written down twice.
Does not own: how much memory is available (system/memory.py), or which batch fits (batch_size.py).
"""

import weakref
from collections import Counter
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nanochat import optim
from nanochat.gpt import GPT, GPTConfig, fp8
from nanochat.gpt.block_attention import SHORT_TEXT, scores_made
from nanochat.gpt.loss import chunk_rows
from nanochat.optim import OptimConfig
from nanochat.optim.schedules import StepSettings
from nanochat.system.distributed import single_run


@dataclass(frozen=True)
class CpuFit:
    """Memory of a CPU process that a rehearsal cannot see; fitted to measurements, not derived.

    Fitted to the peak memory (VmHWM) of the cases of benchmarks/planner.py, with glibc 2.36 and
    torch 2.15; benchmarks/HISTORY.md has the measured and estimated figures. To refit after a
    change of torch or of the allocator (device.keep_memory), run benchmarks/planner.py, see which
    group of cases is off (plain, compiled, checkpointing, several passes), and change that group's
    constant until every case is within batch_size.ESTIMATE_ERROR.

    The rehearsal itself is close: with a separate mapping for every tensor
    (MALLOC_MMAP_THRESHOLD_=65536), steps took 429, 164 and 747 MB against its 456, 182 and 738.
    """

    heap_share: float = 1.0  # of a step's tensors: freed, but in pieces too small to be used again
    compiled_heap_share: float = 0.75  # the same for fused kernels, which make fewer tensors
    room_share: float = 0.3  # of a step's freed memory: a checkpoint's copies fit into it
    compiled_share: float = 0.85  # of an uncompiled pass's tensors: fused kernels still hold them
    runtime_bytes: float = 100e6  # the data reader and the matrix library, from their first use
    recomputing_bytes: float = 430e6  # torch.utils.checkpoint and its imports; varies by 200 MB
    compiler_bytes: float = 220e6  # torch.compile
    compiled_layer_bytes: float = 10e6  # what it keeps for every layer


CPU_FIT = CpuFit()
CHUNKS_SUMMED = 8  # torch._inductor.config.realize_acc_reads_threshold
# A driver's context with the libraries' kernels; not measured, like everything here on GPUs.
GPU_CONTEXT_BYTES = 800e6
# Of an uncompiled pass's tensors, what a compiled pass keeps on a GPU, without and with fp8: by
# what the partitioner saves at depth 24, 16 rows of 2,048 tokens (39.5 and 35.2 GB), with torch's
# CUDA code generation on fake tensors. Nothing of it was measured on a GPU.
GPU_COMPILED_SHARES = {False: 0.68, True: 0.56}

MOST = "most"
_KINDS = {
    "forward": "activations",
    "loss": "logits",
    "backward": "workspace",
    "update": "workspace",
}


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """What one device does in a step, as far as memory and time depend on it."""

    rows: int  # of one forward pass
    length: int  # tokens of a row
    dtype: torch.dtype
    device_type: str = "cpu"
    accumulates: bool = False  # over several passes: gradients coexist with activations
    world_size: int = 1
    compiled: bool = True
    fp8: bool = False
    checkpoint_activations: bool = False
    saves_meanwhile: bool = False  # a copy of weights and optimizer is written during training


def with_rows(step: StepPlan, rows: int, most: int) -> StepPlan:
    """The same step with `rows` per forward pass, of `most` that a device has in a step."""
    return replace(step, rows=rows, accumulates=rows < most)


@dataclass(frozen=True, kw_only=True)
class MemoryParts:
    """Bytes in use per device at the step's peak."""

    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0
    logits: int = 0
    workspace: int = 0  # temporaries of the backward pass or the update
    checkpoint: int = 0  # the copy being written
    heap: int = 0  # freed, but not reusable
    process: int = 0  # the interpreter and its libraries, or the GPU's context

    @property
    def total(self) -> int:
        """All parts together."""
        return sum(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """What one device needs: at the peak, and each part's own peak."""

    peak: MemoryParts
    most: MemoryParts  # parts peak at different moments, so less than their sum is needed

    @property
    def total(self) -> int:
        """Bytes that must be available."""
        return self.peak.total


def estimate(config: GPTConfig, step: StepPlan, *, resident_bytes: int = 0) -> MemoryEstimate:
    """The memory that training takes on one device.

    resident_bytes: what a CPU process takes before it has a model.
    """
    moments = {
        name: _settled(name, parts, step, config) for name, parts in rehearse(config, step).items()
    }
    most = moments.pop(MOST)
    peak = max(moments.values(), key=lambda parts: parts.total)
    if step.device_type != "cpu":
        context = round(GPU_CONTEXT_BYTES)
        return MemoryEstimate(
            peak=replace(peak, process=context), most=replace(most, process=context)
        )
    of_step = peak.total - peak.weights - peak.optimizer
    share = CPU_FIT.compiled_heap_share if step.compiled else CPU_FIT.heap_share
    heap = round(share * (of_step - peak.logits))  # chunks reuse one logits buffer
    copies = peak.weights + peak.optimizer * step.world_size
    # Saved only at the end, the copies partly reuse the memory of a step's tensors.
    room = 0 if step.saves_meanwhile else round(CPU_FIT.room_share * (of_step + heap))
    needed = max(0, copies - room)
    process = round(resident_bytes + _own_bytes(config, step))
    return MemoryEstimate(
        peak=replace(peak, heap=heap, checkpoint=needed, process=process),
        most=replace(most, heap=heap, checkpoint=copies, process=process),
    )


def rehearse(config: GPTConfig, step: StepPlan) -> dict[str, MemoryParts]:
    """Bytes of live tensors at the peak of each moment: forward, loss, backward and update.

    Under MOST: each kind's own peak. Uncompiled, with the optimizer of one rank. No tensor has
    values, and nothing is computed.
    """
    # A formula would have to list every tensor that autograd keeps, and go stale with every change
    # of the model. Fake tensors run the real code, dispatch by dispatch, without memory or compute;
    # the ledger notes when each storage is made and freed.
    ledger = _Ledger()
    with FakeTensorMode(), ledger:
        # Always with CPU operators: GPU operators need a GPU even without values.
        backend = "blocks" if step.device_type == "cpu" else "sdpa"
        model = GPT(config, compute_dtype=step.dtype, attention_backend=backend)
        if step.fp8:
            fp8.swap(model)
        model.checkpoint_activations = step.checkpoint_activations
        ledger.kind = "optimizer"
        run = single_run(dtype=step.dtype)
        optimizer = optim.build(model, OptimConfig(), run, tokens_per_step=step.length)
        ledger.watch(model)
        tokens = torch.zeros(step.rows, step.length, dtype=torch.int64)  # [B, T]
        if step.accumulates:
            ledger.kind = "gradients"
            for parameter in model.parameters():
                parameter.grad = torch.zeros_like(parameter)
        ledger.enter("forward")
        model.loss(tokens, tokens, torch.ones(())).backward()
        ledger.enter("update")
        with torch.no_grad():
            for group in optimizer.groups:
                for bucket in group.buckets:
                    group.reduce(bucket)
            for group in optimizer.groups:
                group.update(StepSettings(), torch.zeros(()), None)
    found = {moment: MemoryParts(**ledger.peaks[moment]) for moment in _KINDS}
    return {**found, MOST: MemoryParts(**ledger.most)}


def _settled(moment: str, parts: MemoryParts, step: StepPlan, config: GPTConfig) -> MemoryParts:
    """Convert the rehearsal of one uncompiled CPU process to the real device and ranks."""
    tokens, vocab_size = step.rows * step.length, config.vocab_size
    chunk, chunk_on_cpu = (
        chunk_rows(tokens, vocab_size, kind) for kind in (step.device_type, "cpu")
    )
    logits = parts.logits * chunk / chunk_on_cpu
    optimizer = round(parts.optimizer / step.world_size)
    if moment == "update":
        workspace = round(parts.workspace / step.world_size)
        return replace(parts, optimizer=optimizer, workspace=workspace, logits=round(logits))
    share, sums = 1.0, 0
    if step.compiled:
        share, chunks = compiled_share(step), -(-tokens // chunk)
        # The compiler sums up the head's gradients of this many chunks at a time.
        waiting = min(chunks, CHUNKS_SUMMED) - 1
        sums = waiting * vocab_size * config.width * step.dtype.itemsize
    activations = share * parts.activations + _kept_scores(config, step)
    return replace(
        parts,
        optimizer=optimizer,
        activations=round(activations),
        logits=round(share * logits),
        workspace=round(share * parts.workspace) + (sums if moment != "forward" else 0),
    )


def compiled_share(step: StepPlan) -> float:
    """Of an uncompiled pass's tensors, the share that a compiled pass keeps."""
    if step.device_type == "cpu":
        return CPU_FIT.compiled_share
    return GPU_COMPILED_SHARES[step.fp8]


def _kept_scores(config: GPTConfig, step: StepPlan) -> int:
    """Bytes of attention weights kept for the gradient, which the rehearsal did not keep.

    Compiled passes on a CPU attend in blocks where uncompiled ones use torch's kernel.
    """
    in_blocks = step.compiled and step.device_type == "cpu" and step.length > SHORT_TEXT
    if step.dtype != torch.float32 or step.checkpoint_activations or not in_blocks:
        return 0
    scores = sum(scores_made(step.length, window) for window in config.windows)
    return step.rows * config.heads * scores * step.dtype.itemsize


def _own_bytes(config: GPTConfig, step: StepPlan) -> float:
    """How much the libraries of a CPU process grow when it starts to train."""
    added = CPU_FIT.recomputing_bytes if step.checkpoint_activations else 0.0
    if step.compiled:
        added = CPU_FIT.compiler_bytes + CPU_FIT.compiled_layer_bytes * config.depth
    return CPU_FIT.runtime_bytes + added


class _Ledger(TorchDispatchMode):
    """Counts the bytes of live tensors by kind and keeps the counts at each moment's peak."""

    def __init__(self) -> None:
        super().__init__()
        self.moment = "building"
        self.kind = "weights"
        self.peaks: dict[str, Counter[str]] = {}
        self.most: Counter[str] = Counter()
        self._now: Counter[str] = Counter()
        self._storages: dict[int, tuple[weakref.ref[Any], int, str]] = {}

    def enter(self, moment: str) -> None:
        """Count new tensors under another moment from now on."""
        self.moment, self.kind = moment, _KINDS[moment]

    def watch(self, model: GPT) -> None:
        """Detect the loss and the backward pass by hooks on the last norm, gradients by theirs."""

        def passed(module: nn.Module, inputs: Any, output: Tensor) -> None:
            self.enter("loss")
            output.register_hook(lambda grad: self.enter("backward"))

        model.final_norm.register_forward_hook(passed)
        for parameter in model.parameters():
            parameter.register_post_accumulate_grad_hook(self._is_gradient)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._note(value)
        return result

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._storages:
            return
        size, kind = storage.nbytes(), self.kind

        def freed(_: Any) -> None:
            _, size, kind = self._storages.pop(key)
            self._now[kind] -= size

        self._storages[key] = weakref.ref(storage, freed), size, kind
        self._add(size, kind)
        if self._now.total() > self.peaks.get(self.moment, Counter()).total():
            self.peaks[self.moment] = self._now.copy()

    def _is_gradient(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        key = id(parameter.grad.untyped_storage())
        reference, size, kind = self._storages[key]
        self._storages[key] = reference, size, "gradients"
        self._now[kind] -= size
        self._add(size, "gradients")

    def _add(self, size: int, kind: str) -> None:
        self._now[kind] += size
        self.most[kind] = max(self.most[kind], self._now[kind])
