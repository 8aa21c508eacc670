"""Parts of gpu_check about complete models: training steps and generation."""

import gc
import statistics
import tempfile
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import base_training
import torch
import torch._dynamo.utils as dynamo
from gpu_common import Work, reason
from torch.profiler import ProfilerActivity, profile

from nanochat import optim
from nanochat.data import Batch
from nanochat.engine import Engine, Request, SamplingParams
from nanochat.engine.decode_step import unrecorded
from nanochat.gpt import GPT, GPTConfig, flops, fp8
from nanochat.optim import MuonAdamW, OptimConfig
from nanochat.optim.schedules import warmup_decay
from nanochat.system import compiler
from nanochat.system import device as devices
from nanochat.system.distributed import Run
from nanochat.system.errors import explain_memory
from nanochat.system.metrics import MetricsLogger
from nanochat.training import memory_plan
from nanochat.training.memory_plan import StepPlan
from nanochat.training.trainer import LossFn, Trainer, token_loss

DTYPE = torch.bfloat16
SKIPPED = 3  # steps that build kernels and warm up
KERNELS_SHOWN = 12


@dataclass
class RandomBatches:
    """A BatchSource that copies the same random micro-batches to the device every step."""

    host: list[Batch]
    device: torch.device

    @classmethod
    def draw(cls, work: Work, rows: int, vocab_size: int) -> "RandomBatches":
        """Draw the micro-batches of one step."""
        T, V = work.scale.sequence_length, vocab_size
        count = max(1, work.scale.tokens_per_step // (rows * T))
        generator = torch.Generator().manual_seed(0)
        drawn = [torch.randint(V, (rows, T + 1), generator=generator) for _ in range(count)]
        parts = [(x[:, :-1].contiguous(), x[:, 1:].contiguous()) for x in drawn]
        if work.device.type == "cuda":
            parts = [(inputs.pin_memory(), targets.pin_memory()) for inputs, targets in parts]
        return cls([Batch(*part) for part in parts], work.device)

    def next_step(self) -> list[Batch]:
        """One step's micro-batches."""
        return [
            Batch(
                batch.inputs.to(self.device, non_blocking=True),
                batch.targets.to(self.device, non_blocking=True),
            )
            for batch in self.host
        ]

    def state(self) -> dict[str, Any]:
        """Does nothing."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


def check_training(
    work: Work, depth: int, precision: str, vocab_size: int | None = None, rows: int | None = None
) -> None:
    """Time training steps at the largest number of rows that fits, up to `rows`."""
    sizes = GPTConfig(
        depth=depth,
        sequence_length=work.scale.sequence_length,
        vocab_size=vocab_size or work.scale.vocab_size,
    )
    assert precision in ("bf16", "fp8"), precision
    what = f"depth {depth} in {precision}, vocabulary {sizes.vocab_size:,}"
    compiled = work.compiled
    rows_left = list(work.scale.device_rows)
    if rows is not None:
        rows_left = [rows, *(fewer for fewer in rows_left if fewer < rows)]
    while len(rows_left) > 1 and not _may_fit(work, sizes, rows_left[0]):
        rows_left.pop(0)
    while rows_left:
        try:
            _train(work, sizes, precision, rows=rows_left[0], compiled=compiled)
            return
        except Exception as error:  # the compiler may raise anything
            if explain_memory(error) is not None:
                work.note(f"{what}: {rows_left.pop(0)} rows do not fit: {reason(error)}")
            elif compiled:
                compiled = False
                work.note(f"{what}: compiling failed, measured uncompiled: {reason(error)}")
            else:
                raise
        # Outside the except block, the error no longer keeps tensors alive.
        torch.compiler.reset()
        gc.collect()
        torch.cuda.empty_cache()
    raise MemoryError(f"{what}: not even one row fits")


def _may_fit(work: Work, sizes: GPTConfig, rows: int) -> bool:
    """Whether the rows fit according to the estimate: a trial costs a compilation."""
    if work.device.type != "cuda":
        return True
    step = StepPlan(
        rows=rows,
        length=sizes.sequence_length,
        dtype=DTYPE,
        device_type="cuda",
        world_size=1,
        compiled=work.compiled,
    )
    plan = memory_plan.with_rows(step, rows, work.scale.tokens_per_step // sizes.sequence_length)
    available = torch.cuda.get_device_properties(work.device).total_memory
    needed = memory_plan.estimate(sizes, plan).total
    if needed > available:
        work.note(
            f"depth {sizes.depth}: {rows} rows not tried, estimated at {needed / 1e9:.0f} GB of "
            f"{available / 1e9:.0f}"
        )
    return needed <= available


@dataclass
class Clock:
    """When each step ended; the first step includes compilation."""

    begin_s: float = field(default_factory=time.perf_counter)
    ends_s: list[float] = field(default_factory=list)
    graphs: list[int] = field(default_factory=list)  # compiled so far, after each step

    def tick(self) -> None:
        """Record the end of a step."""
        self.ends_s.append(time.perf_counter())
        self.graphs.append(dynamo.counters["stats"]["unique_graphs"])

    @property
    def steps_s(self) -> list[float]:
        """Durations after the first few steps, or of the last step if there are no more."""
        pairs = zip(self.ends_s[:-1], self.ends_s[1:], strict=True)
        spans = [end - begin for begin, end in pairs]
        return spans[SKIPPED - 1 :] or spans[-1:]


def _train(work: Work, sizes: GPTConfig, precision: str, *, rows: int, compiled: bool) -> None:
    run = Run(rank=0, world_size=1, local_rank=0, device=work.device, compute_dtype=DTYPE)
    model = _model(work, sizes)
    if precision == "fp8":
        missing = fp8.why_not(work.device) if work.device.type == "cuda" else None
        assert missing is None, f"fp8: {missing}"
        assert fp8.swap(model), "no linear is large enough"
    batches = RandomBatches.draw(work, rows, sizes.vocab_size)
    tokens = len(batches.host) * rows * sizes.sequence_length
    optimizer = optim.build(model, OptimConfig(), run, tokens_per_step=tokens)
    loss = model.loss
    if compiled:
        loss = compiler.compiled(loss)
        optimizer.compile()
    per_token = flops.flops_per_token(sizes, sizes.sequence_length)
    if work.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(work.device)
    dynamo.counters.clear()
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder, MetricsLogger(Path(folder), run) as metrics:
        trainer = Trainer(
            optimizer=optimizer,
            batches=batches,
            loss_fn=token_loss(loss),
            schedule=warmup_decay(work.scale.steps),
            hooks=[],
            run=run,
            total_steps=work.scale.steps,
            metrics=metrics,
            flops_per_token=per_token,
            log_every=work.scale.steps,
            stop=lambda: work.late(needed_s=10) and len(clock.ends_s) > SKIPPED,
            after_step=clock.tick,
        )
        summary = trainer.fit()
    step_s = statistics.median(clock.steps_s)
    peak = trainer.peak_flops
    row = {
        "depth": sizes.depth,
        "vocab_size": sizes.vocab_size,
        "parameters": sum(flops.parameter_counts(sizes).values()),
        "precision": precision,
        "compiled": compiled,
        "fell_back": work.compiled and not compiled,
        "attention": model.attention.name,
        "rows": rows,
        "tokens_per_step": tokens,
        "steps": len(clock.steps_s),
        "step_ms_p50": 1e3 * step_s,
        "tokens_per_s": tokens / step_s,
        "tflops": per_token * tokens / step_s / 1e12,
        "mfu": per_token * tokens / step_s / peak if peak else None,
        "peak_tflops": peak / 1e12 if peak else None,
        "memory_bytes": devices.memory_used(work.device),
        "first_step_s": clock.ends_s[0] - clock.begin_s,
        "loss": trainer.last_loss,
        "skipped": summary.skipped,
        "graph_breaks": sum(dynamo.counters["graph_break"].values()),
        "recompiles": clock.graphs[-1] - clock.graphs[min(SKIPPED, len(clock.graphs)) - 1],
    }
    # Recorded before anything else can fail; the next row replaces it.
    work.add("training", **row)
    row["waits"] = _waits(work, trainer)
    parts = _pieces(work, trainer.loss_fn, optimizer, batches)
    work.add("training", **row, **parts)
    if work.device.type == "cuda" and not work.late(needed_s=15):
        _profile(
            work, f"{sizes.depth} {precision}, {rows} rows", trainer.loss_fn, optimizer, batches
        )


def _waits(work: Work, trainer: Trainer) -> int | None:
    """How often one step makes the host wait for the GPU, by torch's own count."""
    if work.device.type != "cuda":
        return None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            trainer._step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(warning.message) for warning in caught)


