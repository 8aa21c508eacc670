"""report.html: one self-contained page without scripts, in light and dark.

Owns: the page's order and markup. Does not own: its style (report.css) or its plots (`plots`).
"""

import importlib.resources
from collections.abc import Sequence
from functools import partial
from html import escape
from typing import Any

from nanochat.report import data, plots
from nanochat.report.data import RunRecord, StageData
from nanochat.report.plots import Bar, Curve
from nanochat.system.metrics import duration

Sections = list[tuple[str, str, str]]  # (anchor, heading, body)
TOKENIZER_COLORS = ("tok", "other", "base")  # ours first


def render(run: RunRecord, *, written: str) -> str:
    """The complete page; `written` is the date and time it shows."""
    return page(
        _sections(run),
        title=f"run {run.name}",
        eyebrow="nanochat training report",
        heading=run.name,
        lead=_lead(run, written),
        tiles=data.made("headline", lambda: data.headline(run), []),
        footer="Accuracies are shown with one standard error. Colors show the stage that "
        "trained the model.",
    )


def page(
    sections: Sections,
    *,
    title: str,
    eyebrow: str,
    heading: str,
    lead: str,
    tiles: Sequence[tuple[str, str, str]],
    footer: str,
) -> str:
    """A self-contained page of sections with links to them; tiles are (name, figure, note)."""
    style = (importlib.resources.files("nanochat.report") / "report.css").read_text(
        encoding="utf-8"
    )
    links = "".join(f'<a href="#{anchor}">{escape(title)}</a>' for anchor, title, _ in sections)
    body = "".join(
        f'<section id="{anchor}"><h2>{escape(title)}</h2>{text}</section>'
        for anchor, title, text in sections
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>nanochat: {escape(title)}</title><style>{style}</style></head>"
        f'<body><header><p class="eyebrow">{escape(eyebrow)}</p><h1>{escape(heading)}</h1>'
        f'<p class="lead">{escape(lead)}</p>{_tiles(tiles)}</header>'
        f"<nav>{links}</nav><main>{body}</main>"
        f"<footer>{escape(footer)}</footer></body></html>\n"
    )


def _sections(run: RunRecord) -> Sections:
    parts = [
        ("results", "Accuracy", _accuracies),
        ("core", "In-context tasks", _core),
        ("samples", "Samples", _samples),
        ("training", "Training", _training),
        ("tokenizer", "Tokenizer", _tokenizer),
        ("stages", "Time and memory", _stages),
        ("figures", "All figures", _figures),
        ("settings", "Machine and settings", _settings),
    ]
    made = [(a, title, data.made(title, partial(make, run), "")) for a, title, make in parts]
    return [part for part in made if part[2]]


def _training(run: RunRecord) -> str:
    return "".join(_curves(stage) for stage in run.stages if stage.rows)


def _lead(run: RunRecord, written: str) -> str:
    facts = data.machine(run)
    device = f" on {facts['device']}" if "device" in facts else ""
    ranks = f" ({facts['processes']} processes)" if facts.get("processes", "1") != "1" else ""
    unfinished = [stage.title for stage in run.stages if not stage.complete]
    state = f" Not finished: {', '.join(unfinished)}." if unfinished else ""
    return f"Trained{device}{ranks}. Written {written}.{state}"


def _tiles(tiles: Sequence[tuple[str, str, str]]) -> str:
    items = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(figure)}</dd><span>{escape(note)}</span></div>"
        for name, figure, note in tiles
    )
    return f'<dl class="tiles">{items}</dl>'


def _legend(series: Sequence[str]) -> str:
    if len(series) < 2:
        return ""
    items = "".join(
        f'<span class="{s}"><i></i>{escape(data.SERIES_NAMES[s])}</span>' for s in series
    )
    return f'<p class="legend">{items}</p>'


def _accuracies(run: RunRecord) -> str:
    rows = data.accuracies(run)
    if not rows:
        return ""
    series = data.series_of(rows)
    bars = [
        (name.replace("_", " "), [_bar(found[s], s) for s in series if s in found])
        for name, found in rows
    ]
    header = ["task", *(data.SERIES_NAMES[s] for s in series), "items"]
    cells = [
        [
            name.replace("_", " "),
            *(data.with_error(found[s]) if s in found else "" for s in series),
            data.item_counts(found.values()),
        ]
        for name, found in rows
    ]
    notes = run.get("chat_eval").notes
    chart = plots.bar_chart(bars, title="accuracy by task and stage")
    return (
        f'{_legend(series)}<figure class="wide">{chart}</figure>{_notes(notes)}'
        f"<details><summary>As a table</summary>{table(header, cells)}</details>"
    )


