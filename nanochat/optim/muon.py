"""Muon: the update of weight matrices, for stacks of matrices of one shape.

Owns: the mathematics of one step. Does not own: which matrices are updated, by which rank and with
which learning rates (settings.py).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

Polynomial = tuple[float, float, float]
# Five odd quintic polynomials x (a + b x^2 + c x^4), each the minimax solution for the interval
# that its predecessors leave; their composition maps singular values of 1e-3..1 to 0.85..1.14.
# Source: Polar Express, arXiv 2505.16932, algorithm 1, for 5 steps and a safety factor of 2%.
POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
# bf16 rounding may push a norm above 1, where the first polynomial diverges.
POLAR_SAFETY = 1.02
# Far below any useful gradient, and its square is still a normal fp32 number.
TINY = 1e-15


@dataclass(frozen=True, kw_only=True)
class MuonRecipe:
    """Which refinements of Muon are on; all off is the original method of 2024.

    row_equilibration: rows get equal norms before orthogonalization (MuonEq).
    renormalize: the orthogonalized update gets the norm of an exactly orthogonal one (Muon+).
    variance_beta: decay of the second moment of each neuron; None: not used (NorMuon,
        arXiv 2510.05491).
    cautious_decay: weights decay only where the update also shrinks them (arXiv 2510.12402).
    """

    nesterov: bool = True
    row_equilibration: bool = True
    renormalize: bool = True
    variance_beta: float | None = 0.9
    cautious_decay: bool = True


PLAIN = MuonRecipe(
    row_equilibration=False, renormalize=False, variance_beta=None, cautious_decay=False
)


def polar_express(stack: Tensor, dtype: torch.dtype) -> Tensor:
    """Approximate the nearest semi-orthogonal matrix of each matrix: U V^T of its SVD.

    stack: (L, R, C), any scale. Computes in `dtype` and returns that dtype. Zero stays zero.
    Source: arXiv 2505.16932.
    """
    # An odd polynomial of a matrix, a X + b (X X^T) X + c (X X^T)^2 X, acts on its singular values
    # and keeps its singular vectors. Composed polynomials that push every value toward 1 therefore
    # orthogonalize with matrix products alone, which unlike an SVD are fast, also in bfloat16.
    # The Frobenius norm is at least the largest singular value: after the division all are below 1.
    norms = stack.norm(dim=(-2, -1), keepdim=True)  # (L, 1, 1)
    x = torch.empty_like(stack, dtype=dtype)
    torch.div(stack, norms * POLAR_SAFETY + TINY, out=x)
    tall = x.size(-2) > x.size(-1)
    if tall:  # so that the Gram matrix has the size of the shorter side
        x = x.mT.contiguous()
    # Two polynomials at once multiply the longer side half as often, at the cost of three more
    # products of the shorter one. The first comes alone: before it the Gram matrix, which a pair
    # follows in bf16, has values too small for that.
    alone = _alone(*x.shape[-2:])
    for a, b, c in POLAR_EXPRESS[:alone]:
        gram = x @ x.mT  # [L, n, n] with n the shorter side
        # Inner: b gram + c gram^2; outer: a x + that times x. Sums are fused into the products.
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    rest = iter(POLAR_EXPRESS[alone:])
    for first, second in zip(rest, rest, strict=True):
        x = _pair_factor(x @ x.mT, first, second) @ x
    return x.mT if tall else x


def polar_flops(rows: int, columns: int) -> int:
    """FLOPs of `polar_express` for one matrix."""
    short, long = sorted((rows, columns))
    alone = _alone(short, long)
    pairs = (len(POLAR_EXPRESS) - alone) // 2
    with_the_matrix = 2 * (alone + pairs) * 2 * short**2 * long
    return with_the_matrix + (alone + 5 * pairs) * 2 * short**3


def _alone(short: int, long: int) -> int:
    """How many of the polynomials are applied one by one; the rest in pairs."""
    return 1 if long >= 2 * short else len(POLAR_EXPRESS)


def _pair_factor(gram: Tensor, first: Polynomial, second: Polynomial) -> Tensor:
    """The factor by which two polynomials in turn multiply X, from X X^T; all (L, n, n)."""
    a, b, c = first
    inner = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
    factor = inner.clone()
    factor.diagonal(dim1=-2, dim2=-1).add_(a)
    # All of these are polynomials of one matrix, so they commute: the Gram matrix of factor X is
    # factor gram factor.
    half = torch.baddbmm(gram, inner, gram, beta=a)
    gram = torch.baddbmm(half, half, inner, beta=a)
    a, b, c = second
    inner = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
    return torch.baddbmm(factor, inner, factor, beta=a)


def variance_dim(rows: int, columns: int) -> int:
    """The dimension that NorMuon averages over: the longer side keeps one moment per index."""
    # The columns of a tall orthogonalized matrix have norm 1 already; only its rows differ.
    return -1 if rows >= columns else -2


def variance_shape(rows: int, columns: int) -> tuple[int, int]:
    """The shape of one matrix's second moments."""
    return (rows, 1) if variance_dim(rows, columns) == -1 else (1, columns)


