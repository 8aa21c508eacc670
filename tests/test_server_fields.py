"""Fields of requests: OpenAI's, those of real clients, and those that nobody knows."""

from __future__ import annotations

import typing

import pytest
from openai.types import completion_create_params as text_params
from openai.types.chat import completion_create_params as chat_params

from nanochat.server.errors import ApiError
from nanochat.server.fields import IGNORED
from nanochat.server.protocol import ChatRequest, TextRequest
from tests.engine_helpers import scripted_engine
from tests.server_helpers import ask, serving

NESTED_CALL = {"id": "1", "function": {"name": "f", "arguments": "[" * 100_000}}


@pytest.mark.parametrize(
    ("model", "params"), [(ChatRequest, chat_params), (TextRequest, text_params)]
)
def test_each_of_openais_fields_acts_or_is_on_the_list_of_harmless_ones(model, params):
    fields = typing.get_type_hints(params.CompletionCreateParamsNonStreaming)
    assert {"messages", "prompt"} & set(fields) and len(fields) >= 18
    assert set(fields) <= set(model.model_fields) | set(IGNORED)


def test_a_field_does_not_act_and_stand_on_the_list_of_harmless_ones():
    assert not (set(ChatRequest.model_fields) | set(TextRequest.model_fields)) & set(IGNORED)


@pytest.fixture(scope="module")
def service():
    with serving(scripted_engine({"hi": "Hello"})) as running:
        yield running


@pytest.mark.parametrize("name", IGNORED)
def test_harmless_fields_are_accepted_with_values_that_ask_for_nothing(service, name):
    ignored = IGNORED[name]
    given = [{"any": "thing"}] if ignored.values is None else [*ignored.values, None]
    for value in given:
        assert ask(service, **{name: value}).status_code == 200
    if ignored.values is not None:
        refused = ask(service, **{name: "something else"})
        assert refused.status_code == 400
        error = refused.json()["error"]
        assert error["param"] == name
        assert error["message"].startswith(f"{name}: {ignored.reason}; only ")


def test_one_and_true_are_different_values(service):
    assert ask(service, repetition_penalty=1.0).status_code == 200
    assert ask(service, repetition_penalty=True).status_code == 400


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"x" * 100_000: 1}, 400),
        ({"model": "x" * 100_000}, 404),
        ({"messages": [{"role": "assistant", "tool_calls": [NESTED_CALL]}]}, 400),
    ],
)
def test_errors_are_short_whatever_was_sent(service, body, status):
    response = ask(service, **body)
    assert response.status_code == status
    assert len(response.content) < 5000


def test_an_error_that_quotes_half_a_character_can_be_sent():
    detail = ApiError(400, "\ud800 is no field", param="\ud800").body()["error"]
    assert (detail["message"], detail["param"]) == ("\\ud800 is no field", "\\ud800")
