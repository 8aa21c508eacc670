"""The training loop, one for base, mid, SFT and RL.

Owns: the order of events within a step, the figures of a step and the hooks after it. Does not own:
data formats and files; saving, evaluating and sampling are hooks.
"""

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nanochat.data import Batch, BatchSource
from nanochat.optim import MuonAdamW
from nanochat.optim.schedules import Schedule
from nanochat.system import device as devices
from nanochat.system.device import HostCopy
from nanochat.system.distributed import Run, all_reduce_sum
from nanochat.system.errors import UserError
from nanochat.system.metrics import MetricsLogger, duration
from nanochat.training.loss_scale import LEAST, LossScale
from nanochat.training.progress import Progress, Summary

LossFn = Callable[[Batch, Tensor], Tensor]
TokenLoss = Callable[[Tensor, Tensor, Tensor], Tensor]  # tokens, targets, weights: see GPT.loss
# Steps that are not finite are skipped; this many in a row are not a fluke, and rewinding to one
# checkpoint more often than MAX_REWINDS does not help.
MAX_SKIPPED = 5
MAX_REWINDS = 3
STEPS_TIMED = 1000  # the last ones, whose times the quantiles are taken over
REMEDY = "lower the learning rates (--lr-scale 0.5); --resume continues from the last checkpoint"


class TrainingError(UserError):
    """Training cannot continue; the message says why and what to change."""


@dataclass(frozen=True)
class Hook:
    """Something to do after every `every` steps, and at the end if at_end.

    on_stop: also when training is asked to stop early; other hooks are then left for the resume.
    """

    fn: Callable[["Trainer"], None]
    every: int | None = None
    at_end: bool = True
    on_stop: bool = False


@dataclass
class _Window:
    """Tokens and times since the last logged row."""

    tokens: int = 0
    wait_s: float = 0.0
    start_s: float = field(default_factory=time.perf_counter)


