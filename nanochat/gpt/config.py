"""The options of the model's architecture and the sizes that follow from them.

Owns: GPTConfig. Owns not: the model itself (layers.py, gpt.py) or its training.
"""

from dataclasses import dataclass

from nanochat.system.config import option
from nanochat.system.errors import ConfigError

LIMITS = {  # far beyond any use, so that a slip of the keyboard is named and not attempted
    "vocab_size": 2**24,
    "sequence_length": 2**24,
    "window": 2**24,
    "depth": 1024,
    "width": 2**17,
    "heads": 2**12,
    "kv_heads": 2**12,
}
WINDOW_MULTIPLE = 128  # short windows are rounded up to this: a tile of the GPU kernels
ROPE_REACH = 8  # rotary tables cover this many training lengths, for longer texts at inference


def default_shape(depth: int) -> tuple[int, int]:
    """(width, heads) of a depth: width 64 a layer, heads of 128, or of 64 in a small model."""
    if depth < 8:
        return 64 * depth, depth
    heads = -(-depth // 2)
    return 128 * heads, heads


@dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """Architecture of the model; what is None on the way in is filled in from the depth."""

    vocab_size: int = option(32768, "tokens in the vocabulary, special ones included")
    sequence_length: int = option(2048, "tokens of context the model is trained on")
    depth: int = option(20, "layers; the one dial from which the other sizes follow")
    width: int = option(None, "channels of the residual stream; by default 64 a layer")
    heads: int = option(None, "attention heads; by default width / 128, or / 64 below depth 8")
    kv_heads: int = option(None, "key and value heads, a divisor of heads; by default all")
    positions: str = option("rope", "position encoding", choices=("rope", "learned", "none"))
    rope_base: float = option(100_000.0, "base of the rotary wavelengths")
    activation: str = option("relu2", "of the MLP", choices=("relu2", "gelu", "swiglu"))
    norm: str = option("rms", "rms has no weights", choices=("rms", "rms_weight", "layer"))
    qk_norm: bool = option(True, "normalise queries and keys")
    window_pattern: str = option(
        "SSSL", "attention by layer, repeated: S the window, L all the context; last layer L"
    )
    window: int = option(
        None, "tokens that an S layer looks back; by default a quarter of the context, by 128s"
    )
    value_embeddings: bool = option(True, "gated token embeddings in the values of every 2nd layer")
    smear: bool = option(True, "mix the previous token's embedding into each, by a gate")
    backout: bool = option(True, "subtract a learned share of the middle layer before the head")
    residual_scalars: bool = option(True, "learned scales of residual and embedding by layer")
    embedding_norm: bool = option(True, "normalise the token embedding")
    tied_head: bool = option(False, "use the embedding matrix as output head")
    softcap: float | None = option(15.0, "logits lie within +- this; none leaves them free")

    def __post_init__(self) -> None:
        self._check_sizes()
        width, heads = default_shape(self.depth)
        if self.width is None:
            if self.heads is not None:
                width = -(-width // (2 * self.heads)) * 2 * self.heads
            object.__setattr__(self, "width", width)
        if self.heads is None:
            per_head = 128 if self.depth >= 8 and self.width % 128 == 0 else 64
            heads = max(1, self.width // per_head)
            object.__setattr__(self, "heads", heads)
        if self.window is None:
            tiles = -(-self.sequence_length // (4 * WINDOW_MULTIPLE))
            object.__setattr__(self, "window", tiles * WINDOW_MULTIPLE)
        if self.kv_heads is None:
            object.__setattr__(self, "kv_heads", self.heads)
        self._validate()

    def _check_sizes(self) -> None:
        for name, most in LIMITS.items():
            value = getattr(self, name)
            if value is not None and not 1 <= value <= most:
                flag = "--" + name.replace("_", "-")
                raise ConfigError(f"{flag} must be in [1, {most}], got {value}")

    def _validate(self) -> None:
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
        if self.rope_base <= 1:
            raise ConfigError(f"--rope-base must be above 1, got {self.rope_base}")
        if self.softcap is not None and self.softcap <= 0:
            raise ConfigError(f"--softcap must be above 0 or none, got {self.softcap}")

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
