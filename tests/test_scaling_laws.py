"""Best sizes from runs of equal compute: the fits against known optima, and sweeps of runs."""

import dataclasses
import json
import math
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from nanochat.gpt import GPTConfig
from nanochat.scaling_laws import page as isoflop_page
from nanochat.scaling_laws import sweep
from nanochat.scaling_laws.isoflop import Estimate, Point, analyze
from nanochat.stages import base_train, scaling_laws
from nanochat.system import config
from nanochat.system.errors import ConfigError, DataError, Stopped

BUDGETS = (1e12, 2e12, 4e12, 8e12)
ALPHA, BEST = 0.48, 4e5  # of the worlds made here: parameters that are best at 1e12 FLOPs
TINY = (
    "--run s --tokenizer tiny --device cpu --dtype float32 --threads 1 --no-compile "
    "--sequence-length 32 --tokens-per-step 256 --device-batch-size 4 --val-rows 4 "
    "--sizes 1x32,1x48,1x64 --ratios none"
).split()


SIZES = (1e5, 2e5, 4e5, 8e5, 1.6e6, 3.2e6)


def world(noise=0.0, *, seed=0, sizes=SIZES, budgets=BUDGETS, bend=0.05):
    """Runs of a world whose losses are parabolas, with a known best size for each budget."""
    rng = np.random.default_rng(seed)
    return [
        Point(
            budget=budget,
            parameters=size,
            tokens=budget / (6 * size),
            loss=1.2 + bend * math.log(size / best_size(budget)) ** 2 + noise * rng.normal(),
        )
        for budget in budgets
        for size in sizes
    ]


def best_size(budget):
    return BEST * (budget / 1e12) ** ALPHA


def test_known_optima_and_exponents_are_found():
    found = analyze(world())
    for fit in found.budgets:
        size = best_size(fit.budget)
        assert fit.parameters.value == pytest.approx(size)
        assert fit.tokens.value == pytest.approx(fit.budget / 6 / size, rel=1e-6)
        assert fit.ratio.value == pytest.approx(fit.budget / 6 / size**2, rel=1e-6)
        assert fit.loss == pytest.approx(1.2)
    assert found.parameters.exponent.value == pytest.approx(ALPHA)
    assert found.tokens.exponent.value == pytest.approx(1 - ALPHA)
    assert found.parameters.at(1e14).value == pytest.approx(best_size(1e14))
    coefficient = found.parameters.coefficient.value
    assert coefficient * 2e12**ALPHA == pytest.approx(best_size(2e12))


def test_the_fits_are_those_of_least_squares():
    points = world(0.01, seed=3)
    found = analyze(points)
    minima = []
    for fit in found.budgets:
        runs = [p for p in points if p.budget == fit.budget]
        x = [math.log(p.parameters) for p in runs]
        a, b, c = np.polyfit(x, [p.loss for p in runs], 2)
        minima.append(-b / (2 * a))
        assert math.log(fit.parameters.value) == pytest.approx(minima[-1])
        assert fit.loss_at(runs[1].parameters) == pytest.approx(np.polyval((a, b, c), x[1]))
    slope, height = np.polyfit(np.log(BUDGETS), minima, 1)
    assert found.parameters.exponent.value == pytest.approx(slope)
    assert math.log(found.parameters.coefficient.value) == pytest.approx(height)


@pytest.mark.parametrize("noise", [0.002, 0.006])
def test_95_of_100_intervals_hold_the_truth(noise):
    repetitions = 120
    held = np.zeros(3)
    for seed in range(repetitions):
        found = analyze(world(noise, seed=seed), draws=400, seed=seed)
        estimates = (found.parameters.exponent, found.budgets[1].parameters, found.tokens.at(1e13))
        truths = (ALPHA, best_size(2e12), 1e13 / 6 / best_size(1e13))
        held += [e.low <= truth <= e.high for e, truth in zip(estimates, truths, strict=True)]
        assert found.noise == pytest.approx(noise, rel=0.75)
    assert np.all(abs(held / repetitions - 0.95) < 0.05), held / repetitions


def test_an_optimum_beyond_the_sizes_is_none():
    small = analyze(world(sizes=(1.0e6, 1.5e6, 2.5e6, 4e6)))
    assert all(fit.at_border and fit.parameters is None for fit in small.budgets[:3])
    assert "at or below the smallest size, 1,000,000; try smaller" in small.budgets[0].problem
    large = analyze(world(sizes=(0.5e5, 1e5, 2e5, 3e5)))
    assert "at or above the largest size, 300,000; try larger ones" in large.budgets[0].problem
    assert large.problem == "no budget has an optimum, a power law needs 2"
    assert large.parameters is None
    text = "\n".join(isoflop_page.lines(large))
    assert "no power law: no budget has an optimum" in text and "best parameters" not in text


