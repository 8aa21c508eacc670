"""Causal attention as matrix products, block by block: the fast way on a CPU in bfloat16.

Owns: forward and backward passes over blocks of queries. Does not own: the choice of the backend
(attention.py).

Measured on two cores with AVX-512 bf16, 16 rows of 256 tokens, 4 heads of 64, forward and
backward: torch's CPU kernel 51 ms, this 19 ms compiled (50 ms uncompiled). In float32 torch is
faster at 256 tokens (a pass of the model takes 1.77 s, here 1.86) and slower at 512 (2.17 s, here
1.94).
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from nanochat.gpt.fast_exp import exp_for

# Queries in a block. Without a window every block is unrolled into the compiled graph: blocks of
# 128 would double the compile time at 512 tokens. Blocks of 64 were slower at 256 tokens.
BLOCK, LONG_BLOCK = 128, 256
SHORT_TEXT = 256
MAX_BLOCKS = 16  # limits the compile time of very long texts
SAFE_BOUND = 40.0  # exponentials of scores up to this, and any sum of them, fit into float32


def faster_in_blocks(q: Tensor) -> bool:
    """Whether attention for queries (B, T, H, D) is faster in blocks than in torch's kernel.

    Never in float16: outputs that are not yet divided by the sum of the weights may overflow.
    """
    if q.dtype == torch.bfloat16:
        return True
    long = q.shape[1] > SHORT_TEXT
    return q.dtype == torch.float32 and long and torch.compiler.is_compiling()


def block_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    window: int | None,
    scale: float,
    score_bound: float | None = None,
) -> Tensor:
    """Causal attention: query i sees keys max(0, i - window) .. i; without a window, all up to i.

    q: (B, T, H, D); k, v: (B, T, H_kv, D). score_bound: see attention.attend. Returns (B, T, H, D).
    Keeps the weights of all computed pairs for the backward pass, in q's dtype (`scores_made`
    counts them).
    """
    if score_bound is not None and score_bound > SAFE_BOUND:
        score_bound = None
    B, T, H, D = q.shape
    if k.shape[2] != H:
        k, v = (x.repeat_interleave(H // x.shape[2], dim=2) for x in (k, v))  # [B, T, H, D]
    q, k, v = (x.transpose(1, 2).reshape(B * H, T, D) for x in (q, k, v))
    y: Tensor = _BlockAttention.apply(q, k, v, window, scale, score_bound)
    return y.view(B, H, T, D).transpose(1, 2)  # [B, T, H, D]


def scores_made(length: int, window: int | None) -> int:
    """Weights kept for the backward pass per row and head, masked ones included."""
    pieces = _pieces(length, window)
    return sum((piece.end - piece.start) * (piece.back + piece.block) for piece in pieces)


# Why blocks: large matrix products are what CPUs do fastest in bfloat16, and a block of queries is
# multiplied only by keys that one of its queries may see, so little of the work is masked.
@dataclass(frozen=True)
class _Piece:
    """Queries start..end in blocks of equal size; each block sees `back` keys before itself."""

    start: int
    end: int
    block: int
    back: int

    def queries(self, x: Tensor) -> Tensor:
        """The blocks of x (N, T, D) as (N x blocks, block, D)."""
        return x[:, self.start : self.end].reshape(-1, self.block, x.shape[2])

    def keys(self, x: Tensor) -> Tensor:
        """The part of x (N, T, D) that each block sees: (N x blocks, back + block, D)."""
        seen = x[:, self.start - self.back : self.end]
        if self.end - self.start > self.block:
            # Overlapping windows of the keys: neighbors share `back` of them.
            seen = seen.unfold(1, self.back + self.block, self.block).mT
        return seen.reshape(-1, self.back + self.block, x.shape[2])

    def sum_by_key(self, grads: Tensor, length: int) -> Tensor:
        """The adjoint of `keys`: (N x blocks, back + block, D) summed by key to (N, length, D)."""
        count = (self.end - self.start) // self.block
        start = self.start - self.back
        if count == 1:
            return F.pad(grads, (0, 0, start, length - self.end))
        # A sum of padded parts compiles to one loop; adding to slices would give nested loops.
        total = grads.new_zeros(())
        for part in grads.unflatten(0, (-1, count)).split(self.block, dim=2):
            end = start + count * self.block
            total = total + F.pad(part.flatten(1, 2), (0, 0, start, length - end))
            start += self.block
        return total


class _BlockAttention(torch.autograd.Function):
    """q, k, v: (N, T, D) with N = rows x heads.

    The weights stay unnormalized; the much smaller outputs are divided instead.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        window: int | None,
        scale: float,
        score_bound: float | None,
    ) -> Tensor:
        outputs, normalizers, kept = [], [], []
        for piece in _pieces(q.shape[1], window):
            weights, normalizer = _weights(
                piece, q, k, window=window, scale=scale, score_bound=score_bound
            )
            # weights: [N * blocks, block, S], S = back + block
            outputs.append((weights @ piece.keys(v)).view(q.shape[0], -1, q.shape[2]))
            normalizers.append(normalizer.view(q.shape[0], -1, 1))
            kept.append(weights)
        normalizer = torch.cat(normalizers, dim=1)  # [N, T, 1]
        y = (torch.cat(outputs, dim=1) / normalizer).to(q.dtype)
        ctx.save_for_backward(q, k, v, y, normalizer, *kept)
        ctx.window, ctx.scale = window, scale
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        q, k, v, y, normalizer, *kept = ctx.saved_tensors
        sum_dtype = normalizer.dtype
        grad = grad.to(sum_dtype) / normalizer
        # With P the weights and dP = dY V^T, a softmax has dS = P * (dP - sum over keys of P * dP).
        # That sum equals dY . Y, so it is the same for all keys of a query and needs no weights.
        grad_dot_y = (grad * y).sum(-1, keepdim=True)  # [N, T, 1]
        grad = grad.to(q.dtype)
        grad_q = []
        grad_k = grad_v = grad_dot_y.new_zeros(())
        for piece, weights in zip(_pieces(q.shape[1], ctx.window), kept, strict=True):
            grad_y = piece.queries(grad)
            grad_scores = (grad_y @ piece.keys(v).mT).to(sum_dtype) - piece.queries(grad_dot_y)
            grad_scores = (weights * grad_scores * ctx.scale).to(q.dtype)
            grad_q.append((grad_scores @ piece.keys(k)).view(q.shape[0], -1, q.shape[2]))
            from_scores = grad_scores.mT @ piece.queries(q)
            from_outputs = weights.mT @ grad_y
            grad_k = grad_k + piece.sum_by_key(from_scores.to(sum_dtype), q.shape[1])
            grad_v = grad_v + piece.sum_by_key(from_outputs.to(sum_dtype), q.shape[1])
        grads = (torch.cat(grad_q, dim=1), grad_k.to(k.dtype), grad_v.to(v.dtype))
        return *grads, None, None, None


