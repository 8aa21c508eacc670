"""What gpu_check's measurements must reach, as a table of named aims."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]
Found = tuple[str, bool] | None  # a value as text and whether it is enough; None: not measured


@dataclass(frozen=True)
class Aim:
    """A figure, what it must reach, and how it follows from the rows of all parts."""

    name: str
    says: str
    of: Callable[[Sequence[Row]], Found]


def verdicts(rows: Sequence[Row]) -> list[tuple[str, str, str, str]]:
    """For each aim its name, what it says, what was found, and met, missed or not measured."""
    table = []
    for aim in AIMS:
        found = aim.of(rows)
        value, verdict = ("-", "not measured") if found is None else (found[0], _word(found[1]))
        table.append((aim.name, aim.says, value, verdict))
    return table


def _word(met: bool) -> str:
    return "met" if met else "**missed**"


def _last(rows: Sequence[Row], table: str, **fields: Any) -> Row | None:
    """The last row of a table with these fields."""
    found = [
        r for r in rows if r["table"] == table and all(r.get(k) == v for k, v in fields.items())
    ]
    return found[-1] if found else None


def _least(
    table: str, value: str, least: float, form: str, **fields: Any
) -> Callable[[Sequence[Row]], Found]:
    """At least a number in the last row with these fields."""

    def of(rows: Sequence[Row]) -> Found:
        row = _last(rows, table, **fields)
        if row is None or row.get(value) is None:
            return None
        return format(row[value], form), row[value] >= least

    return of


def _most(
    table: str, value: str, most: float, form: str, **fields: Any
) -> Callable[[Sequence[Row]], Found]:
    """At most a number in the last row with these fields."""

    def of(rows: Sequence[Row]) -> Found:
        row = _last(rows, table, **fields)
        if row is None or row.get(value) is None:
            return None
        return format(row[value], form), row[value] <= most

    return of


def _fp8_gain(rows: Sequence[Row]) -> Found:
    plain, quick = (
        _last(rows, "training", depth=24, precision=precision, vocab_size=32768)
        for precision in ("bf16", "fp8")
    )
    if plain is None or quick is None:
        return None
    gain = quick["tokens_per_s"] / plain["tokens_per_s"]
    return f"{gain:.2f}x", gain >= 1.15


def _never(value: str) -> Callable[[Sequence[Row]], Found]:
    """Zero in every training row that has it."""

    def of(rows: Sequence[Row]) -> Found:
        measured = [r for r in rows if r["table"] == "training" and r.get(value) is not None]
        most = max((row[value] for row in measured), default=None)
        return None if most is None else (f"{most:,}", most == 0)

    return of


def _compiles(rows: Sequence[Row]) -> Found:
    trained = [row for row in rows if row["table"] == "training"]
    plain = sorted({f"{r['depth']} {r['precision']}" for r in trained if r["fell_back"]})
    return (f"not {', '.join(plain)}" if plain else "all", not plain) if trained else None


def _correct(table: str, bad: Callable[[Row], bool]) -> Callable[[Sequence[Row]], Found]:
    """No bad row in a table."""

    def of(rows: Sequence[Row]) -> Found:
        tried = [row for row in rows if row["table"] == table]
        wrong = sum(map(bad, tried))
        return (f"{len(tried) - wrong} of {len(tried)}", wrong == 0) if tried else None

    return of


def _windows(rows: Sequence[Row]) -> Found:
    """Whether the kernel that is chosen by itself has windows."""
    chosen = _last(rows, "attention_choice")
    return None if chosen is None else (chosen["backend"], chosen["backend"] != "sdpa")


def _fits(rows: Sequence[Row]) -> Found:
    """Whether 32 rows of depth 22 with a vocabulary of 49,152 fit into 80 GB."""
    tried = [
        row
        for row in rows
        if row["table"] == "training" and (row["depth"], row.get("vocab_size")) == (22, 49152)
    ]
    most = max(tried, key=lambda row: row["rows"], default=None)
    if most is None:
        return None
    return f"{most['rows']} rows, {most['memory_bytes'] / 1e9:.1f} GB", most["rows"] >= 32


def _float32(rows: Sequence[Row]) -> Found:
    row = _last(rows, "stages", what="float32")
    return None if row is None else (f"loss {row['last_loss']:.3f}", row["last_loss"] < 100)


def _pocket(rows: Sequence[Row]) -> Found:
    done = [r for r in rows if r["table"] == "stages" and r["what"].startswith("pocket ")]
    if not done:
        return None
    complete = _last(rows, "stages", what="pocket") is not None
    return f"{len(done)} stages, {sum(r['seconds'] for r in done):.0f} s", complete


D24 = {"depth": 24, "precision": "bf16", "vocab_size": 32768}
AIMS = (
    Aim("depth 24 in bf16, MFU", "at least 55%", _least("training", "mfu", 0.55, ".1%", **D24)),
    Aim("depth 24, fp8 against bf16", "at least 1.15x", _fp8_gain),
    Aim("training steps compile", "all", _compiles),
    Aim("graph breaks in a step", "0", _never("graph_breaks")),
    Aim("compilations after the first 3 steps", "0", _never("recompiles")),
    Aim("synchronizations in a step", "0", _never("waits")),
    Aim(
        "decoding, depth 12, one row, tokens/s",
        "at least 300",
        _least("decoding", "tokens_per_s", 300, ",.0f", depth=12, batch=1),
    ),
    Aim(
        "decoding, depth 12, 64 rows, tokens/s",
        "at least 8,000",
        _least("decoding", "tokens_per_s", 8000, ",.0f", depth=12, batch=64),
    ),
    Aim(
        "attention equals float64",
        "every case",
        _correct("attention", lambda row: row["verdict"] != "ok"),
    ),
    Aim("attention chosen by itself", "a kernel with windows", _windows),
    Aim("depth 22, vocabulary 49,152, fp8", "32 rows fit", _fits),
    Aim(
        "killed and resumed: loss against the unbroken run",
        "at most 0.02 apart",
        _most("stages", "difference", 0.02, ".2g", what="killed and resumed"),
    ),
    Aim(
        "training on all GPUs: loss against one GPU",
        "at most 0.02 apart",
        _most("stages", "difference", 0.02, ".2g", what="all GPUs and one"),
    ),
    Aim("--dtype float32", "trains", _float32),
    Aim("all stages of pocket", "complete", _pocket),
    Aim(
        "a step of RL, depth 12, 256 answers of 256 tokens",
        "at most 15 s",
        _most("rl", "step_s", 15, ".1f", depth=12),
    ),
)
