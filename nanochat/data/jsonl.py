"""JSON lines: one object a line, read with messages that name the place.

Owns the reading of rows for evaluations and conversations; documents are read by text_files.
"""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nanochat.data.text_files import open_stream
from nanochat.system.errors import DataError


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The line number and object of each line that is not blank; .gz and .zst are unpacked.

    Raises: DataError naming the file, and the line if it is no JSON object.
    """
    try:
        with open_stream(path) as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    yield number, _object(line, f"{path}:{number}")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path} is damaged or cut short ({error}); fetch it again") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None


def _object(line: bytes, place: str) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise DataError(f"{place} is not UTF-8; convert the file (iconv -t utf-8)") from None
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{place} is not JSON ({error}); write one object a line") from None
    if not isinstance(row, dict):
        raise DataError(f"{place} is not a JSON object but {type(row).__name__}")
    return row