def test_a_budget_at_the_border_does_not_bend_the_law():
    points = world(sizes=(1.5e5, 2e5, 4e5, 8e5, 1.05e6))  # the largest budget's best is above
    found = analyze(points)
    assert [fit.at_border for fit in found.budgets] == [False, False, False, True]
    assert found.parameters.exponent.value == pytest.approx(ALPHA)


def test_too_few_runs_are_reported():
    two = analyze(world(sizes=(2e5, 8e5)))
    assert two.budgets[0].problem == "only 2 sizes have a loss, a parabola needs 3"
    bent = analyze(world(bend=-0.05, sizes=(2e5, 4e5, 4.1e5, 8e5), budgets=(1e12,)))
    assert bent.budgets[0].parameters is None
    up = [
        Point(budget=1.0, parameters=n, tokens=1.0, loss=y)
        for n, y in ((1, 1.0), (2, 0.9), (4, 1.3), (8, 1.31), (16, 1.05))
    ]
    assert "bend downward" in analyze(up).budgets[0].problem
    one = analyze(world(budgets=(2e12,)))
    assert one.budgets[0].problem is None
    assert one.problem == "only one budget has an optimum, a power law needs 2"
    broken = [Point(budget=1.0, parameters=n, tokens=1.0, loss=math.nan) for n in (1, 2, 3)]
    assert analyze(broken).budgets[0].problem == "no size has a loss"
    assert analyze([]).budgets == ()


def test_three_sizes_give_an_optimum_without_an_interval():
    found = analyze(world(0.001, sizes=(2e5, 6e5, 1.8e6)))
    assert found.noise is None
    assert found.parameters.exponent.low is None
    assert any("no intervals" in line for line in isoflop_page.lines(found))
    isoflop_page.render(found, name="three", lead="", rows=[])


def test_noise_that_hides_the_minimum_leaves_the_interval_open():
    points = [p for seed in range(2) for p in world(0.3, seed=seed, budgets=(2e12,))]
    hidden = [fit.parameters for fit in analyze(points).budgets if fit.parameters is not None]
    assert all(e.low is None or e.high / e.low > 100 for e in hidden)


def test_the_lines_and_the_page_say_the_same():
    found = analyze(world(0.002))
    assert isoflop_page.with_interval(Estimate(2e5, 1e5, 3e6)) == "200k [100k, 3M]"
    text = "\n".join(isoflop_page.lines(found))
    exponent = found.parameters.exponent
    assert f"^ {exponent.value:.3f}" in text
    assert f"[{exponent.low:.3f}, {exponent.high:.3f}]" in text
    assert "base training's default --ratio is 10.5" in text
    page = isoflop_page.render(found, name="<n>", lead="l", rows=[["r", "1", "2", "3", "4s"]])
    assert "<title>nanochat: scaling laws &lt;n&gt;</title>" in page
    charts = re.findall(r"<svg.*?</svg>", page)
    assert len(charts) == 3
    for chart in charts:
        ElementTree.fromstring(chart)
    assert charts[0].count("<circle") == 24 + 4  # every run, and every optimum
    assert all('class="area main"' in chart for chart in charts[1:])
    assert "http" not in page.replace("http://www.w3.org", "")


def test_members_take_their_budget_in_full_steps():
    models = [GPTConfig(vocab_size=300, sequence_length=32, depth=1, width=w) for w in (32, 64)]
    found = sweep.members([2e9, 1e9, 1e9], models, [1, 2, 1], tokens_per_step=256)
    assert len({member.name for member in found}) == len(found) == 8
    assert [member.budget for member in found[:4]] == [1e9] * 4
    for member in found:
        assert member.tokens % 256 == 0
        assert member.flops == pytest.approx(member.budget, rel=0.5 / member.steps)
    with pytest.raises(ConfigError, match="less than a step of 256; raise it or lower"):
        sweep.members([1e6], models, [1], tokens_per_step=256)


