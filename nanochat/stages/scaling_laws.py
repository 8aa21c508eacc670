"""Find the best model size and number of tokens for a compute budget, by a sweep of training runs.

nanochat scaling_laws --dry-run
nanochat scaling_laws --seeds 1,2,3
nanochat scaling_laws --data 'texts/*.parquet' --vocab-size 4096 --sequence-length 512
nanochat scaling_laws --preset gpu1 --sizes 4,6,8,10 --budgets 1e17,3e17 --tokens-per-step none
"""

import dataclasses
import datetime
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from nanochat import checkpoint_manager, report, tokenizer
from nanochat.data import DataOptions, Dataset, open_data
from nanochat.gpt import GPTConfig
from nanochat.optim import OptimConfig
from nanochat.report.data import made
from nanochat.scaling_laws import flags, isoflop, sweep
from nanochat.scaling_laws import page as isoflop_page
from nanochat.scaling_laws.sweep import Member
from nanochat.system import compiler, config, storage
from nanochat.system import device as devices
from nanochat.system.config import RunOptions, flat_fields, nested, option
from nanochat.system.console import log_line, show_log
from nanochat.system.distributed import DTYPES
from nanochat.system.errors import ConfigError, Stopped
from nanochat.system.metrics import duration
from nanochat.system.signals import asked_to_stop
from nanochat.tokenizer import Tokenizer
from nanochat.training.memory_plan import StepPlan
from nanochat.training.stage_opening import LoopOptions

NAME = "scaling_laws"
# Runs of a sweep must agree in all options but these, which set where, how fast or which runs.
MAY_DIFFER = frozenset(
    "run budgets sizes ratios seeds dry_run device threads save_every compile device_batch_size "
    "checkpoint_activations".split()
)


@dataclass(frozen=True, kw_only=True)
class ScalingLawsConfig:
    """Train models of several sizes with equal compute, and fit the size that uses it best.

    For each of --budgets (FLOPs), base_train trains one model of each of --sizes on as many tokens
    as the budget pays for. Small models run out of capacity and large ones out of tokens; a
    parabola through the losses gives the best size in between, and a power law through the best
    sizes predicts larger budgets. If the best size is the smallest or largest one tried, the report
    says so instead of calling it an optimum: change --sizes or --ratios. The defaults suit a CPU
    and need no network: the text is pocket's, about a small world with few words, so the results do
    not carry over to web text. Each run's figures are kept, its weights are not. Finished runs are
    never repeated: the same command resumes after an interruption, and more --budgets, --sizes or
    --seeds extend the sweep.
    """

    run: str = option("scaling", "name of the sweep, in $NANOCHAT_BASE_DIR/runs/NAME/scaling_laws")
    budgets: str = option("3e12,6e12,1.2e13,2.4e13", "FLOPs of each run, separated by commas")
    # A single layer cannot look up what followed an earlier word: such models are off the curve.
    sizes: str = option(
        "2x32,2x48,2x64,2x80,2x96,2x128,3x128,3x160",
        "models as DEPTHxWIDTH, or DEPTH for the default width, separated by commas",
    )
    # On pocket 9 to 18 are best; runs far from the optimum distort the parabola.
    ratios: str | None = option(
        "2,150",
        "least and most tokens per parameter: a budget leaves out sizes outside of them; none: "
        "train every size at every budget",
    )
    seeds: str = option("1337", "seeds to train each size with, separated by commas")
    dry_run: bool = option(False, "print what would be trained and for how long, then exit")
    tokenizer: str | None = option(
        None, "name in $NANOCHAT_BASE_DIR/tokenizers, or a path; none: the sweep trains one"
    )
    vocab_size: int = option(1040, "vocabulary size of the tokenizer that the sweep trains")
    sequence_length: int = option(256, "tokens of context to train on")
    # The batch size of the scaling rule would leave models this small only a few dozen steps.
    tokens_per_step: int | None = option(
        4096, "tokens in one optimizer step; none: from each model's scale", least=1
    )
    warmup_steps: int | None = option(None, "as in base_train; none: its default")
    warmdown_frac: float | None = option(None, "as in base_train; none: its default")
    final_lr_frac: float | None = option(None, "as in base_train; none: its default")
    val_rows: int | None = option(None, "as in base_train; none: its default")
    common: RunOptions = nested(RunOptions, without=("run", "seed", "wandb"))
    loop: LoopOptions = nested(
        LoopOptions,
        without=tuple(
            "resume log_every eval_every sample_every keep keep_every keep_best profile".split()
        ),
    )
    model: GPTConfig = nested(
        GPTConfig,
        without=(
            *("vocab_size", "sequence_length", "depth", "width", "heads", "kv_heads", "window"),
            *("pairs", "convolution"),
        ),
    )
    optimizer: OptimConfig = nested(OptimConfig)
    data: DataOptions = nested(DataOptions)

    def __post_init__(self) -> None:
        config.check_name("--run", self.run)
        members_of(self, self.vocab_size)  # reports bad options before any work starts


