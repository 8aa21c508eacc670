"""Format the results of gpu_check as Markdown for HISTORY.md."""

from collections.abc import Callable, Sequence
from typing import Any

import gpu_aims

Row = dict[str, Any]
Column = tuple[str, Callable[[Row], str]]

TITLES = {
    "training": "Training steps",
    "kernels": "Kernels of one micro-batch and one update",
    "decoding": "Generation by the engine",
    "rl": "Steps of reinforcement learning",
    "stages": "Commands of the package",
    "attention": "Attention compared with float64",
    "attention_speed": "Attention, forward and backward, bf16, uncompiled",
    "fp8": "8-bit linears compared with bf16",
}


def number(name: str, form: str = ",.0f", factor: float = 1.0) -> Callable[[Row], str]:
    """A column of numbers; - for missing values."""

    def show(row: Row) -> str:
        value = row.get(name)
        return "-" if value is None else format(value * factor, form)

    return show


def text(name: str) -> Callable[[Row], str]:
    """A column of text; - for missing values."""
    return lambda row: "-" if row.get(name) is None else str(row[name]).replace("|", "/")


COLUMNS: dict[str, list[Column]] = {
    "training": [
        ("depth", text("depth")),
        ("vocabulary", number("vocab_size")),
        ("parameters, M", number("parameters", factor=1e-6)),
        ("matrices in", text("precision")),
        ("compiled", lambda row: "yes" if row["compiled"] else "no"),
        ("attention", text("attention")),
        ("rows", text("rows")),
        ("tokens per step", number("tokens_per_step")),
        ("ms per step, p50", number("step_ms_p50", ",.1f")),
        ("tokens/s", number("tokens_per_s")),
        ("TFLOP/s", number("tflops", ",.3g")),
        ("MFU", number("mfu", ".1%")),
        ("ms per micro-batch", number("pass_ms", ",.1f")),
        ("ms per update", number("update_ms", ",.1f")),
        ("peak GB", number("memory_bytes", ",.1f", 1e-9)),
        ("first step, s", number("first_step_s", ",.1f")),
        ("graph breaks", text("graph_breaks")),
        ("compiled again", text("recompiles")),
        ("waits", text("waits")),
        ("loss", number("loss", ".3f")),
    ],
    "kernels": [
        ("model", text("model")),
        ("kernel", text("kernel")),
        ("calls", text("calls")),
        ("ms", number("ms", ",.2f")),
        ("share", number("share", ".1%")),
    ],
    "decoding": [
        ("depth", text("depth")),
        ("rows", text("batch")),
        ("prefill tokens/s", number("prefill_tokens_per_s")),
        ("ms to the first token", number("first_token_ms", ",.1f")),
        ("ms per token", number("token_ms", ",.2f")),
        ("without graphs", number("plain_token_ms", ",.2f")),
        ("tokens/s", number("tokens_per_s")),
        ("weights, GB", number("weights_bytes", ",.2f", 1e-9)),
        ("weights read, GB/s", number("weights_gb_per_s")),
        ("peak GB", number("memory_bytes", ",.1f", 1e-9)),
    ],
    "rl": [
        ("depth", text("depth")),
        ("answers", text("answers")),
        ("tokens per answer", number("answer_tokens")),
        ("s per step", number("step_s", ",.2f")),
        ("of it sampling", number("sampling_s", ",.2f")),
        ("tokens/s sampled", number("tokens_per_s")),
        ("peak GB", number("memory_bytes", ",.1f", 1e-9)),
    ],
    "stages": [
        ("what", text("what")),
        ("s", number("seconds", ",.1f")),
        ("killed at step", text("killed_at")),
        ("difference of losses", number("difference", ".2g")),
        ("first loss", number("first_loss", ".3f")),
        ("last loss", number("last_loss", ".3f")),
    ],
    "attention": [
        ("backend", text("backend")),
        ("rows", text("rows")),
        ("T", text("T")),
        ("heads", lambda row: f"{row['heads']}/{row['kv_heads']}"),
        ("D", text("D")),
        ("window", text("window")),
        *((f"error of {name}", number(name, ".2%")) for name in ("y", "dq", "dk", "dv")),
        ("verdict", text("verdict")),
    ],
    "attention_speed": [
        ("backend", text("backend")),
        ("rows x T x heads x D", text("shape")),
        ("window", text("window")),
        ("ms", number("ms", ",.3f")),
    ],
    "fp8": [
        ("depth", text("depth")),
        ("tokens x in -> out", text("shape")),
        ("bf16 ms", number("bf16_ms", ",.3f")),
        ("fp8 ms", number("fp8_ms", ",.3f")),
        ("bf16 TFLOP/s", number("bf16_tflops")),
        ("fp8 TFLOP/s", number("fp8_tflops")),
        ("speedup", number("gain", ".2f")),
        *((f"error of {name}", number(name, ".1%")) for name in ("y", "dx", "dw")),
    ],
}

