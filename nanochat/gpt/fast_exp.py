"""The exponential of bounded numbers, for results that are rounded to bfloat16 anyway.

Owns: a polynomial that replaces the vector library's exp. On a CPU it saves a fifth to a quarter of
the time that the loss spends outside its matrix products (benchmarks/HISTORY.md).
"""

import math

import torch
from torch import Tensor

LOG2_E = math.log2(math.e)
# exp(x) for |x| <= 1/4 is c0 + c1 x + .. + c4 x^4 with a relative error of 5.1e-7: the minimax
# polynomial, found by least squares with weights raised where the error was large.
MINIMAX = (
    0.9999998950344192,
    0.9999899652549964,
    0.5000118332529406,
    0.16731532978450234,
    0.04155828738130653,
)
RANGE = 0.25


def bounded_exp(x: Tensor, bound: float) -> Tensor:
    """exp(x) for |x| <= bound, x in at least float32; beyond the bound positive, but inaccurate.

    Squares exp(x / 2^n) n times, with n from the bound. Each squaring doubles the relative error:
    it is 4e-5 for a bound of 16.
    """
    # The polynomial is accurate on a small interval only: exp(x) = exp(x / 2^n)^(2^n) brings any
    # bounded x there. The division by 2^n is in the coefficients and costs nothing.
    halvings = max(0, math.ceil(math.log2(bound / RANGE)))
    y: float | Tensor = MINIMAX[-1] * 2.0 ** (-halvings * (len(MINIMAX) - 1))
    # Horner's rule: one multiply-add for each coefficient.
    for power in range(len(MINIMAX) - 2, -1, -1):
        y = y * x + MINIMAX[power] * 2.0 ** (-halvings * power)
    assert isinstance(y, Tensor)
    for _ in range(halvings):
        y = y.square()
    return y


def exp_for(dtype: torch.dtype, x: Tensor, bound: float | None) -> Tensor:
    """exp(x) as accurately as results in `dtype` need; bound: of |x|, None if unknown.

    Otherwise computed as a power of two: Inductor materializes any exp that is used twice on a CPU,
    and exp2 avoids that.
    """
    # Uncompiled, each operation of the polynomial would be a pass over memory, slower than exp.
    compiled_on_cpu = torch.compiler.is_compiling() and x.device.type == "cpu"
    if bound is not None and dtype == torch.bfloat16 and compiled_on_cpu:
        return bounded_exp(x, bound)
    return (x * LOG2_E).exp2()
