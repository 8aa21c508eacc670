"""What is compiled and counted on the fake device.

Owns: the training step and the memory that a pass keeps, each as a function that
returns numbers. Does not own: how code is generated without a GPU (lowering.py), generation
(decoding.py).
"""

import contextlib
import functools
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from lowering import Compiled, Log, compiling
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from nanochat import optim
from nanochat.data import Batch
from nanochat.gpt import GPT, GPTConfig, attention, flops, fp8
from nanochat.optim import OptimConfig
from nanochat.optim.schedules import warmup_decay
from nanochat.system import compiler
from nanochat.system.device import HostCopy
from nanochat.system.distributed import DTYPES, Run
from nanochat.system.metrics import MetricsLogger
from nanochat.training.loss_scale import LossScale
from nanochat.training.overlap import LossInParts, training_loss
from nanochat.training.trainer import Trainer, token_loss

CUDA = torch.device("cuda", 0)
WARM_STEPS = 3  # after these nothing may be compiled again
VALUES = ("_local_scalar_dense", "nonzero", "masked_select", "equal")  # read by the host


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model and how it is trained."""

    depth: int = 4
    rows: int = 16
    sequence_length: int = 2048
    vocab_size: int = 32768
    precision: str = "bf16"  # or fp8, fp16, fp32
    attention: str = "auto"
    micro_batches: int = 2
    parts: int = 0  # 1: the loss in parts, as on several GPUs
    lower: int = 1  # as far as the generated code; 0: as far as the graphs

    @property
    def dtype(self) -> torch.dtype:
        """The compute dtype."""
        names = {"bf16": "bfloat16", "fp8": "bfloat16", "fp16": "float16", "fp32": "float32"}
        return DTYPES[names[self.precision]]

    def model(self) -> GPT:
        """The model on the fake device; "auto" attention knows no packages but torch."""
        config = GPTConfig(
            depth=self.depth, vocab_size=self.vocab_size, sequence_length=self.sequence_length
        )
        installed = [] if self.attention == "auto" else ["kernels"]
        with torch.device(CUDA), mock.patch.object(attention, "_installed", installed.__contains__):
            attention._why_not.cache_clear()
            attention._choose_for_gpu.cache_clear()
            model = GPT(config, compute_dtype=self.dtype, attention_backend=self.attention)
        if self.precision == "fp8":
            fp8.convert(model, True)
        return model


@torch.library.custom_op("fake_cuda::fa3", mutates_args=())
def _fa3(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """Stands for the operator of FlashAttention-3's package."""
    raise AssertionError("only called with fake tensors")


@torch.library.custom_op("fake_cuda::fa3_backward", mutates_args=())
def _fa3_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor) -> list[Tensor]:
    raise AssertionError("only called with fake tensors")


_fa3.register_fake(lambda q, k, v, window: torch.empty_like(q))
_fa3_backward.register_fake(lambda grad, q, k, v: [torch.empty_like(x) for x in (q, k, v)])
_fa3.register_autograd(
    lambda ctx, grad: (*_fa3_backward(grad, *ctx.saved_tensors), None),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs[:3]),
)


def flash_attention_3(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    softmax_scale: float,
    causal: bool,
    window_size: tuple[int, int],
) -> Tensor:
    """FlashAttention-3's function, with the parameters that we pass."""
    assert causal and q.dtype in attention.HALF_DTYPES and q.dtype == k.dtype == v.dtype
    result: Tensor = _fa3(q, k, v, window_size[0])
    return result