EXPLAINED = {
    "training": (
        "Muon and AdamW, random tokens, the trainer's own loop. A micro-batch is one forward and "
        "backward pass; an update is the optimizer step alone (unsharded, on one GPU). The first "
        "step includes compilation. MFU: 6 operations per weight and token, plus attention over "
        "the visible keys, relative to the data sheet's dense bf16 peak, also for fp8. "
        "Compiled again: after the first three steps. Waits: synchronizing calls in one step, by "
        "torch's own count."
    ),
    "kernels": "As measured by the profiler; some run concurrently.",
    "decoding": (
        "Weights and cache in bf16, top-k 50. The time per token is that of a full answer minus "
        "that of its first token, for all rows together; weights count as read once per token. "
        "Without graphs: the same steps, each operation launched by Python."
    ),
    "attention": (
        "Largest error of the output and the gradients relative to the largest true value; inputs "
        "in bf16, up to 2% is ok."
    ),
    "fp8": (
        "Forward and both backward products, including quantization. Errors are the norm of the "
        "difference from bf16 relative to the norm of the bf16 result."
    ),
}


def markdown(facts: Row, parts: Sequence[Row], rows: Sequence[Row]) -> str:
    """The full report.

    facts: the machine. parts: {"name", "status", "seconds"}. rows: results, each with "table".
    """
    title = f"## {facts['date']}, {facts['device']}"
    if facts.get("driver"):
        title += f", driver {facts['driver']}"
    lines = [f"{title}, torch {facts['torch']}, Python {facts['python']}", ""]
    lines += [f"`{facts['command']}`, commit {facts['commit'] or 'unknown'}. {facts['said']}", ""]
    lines += ["### Aims", "", "| figure | aim | found | verdict |", "|---|---|---|---|"]
    lines += [f"| {' | '.join(columns)} |" for columns in gpu_aims.verdicts(rows)] + [""]
    for name in TITLES:
        found = _latest(name, [row for row in rows if row["table"] == name])
        if found:
            lines += [f"### {TITLES[name]}", "", *_table(COLUMNS[name], found), ""]
            lines += [EXPLAINED[name], ""] if name in EXPLAINED else []
    lines += ["### Parts", "", "| part | outcome | s |", "|---|---|---|"]
    for part in parts:
        status = part["status"].replace("|", "/")
        lines.append(f"| {part['name']} | {status} | {part['seconds']:.0f} |")
    notes = [f"- {row['part']}: {row['text']}" for row in rows if row["table"] == "notes"]
    return "\n".join([*lines, "", *notes, ""] if notes else [*lines, ""])


def _latest(name: str, rows: list[Row]) -> list[Row]:
    """The last row about each model, which is the complete one."""
    if name != "training":
        return rows
    key = ("depth", "precision", "vocab_size", "rows")
    return list({tuple(row.get(name) for name in key): row for row in rows}.values())


def _table(columns: Sequence[Column], rows: Sequence[Row]) -> list[str]:
    header = [f"| {' | '.join(name for name, _ in columns)} |", "|" + "---|" * len(columns)]
    return header + [f"| {' | '.join(show(row) for _, show in columns)} |" for row in rows]
