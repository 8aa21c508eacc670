"""The training loop, one for base, mid, SFT and RL.

Owns the order of things within a step, the figures of a step and the hooks after it. Knows neither
data formats nor files; saving, evaluating and sampling are hooks.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nanochat import device as devices
from nanochat.dataloader import Batch, BatchSource
from nanochat.distributed import Run, all_reduce_sum
from nanochat.errors import UserError
from nanochat.metrics import MetricsLogger
from nanochat.optim import MuonAdamW
from nanochat.schedules import Schedule

LossFn = Callable[[Batch], Tensor]
# Steps whose gradient is not finite are left out; so many one after another are no accident.
MOST_SKIPPED = 5
REMEDY = "lower the learning rates (--lr-scale 0.5), --resume goes on from the last checkpoint"


class TrainingError(UserError):
    """Training cannot go on: the message says why and what to change."""


@dataclass(frozen=True)
class Hook:
    """Something to do after a step: every so many steps, and at the end if asked.

    on_stop: also when training is asked to end early.
    """

    fn: Callable[["Trainer"], None]
    every: int | None = None
    at_end: bool = True
    on_stop: bool = False


@dataclass
class Progress:
    """How far training is; saved in the checkpoint.

    skipped: steps whose gradient was not finite, and which changed nothing.
    open_loss, open_steps: what a run that was stopped between two rows of its metrics had gathered
    for the next one.
    """

    step: int = 0
    tokens: int = 0
    elapsed_s: float = 0.0
    skipped: int = 0
    open_loss: float = 0.0
    open_steps: int = 0


@dataclass(frozen=True)
class Summary:
    """What a stage's training came to, with what it had before it was resumed."""

    steps: int
    trained_steps: int  # since it was resumed
    tokens: int
    elapsed_s: float
    tokens_per_s: float
    final_loss: float
    data_wait_share: float


@dataclass
class _Window:
    """Sums since the last logged row; tokens and times since the kernels were built."""

    loss: Tensor
    steps: int = 0
    tokens: int = 0
    wait_s: float = 0.0
    start_s: float = field(default_factory=time.perf_counter)


