"""Documents from a user's text files, and the rows of JSON lines.

Owns finding files, decompression, and reports of bad input. Knows no split and no shard. Formats:
.txt and .md (cut into documents at blank lines), .jsonl (one object per line, key `text` or
`content`), .parquet (column `text` or `content`); all but parquet also as .gz or .zst.
"""

import codecs
import contextlib
import glob
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from nanochat.system.errors import DataError

PLAIN_SUFFIXES = (".txt", ".md")
JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
COMPRESSIONS = (".gz", ".zst")
TEXT_KEYS = ("text", "content")
FORMATS = ".txt, .md, .jsonl, .parquet, the first three also .gz or .zst"
CHUNK_BYTES = 1 << 20
_SOLID = re.compile(r"\S|\Z")


@dataclass
class ReadCounts:
    """What was skipped or changed while reading, for a warning afterward."""

    empty: int = 0
    replaced: int = 0


def find_files(spec: str, *, flag: str = "--data") -> list[Path]:
    """The files named by a path, folder, glob or comma-separated list of these, sorted.

    flag: the option that holds the list, for the message.
    Raises: DataError if a part names no file, or a file of an unknown format.
    """
    parts = [spec] if Path(spec).expanduser().exists() else spec.split(",")
    files: dict[Path, None] = {}
    for part in filter(None, (p.strip() for p in parts)):
        files.update(dict.fromkeys(_find(part, flag)))
    if not files:
        raise DataError(f"{flag} {spec!r} names no file; give {FORMATS}, a folder or a glob")
    return list(files)


def _find(part: str, flag: str) -> list[Path]:
    path = Path(part).expanduser()
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if _visible(p, path) and p.is_file())
        readable = [p for p in found if kind_of(p)]
        if not readable:
            raise DataError(
                f"folder {part} has no text among its {len(found)} files; give {FORMATS}"
            )
        return readable
    found = [path] if path.is_file() else _glob(path, flag)
    for file in found:
        if kind_of(file) is None:
            raise DataError(f"{file}: cannot tell the format of this file; give {FORMATS}")
    return found


def _glob(path: Path, flag: str) -> list[Path]:
    found = sorted(Path(p) for p in glob.glob(str(path), recursive=True))  # noqa: PTH207
    found = [p for p in found if p.is_file()]
    if not found:
        raise DataError(
            f"{flag} {path}: no such file, folder or glob match; {flag} takes files or hf:ORG/NAME"
            + (", pocket, climbmix, fineweb-edu" if flag == "--data" else "")
        )
    return found


def _visible(path: Path, root: Path) -> bool:
    return not any(part.startswith(".") for part in path.relative_to(root).parts)


def kind_of(path: Path) -> str | None:
    """The format of a file by its name: "plain", "json", "parquet", or None."""
    suffixes = [s.lower() for s in path.suffixes]
    compressed = bool(suffixes) and suffixes[-1] in COMPRESSIONS
    if compressed:
        suffixes.pop()
    last = suffixes[-1] if suffixes else ""
    if last in PLAIN_SUFFIXES:
        return "plain"
    if last in JSON_SUFFIXES:
        return "json"
    return "parquet" if last == ".parquet" and not compressed else None


def estimate_characters(files: Sequence[Path]) -> int:
    """About how many characters the files have, from their sizes on disk."""
    # zstd and gzip make English about three times smaller (measured on prose: 3.8 and 2.8)
    packed = (*COMPRESSIONS, ".parquet")
    return sum(f.stat().st_size * (3 if f.suffix.lower() in packed else 1) for f in files)


