"""A model's weights rearranged for generation; decoder.py says what for.

Owns: what is fused, folded and reordered. Does not own: how products store a matrix (products.py).
Shapes: C width, V vocabulary, H query heads, K key heads, D head size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat.gpt.config import GPTConfig
from nanochat.gpt.layers import VALUE_GATE_MOST, normed
from nanochat.gpt.products import Product, product

Weights = Mapping[str, Tensor]  # GPT's state dict


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One layer's weights in the form in which they are used."""

    qkv: Product  # C -> H x D queries, K x D keys, K x D values, K gates of the value embeddings
    out: Product
    up: Product  # C -> inner; swiglu: C -> 2 x inner, the gate last
    down: Product
    norm_weight: Tensor | None  # [H + K, D], of the norms of q and k
    convolution: Tensor | None  # [CONVOLVED, C], the factors of a sum, the token's own last
    values: Tensor | None  # [V, K x D], value embeddings times the largest gate


@dataclass(frozen=True, slots=True)
class Embeddings:
    """The lookups of a token; the last row of the tables stands for the lack of a token."""

    # [V + 1, C], normed unless something is added first; the last row is zeros
    table: Tensor
    # [2 rows + 1, pair channels], added to the table's first channels: the rows, these negated, and
    # zeros for the lack of a token
    pairs: Tensor | None
    positions: Tensor | None  # [positions + 1, C]; the first row, of zeros, for the lack of one
    norm_weight: Tensor | None  # [C], only if the norm follows the lookup
    norm_follows: bool
    smear_by_token: Tensor | None  # [V + 1, 1], the scaled gate, if a token always has the same
    smear_gate: Tensor | None  # [1, channels], if not
    smear_scale: Tensor | None  # [1], if a token's gate varies


@dataclass(frozen=True, slots=True)
class Output:
    """What is left after the layers, and the scales of all of them."""

    head: Product  # C -> V; its result is logits / softcap
    backout: Tensor | None  # [1], minus the share of the middle layer's output
    residual_scales: Tensor | None  # [depth]
    x0_scales: Tensor | None  # [depth]


Part = Embeddings | LayerWeights | Output


