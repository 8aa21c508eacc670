"""Gradients and weights sharded over ranks: which rank owns what, and how it is communicated.

Owns: the collectives of the optimizer. Does not own: the update of the slice that a rank owns
(groups.py). With one rank the slice is everything and nothing is sent.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Parameter

SMALL_NUMEL = 2**14  # smaller tensors are not worth splitting over ranks
BUCKET_BYTES = 8 * 2**20  # large enough for full bandwidth, small enough to start early


# ZeRO-style sharding: instead of an all-reduce of gradients, after which every rank would update
# all weights, a reduce-scatter gives each rank the summed gradients of its slice only. It updates
# that slice, and an all-gather returns the new weights. Both together send as much as one
# all-reduce, but moments and the time of the update are divided by the number of ranks.
@dataclass(frozen=True, kw_only=True)
class Transport:
    """The collectives of a process group, with substitutes for those its backend lacks."""

    rank: int = 0
    world_size: int = 1
    can_scatter: bool = False
    can_gather: bool = False

    def reduce_scatter(self, owned: Tensor, full: Tensor) -> "Pending":
        """Sum `full` (world_size x n) over ranks and put this rank's n of it into `owned`.

        Asynchronous; see Pending.wait. Collective.
        """
        if self.can_scatter:
            work = dist.reduce_scatter_tensor(owned, full, async_op=True)
            return Pending(work, keep=full)
        # Without reduce-scatter: sum everything, keep a slice. Correct, with more traffic.
        work = dist.all_reduce(full, async_op=True)
        own = full.view(self.world_size, -1)[self.rank]  # [world_size, n] -> [n]
        return Pending(work, keep=full, copy=([owned], [own]))

    def all_reduce(self, tensor: Tensor) -> "Pending":
        """Sum over ranks, in place. Asynchronous. Collective."""
        return Pending(dist.all_reduce(tensor, async_op=True), keep=tensor)

    def all_gather(self, full: Tensor, owned: Tensor) -> "Pending":
        """Fill `full` with every rank's `owned`, in rank order. Asynchronous. Collective."""
        if self.can_gather:
            work = dist.all_gather_into_tensor(full, owned, async_op=True)
        else:
            parts = list(full.view(self.world_size, -1).unbind(0))
            work = dist.all_gather(parts, owned, async_op=True)
        return Pending(work, keep=owned)


@dataclass
class Pending:
    """A running collective; keeps its tensors alive until `wait`."""

    work: object | None = None
    # A tensor that Python frees while a collective still reads it could be overwritten.
    keep: Tensor | None = None
    copy: tuple[list[Tensor], list[Tensor]] | None = (
        None  # destinations and sources, copied at the end
    )

    def release_if_done(self) -> None:
        """Release the tensors if the collective has finished."""
        if self.work is not None and self.work.is_completed():  # type: ignore[attr-defined]
            self.wait()

    def wait(self) -> None:
        """Wait for the result; on a GPU only the stream waits, not the host."""
        if self.work is not None:
            self.work.wait()  # type: ignore[attr-defined]
        if self.copy is not None:
            torch._foreach_copy_(*self.copy)
        self.work = self.keep = self.copy = None


def choose_transport(rank: int, world_size: int, device: torch.device) -> Transport:
    """The collectives that the backend supports, found by trying them. Collective."""
    if world_size == 1:
        return Transport()
    one, all_ = torch.zeros(1, device=device), torch.zeros(world_size, device=device)
    return Transport(
        rank=rank,
        world_size=world_size,
        can_scatter=_works(lambda: dist.reduce_scatter_tensor(one, all_)),
        can_gather=_works(lambda: dist.all_gather_into_tensor(all_, one)),
    )


def _works(collective: Callable[[], object]) -> bool:
    """Whether the backend has the collective; if not, it raises before sending anything."""
    try:
        collective()
    except (RuntimeError, NotImplementedError):
        return False
    return True


