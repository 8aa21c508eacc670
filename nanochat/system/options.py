"""Options as dataclass fields: how they are declared, and how a value is converted and checked.

Owns: `option`, `nested`, bounds and `convert`. Does not own: command lines and files (`config`).
"""

import dataclasses
import math
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from nanochat.system.errors import ConfigError

LIST = tuple[str, ...]  # the kind of an option whose flag may be repeated
MAX_INT = 2**53  # larger integers are not exact as JSON numbers
_NOUNS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    LIST: "a list of readable UTF-8 texts",
}


@dataclass(frozen=True)
class Bounds:
    """The allowed range of a number: at least, at most, and above (exclusive)."""

    least: float | None = None
    most: float | None = None
    above: float | None = None

    def __contains__(self, number: float) -> bool:
        low = self.least if self.above is None else self.above
        high_enough = low is None or number > low or (number == low and self.above is None)
        return high_enough and (self.most is None or number <= self.most)

    def __str__(self) -> str:
        if self.above is not None:
            most = "" if self.most is None else f" and at most {self.most:,}"
            return f"above {self.above:,}{most}"
        if self.most is not None:
            return f"from {self.least:,} to {self.most:,}"
        return f"at least {self.least:,}"


def option(
    default: Any = dataclasses.MISSING,
    help: str = "",
    *,
    choices: Sequence[str] | None = None,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
) -> Any:
    """One option: a dataclass field that is also a flag.

    help: what it does, its unit, and what leaving it out means. least, most, above: bounds of a
    number, checked whenever a flag, a preset or JSON sets it.
    """
    bounded = (least, most, above) != (None, None, None)
    metadata = {
        "help": help,
        "choices": tuple(choices) if choices else None,
        "bounds": Bounds(least, most, above) if bounded else None,
    }
    return dataclasses.field(default=default, metadata=metadata)


def nested(cls: type, *, without: Sequence[str] = ()) -> Any:
    """A group of options shared by several stages; its fields become flags of the stage.

    without: fields that are not flags of this stage and keep their defaults.
    """
    metadata = {"nested": cls, "without": frozenset(without)}
    return dataclasses.field(default_factory=cls, metadata=metadata)


@dataclass(frozen=True)
class FlatField:
    """One option of a stage, from the stage itself or a nested group.

    special: values outside `kind`, such as None, by the word that stands for them, such as "none".
    """

    name: str
    kind: Any
    special: dict[str, Any]
    default: Any
    help: str
    choices: tuple[str, ...] | None
    bounds: Bounds | None
    group: str

    @property
    def flag(self) -> str:
        """Its name on a command line."""
        return "--" + self.name.replace("_", "-")


def flat_fields(cls: type) -> dict[str, FlatField]:
    """All options of a stage by name, including those of nested groups."""
    result: dict[str, FlatField] = {}
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        inner = field.metadata.get("nested")
        if inner is not None:
            hidden = field.metadata["without"]
            found = {k: v for k, v in flat_fields(inner).items() if k not in hidden}
        else:
            found = {field.name: _flat_field(cls, field, hints[field.name])}
        clash = set(found) & set(result)
        assert not clash, f"{cls.__name__}: option {clash} is in two groups"
        result.update(found)
    return result


def _flat_field(cls: type, field: dataclasses.Field[Any], hint: Any) -> FlatField:
    kind, special = _unwrap(hint)
    return FlatField(
        name=field.name,
        kind=kind,
        special=special,
        default=field.default,
        help=field.metadata.get("help", ""),
        choices=field.metadata.get("choices"),
        bounds=field.metadata.get("bounds"),
        group=group_of(cls),
    )


def group_of(cls: type) -> str:
    """The heading of an options class in --help: the first line of its docstring."""
    return (cls.__doc__ or cls.__name__).split("\n")[0].rstrip(".")


def convert(field: FlatField, value: Any, *, name: str | None = None) -> Any:
    """A value from a flag, TOML or JSON, converted to the field's type.

    name: what the user calls the option; None: its flag.
    Raises: ConfigError naming the option, the value and what is allowed.
    """
    kind, special, name = field.kind, field.special, name or field.flag
    if value is None and "none" not in special:
        raise ConfigError(f"{name} must have a value")
    if value is None or (isinstance(value, str) and value in special):
        return special["none" if value is None else value]
    if field.choices:
        if value not in field.choices:
            names = ", ".join(field.choices)
            raise ConfigError(f"{name} must be one of {names}, got {value!r}")
        return value
    alternatives = "".join(f" or {word}" for word in special)
    try:
        found = _cast(kind, value)
    except (TypeError, ValueError, OverflowError):
        noun = _NOUNS.get(kind, "readable UTF-8 text") + alternatives
        limit = ", of at most 2^53" if kind is int and str(value).strip("-").isdecimal() else ""
        raise ConfigError(f"{name} must be {noun}{limit}, got {value!r}") from None
    if field.bounds is not None and found not in field.bounds:
        raise ConfigError(f"{name} must be {field.bounds}{alternatives}, got {found}")
    return found


def _cast(kind: Any, value: Any) -> Any:
    if isinstance(value, bool) != (kind is bool):
        raise ValueError
    if kind == LIST:
        if not isinstance(value, str | list | tuple):
            raise TypeError
        return tuple(_cast(str, one) for one in ([value] if isinstance(value, str) else value))
    if kind is int:
        number = int(value.replace("_", "")) if isinstance(value, str) else int(value)
        if abs(number) > MAX_INT or (not isinstance(value, str) and number != value):
            raise ValueError
        return number
    if kind is float:
        if not math.isfinite(float(value)):
            raise ValueError
        return float(value)
    if kind is str:
        if not isinstance(value, str) or "\0" in value:
            raise ValueError
        value.encode()  # raises for bytes of the command line that are not UTF-8
    return value


def _unwrap(kind: Any) -> tuple[Any, dict[str, Any]]:
    """The type T inside `T | Literal["word"] | None`, and the other values by their words."""
    if not (isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union):
        return kind, {}
    inner: list[Any] = []
    special: dict[str, Any] = {}
    for arg in typing.get_args(kind):
        if arg is type(None):
            special["none"] = None
        elif typing.get_origin(arg) is Literal:
            special.update({word: word for word in typing.get_args(arg)})
        else:
            inner.append(arg)
    assert len(inner) == 1, f"an option has one type, optionally with literals or None, not {kind}"
    return inner[0], special
