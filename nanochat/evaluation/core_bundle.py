"""The layout of a CORE bundle: its tasks, their items, and the prompts made from an item.

Owns core.yaml, eval_meta_data.csv, eval_data/**.jsonl, few-shot draws and prompt texts. Knows no
model. Prompts, shuffling and few-shot draws are the same as for the published results, so that
results can be compared with them.

Source: Li et al. 2024 (DataComp-LM), arXiv 2406.11794, section 3.5 and appendix G.
"""

import contextlib
import csv
import io
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nanochat.data.file_formats import read_rows
from nanochat.system import storage
from nanochat.system.errors import DataError
from nanochat.tokenizer import Tokenizer

Kind = Literal["multiple_choice", "schema", "language_modeling"]
SHUFFLE_SEED, FEWSHOT_SEED = 1337, 1234  # as for the published results
_KEYS: dict[str, tuple[str, ...]] = {
    "multiple_choice": ("query", "choices", "gold"),
    "schema": ("context_options", "continuation", "gold"),
    "language_modeling": ("context", "continuation"),
}
_WANTED = dict.fromkeys(("query", "context", "continuation"), "text")
_WANTED |= dict.fromkeys(("choices", "context_options"), "a list of two or more texts")
_WANTED["gold"] = "the number of an option, from 0"


@dataclass(frozen=True)
class CoreTask:
    """One task of a bundle; baseline is the accuracy of guessing, in [0, 1)."""

    name: str
    path: Path
    kind: Kind
    shots: int
    delimiter: str
    baseline: float


@dataclass(frozen=True)
class AnswerOption:
    """A token sequence whose tokens from `start` on are scored."""

    tokens: list[int]
    start: int


def read_bundle(bundle: Path) -> list[CoreTask]:
    """The tasks listed in a bundle's core.yaml, with the baselines from its CSV.

    Raises: DataError naming what is missing.
    """
    import yaml

    try:
        with storage.open_regular(bundle / "core.yaml") as file:
            listed = yaml.safe_load(file.read().decode())["icl_tasks"]
        with storage.open_regular(bundle / "eval_meta_data.csv") as file:
            table = csv.DictReader(io.StringIO(file.read().decode(), newline=""))
            baselines = {row["Eval Task"]: row["Random baseline"] for row in table}
    except FileNotFoundError as error:
        raise DataError(f"{error.filename}: no such file; --bundle takes a CORE bundle") from None
    except (yaml.YAMLError, csv.Error, KeyError, TypeError, ValueError, RecursionError) as error:
        raise DataError(f"{bundle} does not have the layout of a CORE bundle: {error!r}") from None
    if not isinstance(listed, list):
        raise DataError(f"{bundle} does not have the layout of a CORE bundle: no list of tasks")
    if not listed:
        raise DataError(f"{bundle}/core.yaml lists no tasks")
    tasks = [_task(bundle, entry, baselines) for entry in listed]
    names = [task.name for task in tasks]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{bundle}/core.yaml lists the task {twice!r} twice")
    return tasks


def read_items(task: CoreTask) -> list[dict[str, Any]]:
    """A task's items, shuffled with a fixed seed.

    Raises: DataError naming file and line of an item that is not of the task's kind.
    """
    items = []
    for place, row in read_rows(task.path):
        keys = _KEYS[task.kind]
        missing = next((key for key in keys if key not in row), None)
        if missing is not None:
            raise DataError(f"{place} has no {missing!r}; {task.kind} needs it")
        odd = next((key for key in keys if not _fits(key, row)), None)
        if odd is not None:
            raise DataError(f"{place}: {odd!r} must be {_WANTED[odd]}, got {row[odd]!r:.60}")
        items.append(row)
    if not items:
        raise DataError(f"{task.path} has no items; download the bundle again")
    random.Random(SHUFFLE_SEED).shuffle(items)
    return items


def _fits(key: str, row: dict[str, Any]) -> bool:
    """Whether a field of an item has the type and range that scoring needs."""
    value = row[key]
    if key in ("choices", "context_options"):
        texts = isinstance(value, list) and all(isinstance(text, str) for text in value)
        return texts and len(value) > 1
    if key == "gold":
        options = row.get("choices", row.get("context_options"))
        return type(value) is int and 0 <= value < len(options or ())
    return isinstance(value, str)


def fewshot(items: Sequence[dict[str, Any]], index: int, shots: int) -> list[dict[str, Any]]:
    """The examples shown before an item: a fixed draw from the other items, or all if too few."""
    others = len(items) - 1
    drawn = random.Random(FEWSHOT_SEED + index).sample(range(others), min(shots, others))
    return [items[i if i < index else i + 1] for i in drawn]


