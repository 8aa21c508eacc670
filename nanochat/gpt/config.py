"""The options of the model's architecture and the sizes that follow from them.

Owns: GPTConfig. Does not own: the model itself (layers.py, model.py) or its training.
"""

from dataclasses import dataclass

from nanochat.system.config import option
from nanochat.system.errors import ConfigError

WINDOW_MULTIPLE = 128  # default windows are a multiple of this: a tile of the GPU kernels
ROPE_REACH = 8  # training lengths covered by the rotary tables, for longer texts at inference


@dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """Architecture of the model; sizes that are None are computed from the depth."""

    # The upper bounds are far beyond any use: they catch typing errors.
    vocab_size: int = option(
        32768, "tokens in the vocabulary, including special tokens", least=1, most=2**24
    )
    sequence_length: int = option(
        2048, "context length in training, in tokens", least=1, most=2**24
    )
    depth: int = option(
        20,
        "number of layers; the other sizes follow from it; base_train and plan also take auto: the "
        "largest that a GPU holds and trains within --max-hours",
        least=1,
        most=1024,
    )
    width: int = option(
        None, "channels of the residual stream; default: 64 per layer", least=1, most=2**17
    )
    heads: int = option(
        None,
        "attention heads; default: width / 128, or width / 64 below depth 8",
        least=1,
        most=4096,
    )
    kv_heads: int = option(
        None, "key and value heads, a divisor of --heads; default: --heads", least=1, most=4096
    )
    positions: str = option("rope", "position encoding", choices=("rope", "learned", "none"))
    rope_base: float = option(
        100_000.0, "base of the rotary wavelengths (with --positions rope)", above=1
    )
    activation: str = option("relu2", "activation of the MLP", choices=("relu2", "gelu", "swiglu"))
    norm: str = option(
        "rms", "norm layers; rms has no weights", choices=("rms", "rms_weight", "layer")
    )
    qk_norm: bool = option(True, "normalize queries and keys")
    # Most layers need nearby tokens only, and a short window makes their attention cheaper; the L
    # layers carry information over the full context, and the last one must see it.
    window_pattern: str = option(
        "SSSL",
        "attention per layer, repeated: S sees --window tokens back, L everything; last layer: L",
    )
    window: int = option(
        None,
        "tokens that an S layer looks back; default: a quarter of the context, rounded up to 128",
        least=1,
        most=2**24,
    )
    value_embeddings: bool = option(
        True, "add gated token embeddings to the attention values of every 2nd layer"
    )
    smear: bool = option(True, "add the previous token's embedding to each token's, through a gate")
    backout: bool = option(
        True, "subtract a learned share of the middle layer's output before the head"
    )
    residual_scalars: bool = option(
        True, "learned scales of residual stream and embedding in each layer"
    )
    embedding_norm: bool = option(True, "normalize the token embedding")
    # A look-up costs nothing, and spares the first layers finding out which tokens go together. At
    # depth 4 training then needs fewer tokens; what larger models gain has not been measured.
    pairs: int = option(
        None,
        "rows, for each token of the vocabulary, of the hashed embedding of token pairs, which is "
        "added to the first half of the token embedding; 0: none; default: 8 below depth 8, else 0",
        least=0,
        most=1024,
    )
    # Attention compares tokens one by one; what neighbors mean together has to be gathered first.
    convolution: bool = option(
        None,
        "add the three tokens before to each token at the input of attention, with learned weights "
        "by channel; default: below depth 8",
    )
    tied_head: bool = option(False, "use the embedding matrix as the output head")
    softcap: float | None = option(
        15.0, "limit logits to +- this, by tanh; none: no limit", above=0
    )

    def __post_init__(self) -> None:
        def default(name: str, value: int | bool) -> None:
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)

        # Heads of 128 use the GPU's matrix units best; a narrow model would have too few of them.
        head_dim = 64 if self.depth < 8 else 128
        width = -(-64 * self.depth // head_dim) * head_dim
        if self.heads is not None:
            width = -(-width // (2 * self.heads)) * 2 * self.heads
        default("width", width)
        default("heads", max(1, self.width // (head_dim if self.width % head_dim == 0 else 64)))
        default("kv_heads", self.heads)
        tiles = -(-self.sequence_length // (4 * WINDOW_MULTIPLE))
        default("pairs", 8 if self.depth < 8 else 0)
        default("convolution", self.depth < 8)
        default("window", tiles * WINDOW_MULTIPLE)
        if self.width % self.heads or self.head_dim % 2:
            raise ConfigError(
                f"--width {self.width} must be an even multiple of --heads {self.heads}"
            )
        if self.heads % self.kv_heads:
            raise ConfigError(f"--kv-heads {self.kv_heads} must divide --heads {self.heads}")
        if not self.window_pattern or set(self.window_pattern) - set("SL"):
            raise ConfigError(
                f"--window-pattern must consist of S and L, got {self.window_pattern!r}"
            )

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.width // self.heads

    @property
    def pair_rows(self) -> int:
        """Rows of the embedding of token pairs."""
        return self.pairs * self.vocab_size

    @property
    def pair_channels(self) -> int:
        """Channels of the token embedding to which those of token pairs are added."""
        return self.width // 2

    @property
    def max_positions(self) -> int:
        """The longest text in tokens that the model has positions for."""
        return self.sequence_length * (1 if self.positions == "learned" else ROPE_REACH)

    @property
    def windows(self) -> tuple[int | None, ...]:
        """For each layer how many tokens back it sees; None: all."""
        short = self.window
        pattern = (self.window_pattern * self.depth)[: self.depth - 1] + "L"
        return tuple(short if c == "S" and short < self.sequence_length else None for c in pattern)

    def has_value_embedding(self, layer: int) -> bool:
        """Whether a layer has value embeddings: every second one does, including the last."""
        return self.value_embeddings and (self.depth - 1 - layer) % 2 == 0
