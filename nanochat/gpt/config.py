"""The options of the model's architecture and the sizes that follow from them.

Owns: GPTConfig. Owns not: the model itself (layers.py, gpt.py) or its training.
"""

from dataclasses import dataclass

from nanochat.system.config import option
from nanochat.system.errors import ConfigError

WINDOW_MULTIPLE = 128  # short windows are rounded up to this: a tile of the GPU kernels
ROPE_REACH = 8  # rotary tables cover this many training lengths, for longer texts at inference


@dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """Architecture of the model; what is None on the way in is filled in from the depth."""

    # The upper bounds are far beyond any use: they catch typing errors.
    vocab_size: int = option(
        32768, "tokens in the vocabulary, special ones included", least=1, most=2**24
    )
    sequence_length: int = option(
        2048, "tokens of context the model is trained on", least=1, most=2**24
    )
    depth: int = option(
        20, "layers; the one dial from which the other sizes follow", least=1, most=1024
    )
    width: int = option(
        None, "channels of the residual stream; by default 64 a layer", least=1, most=2**17
    )
    heads: int = option(
        None, "attention heads; by default width / 128, or / 64 below depth 8", least=1, most=4096
    )
    kv_heads: int = option(
        None, "key and value heads, a divisor of heads; by default all", least=1, most=4096
    )
    positions: str = option("rope", "position encoding", choices=("rope", "learned", "none"))
    rope_base: float = option(100_000.0, "base of the rotary wavelengths", above=1)
    activation: str = option("relu2", "of the MLP", choices=("relu2", "gelu", "swiglu"))
    norm: str = option("rms", "rms has no weights", choices=("rms", "rms_weight", "layer"))
    qk_norm: bool = option(True, "normalise queries and keys")
    window_pattern: str = option(
        "SSSL", "attention by layer, repeated: S the window, L all the context; last layer L"
    )
    window: int = option(
        None,
        "tokens that an S layer looks back; by default a quarter of the context, by 128s",
        least=1,
        most=2**24,
    )
    value_embeddings: bool = option(True, "gated token embeddings in the values of every 2nd layer")
    smear: bool = option(True, "mix the previous token's embedding into each, by a gate")
    backout: bool = option(True, "subtract a learned share of the middle layer before the head")
    residual_scalars: bool = option(True, "learned scales of residual and embedding by layer")
    embedding_norm: bool = option(True, "normalise the token embedding")
    tied_head: bool = option(False, "use the embedding matrix as output head")
    softcap: float | None = option(
        15.0, "logits lie within +- this; none leaves them free", above=0
    )

    def __post_init__(self) -> None:
        def default(name: str, value: int) -> None:
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)

        head_dim = 64 if self.depth < 8 else 128
        width = -(-64 * self.depth // head_dim) * head_dim
        if self.heads is not None:
            width = -(-width // (2 * self.heads)) * 2 * self.heads
        default("width", width)
        default("heads", max(1, self.width // (head_dim if self.width % head_dim == 0 else 64)))
        default("kv_heads", self.heads)
        tiles = -(-self.sequence_length // (4 * WINDOW_MULTIPLE))
        default("window", tiles * WINDOW_MULTIPLE)
        if self.width % self.heads or self.head_dim % 2:
            raise ConfigError(
                f"--width {self.width} must be an even multiple of --heads {self.heads}"
            )
        if self.heads % self.kv_heads:
            raise ConfigError(f"--kv-heads {self.kv_heads} must divide --heads {self.heads}")
        if not self.window_pattern or set(self.window_pattern) - set("SL"):
            raise ConfigError(
                f"--window-pattern takes the letters S and L, got {self.window_pattern!r}"
            )

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.width // self.heads

    @property
    def max_positions(self) -> int:
        """Tokens after which the model has no positions left."""
        return self.sequence_length * (1 if self.positions == "learned" else ROPE_REACH)

    @property
    def windows(self) -> tuple[int | None, ...]:
        """By layer: how many tokens back it sees; None sees all."""
        short = self.window
        pattern = (self.window_pattern * self.depth)[: self.depth - 1] + "L"
        return tuple(short if c == "S" and short < self.sequence_length else None for c in pattern)

    def has_value_embedding(self, layer: int) -> bool:
        """Whether a layer adds value embeddings: every second one, the last included."""
        return self.value_embeddings and (self.depth - 1 - layer) % 2 == 0
