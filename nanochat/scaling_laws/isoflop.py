"""The best model size for a compute budget, from runs that all cost the same.

Owns: the arithmetic: a parabola through the losses of a budget, its minimum, power laws through the
minima, and confidence intervals. Does not own: runs, files or models.

Why a parabola in log N: with C ~ 6 N D fixed, a smaller model sees more tokens and a larger one
fewer. The loss A / N^a + B / D^b + E is then a sum of two exponentials in log N, one falling and
one rising; a parabola approximates it near the minimum. Sizes far away from it add a bias.

What the exponents mean: N ~ C^p and D ~ C^q with p + q about 1. At p = q = 0.5 (Chinchilla) size
and tokens grow alike, and the best D / N is the same for every budget; with p above 0.5 larger
budgets want relatively larger models.

Source: Chinchilla, arXiv 2203.15556, section 3.2. The intervals assume that runs deviate from their
parabola by noise of one variance, estimated from all budgets together. The noise is redrawn many
times (its variance too, which so few runs determine only roughly) and everything is refitted; an
interval holds the middle 95% of the results. It does not cover a true curve that is not a parabola,
beyond what the runs show.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

LEVEL = 0.95
DRAWS = 4000  # enough that the ends of an interval err by a twentieth of its width
FARTHEST = 30.0  # log parameters from the middle of the sizes; beyond it exp would overflow
MIN_SIZES = 3  # for a parabola
MIN_BUDGETS = 2  # for a power law


@dataclass(frozen=True, kw_only=True)
class Point:
    """A run: what it was given, and its final loss."""

    budget: float  # intended FLOPs: runs with the same budget are compared
    parameters: float
    tokens: float
    loss: float


@dataclass(frozen=True)
class Estimate:
    """A value and the ends of its interval, which are None if the runs do not determine them."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True)
class BudgetFit:
    """The fit to the runs of one budget; without an optimum, `problem` says why.

    curve: coefficients of the loss over log(parameters) - center, highest power first.
    """

    budget: float
    points: tuple[Point, ...]
    problem: str | None = None
    at_border: bool = False
    center: float = 0.0
    curve: tuple[float, float, float] | None = None
    loss: float | None = None
    parameters: Estimate | None = None
    tokens: Estimate | None = None
    ratio: Estimate | None = None  # tokens per parameter

    def loss_at(self, parameters: float) -> float:
        """The parabola's loss."""
        assert self.curve is not None
        return float(np.polyval(self.curve, math.log(parameters) - self.center))


@dataclass(frozen=True, kw_only=True)
class PowerLaw:
    """coefficient * compute ** exponent, with the laws of all draws for its intervals.

    center: log compute at which `line` (slope, height) and `drawn_lines` (draws, 2) are centered.
    """

    exponent: Estimate
    coefficient: Estimate
    center: float
    line: tuple[float, float]
    drawn_lines: np.ndarray

    def at(self, compute: float) -> Estimate:
        """The law's value for `compute` FLOPs."""
        x = math.log(compute) - self.center
        slopes, heights = self.drawn_lines.T
        return _exp(_estimate(self.line[0] * x + self.line[1], slopes * x + heights))


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """All budgets and the laws through their optima; without laws, `problem` says why.

    noise: standard deviation of a run's loss around its parabola; None without degrees of freedom.
    """

    budgets: tuple[BudgetFit, ...]
    noise: float | None
    problem: str | None = None
    parameters: PowerLaw | None = None
    tokens: PowerLaw | None = None


@dataclass(frozen=True, kw_only=True)
class _Parabola:
    """A least-squares parabola through the runs of a budget, centered at their middle size."""

    points: tuple[Point, ...]
    center: float
    coefficients: np.ndarray  # (3,), highest power first
    spread: np.ndarray  # (3, 3): maps unit noise to the coefficients' errors
    squares: float  # sum of the squared residuals


