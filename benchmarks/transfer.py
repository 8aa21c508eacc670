"""Do the default learning rates hold across model sizes? Two checks, as tables and plots.

python benchmarks/transfer.py coordinates                     # depths 2 to 12, random text
python benchmarks/transfer.py rates --data 'texts/*.parquet' --depths 2 4 6 --factors 0.25 0.5 1 2 4

coordinates: size of activations after a few steps at the default rates. If one grows or shrinks
with depth (and so with width), its learning rates should scale differently.
rates: base training at multiples of the default rates, with equal tokens per parameter; the best
multiple should be near 1 at every depth.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from nanochat import optim
from nanochat.gpt import GPT, GPTConfig, flops
from nanochat.optim import scaling
from nanochat.optim.schedules import warmup_decay
from nanochat.report import page as report_page
from nanochat.report import plots
from nanochat.system.distributed import Run

ROOT = Path(__file__).parent.parent
VOCAB, LENGTH, ROWS = 1024, 256, 4
COLORS = ("tok", "base", "mid", "sft", "rl", "other")  # names in the style sheet
QUANTITIES = ("attention", "mlp", "residual", "logits")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder for plots [no plots]")
    checks = parser.add_subparsers(dest="check", required=True)
    coordinates = checks.add_parser("coordinates", help="activation sizes by depth")
    coordinates.add_argument("--depths", type=int, nargs="+", default=[2, 4, 6, 8, 10, 12])
    coordinates.add_argument("--steps", type=int, default=5)
    coordinates.add_argument("--seeds", type=int, default=3)
    rates = checks.add_parser("rates", help="validation loss by learning rate and depth")
    rates.add_argument("--data", required=True)
    rates.add_argument("--depths", type=int, nargs="+", default=[2, 4, 6])
    rates.add_argument("--factors", type=float, nargs="+", default=[0.25, 0.5, 1.0, 2.0, 4.0])
    rates.add_argument("--ratio", type=float, default=2.0, help="tokens per parameter [2]")
    rates.add_argument("--vocab-size", type=int, default=4096)
    rates.add_argument(
        "--options", nargs=argparse.REMAINDER, default=[], help="options of base_train"
    )
    given = parser.parse_args()
    if given.check == "coordinates":
        show_coordinates(given.depths, given.steps, given.seeds, given.out)
    else:
        show_rates(given)


def show_coordinates(depths: Sequence[int], steps: int, seeds: int, out: Path | None) -> None:
    """Print RMS by depth before the last step: the mean over seeds and their range."""
    print(f"| depth (width) | {' | '.join(QUANTITIES)} |")
    print("|---" * (1 + len(QUANTITIES)) + "|")
    found: dict[int, dict[str, float]] = {}
    for depth in depths:
        sizes = [coordinates(depth, steps, seed) for seed in range(seeds)]
        found[depth] = {q: sum(size[q] for size in sizes) / seeds for q in QUANTITIES}
        cells = [
            f"{found[depth][q]:.3g} ({min(s[q] for s in sizes):.3g}-{max(s[q] for s in sizes):.3g})"
            for q in QUANTITIES
        ]
        print(f"| {depth} ({64 * depth}) |", " | ".join(cells), "|", flush=True)
    curves = [
        plots.Curve(
            q,
            [(d, sizes[q]) for d, sizes in found.items()],
            kind=f"main {COLORS[i % len(COLORS)]}",
        )
        for i, q in enumerate(QUANTITIES)
    ]
    title = f"root mean square before step {steps}"
    draw(out, "coordinates.html", curves, x_name="depth", title=title)


def coordinates(depth: int, steps: int, seed: int) -> dict[str, float]:
    """RMS of each quantity before the last step, averaged over layers."""
    run = Run(
        rank=0,
        world_size=1,
        local_rank=0,
        device=torch.device("cpu"),
        compute_dtype=torch.float32,
    )
    config = GPTConfig(vocab_size=VOCAB, depth=depth, sequence_length=LENGTH)
    model = GPT(config, compute_dtype=torch.float32)
    model.init_weights(torch.Generator().manual_seed(seed))
    plan = scaling.scaled_plan(config, tokens_per_step=ROWS * LENGTH)
    options = optim.OptimConfig(lr_scale=plan.lr_scale)
    optimizer = optim.build(model, options, run, tokens_per_step=ROWS * LENGTH)
    schedule = warmup_decay(1000, warmup_steps=0)
    now: dict[str, list[float]] = {}
    watch(model, now)
    generator = torch.Generator().manual_seed(1000 + seed)
    frequent = 1 / torch.arange(1, VOCAB + 1)  # Zipf's law, as in real text
    for step in range(steps):
        tokens = torch.multinomial(frequent, ROWS * (LENGTH + 1), True, generator=generator)
        rows = tokens.view(ROWS, LENGTH + 1)
        now.clear()
        with torch.no_grad():
            now["logits"] = [rms(model(rows[:, :-1]))]
        if step == steps - 1:
            break
        factor = torch.tensor(1 / (ROWS * LENGTH))
        with optimizer.accumulate(last=True):
            model.loss(rows[:, :-1], rows[:, 1:], factor).backward()
        optimizer.step(schedule(step))
        optimizer.zero_grad()
    return {name: sum(values) / len(values) for name, values in now.items()}


def watch(model: GPT, now: dict[str, list[float]]) -> None:
    """Record the RMS of each layer's outputs and of the residual stream."""

    def record(name: str, module: torch.nn.Module) -> None:
        def hook(_module: object, _inputs: object, output: Tensor) -> None:
            now.setdefault(name, []).append(rms(output))

        module.register_forward_hook(hook)

    for block in model.blocks:
        record("attention", block.attention)
        record("mlp", block.mlp)
        record("residual", block)


