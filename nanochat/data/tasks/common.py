"""What tasks share: rows from a folder or the hub, multiple-choice rendering, mixtures.

Does not own any dataset. A task is a sequence of conversations, each ending with its reference
answer; a task that can be evaluated also has a name, a kind and `evaluate` (`EvalTask`). A complete
task, from a folder with test.jsonl whose lines are {"country": "...", "city": "..."}:

    class Capitals(GenerateTask):
        '''Capitals of countries; right if the answer names the city.'''

        def __init__(self, split: str, *, source: str) -> None:
            self.rows = load_rows(source, split=split)
            super().__init__("Capitals", self.rows, self.convert)

        def convert(self, row: Record) -> Conversation:
            return exchange(f"What is the capital of {row['country']}?", row["city"])

        def evaluate(self, index: int, text: str) -> bool:
            return self.rows[index]["city"] in text

To evaluate on it, add it to PUBLIC in `evaluations`; to train on it, add it to a mixture in
`mixtures`. RL uses its `reward`, which is 1 where `evaluate` is true. For multiple choice, return a
`ChoiceTask`, as `mmlu` does.
"""

import hashlib
import logging
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, overload

import numpy as np

from nanochat.data import hub_datasets
from nanochat.data.file_formats import read_rows
from nanochat.system.errors import ConfigError, DataError
from nanochat.tokenizer.conversation import Conversation

log = logging.getLogger(__name__)

Record = dict[str, Any]
MixturePart = Sequence[Conversation] | tuple[Sequence[Conversation], int]
LETTERS = "ABCDEFGHIJ"


@dataclass(frozen=True)
class ChoiceQuestion:
    """A question with options; `answer` is the index of the right one."""

    question: str
    options: tuple[str, ...]
    answer: int


class EvalTask(Protocol):
    """Questions that a chat model can be evaluated on."""

    @property
    def name(self) -> str:
        """The name of the metric."""

    @property
    def kind(self) -> Literal["generate", "choice"]:
        """Whether the answer is free text or one of several letters."""

    def __len__(self) -> int:
        """The number of items."""

    def __getitem__(self, index: int, /) -> Conversation:
        """The item's conversation; its last message is the reference answer."""

    def evaluate(self, index: int, text: str) -> bool:
        """Whether the model's text answers the item."""

    def choices(self, index: int) -> list[str]:
        """The letters to choose from; empty if the answer is free text."""


class Conversations(Sequence[Conversation]):
    """Rows as conversations; each row is converted on access."""

    def __init__(
        self,
        name: str,
        rows: Sequence[Any],
        convert: Callable[[Any], Conversation],
        *,
        limit: int | None = None,
    ) -> None:
        self.name = name
        self._rows = rows
        self._convert = convert
        self._length = len(rows) if limit is None else min(limit, len(rows))

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> Conversation: ...
    @overload
    def __getitem__(self, index: slice) -> list[Conversation]: ...
    def __getitem__(self, index: int | slice) -> Conversation | list[Conversation]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self._convert(self._rows[range(len(self))[index]])


class GenerateTask(Conversations):
    """Questions answered in free text; a subclass decides in `evaluate` what is right."""

    kind: Literal["generate"] = "generate"

    def choices(self, index: int) -> list[str]:
        """Empty: the answer is free text."""
        return []

    def evaluate(self, index: int, text: str) -> bool:
        """Whether the text answers the item."""
        raise NotImplementedError

    def reward(self, index: int, text: str) -> float:
        """The reward in reinforcement learning: 1 for the right answer, otherwise 0."""
        return float(self.evaluate(index, text))


class ChoiceTask(Conversations):
    """Multiple-choice questions; the reference answer is a bare letter."""

    kind: Literal["choice"] = "choice"

    def __init__(
        self,
        name: str,
        rows: Sequence[Record],
        read: Callable[[Record], ChoiceQuestion],
        *,
        limit: int | None = None,
    ) -> None:
        super().__init__(name, rows, lambda row: choice_conversation(read(row)), limit=limit)
        self._read = read

    def choices(self, index: int) -> list[str]:
        """The letters of the item's options."""
        return list(LETTERS[: len(self._read(self._rows[index]).options)])

    def evaluate(self, index: int, text: str) -> bool:
        """Whether the text names the right letter."""
        answer = LETTERS[self._read(self._rows[index]).answer]
        return find_letter(text, self.choices(index)) == answer