def analyze(points: Sequence[Point], *, draws: int = DRAWS, seed: int = 0) -> Analysis:
    """Fit every budget's optimum and the laws through them.

    Runs without a finite loss are left out. Too few runs for a fit raise no error: `problem` of the
    budget, or of the analysis, says what is missing.
    """
    finite = [point for point in points if math.isfinite(point.loss)]
    budgets = sorted({point.budget for point in points})
    groups = {b: tuple(p for p in finite if p.budget == b) for b in budgets}
    curves = {b: _parabola(group) for b, group in groups.items()}
    noise, freedom = _noise([curve for curve in curves.values() if curve])
    rng = np.random.default_rng(seed)
    # Chi-square draws of the variance give the coefficients their Student's t distribution.
    sizes = noise * np.sqrt(freedom / rng.chisquare(freedom, draws)) if freedom else np.zeros(0)
    fits: list[BudgetFit] = []
    optima: list[
        tuple[float, np.ndarray]
    ] = []  # of budgets with one: log parameters, and their draws
    for budget, group in groups.items():
        curve = curves[budget]
        fit = BudgetFit(budget=budget, points=group, problem=_too_few(group))
        if curve is not None:
            drawn = _draw(curve, sizes, rng)
            fit = _fit(budget, curve, drawn)
            if fit.problem is None:
                optima.append((_minimum(curve.coefficients), _minima(drawn)))
        fits.append(fit)
    analysis = Analysis(budgets=tuple(fits), noise=noise if freedom else None)
    return _with_laws(analysis, optima)


def _too_few(group: Sequence[Point]) -> str:
    count = len({point.parameters for point in group})
    sizes = "no size has" if not count else "one size has" if count == 1 else f"{count} sizes have"
    return f"only {sizes} a loss, a parabola needs {MIN_SIZES}" if count else f"{sizes} a loss"


def _parabola(points: tuple[Point, ...]) -> _Parabola | None:
    """The parabola of loss over log parameters; None with fewer than three sizes."""
    if len({point.parameters for point in points}) < MIN_SIZES:
        return None
    x = np.log([point.parameters for point in points])
    y = np.array([point.loss for point in points])
    center = float(x.min() + x.max()) / 2
    # Centered, as powers of uncentered logs are nearly collinear. The coefficients' covariance is
    # (R^T R)^-1 times the noise variance; `spread` is its root.
    q, r = np.linalg.qr(np.vander(x - center, 3))  # [runs, 3], [3, 3]
    spread = np.linalg.inv(r)
    coefficients = spread @ (q.T @ y)
    residuals = y - np.vander(x - center, 3) @ coefficients
    return _Parabola(
        points=points,
        center=center,
        coefficients=coefficients,
        spread=spread,
        squares=float(residuals @ residuals),
    )


def _noise(curves: Sequence[_Parabola]) -> tuple[float, int]:
    """The standard deviation of a run around its parabola, and its degrees of freedom."""
    freedom = sum(len(curve.points) - 3 for curve in curves)
    squares = sum(curve.squares for curve in curves)
    return (math.sqrt(squares / freedom) if freedom else 0.0), freedom


