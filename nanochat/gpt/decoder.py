"""The model rearranged for generation: what GPT computes, in as few operations as possible.

Each token of a small model costs hundreds of operations of a microsecond or more, and a token of a
large one the time to read all weights. So, once for a model's weights (decoder_weights.py):
- q, k, v and the gates of the value embeddings are one product, and matrices are stored in the form
  that the machine reads fastest (products.py);
- the weights of norms are multiplied into the matrices after them;
- embeddings are normed in their table, and so is the smear's gate, which depends on the token;
- the channels of q and k are reordered so that the two of a rotated pair are neighbors. A pair is a
  complex number then, and rotary positions are one complex product. As both are reordered alike,
  their products stay the same.

The residual stream is at least float32; only products are in the compute dtype, and on a GPU values
and gates of values. tests/test_decoder.py counts the operations of a token.

Owns: Decoder. Does not own: stored keys and values (engine/kv_cache.py), training (model.py).
Shapes: B rows, T tokens, N = B x T, C width, V vocabulary, H query heads, K key heads, D head size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat.gpt import attention
from nanochat.gpt.config import GPTConfig
from nanochat.gpt.decoder_weights import DecoderWeights, LayerWeights
from nanochat.gpt.layers import (
    CONVOLVED,
    NORM_EPS,
    attention_scale,
    check_length,
    normed,
    pair_ids,
)

FEW_ROWS = 128  # up to here every layer's share of the embedding is computed at once


class Cache(Protocol):
    """What the decoder needs from a cache view (engine.kv_cache.CacheView)."""

    positions: Tensor  # (B, T) int64, consecutive in each row
    at_start: bool  # whether some row starts at position 0 or 1

    def previous_tokens(self, count: int) -> Tensor:
        """(B, count) int64: 1 or 2 tokens before each row's first one; any id if there is none."""
        ...

    def store_tokens(self, tokens: Tensor) -> None:
        """Store the (B, T) tokens that are being processed."""
        ...

    def with_preceding(self, layer: int, x: Tensor) -> Tensor:
        """Store the (B, T, C) inputs of a layer's convolution; return them after earlier tokens'.

        (B, CONVOLVED - 1 + T, C), zeros before the start of a text.
        """
        ...

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
        """Store keys and values, and attend to everything stored up to each query."""
        ...


