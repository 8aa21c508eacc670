"""Run torch.compile for CUDA up to the generated code, on fake tensors.

Owns: what replaces the last step (loading and launching the code), the driver that Triton asks for
its target, and the facts about graphs and code. Does not own: what is compiled (checks.py).
"""

import contextlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch._dynamo.utils as dynamo
import torch._inductor.compile_fx as compile_fx
import torch._inductor.config as inductor
from torch import Tensor
from torch._inductor.graph import GraphLowering
from torch.fx import GraphModule, Node
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

# The calls in the code that Inductor generates: its own kernels, products and other operators.
CALL = re.compile(
    r"^\s+(?:\w+ = )?(triton_\w+?)\.run\(|^\s+(?:\w+ = )?(extern_kernels\.\w+)"
    r"|^\s+(?:\w+ = )?(torch\.ops\.[\w.]+)\(|^\s+(cpp_fused\w+)\(",
    re.MULTILINE,
)


@dataclass
class Compiled:
    """One graph that was compiled."""

    backward: bool
    graph: GraphModule
    outputs: int  # of a forward graph, how many belong to the function
    code: str = ""  # empty if lowering was not asked for

    def operators(self) -> Counter[str]:
        """How often each operator is in the graph."""
        return Counter(str(node.target) for node in self.graph.graph.nodes if _is_operator(node))

    def calls(self) -> Counter[str]:
        """How often the code calls what; "triton" for all of Inductor's own kernels."""
        found = ("".join(match) for match in CALL.findall(self.code))
        return Counter("triton" if name.startswith("triton_") else name for name in found)

    def waits(self) -> list[str]:
        """Operators for whose result the host would have to wait."""
        return [str(n.target) for n in self.graph.graph.nodes if _is_operator(n) and _waits(n)]

    def dynamic(self) -> int:
        """How many values have a size that is not a number."""
        return sum(isinstance(size, torch.SymInt) for v in self._values() for size in v.shape)

    def dtypes(self) -> set[str]:
        """The dtypes of all values."""
        return {str(value.dtype) for value in self._values()}

    def in_float32(self, name: str) -> int:
        """How many operators whose name contains `name` get their first input in float32."""
        nodes = (n for n in self.graph.graph.nodes if _is_operator(n) and name in str(n.target))
        firsts = (node.all_input_nodes[0].meta["val"] for node in nodes)
        return sum(first.dtype == torch.float32 for first in firsts)

    def saved(self) -> list[Tensor]:
        """What a forward graph keeps for the backward graph, without its own inputs."""
        made = self.graph.graph.find_nodes(op="output")[0].args[0][self.outputs :]
        inputs = [n.meta["val"] for n in self.graph.graph.find_nodes(op="placeholder")]
        seen = {v.untyped_storage()._cdata for v in inputs if isinstance(v, Tensor)}
        kept = []
        for node in made:
            value = node.meta["val"] if isinstance(node, Node) else None
            if isinstance(value, Tensor) and value.untyped_storage()._cdata not in seen:
                seen.add(value.untyped_storage()._cdata)
                kept.append(value)
        return kept

    def _values(self) -> list[Tensor]:
        values = (node.meta.get("val") for node in self.graph.graph.nodes)
        return [value for value in values if isinstance(value, Tensor)]


def _is_operator(node: Node) -> bool:
    return node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload)


def _waits(node: Node) -> bool:
    """Whether a result is needed on the host, or decides about a shape."""
    name = str(node.target)
    if any(word in name for word in ("_local_scalar_dense", "nonzero", "unique", "masked_select")):
        return any(_is_cuda(i.meta.get("val")) for i in node.all_input_nodes)
    if "device_put" not in name and "_to_copy" not in name:
        return False
    return _is_cuda(node.meta.get("val")) != _is_cuda(node.all_input_nodes[0].meta.get("val"))


def _is_cuda(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_cuda


@dataclass
class Log:
    """Everything that was compiled within `compiling`."""

    compiled: list[Compiled] = field(default_factory=list)

    @property
    def forward(self) -> list[Compiled]:
        """The forward graphs, and those without a backward one."""
        return [each for each in self.compiled if not each.backward]

    @property
    def backward(self) -> list[Compiled]:
        """The backward graphs."""
        return [each for each in self.compiled if each.backward]

    @property
    def graphs(self) -> int:
        """How many graphs Dynamo has made so far."""
        return int(dynamo.counters["stats"]["unique_graphs"])

    @property
    def graph_breaks(self) -> list[str]:
        """Why graphs ended before the function did."""
        return list(dynamo.counters["graph_break"])


@contextlib.contextmanager
def compiling(*, lower: bool = True) -> Iterator[Log]:
    """Within it, torch.compile ends with the generated code; calls run the graph on fake tensors.

    lower: False ends after the split into forward and backward graphs, which takes less time.
    """
    log = Log()
    torch._dynamo.reset()
    dynamo.counters.clear()
    with contextlib.ExitStack() as stack:
        _patch(stack, driver, "_active", _Driver())
        _patch(stack, GraphLowering, "_compile_to_module_lines", _stop)
        _patch(stack, compile_fx, "compile_fx", _recording(log, lower))
        settings = {
            "force_disable_caches": True,
            "compile_threads": 1,
            # These two would read values and times of a device that computes nothing.
            "joint_graph_constant_folding": False,
            "shape_padding": False,
        }
        stack.enter_context(inductor.patch(settings))
        yield log


def _patch(stack: contextlib.ExitStack, owner: Any, name: str, value: Any) -> None:
    stack.callback(setattr, owner, name, getattr(owner, name))
    setattr(owner, name, value)


class _Driver:
    """What Inductor asks Triton's driver for."""

    def get_current_target(self) -> GPUTarget:
        major, minor = torch.cuda.get_device_capability()
        return GPUTarget("cuda", 10 * major + minor, 32)

    def get_current_device(self) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cuda", 0)

    def is_active(self) -> bool:
        return True


class _Generated(Exception):
    """Ends a compilation when its code is complete."""

    def __init__(self, code: str) -> None:
        super().__init__()
        self.code = code


def _stop(self: GraphLowering, lines: Any) -> None:
    raise _Generated(lines.value)


def _recording(log: Log, lower: bool) -> Any:
    """compile_fx, with a last step that keeps the graph and its code and runs the graph."""
    original, last_step = compile_fx.compile_fx, compile_fx.compile_fx_inner

    def inner(graph: GraphModule, inputs: Sequence[Any], **options: Any) -> Any:
        context = torch._guards.TracingContext.try_get()
        metadata = context.fw_metadata if context else None
        found = Compiled(
            backward=bool(options.get("is_backward")),
            graph=graph,
            outputs=metadata.num_forward_returns if metadata else 0,
        )
        log.compiled.append(found)
        forward = graph.forward
        if lower:
            try:
                last_step(graph, inputs, **options)
            except Exception as error:
                found.code = _code_of(error)

        def run(args: list[Any]) -> Any:
            values = list(args)
            args.clear()
            return forward(*values)

        run._boxed_call = True  # type: ignore[attr-defined]
        return run

    def compile_with(*args: Any, **kwargs: Any) -> Any:
        return original(*args, **{"inner_compile": inner, **kwargs})

    return compile_with


def _code_of(error: BaseException | None) -> str:
    """The code in a compilation's error. Raises: the error itself if it has none."""
    found = error
    while found is not None and not isinstance(found, _Generated):
        found = getattr(found, "inner_exception", None) or found.__cause__ or found.__context__
    if found is None:
        assert error is not None
        raise error
    return found.code
