"""The transformer: parameters, initialization, forward pass, token losses.

Owns: GPT. Its options are in config.py, its layers in layers.py, its loss in loss.py, the initial
values of its parameters in parameters.py.
Does not own: the optimizer, the tokenizer, files, ranks, or generation (decoder.py).
Shapes: B rows, T tokens, C width, V vocabulary.
"""

from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nanochat.gpt import attention
from nanochat.gpt.config import GPTConfig
from nanochat.gpt.decoder import Decoder
from nanochat.gpt.layers import (
    Block,
    Embedding,
    Linear,
    Norm,
    PairEmbedding,
    at_least_fp32,
    check_length,
)
from nanochat.gpt.loss import cross_entropies, linear_cross_entropy
from nanochat.gpt.parameters import initial_value

# What a layer reads of what was computed before it, each (B, T, C): the residual stream, the stream
# before the first layer, and the one after the middle layer (until there, that before the first).
Streams = tuple[Tensor, Tensor, Tensor]
SMEAR_CHANNELS = 24  # embedding channels from which the gate of the smear is computed


class GPT(nn.Module):
    """A decoder-only transformer; matrices multiply in compute_dtype, weights are float32.

    attention_backend: one of attention.BACKENDS; the one chosen for the model's device is in
    `.attention`. Parameters hold no values before `init_weights` or `load_state_dict`.
    checkpoint_activations: if set, only the layers' inputs are kept for the backward pass, which
    computes each layer again: less memory, a third more time.
    """

    checkpoint_activations = False

    def __init__(
        self,
        config: GPTConfig,
        *,
        compute_dtype: torch.dtype,
        attention_backend: str = "auto",
    ) -> None:
        super().__init__()
        self.config = config
        self.compute_dtype = compute_dtype
        self.attention_backend = attention_backend
        dtype = torch.promote_types(compute_dtype, torch.float32)
        kv_width = config.kv_heads * config.head_dim
        self.embedding = Embedding(config.vocab_size, config.width, dtype)
        self.pair_embedding = None
        if config.pair_rows:
            self.pair_embedding = PairEmbedding(
                config.pair_rows, config.pair_channels, dtype, nothing=config.vocab_size
            )
        self.position_embedding = None
        if config.positions == "learned":
            self.position_embedding = Embedding(config.sequence_length, config.width, dtype)
        self.embedding_norm = (
            Norm(config.norm, config.width, dtype) if config.embedding_norm else None
        )
        # Value embeddings are lookups: many parameters that cost memory but hardly any compute.
        self.value_embeddings = nn.ModuleDict(
            {
                str(layer): Embedding(config.vocab_size, kv_width, dtype)
                for layer in range(config.depth)
                if config.has_value_embedding(layer)
            }
        )
        self.blocks = nn.ModuleList(Block(config, layer, dtype) for layer in range(config.depth))
        self.final_norm = Norm(config.norm, config.width, dtype)
        self.head = None if config.tied_head else Linear(config.width, config.vocab_size, dtype)
        self._add_scalars(dtype)
        self._settle()

    def _add_scalars(self, dtype: torch.dtype) -> None:
        def scalars(count: int, enabled: bool) -> nn.Parameter | None:
            return nn.Parameter(torch.empty(count, dtype=dtype)) if enabled else None

        config = self.config
        self.residual_scales = scalars(config.depth, config.residual_scalars)
        self.x0_scales = scalars(config.depth, config.residual_scalars)
        self.smear_scale = scalars(1, config.smear)
        self.smear_gate = None
        if config.smear:
            self.smear_gate = Linear(min(SMEAR_CHANNELS, config.width), 1, dtype)
        self.backout_scale = scalars(1, config.backout)

    def _settle(self) -> None:
        """Set what depends on the device: the rotary tables and the attention backend."""
        device = self.embedding.weight.device
        backend = self.attention_backend
        if backend in attention.GPU_BACKENDS and device.type != "cuda":
            backend = "auto"  # not on its final device yet; moving it there calls this again
        self.attention = attention.choose(backend, device)
        self.rope: tuple[Tensor, Tensor] | None = None
        if self.config.positions == "rope":
            dtype = torch.promote_types(self.compute_dtype, torch.float32)
            self.rope = rope_tables(self.config, dtype, device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self._settle()
        return self

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """As in torch; assign=True turns a model on the meta device into a real one."""
        result = super().load_state_dict(state_dict, strict=strict, assign=assign)
        self._settle()
        return result

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Give every parameter its initial value, which does not depend on the model's device."""
        for name, parameter in self.named_parameters():
            # Drawn in the order of the parameters: another order would be another model.
            parameter.copy_(initial_value(name, parameter.shape, self.config, generator))

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (B, T, V) of the next token after each of tokens (B, T)."""
        return self.logits(self.hidden(tokens))

    def hidden(self, tokens: Tensor) -> Tensor:
        """The normed output (B, T, C) of the last layer for tokens (B, T), in the compute dtype.

        Raises: ConfigError for a text that is longer than the model has positions for.
        """
        streams = self.embed(tokens)
        return self.output(self.run_layers(range(self.config.depth), streams, tokens))

    # The forward pass in parts, which training on several ranks calls one by one: gradients of one
    # part are sent while the backward pass of the parts before it runs.

    def embed(self, tokens: Tensor) -> Streams:
        """The streams before the first layer, for tokens (B, T)."""
        x = self._embed(tokens)  # [B, T, C]
        return x, x, x

    def run_layers(self, layers: range, streams: Streams, tokens: Tensor) -> Streams:
        """The streams after consecutive layers, from those before them."""
        x, x0, middle = streams
        recompute = self.checkpoint_activations and torch.is_grad_enabled()
        for layer in layers:
            if recompute:
                # Layers use no random numbers, so no generator has to be restored.
                x = checkpoint(
                    self._layer, layer, x, x0, tokens, use_reentrant=False, preserve_rng_state=False
                )
            else:
                x = self._layer(layer, x, x0, tokens)
            if layer == self.config.depth // 2:
                middle = x
        return x, x0, middle

    def output(self, streams: Streams) -> Tensor:
        """The normed output (B, T, C) from the streams after the last layer."""
        x, _, middle = streams
        # What the middle layers wrote for later layers is partly useless to the head; subtracting
        # it here saves the last layers from learning to cancel it.
        if self.backout_scale is not None:
            x = x - self.backout_scale[0] * middle
        return self.final_norm(x)

    def _layer(self, layer: int, x: Tensor, x0: Tensor, tokens: Tensor) -> Tensor:
        """The residual stream (B, T, C) after a layer; x0 is the stream before the first one."""
        # Every layer gets the token's embedding again, which fades as layers add to the stream.
        if self.residual_scales is not None and self.x0_scales is not None:
            x = self.residual_scales[layer] * x + self.x0_scales[layer] * x0
        # A second embedding, added to the values of attention: what a token contributes when others
        # attend to it is looked up and not only computed from the stream.
        value = None
        if str(layer) in self.value_embeddings:
            # [B, T, H_kv * D]
            value = self.value_embeddings[str(layer)](tokens).to(self.compute_dtype)
        rope = self._rope(tokens.shape[1])
        out: Tensor = self.blocks[layer](x, rope, value, self.attention)
        return out

    def logits(self, hidden: Tensor) -> Tensor:
        """Softcapped logits (..., V) of hidden (..., C), in at least float32."""
        logits = at_least_fp32(F.linear(hidden, self.head_weight.to(hidden.dtype)))
        # The cap keeps single logits from growing without limit, which makes training unstable;
        # tanh leaves small logits nearly unchanged.
        cap = self.config.softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def loss(self, tokens: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """The training loss: sum of weights x cross-entropies in nats, 0-d, at least float32.

        tokens, targets: (B, T); targets of -1 have no loss. weights: (B, T), or 0-d for all tokens.
        """
        return self._hidden_loss(self.hidden(tokens), targets, weights)

    def output_loss(self, streams: Streams, targets: Tensor, weights: Tensor) -> Tensor:
        """The training loss from the streams after the last layer; see `loss`."""
        return self._hidden_loss(self.output(streams), targets, weights)

    def _hidden_loss(self, hidden: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        return linear_cross_entropy(
            hidden.flatten(0, 1),  # [N, C], N = B * T
            self.head_weight,  # [V, C]
            targets.flatten(),  # [N]
            weights.to(self.head_weight.dtype).expand(targets.shape).flatten(),  # [N]
            softcap=self.config.softcap,
        )

    @torch.no_grad()
    def token_losses(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy (B, T) in nats, at least float32; 0 where targets (B, T) are -1."""
        losses = cross_entropies(
            self.hidden(tokens).flatten(0, 1),  # [N, C]
            self.head_weight,  # [V, C]
            targets.flatten(),  # [N]
            softcap=self.config.softcap,
        )
        return losses.view(tokens.shape)

    def for_inference(self, dtype: torch.dtype) -> Decoder:
        """A copy for generation with matrices in dtype (see Decoder); shares no memory."""
        return Decoder(self.config, self.state_dict(), self.rope, self.attention, dtype=dtype)

    @property
    def head_weight(self) -> Tensor:
        """The (V, C) matrix that computes the logits."""
        # A tied head saves V x C parameters, but one matrix then serves two purposes.
        return self.embedding.weight if self.head is None else self.head.weight

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return self.embedding.weight.device

    def _embed(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)  # [B, T, C]
        if self.pair_embedding is not None:
            pairs = self.pair_embedding(tokens)  # [B, T, pair channels]
            x = x + F.pad(pairs, (0, x.shape[-1] - pairs.shape[-1]))
        if self.position_embedding is not None:
            table = self.position_embedding.weight
            check_length(tokens.shape[1], table.shape[0])
            x = x + table[: tokens.shape[1]]
        x = x.to(self.compute_dtype)
        if self.embedding_norm is not None:
            x = self.embedding_norm(x)
        if self.smear_gate is None or self.smear_scale is None:
            return x
        # Smear: a gate adds the previous token's embedding, so that the first layer already sees
        # pairs of tokens, for which attention would need a layer.
        before = F.pad(x[:, :-1], (0, 0, 1, 0))  # [B, T, C], zeros before the first token
        # [B, T, 1]
        gate = torch.sigmoid(self.smear_gate(x[..., : self.smear_gate.weight.shape[1]]))
        return x + self.smear_scale[0] * gate * before

    def _rope(self, length: int) -> tuple[Tensor, Tensor] | None:
        """cos and sin, (1, T, 1, D / 2), of the positions of a text."""
        if self.rope is None:
            return None
        cos, sin = self.rope
        check_length(length, cos.shape[0])
        return cos[None, :length], sin[None, :length]


def rope_tables(
    config: GPTConfig, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """cos and sin of every position and wavelength, each (max_positions, 1, D / 2)."""
    if device.type == "meta":
        empty = torch.empty(
            config.max_positions, 1, config.head_dim // 2, dtype=dtype, device=device
        )
        return empty, empty
    # Pair i of a head's channels turns by position * base^(-2i / D): from one radian per token for
    # the first pair to almost none for the last, so that pairs encode near and far distances.
    # In float64 on the CPU: the tables are then the same on every device, also for late positions.
    exponent = torch.arange(0, config.head_dim, 2, dtype=torch.float64, device="cpu")
    rates = config.rope_base ** (-exponent / config.head_dim)  # [D / 2]
    positions = torch.arange(config.max_positions, dtype=torch.float64, device="cpu")
    angles = torch.outer(positions, rates)[:, None, :]  # [positions, 1, D / 2]
    return angles.cos().to(device, dtype), angles.sin().to(device, dtype)
