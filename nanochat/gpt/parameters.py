"""The kinds of parameters of a GPT: initial value, optimizer group and count of each, in one table.

Owns: KINDS, the only place that tells parameters apart by name. Does not own: the learning rates
of the optimizer groups (optim/settings.py).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nanochat.gpt.config import GPTConfig

Initializer = Callable[[Tensor, GPTConfig, torch.Generator], Tensor]  # fills a tensor in place


def _embedding(value: Tensor, config: GPTConfig, generator: torch.Generator) -> Tensor:
    return value.normal_(0, 0.02 if config.tied_head else 0.8, generator=generator)


def _head(value: Tensor, config: GPTConfig, generator: torch.Generator) -> Tensor:
    return value.normal_(0, 0.001, generator=generator)


def _gate(value: Tensor, config: GPTConfig, generator: torch.Generator) -> Tensor:
    return value.uniform_(0, 0.02, generator=generator)


def _matrix(scale: float) -> Initializer:
    """Uniform with a standard deviation of scale / sqrt(width)."""

    def initialize(value: Tensor, config: GPTConfig, generator: torch.Generator) -> Tensor:
        # With this deviation a product over the width keeps the scale of its input.
        bound = (3 / config.width) ** 0.5  # uniform within it has a std of 1 / sqrt(width)
        return value.uniform_(-scale * bound, scale * bound, generator=generator)

    return initialize


def _constant(number: float) -> Initializer:
    return lambda value, config, generator: value.fill_(number)


def _by_layer(first: float, last: float) -> Initializer:
    return lambda value, config, generator: value.copy_(torch.linspace(first, last, len(value)))


@dataclass(frozen=True)
class Kind:
    """Parameters that are treated alike.

    pattern: regular expression of their names. optimizer_group: see optim.settings.build.
    count_group: see flops.parameter_counts.
    """

    pattern: str
    initializer: Initializer
    optimizer_group: str
    count_group: str


# Matrices that write to the residual stream (out, down) start at 0: at first every layer passes its
# input on unchanged. The head starts near 0, so that the first predictions are almost uniform.
KINDS = (
    Kind(r"embedding\.weight", _embedding, "embedding", "embedding"),
    # A pair starts without an effect of its own: what is not known of it, its token says.
    Kind(r"pair_embedding\.weight", _constant(0), "pair_embedding", "pair_embedding"),
    Kind(r"position_embedding\.weight", _embedding, "embedding", "positions"),
    Kind(r"value_embeddings\.\d+\.weight", _matrix(1), "value_embedding", "value_embeddings"),
    Kind(r"blocks\.\d+\.attention\.[qkv]\.weight", _matrix(1), "matrix", "matrices"),
    Kind(r"blocks\.\d+\.attention\.out\.weight", _constant(0), "matrix", "matrices"),
    Kind(r"blocks\.\d+\.convolution", _constant(0), "convolution", "scalars"),
    Kind(r"blocks\.\d+\.mlp\.(up|gate)\.weight", _matrix(0.4), "matrix", "matrices"),
    Kind(r"blocks\.\d+\.mlp\.down\.weight", _constant(0), "matrix", "matrices"),
    Kind(r"blocks\.\d+\.attention\.value_gate\.weight", _gate, "matrix", "gates"),
    Kind(r"smear_gate\.weight", _gate, "scale", "gates"),
    Kind(r"head\.weight", _head, "head", "head"),
    Kind(r"smear_scale", _constant(0), "scale", "scalars"),
    Kind(r"backout_scale", _constant(0.2), "scale", "scalars"),
    Kind(r"residual_scales", _by_layer(1.15, 1.05), "residual_scale", "scalars"),
    Kind(r"x0_scales", _by_layer(0.20, 0.05), "x0_scale", "scalars"),
    Kind(r"(.+[._])?norm\.weight", _constant(1), "norm", "scalars"),
)


def kind_of(name: str) -> Kind:
    """The row of KINDS that a parameter's name matches; AssertionError unless exactly one does."""
    found = [kind for kind in KINDS if re.fullmatch(kind.pattern, name)]
    assert len(found) == 1, f"parameter {name} matches {len(found)} rows of parameters.KINDS, not 1"
    return found[0]


def initial_value(
    name: str, shape: torch.Size, config: GPTConfig, generator: torch.Generator
) -> Tensor:
    """The initial value of one parameter, drawn on the generator's device in float32."""
    value = torch.empty(shape, dtype=torch.float32, device=generator.device)
    return kind_of(name).initializer(value, config, generator)