def shape_lr_scale(rows: int, columns: int) -> float:
    """Factor on the learning rate: tall matrices then change outputs as much as square ones."""
    # An orthogonal tall matrix maps an input to an output of the same norm, which is spread over
    # more channels: the change of each is smaller by the root of rows / columns.
    return max(1.0, rows / columns) ** 0.5


@torch.no_grad()
def muon_update(
    weights: Tensor,
    grads: Tensor,
    momentum: Tensor,
    variance: Tensor,
    *,
    lr: float | Tensor,
    momentum_beta: float | Tensor,
    weight_decay: float | Tensor | None = None,
    recipe: MuonRecipe,
    polar_dtype: torch.dtype,
    finite: Tensor | None = None,
) -> None:
    """One step of Muon on a stack of matrices, in place; `grads` is overwritten.

    weights, grads, momentum: (L, R, C). variance: (L, R, 1) or (L, 1, C), see `variance_shape`.
    lr, momentum_beta, weight_decay: numbers, or 0-d tensors on the CPU, which can change between
    compiled calls. finite: 0-d bool on the device; if False, nothing changes.
    With cautious decay a matrix whose gradients have all been zero does not change.
    """
    # Gradients of matrices are dominated by a few directions. Orthogonalizing the update makes all
    # its singular values about 1, so that rare directions are learned as fast as frequent ones: it
    # is the steepest descent for a limit on the spectral norm of the update.
    rows, columns = weights.shape[-2:]
    # Nothing here waits for the device: a step that is not finite is computed and has no effect.
    if finite is not None:  # momentum interpolated toward itself stays exactly the same
        torch.where(finite, grads, momentum, out=grads)
    # Momentum averages the noise of batches out. Nesterov adds the newest gradient once more: it
    # looks ahead to where the momentum will be after this step.
    momentum.lerp_(grads, 1 - momentum_beta)
    update = grads.lerp_(momentum, momentum_beta) if recipe.nesterov else momentum.clone()
    if recipe.row_equilibration:
        # Equal row norms improve the conditioning, so the polynomials come closer to orthogonal.
        update.div_(update.norm(dim=-1, keepdim=True).clamp_min_(TINY))
    update = polar_express(update, polar_dtype).to(weights.dtype)
    # Renormalization and variance reduction only scale rows, columns and matrices, so their factors
    # are combined first: one pass over the matrices instead of four.
    scale = _update_scale(update, variance, recipe, finite)
    lr = lr * shape_lr_scale(rows, columns)
    # Factors are tensors because addcmul_(value=...) refuses numbers that float32 cannot represent.
    keep: float | Tensor = 1.0 if finite is None else finite
    if weight_decay is not None:
        # Where update and weight have the same sign, the update shrinks the weight and decay
        # agrees. Elsewhere decay would work against what the gradient asks for.
        if recipe.cautious_decay:
            decays = (update * weights).gt_(0)  # 1 for weights that decay, 0 for others
        else:
            decays = torch.ones_like(scale)
        weights.addcmul_(weights, decays.mul_(keep * (lr * weight_decay)), value=-1)
    weights.addcmul_(update, scale * (keep * lr), value=-1)


def _update_scale(
    update: Tensor, variance: Tensor, recipe: MuonRecipe, finite: Tensor | None
) -> Tensor:
    """The factor on the orthogonalized update, (L, 1, 1), (L, R, 1) or (L, 1, C).

    Updates `variance` in place. Variance reduction preserves the norm of each matrix.
    """
    rows, columns = update.shape[-2:]
    dim = variance_dim(rows, columns)
    sums = torch.linalg.vector_norm(update, dim=dim, keepdim=True).square_()  # (L, R, 1), (L, 1, C)
    norms = sums.sum(dim=(-2, -1), keepdim=True).sqrt_()  # (L, 1, 1)
    scale = torch.ones_like(norms)
    # An orthogonal R x C matrix has the Frobenius norm sqrt(min(R, C)); the polynomials miss it a
    # little, differently for every matrix and step.
    if recipe.renormalize:
        scale = min(rows, columns) ** 0.5 / norms.clamp_min(TINY)
    if recipe.variance_beta is None:
        return scale
    # NorMuon: after orthogonalization rows (or columns) still have different sizes. Dividing by a
    # running root mean square, as Adam does for each element, gives each neuron an equal step at
    # the cost of one number per neuron.
    sums.mul_(scale.square())
    means = sums / update.size(dim)
    if finite is not None:
        means = means.where(finite, variance)
    variance.lerp_(means, 1 - recipe.variance_beta)
    per_neuron = variance.clamp_min(1e-10).rsqrt_()
    # Only the distribution over neurons changes: the norm, and with it the learning rate, does not.
    new_norms = (sums * per_neuron.square()).sum(dim=(-2, -1), keepdim=True).sqrt_()
    return scale * per_neuron * (norms * scale / new_norms.clamp_min(TINY))
