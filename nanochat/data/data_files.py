"""Which files a flag like --data names: paths, folders, globs, and lists of them.

Owns finding them, and leaving out of a folder what is not data. Does not own the splits that their
names mark (data_splits) or what is in them (file_formats).
"""

import codecs
import contextlib
import errno
import fnmatch
import glob
import logging
import os
import re
import stat
import zlib
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import pyarrow as pa

from nanochat.data.data_splits import DESCRIBED, TRAIN, VAL, FoundFile, choose, mark_splits
from nanochat.data.file_formats import (
    FORMATS,
    errors_naming,
    kind_of,
    open_stream,
    split_name,
)
from nanochat.system import storage
from nanochat.system.errors import DataError

log = logging.getLogger(__name__)

# Beside data, a text of this name is about it.
ABOUT_DATA = set(
    "readme license licence copying notice authors contributors contributing changelog citation "
    "requirements checksum checksums md5sums sha256sums vocab merges labels classes".split()
)
ROW_KEYS = ("text", "content", "messages", "conversations", "prompt", "instruction")
SNIFFED_BYTES, METADATA_BYTES = 1 << 16, 64 << 20  # a larger JSON file is data
LIST_PARTS = 16  # neighbors in a list that may be one path with commas in it
LFS_POINTER = b"version https://git-lfs"
LeftOut = dict[str, list[str]]  # names of files by the reason


def find_files(
    spec: str,
    *,
    flag: str = "--data",
    split: str | None = TRAIN,
    without: Collection[Path] = (),
) -> list[Path]:
    """The files named by a path, folder, glob or comma-separated list of these, sorted.

    split: which files of a folder or glob to take. "train" leaves out those whose names mark
    validation or test data; "val" takes the marked ones, if there are any; None takes all.
    without: files that a folder or glob must not give. A file named by its path is always taken.
    flag: the option that holds the list, for messages.
    Raises: DataError if a part names no file, or a file that cannot be data.
    """
    return _find(spec, flag=flag, split=split, keep_val=False, without=without)[0]


def find_splits(spec: str, *, flag: str = "--data") -> tuple[list[Path], list[Path]]:
    """The training files, as find_files gives them, and the validation files found beside them."""
    return _find(spec, flag=flag, split=TRAIN, keep_val=True, without=())


def _find(
    spec: str, *, flag: str, split: str | None, keep_val: bool, without: Collection[Path]
) -> tuple[list[Path], list[Path]]:
    files: dict[str, Path] = {}  # by their real paths: a link does not give its target twice
    val: dict[str, Path] = {}
    excluded = {os.path.realpath(path) for path in without}
    for part in _parts(spec, flag):
        path = _expand(part, flag)
        status = _status(path)
        if status and not stat.S_ISDIR(status.st_mode):
            files.setdefault(os.path.realpath(path), _checked(path, status))
            continue
        where = f"{flag} {part}"
        left: LeftOut = {}
        data = _only_data(_below(path, _walk(path)) if status else _glob(path, flag, spec), left)
        if not data:
            raise DataError(f"{where} has no text; left out {_shown(left)}; give {FORMATS}")
        if excluded:
            data = [f for f in data if os.path.realpath(f.path) not in excluded]
        mark_splits(data)
        taken = set(choose(data, split))
        if not taken:
            if status or not data:
                raise DataError(_nothing_to_train_on(where, data))
            taken = set(data)  # the pattern asks for them
        held_out = {file for file in data if keep_val and file.split == VAL} - taken
        for file in data:
            if file in taken or file in held_out:
                chosen = files if file in taken else val
                chosen.setdefault(os.path.realpath(file.path), _checked(file.path))
            else:
                _leave(left, file.about, file)
        _log(where, taken, held_out, left)
    if not files:
        raise DataError(f"{flag} {spec!r} names no file; give {FORMATS}, a folder or a glob")
    return list(files.values()), [path for real, path in val.items() if real not in files]


def _parts(spec: str, flag: str) -> list[str]:
    """The paths and patterns of a list. A comma within a path that exists does not end it."""
    items = spec.split(",")
    if spec.strip() and _status(_expand(spec, flag)):
        return [spec]
    parts = []
    while items:
        joined = [",".join(items[:n]).strip() for n in range(min(len(items), LIST_PARTS), 1, -1)]
        part = next((path for path in joined if _status(_expand(path, flag))), None)
        if part is None and not _exists(_expand(items[0].strip(), flag)):
            part = next((path for path in joined if _exists(_expand(path, flag))), None)
        part = part or items[0].strip()
        parts.append(part)
        items = items[part.count(",") + 1 :]
    return [part for part in parts if part]