def _model(work: Work, sizes: GPTConfig) -> GPT:
    with torch.device("meta"):
        model = GPT(sizes, compute_dtype=DTYPE)
    model.to_empty(device=work.device)
    model.init_weights(torch.Generator(device=work.device).manual_seed(0))
    return model


def _pieces(
    work: Work, loss_fn: LossFn, optimizer: MuonAdamW, batches: RandomBatches
) -> dict[str, float]:
    """Separate times of a micro-batch's forward and backward pass, and of the update."""
    passes_s, updates_s = [], []
    for _ in range(4):
        devices.synchronize(work.device)
        begin_s = time.perf_counter()
        _pass(loss_fn, optimizer, batches.next_step()[0])
        devices.synchronize(work.device)
        middle_s = time.perf_counter()
        optimizer.step(warmup_decay(1)(0))
        devices.synchronize(work.device)
        passes_s.append(middle_s - begin_s)
        updates_s.append(time.perf_counter() - middle_s)
    return {  # the first of each warms up
        "pass_ms": 1e3 * statistics.median(passes_s[1:]),
        "update_ms": 1e3 * statistics.median(updates_s[1:]),
    }


def _pass(loss_fn: LossFn, optimizer: MuonAdamW, batch: Batch) -> None:
    factor = torch.tensor(1 / batch.targets.numel(), device=batch.targets.device)
    with optimizer.accumulate(last=True):
        loss_fn(batch, factor).backward()