class Watched(FakeTensorMode):
    """Fake tensors, and a list of the operations for which the host would wait for the device."""

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self.waits: list[str] = []

    def dispatch(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note an operation, unless a compiler is looking at it, and do it."""
        result = super().dispatch(func, types, args, kwargs or {})
        if torch._guards.TracingContext.try_get() is None:
            self._note(func, args, kwargs or {}, result)
        return result

    def _note(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        name = func.overloadpacket.__name__
        tensors = [arg for arg in args if isinstance(arg, Tensor)]
        if name in ("_to_copy", "copy_") and isinstance(result, Tensor):
            source = tensors[-1]
            # Without non_blocking the host waits for a copy in either direction.
            at_once = kwargs.get("non_blocking") or (name == "copy_" and args[2:] == (True,))
            if source.is_cuda != result.is_cuda and not at_once:
                self.waits.append(f"{name} {source.device} -> {result.device}")
        elif name in VALUES and any(tensor.is_cuda for tensor in tensors):
            self.waits.append(name)


@contextlib.contextmanager
def device(*, lower: bool = True) -> Iterator[tuple[Watched, Log]]:
    """The fake device with the compiler; what does not compile is an error here."""
    with contextlib.ExitStack() as stack:
        for owner, name, value in (
            # A kernel is tried on small numbers before it is used, and there are none here.
            (attention, "_probe", lambda *_: None),
            (attention, "_fa3_function", lambda: flash_attention_3),
            (compiler.log, "error", _raise),
        ):
            stack.enter_context(mock.patch.object(owner, name, value))
        log = stack.enter_context(compiling(lower=lower))
        yield stack.enter_context(Watched()), log


def _raise(*words: object) -> None:
    raise AssertionError(words)


def check_training(case: Case, *, steps: int = 6) -> dict[str, Any]:
    """Run the Trainer's own steps, compiled, on fake tensors; returns what was counted."""
    with device(lower=bool(case.lower)) as (watched, log), tempfile.TemporaryDirectory() as folder:
        run = Run(rank=0, world_size=1, local_rank=0, device=CUDA, compute_dtype=case.dtype)
        model = case.model()
        optimizer = optim.build(model, OptimConfig(), run, tokens_per_step=2**20)
        loss = training_loss(model, optimizer, compiled=True, in_parts=bool(case.parts))
        graphs = len(loss._parts) + 2 if isinstance(loss, LossInParts) else 1
        optimizer.compile()
        gradients: dict[str, Tensor] = {}
        for name, parameter in model.named_parameters():
            parameter.register_post_accumulate_grad_hook(
                functools.partial(lambda name, p: gradients.update({name: p.grad}), name)
            )
        clock = _Clock(watched, log)
        with MetricsLogger(Path(folder), run) as metrics, _figures(clock):
            trainer = Trainer(
                optimizer=optimizer,
                batches=_Batches(case),
                loss_fn=token_loss(loss),
                schedule=warmup_decay(1000),
                hooks=[],
                run=run,
                total_steps=1000,
                metrics=metrics,
                flops_per_token=flops.flops_per_token(model.config, case.sequence_length),
                log_every=1000,
                after_step=clock.tick,
                stop=lambda: False,
                loss_scale=LossScale(CUDA) if case.dtype == torch.float16 else None,
            )
            clock.trainer, clock.last = trainer, steps
            trainer.fit()
        names = dict(model.named_parameters())
        return {
            "attention": model.attention.name,
            "graph_breaks": log.graph_breaks,
            "recompiles": clock.graphs[-1] - clock.graphs[WARM_STEPS - 1],
            "graphs": clock.graphs[-1],
            "waits": sorted(set(clock.waits)),
            "lag": sorted(set(clock.lags)),
            "without_gradient": sorted(set(names) - set(gradients)),
            "gradient_dtypes": sorted({str(g.dtype) for g in gradients.values()}),
            "wrong_gradients": [n for n, g in gradients.items() if g.dtype != names[n].dtype],
            "parts": graphs,
            **_loss_graphs(log, graphs),
            "update": _summary(log.forward[graphs:]),
        }


@dataclass
class _Batches:
    """A BatchSource that returns the same fake micro-batches, already on the device."""

    case: Case

    def next_step(self) -> list[Batch]:
        shape = (self.case.rows, self.case.sequence_length)
        tokens = torch.empty(shape, dtype=torch.int64, device=CUDA)
        return [Batch(tokens, tokens) for _ in range(self.case.micro_batches)]

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


@dataclass
class _Clock:
    """Counts graphs and waits after each step, and ends the training after the last one."""

    watched: Watched
    log: Log
    trainer: Trainer | None = None
    last: int = 0
    graphs: list[int] = field(default_factory=list)
    waits: list[str] = field(default_factory=list)
    lags: list[int] = field(default_factory=list)

    def tick(self) -> None:
        """Called between steps."""
        assert self.trainer is not None
        self.graphs.append(self.log.graphs)
        if len(self.graphs) >= WARM_STEPS:
            self.waits += self.watched.waits
        self.watched.waits.clear()
        self.trainer.stopping = len(self.graphs) == self.last


@contextlib.contextmanager
def _figures(clock: _Clock) -> Iterator[None]:
    """Figures that arrive with values, which fake tensors lack; notes how late they are read."""

    def read(figures: HostCopy) -> list[float]:
        assert clock.trainer is not None and figures._copied is not None
        step = len(clock.lags) + 1  # every step is read once, in order
        clock.lags.append(clock.trainer.progress.step - step)
        loss_scale = 1.0
        return [1.0, 2.0, 0.0, loss_scale]  # gradient norm, loss, whether to stop

    with mock.patch.object(HostCopy, "read", read):
        yield


def _loss_graphs(log: Log, count: int) -> dict[str, Any]:
    """What the forward and backward graphs of the loss are made of."""
    kept = [tensor for graph in log.forward[:count] for tensor in graph.saved()]
    return {
        "forward": _summary(log.forward[:count]),
        "backward": _summary(log.backward),
        "kept": sum(tensor.untyped_storage().nbytes() for tensor in kept),
    }


def _summary(graphs: list[Compiled]) -> dict[str, Any]:
    calls: Counter[str] = Counter()
    operators: Counter[str] = Counter()
    for graph in graphs:
        calls += graph.calls()
        operators += graph.operators()
    flash = ("varlen", "flash", "fa3", "fa4", "cudnn")
    return {
        "graphs": len(graphs),
        "generated": [len(graph.code) > 0 for graph in graphs],
        "waits": sorted({wait for graph in graphs for wait in graph.waits()}),
        "dynamic": sum(graph.dynamic() for graph in graphs),
        "calls": dict(calls.most_common()),
        "scaled_mm": operators["aten._scaled_mm.default"],
        "attention": {n: k for n, k in operators.items() if re.search("attn|attention|fa3", n)},
        "dtypes": sorted(set().union(*(graph.dtypes() for graph in graphs))),
        "half_only_in_float32": sum(g.in_float32(name) for g in graphs for name in flash),
    }


def check_kept(case: Case) -> dict[str, int]:
    """Bytes that the forward pass keeps for the backward pass, as torch.compile splits them.

    Includes the head's gradient, which the loss computes at once, but no weights.
    """
    with device(lower=False) as (_, log):
        model = case.model()
        tokens = torch.empty(case.rows, case.sequence_length, dtype=torch.int64, device=CUDA)
        compiler.compiled(model.loss)(tokens, tokens, torch.empty((), device=CUDA))
        return {"bytes": sum(kept.untyped_storage().nbytes() for kept in log.forward[0].saved())}


def check_faults(case: Case) -> dict[str, Any]:
    """What the counters say about code with each fault that they look for."""
    rows, length = case.rows, case.sequence_length

    def waits(x: Tensor) -> Tensor:
        return x.to("cpu").sum().to(x.device)

    def breaks(x: Tensor) -> Tensor:
        torch._dynamo.graph_break()
        return x.sum()

    with device(lower=False) as (watched, log):
        x = torch.empty(rows, length, device=CUDA)
        for _ in range(2):  # a step, to the second of which nothing is new
            compiler.compiled(lambda x: (x * 2).sum())(x)
        before = log.graphs
        compiler.compiled(breaks)(x)
        twice = compiler.compiled(lambda x: (x * 3).sum())
        twice(x)
        single = log.graphs
        twice(x[1:])
        found = {"breaks": log.graph_breaks, "graphs": single - before}
        found["recompiles"] = log.graphs - single
        watched.waits.clear()
        x.to("cpu", non_blocking=True)
        found["copies_without_waiting"] = list(watched.waits)
        x.to("cpu")
        found["copies"] = list(watched.waits)
        compiler.compiled(waits)(x)
        found["waits"] = log.forward[-1].waits()
        with contextlib.suppress(DataDependentOutputException):
            found["value"] = x.sum().item()
    return found


CHECKS: dict[str, Callable[..., dict[str, Any]]] = {
    "train": check_training,
    "kept": check_kept,
    "faults": check_faults,
}