def models(cfg: ScalingLawsConfig, vocab_size: int) -> list[GPTConfig]:
    """The models of --sizes, with the options they share."""
    shared = {name: getattr(cfg.model, name) for name in architecture_flags()}
    shared |= {"sequence_length": cfg.sequence_length, "vocab_size": vocab_size}
    return flags.models(cfg.sizes, **shared)


def architecture_flags() -> list[str]:
    """Options of the model that all sizes share."""
    hidden = ScalingLawsConfig.__dataclass_fields__["model"].metadata["without"]
    return [name for name in flat_fields(GPTConfig) if name not in hidden]


def main(argv: list[str] | None = None) -> None:
    sections = ("tok_train", "base_train", NAME)
    cfg = config.parse(ScalingLawsConfig, argv, stage=NAME, sections=sections)
    if cfg.dry_run:
        print_plan(cfg, members_of(cfg, cfg.vocab_size), {})
        return
    show_log()
    folder = storage.stage_dir(cfg.run, NAME)
    busy = f"another process is running the sweep {cfg.run!r}; wait for it, or give --run NAME"
    with storage.lock(folder / ".lock", busy=busy):
        cfg = with_shards(cfg)
        data = open_data(cfg.data, base=storage.base_dir())
        encoder = find_tokenizer(cfg, folder)
        cfg = with_dtype(cfg, folder)
        sweep.check_settings(folder, shared_settings(cfg, data, encoder))
        members = members_of(cfg, encoder.vocab_size)
        done = sweep.read(folder)
        print_plan(cfg, members, done)
        if note := sweep.repeats(members, data, encoder):
            log_line(note)
        train_all(cfg, members, done, folder)
        log_line("\n".join(isoflop_page.lines(analysis(members, done))))
        log_line(str(write_page(cfg, members, done, folder)))


def members_of(cfg: ScalingLawsConfig, vocab_size: int) -> list[Member]:
    """All runs of the sweep."""
    return sweep.members(
        flags.budgets(cfg.budgets),
        models(cfg, vocab_size),
        flags.seeds(cfg.seeds),
        tokens_per_step=cfg.tokens_per_step,
        ratios=flags.ratios(cfg.ratios),
    )


def with_shards(cfg: ScalingLawsConfig) -> ScalingLawsConfig:
    """The options with a number for --shards auto: enough for the longest run, equal for all."""
    tokens = max(member.tokens for member in members_of(cfg, cfg.vocab_size))
    return dataclasses.replace(cfg, data=cfg.data.enough_for_tokens(tokens))


def find_tokenizer(cfg: ScalingLawsConfig, folder: Path) -> Tokenizer:
    """The tokenizer the options name, or the sweep's own, which is trained if missing."""
    path = tokenizer.locate(cfg.tokenizer or cfg.run)
    if not path.exists():
        if cfg.tokenizer is not None:
            raise ConfigError(f"no tokenizer {cfg.tokenizer!r} in {path.parent}")
        log_line(f"training a tokenizer of {cfg.vocab_size:,} tokens")
        args = ["--run", cfg.run, "--vocab-size", str(cfg.vocab_size)]
        args += config.as_args(cfg, flat_fields(DataOptions))
        args += config.as_args(cfg, ["threads"])
        with asked_to_stop(announce=True) as stop:
            sweep.run(command("tok_train", args), folder / "tok_train.log", stop)
        if not path.exists():
            raise Stopped
    return tokenizer.load(path)


def with_dtype(cfg: ScalingLawsConfig, folder: Path) -> ScalingLawsConfig:
    """The options with the dtype that the sweep started with, else the faster one here.

    Runs that each measured it for themselves might end up with different ones.
    """
    before = sweep.settings(folder).get("dtype")
    dtype = cfg.common.dtype or before or str(device_and_dtype(cfg)[1]).removeprefix("torch.")
    return dataclasses.replace(cfg, common=dataclasses.replace(cfg.common, dtype=dtype))


def device_and_dtype(cfg: ScalingLawsConfig) -> tuple[torch.device, torch.dtype]:
    """The device and the compute dtype of the runs."""
    device = devices.choose_device(cfg.common.device)
    if device.type == "cpu":
        torch.set_num_threads(cfg.common.threads or devices.cores())
    return device, DTYPES[cfg.common.dtype] if cfg.common.dtype else devices.measure_dtype(device)


def base_train_args(cfg: ScalingLawsConfig, member: Member) -> list[str]:
    """The command line of base_train for one member."""
    given = {
        "run": member_run(cfg, member),
        "tokenizer": cfg.tokenizer or cfg.run,
        "seed": member.seed,
        "depth": member.model.depth,
        "width": member.model.width,
        "sequence_length": member.model.sequence_length,
        "tokens": member.tokens,
        "tokens_per_step": member.tokens_per_step,
        **{
            name: getattr(cfg, name)
            for name in ("warmup_steps", "warmdown_frac", "final_lr_frac", "val_rows")
            if getattr(cfg, name) is not None
        },
    }
    args = ["--resume"]
    for name, value in given.items():
        args += ["--" + name.replace("_", "-"), str(value)]
    groups = (RunOptions, LoopOptions, OptimConfig, DataOptions)
    shared = {name for group in groups for name in flat_fields(group)} - {"run", "seed"}
    return args + config.as_args(cfg, [*architecture_flags(), *sorted(shared)])