def _bar(result: dict[str, Any], series: str) -> Bar:
    tip = f"{data.SERIES_NAMES[series]}: {data.with_error(result)}"
    if data.is_number(result.get("n")):
        tip += f", {result['n']:,} items"
    return Bar(result["value"], result.get("stderr"), data.with_error(result), series, tip)


def _core(run: RunRecord) -> str:
    stage = run.get("base_eval")
    tasks = [r for r in stage.results if r.get("unit") == data.CENTERED]
    if not tasks:
        return ""
    bars = [(r["name"].replace("_", " "), [_core_bar(r)]) for r in tasks]
    low = min(-0.1, *(r["value"] - (r.get("stderr") or 0) for r in tasks))
    chart = plots.bar_chart(bars, title="centered accuracy by task", low=max(low, -1.0))
    rest = [r for r in stage.results if r.get("unit") != data.CENTERED]
    lines = "".join(
        f"<p><b>{escape(r['name'])}</b>: {escape(data.with_error(r))}</p>" for r in rest
    )
    return (
        f'{lines}<p class="remark">Centered accuracy: 0 for guessing, 100% for all correct.</p>'
        f'<figure class="wide">{chart}</figure>{_notes(stage.notes)}'
    )


def _core_bar(result: dict[str, Any]) -> Bar:
    text = data.with_error({**result, "unit": data.ACCURACY})
    return Bar(result["value"], result.get("stderr"), text, "base", f"{result['name']}: {text}")


def _tokenizer(run: RunRecord) -> str:
    """Bytes per token by kind of text: our vocabulary next to the published ones."""
    stage = run.get("tok_eval")
    rows: dict[str, list[Bar]] = {}
    series: dict[str, str] = {}
    for result in stage.results:
        if result.get("unit") == data.BYTES_PER_TOKEN and data.is_number(result["value"]):
            domain, _, name = result["name"].rpartition(", ")
            color = series.setdefault(name, TOKENIZER_COLORS[len(series) % 3])
            text = f"{result['value']:.2f}"
            rows.setdefault(domain, []).append(
                Bar(result["value"], None, text, color, f"{name}: {text} bytes per token")
            )
    if not rows:
        return ""
    high = max(bar.value for bars in rows.values() for bar in bars)
    chart = plots.bar_chart(list(rows.items()), title="bytes per token", high=high, tick=".1f")
    legend = "".join(
        f'<span class="{c}"><i></i>{escape(name)}</span>' for name, c in series.items()
    )
    return (
        '<p class="remark">Bytes per token: higher means shorter sequences for the same text.</p>'
        f'<p class="legend">{legend}</p><figure class="wide">{chart}</figure>'
        f"{_notes(stage.notes)}"
    )


def _curve(stage: StageData, key: str) -> str:
    """One metric of a stage over its tokens, or over its steps if they are not recorded."""
    x_key, x_name = ("tokens", "tokens") if stage.last("tokens") else ("step", "steps")
    points = stage.curve(key, x_key)
    title = data.PLOTS.get(key, key.replace("_", " "))
    curves = [Curve(title, points)]
    if key in ("loss", "grad_norm", "reward") and len(points) > 20:
        curves = [Curve(title, points, "faint"), Curve(title, plots.smoothed(points))]
    chart = plots.line_chart(
        curves,
        x_name=x_name,
        title=title,
        x_end=stage.last(x_key),
        log_y=key == "grad_norm",
        zero=key in ("lr_scale", "tokens_per_s"),
    )
    last = f"<b>{plots.short_number(points[-1][1])}</b>" if points else ""
    return f"<figure><figcaption>{escape(title)} {last}</figcaption>{chart}</figure>"


def _curves(stage: StageData) -> str:
    figures = [
        data.made(f"plot of {key} in {stage.name}", partial(_curve, stage, key), "")
        for key in stage.plotted()
    ]
    if not figures:
        return ""
    tokens = stage.last("tokens")
    facts = f"{stage.last('step') or 0:,.0f} steps"
    facts += f", {data.count(tokens)} tokens" if tokens else ""
    return (
        f'<div class="stage {stage.series}"><h3>{escape(stage.title)}</h3>'
        f'<p class="remark">{facts}</p><div class="grid">{"".join(figures)}</div></div>'
    )


