"""What a JSON schema leaves unlimited gets a limit, so that answers end; what it limits stays."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from nanochat.engine import Engine
from nanochat.server.grammar import constraint
from nanochat.server.limits import DEPTH, LARGEST, NAMES, limited
from nanochat.server.service import EngineService
from tests.engine_helpers import TOKENIZER, random_model
from tests.server_helpers import ask, serving

pytest.importorskip("llguidance")

WHOLE = {"maximum": LARGEST, "minimum": -LARGEST}
NUMBER = {**WHOLE, "multipleOf": 1e-6}
CLOSED = {"additionalProperties": False}


@pytest.fixture(scope="module")
def service() -> Iterator[EngineService]:
    engine = Engine(random_model(3, sequence_length=512), TOKENIZER, slots=4)
    with serving(engine) as running:
        yield running


def accepts(schema: Any, text: str) -> bool:
    """Whether the whole text is an answer by the grammar of the schema."""
    grammar = constraint(
        TOKENIZER, schema=schema, functions=[], must_call=False, room=200, param="x"
    )()
    for token in TOKENIZER.encode(text):
        mask = grammar.mask()
        assert mask is not None
        if not mask[token]:
            return False
        grammar.accept(token)
    mask = grammar.mask()
    return grammar.finished or bool(mask is None or mask[TOKENIZER.special_id("<|assistant_end|>")])


@pytest.mark.parametrize(
    ("schema", "added"),
    [
        ({"type": "integer"}, WHOLE),
        ({"type": "integer", "maximum": 10**20}, {"minimum": -LARGEST}),
        ({"type": "integer", "exclusiveMinimum": 0}, {"maximum": LARGEST}),
        ({"type": "number"}, NUMBER),
        ({"type": "number", "minimum": 0, "maximum": 1}, {"multipleOf": 1e-6}),
        ({"minimum": 0}, {"type": "number", "maximum": LARGEST, "multipleOf": 1e-6}),
        ({"type": "string"}, {"maxLength": 192}),
        ({"type": "string", "maxLength": 9999}, {}),
        ({"type": "string", "minLength": 300}, {"maxLength": 300}),
        ({"type": ["integer", "null"]}, WHOLE),
        ({"enum": ["a", 1]}, {}),
        ({"type": "string", "const": "a"}, {}),
        ({"type": "array", "items": {"enum": [1]}}, {"maxItems": 48}),
        ({"type": "array", "items": {"enum": [1]}, "minItems": 60}, {"maxItems": 60}),
        ({"type": "array", "items": {"enum": [1]}, "maxItems": 99}, {}),
        ({"type": "array", "prefixItems": [{"enum": [1]}]}, {"maxItems": 1}),
        ({"properties": {"a": {"enum": [1]}}}, {"type": "object", **CLOSED}),
        ({"type": "object", "properties": {}}, CLOSED),
        ({"type": "object", **CLOSED}, {}),
        (
            {"type": "object", "additionalProperties": {"enum": [1]}},
            {"patternProperties": {NAMES: {"enum": [1]}}, "maxProperties": 4, **CLOSED},
        ),
        # Closing one of these would forbid what the other names.
        ({"allOf": [{"properties": {"a": {"enum": [1]}}}, {"required": ["a"]}]}, None),
        ({"properties": {"a": {"enum": [1]}}, "anyOf": [{"required": ["a"]}]}, None),
        ({"not a keyword": 1}, {}),
    ],
)
def test_a_schema_gets_the_limits_that_it_does_not_have(schema, added):
    found = limited(schema, 200)
    if added is None:
        assert "additionalProperties" not in str(found)
    else:
        assert found == {**schema, **added}


def test_texts_share_the_tokens_that_are_left():
    def lengths(texts: int, room: int) -> set[int]:
        properties = {str(n): {"type": "string"} for n in range(texts)}
        found = limited({"properties": properties}, room)["properties"]
        return {text["maxLength"] for text in found.values()}

    assert [lengths(1, 200), lengths(4, 200), lengths(40, 200)] == [{176}, {32}, {16}]
    patterned = {"type": "string", "pattern": "a+"}
    found = limited({"prefixItems": [patterned, *[{"type": "string"}] * 39]}, 200)["prefixItems"]
    assert [found[0]["maxLength"], found[1]["maxLength"]] == [64, 16]


def test_a_list_gets_as_many_values_as_fit_the_tokens_that_are_left():
    def items(kind: Any, room: int, **more: Any) -> int:
        found = limited({"type": "array", "items": kind, **more}, room)
        return int(found["maxItems"])

    text, number = {"type": "string"}, {"type": "integer"}
    assert [items(text, room) for room in (10, 240, 2000)] == [2, 6, 48]
    assert [items(number, room) for room in (240, 2000)] == [8, 64]
    step = {"type": "object", "properties": {"text": text, "number": number}}
    steps = {"$ref": "#/$defs/Step"}
    assert items(step, 240) == items(steps, 240, **{"$defs": {"Step": step}}) == 3
    tree = {"properties": {"of": {"type": "array", "items": {"$ref": "#/$defs/Tree"}}}}
    assert items({"$ref": "#/$defs/Tree"}, 240, **{"$defs": {"Tree": tree}}) == 6


def test_values_that_may_be_anything_nest_three_deep():
    nested = "1"
    for _ in range(DEPTH):
        nested = f'{{"a":[{nested}]}}'
    deep = [f'{{"a":{inner}}}' for inner in ("1", "[1]", '{"b":[2]}', '[[["c"]]]')]
    assert all(accepts({"type": "object"}, text) for text in ["{}", *deep])
    assert not accepts({"type": "object"}, nested)
    assert not accepts({"type": "object"}, json.dumps({"a" * 33: 1}, separators=(",", ":")))


@pytest.mark.parametrize(
    ("schema", "text", "expected"),
    [
        ({"type": "integer"}, "9007199254740991", True),
        ({"type": "integer"}, "9007199254740992", False),
        ({"type": "integer", "maximum": 10**17}, "99999999999999999", True),
        ({"type": "number"}, "-0.123456", True),
        ({"type": "number"}, "0.1234567", False),
        ({"type": "string"}, '"\\""', True),
        ({"type": "string"}, '"\\u0041"', False),
        ({"type": "array", "items": {"type": "integer"}}, "[1, 2]", False),
        # Our limit would leave no text at all, so there is none.
        ({"type": "string", "pattern": "^a{300}$"}, f'"{"a" * 300}"', True),
    ],
)
def test_the_grammar_follows_the_limits(schema, text, expected):
    assert accepts(schema, text) is expected


@pytest.mark.parametrize(
    ("kind", "favorite", "value"),
    [
        ({"type": "integer"}, "2", 2222222222222222),
        ({"type": "string"}, "a", "a" * 496),
        ({"type": "string", "maxLength": 3}, "a", "aaa"),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, "7", 7777777777777777),
    ],
)
def test_an_answer_ends_though_the_model_would_repeat_itself_for_ever(
    service, kind, favorite, value
):
    schema = {"type": "object", "properties": {"n": kind}, "required": ["n"]}
    bias = {str(ord(favorite)): 100}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    (choice,) = ask(service, logit_bias=bias, response_format=form).json()["choices"]
    assert choice["finish_reason"] == "stop"
    assert json.loads(choice["message"]["content"]) == {"n": value}
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    if kind.get("type") != "string":
        body = {"tools": [tool], "tool_choice": "required", "logit_bias": bias}
        (choice,) = ask(service, **body).json()["choices"]
        assert choice["finish_reason"] == "tool_calls"
        called = choice["message"]["tool_calls"][0]["function"]
        assert json.loads(called["arguments"]) == {"n": value}


def test_arguments_may_refer_to_definitions_of_their_own_function(service):
    def tool(name: str, value: str) -> Any:
        properties = {"of": {"$ref": "#/$defs/Kind"}}
        parameters = {"properties": properties, "required": ["of"], "$defs": {}}
        parameters["$defs"] = {"Kind": {"enum": [value]}}
        return {"type": "function", "function": {"name": name, "parameters": parameters}}

    body = {"tools": [tool("f", "x"), tool("g", "y")], "tool_choice": "required"}
    called = set()
    for seed in range(6):
        (choice,) = ask(service, **body, temperature=2, seed=seed).json()["choices"]
        function = choice["message"]["tool_calls"][0]["function"]
        called.add((function["name"], function["arguments"]))
    assert called == {("f", '{"of":"x"}'), ("g", '{"of":"y"}')}


@pytest.mark.parametrize(
    "schema", [{"type": 5}, {"allOf": 5}, {"type": "string", "minLength": "a"}, {"required": 5}]
)
def test_what_is_no_schema_is_refused(service, schema):
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    response = ask(service, response_format=form)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "response_format"
