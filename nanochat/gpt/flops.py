"""The number of parameters of a model, and the floating-point operations per token.

Owns: counts that follow from GPTConfig. Does not own: peak speeds of machines (system/device.py),
or good model sizes and training lengths (optim/scaling.py).
"""

import torch

from nanochat.gpt.config import GPTConfig
from nanochat.gpt.model import GPT
from nanochat.gpt.parameters import KINDS, kind_of

MATRIX_GROUPS = ("matrices", "gates", "head")


def parameter_counts(config: GPTConfig) -> dict[str, int]:
    """Numbers of parameters by group; a tied head counts as "embedding" only.

    "matrices" are those of attention and MLP; "scalars" include the weights of norms.
    """
    counts = dict.fromkeys((kind.count_group for kind in KINDS), 0)
    with torch.device("meta"):
        model = GPT(config, compute_dtype=torch.float32)
    for name, parameter in model.named_parameters():
        counts[kind_of(name).count_group] += parameter.numel()
    return counts


def scaling_parameters(config: GPTConfig) -> int:
    """Parameters that scaling laws count: the matrices of the layers and the head."""
    return parameter_counts(config)["matrices"] + config.vocab_size * config.width


def flops_per_token(config: GPTConfig, length: int) -> float:
    """Operations of forward and backward pass for one token, averaged over `length` positions.

    2 per weight forward and 4 backward for every matrix (embeddings are lookups), and attention
    over exactly the keys a query sees: causal, and within the layer's window. Conventions that
    count all `length` keys for every query give more operations, and so a higher utilization.
    Source: PaLM, arXiv 2204.02311, appendix B, without its full T x T attention.
    """
    counts = parameter_counts(config)
    weights = sum(counts[group] for group in MATRIX_GROUPS)
    if config.tied_head:
        weights += counts["embedding"]
    # Per key and channel: 2 for the score and 2 for the weighted sum, and twice that backward.
    keys = sum(visible_keys(length, window) for window in config.windows)
    return 6 * weights + 12 * keys * config.width


def visible_keys(length: int, window: int | None) -> float:
    """Keys that a query of causal attention sees, averaged over `length` positions."""
    span = length if window is None else min(length, window + 1)
    ramp = span * (span + 1) / 2  # the first queries see 1, 2, .. span keys
    return (ramp + (length - span) * span) / length
