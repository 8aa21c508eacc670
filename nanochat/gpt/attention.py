"""Causal attention with sliding windows, and the choice of the kernel that computes it.

Owns: the backends, their detection and their shared definition: query i sees keys i - window .. i.
Does not own: projections and rotary positions (layers.py), cached decoding (engine/kv_cache.py).
No backend ever builds a T x T mask.
"""

import dataclasses
import functools
import importlib
import importlib.util
import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat.gpt.block_attention import block_attention, faster_in_blocks
from nanochat.system.errors import ConfigError

BACKENDS = ("auto", "fa4", "fa3", "varlen", "blocks", "sdpa")
GPU_BACKENDS = ("fa4", "fa3", "varlen")  # GPUs only, fastest first
# Builds of FlashAttention-3 on the Hugging Face kernel hub, and the commits of them that public
# training code pins: the first for Hopper and some versions of torch only, the second for more.
FA3_KERNELS = (
    ("varunneal/flash-attention-3", "de87b9b5af06dd9984df595bef90b2eba44b181a"),
    ("kernels-community/flash-attn3", "9542c462013476380ce4b395b9ddc0e8118161ee"),
)
# Whether FlashAttention-4 keeps its compiled kernels on the disk, which is not its default.
FA4_CACHE = "FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED"
HALF_DTYPES = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Backend:
    """The attention kernel in use; `note` describes it.

    kernel: FlashAttention-3's function for "fa3", looked up in advance because compiled code
    cannot import it. passed_over: faster backends made for this GPU, and why they do not work.
    """

    name: str
    note: str
    kernel: Callable[..., Any] | None = None
    passed_over: str = ""


def choose(name: str, device: torch.device) -> Backend:
    """The backend for a device; "auto" picks the fastest that passes a small test.

    name: one of BACKENDS. On a GPU `passed_over` says what is missing; the choice also sets which
    flash attention torch itself calls, in this process.
    Raises: ConfigError for an unknown name or a backend that does not work on this device.
    """
    if name not in BACKENDS:
        raise ConfigError(f"attention backend must be one of {', '.join(BACKENDS)}, got {name!r}")
    if device.type != "cuda":
        if name in GPU_BACKENDS:
            raise ConfigError(f"attention backend {name!r} needs a CUDA device, got {device}")
        return _backend(("blocks" if device.type == "cpu" else "sdpa") if name == "auto" else name)
    if name == "auto":
        backend = _choose_for_gpu(device)
    else:
        reason = _why_not(name, device) if name in GPU_BACKENDS else None
        if reason is not None:
            raise ConfigError(
                f"attention backend {name!r} does not work here: {reason}; use 'auto'"
            )
        backend = _backend(name)
    _set_torchs_flash(backend.name)
    return backend


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    window: int | None,
    scale: float,
    backend: Backend,
    score_bound: float | None = None,
) -> Tensor:
    """Causal attention: query i sees keys max(0, i - window) .. i; without a window, all up to i.

    q: (B, T, H, D); k, v: (B, T, H_kv, D) with H a multiple of H_kv. score_bound: known upper bound
    of |q k scale|, None if there is none. Returns (B, T, H, D).
    """
    # A window that covers the text is plain causal attention, for which kernels are fastest.
    if window is not None and window >= q.shape[1] - 1:
        window = None
    flash = backend.name in GPU_BACKENDS and _flash_takes(q)
    if flash and backend.kernel is not None:
        return _fa3(backend.kernel, q, k, v, window=window, scale=scale)
    if backend.name == "blocks" and faster_in_blocks(q):
        return block_attention(q, k, v, window=window, scale=scale, score_bound=score_bound)
    if flash and window is not None:
        return _varlen(q, k, v, window=window, scale=scale)
    if q.is_cuda and not flash:
        # torch's other kernels that do not store all T x T scores take no grouped heads.
        k, v = _ungrouped(q, k, v)
    if window is None:
        return _causal(q, k, v, scale=scale)
    return _banded(q, k, v, window=window, scale=scale)


def _flash_takes(q: Tensor) -> bool:
    """Whether every flash attention takes queries (B, T, H, D) of this dtype and head size."""
    return q.dtype in HALF_DTYPES and q.shape[3] % 8 == 0 and q.shape[3] <= 128