class Decoder:
    """A copy of a model's weights that computes logits and cannot be trained.

    weights: GPT's state dict. rope, backend: GPT's tables and attention. dtype: of matrices and
    products; int8 keeps matrices in 8 bits with a scale per output and multiplies in bfloat16.
    """

    def __init__(
        self,
        config: GPTConfig,
        weights: Mapping[str, Tensor],
        rope: tuple[Tensor, Tensor] | None,
        backend: attention.Backend,
        *,
        dtype: torch.dtype,
    ) -> None:
        self.config = config
        self.device = weights["embedding.weight"].device
        self.attention = backend
        self.compute_dtype = torch.bfloat16 if dtype == torch.int8 else dtype
        self.stream_dtype = torch.promote_types(self.compute_dtype, torch.float32)
        self._mixed = self.compute_dtype != self.stream_dtype
        self._weights = DecoderWeights(config, weights, dtype)
        # Views, which are as new as the weights: a number by layer, and all of them.
        scales = self._weights.output.residual_scales, self._weights.output.x0_scales
        self._residual_scales, self._x0_scales = (
            () if scale is None else scale[:, None, None].unbind() for scale in scales
        )
        self._turns = None
        if rope is not None:
            self._turns = torch.complex(*(x.to(self.stream_dtype) for x in rope))  # [.., 1, D / 2]
        self.use_operations_of(self.device.type)
        self._zero = torch.zeros((), dtype=self.stream_dtype, device=self.device)
        self._width_floor, self._head_floor = (
            self._zero + math.sqrt(size * NORM_EPS) for size in (config.width, config.head_dim)
        )

    def use_operations_of(self, device_type: str) -> None:
        """Compute in the way that is fastest on a type of device; the device itself stays."""
        # On a GPU F.rms_norm is one kernel. On a CPU it is ten operations: a length, a hypotenuse
        # and a quotient take a third of its time.
        self._fused_norms = device_type == "cuda"
        self._scale = attention_scale(self.config)
        if self.config.qk_norm and not self._fused_norms:
            self._scale *= self.config.head_dim  # q and k are normed to length 1, not to sqrt(D)

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Take over the current weights of the model, in the memory of the ones before."""
        self._weights.load(weights)

    def __call__(self, tokens: Tensor, cache: Cache | None = None) -> Tensor:
        """Logits (B, T, V) of the next token after each of tokens (B, T)."""
        return self.logits(self.hidden(tokens, cache))

    def hidden(self, tokens: Tensor, cache: Cache | None = None) -> Tensor:
        """The normed output (B, T, C) of the last layer for tokens (B, T), at least float32.

        cache: a view of the stored keys and values of the preceding tokens; without one the tokens
        are complete texts. Raises: ConfigError for a text longer than the model has positions for.
        """
        B, T = tokens.shape
        if cache is None:
            check_length(T, self.config.max_positions)
            positions = torch.arange(T, device=self.device).expand(B, T)
        else:
            positions = cache.positions
        ids = tokens.reshape(-1)  # [N]
        turns = None if self._turns is None else self._turns[positions.reshape(-1)]  # [N, 1, D / 2]
        x = self._embed(tokens, positions, cache)  # [N, C]
        middle = x
        share = self._x0_shares(x)
        for index, layer in enumerate(self._weights.layers):
            if self._residual_scales:
                x = torch.addcmul(share(index), x, self._residual_scales[index])
            h = self._convolved(index, self._norm(x), layer.convolution, B, cache)
            q, k, v = self._heads(layer, h, ids, turns)  # [N, heads, D]
            by_row = (B, T, -1, self.config.head_dim)
            y = self._attend(index, q.view(by_row), k.view(by_row), v.view(by_row), cache)
            x = x + layer.out.multiply(self._narrow(y.reshape(x.shape)))
            x = x + self._mlp(layer, x)
            if index == self.config.depth // 2:
                middle = x
        if self._weights.output.backout is not None:
            x = torch.addcmul(x, middle, self._weights.output.backout)
        return self._norm(x).view(B, T, -1)

    def logits(self, hidden: Tensor) -> Tensor:
        """Softcapped logits (..., V) of hidden (..., C), in at least float32."""
        narrow = self._narrow(hidden.reshape(-1, hidden.shape[-1]))  # [N, C]
        logits = self._widen(self._weights.output.head.multiply(narrow))  # [N, V]
        if self.config.softcap is not None:
            logits = logits.tanh_().mul_(self.config.softcap)
        return logits.view(*hidden.shape[:-1], -1)

    def _embed(self, tokens: Tensor, positions: Tensor, cache: Cache | None) -> Tensor:
        """The stream (N, C) before the first layer."""
        made = self._weights.embeddings
        smear = int(self.config.smear)
        known = self._with_history(tokens, positions, cache)  # [B, needed + T]
        if not smear:
            return self._rows(known, positions + 1)
        # With the embedding of the token before each row's first one, at its own position.
        places = torch.cat([positions[:, :1], positions + 1], dim=1)  # [B, 1 + T]
        x = self._rows(known, places).view(*places.shape, -1)
        previous, x = x[:, :-1].flatten(0, 1), x[:, 1:].flatten(0, 1)  # [N, C] each
        if made.smear_by_token is not None:
            gate = F.embedding(tokens.reshape(-1), made.smear_by_token)  # [N, 1]
        else:
            assert made.smear_gate is not None and made.smear_scale is not None
            gate = F.linear(x[:, : made.smear_gate.shape[1]], made.smear_gate)
            gate = made.smear_scale * torch.sigmoid(gate)
        return torch.addcmul(x, gate, previous)

    def _with_history(self, tokens: Tensor, positions: Tensor, cache: Cache | None) -> Tensor:
        """Tokens (B, T) after the ones before them that their embeddings depend on."""
        needed = int(self.config.smear) + int(self._weights.embeddings.pairs is not None)
        if needed == 0:
            return tokens
        nothing = self.config.vocab_size  # the table's last row
        if cache is None:
            earlier = tokens.new_full((tokens.shape[0], needed), nothing)
        else:
            cache.store_tokens(tokens)
            earlier = cache.previous_tokens(needed)
            if cache.at_start:
                back = torch.arange(needed, 0, -1, device=self.device)
                earlier = earlier.masked_fill(positions[:, :1] < back, nothing)
        return torch.cat([earlier, tokens], dim=1)

    def _x0_shares(self, x0: Tensor) -> Callable[[int], Tensor]:
        """What each layer adds of the first stream x0 (N, C), by the layer's number."""
        scales = self._weights.output.x0_scales
        if scales is None or x0.shape[0] > FEW_ROWS:
            return lambda index: x0 * self._x0_scales[index]
        return (x0 * scales[:, None, None]).unbind().__getitem__  # [depth, N, C]

    def _rows(self, known: Tensor, places: Tensor) -> Tensor:
        """Embeddings (B x S, C) of the last S tokens of `known`; zeros for no token.

        known: (B, S or more). places: (B, S), rows of the table of positions.
        """
        made = self._weights.embeddings
        tokens = known[:, -places.shape[1] :]
        x = self._widen(F.embedding(tokens.reshape(-1), made.table))
        if made.pairs is not None:
            rows = pair_ids(tokens, known[:, : places.shape[1]], made.pairs.shape[0] - 1)
            rows = rows.masked_fill_(tokens == self.config.vocab_size, made.pairs.shape[0] - 1)
            x[:, : made.pairs.shape[1]] += F.embedding(rows.view(-1), made.pairs)
        if made.positions is not None:
            x = x + F.embedding(places.reshape(-1), made.positions)
        if made.norm_follows:
            x = self._norm(x)
        return x if made.norm_weight is None else x * made.norm_weight

    def _heads(
        self, layer: LayerWeights, x: Tensor, ids: Tensor, turns: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (N, H, D), keys and values (N, K, D) of the normed stream (N, C)."""
        H, K, D = self.config.heads, self.config.kv_heads, self.config.head_dim
        made = layer.qkv.multiply(self._narrow(x))
        if self._fused_norms:  # values stay narrow, as they are stored
            qk = self._widen(made.narrow(1, 0, (H + K) * D)).view(-1, H + K, D)
        else:
            made = self._widen(made)
            qk = made.narrow(1, 0, (H + K) * D).view(-1, H + K, D)
        v = made.narrow(1, (H + K) * D, K * D).view(-1, K, D)
        if layer.values is not None:
            gate = torch.sigmoid(made.narrow(1, (H + 2 * K) * D, K)).unsqueeze(-1)  # [N, K, 1]
            value = F.embedding(ids, layer.values)
            value = value if self._fused_norms else self._widen(value)
            v = torch.addcmul(v, gate, value.view(-1, K, D))
        if self.config.qk_norm:
            qk = self._normed_heads(qk)
            if layer.norm_weight is not None:
                qk = qk * layer.norm_weight
        if turns is not None:
            qk = (qk.view(turns.dtype) * turns).view(self.stream_dtype)
        if self._fused_norms:
            qk = self._narrow(qk)
        return qk.narrow(1, 0, H), qk.narrow(1, H, K), v

    def _convolved(
        self, index: int, inputs: Tensor, weights: Tensor | None, rows: int, cache: Cache | None
    ) -> Tensor:
        """Inputs (N, C) of a layer's attention, of so many rows, after its convolution, if any."""
        if weights is None:
            return inputs
        x = inputs.view(rows, -1, inputs.shape[-1])  # [B, T, C]
        T = x.shape[1]
        if cache is None:
            known = F.pad(x, (0, 0, CONVOLVED - 1, 0))
        else:
            known = cache.with_preceding(index, x)  # [B, CONVOLVED - 1 + T, C]
        if T == 1:
            return (known * weights).sum(dim=1)
        y = known[:, :T] * weights[0]
        for start in range(1, CONVOLVED):
            y.addcmul_(known[:, start : start + T], weights[start])
        return y.view(inputs.shape)

    def _normed_heads(self, qk: Tensor) -> Tensor:
        """Queries and keys (N, H + K, D), normed; see use_operations_of."""
        if self._fused_norms:
            return normed(qk, "rms")
        length = torch.linalg.vector_norm(qk, dim=-1, keepdim=True)  # [N, H + K, 1]
        return qk / torch.hypot(length, self._head_floor)

    def _attend(self, index: int, q: Tensor, k: Tensor, v: Tensor, cache: Cache | None) -> Tensor:
        """Attention's output (B, T, H, D) of a layer."""
        if cache is not None:
            return cache.attend(index, q, k, v, scale=self._scale)
        return attention.attend(
            *(x.to(self.compute_dtype) for x in (q, k, v)),
            window=self.config.windows[index],
            scale=self._scale,
            backend=self.attention,
        )

    def _mlp(self, layer: LayerWeights, x: Tensor) -> Tensor:
        h = layer.up.multiply(
            self._narrow(self._norm(x))
        )  # [N, inner], or [N, 2 x inner] of swiglu
        if self.config.activation == "swiglu":
            up, gate = h.chunk(2, dim=-1)
            h = F.silu(gate) * up
        elif self.config.activation == "relu2":
            h = torch.relu_(h)
            h = h * h
        else:
            h = F.gelu(h)
        return layer.down.multiply(h)

    def _norm(self, x: Tensor) -> Tensor:
        """x (N, C), normed; a weight of the norm is in the matrix after it."""
        if self.config.norm == "layer" or self._fused_norms:
            return normed(x, self.config.norm)
        # The root of |x|^2 + C * eps is a hypotenuse.
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        length = torch.hypot(length, self._width_floor)
        return torch.addcdiv(self._zero, x, length, value=math.sqrt(x.shape[-1]))

    def _narrow(self, x: Tensor) -> Tensor:
        return x.to(self.compute_dtype) if self._mixed else x  # even a `to` without effect costs

    def _widen(self, x: Tensor) -> Tensor:
        return x.to(self.stream_dtype) if self._mixed else x