class DecoderWeights:
    """Everything that a decoder multiplies by, copied from a model.

    dtype: of matrices; int8: 8 bits and a scale for each output, for input in bfloat16.
    """

    def __init__(self, config: GPTConfig, weights: Weights, dtype: torch.dtype) -> None:
        self._config = config
        self._int8 = dtype == torch.int8
        self._dtype = torch.bfloat16 if self._int8 else dtype
        self._wide = torch.promote_types(self._dtype, torch.float32)
        self.layers: list[LayerWeights] = []
        # Tensors of inference mode could not be loaded into outside it.
        with torch.inference_mode(False), torch.no_grad():
            for part in self._parts(weights):
                if isinstance(part, Embeddings):
                    self.embeddings = part
                elif isinstance(part, Output):
                    self.output = part
                else:
                    self.layers.append(part)

    def load(self, weights: Weights) -> None:
        """Take over the current weights of the model, in the memory of the ones before."""
        # A recorded step (engine/decode_step.py) reads that memory, whoever writes to it.
        with torch.inference_mode(False), torch.no_grad():
            parts: list[Part] = [self.embeddings, *self.layers, self.output]
            for part, fresh in zip(parts, self._parts(weights), strict=True):
                for memory, new in zip(_tensors(part), _tensors(fresh), strict=True):
                    memory.copy_(new)

    def _parts(self, weights: Weights) -> Iterator[Part]:
        """The parts in the order of their use; a part is made when it is asked for."""
        self._weights = weights
        yield self._embeddings()
        for index in range(self._config.depth):
            yield self._layer(index)
        yield self._output()
        del self._weights  # the model's

    def _embeddings(self) -> Embeddings:
        config = self._config
        table = F.pad(self._wide_copy("embedding"), (0, 0, 0, 1))  # [V + 1, C]
        places = self._weights.get("position_embedding.weight")
        weight = self._weights.get("embedding_norm.weight")
        pairs = self._weights.get("pair_embedding.weight")
        settled = places is None and pairs is None  # a token always has the same embedding
        if settled and config.embedding_norm:
            table = normed(table, config.norm)
            table, weight = table if weight is None else table * weight, None
        smear_gate, by_token, scale = None, None, None
        if config.smear:
            smear_gate = self._wide_copy("smear_gate")
            scale = self._scales("smear_scale")
            if settled:
                by_token = torch.sigmoid(F.linear(table[:, : smear_gate.shape[1]], smear_gate))
                by_token = self._weights["smear_scale"].to(self._wide) * by_token
                smear_gate, scale = None, None
        return Embeddings(
            table=table.to(self._dtype),
            pairs=None if pairs is None else self._pairs(pairs),
            positions=None if places is None else F.pad(places.to(self._wide), (0, 0, 1, 0)),
            norm_weight=None if weight is None else weight.to(self._wide, copy=True),
            norm_follows=not settled and config.embedding_norm,
            smear_by_token=by_token,
            smear_gate=smear_gate,
            smear_scale=scale,
        )

    def _pairs(self, rows: Tensor) -> Tensor:
        return F.pad(torch.cat([rows, -rows]), (0, 0, 0, 1)).to(self._dtype)

    def _layer(self, index: int) -> LayerWeights:
        config, block = self._config, f"blocks.{index}"
        up = self._folded(f"{block}.mlp.up", f"{block}.mlp_norm")
        if config.activation == "swiglu":
            up = torch.cat([up, self._folded(f"{block}.mlp.gate", f"{block}.mlp_norm")])
        values = self._weights.get(f"value_embeddings.{index}.weight")
        return LayerWeights(
            qkv=self._product(self._qkv(block)),
            out=self._product(self._wide_copy(f"{block}.attention.out")),
            up=self._product(up),
            down=self._product(self._wide_copy(f"{block}.mlp.down")),
            norm_weight=self._head_norms(block),
            convolution=self._convolution(block),
            values=None if values is None else (VALUE_GATE_MOST * values).to(self._dtype),
        )

    def _convolution(self, block: str) -> Tensor | None:
        weights = self._scales(f"{block}.convolution")
        if weights is not None:
            weights[0] += 1  # the model adds the sum to the token's own
            weights = weights.flip(0)
        return weights

    def _output(self) -> Output:
        config = self._config
        head = self._folded("embedding" if config.tied_head else "head", "final_norm")
        backout = self._scales("backout_scale")
        return Output(
            # The cap is applied to logits / cap.
            head=self._product(head / (config.softcap or 1.0)),
            backout=None if backout is None else -backout,
            residual_scales=self._scales("residual_scales"),
            x0_scales=self._scales("x0_scales"),
        )

    def _scales(self, name: str) -> Tensor | None:
        """Learned numbers, as a tensor: a GPU need not wait for them, and may find new ones."""
        scales = self._weights.get(name)
        return None if scales is None else scales.to(self._wide, copy=True)

    def _qkv(self, block: str) -> Tensor:
        """((H + 2 K) x D + gates, C): q, k, v, and the gates, which see few of the channels."""
        norm = f"{block}.attention_norm"
        q, k, v = (self._folded(f"{block}.attention.{name}", norm) for name in "qkv")
        rows = [self._paired(q), self._paired(k), v]
        gate = self._weights.get(f"{block}.attention.value_gate.weight")  # [K, channels]
        if gate is not None:
            # An even number of rows: pairs of q and k are read as complex numbers.
            wide = F.pad(gate.to(self._wide), (0, q.shape[1] - gate.shape[1], 0, len(gate) % 2))
            factor = self._weights.get(f"{norm}.weight")
            rows.append(wide if factor is None else wide * factor)
        return torch.cat(rows)

    def _paired(self, rows: Tensor) -> Tensor:
        """Rows (heads x D, ...) with those of a rotated pair, i and i + D / 2, as neighbors."""
        if self._config.positions != "rope":
            return rows
        by_half = rows.unflatten(0, (-1, 2, self._config.head_dim // 2))  # [heads, 2, D / 2, ...]
        return by_half.transpose(1, 2).flatten(0, 2)

    def _head_norms(self, block: str) -> Tensor | None:
        """(H + K, D): the weight of its norm for every head of q and k, in their order."""
        weights = (self._weights.get(f"{block}.attention.{name}_norm.weight") for name in "qk")
        q, k = (
            None if weight is None else self._paired(weight.to(self._wide)) for weight in weights
        )
        if q is None or k is None:
            return None
        config = self._config
        return torch.cat([q.expand(config.heads, -1), k.expand(config.kv_heads, -1)])

    def _folded(self, name: str, norm: str) -> Tensor:
        """The matrix `name`, multiplied by the weight of the norm before it."""
        matrix, factor = self._wide_copy(name), self._weights.get(f"{norm}.weight")
        return matrix if factor is None else matrix * factor

    def _wide_copy(self, name: str) -> Tensor:
        return self._weights[f"{name}.weight"].to(self._wide, copy=True)

    def _product(self, matrix: Tensor) -> Product:
        return product(matrix.to(self._dtype), int8=self._int8)


def _tensors(part: Part) -> Iterator[Tensor]:
    """All memory of a part, in a fixed order."""
    for field in fields(part):
        value = getattr(part, field.name)
        if isinstance(value, Product):
            yield from value.stored
        elif isinstance(value, Tensor):
            yield value
