"""MuonAdamW: the same optimizer code for one rank and for many.

Owns: the order of the communication, the global gradient norm, and the state by parameter name.
Does not own: which parameter is updated how (settings.py), the updates (muon.py, adamw.py), the
state that a rank stores (groups.py), the sharding over ranks (sharding.py).

Each rank owns an equal slice of every bucket of parameters: it receives the summed gradients of its
slice, updates the slice and sends the weights to all. Gradients are sent as soon as the backward
pass has completed those of a bucket; a function that is compiled as a whole completes all of its
gradients at its end. Weights are sent in `step`, or during the next forward pass (defer_gathers).
"""

import contextlib
import functools
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from nanochat.optim import muon
from nanochat.optim.groups import AdamWGroup, MuonGroup
from nanochat.optim.schedules import StepSettings
from nanochat.optim.sharding import Pending
from nanochat.system import compiler
from nanochat.system.distributed import Run, all_reduce_sum, broadcast_object, broadcast_tensors
from nanochat.system.errors import CheckpointError

# Buckets whose new weights are in flight at a time: enough to overlap with the next update without
# holding another copy of the model.
MAX_GATHERS_IN_FLIGHT = 4

Group = MuonGroup | AdamWGroup


class MuonAdamW:
    """The optimizer: takes gradients and updates the weights on every rank.

    A step: for every micro-batch `with accumulate(last=...): loss.backward()`, with one backward
    pass each, then `step(settings)`. Losses must be divided by the global token count already, as
    gradients are summed over ranks. `step` consumes the gradients: `.grad` is None afterward.
    A parameter without a gradient is treated as having a zero gradient.
    """

    def __init__(self, groups: Sequence[Group], run: Run) -> None:
        self.groups = list(groups)
        self.run = run
        self._device = self.groups[0].buckets[0].parameters[0].device
        self.steps_done = torch.zeros((), device=self._device)
        # A CPU has nothing to wait for; on MPS AdamW has no fused kernel, which takes the flag.
        self.checks_finite_on_device = self._device.type == "cuda"
        self._owner = {id(b): group for group in self.groups for b in group.buckets}
        self._buckets = [b for group in self.groups for b in group.buckets]
        # After the first step this is the order in which gradients become complete.
        self._order: list[int] = list(range(len(self._buckets)))  # in which buckets are reduced
        self._completed: list[int] = []
        self._order_learned = run.world_size == 1
        self._launched = 0
        self._gather_order: list[int] | None = None  # None: weights are exchanged in `step`
        self._outdated = False  # whether updated weights have not been sent yet
        self._gathers: dict[int, Pending] = {}  # by bucket
        self._bucket_of = {name: i for i, b in enumerate(self._buckets) for name in b.names}
        self._last = False
        for i, bucket in enumerate(self._buckets):
            for name, p in zip(bucket.names, bucket.parameters, strict=True):
                wide = p.dtype in (torch.float32, torch.float64)
                assert wide, f"master weights are fp32 or fp64; {name} is {p.dtype}"
                if run.world_size > 1:
                    hook = functools.partial(self._grad_ready, i, name)
                    p.register_post_accumulate_grad_hook(hook)
        self.begin_step()

    def compile(self) -> None:
        """Compile Muon's updates; happens at the next step."""
        update = compiler.compiled(muon.muon_update)
        for group in self.groups:
            if isinstance(group, MuonGroup):
                group.compiled = update

    def begin_step(self) -> None:
        """Discard what an unfinished step has recorded."""
        assert self._launched == 0, "collectives were launched; call step() to complete them"
        self._completed = []
        for bucket in self._buckets:
            bucket.waiting_for = set(bucket.names)

    @contextlib.contextmanager
    def accumulate(self, *, last: bool) -> Iterator[None]:
        """Wraps the one backward pass of a micro-batch; the last one starts the communication."""
        self._last = last
        try:
            yield
        finally:
            self._last = False

    @torch.no_grad()
    def step(
        self,
        settings: StepSettings,
        partial_sums: Tensor | None = None,
        grad_scale: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Update every weight. Collective.

        partial_sums: (n,) numbers of this rank, such as its part of the loss, to be summed over
        ranks; they are sent together with the norm. grad_scale: a factor in all gradients, 0-d,
        which is divided out. Returns "grad_norm", the 0-d norm of the global gradient, and "sums"
        (n,). If any of them is not finite, neither weights nor state change; on a GPU this is
        decided on the device, without a synchronization.
        """
        self.complete_weights()
        self._finish_reducing()
        if grad_scale is not None:
            inverse = grad_scale.reciprocal()
            for group in self.groups:
                group.multiply_grads(inverse)
        grads = [grad for group in self.groups for grad in group.owned_grads()]
        norm, sums = self._sums(grads, partial_sums)
        # One overflow would put NaN into the moments for good, so such a step is skipped.
        finite = norm.isfinite() & sums.isfinite().all()
        # The host would have to wait for a GPU's answer: the flag stays there, and kernels read it.
        if self.checks_finite_on_device:
            self._update(settings, finite)
        elif bool(finite):
            self._update(settings, None)
        for group in self.groups:
            group.clear_grads()
        self._learn_order()
        self._launched = 0
        self.begin_step()
        return {"grad_norm": norm, "sums": sums}

    def _update(self, settings: StepSettings, finite: Tensor | None) -> None:
        """Update all groups and exchange their weights, unless `finite` is False. Collective."""
        gathers: deque[Pending] = deque()
        for group in self.groups:
            # While new weights of this group are sent, the next group's update is computed.
            group.update(settings, self.steps_done, finite)
            for bucket in group.buckets if self._gather_order is None else ():
                gathers.append(bucket.gather_weights())
                if len(gathers) > MAX_GATHERS_IN_FLIGHT:
                    gathers.popleft().wait()
        for gather in gathers:
            gather.wait()
        self._outdated = self._gather_order is not None
        self.steps_done += 1 if finite is None else finite

    def defer_gathers(self, names: Sequence[str]) -> None:
        """Exchange updated weights not in `step`, but once they are needed.

        names: all parameters in the order of their first use. From now on whoever reads weights
        must call `await_weights` or `complete_weights` first.
        """
        self._gather_order = list(dict.fromkeys(self._bucket_of[name] for name in names))
        assert len(self._gather_order) == len(self._buckets), "a parameter is missing"

    @torch.no_grad()
    def await_weights(self, names: Iterable[str]) -> None:
        """Make sure that these parameters are up to date; the rest may be on the way. Collective.

        On a GPU only the stream waits.
        """
        # All are sent at the first call after an update, in the order of their use, and not in
        # `step`: a small collective between two steps would have to wait for all of them.
        if self._outdated:
            for i in self._gather_order or ():
                self._gathers[i] = self._buckets[i].gather_weights()
            self._outdated = False
        for name in names:
            gather = self._gathers.pop(self._bucket_of[name], None)
            if gather is not None:
                gather.wait()

    def complete_weights(self) -> None:
        """Make sure that all parameters are up to date. Collective."""
        self.await_weights(self._bucket_of)

    def zero_grad(self) -> None:
        """Discard gradients that no step has used."""
        for bucket in self._buckets:
            for parameter in bucket.parameters:
                parameter.grad = None

    @torch.no_grad()
    def state_by_name(self) -> dict[str, Tensor]:
        """Full state tensors by parameter name on the CPU, on rank 0 only. Collective."""
        result: dict[str, Tensor] = {}
        for group in self.groups:
            for key, tensor in group.state():
                if self.run.is_main:
                    result[key] = tensor.to("cpu", copy=True).contiguous()
        if self.run.is_main:
            result["steps_done"] = self.steps_done.cpu().long()
        return result

    @torch.no_grad()
    def load_state_by_name(self, state: Mapping[str, Tensor]) -> None:
        """Load the result of `state_by_name`, from any number of ranks. Collective.

        state: only rank 0's is used; other ranks may pass an empty one.
        Raises: CheckpointError for a tensor that is missing or has the wrong shape.
        """

        def fetch(key: str, shape: torch.Size) -> Tensor:
            found = tuple(state[key].shape) if self.run.is_main and key in state else None
            # Every rank must learn that a tensor is missing: if only rank 0 raised, the rest
            # would wait forever.
            found = broadcast_object(self.run, found)
            if found != tuple(shape):
                raise CheckpointError(
                    f"optimizer state {key}: shape {found}, expected {tuple(shape)}; it was saved "
                    "for a different model or --matrix-optimizer"
                )
            like = self._buckets[0].parameters[0].detach()
            full = like.new_empty(shape)
            if self.run.is_main:
                full.copy_(state[key])
            broadcast_tensors(self.run, [full])
            return full

        self.steps_done.copy_(fetch("steps_done", torch.Size()))
        for group in self.groups:
            group.load(fetch)

    def _grad_ready(self, index: int, name: str, _: Tensor) -> None:
        """Called when the gradient of a parameter is complete."""
        # Gradients of earlier micro-batches stay in `.grad` and are sent once, with the last one.
        if not self._last:
            return
        waiting = self._buckets[index].waiting_for
        if name not in waiting:
            raise RuntimeError(f"{name} got a gradient twice in the last micro-batch")
        waiting.discard(name)
        if not waiting:
            self._completed.append(index)
            self._launch_ready()

    def _launch_ready(self) -> None:
        """Reduce complete buckets in the order that all ranks use: collectives must match."""
        while self._launched < len(self._order):
            if self._buckets[self._order[self._launched]].waiting_for:
                return
            self._launch_next()

    def _launch_next(self) -> None:
        # Flattened gradients are freed as soon as they are sent, not at the end of the step.
        for launched in self._order[: self._launched]:
            pending = self._buckets[launched].pending
            assert pending is not None
            pending.release_if_done()
        bucket = self._buckets[self._order[self._launched]]
        self._owner[id(bucket)].reduce(bucket)
        self._launched += 1

    def _finish_reducing(self) -> None:
        while self._launched < len(self._order):
            self._launch_next()
        for bucket in self._buckets:
            assert bucket.pending is not None
            bucket.pending.wait()
            bucket.pending = None

    def _sums(self, grads: Sequence[Tensor], partial_sums: Tensor | None) -> tuple[Tensor, Tensor]:
        """The norm of the global gradient and the sums over ranks. Collective."""
        like = self._buckets[0].parameters[0].detach()
        # Ranks own disjoint slices, so the squares of their norms add up to that of all gradients.
        # One collective carries the loss as well: each costs a round trip.
        norms = torch.stack([like.new_zeros(()), *torch._foreach_norm(list(grads))])
        own = like.new_zeros(0) if partial_sums is None else partial_sums.to(like.dtype)
        full = all_reduce_sum(self.run, torch.cat([norms.square().sum().view(1), own]))
        return full[0].sqrt(), full[1:]

    def _learn_order(self) -> None:
        """After the first step, reduce buckets in the order in which rank 0 completed them."""
        if self._order_learned:
            return
        # Ranks may complete buckets in different orders, and a collective that ranks call in
        # different orders hangs: all take rank 0's order.
        rest = [i for i in self._order if i not in self._completed]
        self._order = broadcast_object(self.run, self._completed + rest)
        self._order_learned = True
