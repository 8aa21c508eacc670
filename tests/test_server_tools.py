"""Answers in a given format, and calls of a client's functions, by constrained decoding."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from nanochat.engine import Engine
from nanochat.server import grammar_trial
from nanochat.server.app import create_app
from nanochat.server.grammar import Constraint
from nanochat.server.service import EngineService
from nanochat.server.tools import with_results
from nanochat.tokenizer.conversation import render_prompt
from nanochat.tokenizer.messages import MessageError
from tests.engine_helpers import TOKENIZER, random_model, scripted_engine
from tests.server_helpers import HELLO, ask, call, chunks, serving

pytest.importorskip("llguidance")

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Paris", "Rome"]}, "days": {"type": "boolean"}},
            "required": ["city", "days"],
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "clock"}}
PERSON = {
    "type": "object",
    "properties": {"name": {"enum": ["Ann", "Bo"]}, "old": {"type": "boolean"}},
    "required": ["name", "old"],
    "additionalProperties": False,
}
CALL = '{"name":"weather","arguments":{"city":"Rome","days":true}}'


@pytest.fixture(scope="module")
def service() -> Iterator[EngineService]:
    engine = Engine(random_model(3, sequence_length=512), TOKENIZER, slots=4)
    with serving(engine) as running:
        yield running


@pytest.fixture(scope="module")
def scripted() -> Iterator[EngineService]:
    answers = {
        "weather?": f"Well. [python_start]{CALL}[python_end]",
        "sum?": "It is [python_start]6*7[python_end][output_start]42[output_end]42.",
    }
    told = 'Functions you can call:\n{"name":"weather"}\n\n'
    engine = scripted_engine({told + asked: answer for asked, answer in answers.items()})
    with serving(engine) as running:
        yield running


def as_schema(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


@pytest.mark.parametrize("seed", range(4))
def test_an_answer_fits_the_schema_whatever_the_model_prefers(service, seed):
    body = {"temperature": 1.5, "seed": seed, "n": 2, "response_format": as_schema(PERSON)}
    for choice in ask(service, **body).json()["choices"]:
        answer = json.loads(choice["message"]["content"])
        assert list(answer) == ["name", "old"]
        assert answer["name"] in ("Ann", "Bo") and isinstance(answer["old"], bool)
        assert choice["finish_reason"] == "stop"
    streamed = chunks(ask(service, **{**body, "n": 1}, stream=True))[:-1]
    text = "".join(c["choices"][0]["delta"].get("content", "") for c in streamed)
    assert set(json.loads(text)) == {"name", "old"}


def test_a_json_object_is_one_and_any_text_needs_no_format(service):
    bias = {str(ord("}")): 100}
    body = ask(service, response_format={"type": "json_object"}, logit_bias=bias).json()
    assert body["choices"][0]["message"]["content"] == "{}"
    free = {"seed": 1, "max_tokens": 5}
    plain = [
        ask(service, **free, **more).json()["choices"]
        for more in (
            {},
            {"response_format": {"type": "text"}},
            {"tools": []},
            {"tool_choice": "none"},
            {"tools": [WEATHER], "tool_choice": "none"},
        )
    ]
    assert all(choices == plain[0] for choices in plain)


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "weather"}}]
)
def test_a_call_that_is_asked_for_comes_with_arguments_that_fit(service, choice):
    body = {"tools": [WEATHER], "tool_choice": choice, "temperature": 1.5, "seed": 2}
    reply = ask(service, **body, tool_activity=True).json()["choices"][0]
    assert reply["finish_reason"] == "tool_calls"
    message = reply["message"]
    assert (message["content"], message["tool_activity"]) == (None, [])
    (made,) = message["tool_calls"]
    assert (made["type"], made["function"]["name"]) == ("function", "weather")
    arguments = json.loads(made["function"]["arguments"])
    assert arguments["city"] in ("Paris", "Rome") and isinstance(arguments["days"], bool)
    streamed = chunks(ask(service, **body, stream=True, tool_activity=True))[:-1]
    assert [c["choices"][0]["delta"] for c in streamed[:-1]] == [
        {"role": "assistant", "content": ""}
    ]
    last = streamed[-1]["choices"][0]
    assert last["finish_reason"] == "tool_calls"
    (piece,) = last["delta"]["tool_calls"]
    assert (piece["index"], piece["function"]) == (0, made["function"])


def test_of_several_functions_any_may_be_called_and_one_without_parameters_takes_none(service):
    called = set()
    for seed in range(6):
        body = {"tools": [WEATHER, CLOCK], "tool_choice": "required", "seed": seed}
        message = ask(service, **body, temperature=2).json()["choices"][0]["message"]
        function = message["tool_calls"][0]["function"]
        called.add(function["name"])
        assert function["name"] == "weather" or function["arguments"] == "{}"
    assert called == {"weather", "clock"}


def test_left_to_itself_the_model_calls_calculates_or_just_answers(scripted):
    tools = [{"type": "function", "function": {"name": "weather"}}]

    def reply(text: str, **more: Any) -> Any:
        messages = [{"role": "user", "content": text}]
        return ask(scripted, messages=messages, tools=tools, **more)

    # This function takes no arguments, so the model's own are not allowed: the grammar decides.
    called = reply("weather?").json()["choices"][0]
    assert called["finish_reason"] == "tool_calls"
    assert called["message"]["content"] == "Well. "
    assert called["message"]["tool_calls"][0]["function"] == {"name": "weather", "arguments": "{}"}
    answer = reply("sum?", tool_activity=True).json()["choices"][0]
    assert answer["finish_reason"] == "stop"
    assert answer["message"]["content"] == "It is 42."
    assert [part["text"] for part in answer["message"]["tool_activity"]] == [
        "It is ",
        "6*7",
        "42",
        "42.",
    ]
    deltas = [c["choices"][0]["delta"] for c in chunks(reply("sum?", stream=True))[:-1]]
    assert "".join(delta.get("content", "") for delta in deltas) == "It is 42."


def test_results_stand_where_the_calculators_output_would(service):
    one = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    messages = [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [one, {**one, "id": "2"}]},
        {"role": "tool", "tool_call_id": "2", "content": "two"},
        {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "one"}]},
        {"role": "assistant", "content": "Done."},
        {"role": "user", "content": "?"},
    ]
    code = '<|python_start|>{"name":"f","arguments":{"x":1}}<|python_end|><|output_start|>'
    said = f"{code}one<|output_end|>{code}two<|output_end|>"
    start = "<|bos|><|user_start|>hi<|user_end|><|assistant_start|>"
    texts = [TOKENIZER.decode(render_prompt(with_results(messages[:n]), TOKENIZER)) for n in (4, 6)]
    assert texts == [
        f"{start}{said}",
        f"{start}{said}Done.<|assistant_end|><|user_start|>?<|user_end|><|assistant_start|>",
    ]
    assert len(with_results(messages)) == len(messages)
    app = create_app({"m": service})
    shown = call(app, ("POST", "/tokenize", {"messages": messages[:4]}))[0].json()["tokens"]
    assert "".join(token["text"] for token in shown) == texts[0]


@pytest.mark.parametrize(
    ("said", "path", "message"),
    [
        ([{"role": "tool", "tool_call_id": "9"}], "messages[1].tool_call_id", "answers no call"),
        ([{"calls": [{}]}], "messages[1].tool_calls[0]", "a call needs an id and a function with"),
        ([{"calls": ["1"]}], "messages[1].tool_calls", "the call '1' has no result"),
        ([{"calls": ["1"]}, *HELLO], "messages[1].tool_calls", "the call '1' has no result"),
    ],
)
def test_calls_and_results_that_do_not_match_are_refused(said, path, message):
    def written(entry: Any) -> Any:
        if "calls" not in entry:
            return entry
        function = {"name": "f", "arguments": "{}"}
        calls = [{"id": c, "function": function} if c else c for c in entry["calls"]]
        return {"role": "assistant", "tool_calls": calls}

    with pytest.raises(MessageError, match=message) as caught:
        with_results([*HELLO, *map(written, said)])
    assert caught.value.path == path


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"tool_choice": "required"}, "tool_choice", "names no function of tools"),
        (
            {"tools": [CLOCK], "tool_choice": {"type": "function", "function": {"name": "f"}}},
            "tool_choice",
            "names no function of tools",
        ),
        ({"tools": [{"type": "custom"}]}, "tools[0].type", "should be 'function', got 'custom'"),
        (
            {"tools": [{"type": "function", "function": {"name": "a b"}}]},
            "tools[0].function.name",
            "should match pattern",
        ),
        ({"response_format": {"type": "xml"}}, "response_format", "'json_schema'"),
        ({"response_format": as_schema({"type": "odd"})}, "response_format", "Invalid type: odd"),
    ],
)
def test_errors_name_the_field_and_the_rule(service, body, param, message):
    response = ask(service, **body)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param)
    assert message in error["message"]


def test_a_format_that_cannot_be_followed_to_its_end_is_an_error_and_no_half_answer(
    service, monkeypatch
):
    def gives_up(self: Constraint, token: int) -> None:
        self._matcher.consume_token(0)  # not allowed

    monkeypatch.setattr(Constraint, "accept", gives_up)
    response = ask(service, response_format=as_schema(PERSON))
    assert response.status_code == 400
    assert response.json()["error"]["message"].startswith("the format is too complex: ")
    *_, event, done = chunks(ask(service, response_format=as_schema(PERSON), stream=True))
    assert event["error"]["message"].startswith("the format is too complex: ") and done == "[DONE]"


def test_a_schema_whose_patterns_multiply_is_refused_in_time(service, monkeypatch):
    monkeypatch.setattr(grammar_trial, "TRIAL_S", 0.5)  # it would take years
    texts = [{"type": "string", "pattern": f".*{number}.*"} for number in range(30)]
    response = ask(service, response_format=as_schema({"allOf": texts}))
    assert response.status_code == 400
    assert "compiling the schema takes more than" in response.json()["error"]["message"]


def test_no_more_schemas_are_tried_at_once_than_leave_threads_for_others(service, monkeypatch):
    monkeypatch.setattr(grammar_trial, "_trials", threading.BoundedSemaphore(1))
    with grammar_trial._trials:
        assert ask(service, response_format=as_schema({"allOf": [PERSON]})).status_code == 429
        assert ask(service, response_format=as_schema(PERSON)).status_code == 200


def test_without_the_grammar_library_the_extra_is_named(service, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    for body in ({"response_format": {"type": "json_object"}}, {"tools": [CLOCK]}):
        response = ask(service, **body)
        assert response.status_code == 400
        assert "pip install 'nanochat[grammar]'" in response.json()["error"]["message"]
