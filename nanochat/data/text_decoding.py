"""Bytes of UTF-8 as text, and what is wrong with bytes that are not.

Owns the options of reading text and the counts of what was skipped or changed. Does not own the
formats of files (file_formats).
"""

import codecs
from dataclasses import dataclass
from pathlib import Path

from nanochat.system.errors import DataError
from nanochat.tokenizer.bpe import repair_surrogates

WIDE_MARKS = {  # UTF-32 first: its mark begins with that of UTF-16
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
FIRST_BYTES = {
    **{
        mark: f"{name.upper()}: convert it (iconv -f {name} -t utf-8)"
        for mark, name in WIDE_MARKS.items()
    },
    b"\x1f\x8b": "gzip: end its name in .gz",
    b"\x28\xb5\x2f\xfd": "Zstandard: end its name in .zst",
    b"PAR1": "parquet: end its name in .parquet",
    b"PK\3\4": "a zip archive: unpack it",
}


@dataclass
class TextReading:
    """How text is read; and what was skipped or changed, for a line in the log afterward."""

    column: str | None = None  # the column or key that holds the text; None: `text`, or `content`
    replace_invalid: bool = False  # bytes that are not UTF-8 become U+FFFD instead of an error
    empty: int = 0  # documents
    replaced: int = 0  # bytes
    newlines: int = 0  # files whose CRLF or CR became LF


def decode(data: bytes, place: str, offset: int, reading: TextReading | None) -> str:
    """Bytes as text; offset: where they start in the file; reading: None for data of a program's.

    Raises: DataError with the place and the byte of what is not UTF-8, unless it is to be replaced.
    """
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        if reading is None or not reading.replace_invalid:
            raise not_utf8(place, offset + error.start, reading) from None
        text = data.decode("utf-8", "replace")
        reading.replaced += text.count("\ufffd")
        return text


def not_utf8(place: str, offset: int, reading: TextReading | None) -> DataError:
    """The error of a byte that is not UTF-8."""
    option = "" if reading is None else ", or give --invalid-utf8 replace"
    return DataError(
        f"{place}, byte {offset}: not UTF-8; convert the file (such as with "
        f"iconv -f cp1252 -t utf-8){option}"
    )


def refuse_binary(head: bytes, path: Path) -> None:
    """Refuse another format or encoding, which as UTF-8 would be text full of NUL characters.

    head: the first bytes of the file.
    """
    format_ = next((name for mark, name in FIRST_BYTES.items() if head.startswith(mark)), None)
    if format_ is None and head.count(0) * 4 >= max(1, len(head)):
        format_ = "UTF-16: convert it (iconv -f utf-16 -t utf-8)"
    if format_:
        raise DataError(f"{path}: not UTF-8; it looks like {format_}")


def without_surrogates(text: str, place: str, reading: TextReading) -> str:
    """The text, checked for halves of surrogate pairs: JSON can hold them, UTF-8 cannot."""
    repaired = repair_surrogates(text)
    if repaired is not text:
        lone = [c for c in text if "\ud800" <= c <= "\udfff"]
        if not reading.replace_invalid:
            raise DataError(
                f"{place}: half a surrogate pair ({lone[0]!a}); fix the line, "
                "or give --invalid-utf8 replace"
            )
        reading.replaced += len(lone)
    return repaired