@dataclass
class Bucket:
    """Parameters whose gradients are sent together, split into equal slices, one per rank.

    The flat form is all parameters concatenated and padded with zeros to world_size x `slice_size`;
    rank r owns the r-th slice. `replicated`: too small to split; every rank sums and updates all.
    """

    names: list[str]
    parameters: list[Parameter]
    slice_size: int
    replicated: bool
    transport: Transport
    waiting_for: set[str] = field(default_factory=set)
    pending: Pending | None = None
    grad: Tensor | None = None  # (slice_size,) once reduced

    @property
    def numel(self) -> int:
        """Elements of all parameters, without padding."""
        return sum(p.numel() for p in self.parameters)

    @property
    def owned(self) -> range:
        """This rank's part of the flat form, without padding."""
        start = 0 if self.replicated else self.transport.rank * self.slice_size
        return range(min(start, self.numel), min(start + self.slice_size, self.numel))

    def reduce(self, out: Tensor | None = None) -> None:
        """Move the gradients out of `.grad` and start summing them over ranks. Collective.

        out: (slice_size,) for this rank's slice. A missing gradient counts as zero.
        """
        alone = self.transport.world_size == 1
        direct = out if out is not None and alone else None
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        full = self._pack(grads, direct)
        for p in self.parameters:
            p.grad = None
        # Alone the gradients are complete, and without padding or `out` they are not even copied.
        if alone:
            self.grad, self.pending = full, Pending()
        elif self.replicated:
            self.grad, self.pending = full, self.transport.all_reduce(full)
        else:
            self.grad = full.new_empty(self.slice_size) if out is None else out
            self.pending = self.transport.reduce_scatter(self.grad, full)

    def owned_weights(self) -> list[Tensor]:
        """Flat views into the parameters that together are this rank's slice, in order."""
        views, start = [], 0
        for p in self.parameters:
            # A slice may start and end within a parameter: AdamW's update works on any part of it.
            low = max(self.owned.start - start, 0)
            high = min(self.owned.stop - start, p.numel())
            if low < high:
                views.append(p.detach().view(-1)[low:high])
            start += p.numel()
        return views

    def gather_weights(self) -> Pending:
        """Start exchanging updated weights: every rank sends its slice to all. Collective."""
        if self.replicated or self.transport.world_size == 1:
            return Pending()
        views = self.owned_weights()
        owned = torch.cat(views) if views else self._zeros(0)
        full, pending = self.gather(owned, self.slice_size)
        pending.copy = ([p.detach() for p in self.parameters], self.unpack(full))
        return pending

    def gather(self, owned: Tensor, slice_size: int) -> tuple[Tensor, Pending]:
        """Start gathering every rank's slice, each padded to `slice_size`. Collective.

        owned: this rank's values, at most slice_size. Returns the flat form, valid after `wait`.
        """
        if self.replicated or self.transport.world_size == 1:
            return owned.reshape(-1), Pending()
        padded = torch.cat([owned.reshape(-1), self._zeros(slice_size - owned.numel())])
        full = padded.new_empty(slice_size * self.transport.world_size)
        return full, self.transport.all_gather(full, padded)

    def unpack(self, full: Tensor) -> list[Tensor]:
        """Views of the flat form, one per parameter, in the parameters' shapes."""
        sizes = [p.numel() for p in self.parameters]
        parts = full[: self.numel].split(sizes)
        return [part.view(p.shape) for part, p in zip(parts, self.parameters, strict=True)]

    def _zeros(self, size: int) -> Tensor:
        return torch.zeros(size, dtype=self.parameters[0].dtype, device=self.parameters[0].device)

    def _pack(self, tensors: Sequence[Tensor], out: Tensor | None) -> Tensor:
        """The flat form of the tensors; no copy for one contiguous tensor without padding."""
        world_size = 1 if self.replicated else self.transport.world_size
        total = self.slice_size * world_size
        padding = total - self.numel
        if out is None and len(tensors) == 1 and not padding and tensors[0].is_contiguous():
            return tensors[0].view(-1)
        flat = [t.reshape(-1) for t in tensors]
        if padding:
            flat.append(flat[0].new_zeros(padding))
        return torch.cat(flat, out=out) if out is not None else torch.cat(flat)


def matrix_buckets(
    names: Sequence[str], members: Mapping[str, Parameter], transport: Transport
) -> list[Bucket]:
    """Buckets of matrices of one shape, in order, in which each rank owns complete matrices."""
    example = members[names[0]]
    # Muon needs complete matrices, so a bucket is split between matrices, never within one.
    per_rank = math.ceil(BUCKET_BYTES / (example.numel() * example.itemsize * transport.world_size))
    count = len(names) if transport.world_size == 1 else per_rank * transport.world_size
    buckets = []
    for start in range(0, len(names), count):
        part = list(names[start : start + count])
        slots = math.ceil(len(part) / transport.world_size)
        buckets.append(
            Bucket(
                names=part,
                parameters=[members[name] for name in part],
                slice_size=slots * example.numel(),
                replicated=False,
                transport=transport,
            )
        )
    return buckets


def tensor_buckets(members: Mapping[str, Parameter], transport: Transport) -> list[Bucket]:
    """One replicated bucket for all small tensors, and a split one for each large tensor."""
    small = [name for name, p in members.items() if p.numel() <= SMALL_NUMEL]
    parts = [[name] for name in members if name not in small] + ([small] if small else [])
    buckets = []
    for names in parts:
        parameters = [members[name] for name in names]
        numel = sum(p.numel() for p in parameters)
        replicated = names is small
        buckets.append(
            Bucket(
                names=names,
                parameters=parameters,
                slice_size=numel if replicated else math.ceil(numel / transport.world_size),
                replicated=replicated,
                transport=transport,
            )
        )
    return buckets
