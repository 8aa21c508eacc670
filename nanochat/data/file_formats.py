"""The formats of data files: which one a name means, the unpacked bytes, and the rows in them.

Owns JSON and parquet rows, and the column that holds text. Does not own finding files (data_files),
decoding UTF-8 (text_decoding) or cutting plain text into documents (text_files).
"""

import codecs
import contextlib
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from nanochat.data.text_decoding import TextReading, decode, refuse_binary, without_surrogates
from nanochat.system import storage
from nanochat.system.errors import DataError

PLAIN_SUFFIXES = (".txt", ".md")
JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
COMPRESSIONS = (".gz", ".zst")
TEXT_KEYS = ("text", "content")
CHAT_KEYS = {"messages", "conversations", "conversation"}
FORMATS = ".txt, .md, .jsonl, .json, .parquet, all but the last also .gz or .zst"
TEXT_TYPES = (
    *("string", "large_string", "string_view", "null"),
    *("binary", "large_binary", "binary_view", "fixed_size_binary"),
)
CHUNK_BYTES = 1 << 20
BATCH_ROWS = 1024
_SOLID = re.compile(r"\S|\Z")

Row = dict[str, Any]


def split_name(path: Path) -> tuple[str, str, str]:
    """A file's name as (stem, format suffix, compression suffix), the suffixes in lower case."""
    name, packed, suffix = path.name, "", ""
    if Path(name).suffix.lower() in COMPRESSIONS:
        name, packed = Path(name).stem, Path(name).suffix.lower()
    if Path(name).suffix.lower() in (*PLAIN_SUFFIXES, *JSON_SUFFIXES, ".parquet"):
        name, suffix = Path(name).stem, Path(name).suffix.lower()
    return name, suffix, packed


def kind_of(path: Path) -> str | None:
    """The format of a file by its name: "plain", "json", "parquet", or None."""
    _, suffix, packed = split_name(path)
    if suffix in PLAIN_SUFFIXES:
        return "plain"
    if suffix in JSON_SUFFIXES:
        return "json"
    return "parquet" if suffix == ".parquet" and not packed else None


def open_stream(path: Path) -> IO[bytes]:
    """A file's bytes, decompressed if its name ends in .gz or .zst."""
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return cast(IO[bytes], gzip.open(path, "rb"))
    if suffix == ".zst":
        source: Any = pa.input_stream(str(path), compression="zstd")
        return io.BufferedReader(source, CHUNK_BYTES)
    return path.open("rb")


@contextlib.contextmanager
def errors_naming(path: Path) -> Iterator[None]:
    """Turn what goes wrong while a file is read into a DataError that names it."""
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error})") from None
    except (gzip.BadGzipFile, EOFError, zlib.error, pa.ArrowException) as error:
        raise DataError(
            f"{path} is damaged or cut short ({_line(error)}); fetch it again"
        ) from None
    except OSError as error:
        reason = error.strerror or _line(error)
        raise DataError(f"{path} cannot be read: {reason}") from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())  # Arrow's errors may have several lines


def read_rows(
    path: Path, *, bad: Callable[[DataError], None] | None = None
) -> Iterator[tuple[str, Row]]:
    """The place (file and line, item or row) and the object of each row of JSON or parquet.

    JSON is one object per line; a .json file may also be one array of objects, or indented objects.
    A bare list of messages is an object that holds them as "messages".
    Reads .gz and .zst. Fields that are null in parquet are left out: its rows have all fields.
    bad: called with the error of a row that is not an object, which is then passed over.
    Raises: DataError naming the file, and the place of what cannot be read or is not an object.
    """
    kind = kind_of(path)
    if kind not in ("json", "parquet"):
        raise DataError(f"{path}: not rows; give .jsonl, .json (also .gz, .zst) or .parquet")
    with errors_naming(path):
        if kind == "parquet":
            yield from _parquet_rows(path)
        else:
            yield from json_rows(path, None, bad)


def row_text(row: Row, place: str, reading: TextReading) -> str:
    """The text of a row: of the column asked for, else of `text`, or of `content` if that is null.

    Raises: DataError if the row has no such column, or something else than text in it.
    """
    keys = [reading.column] if reading.column else TEXT_KEYS
    found = {key: row[key] for key in keys if key in row}
    for value in found.values():
        if isinstance(value, str):
            return without_surrogates(value, place, reading)
        if isinstance(value, bytes):
            return decode(value, place, 0, reading)
    if not found:
        raise _no_text_in(list(row), place, reading)
    if None not in found.values():
        key, value = next(iter(found.items()))
        raise DataError(f"{place}: {key!r} holds {type(value).__name__}, not text")
    return ""


def _no_text_in(names: list[str], place: str, reading: TextReading) -> DataError:
    if not reading.column and not CHAT_KEYS.isdisjoint(names):
        return DataError(f"{place}: a conversation, not text; it is data for chat_sft")
    wanted = repr(reading.column) if reading.column else "'text' or 'content'"
    columns = ", ".join(names[:30]) + ", ..." * (len(names) > 30) or "none"
    return DataError(
        f"{place}: no column {wanted}; columns: {columns}; name the one that holds the text "
        "with --text-column"
    )