def _expand(part: str, flag: str) -> Path:
    path = Path(part)
    try:
        return path if not part.startswith("~") or _status(path) else path.expanduser()
    except RuntimeError:
        raise DataError(f"{flag} {part}: no such user; write ./~ for a name with ~") from None


def _status(path: Path) -> os.stat_result | None:
    """What the system knows of a file or folder; None if there is none."""
    try:
        return path.stat()
    except ValueError:
        return None
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP):
            return None
        raise DataError(f"{path} cannot be read: {error.strerror}") from None


def _exists(path: Path) -> bool:
    return _status(path) is not None or (glob.has_magic(str(path)) and bool(_matches(path)[1]))


def _checked(path: Path, status: os.stat_result | None = None) -> Path:
    """The path of a regular file with a known format, which is not the pointer to one."""
    status = status or path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{path} is a pipe or a device; write what it gives into a file first")
    if kind_of(path) is None:
        raise DataError(f"{path}: this kind of file is not read; give {FORMATS}")
    if status.st_size < 1024:
        with errors_naming(path), path.open("rb") as file:
            if file.read(len(LFS_POINTER)) == LFS_POINTER:
                raise DataError(f"{path} is a Git LFS pointer, not the file; run `git lfs pull`")
    return path


# --- folders and globs


def _walk(folder: Path) -> list[Path]:
    """The files in a folder and in those below it, sorted, but for hidden ones.

    Follows links to folders, but into each folder once and never upward: links may form a circle.
    """

    def stop(error: OSError) -> None:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}")

    found: list[Path] = []
    real = Path(os.path.realpath(folder))
    seen = {str(path) for path in (real, *real.parents)}
    for here, folders, names in os.walk(folder, onerror=stop, followlinks=True):
        visible = sorted(name for name in folders if not name.startswith("."))
        folders.clear()
        for name in visible:
            target = os.path.realpath(Path(here, name))
            if target not in seen:
                folders.append(name)
                seen.add(target)
        found += [Path(here, name) for name in names if not name.startswith(".")]
    return sorted(found)


def _matches(path: Path) -> tuple[Path, list[Path]]:
    """The part of a pattern that exists as it is written, and what matches the rest below it."""
    parts, count = path.parts, 0
    while count < len(parts) and _status(Path(*parts[: count + 1])):
        count += 1
    root, rest = Path(*parts[:count]), parts[count:]
    if "**" in rest:  # glob would follow links that form a circle
        return root, [p for p in _walk(root) if _fits(p.relative_to(root).parts, rest)]
    found: list[str] = []
    for pattern in (rest, [part.replace("[", "[[]") for part in rest]):
        full = str(Path(glob.escape(str(root)), *pattern))
        found = found or glob.glob(full)  # noqa: PTH207
    return root, sorted(map(Path, found))


def _fits(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_fits(parts[skipped:], pattern[1:]) for skipped in range(len(parts) + 1))
    return (
        bool(parts) and fnmatch.fnmatchcase(parts[0], pattern[0]) and _fits(parts[1:], pattern[1:])
    )


def _glob(path: Path, flag: str, spec: str) -> list[FoundFile]:
    root, found = _matches(path)
    if not found:
        which = f" for {str(path)!r}; commas separate paths" if "," in spec else ""
        hint = _hint(spec, flag)
        raise DataError(f"{flag} {spec}: no such file, folder or glob match{hint}{which}")
    files = [path for path in found if not os.path.isdir(path)]  # noqa: PTH112
    return _below(root, files or sorted(file for folder in found for file in _walk(folder)))


def _hint(spec: str, flag: str) -> str:
    """What a name that is no file may have been meant to be."""
    if "://" in spec:
        return "; download it first"
    if re.fullmatch(r"[\w-]+", spec):
        return f", nor a dataset that {flag} knows by name"
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", spec) and not Path(spec).suffix:
        return f"; if it is a dataset of the Hugging Face hub, write hf:{spec}"
    return ""


