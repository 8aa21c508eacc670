"""What a sweep over model sizes found, in lines for the terminal and as a page with plots.

Owns wording and drawing. The fits are isoflop's, the look of the page is the run report's.
"""

import math
from collections.abc import Sequence
from html import escape

import numpy as np

from nanochat.optim.scaling import DEFAULT_RATIO
from nanochat.report import page, plots
from nanochat.report.plots import Curve, short_number
from nanochat.scaling_laws.isoflop import Analysis, BudgetFit, Estimate, PowerLaw

COLORS = ("base", "sft", "mid", "rl", "tok")  # of the budgets, from the smallest; then again
STEPS = 60  # places at which a smooth line is drawn
MARGIN = 1.25  # that the laws are drawn beyond their budgets, as a factor


def lines(analysis: Analysis) -> list[str]:
    """The optimum of each budget, and the laws through them."""
    heads = ("FLOPs", "best parameters", "best tokens", "tokens a parameter", "bits a byte")
    rows = [_row(fit) for fit in analysis.budgets if fit.problem is None]
    widths = [max(len(cell) for cell in column) for column in zip(heads, *rows, strict=True)]
    found = [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in ((heads, *rows) if rows else ())
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
        "Intervals hold the middle 95% of what noise of the runs' size makes of the fits.",
    )


def with_interval(estimate: Estimate, style: str = "short") -> str:
    """A value and its interval, in the short numbers of an axis or with so many decimals.

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
    """To three digits, which is more than any such estimate is worth."""
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
    """The ratio beside the default one, and what the intervals rest on."""
    fitted = [fit for fit in analysis.budgets if fit.ratio is not None]
    notes = []
    if fitted:
        last = fitted[-1]
        assert last.ratio is not None
        notes.append(
            f"tokens a parameter at {last.budget:.3g} FLOPs: {with_interval(last.ratio, '.3g')}; "
            f"base training's default --ratio is {DEFAULT_RATIO:g}"
        )
    if len(fitted) == 2:
        notes.append("two optima make a law without a check; a third budget would be one")
    if analysis.noise is None:
        notes.append(
            "no intervals: more than three sizes, or several --seeds, would tell the noise"
        )
    elif fitted:
        notes.append(f"noise of a run about its parabola: {analysis.noise:.2g} bits a byte")
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
        tiles.append(("tokens a parameter", f"{fitted[-1].ratio.value:.3g}", remark))
    runs = sum(len(fit.points) for fit in analysis.budgets)
    tiles.append(("runs", f"{runs}", f"of {len(analysis.budgets)} budgets"))
    return tiles


def _color(index: int) -> str:
    return COLORS[index % len(COLORS)]


def _curves(analysis: Analysis) -> str:
    """Losses over sizes, a colour for each budget; an optimum is a point in a circle."""
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
    """The law, and before it the area of its interval, where there is one."""
    found = [law.at(c) for c in compute]
    line = [(c, e.value) for c, e in zip(compute, found, strict=True)]
    low = [(c, e.low) for c, e in zip(compute, found, strict=True) if e.low is not None]
    high = [(c, e.high) for c, e in zip(compute, found, strict=True) if e.high is not None]
    around = [Curve("95%", [*low, *reversed(high)], "main", "area")] if low and high else []
    return [*around, Curve(name, line)]


def _between(values: Sequence[float], margin: float = 1.0) -> list[float]:
    """Places from the smallest to the largest value, evenly in logs."""
    low, high = math.log(min(values) / margin), math.log(max(values) * margin)
    return [float(x) for x in np.exp(np.linspace(low, high, STEPS))]


def _optima(analysis: Analysis) -> str:
    heads = ["FLOPs", "best parameters", "best tokens", "tokens a parameter", "bits per byte"]
    rows = [_row(fit) for fit in analysis.budgets if fit.problem is None]
    missing = [f"{f.budget:.3g} FLOPs: {f.problem}" for f in analysis.budgets if f.problem]
    notes = [*missing, *_notes(analysis)]
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return (page.table(heads, rows) if rows else "") + f'<ul class="notes">{items}</ul>'