def test_sizes_with_too_few_or_too_many_tokens_are_left_out():
    models = [GPTConfig(vocab_size=300, sequence_length=32, depth=1, width=w) for w in (32, 64, 96)]
    every = sweep.members([1e9, 1e10], models, [1], tokens_per_step=32)
    some = sweep.members([1e9, 1e10], models, [1], tokens_per_step=32, ratios=(0.02, 2.0))
    kept = [m for m in every if 0.02 <= m.tokens / m.parameters <= 2.0]
    assert some == kept and 0 < len(kept) < len(every)
    with pytest.raises(ConfigError, match="no size has between 100 and 200 tokens per parameter"):
        sweep.members([1e9], models, [1], tokens_per_step=32, ratios=(100, 200))


def test_rows_of_a_sweep_that_are_not_whole_are_ignored(tmp_path):
    whole = {"name": "a", "budget": 1e9, "parameters": 10, "tokens": 20, "val_bpb": 1.5}
    odd = [
        {**whole, "name": ["b"]},
        {**whole, "name": "c", "budget": "1e9"},
        {**whole, "name": "d", "tokens": None},
        {"name": "e"},
        {**whole, "name": "f", "val_bpb": None},
    ]
    rows = "".join(json.dumps(row) + "\n" for row in [whole, *odd])
    (tmp_path / "results.jsonl").write_text(rows)
    found = sweep.read(tmp_path)
    assert list(found) == ["a", "f"]
    losses = [point.loss for point in sweep.points(list(found.values()))]
    assert losses[0] == 1.5 and math.isnan(losses[1])


@pytest.mark.parametrize("recorded", [{}, {"results": 3}, {"results": [3, {}, {"name": ["x"]}]}])
def test_a_run_of_a_sweep_that_recorded_no_loss_is_named(tmp_path, recorded):
    model = GPTConfig(vocab_size=300, sequence_length=32, depth=1, width=32)
    (member,) = sweep.members([1e9], [model], [1], tokens_per_step=32)
    (tmp_path / "result.json").write_text(json.dumps(recorded))
    with pytest.raises(DataError, match="has no val_bpb: its evaluation was skipped"):
        sweep.record(tmp_path, member, tmp_path)


def test_options_become_the_arguments_that_make_them():
    args = "--run x --no-qk-norm --softcap none --matrix-lr 0.04 --val-frac 0.1 --data a.txt"
    cfg = config.parse(scaling_laws.ScalingLawsConfig, args.split(), stage="scaling_laws")
    names = list(config.flat_fields(scaling_laws.ScalingLawsConfig))
    again = config.as_args(cfg, names)
    assert sorted(again) == sorted(args.split())
    assert config.parse(type(cfg), again, stage="scaling_laws") == cfg