def read_documents(
    files: Sequence[Path], *, replace_invalid: bool, counts: ReadCounts
) -> Iterator[str]:
    """Every document of the files that is not blank, in order.

    replace_invalid: replace bytes that are not UTF-8 by U+FFFD instead of raising an error.
    Raises: DataError naming the file and the place of anything that cannot be read.
    """
    # A 1 MB file should give about thirty documents, so that some can be held out; in a folder of
    # thousands of articles, each should stay one document.
    size = min(32_768, max(1_024, estimate_characters(files) // 32))
    for path in files:
        with _errors_naming(path):
            for text in _read(path, size, replace_invalid, counts):
                if text.strip():
                    yield text
                else:
                    counts.empty += 1


def read_rows(
    path: Path, *, bad: Callable[[DataError], None] | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The place (file and line, item or row) and the object of each row of JSON or parquet.

    JSON is one object per line; a .json file may also be one array of objects, or indented objects.
    Reads .gz and .zst. Fields that are null in parquet are left out: its rows have all fields.
    bad: called with the error of a row that is not an object, which is then passed over.
    Raises: DataError naming the file, and the place of what cannot be read or is not an object.
    """
    kind = kind_of(path)
    if kind not in ("json", "parquet"):
        raise DataError(f"{path}: not rows; give .jsonl, .json (also .gz, .zst) or .parquet")
    with _errors_naming(path):
        if kind == "parquet":
            yield from _read_parquet_rows(path)
            return
        with open_stream(path) as stream:
            yield from _read_json(stream, path, False, ReadCounts(), bad)


@contextlib.contextmanager
def _errors_naming(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (gzip.BadGzipFile, EOFError, zlib.error, pa.ArrowException) as error:
        raise DataError(f"{path} is damaged or cut short ({error}); fetch it again") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error})") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None


def _read(path: Path, size: int, replace: bool, counts: ReadCounts) -> Iterator[str]:
    kind = kind_of(path)
    if kind == "parquet":
        yield from _read_parquet(path, replace, counts)
        return
    with open_stream(path) as stream:
        if kind == "plain":
            yield from _read_plain(stream, path, size, replace, counts)
        else:
            for place, row in _read_json(stream, path, replace, counts):
                yield _without_surrogates(_json_text(row, place), place, replace, counts)


def open_stream(path: Path) -> IO[bytes]:
    """A file's bytes, decompressed if its name ends in .gz or .zst."""
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return cast(IO[bytes], gzip.open(path, "rb"))
    if suffix == ".zst":
        source: Any = pa.input_stream(str(path), compression="zstd")
        return io.BufferedReader(source, CHUNK_BYTES)
    return path.open("rb")


def _read_plain(
    stream: IO[bytes], path: Path, size: int, replace: bool, counts: ReadCounts
) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")("replace" if replace else "strict")
    rest, lines, read_bytes = "", 1, 0
    while True:
        chunk = stream.read(CHUNK_BYTES)
        pending = len(decoder.getstate()[0])
        try:
            text = decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            line = lines + error.object[: error.start].count(b"\n")
            place, offset = f"{path}, line {line}", read_bytes - pending + error.start
            raise _not_utf8(path, place, offset) from None
        if replace:
            counts.replaced += max(0, text.count("\ufffd") - chunk.count(b"\xef\xbf\xbd"))
        if not read_bytes:
            text = text.removeprefix("\ufeff")
        lines += text.count("\n")
        read_bytes += len(chunk)
        rest += text
        start = 0
        while len(rest) - start >= 2 * size:
            end = _cut(rest, start, size)
            yield rest[start:end]
            start = end
        rest = rest[start:]
        if not chunk:
            yield rest
            return


def _cut(text: str, start: int, size: int) -> int:
    """The end of the document at `start`: after a blank line, else after a line, else a word."""
    for mark in ("\n\n", "\n", " "):
        found = text.find(mark, start + size, start + 2 * size)
        if found >= 0:
            return found + len(mark)
    return start + size


def _read_json(
    stream: IO[bytes],
    path: Path,
    replace: bool,
    counts: ReadCounts,
    bad: Callable[[DataError], None] | None = None,
) -> Iterator[tuple[str, dict[str, Any]]]:
    offset, rows = 0, 0
    for number, line in enumerate(stream, start=1):
        place, text = f"{path}, line {number}", ""
        try:
            text = _decode(line.removeprefix(codecs.BOM_UTF8), path, place, offset, replace, counts)
            row = _object(json.loads(text), place) if text.strip() else None
        except (ValueError, RecursionError, DataError) as error:
            if text and rows == 0 and ".json" in (s.lower() for s in path.suffixes[-2:]):
                rest = _decode(stream.read(), path, place, offset, replace, counts)
                yield from _read_json_values("\n" * (number - 1) + text + rest, path, bad)
                return
            if not isinstance(error, DataError):
                error = DataError(f"{place}: not JSON ({error}); write one object per line")
            if bad is None:
                raise error from None
            bad(error)
            row = None
        offset += len(line)
        if row is not None:
            rows += 1
            yield place, row


def _read_json_values(
    text: str, path: Path, bad: Callable[[DataError], None] | None
) -> Iterator[tuple[str, dict[str, Any]]]:
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
        if isinstance(value, list):
            items = {f"{path}, item {number}": item for number, item in enumerate(value, start=1)}
        for place, item in items.items():
            try:
                yield place, _object(item, place)
            except DataError as error:
                if bad is None:
                    raise
                bad(error)
        line += text.count("\n", start, end)


def _object(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        kind = type(value).__name__
        raise DataError(f"{place}: {kind} instead of an object; write one object per line")
    return value


def _json_text(row: dict[str, Any], place: str) -> str:
    for key in TEXT_KEYS:
        value = row.get(key)
        if isinstance(value, str):
            return value
        if value is None and key in row:
            return ""
    if "messages" in row:
        raise DataError(f"{place}: a conversation, not text; it is data for chat_sft")
    keys = ", ".join(map(repr, list(row)[:5])) or "none"
    raise DataError(f"{place}: no text under the key 'text' or 'content'; keys: {keys}")


def _read_parquet_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    number = 0
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=1024):
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


def _read_parquet(path: Path, replace: bool, counts: ReadCounts) -> Iterator[str]:
    with pq.ParquetFile(path) as file:
        schema = file.schema_arrow
        column = next((key for key in TEXT_KEYS if key in schema.names), None)
        if column is None:
            names = ", ".join(schema.names)
            raise DataError(f"{path}: no column 'text' or 'content'; columns: {names}")
        kind = schema.field(column).type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise DataError(f"{path}: column {column!r} has type {kind}, not text")
        number = 0
        for batch in file.iter_batches(batch_size=1024, columns=[column]):
            for value in batch.column(0).cast(pa.large_binary()).to_pylist():
                number += 1
                yield _decode(value or b"", path, f"{path}, row {number}", 0, replace, counts)


def _decode(
    data: bytes, path: Path, place: str, offset: int, replace: bool, counts: ReadCounts
) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        if not replace:
            raise _not_utf8(path, place, offset + error.start) from None
        text = data.decode("utf-8", "replace")
        counts.replaced += text.count("\ufffd")
        return text


def _without_surrogates(text: str, place: str, replace: bool, counts: ReadCounts) -> str:
    """The text, checked for halves of surrogate pairs: JSON can hold them, UTF-8 cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        if not replace:
            raise DataError(
                f"{place}: half a surrogate pair ({text[error.start]!a}); fix the line, "
                "or give --invalid-utf8 replace"
            ) from None
        counts.replaced += sum("\ud800" <= c <= "\udfff" for c in text)
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _not_utf8(path: Path, place: str, offset: int) -> DataError:
    hint = "convert the file (iconv -t utf-8)"
    with open_stream(path) as stream:
        if stream.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            hint = "it looks like UTF-16: convert it (iconv -f utf-16 -t utf-8)"
    return DataError(f"{place}, byte {offset}: not UTF-8; {hint}, or give --invalid-utf8 replace")
