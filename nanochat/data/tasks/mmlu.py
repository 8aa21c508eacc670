"""MMLU: four-option questions over 57 subjects; `auxiliary_train` is the training set.

Source: Hendrycks et al. 2020, arXiv 2009.03300; hub cais/mmlu.
"""

from nanochat.data.tasks.common import ChoiceQuestion, ChoiceTask, Record, load_rows

HUB = "cais/mmlu"


def mmlu(split: str, *, source: str | None = None, limit: int | None = None) -> ChoiceTask:
    """The questions of a split: "test", "validation", "dev" or "auxiliary_train"."""
    config, split = (split, "train") if split == "auxiliary_train" else ("all", split)
    rows = load_rows(source or HUB, config=config, split=split)
    return ChoiceTask("MMLU", rows, read, limit=limit)


def read(row: Record) -> ChoiceQuestion:
    """A row in the hub's layout; rows of auxiliary_train are nested under "train"."""
    inner = row.get("train", row)
    return ChoiceQuestion(inner["question"], tuple(inner["choices"]), int(inner["answer"]))
