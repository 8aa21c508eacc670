"""The training and the validation text that --data and --val-data name: files or hub datasets.

Owns what identifies a source, so that text prepared from it can be used again, and which files of
--data validate. Does not own finding (data_files) and reading (text_files, hub) or the options.
"""

import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanochat.data import hub
from nanochat.data.data_files import find_files, find_splits
from nanochat.data.data_splits import VAL
from nanochat.data.file_formats import errors_naming, kind_of
from nanochat.data.text_decoding import TextReading
from nanochat.data.text_files import estimate_characters, read_documents
from nanochat.system.errors import ConfigError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TextSource:
    """The documents of some files or of a hub dataset, not yet read."""

    stem: str  # start of the data folder's name
    identity: Any  # as JSON types; changes if the text may have changed
    characters: int | None  # estimated
    texts: Iterable[str]
    is_plain: bool = False  # some of it is .txt or .md


def open_sources(
    data: str, val_data: str | None, reading: TextReading, *, find_val: bool
) -> tuple[TextSource, TextSource | None]:
    """The training text, and the validation text unless it is to be held out of the other.

    find_val: without val_data, use the files in `data` that are named as validation data.
    Raises: DataError or ConfigError for names that lead nowhere or do not fit together.
    """
    files: Sequence[Path] = []
    val_files: Sequence[Path] = []
    val_source = None
    if val_data and val_data.startswith("hf:"):
        val_source = _of_hub(val_data, "--val-data", reading)
    elif val_data:
        val_files = find_files(val_data, flag="--val-data", split=VAL)
    if data.startswith("hf:"):
        source = _of_hub(data, "--data", reading)
    else:
        if val_data or not find_val:
            files = find_files(data, without=val_files)
        else:
            files, val_files = find_splits(data)
        source = _of_files(files, reading)
        _refuse_column_of_plain_text(files, reading)
    if val_files:
        val_source = _of_files(val_files, reading)
    val = {path.resolve() for path in val_files}
    common = [str(path) for path in files if path.resolve() in val]
    if data.startswith("hf:") and data == val_data:
        common = [data]
    if common:
        log.warning(
            "--val-data names text that is trained on, so its loss says little: %s",
            ", ".join(common[:4]),
        )
    return source, val_source


def _refuse_column_of_plain_text(files: Sequence[Path], reading: TextReading) -> None:
    if reading.column and all(kind_of(path) == "plain" for path in files):
        raise ConfigError(
            f"--text-column {reading.column}: {files[0]} is plain text, without columns"
        )


def _of_hub(spec: str, flag: str, reading: TextReading) -> TextSource:
    name = hub.parse_name(spec, flag=flag)
    parts = [part for part in (name.name, name.config, name.split) if part]
    return TextSource(_slug("-".join(parts)), parts, None, hub.hub_documents(name, reading))


def _of_files(files: Sequence[Path], reading: TextReading) -> TextSource:
    return TextSource(
        stem=_slug(files[0].name.split(".")[0] if len(files) == 1 else "files"),
        identity=[_file_identity(path) for path in files],
        characters=estimate_characters(files),
        texts=read_documents(files, reading),
        is_plain=any(kind_of(path) == "plain" for path in files),
    )


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-") or "files"


def _file_identity(path: Path) -> list[Any]:
    with errors_naming(path):
        status = path.stat()
    return [str(path.resolve()), status.st_size, status.st_mtime_ns]