def _draw(curve: _Parabola, sizes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Coefficients (draws, 3) under redrawn noise, whose deviation per draw is in `sizes`."""
    errors = rng.standard_normal((len(sizes), 3)) @ curve.spread.T
    return curve.coefficients + sizes[:, None] * errors


def _minimum(coefficients: np.ndarray) -> float:
    """Where a parabola that opens upward is lowest."""
    return float(-coefficients[1] / (2 * coefficients[0]))


def _minima(drawn: np.ndarray) -> np.ndarray:
    """Where parabolas (draws, 3) are lowest; NaN for those that open downward."""
    upright = drawn[:, 0] > 0
    curvature = np.where(upright, drawn[:, 0], 1.0)
    lowest = np.clip(-drawn[:, 1] / (2 * curvature), -FARTHEST, FARTHEST)
    return np.where(upright, lowest, np.nan)


def _fit(budget: float, curve: _Parabola, drawn: np.ndarray) -> BudgetFit:
    """The budget's optimum, or why it has none."""
    a, b, c = (float(value) for value in curve.coefficients)
    fit = BudgetFit(budget=budget, points=curve.points, center=curve.center, curve=(a, b, c))
    border = _border(curve)
    if border is not None:
        return replace(fit, problem=border, at_border=True)
    if a <= 0:
        problem = "the losses bend downward: noise hides the minimum; give more --seeds"
        return replace(fit, problem=problem)
    best, minima = _minimum(curve.coefficients), _minima(drawn)
    log_n, log_ns = best + curve.center, minima + curve.center
    log_d, log_ds = (_log_tokens(curve.points, value) for value in (log_n, log_ns))
    return replace(
        fit,
        loss=float(np.polyval(curve.coefficients, best)),
        parameters=_exp(_estimate(log_n, log_ns)),
        tokens=_exp(_estimate(float(log_d), log_ds)),
        ratio=_exp(_estimate(float(log_d) - log_n, log_ds - log_ns)),
    )


def _border(curve: _Parabola) -> str | None:
    """Why the runs do not enclose the optimum; None if they do."""
    sizes, means = _means(curve.points)
    at = int(np.argmin(means))
    a = curve.coefficients[0]
    reach = (math.log(sizes[-1]) - math.log(sizes[0])) / 2
    lowest = _minimum(curve.coefficients) if a > 0 else 0.0
    if at == 0 or lowest <= -reach:
        return f"the optimum is at or below the smallest size, {sizes[0]:,.0f}; try smaller ones"
    if at == len(sizes) - 1 or lowest >= reach:
        return f"the optimum is at or above the largest size, {sizes[-1]:,.0f}; try larger ones"
    return None


def _means(points: Sequence[Point]) -> tuple[np.ndarray, np.ndarray]:
    """The sizes in order, and the mean loss of each."""
    sizes = np.array(sorted({point.parameters for point in points}))
    losses = [[p.loss for p in points if p.parameters == size] for size in sizes]
    return sizes, np.array([sum(found) / len(found) for found in losses])


def _log_tokens(points: Sequence[Point], log_n: float | np.ndarray) -> np.ndarray:
    """Log of the tokens a budget pays for at sizes between the runs'; beyond them ~ 1 / size."""
    tokens = {point.parameters: point.tokens for point in points}
    x = np.log(sorted(tokens))
    y = np.log([tokens[size] for size in sorted(tokens)])
    inside = np.clip(log_n, x[0], x[-1])
    return np.interp(inside, x, y) - (log_n - inside)


def _with_laws(analysis: Analysis, optima: Sequence[tuple[float, np.ndarray]]) -> Analysis:
    """Add the power laws through the budgets' optima, given with their draws."""
    fitted = [fit for fit in analysis.budgets if fit.problem is None]
    if len(fitted) < MIN_BUDGETS:
        count = "no budget has" if not fitted else "only one budget has"
        return replace(analysis, problem=f"{count} an optimum, a power law needs {MIN_BUDGETS}")
    compute = np.log([fit.budget for fit in fitted])
    log_n = np.array([best + fit.center for fit, (best, _) in zip(fitted, optima, strict=True)])
    drawn_n = np.stack([d + fit.center for fit, (_, d) in zip(fitted, optima, strict=True)])
    log_d, drawn_d = (
        np.stack([_log_tokens(fit.points, x) for fit, x in zip(fitted, values, strict=True)])
        for values in (log_n, drawn_n)
    )
    return replace(
        analysis,
        parameters=_law(compute, log_n, drawn_n),
        tokens=_law(compute, log_d, drawn_d),
    )


def _law(compute: np.ndarray, values: np.ndarray, drawn: np.ndarray) -> PowerLaw:
    """Least-squares lines in logs; compute, values (budgets,), drawn (budgets, draws)."""
    center = float(compute.mean())
    x = compute - center
    slope, height = float(x @ values / (x @ x)), float(values.mean())
    lines = np.stack([x @ drawn / (x @ x), drawn.mean(axis=0)], axis=1)
    from_zero = _estimate(height - slope * center, lines[:, 1] - lines[:, 0] * center)
    return PowerLaw(
        exponent=_estimate(slope, lines[:, 0]),
        coefficient=_exp(from_zero),
        center=center,
        line=(slope, height),
        drawn_lines=lines,
    )


def _estimate(value: float, drawn: np.ndarray) -> Estimate:
    """A value with the interval of its draws, or without if too many draws have no value."""
    known = drawn[np.isfinite(drawn)]
    if len(known) == 0 or len(known) < LEVEL * len(drawn):
        return Estimate(value)
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, float(low), float(high))


def _exp(log: Estimate) -> Estimate:
    ends = (None if end is None else _bounded_exp(end) for end in (log.low, log.high))
    return Estimate(_bounded_exp(log.value), *ends)


def _bounded_exp(value: float) -> float:
    return math.exp(min(max(value, -700.0), 700.0))