def test_a_presets_settings_reach_base_training():
    sections = ("tok_train", "base_train", "scaling_laws")
    args = "--preset pocket --sizes 3x160,2 --budgets 1e13 --ratios 0.1,99 --no-smear".split()
    options = scaling_laws.ScalingLawsConfig
    cfg = config.parse(options, args, stage="scaling_laws", sections=sections)
    cfg = dataclasses.replace(cfg, warmup_steps=5)
    member, other = scaling_laws.members_of(cfg, 1040)
    found = config.parse(
        base_train.BaseTrainConfig, scaling_laws.base_train_args(cfg, member), stage="base_train"
    )
    model = {**vars(found.model), "vocab_size": 1040}
    assert model == vars(member.model) and member.model.width == 160
    assert other.model.depth == 2 and other.model.width == 128
    assert (found.optimizer.matrix_lr, found.final_lr_frac, found.warmup_steps) == (0.04, 0.3, 5)
    assert (found.loop.save_every, found.loop.resume, found.model.smear) == (200, True, False)
    assert found.data.pocket_characters == 15_000_000
    assert (found.tokens, found.tokens_per_step) == (member.tokens, 4096)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("--sizes 4y", "--sizes must be like 4 or 4x192"),
        ("--sizes 3x31", "--sizes 3x31: --width 31 must be an even multiple"),
        ("--sizes ,", "--sizes is empty"),
        ("--budgets lots", "--budgets must be numbers such as 1e12, got 'lots'"),
        ("--budgets -1", "--budgets must be in"),
        ("--budgets nan", "--budgets must be in"),
        ("--ratios 5", "--ratios must be like 2,150 or none, got '5'"),
        ("--ratios 5,2", "--ratios must be a smaller and a larger number"),
        ("--seeds 1,x", "--seeds must be whole numbers from 0, got 'x'"),
        ("--run a/b", "--run must be a plain name"),
    ],
)
def test_wrong_arguments_are_named(args, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        config.parse(scaling_laws.ScalingLawsConfig, args.split(), stage="scaling_laws")


@pytest.fixture
def trained(monkeypatch):
    """Runs in this process instead of one each: their arguments, and which to skip once."""
    calls = []

    def run(command, log, stop):
        assert command[:3] == [sys.executable, "-m", "nanochat.stages.base_train"]
        if len(calls) in cut:
            cut.remove(len(calls))
            return
        calls.append(command[3:])
        base_train.main(command[3:])

    cut: list[int] = []
    monkeypatch.setattr(sweep, "run", run)
    return calls, cut


def swept(base, *args):
    scaling_laws.main([*TINY, "--data", str(base / "texts.jsonl"), *args])
    return base / "base" / "runs" / "s" / "scaling_laws"


def results(folder):
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_sweep_that_was_stopped_continues_with_what_is_left(base, trained, capsys):
    calls, cut = trained
    cut.append(2)
    with pytest.raises(Stopped):
        swept(base, "--budgets", "2e8,3e8")
    folder = base / "base" / "runs" / "s" / "scaling_laws"
    before = results(folder)
    assert len(before) == 2 and "the same command continues" in capsys.readouterr().out
    (folder / "results.jsonl").open("a").write('{"name": "torn')
    swept(base, "--budgets", "2e8,3e8")
    output = capsys.readouterr().out
    assert "4 of 6 runs to do" in output and "4/4  3e+08 FLOPs, 1x64" in output
    found = results(folder)
    assert len(calls) == len(found) == 6 and found[:2] == before
    assert str(folder / "scaling_laws.html") in output
    assert not list((base / "base" / "runs").glob("s-*/base_train/step_*"))
    swept(base, "--budgets", "2e8,3e8", "--threads", "2")
    assert "nothing to train" in capsys.readouterr().out and len(calls) == 6
    with pytest.raises(
        ConfigError, match=r"a sweep whose matrix_lr is 0\.02, not 0\.5; continue with"
    ):
        swept(base, "--matrix-lr", "0.5")


@pytest.mark.slow
def test_a_sweeps_loss_is_that_of_base_train(base, trained):
    folder = swept(base, "--budgets", "2e8", "--matrix-lr", "0.03", "--no-smear")
    row = results(folder)[1]
    args = (
        f"--run own --tokenizer tiny --data {base / 'texts.jsonl'} --depth 1 --width 48 "
        f"--tokens {row['tokens']} --tokens-per-step 256 --sequence-length 32 --matrix-lr 0.03 "
        "--no-smear --device cpu --dtype float32 --threads 1 --no-compile --device-batch-size 4 "
        "--val-rows 4"
    )
    base_train.main(args.split())
    result = json.loads((base / "base/runs/own/base_train/result.json").read_text())
    bpb = next(r["value"] for r in result["results"] if r["name"] == "val_bpb")
    assert row["val_bpb"] == bpb


def test_a_dry_run_prints_how_long_and_writes_nothing(base, capsys):
    swept(base, "--budgets", "2e8", "--dry-run")
    output = capsys.readouterr().out
    assert re.search(r"^3 runs, about \d+[sm]", output, re.MULTILINE)
    assert "note: runs of fewer than 100 steps: 3, the shortest of" in output
    assert not (base / "base" / "runs").exists()


def test_a_run_that_fails_is_named_with_its_last_line(tmp_path):
    log = tmp_path / "logs" / "a.log"
    code = "print('error: too wide'); raise SystemExit(2)"
    with pytest.raises(ConfigError, match=rf"{re.escape(code)}: too wide \(full output: {log}\)"):
        sweep.run([sys.executable, "-c", code], log, lambda: False)


def test_a_run_is_asked_to_stop_and_waited_for(tmp_path):
    code = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('saved'), sys.exit(0)))\n"
        "print('ready', flush=True)\ntime.sleep(60)"
    )
    log = tmp_path / "a.log"
    sweep.run([sys.executable, "-c", code], log, lambda: "ready" in log.read_text())
    assert log.read_text().split() == ["ready", "saved"]


@pytest.mark.slow
def test_a_sweep_in_separate_processes_ends_in_a_page(base):
    args = [*TINY, "--data", str(base / "texts.jsonl"), "--budgets", "2e8"]
    command = [sys.executable, "-m", "nanochat.stages.scaling_laws", *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    folder = base / "base" / "runs" / "s" / "scaling_laws"
    assert done.stdout.splitlines()[-1] == str(folder / "scaling_laws.html")
    assert "no power law: " in done.stdout  # one budget makes none
    assert len(results(folder)) == 3
    assert all(0 < row["val_bpb"] < 10 for row in results(folder))
    assert len(list((folder / "logs").iterdir())) == 3