# --- JSON


def json_rows(
    path: Path, reading: TextReading | None, bad: Callable[[DataError], None] | None = None
) -> Iterator[tuple[str, Row]]:
    """The place and the object of each row of a JSON file; see read_rows."""
    offset, rows = 0, 0
    with open_stream(path) as stream:
        for number, line in enumerate(stream, start=1):
            if number == 1:
                refuse_binary(line, path)
            place, text, row = f"{path}, line {number}", "", None
            try:
                text = decode(line.removeprefix(codecs.BOM_UTF8), place, offset, reading)
                row = _object(_parsed(text, place), place) if text.strip() else None
            except DataError as error:
                if text and rows == 0 and split_name(path)[1] == ".json":
                    rest = decode(stream.read(), place, offset, reading)
                    yield from _json_values("\n" * (number - 1) + text + rest, path, bad)
                    return
                if bad is None:
                    raise
                bad(error)
            offset += len(line)
            if row is not None:
                rows += 1
                yield place, row


def _json_values(
    text: str, path: Path, bad: Callable[[DataError], None] | None
) -> Iterator[tuple[str, Row]]:
    """The objects of a whole file: of one array, or one after another over several lines."""
    decoder, end, line = json.JSONDecoder(), 0, 1
    while True:
        start = next(_SOLID.finditer(text, end)).start()
        line += text.count("\n", end, start)
        if start == len(text):
            return
        try:
            value, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}: not JSON ({error})") from None
        items = {f"{path}, line {line}": value}
        if isinstance(value, list) and not _is_conversation(value):
            items = {f"{path}, item {number}": item for number, item in enumerate(value, start=1)}
        for place, item in items.items():
            try:
                yield place, _object(item, place)
            except DataError as error:
                if bad is None:
                    raise
                bad(error)
        line += text.count("\n", start, end)


def _parsed(text: str, place: str) -> Any:
    try:
        return storage.parse_json(text)
    except ValueError as error:
        raise DataError(f"{place}: not JSON ({error}); write one object per line") from None


def _object(value: Any, place: str) -> Row:
    if _is_conversation(value):
        return {"messages": value}
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        raise DataError(f"{place}: a list of objects; write one object per line, or name it .json")
    if not isinstance(value, dict):
        kind = type(value).__name__
        raise DataError(f"{place}: {kind} instead of an object; write one object per line")
    return value


def _is_conversation(value: Any) -> bool:
    """Whether a value is a bare list of messages, one conversation per line."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(item, dict) and {"role", "content"} <= item.keys() for item in value)
    )


# --- parquet


def _parquet_rows(path: Path) -> Iterator[tuple[str, Row]]:
    number = 0
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=BATCH_ROWS):
            for row in batch.to_pylist():
                number += 1
                yield f"{path}, row {number}", _without_nulls(row)


def _without_nulls(value: Any) -> Any:
    """A parquet value with the null fields of its structs left out, and UTF-8 bytes as text."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    if isinstance(value, bytes):
        with contextlib.suppress(UnicodeDecodeError):
            return value.decode("utf-8")
    return value


def parquet_texts(path: Path, reading: TextReading) -> Iterator[str]:
    """The text of each row, "" where it is null; any Arrow type that holds strings or UTF-8 bytes.

    Raises: DataError if there is no such column, or if it holds something else.
    """
    with pq.ParquetFile(path) as file:
        columns = _text_columns(file.schema_arrow, path, reading)
        number = 0
        for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=columns):
            # by index, since two columns may have one name
            indices = [batch.schema.names.index(name) for name in columns]
            texts = [batch.column(i).cast(pa.large_binary()).to_pylist() for i in indices]
            for values in zip(*texts, strict=True):
                number += 1
                data = next((value for value in values if value is not None), b"")
                yield decode(data, f"{path}, row {number}", 0, reading)


def _text_columns(schema: pa.Schema, path: Path, reading: TextReading) -> list[str]:
    """The columns to take a row's text from: the first that is not null."""
    wanted = [reading.column] if reading.column else TEXT_KEYS
    found = [name for name in wanted if name in schema.names]
    if not found:
        raise _no_text_in(schema.names, str(path), reading)
    types = {name: schema.types[schema.names.index(name)] for name in found}
    texts = [name for name, kind in types.items() if _holds_text(kind)]
    if not texts:
        raise DataError(f"{path}: column {found[0]!r} has type {types[found[0]]}, not text")
    return texts


def _holds_text(kind: pa.DataType) -> bool:
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    if pa.types.is_dictionary(kind):  # what pandas writes for a category
        kind = kind.value_type
    return any(getattr(pa.types, f"is_{name}")(kind) for name in TEXT_TYPES)
