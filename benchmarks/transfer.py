"""Do the default learning rates hold over sizes? Two looks at it, as tables and plots.

python benchmarks/transfer.py coordinates                     # depths 2 to 12, random text
python benchmarks/transfer.py rates --data 'texts/*.parquet' --depths 2 4 6 --factors 0.25 0.5 1 2 4

coordinates: how large activations are after a few steps at the default rates. What grows or shrinks
from depth to depth (and with it from width to width) would need rates of another size there.
rates: base training at multiples of the default rates, the same number of tokens a parameter; the
best multiple should be near 1 at every depth.
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
COLOURS = ("tok", "base", "mid", "sft", "rl", "other")  # of the style sheet
QUANTITIES = ("attention", "mlp", "residual", "logits")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder for the plots; none: tables only")
    looks = parser.add_subparsers(dest="look", required=True)
    coordinates = looks.add_parser("coordinates", help="sizes of activations by depth")
    coordinates.add_argument("--depths", type=int, nargs="+", default=[2, 4, 6, 8, 10, 12])
    coordinates.add_argument("--steps", type=int, default=5)
    coordinates.add_argument("--seeds", type=int, default=3)
    rates = looks.add_parser("rates", help="validation loss by learning rate and depth")
    rates.add_argument("--data", required=True)
    rates.add_argument("--depths", type=int, nargs="+", default=[2, 4, 6])
    rates.add_argument("--factors", type=float, nargs="+", default=[0.25, 0.5, 1.0, 2.0, 4.0])
    rates.add_argument("--ratio", type=float, default=2.0, help="tokens a parameter")
    rates.add_argument("--vocab-size", type=int, default=4096)
    rates.add_argument("--options", nargs=argparse.REMAINDER, default=[], help="of base_train")
    given = parser.parse_args()
    if given.look == "coordinates":
        show_coordinates(given.depths, given.steps, given.seeds, given.out)
    else:
        show_rates(given)


def show_coordinates(depths: Sequence[int], steps: int, seeds: int, out: Path | None) -> None:
    """Root mean squares by depth before the last step: the mean over seeds, and their range."""
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
            kind=f"main {COLOURS[i % len(COLOURS)]}",
        )
        for i, q in enumerate(QUANTITIES)
    ]
    title = f"root mean square before step {steps}"
    draw(out, "coordinates.html", curves, x_name="depth", title=title)


def coordinates(depth: int, steps: int, seed: int) -> dict[str, float]:
    """Root mean squares before the last step, averaged over the layers."""
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
    """Note how large what the layers add and the stream after them are."""

    def note(name: str, module: torch.nn.Module) -> None:
        def look(_module: object, _inputs: object, output: Tensor) -> None:
            now.setdefault(name, []).append(rms(output))

        module.register_forward_hook(look)

    for block in model.blocks:
        note("attention", block.attention)
        note("mlp", block.mlp)
        note("residual", block)


def rms(x: Tensor) -> float:
    return float(x.detach().square().mean().sqrt())


def show_rates(given: argparse.Namespace) -> None:
    """Validation bits per byte by depth and multiple of the default rates."""
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
                plots.Curve(f"depth {depth}", points, kind=f"main {COLOURS[i % len(COLOURS)]}")
            )
    title = "validation bits per byte"
    draw(given.out, "rates.html", curves, x_name="log2 of the rates' factor", title=title)


def train(folder: str, given: argparse.Namespace, depth: int, factor: float) -> float:
    """The validation loss at the end of a training."""
    config = GPTConfig(vocab_size=given.vocab_size, depth=depth, sequence_length=LENGTH)
    tokens = int(given.ratio * flops.scaling_parameters(config))
    run = f"d{depth}-x{factor:g}"
    words = f"--run {run} --tokenizer t --data {given.data} --depth {depth} --tokens {tokens}"
    words += f" --sequence-length {LENGTH} --lr-scale {factor}"
    if "--tokens-per-step" not in given.options:
        words += " --tokens-per-step 4096"
    stage("base_train", *words.split(), *given.options)
    path = Path(folder) / "runs" / run / "base_train" / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return float([row["val_bpb"] for row in rows if "val_bpb" in row][-1])


def stage(name: str, *words: str) -> None:
    """Run a stage in a process of its own; its output is shown if it fails."""
    command = [sys.executable, "-m", f"scripts.{name}", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(done.stdout[-1000:] + done.stderr[-2000:])


def lowest(factors: Sequence[float], losses: Sequence[float]) -> float:
    """The factor at the minimum of a parabola through the best three, in log factor."""
    best = min(range(len(losses)), key=losses.__getitem__)
    middle = min(max(best, 1), len(losses) - 2)
    if len(losses) < 3 or best != middle:
        return factors[best]  # at the border: no minimum is seen
    (x0, y0), (x1, y1), (x2, y2) = (
        (math.log(factors[i]), losses[i]) for i in range(middle - 1, middle + 2)
    )
    left, right = (y1 - y0) / (x1 - x0), (y2 - y1) / (x2 - x1)
    curvature = (right - left) / (x2 - x0)
    return math.exp((x0 + x1) / 2 - left / (2 * curvature))


def draw(
    out: Path | None, name: str, curves: Sequence[plots.Curve], *, x_name: str, title: str
) -> None:
    """Write a page with one plot, if a folder for it was named."""
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
        heading="Rates over sizes",
        lead="Do the default learning rates hold from one depth to another?",
        tiles=[],
        footer="Made by benchmarks/transfer.py",
    )
    (out / name).write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
