"""The loss of several ranks, computed in parts so that communication runs beside computation.

Owns: the parts, and which parameters each of them needs. Does not own: the collectives
(optim/optimizer.py).

A function that is compiled as a whole has all of its gradients at its end, and needs all of its
weights at its start. In parts, gradients of the last layers are summed over ranks while the
backward pass of earlier layers runs, and weights of later layers arrive while the forward pass of
the first ones runs. The price is that the compiler fuses nothing across parts: hence a few of them.
"""

import re
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from torch import Tensor

from nanochat.gpt import GPT
from nanochat.optim import MuonAdamW
from nanochat.system import compiler

# Each is compiled by itself. More of them would send gradients a bit earlier, and torch compiles a
# function for at most 8 values of an argument.
MOST_PARTS = 6

_P = ParamSpec("_P")
_R = TypeVar("_R")


def training_loss(
    model: GPT, optimizer: MuonAdamW, *, compiled: bool, in_parts: bool
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """GPT.loss, compiled or not, as a whole or in parts."""
    if in_parts:
        return LossInParts(model, optimizer, compiled=compiled)
    return compiler.compiled(model.loss) if compiled else model.loss


class LossInParts:
    """GPT.loss, and the same numbers where nothing is compiled; for training only.

    Weights are complete only within it and after `optimizer.complete_weights`.
    """

    def __init__(self, model: GPT, optimizer: MuonAdamW, *, compiled: bool) -> None:
        def wrap(function: Callable[_P, _R]) -> Callable[_P, _R]:
            return compiler.compiled(function) if compiled else function

        depth = model.config.depth
        size = -(-depth // MOST_PARTS)
        self._parts = [range(i, min(i + size, depth)) for i in range(0, depth, size)]
        self._optimizer = optimizer
        self._embed = wrap(model.embed)
        self._run_layers = wrap(model.run_layers)
        self._output_loss = wrap(model.output_loss)
        # [embedding, layers ..., output]
        self._needed: list[list[str]] = [[] for _ in range(len(self._parts) + 2)]
        for name, _ in model.named_parameters():
            self._needed[self._first_use(name)].append(name)
        optimizer.defer_gathers([name for names in self._needed for name in names])

    def __call__(self, tokens: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """See GPT.loss. Collective."""
        self._optimizer.await_weights(self._needed[0])
        streams = self._embed(tokens)
        for layers, names in zip(self._parts, self._needed[1:], strict=False):
            self._optimizer.await_weights(names)
            streams = self._run_layers(layers, streams, tokens)
        self._optimizer.await_weights(self._needed[-1])
        return self._output_loss(streams, targets, weights)

    def _first_use(self, name: str) -> int:
        """The part that first needs a parameter; the embedding's if that is not obvious."""
        if name.startswith("head."):
            return len(self._parts) + 1
        layer = re.match(r"(?:blocks|value_embeddings)\.([0-9]+)\.", name)
        return 1 + int(layer[1]) // len(self._parts[0]) if layer else 0
