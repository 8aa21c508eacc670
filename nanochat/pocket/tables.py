"""Reads the tables: text files beside the modules that use them, which anyone can edit.

A table has sections. "[name]" opens a section; a line that starts with "#" is a comment; an
indented line continues the previous one; blank lines are ignored. Within a line " | " divides
columns or wordings. Lines of several kinds in one section start with their kind: "Q: ...".
"""

import importlib.resources
from collections import defaultdict
from collections.abc import Sequence
from functools import cache

FOLDER = "nanochat.pocket"


@cache
def sections(table: str, folder: str = FOLDER) -> dict[str, tuple[str, ...]]:
    """The lines of each section of <table>.txt, in the order of the file.

    folder: the package that holds the file.
    """
    text = (importlib.resources.files(folder) / f"{table}.txt").read_text(encoding="utf-8")
    found: dict[str, list[str]] = {}
    for line in text.replace("\n  ", " ").splitlines():
        if line.startswith("["):
            name = line[1:-1]
            assert name not in found, f"{table}.txt has two sections [{name}]"
            found[name] = found_lines = []
        elif line and not line.startswith("#"):
            found_lines.append(line)
    return {name: tuple(found_lines) for name, found_lines in found.items()}


def lines(table: str, section: str) -> tuple[str, ...]:
    """The lines of a section."""
    return sections(table)[section]


def columns(line: str) -> tuple[str, ...]:
    """The parts of a line between " | "."""
    return tuple(part.strip() for part in line.split(" | "))


def by_kind(texts: Sequence[str]) -> dict[str, list[str]]:
    """The texts of "kind: text" lines by kind; an empty list for a kind without lines."""
    found: dict[str, list[str]] = defaultdict(list)
    for line in texts:
        kind, text = line.split(": ", 1)
        found[kind].append(text)
    return found


@cache
def rows(table: str, section: str, folder: str = FOLDER) -> tuple[tuple[str, ...], ...]:
    """The columns of each line of a section."""
    return tuple(columns(line) for line in sections(table, folder)[section])


@cache
def words(table: str, section: str) -> tuple[str, ...]:
    """The words of a section, split at whitespace."""
    return tuple(" ".join(sections(table)[section]).split())
