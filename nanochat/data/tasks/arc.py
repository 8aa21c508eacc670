"""ARC: multiple-choice science questions from school tests, in an easy and a challenging set.

Source: Clark et al. 2018, arXiv 1803.05457; hub allenai/ai2_arc.
"""

from typing import Literal

from nanochat.data.tasks.common import ChoiceQuestion, ChoiceTask, Record, load_rows
from nanochat.system.errors import DataError

HUB = "allenai/ai2_arc"


def arc(
    subset: Literal["ARC-Easy", "ARC-Challenge"],
    split: str,
    *,
    source: str | None = None,
    limit: int | None = None,
) -> ChoiceTask:
    """The questions of a split: "train", "validation" or "test"."""
    rows = load_rows(source or HUB, config=subset, split=split)
    return ChoiceTask(subset, rows, read, limit=limit)


def read(row: Record) -> ChoiceQuestion:
    """A row in the hub's layout: three to five options, whose labels may be digits.

    Raises: DataError if the answer key is not one of the labels.
    """
    labels = list(row["choices"]["label"])
    if row["answerKey"] not in labels:
        raise DataError(f"ARC row {row.get('id')}: answer {row['answerKey']!r} is not in {labels}")
    return ChoiceQuestion(
        row["question"], tuple(row["choices"]["text"]), labels.index(row["answerKey"])
    )