def _ungrouped(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """k and v, (B, T, H_kv, D), with each head repeated for the heads of q that share it."""
    if k.shape[2] == q.shape[2]:
        return k, v
    shares = q.shape[2] // k.shape[2]
    return k.repeat_interleave(shares, dim=2), v.repeat_interleave(shares, dim=2)


def _causal(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
    # torch expects heads before tokens: [B, T, H, D] -> [B, H, T, D], and back.
    y = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        is_causal=True,
        scale=scale,
        enable_gqa=q.shape[2] != k.shape[2],
    )
    return y.transpose(1, 2)


def _banded(q: Tensor, k: Tensor, v: Tensor, *, window: int, scale: float) -> Tensor:
    """Windowed attention in blocks of `window` queries that see their own and the previous block.

    Computes T x 2 window scores instead of T x T, with one (window, 2 window) mask for all blocks.
    """
    B, T, H, D = q.shape
    blocks = -(-T // window)
    # A query of block j sees at most `window` keys back: all of them are in blocks j - 1 and j.
    pad = (0, 0, 0, 0, 0, blocks * window - T)  # later keys are never seen by real queries
    q, k, v = (F.pad(x, pad) for x in (q, k, v))  # [B, blocks * window, H, D]
    # The first block has no predecessor.
    first = _causal(q[:, :window], k[:, :window], v[:, :window], scale=scale)
    rest = F.scaled_dot_product_attention(
        q[:, window:].reshape(B * (blocks - 1), window, H, D).transpose(1, 2),
        _with_previous(k, window).transpose(1, 2),  # [B * (blocks - 1), H_kv, S = 2 window, D]
        _with_previous(v, window).transpose(1, 2),
        attn_mask=_band_mask(window, q.device),
        scale=scale,
        enable_gqa=k.shape[2] != H,
    )
    rest = rest.transpose(1, 2).reshape(B, (blocks - 1) * window, H, D)
    return torch.cat([first, rest], dim=1)[:, :T]


def _with_previous(x: Tensor, window: int) -> Tensor:
    """Blocks 1, 2, .. of x, each after its predecessor: (B * (blocks - 1), 2 window, H, D)."""
    B, T, H, D = x.shape
    blocks = x.view(B, T // window, window, H, D)  # [B, blocks, window, H, D]
    return torch.cat([blocks[:, :-1], blocks[:, 1:]], dim=2).flatten(0, 1)


def _band_mask(window: int, device: torch.device) -> Tensor:
    """(window, 2 window): query r of a block sees keys r .. r + window of its two blocks."""
    # Query r is at column window + r of the two blocks; `window` keys before it start at column r.
    row = torch.arange(window, device=device)[:, None]
    column = torch.arange(2 * window, device=device)[None, :]
    return (column >= row) & (column <= row + window)


def _varlen(q: Tensor, k: Tensor, v: Tensor, *, window: int, scale: float) -> Tensor:
    """Windows by torch's variable-length flash attention; all rows have length T."""
    from torch.nn.attention.varlen import varlen_attn

    B, T, H, D = q.shape
    if not _varlen_has_gqa():
        k, v = _ungrouped(q, k, v)
    # The function takes all rows as one sequence and the positions at which rows start.
    starts = torch.arange(0, (B + 1) * T, T, dtype=torch.int32, device=q.device)
    grouped: dict[str, Any] = {"enable_gqa": True} if k.shape[2] != H else {}
    flat_q, flat_k, flat_v = (x.reshape(B * T, x.shape[2], D) for x in (q, k, v))  # [N, H, D]
    y = varlen_attn(
        flat_q,
        flat_k,
        flat_v,
        starts,
        starts,
        T,
        T,
        scale=scale,
        window_size=(window, 0),
        **grouped,
    )
    assert isinstance(y, Tensor)
    return y.view(B, T, H, D)


def _fa3(
    kernel: Callable[..., Any],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    window: int | None,
    scale: float,
) -> Tensor:
    y = kernel(
        q,
        k,
        v,
        softmax_scale=scale,
        causal=True,
        window_size=(-1, -1) if window is None else (window, 0),
    )
    return y[0] if isinstance(y, tuple) else y


@functools.cache
def _fa3_function() -> Callable[..., Any]:
    """FlashAttention-3's function from the first build on the hub that fits; downloads it.

    Raises: RuntimeError with the reason of each build if none does.
    """
    hub = importlib.import_module("kernels")
    # Since 0.14 only publishers with a badge of the hub are loaded unless told otherwise. The
    # commit, which is a hash of the files, says which code is trusted.
    trusts = "trust_remote_code" in inspect.signature(hub.get_kernel).parameters
    options: dict[str, Any] = {"trust_remote_code": True} if trusts else {}
    reasons = []
    for repository, commit in FA3_KERNELS:
        try:
            found = hub.get_kernel(repository, revision=commit, **options)
            return getattr(found, "flash_attn_interface", found).flash_attn_func
        except Exception as error:  # no network, no build for this torch, a library that is missing
            reasons.append(f"{repository}: {_first_line(error)}")
            if "Connect" in type(error).__name__:
                break  # the loader has tried for half a minute, and would again
    raise RuntimeError("; ".join(reasons))


def _set_torchs_flash(name: str) -> None:
    """Let torch's own functions call FlashAttention-4 for "fa4", else what they call by default.

    Raises: what importing flash-attn-4 does.
    """
    from torch.nn.attention import (
        activate_flash_attention_impl,
        current_flash_attention_impl,
        restore_flash_attention_impl,
    )

    active = current_flash_attention_impl() == "FA4"
    if name == "fa4" and not active:
        # Else every process of every stage would compile the same kernels, all at the same time.
        os.environ.setdefault(FA4_CACHE, "1")
        activate_flash_attention_impl("FA4")
    elif name != "fa4" and active:
        restore_flash_attention_impl()


@functools.cache
def _varlen_has_gqa() -> bool:
    from torch.nn.attention.varlen import varlen_attn

    return "enable_gqa" in inspect.signature(varlen_attn).parameters


_NOTES = {
    "blocks": "matrix products in blocks in bfloat16, otherwise scaled_dot_product_attention",
    "sdpa": "torch scaled_dot_product_attention; windows in blocks",
    "fa4": "FlashAttention-4 in torch's varlen_attn and scaled_dot_product_attention",
    "fa3": "FlashAttention-3 from the kernel hub; windows in the kernel",
    "varlen": "torch varlen_attn for windows, scaled_dot_product_attention for full layers",
}


def _backend(name: str) -> Backend:
    return Backend(name, _NOTES[name], _fa3_function() if name == "fa3" else None)


@functools.cache
def _choose_for_gpu(device: torch.device) -> Backend:
    """The first backend that works on this GPU; says which others were made for it and fail."""
    reasons = {}
    chosen = "sdpa"
    for name in GPU_BACKENDS:
        reason = _why_not(name, device)
        if reason is None:
            chosen = name
            break
        if _unsupported(name, device) is None:
            reasons[name] = reason
    missing = "; ".join(f"not {name}: {reason}" for name, reason in reasons.items())
    return dataclasses.replace(_backend(chosen), passed_over=missing)


def _unsupported(name: str, device: torch.device) -> str | None:
    """Why the backend cannot run on this kind of GPU; None if it was made for it."""
    major, _ = torch.cuda.get_device_capability(device)
    if torch.version.hip is not None:  # whose capabilities are numbers of another kind
        return None if name == "varlen" else "it needs an NVIDIA GPU"
    made_for = {"fa4": (9, 10), "fa3": (9,)}.get(name)
    if made_for is not None and major not in made_for:
        return "it needs a Hopper GPU" if name == "fa3" else "it needs a Hopper GPU, or a B200"
    return "it needs an Ampere GPU or newer" if major < 8 else None


@functools.cache
def _why_not(name: str, device: torch.device) -> str | None:
    """None if the backend gives correct outputs and gradients on this GPU, else the reason."""
    reason = _unsupported(name, device)
    if reason is not None:
        return reason
    for backend, module, package in (
        ("fa4", "flash_attn.cute", "flash-attn-4"),
        ("fa3", "kernels", "kernels"),
    ):
        if name == backend and not _installed(module):
            return f"the package {package!r} is not installed (extra gpu: uv sync --extra gpu)"
    # Tried rather than looked up: a kernel may be installed and still not run on this GPU.
    try:
        # The first caller may be the engine, which runs without gradients.
        with torch.inference_mode(False), torch.enable_grad():
            return _probe(name, device)
    except Exception as error:  # a broken kernel may raise anything
        return _first_line(error)
    finally:
        if device.type == "cuda":
            _set_torchs_flash("sdpa")


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that it is in
        return False


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".split("\n")[0][:200]


def _probe(name: str, device: torch.device) -> str | None:
    """Compare small problems with torch in float32, forward and backward."""
    # A kernel may run and still be wrong. One that is off by a key in its window, for example,
    # would train without an error a model that sees different keys when it is decoded; the
    # FlashAttention-4 of torch 2.11 forgets the window in the backward pass.
    if device.type == "cuda":
        _set_torchs_flash(name)
    backend, reference = _backend(name), _backend("sdpa")
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(2, 256, 4, 128, generator=generator) for _ in range(4)]
    q, k, v, grad = (x.to(device, torch.bfloat16) for x in inputs)
    for window in (64, None):
        results = []
        # No flash attention takes float32, so the reference is another kernel.
        for chosen, dtype in ((backend, torch.bfloat16), (reference, torch.float32)):
            leaves = [x.detach().to(dtype, copy=True).requires_grad_() for x in (q, k, v)]
            y = attend(*leaves, window=window, scale=128**-0.5, backend=chosen)
            results.append([y.detach(), *torch.autograd.grad(y, leaves, grad.to(dtype))])
        # torch's max, as Python's passes over what is not a number.
        error = float(
            torch.stack([(a - b).abs().max() for a, b in zip(*results, strict=True)]).max()
        )
        if not error < 0.1:
            return f"it is wrong by {error:.2g} on a small problem"
    return None