def _pieces(length: int, window: int | None) -> list[_Piece]:
    """First the queries that see everything before them, block by block; then the rest together."""
    smallest = BLOCK if length <= SHORT_TEXT else LONG_BLOCK
    size = max(smallest, -(-length // (MAX_BLOCKS * smallest)) * smallest)
    back = length if window is None else min(length, -(-window // BLOCK) * BLOCK)
    pieces = []
    # Each of these sees all keys from the first one on, so shapes differ and blocks run one by one.
    for start in range(0, back, size):
        end = min(back, start + size)
        pieces.append(_Piece(start, end, block=end - start, back=start))
    # From here on every block sees the same number of keys: one batched product for all.
    full_blocks_end = back + (length - back) // BLOCK * BLOCK
    if full_blocks_end > back:
        pieces.append(_Piece(back, full_blocks_end, block=BLOCK, back=back))
    if length > full_blocks_end:
        pieces.append(_Piece(full_blocks_end, length, block=length - full_blocks_end, back=back))
    return pieces


def _weights(
    piece: _Piece,
    q: Tensor,
    k: Tensor,
    *,
    window: int | None,
    scale: float,
    score_bound: float | None,
) -> tuple[Tensor, Tensor]:
    """The weights exp(score - shift) of a piece in q's dtype, and their sums (.., queries, 1).

    The shift is the query's largest score, or 0 if scores are bounded. Keys that a query does not
    see have weight 0.
    """
    # [N * blocks, block, S]; positions count from the first key that the block sees.
    scores = piece.queries(q) @ piece.keys(k).mT
    scores = scores.to(torch.promote_types(q.dtype, torch.float32)) * scale
    position = torch.arange(piece.back + piece.block, dtype=torch.int32, device=q.device)
    query, key = position[piece.back :, None], position
    hidden = key > query
    if window is not None:
        hidden = hidden | (key < query - window)
    # With bounded scores exp cannot overflow: the maximum need not be found and subtracted.
    if score_bound is None:
        scores = scores.masked_fill(hidden, -torch.inf)
        weights = exp_for(q.dtype, scores - scores.amax(-1, keepdim=True), bound=None)
    else:
        # Masked scores are within the bound too, so they are set to 0 afterward.
        weights = exp_for(q.dtype, scores, bound=score_bound).masked_fill(hidden, 0.0)
    return weights.to(q.dtype), weights.sum(-1, keepdim=True)
