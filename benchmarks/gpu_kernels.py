"""Parts of gpu_check about kernels: errors and speed of attention backends and 8-bit linears."""

import time
from collections.abc import Callable

import torch
from gpu_common import Work, reason
from torch import Tensor

from nanochat.gpt import GPTConfig, attention, fp8
from nanochat.gpt.attention import Backend
from nanochat.gpt.layers import Linear
from nanochat.system.errors import ConfigError

# Relative to the largest value. bfloat16 rounds by 0.4%, and each error is a sum of many.
TOLERANCE = 0.02


def check_attention(work: Work) -> None:
    """Compare every available backend with float64, forward and backward, and time it."""
    for name in attention.BACKENDS:
        begin_s = time.perf_counter()
        try:
            backend = attention.choose(name, work.device)
        except ConfigError as error:
            work.note(f"attention {name}: {error}")
            continue
        if name == "auto":
            seconds = time.perf_counter() - begin_s  # which every process of every stage takes
            work.note(f"attention auto: {backend.name} ({backend.note}), found in {seconds:.1f} s")
            work.add("attention_choice", backend=backend.name)
            continue
        _check_backend(work, backend)
    for name in attention.BACKENDS[1:]:
        try:
            _time_backend(work, attention.choose(name, work.device))
        except ConfigError:
            continue  # noted above


def _check_backend(work: Work, backend: Backend) -> None:
    for case in work.scale.attention:
        shape = dict(zip(("rows", "T", "heads", "kv_heads", "D", "window"), case, strict=True))
        try:
            errors = _errors(work, backend, compiled=False, case=case)
        except (RuntimeError, TypeError, ValueError) as error:
            work.add("attention", backend=backend.name, **shape, verdict=reason(error))
            continue
        verdict = "ok" if max(errors.values()) < TOLERANCE else "WRONG"
        work.add("attention", backend=backend.name, **shape, **errors, verdict=verdict)
    if work.compiled:
        case = work.scale.attention[1]
        try:
            errors = _errors(work, backend, compiled=True, case=case)
        except Exception as error:  # the compiler may raise anything
            work.note(f"attention {backend.name} within a compiled function: {reason(error)}")
            return
        worst = max(errors.values())
        outcome = f"largest error {worst:.2%}" if worst < TOLERANCE else f"WRONG by {worst:.2%}"
        work.note(f"attention {backend.name} within a compiled function, in one graph: {outcome}")


