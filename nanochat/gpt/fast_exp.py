"""The exponential of numbers whose size is bounded, for results that bfloat16 rounds.

Owns: a polynomial instead of the vector library's call, with which a CPU needs a fifth to a quarter
less time for the loss beside its matrix products (benchmarks/RESULTS.md).
"""

import math

import torch
from torch import Tensor

LOG2_E = math.log2(math.e)
# exp(x) of |x| <= 1/4 is c0 + c1 x + .. + c4 x^4 to 5.1e-7 of itself: the minimax answer, found by
# least squares with weights raised where the error was large.
MINIMAX = (
    0.9999998950344192,
    0.9999899652549964,
    0.5000118332529406,
    0.16731532978450234,
    0.04155828738130653,
)
RANGE = 0.25


def bounded_exp(x: Tensor, bound: float) -> Tensor:
    """exp(x) of x in at least float32 with |x| <= bound; beyond it, still positive but not exp.

    By as many squarings of exp(x / 2^n) as `bound` asks for, each of which doubles the relative
    error: 4e-5 up to a bound of 16.
    """
    halvings = max(0, math.ceil(math.log2(bound / RANGE)))
    y: float | Tensor = MINIMAX[-1] * 2.0 ** (-halvings * (len(MINIMAX) - 1))
    for power in range(len(MINIMAX) - 2, -1, -1):
        y = y * x + MINIMAX[power] * 2.0 ** (-halvings * power)
    assert isinstance(y, Tensor)
    for _ in range(halvings):
        y = y.square()
    return y


def exp_for(dtype: torch.dtype, x: Tensor, bound: float | None) -> Tensor:
    """exp(x) as exact as results in `dtype` need; bound: of |x|, None if there is none.

    Elsewhere by powers of two: whatever has an exp in it and is needed twice, a compiler for CPUs
    writes to memory.
    """
    compiled_on_cpu = torch.compiler.is_compiling() and x.device.type == "cpu"
    if bound is not None and dtype == torch.bfloat16 and compiled_on_cpu:
        return bounded_exp(x, bound)
    return (x * LOG2_E).exp2()
