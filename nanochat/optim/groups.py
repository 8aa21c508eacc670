"""The two kinds of parameter groups: their state, their update, their state by parameter name.

Owns: what one rank stores, the moments of the slices that it owns. Does not own: which parameter is
in which group (settings.py).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nanochat.optim.adamw import AdamWSettings, adamw_update
from nanochat.optim.muon import MuonRecipe, muon_update, variance_shape
from nanochat.optim.schedules import StepSettings
from nanochat.optim.sharding import Bucket

# From a key and its shape to the full tensor on this rank's device. Collective.
Fetch = Callable[[str, torch.Size], Tensor]


@dataclass
class MuonGroup:
    """Matrices of one shape; a rank updates those that it owns as one stack."""

    buckets: Sequence[Bucket]
    lr: float
    weight_decay: float
    recipe: MuonRecipe
    polar_dtype: torch.dtype
    compiled: Callable[..., None] | None = field(init=False, default=None)  # muon_update
    momentum: Tensor = field(init=False)  # (slots, R, C)
    variance: Tensor = field(init=False)  # (slots, R, 1) or (slots, 1, C)
    grads: Tensor | None = field(init=False, default=None)  # (slots, R, C), within a step only

    def __post_init__(self) -> None:
        example = self.buckets[0].parameters[0].detach()
        slots = sum(bucket.slice_size for bucket in self.buckets) // example.numel()
        self.momentum = example.new_zeros(slots, *example.shape)
        self.variance = example.new_zeros(slots, *variance_shape(*example.shape))

    def reduce(self, bucket: Bucket) -> None:
        """Start summing a bucket's gradients into this group's stack. Collective."""
        if self.grads is None:
            self.grads = torch.empty_like(self.momentum)
        bucket.reduce(out=self.grads[self._slots(bucket)].view(-1))

    def owned_grads(self) -> list[Tensor]:
        """The summed gradients of the matrices that this rank owns; padding is zero."""
        assert self.grads is not None
        return [self.grads]

    def multiply_grads(self, factor: Tensor) -> None:
        """Multiply the summed gradients by a 0-d factor."""
        assert self.grads is not None
        self.grads.mul_(factor)

    def update(self, settings: StepSettings, steps_done: Tensor, finite: Tensor | None) -> None:
        """One step of Muon on the owned matrices.

        finite: 0-d bool on the device; if False, nothing changes.
        """
        assert self.grads is not None
        # Matrices of one shape are copied into one stack [L, R, C], as a few large batched products
        # are much faster than one small product per matrix.
        weights = torch.zeros_like(self.momentum)
        views: list[Tensor] = []
        slots: list[Tensor] = []
        for bucket in self.buckets:
            mine = [v.view(weights.shape[1:]) for v in bucket.owned_weights()]
            views += mine
            slots += weights[self._slots(bucket)].unbind(0)[: len(mine)]
        if not views:
            return
        torch._foreach_copy_(slots, views)
        schedule: dict[str, float | Tensor] = {
            "lr": self.lr * settings.lr_scale,
            "momentum_beta": settings.momentum,
        }
        if self.weight_decay:
            schedule["weight_decay"] = self.weight_decay * settings.weight_decay_scale
        if self.compiled is not None:  # as Python numbers, every new value would recompile
            schedule = {name: torch.tensor(value) for name, value in schedule.items()}
        (self.compiled or muon_update)(
            weights,
            self.grads,
            self.momentum,
            self.variance,
            **schedule,
            recipe=self.recipe,
            polar_dtype=self.polar_dtype,
            finite=finite,
        )
        torch._foreach_copy_(views, slots)

    def clear_grads(self) -> None:
        """Free the gradients of the step."""
        self.grads = None
        for bucket in self.buckets:
            bucket.grad = None

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the full state tensors with their names. Collective."""
        for bucket in self.buckets:
            for key, stack in self._stacks().items():
                own = stack[self._slots(bucket)]
                full, pending = bucket.gather(own, own.numel())
                pending.wait()
                matrices = full.view(-1, *stack.shape[1:])
                for name, matrix in zip(bucket.names, matrices, strict=False):  # without padding
                    yield f"{name}.{key}", matrix

    def load(self, fetch: Fetch) -> None:
        """Load this rank's part of every state tensor. Collective."""
        for bucket in self.buckets:
            size = bucket.parameters[0].numel()
            first = bucket.owned.start // size
            for key, stack in self._stacks().items():
                slots = stack[self._slots(bucket)]
                for i, name in enumerate(bucket.names):
                    # Rank 0 sends full tensors: the number of ranks may have changed since.
                    full = fetch(f"{name}.{key}", stack.shape[1:])
                    if first <= i < first + len(bucket.owned) // size:
                        slots[i - first].copy_(full)

    def _stacks(self) -> dict[str, Tensor]:
        return {"momentum": self.momentum, "variance": self.variance}

    def _slots(self, bucket: Bucket) -> slice:
        size = bucket.parameters[0].numel()
        index = next(i for i, other in enumerate(self.buckets) if other is bucket)
        first = sum(other.slice_size for other in self.buckets[:index]) // size
        return slice(first, first + bucket.slice_size // size)


@dataclass
class AdamWGroup:
    """Tensors of any shape with the same AdamW settings; a rank updates its slices of them."""

    buckets: Sequence[Bucket]
    settings: AdamWSettings
    scheduled_decay: bool = False  # whether the schedule's weight-decay factor applies
    first: list[Tensor] = field(init=False)  # for each bucket: (owned,)
    second: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        examples = [(b.parameters[0].detach(), len(b.owned)) for b in self.buckets]
        self.first = [like.new_zeros(count) for like, count in examples]
        self.second = [like.new_zeros(count) for like, count in examples]

    def reduce(self, bucket: Bucket) -> None:
        """Start summing a bucket's gradients. Collective."""
        bucket.reduce()

    def owned_grads(self) -> list[Tensor]:
        """The summed gradients that this rank adds to the global norm; padding is zero."""
        # Every rank holds the full sum of a replicated bucket: only one may count it.
        counted = [b for b in self.buckets if not b.replicated or b.transport.rank == 0]
        return [b.grad for b in counted if b.grad is not None and b.grad.numel()]

    def multiply_grads(self, factor: Tensor) -> None:
        """Multiply the summed gradients by a 0-d factor."""
        torch._foreach_mul_([b.grad for b in self.buckets if b.grad is not None], factor)

    def update(self, settings: StepSettings, steps_done: Tensor, finite: Tensor | None) -> None:
        """One step of AdamW on the owned slices.

        steps_done: 0-d, steps before this one. finite: see MuonGroup.update.
        """
        pieces: list[list[Tensor]] = [[], [], [], []]
        for bucket, first, second in zip(self.buckets, self.first, self.second, strict=True):
            assert bucket.grad is not None
            weights = bucket.owned_weights()
            sizes = [w.numel() for w in weights]
            pieces[0] += weights
            if weights:
                pieces[1] += bucket.grad[: len(bucket.owned)].split(sizes)
                pieces[2] += first.split(sizes)
                pieces[3] += second.split(sizes)
        if not pieces[0]:
            return
        # Slices of all buckets go to one fused call: many small tensors cost about as much as one.
        decay_scale = settings.weight_decay_scale if self.scheduled_decay else 1.0
        adamw_update(
            *pieces,
            steps_done=steps_done,
            settings=self.settings,
            lr_scale=settings.lr_scale,
            decay_scale=decay_scale,
            finite=finite,
        )

    def clear_grads(self) -> None:
        """Free the gradients of the step."""
        for bucket in self.buckets:
            bucket.grad = None

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the full state tensors with their names. Collective."""
        for i, bucket in enumerate(self.buckets):
            for key, moments in self._moments().items():
                full, pending = bucket.gather(moments[i], bucket.slice_size)
                pending.wait()
                for name, tensor in zip(bucket.names, bucket.unpack(full), strict=True):
                    yield f"{name}.{key}", tensor

    def load(self, fetch: Fetch) -> None:
        """Load this rank's part of every state tensor. Collective."""
        for i, bucket in enumerate(self.buckets):
            for key, moments in self._moments().items():
                named = zip(bucket.names, bucket.parameters, strict=True)
                flat = torch.cat([fetch(f"{n}.{key}", p.shape).reshape(-1) for n, p in named])
                moments[i].copy_(flat[bucket.owned.start : bucket.owned.stop])

    def _moments(self) -> dict[str, list[Tensor]]:
        return {"first_moment": self.first, "second_moment": self.second}
