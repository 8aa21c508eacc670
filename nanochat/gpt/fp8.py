"""Matrix products in 8-bit floats for training on GPUs that support them (Ada, Hopper and newer).

Owns: which linear layers are converted, quantization with one scale per tensor, and switching fp8
off for evaluation. The weights stay as they are: a converted model has the same parameters and
checkpoints.
Source: FP8 Formats for Deep Learning, arXiv 2209.05433 (e4m3 forward, e5m2 for gradients).
"""

import contextlib
from collections.abc import Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from nanochat.gpt.layers import Linear
from nanochat.gpt.model import GPT
from nanochat.system.errors import ConfigError

OFF = "no fp8"
MULTIPLE = 16  # the hardware's fp8 matrix product needs multiples of this in every dimension
MIN_DIM = 128  # for smaller products quantization costs more time than fp8 saves
MIN_CAPABILITY = (8, 9)
# Of the residual stream, for "auto". An estimate from public runs on H100: at depth 12 (768)
# quantization cost what fp8 saved, at depth 24 (1536) a step became shorter.
MIN_WIDTH = 22 * 64
# AMD's GPUs that multiply the formats used here; MI300 (gfx942) takes e4m3fnuz and e5m2fnuz.
AMD_ARCHITECTURES = ("gfx950", "gfx120")


class Fp8Linear(Linear):
    """A linear layer whose three matrix products (output, two gradients) use fp8 if `enabled`."""

    def __init__(self, linear: Linear) -> None:
        nn.Module.__init__(self)
        self.weight = linear.weight
        self.enabled = True

    def forward(self, x: Tensor) -> Tensor:
        rows = x.numel() // x.shape[-1]
        if not self.enabled or rows % MULTIPLE:
            return F.linear(x, self.weight.to(x.dtype))
        y: Tensor = _Fp8Product.apply(x.reshape(rows, -1), self.weight.to(x.dtype))
        return y.view(*x.shape[:-1], -1)


def convert(model: GPT, wanted: bool | Literal["auto"]) -> str:
    """Replace the eligible linear layers of a model by fp8 ones; returns a phrase that says so.

    wanted: "auto" converts them where the device can and the model is wide enough to gain, and
    otherwise says why not. Parameters are shared, not copied, and keep their names.
    Raises: ConfigError if it is True and the device has no fp8 matrix product.
    """
    if not wanted:
        return OFF
    reason = why_not(model.device)
    if wanted == "auto":
        if reason is None and model.config.width < MIN_WIDTH:
            reason = f"it pays off from width {MIN_WIDTH:,}, the model has {model.config.width:,}"
        if reason is not None:
            return f"{OFF} ({reason})"
    elif reason is not None:
        raise ConfigError(
            f'fp8 training does not work here: {reason}; --fp8 auto (fp8 = "auto" in a preset) '
            "trains without it, --no-fp8 turns it off"
        )
    return f"fp8 in {swap(model)} linears"


def why_not(device: torch.device) -> str | None:
    """None if the device has fast fp8 products, else the reason."""
    if device.type != "cuda":
        return f"it needs a GPU, the device is {device}"
    if torch.version.hip is not None:
        name = torch.cuda.get_device_properties(device).gcnArchName.split(":")[0]
        fits = name.startswith(AMD_ARCHITECTURES)
        return None if fits else f"{name} has other 8-bit formats than e4m3fn and e5m2, or none"
    if torch.cuda.get_device_capability(device) < MIN_CAPABILITY:
        return "it needs an Ada, Hopper or newer GPU"
    return None


def swap(model: nn.Module) -> int:
    """Convert on any device, at any width; returns the number of layers that multiply in fp8."""
    targets = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        # The loss reads the head's weight and multiplies by it itself.
        if type(child) is Linear and eligible(child) and name != "head"
    ]
    for parent, name, child in targets:
        setattr(parent, name, Fp8Linear(child))
    return len(targets)


def eligible(linear: Linear) -> bool:
    """Whether a linear layer fits the hardware and is large enough for fp8 to be faster."""
    return all(size % MULTIPLE == 0 and size >= MIN_DIM for size in linear.weight.shape)


@contextlib.contextmanager
def disabled(model: nn.Module) -> Iterator[None]:
    """Within it the model uses its compute dtype, so that evaluation sees the deployed model."""
    linears = [m for m in model.modules() if isinstance(m, Fp8Linear) and m.enabled]
    for linear in linears:
        linear.enabled = False
    try:
        yield
    finally:
        for linear in linears:
            linear.enabled = True


class _Fp8Product(torch.autograd.Function):
    """x (M, K) times weight (N, K) transposed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        # e4m3 has 3 bits of mantissa, for activations and weights, whose range is small.
        x8, x_scale = quantize(x, torch.float8_e4m3fn)
        w8, w_scale = quantize(weight, torch.float8_e4m3fn)
        ctx.save_for_backward(x8, x_scale, w8, w_scale)
        ctx.dtype = x.dtype
        # [M, K] x [K, N] -> [M, N]; the transposed view of a row-major weight is column-major.
        return _product(x8, w8.T, x_scale, w_scale, dtype=x.dtype, fast=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x8, x_scale, w8, w_scale = ctx.saved_tensors
        # e5m2 trades a bit of precision for range: gradients spread over many orders of magnitude.
        g8, g_scale = quantize(grad, torch.float8_e5m2)
        # The hardware multiplies row-major by column-major only, so the other layouts are copied.
        grad_x = _product(g8, _column_major(w8), g_scale, w_scale, dtype=ctx.dtype, fast=False)
        grad_w = _product(
            g8.T.contiguous(), _column_major(x8), g_scale, x_scale, dtype=ctx.dtype, fast=False
        )
        return grad_x, grad_w  # [M, K], [N, K]


def quantize(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x in fp8, scaled so that its largest value is the format's largest, and the inverse scale."""
    # The scale is computed from the current tensor: one more pass, but no history to keep.
    largest = torch.finfo(dtype).max
    # fp8 has few exponents: without a scale small values would become 0 and large ones saturate.
    factor = x.abs().amax().float().clamp(min=1e-12) / largest  # () float32
    return (x.float() / factor).clamp(-largest, largest).to(dtype), factor


def _product(
    a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor, *, dtype: torch.dtype, fast: bool
) -> Tensor:
    """a (row-major) times b (column-major). fast: less precise accumulation, not for gradients."""
    return torch._scaled_mm(
        a, b, scale_a=a_scale, scale_b=b_scale, out_dtype=dtype, use_fast_accum=fast
    )


def _column_major(x: Tensor) -> Tensor:
    return x.T.contiguous().T