@dataclass(kw_only=True, eq=False)
class Trainer:
    """Runs `total_steps` optimizer steps over a batch source.

    loss_fn: takes a Batch and a factor (0-d), returns the factor times the SUM of the batch's token
    losses (0-d). The factor is one by the step's number of target tokens, which is all-reduced
    before the first forward, so that the loss is the global token mean whatever the packing,
    accumulation or number of ranks.
    stop: whether this process was asked to stop. after_step: called between steps, to profile.
    rewind: takes weights, optimizer and progress back to a checkpoint, but not the batches, so
    that training continues on new data. Collective. watch_loss: whether to warn of loss spikes.
    loss_scale: for float16, None in wider dtypes. A step whose gradients overflow is then no fault:
    it changes nothing, and the next one has half the scale.
    """

    optimizer: MuonAdamW
    batches: BatchSource
    loss_fn: LossFn
    schedule: Schedule
    hooks: Sequence[Hook]
    run: Run
    total_steps: int
    metrics: MetricsLogger
    flops_per_token: float
    log_every: int = 10
    log_line: Callable[[str], None] = lambda line: None
    stop: Callable[[], bool] = lambda: False
    rewind: Callable[["Trainer"], None] | None = None
    after_step: Callable[[], object] = lambda: None
    watch_loss: bool = True
    loss_scale: LossScale | None = None

    def __post_init__(self) -> None:
        self.stopping = False
        self.progress = Progress()
        self.peak_flops: float | None = None  # measured after the first step
        self.last_loss = math.nan
        self._window = _Window()
        self._wait_s = 0.0
        self._trained_steps, self._trained_tokens = 0, 0  # by this process, including undone ones
        self._steps_s: deque[float] = deque(maxlen=STEPS_TIMED)
        self._warm = False
        self._unread: deque[tuple[int, HostCopy]] = deque()
        self._lag = 1 if self.run.device.type == "cuda" else 0  # steps the host may run ahead
        self._grad_norm = math.nan
        self._scale = 1.0  # of the loss, in the last step that was read
        self._rewound_to: Counter[int] = Counter()

    def fit(self) -> Summary:
        """Train from `progress.step` to the last step, or until asked to stop. Collective.

        Raises: TrainingError if several steps in a row are not finite, and rewinding to the last
            checkpoint does not help; the checkpoint is kept.
        """
        start_s = time.perf_counter()
        hooks_s = 0.0
        self._window = _Window()
        while self.progress.step < self.total_steps and not self.stopping:
            step_start_s = time.perf_counter()
            self._step()
            due = self._row_is_due()
            self._read(0 if due else self._lag)
            if self.stopping:
                self._read(0)
            self.after_step()
            if self._warm:  # the first step builds kernels
                self._steps_s.append(time.perf_counter() - step_start_s)
            if self._must_rewind():
                self._read(0)
                if self._must_rewind():
                    self._rewind()
                    continue
            if due:
                self._log()
            elif not self._warm:
                self._log_start()
            if not self._warm:
                self._warm_up()
            if self.stopping:
                self.progress.elapsed_s += time.perf_counter() - self._window.start_s
            hook_start_s = time.perf_counter()
            self._run_hooks()
            spent_s = time.perf_counter() - hook_start_s
            hooks_s += spent_s
            self._window.start_s += spent_s  # evaluation is not training time
        self.optimizer.complete_weights()
        training_s = max(time.perf_counter() - start_s - hooks_s, 1e-9)
        return Summary(
            steps=self.progress.step,
            trained_steps=self._trained_steps,
            tokens=self.progress.tokens,
            tokens_per_s=self._trained_tokens / training_s,
            final_loss=self.last_loss,
            data_wait_share=self._wait_s / training_s,
            skipped=self.progress.skipped,
            rewinds=self.progress.rewinds,
            spikes=self.progress.spikes,
        )

    def _step(self) -> None:
        """One optimizer step over all of this rank's micro-batches. Collective."""
        wait_start_s = time.perf_counter()
        micro_batches = self.batches.next_step()
        self._window.wait_s += time.perf_counter() - wait_start_s
        # A mean of micro-batch means would weight tokens by how few targets their batch has, so the
        # losses are summed and divided by the global count. It is all-reduced up front because the
        # last backward pass already sends gradients, which have to be scaled by then.
        counts = torch.stack([(b.targets >= 0).sum() for b in micro_batches]).sum()  # []
        target_count = all_reduce_sum(self.run, counts).clamp(min=1)
        wide = torch.promote_types(self.run.compute_dtype, torch.float32)
        factor = target_count.to(wide).reciprocal()
        scale = factor.new_ones(()) if self.loss_scale is None else self.loss_scale.value
        factor = factor * scale
        total = None
        for i, batch in enumerate(micro_batches):
            last = i == len(micro_batches) - 1
            # Gradients of all micro-batches add up in .grad; the sums are sent to the other ranks
            # during the last backward pass.
            with self.optimizer.accumulate(last=last):
                loss = self.loss_fn(batch, factor)  # []
                loss.backward()
            total = loss.detach() if total is None else total + loss.detach()
        assert total is not None, "a step needs at least one micro-batch"
        # The loss and whether a rank was asked to stop travel with the gradient norm: all ranks get
        # the same figures, so they skip, rewind and stop after the same step.
        share = torch.stack([total / scale, torch.full_like(total, self.stop())])  # [2]
        grad_scale = None if self.loss_scale is None else scale
        stats = self.optimizer.step(self.schedule(self.progress.step), share, grad_scale)
        self.optimizer.zero_grad()
        tokens = sum(b.inputs.numel() for b in micro_batches) * self.run.world_size
        self._window.tokens += tokens
        self.progress.step += 1
        self.progress.tokens += tokens
        self._trained_steps += 1
        self._trained_tokens += tokens
        if self.loss_scale is not None:
            self.loss_scale.update(stats["grad_norm"].isfinite() & stats["sums"].isfinite().all())
        figures = torch.cat([stats["grad_norm"].view(1), stats["sums"], scale.view(1)])  # [4]
        self._unread.append((self.progress.step, HostCopy(figures)))

    def _read(self, lag: int) -> None:
        """Process the figures of all but the last `lag` steps; the same on every rank."""
        while len(self._unread) > lag:
            step, figures = self._unread.popleft()
            self._grad_norm, loss, stop, self._scale = figures.read()
            self.stopping = self.stopping or bool(stop)
            overflow = self.loss_scale is not None and self._scale > LEAST
            if overflow and math.isfinite(loss) and not math.isfinite(self._grad_norm):
                self.progress.overflows += 1
                continue
            # The optimizer has already left weights and moments unchanged in such a step, as a NaN
            # in a moment would never go away; here it is only counted.
            if not (math.isfinite(loss) and math.isfinite(self._grad_norm)):
                self.progress.skip()
                self.log_line(
                    f"warning: step {step:,} skipped: its loss is {loss:.4g}, its gradient "
                    f"norm {self._grad_norm:.4g}"
                )
                continue
            mean = self.progress.loss_mean
            if self.progress.add_loss(loss) and self.watch_loss:
                self.progress.spikes += 1
                self.log_line(
                    f"warning: step {step:,}: the loss jumps from about {mean:.4f} to {loss:.4f}"
                )

    def _must_rewind(self) -> bool:
        return self.progress.skipped_in_a_row >= min(MAX_SKIPPED, self.total_steps)

    def _rewind(self) -> None:
        """Go back to the last checkpoint and skip the data since. Collective.

        Raises: TrainingError if there is none, or if rewinding has not helped before.
        """
        before = self.progress
        problem = (
            f"the last {before.skipped_in_a_row} steps, up to step {before.step:,}, were not finite"
        )
        if self.rewind is None:
            raise TrainingError(f"{problem}: {REMEDY}")
        self.log_line(f"warning: {problem}: going back to a checkpoint")
        self.optimizer.complete_weights()  # what is on the way would overwrite the loaded ones
        # The batches are not rewound: if the data broke the run, it would break it again.
        self.rewind(self)
        progress, back = self.progress, self.progress.step
        progress.skipped, progress.spikes = before.skipped, before.spikes
        progress.overflows = before.overflows
        progress.rewinds, progress.elapsed_s = before.rewinds + 1, before.elapsed_s
        self._rewound_to[back] += 1
        if self._rewound_to[back] > MAX_REWINDS:
            raise TrainingError(
                f"{problem}, as before on different data from the checkpoint of step {back:,}: "
                f"{REMEDY}"
            )
        self._unread.clear()
        self._window = _Window()

    def _log(self) -> None:
        """Write a row of the window's figures to the metrics and print a line."""
        window, progress = self._window, self.progress
        if progress.window_steps == 0:
            return  # all were skipped
        devices.synchronize(self.run.device)
        elapsed_s = max(time.perf_counter() - window.start_s, 1e-9)
        progress.elapsed_s += elapsed_s
        self._wait_s += window.wait_s
        self.last_loss = loss = progress.close_window()
        rate = window.tokens / elapsed_s
        settings = self.schedule(progress.step - 1)
        row: dict[str, Any] = {
            "tokens": progress.tokens,
            "loss": loss,
            "lr_scale": settings.lr_scale,
            "grad_norm": self._grad_norm if math.isfinite(self._grad_norm) else None,
            "skipped": progress.skipped,
            **self._loss_scale_row(),
            "rewinds": progress.rewinds,
            "spikes": progress.spikes,
            "tokens_per_s": rate,
            "mfu": self._mfu(rate),
            "step_s_p50": self._step_s(0.5),
            "step_s_p99": self._step_s(0.99),
            "data_wait_share": window.wait_s / elapsed_s,
            "memory_bytes": devices.memory_used(self.run.device),
            "elapsed_s": progress.elapsed_s,
        }
        self.metrics.log(progress.step, row)
        left_tokens = (self.total_steps / progress.step - 1) * progress.tokens
        # The first step builds kernels: its speed says nothing about the time left.
        left = (
            f"left {duration(left_tokens / rate)}"
            if self._warm
            else f"started in {duration(elapsed_s)}"
        )
        mfu = f" | mfu {row['mfu']:.1%}" if row["mfu"] is not None else ""
        used = row["memory_bytes"]
        memory = f"{used / 1e9:.1f} GB | " if used else ""  # 0: unknown
        self.log_line(
            f"step {progress.step:,}/{self.total_steps:,} | loss {loss:.4f} | "
            f"lr x{settings.lr_scale:.2f} | grad {self._grad_norm:.2f} | {rate:,.0f} tok/s{mfu} | "
            f"{memory}{left}"
        )
        self._window = _Window()

    def _loss_scale_row(self) -> dict[str, float]:
        if self.loss_scale is None:
            return {}
        return {"loss_scale": self._scale, "overflows": self.progress.overflows}

    def _log_start(self) -> None:
        """Report the first step of a resumed run, and leave it out of the speed."""
        devices.synchronize(self.run.device)
        window = self._window
        elapsed_s = time.perf_counter() - window.start_s
        self.progress.elapsed_s += elapsed_s
        self._wait_s += window.wait_s
        self.log_line(
            f"step {self.progress.step:,}/{self.total_steps:,} | started in {duration(elapsed_s)}"
        )
        self._window = _Window()

    def _warm_up(self) -> None:
        """Measure the peak speed after the first step; before it the compiler uses the cores."""
        start_s = time.perf_counter()
        self._warm = True
        self.peak_flops = devices.peak_flops(self.run.device, self.run.compute_dtype)
        self._window.start_s += time.perf_counter() - start_s

    def _step_s(self, share: float) -> float | None:
        """This quantile of the last steps' times; None before the second step."""
        return float(np.quantile(self._steps_s, share)) if self._steps_s else None

    def _mfu(self, tokens_per_s: float) -> float | None:
        if self.peak_flops is None:
            return None
        achieved = tokens_per_s * self.flops_per_token / self.run.world_size
        # A CPU's peak is measured in a moment in which other programs may have been busy.
        if achieved > self.peak_flops and self.run.device.type == "cpu":
            again = devices.peak_flops(self.run.device, self.run.compute_dtype) or 0.0
            self.peak_flops = max(achieved, again)
        return achieved / self.peak_flops

    def _run_hooks(self) -> None:
        for hook in self.hooks:
            if hook.on_stop if self.stopping else self.is_due(hook):
                self.optimizer.complete_weights()
                hook.fn(self)

    def _row_is_due(self) -> bool:
        """Whether to log now: after the same steps whether or not the run is interrupted."""
        first = self.progress.step == 1
        return first or self._at(self.log_every) or any(map(self.is_due, self.hooks))

    def run_due(self, hooks: Sequence[Hook]) -> None:
        """Run the hooks due at a checkpoint's step again: a kill may have cut them. Collective."""
        for hook in hooks:
            if self.is_due(hook):
                hook.fn(self)

    def is_due(self, hook: Hook) -> bool:
        """Whether the hook runs after the current step."""
        at_end = hook.at_end and self.progress.step == self.total_steps
        return at_end or (hook.every is not None and self._at(hook.every))

    def _at(self, every: int) -> bool:
        step = self.progress.step
        return step % every == 0 or (every == self.log_every and step == self.total_steps)


def token_loss(loss: TokenLoss) -> LossFn:
    """The language modeling loss; a policy gradient's if the batch has weights.

    loss: GPT.loss, or the compiled one.
    """

    def loss_fn(batch: Batch, factor: Tensor) -> Tensor:
        weights = factor if batch.weights is None else factor * batch.weights
        return loss(batch.inputs, batch.targets, weights)

    return loss_fn