class Trainer:
    """Runs `total_steps` optimizer steps over a batch source.

    loss_fn: takes a Batch, returns the SUM of its token losses (0-d). The step's number of target
    tokens is all-reduced before the first forward and divides the sum, so that the loss is the
    global token mean whatever the packing, accumulation or number of ranks.
    """

    def __init__(
        self,
        *,
        optimizer: MuonAdamW,
        batches: BatchSource,
        loss_fn: LossFn,
        schedule: Schedule,
        hooks: Sequence[Hook],
        run: Run,
        total_steps: int,
        metrics: MetricsLogger,
        flops_per_token: float,
        log_every: int = 10,
        say: Callable[[str], None] = lambda line: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.optimizer = optimizer
        self.batches = batches
        self.loss_fn = loss_fn
        self.schedule = schedule
        self.hooks = hooks
        self.run = run
        self.total_steps = total_steps
        self.metrics = metrics
        self.flops_per_token = flops_per_token
        self.log_every = log_every
        self.say = say
        self.stop = stop
        self.stopping = False
        self.progress = Progress()
        self.peak_flops = devices.peak_flops(run.device, run.compute_dtype)
        self._window = self._open_window()
        self._wait_s = 0.0
        self.last_loss = math.nan
        self._warm = False
        self._skipped_in_a_row = 0
        self._flag: tuple[Tensor, torch.cuda.Event] | None = None

    def fit(self) -> Summary:
        """Train from `progress.step` to the last step, or until asked to stop. Collective.

        Raises: TrainingError if one step after another has no finite gradient; the last checkpoint
            stands.
        """
        first_step, first_tokens = self.progress.step, self.progress.tokens
        begin_s = time.perf_counter()
        hooks_s = 0.0
        self._window = self._open_window()
        while self.progress.step < self.total_steps and not self.stopping:
            self._step()
            if self._row_is_due():
                self._log()
            elif not self._warm:
                self._say_started()
            if self.stopping:
                self._close_window()
            hook_begin_s = time.perf_counter()
            self._run_hooks()
            spent_s = time.perf_counter() - hook_begin_s
            hooks_s += spent_s
            self._window.start_s += spent_s  # evaluation is not training time
        elapsed_s = time.perf_counter() - begin_s
        training_s = max(elapsed_s - hooks_s, 1e-9)
        return Summary(
            steps=self.progress.step,
            trained_steps=self.progress.step - first_step,
            tokens=self.progress.tokens,
            elapsed_s=elapsed_s,
            tokens_per_s=(self.progress.tokens - first_tokens) / training_s,
            final_loss=self.last_loss,
            data_wait_share=self._wait_s / training_s,
        )

    def _step(self) -> None:
        """One optimizer step over all of this rank's micro-batches. Collective."""
        wait_begin_s = time.perf_counter()
        micro_batches = self.batches.next_step()
        self._window.wait_s += time.perf_counter() - wait_begin_s
        counts = torch.stack([(b.targets >= 0).sum() for b in micro_batches]).sum()
        shared = torch.stack([counts, torch.full_like(counts, self.stop())])
        target_count, stop = all_reduce_sum(self.run, shared).unbind()
        target_count = target_count.clamp(min=1)
        total = None
        for i, batch in enumerate(micro_batches):
            last = i == len(micro_batches) - 1
            with self.optimizer.accumulate(last=last):
                loss = self.loss_fn(batch) / target_count
                loss.backward()
            total = loss.detach() if total is None else total + loss.detach()
        assert total is not None, "a step needs at least one micro-batch"
        stats = self.optimizer.step(self.schedule(self.progress.step))
        self.optimizer.zero_grad()
        self._stats = stats
        self.stopping = self._read_later(stop)
        window = self._window
        rows_tokens = sum(b.inputs.numel() for b in micro_batches)
        window.tokens += rows_tokens * self.run.world_size
        self.progress.step += 1
        self.progress.tokens += rows_tokens * self.run.world_size
        if bool(stats["grad_norm"].isfinite()):
            window.loss = window.loss + total.double()
            window.steps += 1
            self._skipped_in_a_row = 0
        else:
            self._skip(float(stats["grad_norm"]))

    def _skip(self, grad_norm: float) -> None:
        """Count a step that the optimizer has left out.

        Raises: TrainingError if there were many one after another.
        """
        self.progress.skipped += 1
        self._skipped_in_a_row += 1
        step = self.progress.step
        self.say(f"warning: step {step:,} skipped: its gradient norm is {grad_norm}")
        if self._skipped_in_a_row in (MOST_SKIPPED, self.total_steps):
            raise TrainingError(
                f"the gradients of the last {self._skipped_in_a_row} steps, up to step {step:,}, "
                f"are not finite: {REMEDY}"
            )

    def _log(self) -> None:
        """Read the window's figures, write a row and say a line. Collective."""
        window = self._window
        if window.steps == 0:
            return  # all were skipped
        loss = float(all_reduce_sum(self.run, window.loss)) / window.steps
        devices.synchronize(self.run.device)
        elapsed_s = max(time.perf_counter() - window.start_s, 1e-9)
        self.progress.elapsed_s += elapsed_s
        self._wait_s += window.wait_s
        self.last_loss = loss
        rate = window.tokens / elapsed_s
        grad_norm = float(self._stats["grad_norm"])
        settings = self.schedule(self.progress.step - 1)
        row: dict[str, Any] = {
            "tokens": self.progress.tokens,
            "loss": loss,
            "lr_scale": settings.lr_scale,
            "grad_norm": grad_norm if math.isfinite(grad_norm) else None,
            "skipped": self.progress.skipped,
            "tokens_per_s": rate,
            "mfu": self._mfu(rate),
            "data_wait_share": window.wait_s / elapsed_s,
            "elapsed_s": self.progress.elapsed_s,
        }
        self.metrics.log(self.progress.step, row)
        left_tokens = (self.total_steps / self.progress.step - 1) * self.progress.tokens
        # the first step builds kernels: its speed says nothing about what is left
        left = (
            f"left {duration(left_tokens / rate)}"
            if self._warm
            else f"started in {duration(elapsed_s)}"
        )
        self._warm = True
        mfu = f" | mfu {row['mfu']:.1%}" if row["mfu"] is not None else ""
        self.say(
            f"step {self.progress.step:,}/{self.total_steps:,} | loss {loss:.4f} | "
            f"lr x{settings.lr_scale:.2f} | grad {grad_norm:.2f} | {rate:,.0f} tok/s{mfu} | "
            f"{left}"
        )
        self.progress.open_loss, self.progress.open_steps = 0.0, 0
        self._window = self._open_window()

    def _say_started(self) -> None:
        """Say that a resumed run is under way, and leave its first step out of the speed."""
        devices.synchronize(self.run.device)
        window = self._window
        elapsed_s = time.perf_counter() - window.start_s
        self.progress.elapsed_s += elapsed_s
        self._wait_s += window.wait_s
        self.say(
            f"step {self.progress.step:,}/{self.total_steps:,} | started in {duration(elapsed_s)}"
        )
        window.start_s, window.wait_s, window.tokens = time.perf_counter(), 0.0, 0
        self._warm = True

    def _open_window(self) -> _Window:
        """An empty window, or what a stopped run had in its last one; rank 0 holds the sums."""
        progress = self.progress
        loss = torch.tensor(progress.open_loss, dtype=torch.float64, device=self.run.device)
        mine = loss if self.run.is_main else torch.zeros_like(loss)
        return _Window(loss=mine, steps=progress.open_steps)

    def _close_window(self) -> None:
        """Keep the window's sums for the run that goes on: the next row is then as it would be."""
        window = self._window
        loss = float(all_reduce_sum(self.run, window.loss))
        self.progress.open_loss, self.progress.open_steps = loss, window.steps
        self.progress.elapsed_s += time.perf_counter() - window.start_s

    def _read_later(self, flag: Tensor) -> bool:
        """What a flag on the device says; on a GPU that of the step before, to wait for nothing."""
        if flag.device.type != "cuda":
            return bool(flag)
        host = torch.empty((), dtype=flag.dtype, pin_memory=True)
        host.copy_(flag, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()
        before, self._flag = self._flag, (host, copied)
        if before is None:
            return False
        before[1].synchronize()
        return bool(before[0])

    def _mfu(self, tokens_per_s: float) -> float | None:
        if self.peak_flops is None:
            return None
        return tokens_per_s * self.flops_per_token / (self.peak_flops * self.run.world_size)

    def _run_hooks(self) -> None:
        for hook in self.hooks:
            if self._is_due(hook) or (hook.on_stop and self.stopping):
                hook.fn(self)

    def _row_is_due(self) -> bool:
        """After the same steps in a run left alone as in one that was stopped or killed."""
        first = self.progress.step == 1
        return first or self._at(self.log_every) or any(map(self._is_due, self.hooks))

    def _is_due(self, hook: Hook) -> bool:
        at_end = hook.at_end and self.progress.step == self.total_steps
        return at_end or (hook.every is not None and self._at(hook.every))

    def _at(self, every: int) -> bool:
        step = self.progress.step
        return step % every == 0 or (every == self.log_every and step == self.total_steps)


def token_loss(token_losses: Callable[[Tensor, Tensor], Tensor]) -> LossFn:
    """The loss of language modelling, and of policy gradients where the batch has weights.

    token_losses: (inputs (B, T), targets (B, T)) -> cross-entropies (B, T), 0 where ignored.
    """

    def loss_fn(batch: Batch) -> Tensor:
        losses = token_losses(batch.inputs, batch.targets)
        return (losses if batch.weights is None else losses * batch.weights).sum()

    return loss_fn


def duration(seconds: float) -> str:
    """Seconds as a person reads them: 45s, 3m12s, 2h05m, 12d04h."""
    whole = round(max(seconds, 0))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 48 * 3600:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"
