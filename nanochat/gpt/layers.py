"""The layers of the model: linear, norm, rotary positions, attention, MLP, block.

Owns: the computation inside a layer. Does not own: the stack of layers (model.py), the attention
kernels (attention.py).
Shapes: B rows, T tokens, C width, H heads, D head dimension.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, library, nn
from torch.autograd.function import once_differentiable

from nanochat.gpt import attention
from nanochat.gpt.config import GPTConfig
from nanochat.system.errors import ConfigError

NORM_EPS = 1e-6
QK_GAIN = 1.2  # factor on q and on k after their norm: sharper attention than 1 / sqrt(D) gives
VALUE_GATE_MOST = 3  # the gate of the value embeddings is between 0 and this
CONVOLVED = 4  # tokens that the convolution adds up: the token itself and those before it
VALUE_GATE_CHANNELS = 12  # input channels from which the gate of the value embedding is computed


def at_least_fp32(x: Tensor) -> Tensor:
    """x in float32, or unchanged if its dtype is wider: float64 stays float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class Norm(nn.Module):
    """RMS norm without or with a weight, or layer norm with one; over the last dimension."""

    weight: nn.Parameter | None

    def __init__(self, kind: str, channels: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.kind = kind
        self.channels = channels
        weight = None if kind == "rms" else nn.Parameter(torch.empty(channels, dtype=dtype))
        self.register_parameter("weight", weight)

    def forward(self, x: Tensor) -> Tensor:
        return normed(x, self.kind, None if self.weight is None else self.weight.to(x.dtype))


def normed(x: Tensor, kind: str, weight: Tensor | None = None) -> Tensor:
    """Layer norm of x (..., C) for the kind "layer", else RMS norm; weight: (C,) or None."""
    if kind == "layer":
        return F.layer_norm(x, x.shape[-1:], weight, eps=NORM_EPS)
    # RMS norm divides by the root mean square and subtracts no mean: cheaper, and as good.
    return F.rms_norm(x, x.shape[-1:], weight, eps=NORM_EPS)


def attention_scale(config: GPTConfig) -> float:
    """The factor on the scores of attention."""
    return (QK_GAIN**2 if config.qk_norm else 1.0) / math.sqrt(config.head_dim)


class Linear(nn.Module):
    """Matrix product without bias; the weight is cast to the input's dtype when used."""

    def __init__(self, inputs: int, outputs: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        # Weights are stored in float32, as small updates would be rounded away in bfloat16.
        return F.linear(x, self.weight.to(x.dtype))  # [..., inputs] -> [..., outputs]


class Embedding(nn.Module):
    """A vector for each id, in the weight's dtype."""

    def __init__(self, count: int, channels: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count, channels, dtype=dtype))

    def forward(self, ids: Tensor) -> Tensor:
        if ids.device.type != "cpu":
            return F.embedding(ids, self.weight)  # [B, T, C]
        rows: Tensor = _Lookup.apply(ids, self.weight)
        return rows


class PairEmbedding(Embedding):
    """A vector for each pair of a token and the one before it, from a table of hashed rows.

    nothing: the id that stands for the lack of a token. Source: modded-nanogpt's bigram embedding.
    """

    def __init__(self, count: int, channels: int, dtype: torch.dtype, *, nothing: int) -> None:
        super().__init__(count, channels, dtype)
        self.nothing = nothing

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T, channels) for the tokens (B, T) of texts."""
        before = F.pad(tokens[:, :-1], (1, 0), value=self.nothing)
        count = self.weight.shape[0]
        ids = pair_ids(tokens, before, 2 * count)
        signs = 1 - 2 * (ids // count)  # the second half of the ids are the rows, negated
        return super().forward(ids % count) * signs.unsqueeze(-1)


def pair_ids(tokens: Tensor, before: Tensor, count: int) -> Tensor:
    """A number below `count` for each pair, which few pairs share; shaped like tokens, int64.

    Of all possible pairs few occur, so pairs share rows. With signs as random as the rows their
    gradients do not add up to a common direction: what a pair gets from another one averages out.
    """
    # Odd factors of 31 bits spread neighboring ids; ids have up to 24 bits, so nothing overflows.
    mixed = (tokens * 0x4F1BBCDD) ^ (before * 0x2545F491)
    return (mixed ^ (mixed >> 15)) % count


class _Lookup(torch.autograd.Function):
    """F.embedding with a gradient that is summed in the order of the ids, compiled or not.

    In compiled CPU code threads would add to the same rows at once: the order of the sums, and with
    it the last bits of the gradient, would differ from run to run.
    """

    @staticmethod
    def forward(ctx: Any, ids: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.count = weight.shape[0]
        return F.embedding(ids, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        (ids,) = ctx.saved_tensors
        if torch.compiler.is_compiling():
            return None, _sum_by_id(grad, ids, ctx.count)
        # The custom op would import the compiler: 150 MB and two seconds.
        return None, torch.ops.aten.embedding_dense_backward(grad, ids, ctx.count, -1, False)


@library.custom_op("nanochat::sum_by_id", mutates_args=())
def _sum_by_id(rows: Tensor, ids: Tensor, count: int) -> Tensor:
    """(count, C): for each id the sum of its rows (..., C).

    A custom op, which the compiler treats as opaque. ATen's kernel assigns every id to one thread,
    so the sums do not depend on the number of threads either.
    """
    return torch.ops.aten.embedding_dense_backward(rows, ids, count, -1, False)


@_sum_by_id.register_fake
def _(rows: Tensor, ids: Tensor, count: int) -> Tensor:
    return rows.new_empty(count, rows.shape[-1])


class Attention(nn.Module):
    """Causal self-attention of one layer, up to the projection back to the residual stream."""

    def __init__(self, config: GPTConfig, layer: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.window = config.windows[layer]
        self.head_dim = config.head_dim
        self.scale = attention_scale(config)
        kv_width = config.kv_heads * config.head_dim
        self.q = Linear(config.width, config.width, dtype)
        self.k = Linear(config.width, kv_width, dtype)
        self.v = Linear(config.width, kv_width, dtype)
        self.out = Linear(config.width, config.width, dtype)
        kind = config.norm if config.norm != "layer" else "rms_weight"
        # Norms of q and k bound the scores, so that no softmax saturates and stops learning.
        self.q_norm = Norm(kind, config.head_dim, dtype) if config.qk_norm else None
        self.k_norm = Norm(kind, config.head_dim, dtype) if config.qk_norm else None
        # RMS-normed vectors have length sqrt(D), so their product is at most D.
        bounded = config.qk_norm and kind == "rms"
        self.score_bound = config.head_dim * self.scale if bounded else None
        self.value_gate = None
        if config.has_value_embedding(layer):
            self.value_gate = Linear(min(VALUE_GATE_CHANNELS, config.width), config.kv_heads, dtype)

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor] | None,
        value: Tensor | None,
        backend: attention.Backend,
    ) -> Tensor:
        """x: (B, T, C); value: (B, T, kv heads x D) value embedding or None. Returns (B, T, C)."""
        by_head = (*x.shape[:2], -1, self.head_dim)
        # Grouped queries: H / H_kv query heads share each key and value head, which makes the cache
        # of decoding smaller by that factor. q: [B, T, H, D]; k, v: [B, T, H_kv, D]
        q, k, v = self.q(x).view(by_head), self.k(x).view(by_head), self.v(x).view(by_head)
        if self.value_gate is not None and value is not None:
            # Each head chooses per token how much of the value embedding it adds: 0 to 3 times.
            gate = VALUE_GATE_MOST * torch.sigmoid(
                self.value_gate(x[..., : self.value_gate.weight.shape[1]])
            )
            v = v + gate.unsqueeze(-1) * value.view(by_head)  # gate: [B, T, H_kv]
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        # After the norm, whose weights would distort the rotated pairs.
        if rope is not None:
            q, k = rotate(q, *rope), rotate(k, *rope)
        y = attention.attend(
            q,
            k,
            v,
            window=self.window,
            scale=self.scale,
            backend=backend,
            score_bound=self.score_bound,
        )
        return self.out(y.reshape(x.shape))  # [B, T, H, D] -> [B, T, C]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position encoding of (B, T, H, D) by (B or 1, T, 1, D / 2) tables.

    Source: RoFormer, arXiv 2104.09864, in the half-split layout of Llama.
    """
    # Each pair (a_i, b_i) is rotated by an angle proportional to its position. The product of a
    # query and a key then depends on the difference of their angles: on their distance alone.
    a, b = x.chunk(2, dim=-1)  # [B, T, H, D / 2] each
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)


