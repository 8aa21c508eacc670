"""Your own conversations, from files or the hub, in any of the formats of chat_formats.py.

Owns which rows are used, and what is said about the others. Does not own finding and reading files
(data_files, file_formats), nor what a row means (chat_formats).
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from nanochat.data import hub
from nanochat.data.data_files import find_files, find_splits
from nanochat.data.data_splits import TRAIN, VAL
from nanochat.data.file_formats import read_rows
from nanochat.data.tasks.chat_formats import WANTED, conversation_of
from nanochat.system.errors import DataError
from nanochat.tokenizer.conversation import Conversation

log = logging.getLogger(__name__)

SHOWN = 3  # rows that cannot be used, in a message


def own_splits(
    data: str, val_data: str | None = None, *, bad_rows: str = "error"
) -> tuple[list[Conversation], list[Conversation]]:
    """The conversations to train on and those to validate on; the latter are empty if none exist.

    val_data: None looks for validation files in the folders and globs of `data`. What it names is
    not trained on, unless `data` names the same file by its path.
    Raises: as custom_json.
    """
    files, val_files = None, None
    if val_data is not None and not val_data.startswith("hf:"):
        val_files = find_files(val_data, flag="--val-data", split=VAL)
    if not data.startswith("hf:"):
        if val_data is None:
            files, val_files = find_splits(data)
        else:
            files = find_files(data, without=val_files or ())
    train = custom_json(data, bad_rows=bad_rows, files=files)
    if val_data is None and not val_files:
        return train, []
    name = val_data or f"{data}, validation"
    return train, custom_json(name, flag="--val-data", bad_rows=bad_rows, files=val_files)


def custom_json(
    spec: str,
    *,
    flag: str = "--data",
    bad_rows: str = "error",
    files: Sequence[Path] | None = None,
) -> list[Conversation]:
    """The conversations that files or a hub dataset hold; logs their format and what is not used.

    spec: files, folders and globs, or hf:ORG/NAME[:CONFIG][:SPLIT]; flag: the option it is from.
    files: those of spec, if they have been found already.
    bad_rows: "error", or "skip" to leave out rows that cannot be learned from.
    Raises: DataError with the number of bad rows, the place and the fault of the first ones; or if
        there is no row to use.
    """
    rows: list[Conversation] = []
    formats: Counter[str] = Counter()
    unused: Counter[str] = Counter()
    bad: list[tuple[str, str]] = []  # place and fault; only the first ones in words

    def note(error: DataError, place: str = "") -> None:
        bad.append((place, str(error)) if len(bad) < SHOWN else ("", ""))

    if files is None and not spec.startswith("hf:"):
        files = find_files(spec, flag=flag, split=VAL if flag == "--val-data" else TRAIN)
    for place, row in _read(spec, flag, files, note):
        try:
            kind, conversation, fields = conversation_of(row)
        except DataError as error:
            note(error, place)
            continue
        rows.append(conversation)
        formats[kind] += 1
        unused.update(sorted(fields))
    if bad:
        _report_bad(bad, len(rows), skip=bad_rows == "skip")
    if not rows:
        raise DataError(f"{spec} contains no conversations; known are rows with {WANTED}")
    found = "; ".join(f"{count:,} rows, {kind} format" for kind, count in formats.most_common())
    log.info("%s: %s", spec, found)
    if unused:
        names = ", ".join(f"{name!r} in {count:,} rows" for name, count in unused.most_common())
        log.info("not used: %s", names)
    return rows


def _read(
    spec: str, flag: str, files: Sequence[Path] | None, bad: Callable[[DataError], None]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The place and the object of each row; bad: called with those that are not objects."""
    if files is None:
        yield from hub.read_rows(hub.parse_name(spec, flag=flag), streaming=False)
    for path in files or ():
        yield from read_rows(path, bad=bad)


def _report_bad(bad: list[tuple[str, str]], good: int, *, skip: bool) -> None:
    places: dict[str, list[str]] = {}  # of rows with the same fault, which is told once
    for place, fault in bad[:SHOWN]:
        places.setdefault(fault, []).extend(filter(None, [place]))
    faults = [": ".join(filter(None, [", ".join(where), fault])) for fault, where in places.items()]
    first = "; ".join(faults) + ("; ..." if len(bad) > SHOWN else "")
    count = f"{len(bad):,} of {len(bad) + good:,} rows"
    if not good:
        raise DataError(f"none of {len(bad):,} rows can be used: {first}")
    if not skip:
        raise DataError(
            f"{count} cannot be used; repair them, or leave them out with --bad-rows skip: {first}"
        )
    log.warning("%s cannot be used and are left out: %s", count, first)
