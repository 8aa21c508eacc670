"""Causal attention with sliding windows, and the choice of the kernel that computes it.

Owns: the backends, their detection and their shared definition: query i sees keys i - window .. i.
Does not own: projections and rotary positions (layers.py), cached decoding (engine/kv_cache.py).
No backend ever builds a T x T mask.
"""

import functools
import importlib
import importlib.util
import inspect
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat.gpt.block_attention import block_attention, faster_in_blocks
from nanochat.system.errors import ConfigError

BACKENDS = ("auto", "fa3", "varlen", "blocks", "sdpa")
GPU_BACKENDS = ("fa3", "varlen")  # NVIDIA GPUs only, fastest first
FA3_KERNEL = "varunneal/flash-attention-3"  # Hopper build on the Hugging Face kernel hub


@dataclass(frozen=True)
class Backend:
    """The attention kernel in use; `note` describes it.

    kernel: FlashAttention-3's function for "fa3", looked up in advance because compiled code
    cannot import it.
    """

    name: str
    note: str
    kernel: Callable[..., Any] | None = None


def choose(name: str, device: torch.device) -> Backend:
    """The backend for a device; "auto" picks the fastest that passes a small test.

    name: one of BACKENDS. A GPU without a windowed kernel falls back to "sdpa" and warns once.
    Raises: ConfigError for an unknown name or a backend that does not work on this device.
    """
    if name not in BACKENDS:
        raise ConfigError(f"attention backend must be one of {', '.join(BACKENDS)}, got {name!r}")
    if name == "auto":
        if device.type == "cuda":
            return _choose_for_gpu(device)
        name = "blocks" if device.type == "cpu" else "sdpa"
    if name in GPU_BACKENDS:
        if device.type != "cuda":
            raise ConfigError(f"attention backend {name!r} needs a CUDA device, got {device}")
        reason = _why_not(name, device)
        if reason is not None:
            raise ConfigError(
                f"attention backend {name!r} does not work here: {reason}; use 'auto'"
            )
    return _backend(name)


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
    if backend.name == "fa3":
        assert backend.kernel is not None
        return _fa3(backend.kernel, q, k, v, window=window, scale=scale)
    if backend.name == "blocks" and faster_in_blocks(q):
        return block_attention(q, k, v, window=window, scale=scale, score_bound=score_bound)
    if window is None:
        return _causal(q, k, v, scale=scale)
    if backend.name == "varlen":
        return _varlen(q, k, v, window=window, scale=scale)
    return _banded(q, k, v, window=window, scale=scale)


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
    """FlashAttention-2 windows by torch's variable-length function; all rows have length T."""
    from torch.nn.attention.varlen import varlen_attn

    B, T, H, D = q.shape
    if k.shape[2] != H and not _varlen_has_gqa():
        k, v = (x.repeat_interleave(H // x.shape[2], dim=2) for x in (k, v))
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
    hub = importlib.import_module("kernels")
    return hub.get_kernel(FA3_KERNEL).flash_attn_interface.flash_attn_func


@functools.cache
def _varlen_has_gqa() -> bool:
    from torch.nn.attention.varlen import varlen_attn

    return "enable_gqa" in inspect.signature(varlen_attn).parameters


_NOTES = {
    "blocks": "matrix products in blocks in bfloat16, otherwise scaled_dot_product_attention",
    "sdpa": "torch scaled_dot_product_attention; windows in blocks",
    "fa3": "FlashAttention-3 from the kernel hub; windows in the kernel",
    "varlen": "torch varlen_attn for windows, scaled_dot_product_attention for full layers",
}


def _backend(name: str) -> Backend:
    return Backend(name, _NOTES[name], _fa3_function() if name == "fa3" else None)


@functools.cache
def _choose_for_gpu(device: torch.device) -> Backend:
    """The first backend that works on this GPU; warns once per device if none has windows."""
    # Tried rather than looked up: a kernel may be installed and still not run on this GPU.
    reasons = {}
    for name in GPU_BACKENDS:
        reason = _why_not(name, device)
        if reason is None:
            return _backend(name)
        reasons[name] = reason
    missing = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    warnings.warn(
        f"no windowed attention kernel on {device} ({missing}); windows run in blocks, slower",
        stacklevel=3,
    )
    return _backend("sdpa")


@functools.cache
def _why_not(name: str, device: torch.device) -> str | None:
    """None if the backend gives correct outputs and gradients on this GPU, else the reason."""
    major, _ = torch.cuda.get_device_capability(device)
    if name == "fa3":
        if major != 9:
            return "it needs a Hopper GPU"
        if importlib.util.find_spec("kernels") is None:
            return "the package 'kernels' is not installed"
    elif major < 8:
        return "it needs an Ampere GPU or newer"
    try:
        # The first caller may be the engine, which runs without gradients.
        with torch.inference_mode(False), torch.enable_grad():
            return _probe(name, device)
    except Exception as error:  # a broken kernel may raise anything
        return f"{type(error).__name__}: {error}".split("\n")[0]


def _probe(name: str, device: torch.device) -> str | None:
    """Compare a small windowed problem with the blocked reference, forward and backward."""
    # A kernel may run and still be wrong. One that is off by a key in its window, for example,
    # would train without an error a model that sees different keys when it is decoded.
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(2, 256, 4, 128, generator=generator) for _ in range(4)]
    q, k, v, grad = (x.to(device, torch.bfloat16) for x in inputs)
    results = []
    for backend in (_backend(name), _backend("sdpa")):
        leaves = [x.detach().clone().requires_grad_() for x in (q, k, v)]
        y = attend(*leaves, window=64, scale=128**-0.5, backend=backend)
        results.append([y.detach(), *torch.autograd.grad(y, leaves, grad)])
    error = max(float((a - b).abs().max()) for a, b in zip(*results, strict=True))
    return None if error < 0.1 else f"it is wrong by {error:.2g} on a small problem"
