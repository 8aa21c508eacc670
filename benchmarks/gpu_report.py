"""The figures of gpu_check as Markdown, ready to be put into RESULTS.md."""

from collections.abc import Callable, Sequence
from typing import Any

Row = dict[str, Any]
Column = tuple[str, Callable[[Row], str]]

TITLES = {
    "training": "Training steps",
    "kernels": "Kernels of one micro-batch and one update",
    "decoding": "Generation by the engine",
    "attention": "Attention against float64",
    "attention_speed": "Attention, forward and backward, bf16, uncompiled",
    "fp8": "8-bit linears against bf16",
}


def number(name: str, form: str = ",.0f", factor: float = 1.0) -> Callable[[Row], str]:
    """A column of numbers; - where there is none."""

    def show(row: Row) -> str:
        value = row.get(name)
        return "-" if value is None else format(value * factor, form)

    return show


def word(name: str) -> Callable[[Row], str]:
    """A column of words."""
    return lambda row: "-" if row.get(name) is None else str(row[name]).replace("|", "/")


COLUMNS: dict[str, list[Column]] = {
    "training": [
        ("depth", word("depth")),
        ("parameters, M", number("parameters", factor=1e-6)),
        ("matrices in", word("precision")),
        ("compiled", lambda row: "yes" if row["compiled"] else "no"),
        ("attention", word("attention")),
        ("rows", word("rows")),
        ("tokens a step", number("tokens_per_step")),
        ("ms a step, p50", number("step_ms_p50", ",.1f")),
        ("tokens/s", number("tokens_per_s")),
        ("TFLOP/s", number("tflops", ",.3g")),
        ("MFU", number("mfu", ".1%")),
        ("ms a micro-batch", number("pass_ms", ",.1f")),
        ("ms an update", number("update_ms", ",.1f")),
        ("peak GB", number("memory_bytes", ",.1f", 1e-9)),
        ("first step, s", number("first_step_s", ",.1f")),
        ("loss", number("loss", ".3f")),
    ],
    "kernels": [
        ("model", word("model")),
        ("kernel", word("kernel")),
        ("calls", word("calls")),
        ("ms", number("ms", ",.2f")),
        ("share", number("share", ".1%")),
    ],
    "decoding": [
        ("depth", word("depth")),
        ("rows", word("batch")),
        ("prefill tokens/s", number("prefill_tokens_per_s")),
        ("ms to the first token", number("first_token_ms", ",.1f")),
        ("ms a token", number("token_ms", ",.2f")),
        ("tokens/s", number("tokens_per_s")),
        ("weights, GB", number("weights_bytes", ",.2f", 1e-9)),
        ("weights read, GB/s", number("weights_gb_per_s")),
        ("peak GB", number("memory_bytes", ",.1f", 1e-9)),
    ],
    "attention": [
        ("backend", word("backend")),
        ("rows", word("rows")),
        ("T", word("T")),
        ("heads", lambda row: f"{row['heads']}/{row['kv_heads']}"),
        ("D", word("D")),
        ("window", word("window")),
        *((f"error of {name}", number(name, ".2%")) for name in ("y", "dq", "dk", "dv")),
        ("verdict", word("verdict")),
    ],
    "attention_speed": [
        ("backend", word("backend")),
        ("rows x T x heads x D", word("shape")),
        ("window", word("window")),
        ("ms", number("ms", ",.3f")),
    ],
    "fp8": [
        ("depth", word("depth")),
        ("tokens x in -> out", word("shape")),
        ("bf16 ms", number("bf16_ms", ",.3f")),
        ("fp8 ms", number("fp8_ms", ",.3f")),
        ("bf16 TFLOP/s", number("bf16_tflops")),
        ("fp8 TFLOP/s", number("fp8_tflops")),
        ("times as fast", number("gain", ".2f")),
        *((f"error of {name}", number(name, ".1%")) for name in ("y", "dx", "dw")),
    ],
}

EXPLAINED = {
    "training": (
        "Muon and AdamW, random tokens, the trainer's own loop; a micro-batch is one forward and "
        "backward pass, an update the optimizer's part by itself (one GPU does all of it). The "
        "first step is with all that is compiled for it. MFU: 6 operations a weight and token, and "
        "attention over the keys that are seen, of the dense bf16 peak of the data sheet, fp8 too."
    ),
    "kernels": "As the profiler counts them; some run beside others.",
    "decoding": (
        "Weights and cache in bf16, top-k 50. A token's time is that of an answer less that of its "
        "first token, over all rows; weights are counted as read once a token."
    ),
    "attention": (
        "Largest error as a share of the largest true value, of the output and the gradients; "
        "inputs in bf16, up to 2% is ok."
    ),
    "fp8": (
        "Forward and both backward products, quantisation included. Errors are norms of the "
        "difference from bf16 over bf16's norm."
    ),
}


def markdown(facts: Row, parts: Sequence[Row], rows: Sequence[Row]) -> str:
    """Everything that was found.

    facts: of the machine. parts: {"name", "status", "seconds"}. rows: figures, each with "table".
    """
    title = f"## {facts['date']}, {facts['device']}"
    if facts.get("driver"):
        title += f", driver {facts['driver']}"
    lines = [f"{title}, torch {facts['torch']}, Python {facts['python']}", ""]
    lines += [f"`{facts['command']}`, commit {facts['commit'] or 'unknown'}. {facts['said']}", ""]
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
    """Of rows about the same model the last, which has all figures."""
    if name != "training":
        return rows
    return list({(row["depth"], row["precision"]): row for row in rows}.values())


def _table(columns: Sequence[Column], rows: Sequence[Row]) -> list[str]:
    header = [f"| {' | '.join(name for name, _ in columns)} |", "|" + "---|" * len(columns)]
    return header + [f"| {' | '.join(show(row) for _, show in columns)} |" for row in rows]
