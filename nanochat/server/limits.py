"""Limits for what a JSON schema leaves unlimited, so that an answer ends before its tokens run out.

Owns: which limits a schema gets. A small model goes on with a number or a text for as long as it
may, and half of a JSON text is worth nothing. The limits of the schema itself stay, and what fits
with ours fits without them:

- numbers: at most 2^53 - 1 (16 digits, exact in every reader), six digits after the point;
- lists, and objects of any names: as many values, 2 to 64, as fit the tokens that are left if texts
  are short (32 characters); names of at most 32 characters;
- texts: an equal share of the tokens that are left then, a character each; at least 16, with a
  pattern or format 64;
- objects with named properties: no others, unless the schema asks for them or joins schemas; what
  has keywords of one type, such as properties, is of that type;
- values that may be anything: lists and objects nested three deep.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

Schema = Mapping[str, Any]
LARGEST = 2**53 - 1
STEP = 1e-6
ITEMS = (64, 48, 32, 24, 16, 12, 8, 6, 4, 3, 2)
DEPTH = 3
SHORTEST, USUAL, SHORTEST_FORMAT = 16, 32, 64  # characters; a small model's token may be just one
DIGITS = 16
PUNCTUATION = 4  # tokens around a value
NAMES = "^.{1,32}$"

_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_SINGLE = ("items", "additionalProperties")
_JOINING = ("anyOf", "oneOf", "allOf", "$ref")
_NAMING = ("properties", "patternProperties", "additionalProperties")
_ANNOTATIONS = {"title", "description", "default", "examples", "deprecated", "$comment", "$schema"}
_KEYWORDS = {
    "string": ("minLength", "maxLength", "pattern", "format"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    "array": ("items", "prefixItems", "minItems", "maxItems"),
    "object": (*_NAMING, "required", "minProperties", "maxProperties"),
}


def limited(schema: Schema, room: int) -> dict[str, Any]:
    """The schema with limits for an answer of at most `room` tokens."""
    for items in ITEMS:
        texts, tokens = _Sizes(schema, items).of(schema)
        if tokens + USUAL * texts <= room:
            break
    length = (room - tokens) // max(1, texts)
    length = max(SHORTEST, length // SHORTEST * SHORTEST)  # few lengths, as grammars are kept
    joined = any(
        len(node.get("allOf", ())) > 1
        or (any(key in node for key in _JOINING) and any(key in node for key in _NAMING))
        for node in _nodes(schema)
    )
    result: dict[str, Any] = _Limits(items, length, closed=not joined).of(schema)
    return result


@dataclass(frozen=True)
class _Limits:
    """items: values of a list. length: characters of a text. closed: whether objects may be closed.

    depth: of lists and objects in values that may be anything.
    """

    items: int
    length: int
    closed: bool
    depth: int = DEPTH

    def of(self, schema: Any) -> Any:
        if schema is True or (isinstance(schema, dict) and schema.keys() <= _ANNOTATIONS):
            return self.anything()
        if not isinstance(schema, dict) or schema.keys() & {"enum", "const"}:
            return schema
        limited = _with_children(schema, self.of)
        if schema.keys() & set(_JOINING):
            return limited  # its kinds are limited in what it joins
        kinds = _kinds(schema)
        if len(kinds) == 1:
            limited["type"] = next(iter(kinds))  # meant, even where it is not said
        if "string" in kinds:
            self._limit_text(limited)
        if kinds & {"integer", "number"}:
            _limit_number(limited, whole="number" not in kinds)
        if "array" in kinds:
            self._limit_list(limited)
        if "object" in kinds:
            self._limit_object(limited)
        return limited

    def anything(self) -> Any:
        """Any value."""
        kinds = ["string", "number", "boolean", "null"]
        if not self.depth:
            return self.of({"type": kinds})
        return replace(self, depth=self.depth - 1).of({"type": [*kinds, "array", "object"]})

    def _limit_text(self, schema: dict[str, Any]) -> None:
        least = SHORTEST_FORMAT if schema.keys() & {"pattern", "format"} else 0
        schema.setdefault("maxLength", max(self.length, least, schema.get("minLength", 0)))

    def _limit_list(self, schema: dict[str, Any]) -> None:
        first = len(schema.get("prefixItems", ()))
        if not first:
            schema.setdefault("items", self.anything())
        most = first + (self.items if schema.get("items") else 0)
        schema.setdefault("maxItems", max(most, schema.get("minItems", 0)))

    def _limit_object(self, schema: dict[str, Any]) -> None:
        named = schema.get("properties", {})
        others = schema.get("additionalProperties")
        required = set(schema.get("required", ()))
        if not self.closed or others is False or "patternProperties" in schema:
            return
        if required - named.keys():
            schema.setdefault("additionalProperties", self.anything())
            return
        schema["additionalProperties"] = False
        if "properties" in schema and others is None:
            return
        schema["patternProperties"] = {NAMES: self.anything() if others is None else others}
        if required == named.keys():
            most = max(len(named) + self.items, schema.get("minProperties", 0))
            schema.setdefault("maxProperties", most)


def _limit_number(schema: dict[str, Any], *, whole: bool) -> None:
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    high = schema.get("maximum", schema.get("exclusiveMaximum"))
    if high is None and (low is None or low < LARGEST):
        schema["maximum"] = LARGEST
    if low is None and (high is None or high > -LARGEST):
        schema["minimum"] = -LARGEST
    if not whole:
        schema.setdefault("multipleOf", STEP)


def _kinds(schema: Schema) -> set[str]:
    """The JSON types that a schema names, or has keywords for."""
    named = schema.get("type")
    if named is not None:
        return {named} if isinstance(named, str) else set(named)
    return {kind for kind, keywords in _KEYWORDS.items() if schema.keys() & set(keywords)}


def _with_children(schema: Schema, change: Callable[[Any], Any]) -> dict[str, Any]:
    """The schema with each schema in it changed."""
    result = dict(schema)
    for key, value in schema.items():
        if key in _MAPS and isinstance(value, dict):
            result[key] = {name: change(child) for name, child in value.items()}
        elif key in _LISTS and isinstance(value, list):
            result[key] = [change(child) for child in value]
        elif key in _SINGLE:
            result[key] = change(value)
    return result


def _nodes(schema: Any) -> Iterator[Schema]:
    """The schema and all that it is made of."""
    if not isinstance(schema, dict):
        return
    children: list[Any] = []
    _with_children(schema, children.append)
    yield schema
    for child in children:
        yield from _nodes(child)


class _Sizes:
    """How long the longest values get: counts of texts without a limit, and tokens of all else."""

    def __init__(self, root: Schema, items: int) -> None:
        self._root = root
        self._items = items
        self._known: dict[str, tuple[int, int]] = {}  # by reference

    def of(self, schema: Any) -> tuple[int, int]:
        if schema is True or (isinstance(schema, dict) and schema.keys() <= _ANNOTATIONS):
            return self._items, self._items * PUNCTUATION
        if not isinstance(schema, dict) or schema.keys() & {"enum", "const"}:
            return 0, PUNCTUATION
        kinds = _kinds(schema)
        own = 1 if "string" in kinds and "maxLength" not in schema else 0
        number = 0 if "string" in kinds or not kinds & {"integer", "number"} else DIGITS
        sizes = [(own, PUNCTUATION + number + min(schema.get("maxLength", 0), USUAL))]
        named = schema.get("properties", {})
        sizes += [(0, len(name)) for name in named] + [self.of(child) for child in named.values()]
        sizes += [
            self.of(child) for key in ("allOf", "prefixItems") for child in schema.get(key, ())
        ]
        choices = [self.of(child) for key in ("anyOf", "oneOf") for child in schema.get(key, ())]
        sizes.append(max(choices, default=(0, 0)))
        sizes.append(self._repeated(schema, kinds))
        if "$ref" in schema:
            sizes.append(self._referred(schema["$ref"]))
        return sum(texts for texts, _ in sizes), sum(tokens for _, tokens in sizes)

    def _repeated(self, schema: Schema, kinds: set[str]) -> tuple[int, int]:
        """The size of a list's values, or of those of an object of any names."""
        if "array" in kinds and "prefixItems" not in schema:
            child, most, name = schema.get("items", True), schema.get("maxItems"), 0
        elif "object" in kinds and "properties" not in schema:
            child = schema.get("additionalProperties", True)
            most, name = schema.get("maxProperties"), USUAL
        else:
            return 0, 0
        count = self._items if most is None else min(self._items, most)
        texts, tokens = self.of(child) if child is not True else (1, PUNCTUATION)
        return count * texts, count * (tokens + name)

    def _referred(self, reference: str) -> tuple[int, int]:
        if reference not in self._known:
            self._known[reference] = 0, 0  # a value inside itself counts once
            kind, _, name = reference.removeprefix("#/").partition("/")
            self._known[reference] = self.of(self._root.get(kind, {}).get(name, False))
        return self._known[reference]
