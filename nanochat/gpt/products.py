"""Matrix products with weights that never change, stored in the form that is read fastest.

Owns: the stored forms of a weight while generating. Does not own: which weights there are
(decoder.py), or training's products (layers.py).
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Product(NamedTuple):
    """A product with a stored weight; `stored` is all the memory that `multiply` reads."""

    multiply: Callable[[Tensor], Tensor]  # (N, inputs) -> (N, outputs)
    stored: tuple[Tensor, ...]


PACKED_FOR_ROWS = 64  # a hint to oneDNN; packed for 1 or for 64 rows made no difference of note
FEW_ROWS = 8  # up to here reading the weight takes longer than multiplying
SMALL = (
    1 << 19
)  # elements; a product of one row by fewer takes less time than oneDNN's 10 us a call


def product(weight: Tensor, *, int8: bool = False) -> Product:
    """x -> x @ weight.T for x (N, inputs) of weight's dtype; weight: (outputs, inputs).

    On a CPU the weight is reordered once into oneDNN's blocks. Measured on two AMD cores in
    float32, (2304, 768): 147 instead of 419 us for one row, 214 instead of 649 us for 16, as MKL is
    slow on AMD; in bfloat16 up to 1.6 times as fast as reordering in each call. And a row's result
    is then the same bits in a batch of any size, which MKL's is not.
    int8: store the weight in 8 bits with one scale per output; x is then bfloat16 or wider.
    """
    if int8:
        return _int8_product(weight)
    if weight.device.type == "cpu" and _packs(weight.dtype):
        return _packed_product(weight.contiguous())
    weight = weight.clone()  # shares no memory with the parameter that it was made from
    return Product(lambda x: F.linear(x, weight), (weight,))


def _packed_product(weight: Tensor) -> Product:
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, PACKED_FOR_ROWS)
    linear = torch.ops.mkldnn._linear_pointwise.default
    if weight.dtype != torch.float32 or weight.numel() >= SMALL:
        return Product(lambda x: linear(x, packed, None, "none", [], ""), (packed,))

    columns = weight.t().contiguous()  # [inputs, outputs]

    def multiply(x: Tensor) -> Tensor:
        if x.shape[0] == 1:
            return torch.mm(x, columns)
        y: Tensor = linear(x, packed, None, "none", [], "")
        return y

    return Product(multiply, (packed, columns))


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """weight (outputs, inputs) as int8 and a scale for each output: weight = int8 * scale[:, None].

    Symmetric: the largest magnitude of each row becomes 127.
    """
    scale = weight.float().abs().amax(dim=1).clamp(min=1e-12) / 127  # [outputs]
    return (weight.float() / scale[:, None]).round().to(torch.int8), scale


def _int8_product(weight: Tensor) -> Product:
    stored, scale = quantize(weight)
    scale = scale.to(weight.dtype)
    fused = weight.device.type == "cpu" and weight.dtype == torch.bfloat16

    def multiply(x: Tensor) -> Tensor:
        if fused and x.shape[0] <= FEW_ROWS:
            y: Tensor = torch.ops.aten._weight_int8pack_mm(x.contiguous(), stored, scale)
            return y
        # Widening costs a pass over the weight, which many rows share.
        return F.linear(x, stored.to(x.dtype)) * scale

    return Product(multiply, (stored, scale))


@functools.cache
def _packs(dtype: torch.dtype) -> bool:
    """Whether this build of torch and this CPU multiply by packed weights of a dtype."""
    # Tried rather than looked up: the functions are torch's own (its compiler uses them), with no
    # promise to users, and float16 works on few CPUs.
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return False
    weight = torch.linspace(-1, 1, 64 * 32).view(64, 32).to(dtype)
    try:
        with torch.inference_mode():
            packed = torch.ops.mkldnn._reorder_linear_weight(weight, PACKED_FOR_ROWS)
            got = torch.ops.mkldnn._linear_pointwise.default(weight, packed, None, "none", [], "")
        return torch.allclose(got, F.linear(weight, weight), rtol=0.02, atol=0.02)
    except (RuntimeError, AttributeError):
        return False
