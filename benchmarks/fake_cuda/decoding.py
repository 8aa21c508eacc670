"""The decode step on the fake device: launches, waits, and the attention that torch picks."""

from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import torch
from checks import CUDA, Case, device
from torch import Tensor
from torch.nn.attention import sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from nanochat.engine.decode_step import KERNELS, DecodeStep, FixedView, Shape
from nanochat.engine.kv_cache import KVCache
from nanochat.engine.sequences import Slot


class Launches(TorchDispatchMode):
    """Counts what is launched: everything but views and allocations."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        launches = not func.is_view and not name.startswith("empty")
        if launches and name not in ("_unsafe_view", "device"):
            self.count[name] += 1
        return func(*args, **(kwargs or {}))


def check_decoding(case: Case) -> dict[str, Any]:
    """A token of each of the rows, as it is recorded for a CUDA graph; with its logits."""
    with device(lower=False) as (watched, _):
        decoder = case.model().for_inference(case.dtype)
        cache = KVCache(
            decoder.config,
            slots=case.rows,
            max_len=case.sequence_length,
            dtype=decoder.compute_dtype,
            device=CUDA,
            backend=decoder.attention,
        )
        inputs = torch.zeros(4, case.rows, dtype=torch.int64, device=CUDA)
        shape = Shape(case.rows, 0, case.sequence_length)
        watched.waits.clear()
        with torch.no_grad(), sdpa_kernel(KERNELS), Launches() as step:
            hidden = decoder.hidden(inputs[0][:, None], FixedView(cache, shape, inputs))
        with torch.no_grad(), Launches() as head:
            logits = decoder.logits(hidden)
        kept = {str(tensor.dtype) for tensor in (cache.k, cache.v)}
    return {
        "launches": step.count.total(),
        "head": head.count.total(),
        "waits": watched.waits,
        "attention": {name: n for name, n in step.count.items() if "attention" in name},
        "operations": dict(step.count.most_common()),
        "cache": sorted(kept),
        "logits": [str(logits.dtype), list(logits.shape)],
    }


def check_recordings(case: Case) -> dict[str, Any]:
    """Decode 40 tokens by the engine's step: how often it records, and what the host waits for.

    A CUDA graph cannot be recorded of a step that waits, or makes a tensor from the host's memory.
    """
    with device(lower=False) as (watched, _), torch.no_grad():
        decoder = case.model().for_inference(case.dtype)
        cache = KVCache(
            decoder.config,
            slots=4,
            max_len=600,
            dtype=decoder.compute_dtype,
            device=CUDA,
            backend=decoder.attention,
        )
        inside: list[str] = []

        def recorder(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
            before = len(watched.waits)
            hidden = run()
            inside.extend(watched.waits[before:])
            return lambda: hidden

        step = DecodeStep(cache, recorder)
        slots = [_slot(index, length) for index, length in enumerate((3, 100, 370))]
        for slot in slots:
            cache.lengths[slot.index] = slot.cached
        watched.waits.clear()
        for _ in range(40):
            step.read(decoder, slots)
            for slot in slots:
                slot.sequences[0].tokens.append(1)
    shapes = list(step.recordings)
    return {
        "recordings": len(shapes),
        "rows": sorted({shape.rows for shape in shapes}),
        "waits_recorded": inside,
        "waits": watched.waits,
    }


def _slot(index: int, length: int) -> Slot:
    """A slot whose last token is not processed yet."""
    sequence = SimpleNamespace(tokens=[1] * (length + 1))
    return Slot(index, [cast(Any, sequence)], cached=length)


CHECKS: dict[str, Callable[[Case], dict[str, Any]]] = {
    "decode": check_decoding,
    "recordings": check_recordings,
}