def _stages(run: RunRecord) -> str:
    parts = [
        (f"{stage.title}: {duration(stage.seconds)}", stage.seconds, stage.series)
        for stage in run.stages
    ]
    rows = []
    for stage in run.stages:
        tokens, memory = stage.last("tokens"), stage.peak_memory_bytes
        speed = next((r["value"] for r in stage.results if r["name"] == "speed"), None)
        rows.append(
            [
                stage.title if stage.complete else f"{stage.title} (not finished)",
                duration(stage.seconds),
                f"{stage.seconds / run.seconds:.0%}" if run.seconds else "",
                data.count(tokens) if tokens else "",
                f"{speed:,.0f}" if speed else "",
                data.gigabytes(memory) if memory else "",
            ]
        )
    if not rows:
        return ""
    header = ["stage", "time", "share", "tokens", "tokens/s", "peak memory"]
    order = [s for s in data.SERIES_NAMES if any(stage.series == s for stage in run.stages)]
    bar = plots.share_bar(parts, title="time by stage")
    return f"{bar}{_legend(order)}{table(header, rows)}"


def _figures(run: RunRecord) -> str:
    rows = [
        [stage.title, r["name"], data.with_error(r), r.get("unit") or "", data.item_counts([r])]
        for stage in run.stages
        for r in stage.results
        if r.get("unit") not in (data.ACCURACY, data.CENTERED)
    ]
    figures = table(["stage", "figure", "value", "unit", "items"], rows, numbers_from=2)
    notes = [
        f"{stage.title}: {note}"
        for stage in run.stages
        if stage.name not in ("chat_eval", "base_eval")
        for note in stage.notes
    ]
    return (figures if rows else "") + _notes(notes)


def _samples(run: RunRecord) -> str:
    blocks: list[str] = []
    for model, group, samples in reversed(data.sample_groups(run)):
        dialogues = [s for s in samples if s.get("turns")]
        pairs = [s for s in samples if not s.get("turns")]
        title = f"{model.title}: {group}" if group else model.title
        kind = "continued" if model.series == "base" else "asked"
        body = "".join(_dialogue(s) for s in dialogues) + "".join(_pair(s, kind) for s in pairs)
        layout = "talks" if dialogues else "pairs"
        is_open = " open" if not blocks or dialogues else ""
        blocks.append(
            f"<details{is_open}><summary>{escape(title)} <em>{len(samples)}</em></summary>"
            f'<div class="{layout} {model.series}">{body}</div></details>'
        )
    return "".join(blocks)


def _pair(sample: dict[str, Any], kind: str) -> str:
    prompt, text = escape(str(sample.get("prompt", ""))), escape(str(sample.get("text", "")))
    if kind == "continued":
        return f'<p class="continued"><b>{prompt}</b>{text}</p>'
    return f'<div class="asked"><p class="user">{prompt}</p><p class="assistant">{text}</p></div>'


def _dialogue(sample: dict[str, Any]) -> str:
    turns = "".join(
        f'<p class="{"user" if turn.get("role") == "user" else "assistant"}">'
        f"{escape(str(turn.get('text', '')))}</p>"
        for turn in sample.get("turns") or ()
    )
    title = sample.get("prompt")
    heading = f"<h4>{escape(str(title))}</h4>" if title else ""
    return f'<div class="talk">{heading}{turns}</div>'


def _settings(run: RunRecord) -> str:
    facts = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
        for name, value in data.machine(run).items()
    )
    blocks: list[str] = []
    for stage in run.stages:
        rows = [[key.replace("_", " "), value] for key, value in stage.settings().items()]
        if rows:
            values = table(["setting", "value"], rows, numbers_from=9)
            summary = f"{escape(stage.title)} <em>{len(rows)}</em>"
            blocks.append(f"<details><summary>{summary}</summary>{values}</details>")
    return f'<dl class="facts">{facts}</dl>{"".join(blocks)}' if facts or blocks else ""


def _notes(notes: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(str(note))}</li>" for note in notes)
    return f'<ul class="notes">{items}</ul>' if items else ""


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, numbers_from: int = 1) -> str:
    """An HTML table; columns from index `numbers_from` are aligned as numbers."""

    def cell(tag: str, column: int, text: str) -> str:
        kind = ' class="number"' if column >= numbers_from else ""
        return f"<{tag}{kind}>{escape(text)}</{tag}>"

    head = "".join(cell("th", i, text) for i, text in enumerate(header))
    body = "".join(
        f"<tr>{''.join(cell('td', i, text) for i, text in enumerate(row))}</tr>" for row in rows
    )
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )
