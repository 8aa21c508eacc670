"""A sweep's results, as lines for the terminal and as a page with plots.

Owns: texts and plots. Does not own: the fits (isoflop.py) or the page's style (report/page.py).
"""

import math
from collections.abc import Sequence
from html import escape

import numpy as np

from nanochat.optim.scaling import DEFAULT_RATIO
from nanochat.report import page, plots
from nanochat.report.plots import Curve, short_number
from nanochat.scaling_laws.isoflop import Analysis, BudgetFit, Estimate, PowerLaw

COLORS = ("base", "sft", "mid", "rl", "tok")  # of the budgets, smallest first, then repeating
HEADS = ("FLOPs", "best parameters", "best tokens", "tokens per parameter", "bits per byte")
STEPS = 60  # points of a smooth line
MARGIN = 1.25  # factor by which the laws are drawn beyond their budgets


def lines(analysis: Analysis) -> list[str]:
    """The optimum of each budget, and the laws through them."""
    rows = [_row(fit) for fit in analysis.budgets if fit.problem is None]
    widths = [max(len(cell) for cell in column) for column in zip(HEADS, *rows, strict=True)]
    found = [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in ((HEADS, *rows) if rows else ())
    ]
    found += [f"{fit.budget:.3g} FLOPs: {fit.problem}" for fit in analysis.budgets if fit.problem]
    return [*found, *_law_lines(analysis), *_notes(analysis)]


def render(analysis: Analysis, *, name: str, lead: str, rows: Sequence[Sequence[str]]) -> str:
    """The page; rows are (run, parameters, tokens, bits per byte, time) of every run."""
    heads = ["run", "parameters", "tokens", "bits per byte", "time"]
    sections = [
        ("curves", "Loss by size, for equal compute", _curves(analysis)),
        ("laws", "The best size and number of tokens", _laws(analysis)),
        ("optima", "Optima", _optima(analysis)),
        ("runs", "All runs", page.table(heads, rows) if rows else ""),
    ]
    return page.page(
        [section for section in sections if section[2]],
        title=f"scaling laws {name}",
        eyebrow="nanochat scaling laws",
        heading=name,
        lead=lead,
        tiles=_tiles(analysis),
        footer="Parameters are those that scaling laws count: the layers' matrices and the head. "
        "Intervals hold the middle 95% of the fits under noise as large as the runs'.",
    )


def with_interval(estimate: Estimate, style: str = "short") -> str:
    """A value and its interval, in short numbers as on an axis, or in a format such as ".2f".

    >>> with_interval(Estimate(1_250_000, 1_100_000, 1_500_000))
    '1.25M [1.1M, 1.5M]'
    >>> with_interval(Estimate(0.5), ".2f")
    '0.50 [unknown]'
    """

    def text(value: float) -> str:
        if style != "short":
            return format(value, style)
        return short_number(value) if abs(value) < 1e21 else f"{value:.1e}"

    if estimate.low is None or estimate.high is None:
        return f"{text(estimate.value)} [unknown]"
    return f"{text(estimate.value)} [{text(estimate.low)}, {text(estimate.high)}]"


def _row(fit: BudgetFit) -> tuple[str, ...]:
    assert fit.parameters and fit.tokens and fit.ratio and fit.loss is not None
    return (
        f"{fit.budget:.3g}",
        with_interval(_rounded(fit.parameters)),
        with_interval(_rounded(fit.tokens)),
        with_interval(fit.ratio, ".3g"),
        f"{fit.loss:.4f}",
    )


def _rounded(estimate: Estimate) -> Estimate:
    """Rounded to three digits: no such estimate is more accurate."""
    ends = (v if v is None else float(f"{v:.3g}") for v in (estimate.low, estimate.high))
    return Estimate(float(f"{estimate.value:.3g}"), *ends)


def _law_lines(analysis: Analysis) -> list[str]:
    if analysis.parameters is None or analysis.tokens is None:
        return [f"no power law: {analysis.problem}"]
    return [
        f"best {name} = {law.coefficient.value:.3g} x FLOPs ^ {law.exponent.value:.3f}"
        f"   (exponent {with_interval(law.exponent, '.3f')})"
        for name, law in (("parameters", analysis.parameters), ("tokens", analysis.tokens))
    ]


def _notes(analysis: Analysis) -> list[str]:
    """The ratio compared to the default, and the noise behind the intervals."""
    fitted = [fit for fit in analysis.budgets if fit.ratio is not None]
    notes = []
    if fitted:
        last = fitted[-1]
        assert last.ratio is not None
        notes.append(
            f"tokens per parameter at {last.budget:.3g} FLOPs: {with_interval(last.ratio, '.3g')}; "
            f"base training's default --ratio is {DEFAULT_RATIO:g}"
        )
    if len(fitted) == 2:
        notes.append("two optima always fit a law; a third budget would test it")
    if analysis.noise is None:
        notes.append(
            "no intervals: estimating the noise takes more than three sizes or several --seeds"
        )
    elif fitted:
        notes.append(f"noise of a run around its parabola: {analysis.noise:.2g} bits per byte")
    return notes