def member_run(cfg: ScalingLawsConfig, member: Member) -> str:
    """The run name of a member."""
    return f"{cfg.run}-{member.name}"


def shared_settings(cfg: ScalingLawsConfig, data: Dataset, encoder: Tokenizer) -> dict[str, Any]:
    """The settings that all runs of a sweep share."""
    options = {name: value for name, value in config.to_dict(cfg).items() if name not in MAY_DIFFER}
    return {"data_hash": data.hash, "tokenizer_sha256": encoder.sha256, **options}


def command(stage: str, args: Sequence[str]) -> list[str]:
    """A stage's command line, with the current Python."""
    return [sys.executable, "-m", f"nanochat.stages.{stage}", *args]


def train_all(
    cfg: ScalingLawsConfig, members: Sequence[Member], done: dict[str, dict[str, Any]], folder: Path
) -> None:
    """Train the members that are not done, adding them to `done`. Raises: Stopped if asked to."""
    todo = [member for member in members if member.name not in done]
    planned, _ = planned_seconds(cfg, todo)
    start_s, planned_so_far = time.monotonic(), 0.0
    for number, member in enumerate(todo, start=1):
        row = done[member.name] = train(cfg, member, folder)
        made("page of the runs so far", partial(write_page, cfg, members, done, folder), None)
        planned_so_far += planned[number - 1]
        rest_s = (time.monotonic() - start_s) * (sum(planned) / planned_so_far - 1)
        log_line(
            f"{number}/{len(todo)}  {member.budget:.3g} FLOPs, {member.description}, "
            f"seed {member.seed}: {row[sweep.LOSS]:.4f} bits per byte "
            f"in {duration(row['seconds'])}; {duration(rest_s)} left",
        )


def train(cfg: ScalingLawsConfig, member: Member, folder: Path) -> dict[str, Any]:
    """Train one model by base_train unless that is done; return its figures, remove its weights.

    Raises: Stopped if a signal asked for it; base_train has saved a checkpoint then.
    """
    stage_dir = storage.stage_dir(member_run(cfg, member), "base_train")
    if not report.is_complete(stage_dir):
        log = folder / "logs" / f"{member.name}.log"
        with asked_to_stop(announce=True) as stop:
            sweep.run(command("base_train", base_train_args(cfg, member)), log, stop)
        if not report.is_complete(stage_dir):
            log_line("stopped; the same command continues from there")
            raise Stopped
    row = sweep.record(folder, member, stage_dir)
    for checkpoint in checkpoint_manager.steps(stage_dir):
        checkpoint_manager.remove(checkpoint)
    return row


def print_plan(
    cfg: ScalingLawsConfig, members: Sequence[Member], done: dict[str, dict[str, Any]]
) -> None:
    """Print what will be trained and about how long it takes."""
    todo = [member for member in members if member.name not in done]
    planned, known = planned_seconds(cfg, todo)
    log_line("\n".join(sweep.plan_lines(members)))
    count = f"{len(todo)} of {len(members)} runs to do" if done else f"{len(todo)} runs"
    how_long = f"about {duration(sum(planned))}" if known else "time unknown for this device"
    log_line(f"{count}, {how_long}" if todo else "nothing to train")


def planned_seconds(cfg: ScalingLawsConfig, members: Sequence[Member]) -> tuple[list[float], bool]:
    """About how long each run takes, and whether that rests on a known speed of the device."""
    device, dtype = device_and_dtype(cfg)
    peak = devices.peak_flops(device, dtype)
    compiled = cfg.loop.compile is not False and compiler.probe(device) is None
    rows = 16 if cfg.loop.device_batch_size == "auto" else cfg.loop.device_batch_size
    step = StepPlan(
        rows=rows,
        length=cfg.sequence_length,
        dtype=dtype,
        device_type=device.type,
        compiled=compiled,
        checkpoint_activations=cfg.loop.checkpoint_activations,
    )
    return sweep.planned_seconds(members, step, peak_flops=peak or 1e12), peak is not None


def analysis(members: Sequence[Member], done: dict[str, dict[str, Any]]) -> isoflop.Analysis:
    """The fits to the finished runs."""
    return isoflop.analyze(sweep.points([done[m.name] for m in members if m.name in done]))


def write_page(
    cfg: ScalingLawsConfig,
    members: Sequence[Member],
    done: dict[str, dict[str, Any]],
    folder: Path,
) -> Path:
    """Write scaling_laws.html from the finished runs; return its path."""
    rows = sweep.table(members, done)
    written = datetime.datetime.now().astimezone().strftime("%d %B %Y, %H:%M")
    lead = (
        f"Models of one architecture, trained on {cfg.data.data} with equal compute, "
        f"{len(rows)} of {len(members)} runs. Written {written}."
    )
    page = isoflop_page.render(analysis(members, done), name=cfg.run, lead=lead, rows=rows)
    path = folder / f"{NAME}.html"
    storage.write_atomic(path, page.encode())
    return path


if __name__ == "__main__":
    config.cli(main)