def _profile(
    work: Work, what: str, loss_fn: LossFn, optimizer: MuonAdamW, batches: RandomBatches
) -> None:
    """Record the slowest kernels of one micro-batch and one update."""
    batch = batches.next_step()[0]
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        _pass(loss_fn, optimizer, batch)
        optimizer.step(warmup_decay(1)(0))
        devices.synchronize(work.device)
    events = profiled.key_averages()
    total = sum(event.self_device_time_total for event in events) or 1.0
    for event in sorted(events, key=lambda e: -e.self_device_time_total)[:KERNELS_SHOWN]:
        work.add(
            "kernels",
            model=what,
            kernel=event.key[:90],
            calls=event.count,
            ms=event.self_device_time_total / 1e3,
            share=event.self_device_time_total / total,
        )


def check_decoding(work: Work, depth: int) -> None:
    """Time prefill and decoding with the engine, for one row and for many.

    The same steps without CUDA graphs are timed too. Raises: AssertionError if their greedy tokens
    differ from those of the graphs.
    """
    scale = work.scale
    length = max(scale.sequence_length, scale.prompt + scale.new_tokens + 1)
    sizes = GPTConfig(depth=depth, sequence_length=length, vocab_size=scale.vocab_size)
    encoder = base_training.char_tokenizer(scale.vocab_size)
    model = _model(work, sizes)
    slots = max(scale.decode_batches)
    max_len = scale.prompt + scale.new_tokens + 1
    engine = Engine(model, encoder, slots=slots, max_len=max_len)
    plain = Engine(model, encoder, slots=slots, max_len=max_len, recorder=unrecorded)
    weights = sum(p.numel() for p in model.parameters()) * engine.dtype.itemsize
    del model

    def prompts(batch: int, tokens: int) -> list[list[int]]:
        rows = torch.randint(scale.vocab_size, (batch, tokens), generator=torch.Generator())
        found: list[list[int]] = rows.tolist()
        return found

    differing = []
    for batch in scale.decode_batches:
        # A quarter of the prompt before the new tokens fills the cache about as much as a chat.
        short = prompts(batch, scale.prompt // 4)
        prefill_s = _seconds(work, engine, prompts(batch, scale.prompt), 1)
        first_token_s = _seconds(work, engine, short, 1)
        all_tokens_s = _seconds(work, engine, short, 1 + scale.new_tokens)
        token_s = max(all_tokens_s - first_token_s, 1e-9) / scale.new_tokens
        plain_s = _seconds(work, plain, short, 1 + scale.new_tokens, repeats=1)
        greedy = [_greedy(e, short, scale.new_tokens) for e in (engine, plain)]
        if greedy[0] != greedy[1]:
            differing.append(batch)
        work.add(
            "decoding",
            depth=depth,
            batch=batch,
            prompt=scale.prompt,
            prefill_tokens_per_s=batch * scale.prompt / prefill_s,
            first_token_ms=1e3 * prefill_s,
            new_tokens=scale.new_tokens,
            token_ms=1e3 * token_s,
            tokens_per_s=batch / token_s,
            plain_token_ms=1e3 * max(plain_s - first_token_s, 0) / scale.new_tokens,
            weights_bytes=weights,
            weights_gb_per_s=weights / token_s / 1e9,
            memory_bytes=devices.memory_used(work.device),
        )
    if work.device.type == "cuda":  # elsewhere nothing is recorded, and shapes differ
        assert not differing, f"graphs and their steps differ in greedy tokens: rows {differing}"


def _greedy(engine: Engine, prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
    params = SamplingParams(temperature=0, max_new_tokens=new_tokens)
    requests = [Request(prompt=prompt, params=params, chat=False) for prompt in prompts]
    return [completion.tokens for completion in engine.generate(requests)]


def _seconds(
    work: Work, engine: Engine, prompts: list[list[int]], new_tokens: int, repeats: int = 3
) -> float:
    """Median time to answer all prompts with new_tokens each, after one warmup.

    A row ends early if it samples <|bos|>, which has a chance of about 1 / vocab_size per token.
    """

    def generate() -> float:
        params = [
            SamplingParams(top_k=50, max_new_tokens=new_tokens, seed=i) for i in range(len(prompts))
        ]
        requests = [
            Request(prompt=prompt, params=param, chat=False)
            for prompt, param in zip(prompts, params, strict=True)
        ]
        devices.synchronize(work.device)
        begin_s = time.perf_counter()
        engine.generate(requests)
        devices.synchronize(work.device)
        return time.perf_counter() - begin_s

    generate()
    return statistics.median(generate() for _ in range(repeats))
