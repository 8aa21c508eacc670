"""Which parameter is updated how: learning rates, betas and decays of each kind of parameter.

Owns: OptimConfig, the options of the optimizer, and the groups that follow from it. Does not own:
the steps (optimizer.py), schedules (schedules.py), or rates for other sizes (scaling.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch.nn import Parameter

from nanochat.gpt import GPT, GPTConfig
from nanochat.gpt.parameters import kind_of
from nanochat.optim import muon
from nanochat.optim.adamw import AdamWSettings
from nanochat.optim.groups import AdamWGroup, MuonGroup
from nanochat.optim.optimizer import Group, MuonAdamW
from nanochat.optim.scaling import REFERENCE_WIDTH
from nanochat.optim.sharding import Transport, choose_transport, matrix_buckets, tensor_buckets
from nanochat.system.config import option
from nanochat.system.distributed import Run

# AdamW's epsilon times the tokens of a step, from nanochat's 1e-10 at 2^19 tokens. A rare token's
# gradient is one token's share of the step's mean, so epsilon scales with 1 / tokens as well. With
# 1e-10 at small steps rounding noise becomes full-size updates: float64 runs that differ only in
# the order of summation were 1e-6 apart after 50 steps of 512 tokens, and are 2e-9 apart with this.
ADAMW_EPS_TOKENS = 1e-10 * 2**19
# AdamW needs smaller steps than Muon for the same matrices; only for --matrix-optimizer adamw.
ADAMW_MATRIX_LR_FACTOR = 0.1


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Learning rates and weight decay."""

    lr_scale: float = option(1.0, "factor on every learning rate", least=0)
    matrix_lr: float = option(0.02, "learning rate of the layers' matrices (Muon)", least=0)
    embedding_lr: float = option(
        0.3, "learning rate of the embeddings (AdamW) at width 768; scales with width^-1/2", least=0
    )
    head_lr: float = option(
        0.008,
        "learning rate of the output head (AdamW) at width 768; scales with width^-1/2",
        least=0,
    )
    scalar_lr: float = option(0.5, "learning rate of the learned scales (AdamW)", least=0)
    weight_decay: float = option(0.28, "decoupled weight decay of the layers' matrices", least=0)
    matrix_optimizer: str = option(
        "muon",
        "optimizer of the layers' matrices; muon has all refinements, the rest is for comparison",
        choices=("muon", "plain-muon", "adamw"),
    )


def build(model: GPT, cfg: OptimConfig, run: Run, *, tokens_per_step: int) -> MuonAdamW:
    """The optimizer of a GPT. Collective.

    tokens_per_step: over all ranks; determines AdamW's epsilon.
    Raises: AssertionError for a parameter that is not in gpt/parameters.py.
    """
    members: dict[str, dict[str, Parameter]] = {}
    for name, parameter in model.named_parameters():
        members.setdefault(kind_of(name).optimizer_group, {})[name] = parameter
    transport = choose_transport(run.rank, run.world_size, run.device)
    settings = adamw_settings(cfg, model.config, tokens_per_step)
    groups: list[Group] = []
    for group, named in members.items():
        # Embeddings and head have a row per token, and rows of rare tokens get few gradients:
        # orthogonalizing would raise their noise to full size. Hence Muon for inner matrices only.
        if group == "matrix" and cfg.matrix_optimizer != "adamw":
            groups += _muon_groups(named, cfg, run, transport)
        else:
            buckets = tensor_buckets(named, transport)
            # Only the matrices' decay is scheduled; the small decays of the rest are constant.
            groups.append(AdamWGroup(buckets, settings[group], scheduled_decay=group == "matrix"))
    return MuonAdamW(groups, run)


def adamw_settings(
    cfg: OptimConfig, model: GPTConfig, tokens_per_step: int
) -> dict[str, AdamWSettings]:
    """AdamW's settings for each group. Betas and decays are from nanochat's d12 sweeps."""
    # Adam's update has a fixed size per element whatever the gradient, so in a wider model the same
    # learning rate changes sums over the width by more. Muon's is scaled to its matrix already.
    wide = (REFERENCE_WIDTH / model.width) ** 0.5
    eps = ADAMW_EPS_TOKENS / tokens_per_step

    def of(lr: float, beta1: float, beta2: float, weight_decay: float) -> AdamWSettings:
        return AdamWSettings(
            lr=lr * cfg.lr_scale, beta1=beta1, beta2=beta2, weight_decay=weight_decay, eps=eps
        )

    head = of(cfg.head_lr * wide, 0.8, 0.96, 0.01)
    # A tied matrix computes the logits, for which the embedding's learning rate is too high.
    embedding = head if model.tied_head else of(cfg.embedding_lr * wide, 0.8, 0.995, 0.001)
    return {
        "matrix": of(cfg.matrix_lr * ADAMW_MATRIX_LR_FACTOR, 0.9, 0.95, cfg.weight_decay),
        "head": head,
        "embedding": embedding,
        # Decay would only shrink what the rows of rare pairs know.
        "pair_embedding": replace(embedding, weight_decay=0.0),
        "value_embedding": of(cfg.embedding_lr * 0.5 * wide, 0.8, 0.995, 0.01),
        # These multiply the residual stream in every layer, so they learn 100 times more slowly.
        "residual_scale": of(cfg.scalar_lr * 0.01, 0.8, 0.95, 0.05),
        "x0_scale": of(cfg.scalar_lr, 0.96, 0.95, 0.0),
        "scale": of(cfg.scalar_lr * 0.4, 0.8, 0.95, 0.0),
        "convolution": of(cfg.scalar_lr * 0.08, 0.8, 0.95, 0.0),
        "norm": of(cfg.scalar_lr * 0.01, 0.8, 0.95, 0.0),
    }


def _muon_groups(
    members: Mapping[str, Parameter], cfg: OptimConfig, run: Run, transport: Transport
) -> list[Group]:
    """One group per matrix shape, split into buckets of consecutive matrices, last layer first."""
    recipe = muon.MuonRecipe() if cfg.matrix_optimizer == "muon" else muon.PLAIN
    shapes: dict[torch.Size, list[str]] = {}
    # The backward pass finishes the last layer first, so its buckets can be sent first.
    for name in reversed(list(members)):
        shapes.setdefault(members[name].shape, []).append(name)
    groups: list[Group] = []
    for names in shapes.values():
        example = members[names[0]]
        groups.append(
            MuonGroup(
                matrix_buckets(names, members, transport),
                lr=cfg.matrix_lr * cfg.lr_scale,
                weight_decay=cfg.weight_decay,
                recipe=recipe,
                polar_dtype=_polar_dtype(example.dtype, run.compute_dtype),
            )
        )
    return groups


def _polar_dtype(weights: torch.dtype, compute: torch.dtype) -> torch.dtype:
    """bf16 if the run computes in bf16; otherwise at least fp32, as fp16 lacks the range."""
    if weights == torch.float64:
        return weights
    return torch.bfloat16 if compute == torch.bfloat16 else torch.float32