def _below(root: Path, paths: Sequence[Path]) -> list[FoundFile]:
    return [FoundFile(path, path.relative_to(root), kind_of(path)) for path in paths]


def _only_data(files: Sequence[FoundFile], left: LeftOut) -> list[FoundFile]:
    """The files that hold text or rows; the others go to `left`.

    A folder with nothing but .txt and .md is one of articles: there, a README may be one of them.
    """
    known = []
    for file in files:
        if file.kind is None:
            _leave(left, "not of a known format", file)
        elif not os.path.isfile(file.path):  # noqa: PTH113
            _leave(left, "no file, or a broken link", file)
        else:
            known.append(file)
    described = {f for f in known if f.kind == "json" and _is_metadata(f.path)}
    has_rows = any(f.kind != "plain" and f not in described for f in known)
    data: dict[tuple[Path, str, str], FoundFile] = {}
    for file in sorted(known, key=lambda f: split_name(f.path)[2]):
        stem, suffix, packed = split_name(file.path)
        key = (file.path.parent, stem, suffix)
        if file in described:
            _leave(left, "metadata", file)
        elif has_rows and file.kind == "plain" and (suffix == ".md" or _is_about(stem)):
            _leave(left, "about the data", file)
        elif packed and key in data:
            _leave(left, f"the same as {data[key].path.name}", file)
        else:
            data[key] = file
    return sorted(data.values(), key=lambda f: f.path)


def _leave(left: LeftOut, reason: str, file: FoundFile) -> None:
    left.setdefault(reason, []).append(str(file.under))


def _is_about(stem: str) -> bool:
    return re.split(r"[\W_]", stem.lower())[0] in ABOUT_DATA


def _is_metadata(path: Path) -> bool:
    """Whether a .json file is one object without text or messages, or an array without objects."""
    if split_name(path)[1] != ".json":
        return False
    try:
        with open_stream(path) as stream:
            head = stream.read(SNIFFED_BYTES).removeprefix(codecs.BOM_UTF8).lstrip()
            first, _, more = head.partition(b"\n")
            if head[:1] + head[1:].lstrip()[:1] == b"[{" or (more.strip() and _is_json(first)):
                return False
            value = storage.parse_json(head + stream.read(METADATA_BYTES))
    except (ValueError, OSError, EOFError, zlib.error, pa.ArrowException):
        return False  # reading it will tell what is wrong
    if isinstance(value, list):
        return not any(isinstance(item, dict) for item in value)
    return not (
        isinstance(value, dict) and any(isinstance(value.get(k), str | list) for k in ROW_KEYS)
    )


def _is_json(line: bytes) -> bool:
    with contextlib.suppress(ValueError):
        return storage.parse_json(line) is not None
    return False


# --- what is said


def _shown(left: LeftOut) -> str:
    return "; ".join(f"{_names(names)} ({reason})" for reason, names in left.items()) or "nothing"


def _names(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + f" and {len(names) - 4} more" * (len(names) > 4)


def _nothing_to_train_on(where: str, files: Sequence[FoundFile]) -> str:
    if not files:
        return f"{where}: all its files are given as validation data"
    names = _names([str(file.under) for file in files])
    return (
        f"{where}: its names mark all as validation or test data ({names}); "
        "to train on a file, give its own path or a glob"
    )


def _log(
    where: str, taken: Collection[FoundFile], held_out: Collection[FoundFile], left: LeftOut
) -> None:
    """Say in one line which files are taken, if not simply all."""

    def names(files: Iterable[FoundFile]) -> str:
        return _names(sorted(str(file.under) for file in files))

    about = [file for file in taken if _is_about(split_name(file.path)[0])]
    titles = [file for file in taken if file.may_be_held_out]
    said = f", {names(about)} among them" if about else ""
    said += f", taking {names(titles)} for titles" if titles else ""
    said += f", validates on {names(held_out)}" if held_out else ""
    said += f"; left out: {_shown(left)}" if left else ""
    if said:
        log.info("%s: reads %d of its files%s", where, len(taken), said)
    if DESCRIBED[None] in left and any(file.split == TRAIN for file in taken):
        unmarked = _names(left[DESCRIBED[None]])
        log.warning("%s: %s may hold test data; name them to train on them too", where, unmarked)
