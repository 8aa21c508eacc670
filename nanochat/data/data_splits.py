"""The splits that the names of data files mark: train-00000-of-00004.parquet, wiki.test.txt, dev/.

Owns the words that mark a split, and which files are then for training. Finds and reads no file.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nanochat.data.file_formats import split_name

TRAIN, VAL, TEST = "train", "val", "test"
SPLIT_OF = {
    **dict.fromkeys(("train", "training", "trainset"), TRAIN),
    **dict.fromkeys(("val", "valid", "validation", "dev", "eval", "evaluation"), VAL),
    **dict.fromkeys(("valset", "devset", "evalset"), VAL),
    **dict.fromkeys(("test", "testing", "testset", "heldout", "holdout"), TEST),
}
FILLERS = {"split", "set", "data", "dataset", "part", "shard", "of"}
DESCRIBED = {
    TRAIN: "training data",
    VAL: "validation data",
    TEST: "test data",
    None: "of no split",
}


@dataclass(eq=False)
class FoundFile:
    """A file found in a folder or by a glob."""

    path: Path
    under: Path  # its path below that folder, or below the part of the glob that is no pattern
    kind: str | None  # the format, as in file_formats.kind_of
    split: str | None = None
    home: Path = Path()  # below the same, the folder that is divided into splits
    rest: tuple[str, ...] = ()  # the words of its name that mark no split
    may_be_held_out: bool = False  # a plain text named like test data, but perhaps a title

    @property
    def about(self) -> str:
        """What its name says that it is, for a message."""
        return DESCRIBED[self.split]


def mark_splits(files: Sequence[FoundFile]) -> None:
    """Set the split of every file whose name, or whose folder's name, marks one.

    The names of plain texts are often titles, and no book may be lost for its title. So a plain
    text is held out only beside its counterpart for training: test.txt beside train.txt or train/,
    wiki.test.txt beside wiki.train.txt.
    """
    families: dict[tuple[Path, tuple[str, ...]], set[str | None]] = {}
    for file in files:
        _mark(file)
        families.setdefault((file.home, file.rest), set()).add(file.split)
    for file in files:
        splits = families[file.home, file.rest]
        if file.kind == "plain" and not (TRAIN in splits and splits & {VAL, TEST}):
            file.may_be_held_out = file.split in (VAL, TEST)
            file.split = None


def _mark(file: FoundFile) -> None:
    """Set what the names of one file and of its folders mark.

    The mark of a plain text is the last word of its name, or the whole name of its folder.
    """
    words = _words(split_name(file.path)[0])
    marks = [SPLIT_OF[word] for word in words if word in SPLIT_OF]
    file.home, file.rest = file.under.parent, tuple(w for w in words if w not in SPLIT_OF)
    plain = file.kind == "plain"
    if marks and (not plain or words[-1] in SPLIT_OF):
        file.split = _most_held_out(marks)
    for folder in file.under.parents:
        words = _words(folder.name)
        ends = words if plain else [*words[:1], *words[-1:]]
        marks = [SPLIT_OF[word] for word in ends if word in SPLIT_OF]
        if not marks or (plain and len(marks) < len(words)):
            continue
        if file.split is None or _most_held_out([*marks, file.split]) != file.split:
            file.split, file.home, file.rest = _most_held_out(marks), folder.parent, ()


def _words(name: str) -> list[str]:
    return [w for w in re.findall(r"[^\W\d_]+", name.lower()) if w not in FILLERS]


def _most_held_out(splits: Sequence[str]) -> str:
    return next(split for split in (TEST, VAL, TRAIN) if split in splits)


def choose(files: Sequence[FoundFile], split: str | None) -> list[FoundFile]:
    """The marked files that are for one split.

    "val": those marked as validation data, else as test data, else all. "train": those marked as
    training data, and unmarked ones, but not data files beside which others are marked as training
    and as held-out data. None: all.
    """
    if split is None:
        return list(files)
    if split == VAL:
        found = ([f for f in files if f.split == mark] for mark in (VAL, TEST))
        return next(filter(None, found), list(files))
    trained = {f.home for f in files if f.split == TRAIN}
    divided = trained & {f.home for f in files if f.split in (VAL, TEST)}
    return [
        f
        for f in files
        if f.split == TRAIN
        or (f.split is None and (f.kind == "plain" or divided.isdisjoint(f.under.parents)))
    ]