class TaskMixture(Sequence[Conversation]):
    """Several sequences shuffled into one; the order depends only on the seed and their lengths.

    parts: a sequence of conversations, or (sequence, repeats) to include it several times.
    """

    def __init__(self, parts: Iterable[MixturePart], *, seed: int) -> None:
        self._parts: list[Sequence[Conversation]] = []
        for part in parts:
            sequence, repeats = part if isinstance(part, tuple) else (part, 1)
            if repeats < 1:
                raise ConfigError(
                    f"a part of a mixture must be repeated at least once, got {repeats}"
                )
            self._parts += [sequence] * repeats
        self._ends = np.cumsum([len(part) for part in self._parts], dtype=np.int64)
        total = int(self._ends[-1]) if self._parts else 0
        self._order = np.random.default_rng(seed).permutation(total)

    def __len__(self) -> int:
        return len(self._order)

    @overload
    def __getitem__(self, index: int) -> Conversation: ...
    @overload
    def __getitem__(self, index: slice) -> list[Conversation]: ...
    def __getitem__(self, index: int | slice) -> Conversation | list[Conversation]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = int(self._order[index])
        part = int(np.searchsorted(self._ends, place, side="right"))
        return self._parts[part][place - int(self._ends[part])]


def exchange(question: str, answer: Any) -> Conversation:
    """One question and its answer (text, or a list of parts)."""
    return {
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
    }


def choice_conversation(question: ChoiceQuestion) -> Conversation:
    """A multiple-choice question whose answer is the bare letter.

    The letter follows its option in brackets: a copying head finds it right after the text that it
    matched, and the split pattern never joins a letter to a bracket before it, so the letter is the
    same token here and as the answer.
    """
    lines = [question.question, ""]
    lines += [f"- {o} ({LETTERS[i]})" for i, o in enumerate(question.options)]
    lines += ["", "Answer with the letter of the right option only."]
    return exchange("\n".join(lines), LETTERS[question.answer])


def find_letter(text: str, letters: Sequence[str]) -> str | None:
    """The option letter that a text names: the one it starts with, or the last one on its own.

    >>> find_letter("B) A big dog", "ABCD"), find_letter("the river C", "ABCD")
    ('B', 'C')
    """
    allowed = re.escape("".join(letters))
    opening = re.match(rf"\W*([{allowed}])(?=[.,:;)\]*]|\s*$)", text)
    if opening:
        return opening.group(1)
    alone = re.findall(rf"(?<![\w'’])([{allowed}])(?![\w'’])", text)
    return alone[-1] if alone else None


def load_rows(source: str, *, split: str, config: str | None = None) -> Sequence[Record]:
    """The rows of a split, from a local folder or the Hugging Face hub.

    source: a folder with <split>.jsonl, .jsonl.gz or .parquet, possibly in a subfolder named after
        the config; or a dataset's name on the hub, "org/name".
    Raises: DataError if the data does not exist or cannot be reached.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        path = _local_file(folder, split, config)
        if path.suffix == ".parquet":
            return read_parquet(path)
        return [row for _, row in read_rows(path)]
    if source.startswith((".", "/", "~")):
        raise DataError(
            f"{source} is not a folder; give a folder with {split}.jsonl, or a hub name"
        )
    return _hub_rows(source, split, config)


def read_parquet(path: Path) -> list[Record]:
    """The rows of a parquet file.

    Raises: DataError if the file is not valid parquet.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{path} is not a readable parquet file: {error}") from None


def in_share(key: str, share: float) -> bool:
    """Whether a key belongs to a share of all keys, decided by its hash."""
    digest = hashlib.sha256(key.encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def _local_file(folder: Path, split: str, config: str | None) -> Path:
    for place in (folder / config if config else folder, folder):
        for ending in ("jsonl", "jsonl.gz", "parquet"):
            path = place / f"{split}.{ending}"
            if path.is_file():
                return path
    raise DataError(f"{folder} has no {split}.jsonl, {split}.jsonl.gz or {split}.parquet")


def _hub_rows(source: str, split: str, config: str | None) -> Sequence[Record]:
    name = f"{source}:{config}:{split}" if config else f"{source}:{split}"
    try:
        return hub_datasets.load(source, config=config, split=split)
    except DataError:
        raise
    except Exception as error:  # the client raises errors of many libraries
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"{name} cannot be loaded from the Hugging Face hub ({type(error).__name__}: "
            f"{reason}); check the network, HF_ENDPOINT and HF_TOKEN, or use --preset pocket, "
            "which needs no network"
        ) from None
