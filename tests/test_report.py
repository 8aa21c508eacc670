"""The results of stages and the report built from their files."""

import json
import math
import random
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat import report
from nanochat.report import data, plots
from nanochat.report.plots import Bar, Curve
from nanochat.stages import report as report_script
from nanochat.system import metrics, storage
from nanochat.system.errors import DataError

CONFIG = {
    "device": "A & B <processor>",
    "world_size": 1,
    "torch": "2.15.0",
    "parameters": 4_400_000,
    "options": {"seed": 1337, "matrix_lr": 0.01, "wandb": None},
    "model": {"depth": 4},
}
VOID = {"meta"}


class Page(HTMLParser):
    """Collects links and text; every tag that opens must close."""

    def __init__(self, text):
        super().__init__()
        self.open, self.links, self.tags = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("href", "src")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def train(run, name, steps=40, **section):
    folder = run / name
    storage.write_json(folder / "config.json", CONFIG)
    rows = []
    for step in range(1, steps + 1):
        row = {"step": step, "tokens": step * 100, "loss": 5 / step, "lr_scale": 1.0}
        row |= {"grad_norm": 1 / step, "tokens_per_s": 900.0, "elapsed_s": step * 0.5}
        rows.append(row)
        if step % 20 == 0:
            rows.append({"step": step, "val_bpb": 2 / step})
    lines = [json.dumps(row) for row in rows] + ['{"step": 41, "lo']
    (folder / "metrics.jsonl").write_text("\n".join(lines), encoding="utf-8")
    if section:
        report.record(folder, section)
    return folder


def accuracy(name, value, n=500):
    stderr = (value * (1 - value) / n) ** 0.5
    return {"name": name, "value": value, "stderr": stderr, "n": n, "unit": "accuracy"}


def full_run(run):
    train(
        run,
        "base_train",
        title="x",
        seconds=20.0,
        peak_memory_bytes=1_500_000_000,
        results=[{"name": "speed", "value": 912.5, "unit": "tokens/s"}],
        samples=[{"prompt": "Once <b>", "text": " upon & a time"}],
    )
    centred = {"name": "facts", "value": -0.02, "stderr": 0.01, "unit": "centred accuracy"}
    report.record(run / "base_eval", {"results": [centred], "notes": ["not CORE"]})
    talk = {"prompt": "a talk", "group": "scripted dialogues"}
    talk["turns"] = [{"role": "user", "text": "hi"}, {"role": "assistant", "text": "<hello>"}]
    sft = {**accuracy("sums", 0.8), "stage": "chat_sft"}
    rl = {**accuracy("sums", 0.9, 2000), "stage": "chat_rl"}
    gain = {"name": "gain", "value": 0.1, "stderr": 0.01, "unit": "points"}
    report.record(run / "chat_eval", {"results": [sft, rl, gain], "samples": [talk]})
    return run


def test_a_recorded_stage_is_complete_and_keeps_its_section(tmp_path):
    assert not report.is_complete(tmp_path / "s")
    report.record(tmp_path / "s", {"title": "S", "notes": ["größer"]})
    assert report.is_complete(tmp_path / "s")
    found = json.loads((tmp_path / "s" / "result.json").read_text(encoding="utf-8"))
    assert found["notes"] == ["größer"] and "finished" in found


def test_the_page_is_well_formed_and_self_contained(tmp_path):
    path = report.build(full_run(tmp_path / "demo"))
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert page.tags.count("svg") >= 7
    assert all(link.startswith("#") for link in page.links)
    assert "<script" not in text and "@import" not in text and "url(" not in text
    assert "prefers-color-scheme: dark" in text


def test_text_of_models_and_machines_cannot_break_the_page(tmp_path):
    text = report.build(full_run(tmp_path / "demo")).read_text(encoding="utf-8")
    assert "A &amp; B &lt;processor&gt;" in text
    assert "Once &lt;b&gt;" in text and "&lt;hello&gt;" in text
    assert "<hello>" not in text


def test_markdown_contains_results_errors_counts_and_samples(tmp_path):
    run = full_run(tmp_path / "demo")
    report.build(run)
    text = (run / "report.md").read_text(encoding="utf-8")
    assert "| task | SFT | RL | items |" in text
    assert "| sums | 80.0% ± 1.8 | 90.0% ± 0.7 | 500 / 2,000 |" in text
    assert "| Chat evaluation | gain | +10.0 ± 1.0 | points |" in text
    assert "| Base training | complete | 20s | 4 k | 1.50 GB |" in text
    assert "- **assistant**: <hello>" in text
    assert "| matrix_lr | 0.01 |" in text


def test_a_killed_stage_is_shown_up_to_its_last_row(tmp_path):
    train(tmp_path / "r", "base_train")
    (tmp_path / "r" / "mid_train").mkdir()
    (tmp_path / "r" / "chat_sft").mkdir()
    (tmp_path / "r" / "chat_sft" / "result.json").write_text('{"torn', encoding="utf-8")
    text = report.build(tmp_path / "r").read_text(encoding="utf-8")
    Page(text)
    assert "Not finished: Base training." in text
    found = data.load(tmp_path / "r")
    assert [stage.name for stage in found.stages] == ["base_train"]
    assert found.stages[0].seconds == 20.0


def test_unusual_values_do_not_break_the_report(tmp_path):
    folder = tmp_path / "r" / "own_stage"
    rows = [{"step": s, "loss": float("nan"), "note": "text", "odd": None} for s in (1, 2)]
    rows += [{"step": s, "loss": 0.0, "grad_norm": 0.0, "extra": s} for s in (3, 4)]
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    results = [{"name": "bad", "value": float("inf")}, {"name": "none", "value": None}]
    report.record(folder, {"results": results, "settings": {"huge": {"k": "v" * 500}}})
    text = report.build(tmp_path / "r").read_text(encoding="utf-8")
    Page(text)
    assert "own stage" in text and "extra" in text