class MLP(nn.Module):
    """Two matrices with an activation in between; SwiGLU has three, of the same total size."""

    def __init__(self, config: GPTConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.activation = config.activation
        inner = mlp_width(config)
        self.up = Linear(config.width, inner, dtype)
        self.gate = Linear(config.width, inner, dtype) if self.activation == "swiglu" else None
        self.down = Linear(inner, config.width, dtype)

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(x)  # [B, T, inner]
        if self.gate is not None:
            # SwiGLU: one projection decides how much of the other passes.
            h = F.silu(self.gate(x)) * h
        elif self.activation == "relu2":
            # Squared ReLU: as cheap as ReLU, sparse, and smooth at 0.
            h = _SquaredRelu.apply(h)
        else:
            h = F.gelu(h)
        return self.down(h)  # [B, T, C]


class _SquaredRelu(torch.autograd.Function):
    """relu(x) ** 2 that keeps only its result for the backward pass.

    The next matrix product keeps the result anyway, and where the slope is not zero the input is
    the square root of it. At depth 4 this saves an eighth of the memory for training.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        squared = F.relu(x).square()
        ctx.save_for_backward(squared)
        return squared

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (squared,) = ctx.saved_tensors
        return grad * (2 * squared.sqrt())


def mlp_width(config: GPTConfig) -> int:
    """Inner width of the MLP: 4 x width, or 8/3 of it in multiples of 64 for SwiGLU."""
    if config.activation == "swiglu":
        # Three matrices of 8/3 have the parameters of two matrices of 4.
        return -(-8 * config.width // (3 * 64)) * 64
    return 4 * config.width


class Block(nn.Module):
    """One layer: attention, then MLP, each with a norm at its input and added to the residual."""

    def __init__(self, config: GPTConfig, layer: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.attention_norm = Norm(config.norm, config.width, dtype)
        self.convolution = None
        if config.convolution:
            self.convolution = nn.Parameter(torch.empty(CONVOLVED, config.width, dtype=dtype))
        self.attention = Attention(config, layer, dtype)
        self.mlp_norm = Norm(config.norm, config.width, dtype)
        self.mlp = MLP(config, dtype)

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor] | None,
        value: Tensor | None,
        backend: attention.Backend,
    ) -> Tensor:
        # Norms are at the inputs, not on the stream: gradients reach every layer through the sums.
        h = self.attention_norm(x)
        if self.convolution is not None:
            h = convolved(h, self.convolution)
        x = x + self.attention(h, rope, value, backend)
        return x + self.mlp(self.mlp_norm(x))


def convolved(x: Tensor, weights: Tensor) -> Tensor:
    """x (B, T, C) plus a weighted sum of each token's own channels and those of the ones before it.

    weights: (n, C), the token's own first. Source: the Canon layers of Physics of Language Models
    4.1, which has them in more places.
    """
    y: Tensor = _Convolved.apply(x, weights)
    return y


class _Convolved(torch.autograd.Function):
    """`convolved` that pads once in each direction.

    Left to autograd, each of the shifted copies would be padded on its own: with the compiler on a
    CPU, twice the time.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor) -> Tensor:
        most = len(weights) - 1
        known = F.pad(x, (0, 0, most, 0))  # zeros before the text
        ctx.save_for_backward(known, weights)
        y = x
        for back, weight in enumerate(weights.to(x.dtype).unbind()):
            y = y + weight * known[:, most - back : most - back + x.shape[1]]
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        known, weights = ctx.saved_tensors
        length, most = grad.shape[1], len(weights) - 1
        later = F.pad(grad, (0, 0, 0, most))
        to_x, to_weights = grad, []
        for back, weight in enumerate(weights.to(grad.dtype).unbind()):
            to_x = to_x + weight * later[:, back : back + length]
            before = known[:, most - back : most - back + length]
            to_weights.append((at_least_fp32(grad) * at_least_fp32(before)).sum((0, 1)))
        return to_x, torch.stack(to_weights).to(weights.dtype)


def check_length(length: int, positions: int) -> None:
    """Raises: ConfigError for a text of more tokens than the model has positions for."""
    if length > positions:
        raise ConfigError(
            f"a text of {length} tokens exceeds the model's {positions} positions; shorten it"
        )
