"""Which conversations mid-training and SFT see, by name.

Owns the proportions. "pocket" is the embedded world, "full" the public datasets on the hub; any
other name is that of a user's own conversations.
"""

from collections.abc import Sequence
from itertools import islice
from typing import Literal, cast

from nanochat.data.tasks.arc import arc
from nanochat.data.tasks.common import MixturePart, TaskMixture, in_share
from nanochat.data.tasks.custom_json import custom_json, own_splits
from nanochat.data.tasks.gsm8k import GSM8K
from nanochat.data.tasks.identity import identity
from nanochat.data.tasks.mmlu import mmlu
from nanochat.data.tasks.smoltalk import smoltalk
from nanochat.data.tasks.spelling import LetterCounting, load_words, simple_spelling
from nanochat.system.errors import DataError
from nanochat.tokenizer.conversation import Conversation

Stage = Literal["mid", "sft"]
VAL_SHARE = 0.05  # of a user's own conversations, unless --val-data names a file
POCKET_VAL_CONVERSATIONS = 512
IDENTITY_ROWS = 1000


def build(
    name: str,
    *,
    stage: Stage,
    val_data: str | None = None,
    bad_rows: str = "error",
    count: int = 40_000,
    seed: int = 0,
) -> tuple[Sequence[Conversation], Sequence[Conversation]]:
    """The training and the validation conversations of a stage.

    name: "pocket", "full", or files or a hub dataset (see custom_json); count: training
    conversations of pocket. val_data: conversations to validate on instead of the mixture's own.
    bad_rows: "error", or "skip" to leave out rows that cannot be used.
    Raises: DataError if data is missing or invalid.
    """
    train: Sequence[Conversation]
    val: Sequence[Conversation]
    if name == "pocket":
        train, val = _pocket(stage, count, seed)
    elif name == "full":
        train, val = _full(stage, seed)
    else:
        rows, val = own_splits(name, val_data, bad_rows=bad_rows)
        if not val:
            return _split(rows, name, seed)
        return TaskMixture([rows], seed=seed), val
    if val_data is not None:
        val = custom_json(val_data, flag="--val-data", bad_rows=bad_rows)
    return train, val


def _full(stage: Stage, seed: int) -> tuple[TaskMixture, TaskMixture]:
    words = load_words()
    parts: list[MixturePart]
    if stage == "mid":
        parts = [
            smoltalk("train"),
            mmlu("auxiliary_train"),
            GSM8K("train"),
            (identity(IDENTITY_ROWS), 2),
            simple_spelling(words, "train", size=200_000, seed=seed),
            LetterCounting(words, "train", size=80_000, seed=seed),
        ]
    else:
        parts = [
            arc("ARC-Easy", "train"),
            arc("ARC-Challenge", "train"),
            GSM8K("train"),
            smoltalk("train", limit=10_000),
            identity(IDENTITY_ROWS),
            simple_spelling(words, "train", size=300, seed=seed),
            LetterCounting(words, "train", size=300, seed=seed),
        ]
    # in the proportions of the training mixture; few rows suffice for a loss
    val = TaskMixture(
        [smoltalk("test"), mmlu("test", limit=5200), GSM8K("test", limit=420)], seed=seed
    )
    return TaskMixture(parts, seed=seed), val


def _pocket(
    stage: Stage, count: int, seed: int
) -> tuple[Sequence[Conversation], Sequence[Conversation]]:
    from nanochat import pocket

    train = cast(list[Conversation], list(islice(pocket.conversations(stage, seed), count)))
    # a separate seed; neither stream has reserved contents
    val = islice(pocket.conversations(stage, seed + 1_000_003), POCKET_VAL_CONVERSATIONS)
    return train, cast(list[Conversation], list(val))


def _split(rows: Sequence[Conversation], name: str, seed: int) -> tuple[TaskMixture, TaskMixture]:
    """A user's conversations; VAL_SHARE of them, chosen by hash, are for validation."""
    val = [row for row in rows if in_share(str(row), VAL_SHARE)]
    train = [row for row in rows if not in_share(str(row), VAL_SHARE)]
    if not train or not val:
        raise DataError(
            f"{name} has too few conversations ({len(rows)}) to keep {VAL_SHARE:.0%} of them "
            "for validation; name others with --val-data"
        )
    return TaskMixture([train], seed=seed), TaskMixture([val], seed=seed)