ODD = (math.nan, math.inf, 1e308, 5e-324, 10**400, -3, "", "天\ud800", None, True, [], {}, [1])


@given(value=st.sampled_from(ODD), seed=st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_a_report_is_made_of_whatever_the_files_hold(tmp_path_factory, value, seed):
    """In every file of a run, values of any type are replaced by an odd one."""
    choice = random.Random(seed)

    def altered(item: Any, share: float = 0.3) -> Any:
        if choice.random() < share:
            return value
        if isinstance(item, dict):
            return {key: altered(inner) for key, inner in item.items()}
        return [altered(inner) for inner in item] if isinstance(item, list) else item

    run = tmp_path_factory.mktemp("odd") / "pocket"
    full_run(run)
    for file in [*run.glob("*/*.json"), *run.glob("*/*.jsonl")]:
        found = metrics.read_rows(file) or [json.loads(file.read_text("utf-8"))]
        text = "\n".join(json.dumps(altered(item, 0)) for item in found)
        file.write_text(text, encoding="utf-8")
    Page(report.build(run).read_text("utf-8"))


def test_a_plot_that_fails_is_left_out_with_a_warning(tmp_path, monkeypatch, caplog):
    full_run(tmp_path / "pocket")
    real = plots.line_chart

    def fails(curves: Any, *, title: str, **more: Any) -> str:
        if title == data.PLOTS["loss"]:
            raise ZeroDivisionError("by zero")
        return real(curves, title=title, **more)

    monkeypatch.setattr(plots, "line_chart", fails)
    page = report.build(tmp_path / "pocket").read_text("utf-8")
    assert data.PLOTS["grad_norm"] in page
    assert caplog.messages[0] == (
        "warning: the report has no plot of loss in base_train (ZeroDivisionError: by zero)"
    )


def test_a_run_without_stages_is_a_users_error(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(DataError, match="has no stages to report on"):
            report.build(folder)


def test_validation_rows_use_the_tokens_of_the_previous_row():
    stage = data.StageData(
        "s", rows=[{"step": 5, "tokens": 500, "loss": 1.0}, {"step": 5, "val_bpb": 0.7}]
    )
    assert stage.curve("val_bpb", "tokens") == [(500.0, 0.7)]
    assert stage.curve("val_bpb", "step") == [(5.0, 0.7)]


def test_curves_are_drawn_to_scale():
    chart = plots.line_chart(
        [Curve("c", [(0.0, 0.0), (10.0, 1.0)])], x_name="steps", title="c", zero=True
    )
    path = re.search(r'<path class="line main" d="M([^"]+)"', chart).group(1)
    (x0, y0), (x1, y1) = (map(float, part.split()) for part in path.split("L"))
    assert x0 == plots.LEFT and x1 == plots.WIDTH - plots.RIGHT
    assert y0 == plots.HEIGHT - plots.BOTTOM and plots.TOP < y1 < plots.TOP + 20


def test_logarithmic_axes_space_decades_evenly():
    points = [(1e3, 1.0), (1e4, 10.0), (1e5, 100.0)]
    chart = plots.line_chart(
        [Curve("a", points, "main", "dots")], x_name="n", title="t", log_x=True, log_y=True
    )
    places = re.findall(r'<circle class="dot main" cx="([\d.]+)" cy="([\d.]+)"', chart)
    (x0, y0), (x1, y1), (x2, y2) = [(float(x), float(y)) for x, y in places]
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.2)
    assert x0 > plots.LEFT and x2 < plots.WIDTH - plots.RIGHT
    assert "<title>a: 10 at 10k n</title>" in chart and "hover" not in chart


def test_long_curves_are_averaged_but_keep_their_ends():
    points = [(float(i), float(i % 2)) for i in range(5000)]
    found = plots.averaged(points, 100)
    assert len(found) == 100
    assert (found[0], found[-1]) == (points[0], points[-1])
    assert all(abs(y - 0.5) < 0.05 for _, y in found[1:-1])


def test_smoothing_starts_at_the_first_value_and_skips_nonfinite_values():
    points = [(0.0, 4.0), (1.0, float("nan")), (2.0, 4.0)]
    assert plots.smoothed(points, span=1.0) == [(0.0, 4.0), (1.0, 4.0), (2.0, 4.0)]


def test_bars_end_at_their_values_and_show_their_error():
    bar = Bar(0.5, 0.1, "50%", "sft", "tip")
    chart = plots.bar_chart([("row", [bar])], title="t")
    start, width = map(
        float, re.search(r'<rect x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', chart).groups()
    )
    left, right = map(float, re.search(r'x1="([\d.]+)" x2="([\d.]+)" y1="12', chart).groups())
    assert width == pytest.approx((800 - 240 - 110) / 2, abs=0.2)
    assert (left + right) / 2 == pytest.approx(start + width, abs=0.2)
    assert (right - left) == pytest.approx(0.2 * (800 - 240 - 110), abs=0.2)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(4.26, "4.3s"), (45, "45s"), (192, "3m12s"), (7500, "2h05m"), (50 * 3600, "2d02h")],
)
def test_durations_are_readable(seconds, text):
    assert metrics.duration(seconds) == text


def test_the_stage_writes_the_page_and_lists_the_existing_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    with pytest.raises(DataError, match="has none yet"):
        report_script.main(["--run", "demo"])
    full_run(tmp_path / "runs" / "demo")
    report_script.main(["--run", "demo"])
    assert capsys.readouterr().out.strip().endswith("report.html")
    with pytest.raises(DataError, match="--run other: no such run; existing runs: demo"):
        report_script.main(["--run", "other"])