def prompts(task: CoreTask, item: dict[str, Any], examples: Sequence[dict[str, Any]]) -> list[str]:
    """The texts to score an item on, one per option.

    For language modeling: the text without and with the continuation.
    """
    delimiter = task.delimiter
    before = "".join(_solved(task, example) + "\n\n" for example in examples)
    if task.kind == "multiple_choice":
        return [before + item["query"] + delimiter + choice for choice in item["choices"]]
    if task.kind == "schema":
        ending = delimiter + item["continuation"]
        return [before + context + ending for context in item["context_options"]]
    question = before + item["context"].strip() + delimiter
    # The space before the answer is part of the answer's first token.
    return [question.strip(), question + item["continuation"]]


def answer_options(
    task: CoreTask, texts: Sequence[str], tokenizer: Tokenizer, context: int
) -> list[AnswerOption]:
    """The token sequences to score, and where the scored part of each starts.

    It starts where the choices begin to differ, where the common ending begins (schema), or where
    the continuation begins (language modeling).
    """
    sequences = [[tokenizer.bos_id, *tokenizer.encode(text)] for text in texts]
    if task.kind == "schema":
        same = _common([sequence[::-1] for sequence in sequences])
        found = [AnswerOption(sequence, len(sequence) - same) for sequence in sequences]
    else:
        start = _common(sequences)
        kept = sequences[1:] if task.kind == "language_modeling" else sequences
        found = [AnswerOption(sequence, start) for sequence in kept]
    return [_cropped(option, context) for option in found]


def _solved(task: CoreTask, item: dict[str, Any]) -> str:
    """An item with its correct answer, as an example."""
    if task.kind == "multiple_choice":
        return item["query"] + task.delimiter + item["choices"][item["gold"]]
    if task.kind == "schema":
        return item["context_options"][item["gold"]] + task.delimiter + item["continuation"]
    return item["context"].strip() + task.delimiter + item["continuation"]


def _common(sequences: Sequence[Sequence[int]]) -> int:
    """The number of leading tokens that all sequences have in common."""
    shortest = min(len(sequence) for sequence in sequences)
    for place in range(shortest):
        if len({sequence[place] for sequence in sequences}) > 1:
            return place
    return shortest


def _cropped(option: AnswerOption, context: int) -> AnswerOption:
    """The option cut to the model's context; all tokens but the last are inputs.

    At least the last token is scored, and never the BOS.
    """
    start = max(1, min(option.start, len(option.tokens) - 1))
    excess = len(option.tokens) - 1 - context
    if excess <= 0:
        return AnswerOption(option.tokens, start)
    tokens = [option.tokens[0], *option.tokens[excess + 1 :]]
    return AnswerOption(tokens, max(1, start - excess))


def _task(bundle: Path, entry: Any, baselines: dict[str, str]) -> CoreTask:
    """A task from its entry in core.yaml. Raises: DataError for a value that it cannot have."""
    where = f"{bundle}/core.yaml"
    name = _text(entry, "label", where)
    where = f"{where}: task {name!r}"
    kind = _text(entry, "icl_task_type", where)
    if kind not in _KEYS:
        raise DataError(f"{where} has unknown type {kind!r}")
    if name not in baselines:
        raise DataError(f"{bundle}/eval_meta_data.csv has no row for task {name!r}")
    shots = entry.get("num_fewshot")
    if not isinstance(shots, list) or not shots or type(shots[0]) is not int or shots[0] < 0:
        raise DataError(f"{where}: num_fewshot must be a list such as [10], got {shots!r:.60}")
    delimiter = entry.get("continuation_delimiter", " ")
    if not isinstance(delimiter, str):
        raise DataError(f"{where}: continuation_delimiter must be text, got {delimiter!r:.60}")
    return CoreTask(
        name=name,
        path=_items_path(bundle, _text(entry, "dataset_uri", where), where),
        kind=kind,  # type: ignore[arg-type]
        shots=shots[0],
        delimiter=delimiter,
        baseline=_baseline(baselines[name], f"{bundle}/eval_meta_data.csv: task {name!r}"),
    )


def _text(entry: Any, key: str, where: str) -> str:
    value = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(value, str) or not value.isprintable():
        raise DataError(f"{where}: a task's {key} must be text, got {value!r:.60}")
    return value


def _items_path(bundle: Path, uri: str, where: str) -> Path:
    root = bundle / "eval_data"
    path = root / uri
    # A bundle comes from elsewhere: it must not make us read, and show, other files.
    if not path.resolve().is_relative_to(root.resolve()):
        raise DataError(f"{where}: dataset_uri {uri!r} leads out of the bundle")
    if not path.is_file():
        raise DataError(f"{path}: no such file, but core.yaml lists it; download the bundle again")
    return path


def _baseline(text: str | None, where: str) -> float:
    """The accuracy of guessing, in [0, 1), from percent."""
    with contextlib.suppress(TypeError, ValueError):
        percent = float(text)  # type: ignore[arg-type]
        if 0 <= percent < 100:
            return percent / 100
    raise DataError(f"{where}: the baseline must be from 0 to below 100 percent, got {text!r:.60}")
