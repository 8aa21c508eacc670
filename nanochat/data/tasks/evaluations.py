"""Which tasks a chat model is evaluated on, by name.

Owns the names that --tasks accepts. "full" means the six tasks of ChatCORE, "pocket" the rows of
the embedded world; a public task can be read from a local folder: gsm8k=path/to/gsm8k.
"""

from collections.abc import Callable
from pathlib import Path

from nanochat.data.tasks.arc import arc
from nanochat.data.tasks.common import EvalTask
from nanochat.data.tasks.gsm8k import GSM8K
from nanochat.data.tasks.humaneval import HumanEval
from nanochat.data.tasks.mmlu import mmlu
from nanochat.data.tasks.spelling import LetterCounting, load_words
from nanochat.system.errors import ConfigError

COUNTING_ITEMS = 1000
PROBLEM_ITEMS = 2000  # what RL trains: enough items to tell its gain from noise


def _counting(source: str | None) -> EvalTask:
    words = load_words(Path(source) if source else None)
    return LetterCounting(words, "test", size=COUNTING_ITEMS)


# name -> opens the task from a source; None means the default source
PUBLIC: dict[str, Callable[[str | None], EvalTask]] = {
    "arc-easy": lambda source: arc("ARC-Easy", "test", source=source),
    "arc-challenge": lambda source: arc("ARC-Challenge", "test", source=source),
    "mmlu": lambda source: mmlu("test", source=source),
    "gsm8k": lambda source: GSM8K("test", source=source),
    "humaneval": lambda source: HumanEval(source=source),
    "letter-counting": _counting,
}


def open_tasks(spec: str, *, max_items: int | None) -> list[EvalTask]:
    """The tasks that a comma-separated list names, each once.

    Raises: ConfigError for an unknown name; DataError if a task's data cannot be loaded.
    """
    rows = pocket_rows()
    groups = {"all": (*PUBLIC, *rows), "full": tuple(PUBLIC), "pocket": rows}
    sources: dict[str, str | None] = {}  # name -> folder, if one is given
    for entry in filter(None, (part.strip() for part in spec.split(","))):
        name, given, source = (part.strip() for part in entry.partition("="))
        if name not in (*groups, *PUBLIC, *rows):
            known = ", ".join([*groups, *PUBLIC, *rows])
            raise ConfigError(f"--tasks does not know {name!r}; choose from {known}")
        if given and (name not in PUBLIC or not source or sources.get(name)):
            names = ", ".join(PUBLIC)
            raise ConfigError(f"--tasks {entry}: one folder can be given to each of {names}")
        for task in groups.get(name, (name,)):
            sources[task] = source or sources.get(task)
    if not sources:
        raise ConfigError(f"--tasks {spec!r} names no task; name one, or the group full or pocket")
    return [
        PUBLIC[task](source) if task in PUBLIC else _pocket(task, max_items)
        for task, source in sources.items()
    ]


def pocket_rows() -> tuple[str, ...]:
    """The rows of the embedded world's evaluation."""
    from nanochat import pocket

    return pocket.EVAL_ROWS


def _pocket(row: str, max_items: int | None) -> EvalTask:
    from nanochat.data.tasks.pocket import PocketTask

    if max_items is None and row.startswith("problems"):
        max_items = PROBLEM_ITEMS
    return PocketTask(row, max_items)