def _tiles(analysis: Analysis) -> list[tuple[str, str, str]]:
    tiles = []
    for name, law in (("parameters", analysis.parameters), ("tokens", analysis.tokens)):
        if law is not None:
            ends = with_interval(law.exponent, ".2f").partition(" ")[2]
            tiles.append((f"exponent of {name}", f"{law.exponent.value:.2f}", ends))
    fitted = [fit for fit in analysis.budgets if fit.ratio is not None]
    if fitted and fitted[-1].ratio is not None:
        remark = f"at {fitted[-1].budget:.3g} FLOPs; the default is {DEFAULT_RATIO:g}"
        tiles.append(("tokens per parameter", f"{fitted[-1].ratio.value:.3g}", remark))
    runs = sum(len(fit.points) for fit in analysis.budgets)
    tiles.append(("runs", f"{runs}", f"of {len(analysis.budgets)} budgets"))
    return tiles


def _color(index: int) -> str:
    return COLORS[index % len(COLORS)]


def _curves(analysis: Analysis) -> str:
    """Losses over sizes, a color for each budget; an optimum is a circled point."""
    curves: list[Curve] = []
    for i, fit in enumerate(analysis.budgets):
        label, kind = f"{fit.budget:.3g} FLOPs", f"main {_color(i)}"
        curves.append(Curve(label, [(p.parameters, p.loss) for p in fit.points], kind, "dots"))
        if fit.curve is not None:
            smooth = [(n, fit.loss_at(n)) for n in _between([p.parameters for p in fit.points])]
            curves.append(Curve(label, smooth, f"faint {_color(i)}" if fit.problem else kind))
        if fit.parameters is not None and fit.loss is not None:
            best = [(fit.parameters.value, fit.loss)]
            curves.append(Curve(f"optimum of {label}", best, f"best {_color(i)}", "dots"))
    chart = plots.line_chart(curves, x_name="parameters", title="bits per byte by size", log_x=True)
    items = "".join(
        f'<span class="{_color(i)}"><i></i>{fit.budget:.3g} FLOPs</span>'
        for i, fit in enumerate(analysis.budgets)
    )
    figure = (
        f'<figure class="single"><figcaption>validation bits per byte</figcaption>{chart}</figure>'
    )
    return f'<p class="legend">{items}</p>{figure}' if chart else ""


def _laws(analysis: Analysis) -> str:
    if analysis.parameters is None or analysis.tokens is None:
        return f'<p class="remark">No power law: {escape(analysis.problem or "")}.</p>'
    fitted = [fit for fit in analysis.budgets if fit.parameters and fit.tokens]
    compute = _between([fit.budget for fit in fitted], MARGIN)
    figures = []
    for name, law, found in (
        ("parameters", analysis.parameters, [fit.parameters for fit in fitted]),
        ("tokens", analysis.tokens, [fit.tokens for fit in fitted]),
    ):
        optima = [(fit.budget, e.value) for fit, e in zip(fitted, found, strict=True) if e]
        curves = [*_band(name, law, compute), Curve(f"best {name}", optima, "best", "dots")]
        chart = plots.line_chart(
            curves, x_name="FLOPs", title=f"best {name} by compute", log_x=True, log_y=True
        )
        power = f"~ FLOPs<sup>{law.exponent.value:.2f}</sup>"
        figures.append(
            f"<figure><figcaption>best number of {name} <b>{power}</b></figcaption>{chart}</figure>"
        )
    return f'<div class="grid">{"".join(figures)}</div>'


def _band(name: str, law: PowerLaw, compute: Sequence[float]) -> list[Curve]:
    """The law's line on top of the area of its interval, if it has one."""
    found = [law.at(c) for c in compute]
    line = [(c, e.value) for c, e in zip(compute, found, strict=True)]
    low = [(c, e.low) for c, e in zip(compute, found, strict=True) if e.low is not None]
    high = [(c, e.high) for c, e in zip(compute, found, strict=True) if e.high is not None]
    around = [Curve("95%", [*low, *reversed(high)], "main", "area")] if low and high else []
    return [*around, Curve(name, line)]


def _between(values: Sequence[float], margin: float = 1.0) -> list[float]:
    """Points from the smallest to the largest value, evenly spaced in logs."""
    low, high = math.log(min(values) / margin), math.log(max(values) * margin)
    return [float(x) for x in np.exp(np.linspace(low, high, STEPS))]


def _optima(analysis: Analysis) -> str:
    rows = [_row(fit) for fit in analysis.budgets if fit.problem is None]
    missing = [f"{f.budget:.3g} FLOPs: {f.problem}" for f in analysis.budgets if f.problem]
    notes = [*missing, *_notes(analysis)]
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return (page.table(HEADS, rows) if rows else "") + f'<ul class="notes">{items}</ul>'
