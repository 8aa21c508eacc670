"""Documents from a user's text files.

Owns cutting plain text (.txt, .md) into documents at blank lines; every other format has a document
per row (file_formats). Does not own finding files (data_files). Knows no split and no shard.
"""

import codecs
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from nanochat.data.file_formats import (
    CHUNK_BYTES,
    COMPRESSIONS,
    PLAIN_SUFFIXES,
    errors_naming,
    json_rows,
    kind_of,
    open_stream,
    parquet_texts,
    row_text,
)
from nanochat.data.text_decoding import TextReading, not_utf8, refuse_binary
from nanochat.system.errors import DataError

LARGEST_DOCUMENT, SMALLEST_DOCUMENT = 32_768, 1_024  # characters, of plain text that we cut


def estimate_characters(files: Sequence[Path]) -> int:
    """About how many characters the files have, from their sizes on disk."""
    # zstd and gzip make English about three times smaller (measured on prose: 3.8 and 2.8)
    packed = (*COMPRESSIONS, ".parquet")
    total = 0
    for path in files:
        with errors_naming(path):
            total += path.stat().st_size * (3 if path.suffix.lower() in packed else 1)
    return total


def read_documents(files: Sequence[Path], reading: TextReading) -> Iterator[str]:
    """Every document of the files that is not blank, in order.

    Raises: DataError naming the file and the place of anything that cannot be read.
    """
    size = _document_characters(files)
    for path in files:
        with errors_naming(path):
            bytes_before = path.stat().st_size
            for text in _read(path, size, reading):
                if text.strip():
                    yield text
                else:
                    reading.empty += 1
            if path.stat().st_size < bytes_before:
                raise DataError(f"{path} became shorter while it was read; run again")


def _document_characters(files: Sequence[Path]) -> int:
    """The least length of a document of plain text.

    A 1 MB file should give about thirty documents, so that some can be held out; in a folder of
    thousands of articles, each should stay one document.
    """
    characters = estimate_characters(files)
    if characters < 2 * 32 * LARGEST_DOCUMENT:  # the same text with CRLF gives the same documents
        for path in files:
            if path.suffix.lower() in PLAIN_SUFFIXES:
                with errors_naming(path):
                    characters -= path.read_bytes().count(b"\r\n")
    return min(LARGEST_DOCUMENT, max(SMALLEST_DOCUMENT, characters // 32))


def _read(path: Path, size: int, reading: TextReading) -> Iterator[str]:
    kind = kind_of(path)
    if kind == "parquet":
        yield from parquet_texts(path, reading)
    elif kind == "json":
        for place, row in json_rows(path, reading):
            yield row_text(row, place, reading)
    else:
        with open_stream(path) as stream:
            yield from _read_plain(stream, path, size, reading)


def _read_plain(stream: IO[bytes], path: Path, size: int, reading: TextReading) -> Iterator[str]:
    """Plain text cut into documents of at least `size` characters, but for the last."""
    rest = ""
    for text in _decode_stream(stream, path, reading):
        rest += text
        start = 0
        while len(rest) - start >= 2 * size:
            end = _cut(rest, start, size)
            yield rest[start:end]
            start = end
        rest = rest[start:]
    yield rest


def _decode_stream(stream: IO[bytes], path: Path, reading: TextReading) -> Iterator[str]:
    """A text file chunk by chunk, without its byte order mark and with LF for CRLF and CR."""
    errors = "replace" if reading.replace_invalid else "strict"
    decoder = codecs.getincrementaldecoder("utf-8")(errors)
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    lines, read_bytes = 1, 0
    while True:
        chunk = stream.read(CHUNK_BYTES)
        if not read_bytes:
            refuse_binary(chunk, path)
        pending = len(decoder.getstate()[0])
        try:
            text = decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            before = b"\r" * newlines.getstate()[1] + error.object[: error.start]
            place = f"{path}, line {lines + len((before + b'.').splitlines()) - 1}"
            raise not_utf8(place, read_bytes - pending + error.start, reading) from None
        if reading.replace_invalid:
            reading.replaced += max(0, text.count("\ufffd") - chunk.count(b"\xef\xbf\xbd"))
        if not read_bytes:
            text = text.removeprefix("\ufeff")
        text = newlines.decode(text, final=not chunk)
        lines += text.count("\n")
        read_bytes += len(chunk)
        yield text
        if not chunk:
            reading.newlines += newlines.newlines not in (None, "\n")
            return


def _cut(text: str, start: int, size: int) -> int:
    """The end of the document at `start`: after a blank line, else after a line, else a word."""
    for mark in ("\n\n", "\n", " "):
        found = text.find(mark, start + size, start + 2 * size)
        if found >= 0:
            return found + len(mark)
    return start + size