def _errors(
    work: Work,
    backend: Backend,
    *,
    compiled: bool,
    case: tuple[int, int, int, int, int, int | None],
) -> dict[str, float]:
    """Largest error of output and gradients, each relative to the largest true value."""
    B, T, H, H_kv, D, window = case
    generator = torch.Generator().manual_seed(T)
    shapes = [(B, T, H, D), (B, T, H_kv, D), (B, T, H_kv, D), (B, T, H, D)]
    drawn = [torch.randn(shape, generator=generator) for shape in shapes]
    *inputs, grad = (x.to(work.device, torch.bfloat16) for x in drawn)
    scale = D**-0.5

    def of_backend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention.attend(q, k, v, window=window, scale=scale, backend=backend)

    def of_reference(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return reference(q, k, v, window=window, scale=scale)

    tried = torch.compile(of_backend, fullgraph=True, dynamic=False) if compiled else of_backend
    results = []
    for function, dtype in ((tried, torch.bfloat16), (of_reference, torch.float64)):
        leaves = [x.to(dtype).detach().requires_grad_() for x in inputs]
        y = function(*leaves)
        results.append([y.detach(), *torch.autograd.grad(y, leaves, grad.to(dtype))])
    names = ("y", "dq", "dk", "dv")
    return {
        name: float((got.double() - true).abs().max() / true.abs().max())
        for name, got, true in zip(names, *results, strict=True)
    }


def reference(q: Tensor, k: Tensor, v: Tensor, *, window: int | None, scale: float) -> Tensor:
    """Attention by definition, with a T x T mask: query i sees keys i - window .. i.

    q: (B, T, H, D); k, v: (B, T, H_kv, D). Returns (B, T, H, D).
    """
    k, v = (x.repeat_interleave(q.shape[2] // x.shape[2], dim=2) for x in (k, v))
    position = torch.arange(q.shape[1], device=q.device)
    back = position[:, None] - position  # distance from a query back to a key
    hidden = back < 0 if window is None else (back < 0) | (back > window)
    scores = torch.einsum("bihd,bjhd->bhij", q, k) * scale
    weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
    return torch.einsum("bhij,bjhd->bihd", weights, v)


def _time_backend(work: Work, backend: Backend) -> None:
    """Time forward and backward at a training shape, standalone and uncompiled."""
    B, T, H, D = work.scale.attention_speed
    leaves = [
        torch.randn(B, T, H, D, device=work.device, dtype=torch.bfloat16).requires_grad_()
        for _ in range(3)
    ]
    grad = torch.randn_like(leaves[0])
    for window in (None, T // 4):

        def step(window: int | None = window) -> None:
            y = attention.attend(*leaves, window=window, scale=D**-0.5, backend=backend)
            torch.autograd.grad(y, leaves, grad)

        shape = f"{B} x {T} x {H} x {D}"
        try:
            ms = work.milliseconds(step)
        except RuntimeError as error:
            work.note(f"speed of attention {backend.name}: {reason(error)}")
            return
        work.add("attention_speed", backend=backend.name, shape=shape, window=window, ms=ms)


def check_fp8(work: Work) -> None:
    """Compare 8-bit linears with bfloat16 ones at the shapes of the models' layers."""
    missing = fp8.why_not(work.device)
    if missing is not None and work.device.type == "cuda":
        work.note(f"fp8: {missing}")
        return
    torch.manual_seed(0)
    tokens = work.scale.device_rows[0] * work.scale.sequence_length
    done = set()
    for depth in work.scale.depths:
        width = GPTConfig(depth=depth, vocab_size=work.scale.vocab_size).width
        for inputs, outputs in ((width, width), (width, 4 * width), (4 * width, width)):
            if work.late(needed_s=5):
                work.note(f"fp8: no time left for {inputs} -> {outputs} of depth {depth}")
            elif (inputs, outputs) not in done:
                done.add((inputs, outputs))
                _compare_linear(work, depth, tokens, inputs, outputs)


def _compare_linear(work: Work, depth: int, tokens: int, inputs: int, outputs: int) -> None:
    plain = Linear(inputs, outputs, torch.float32).to(work.device)
    torch.nn.init.normal_(plain.weight, std=inputs**-0.5)
    x = torch.randn(tokens, inputs, device=work.device, dtype=torch.bfloat16).requires_grad_()
    grad = torch.randn(tokens, outputs, device=work.device, dtype=torch.bfloat16)
    results, times = [], []
    for linear in (plain, fp8.Fp8Linear(plain)):
        run: Callable[[Tensor], Tensor] = linear
        if work.compiled:
            run = torch.compile(linear, dynamic=False)

        def step(run: Callable[[Tensor], Tensor] = run) -> list[Tensor]:
            y = run(x)
            return [y.detach(), *torch.autograd.grad(y, (x, plain.weight), grad)]

        results.append(step())
        times.append(work.milliseconds(step))
    errors = {
        name: float((got.float() - true.float()).norm() / true.float().norm())
        for name, true, got in zip(("y", "dx", "dw"), *results, strict=True)
    }
    work.add(
        "fp8",
        depth=depth,
        shape=f"{tokens} x {inputs} -> {outputs}",
        bf16_ms=times[0],
        fp8_ms=times[1],
        bf16_tflops=6e-9 * tokens * inputs * outputs / times[0],
        fp8_tflops=6e-9 * tokens * inputs * outputs / times[1],
        gain=times[0] / times[1],
        **errors,
    )