def rms(x: Tensor) -> float:
    return float(x.detach().square().mean().sqrt())


def show_rates(given: argparse.Namespace) -> None:
    """Print validation bits per byte by depth and multiple of the default rates."""
    print("| depth (width) |", " | ".join(f"x{f:g}" for f in given.factors), "| best |")
    print("|---" * (2 + len(given.factors)) + "|")
    curves = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["NANOCHAT_BASE_DIR"] = folder
        size = str(given.vocab_size)
        stage("tok_train", "--data", given.data, "--vocab-size", size, "--run", "t")
        for i, depth in enumerate(given.depths):
            losses = [train(folder, given, depth, factor) for factor in given.factors]
            cells = " | ".join(f"{loss:.4f}" for loss in losses)
            best = lowest(given.factors, losses)
            print(f"| {depth} ({64 * depth}) | {cells} | x{best:.2f} |", flush=True)
            points = [(math.log2(f), loss) for f, loss in zip(given.factors, losses, strict=True)]
            curves.append(
                plots.Curve(f"depth {depth}", points, kind=f"main {COLORS[i % len(COLORS)]}")
            )
    title = "validation bits per byte"
    draw(given.out, "rates.html", curves, x_name="log2 of the rates' factor", title=title)


def train(folder: str, given: argparse.Namespace, depth: int, factor: float) -> float:
    """Train at a multiple of the default rates; returns the final validation loss."""
    config = GPTConfig(vocab_size=given.vocab_size, depth=depth, sequence_length=LENGTH)
    tokens = int(given.ratio * flops.scaling_parameters(config))
    run = f"d{depth}-x{factor:g}"
    args = f"--run {run} --tokenizer t --data {given.data} --depth {depth} --tokens {tokens}"
    args += f" --sequence-length {LENGTH} --lr-scale {factor}"
    if "--tokens-per-step" not in given.options:
        args += " --tokens-per-step 4096"
    stage("base_train", *args.split(), *given.options)
    path = Path(folder) / "runs" / run / "base_train" / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return float([row["val_bpb"] for row in rows if "val_bpb" in row][-1])


def stage(name: str, *args: str) -> None:
    """Run a stage in a separate process; its output is shown if it fails."""
    command = [sys.executable, "-m", f"scripts.{name}", *args]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(done.stdout[-1000:] + done.stderr[-2000:])


def lowest(factors: Sequence[float], losses: Sequence[float]) -> float:
    """The factor at the minimum of a parabola in log factor around the best point."""
    best = min(range(len(losses)), key=losses.__getitem__)
    middle = min(max(best, 1), len(losses) - 2)
    if len(losses) < 3 or best != middle:
        return factors[best]  # at the edge: no minimum was bracketed
    (x0, y0), (x1, y1), (x2, y2) = (
        (math.log(factors[i]), losses[i]) for i in range(middle - 1, middle + 2)
    )
    left, right = (y1 - y0) / (x1 - x0), (y2 - y1) / (x2 - x1)
    curvature = (right - left) / (x2 - x0)
    return math.exp((x0 + x1) / 2 - left / (2 * curvature))


def draw(
    out: Path | None, name: str, curves: Sequence[plots.Curve], *, x_name: str, title: str
) -> None:
    """Write a page with one plot, if a folder was given."""
    if out is None:
        return
    chart = plots.line_chart(curves, x_name=x_name, title=title)
    legend = "".join(f'<span class="{c.kind.split()[1]}"><i></i>{c.label}</span>' for c in curves)
    figure = f'<figure class="single"><figcaption>{title}</figcaption>{chart}</figure>'
    out.mkdir(parents=True, exist_ok=True)
    page = report_page.page(
        [("plot", title, f'<p class="legend">{legend}</p>{figure}')],
        title="transfer",
        eyebrow="nanochat",
        heading="Learning rates across sizes",
        lead="Do the default learning rates hold from one depth to another?",
        tiles=[],
        footer="Made by benchmarks/transfer.py",
    )
    (out / name).write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
