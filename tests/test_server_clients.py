"""Requests in the shapes that applications send, Open WebUI's (0.12.4) above all."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from nanochat.server.app import create_app
from nanochat.server.service import EngineService
from tests.engine_helpers import scripted_engine
from tests.server_helpers import CHAT, ask, call, chunks, error_of, serving

pytest.importorskip("llguidance")

SPAIN = [{"role": "user", "content": "Spain?"}]
TURNS = [*SPAIN, {"role": "assistant", "content": "Madrid."}, {"role": "user", "content": "Rome?"}]
CLOCK = {"type": "function", "function": {"name": "clock", "description": "The time."}}


def many_tools(count: int) -> list[Any]:
    """Definitions as Open WebUI sends them, dozens with each message."""
    text = {"type": "string", "description": "what to look for"}
    number = {"anyOf": [{"type": "integer"}, {"type": "null"}], "default": 5}
    parameters = {"properties": {"query": text, "count": number}, "type": "object"}
    return [
        {
            "type": "function",
            "function": {
                "name": f"search_{number}",
                "description": "Search the notes.",
                "parameters": {**parameters, "required": ["query"]},
            },
        }
        for number in range(count)
    ]


@pytest.fixture(scope="module")
def service() -> Iterator[EngineService]:
    answers = {"Spain?": "Madrid.", "Rome?": "Italy."}
    told = 'Functions you can call:\n{"name":"clock","description":"The time."}\n\n'
    engine = scripted_engine(answers | {told + asked: f"A {asked}" for asked in answers})
    assert engine.max_len == 256
    with serving(engine) as running:
        yield running


def test_open_webuis_first_message_is_answered_though_its_36_tools_fit_no_small_context(service):
    body = {"model": "m", "messages": SPAIN, "tools": many_tools(36)}
    *pieces, last, done = chunks(ask(service, **body, stream=True))
    assert "".join(p["choices"][0]["delta"]["content"] for p in pieces) == "Madrid."
    assert (last["choices"][0]["finish_reason"], done) == ("stop", "[DONE]")
    body["messages"] = TURNS
    assert ask(service, **body).json()["choices"][0]["message"]["content"] == "Italy."


@pytest.mark.parametrize("choice", [None, "auto"])
@pytest.mark.parametrize("truncate", ["auto", "error"])
def test_usage_counts_the_tools_that_did_not_fit(service, choice, truncate):
    body = {"messages": SPAIN, "tool_choice": choice, "truncate": truncate}
    usage = ask(service, **body, tools=many_tools(36)).json()["usage"]
    assert usage["dropped_tools"] == 36
    assert usage["prompt_tokens"] == ask(service, **body).json()["usage"]["prompt_tokens"]
    options = {"stream": True, "stream_options": {"include_usage": True}}
    *_, counted, _ = chunks(ask(service, **body, **options, tools=many_tools(36)))
    assert counted["usage"]["dropped_tools"] == 36
    fitting = ask(service, **body, tools=[CLOCK]).json()
    assert fitting["choices"][0]["message"]["content"] == "A Spain?"
    assert "dropped_tools" not in fitting["usage"]


def test_tools_are_dropped_where_they_take_more_than_half_of_what_the_messages_leave(service):
    def usage(words: int, **more: Any) -> Any:
        messages = [{"role": "user", "content": "x" * words}]
        body = {"messages": messages, "tools": [CLOCK], "max_tokens": 1, **more}
        return ask(service, **body).json()["usage"]

    told = usage(1)["prompt_tokens"] - usage(1, tool_choice="none")["prompt_tokens"] - 2  # "\n\n"
    most = 256 - 4 - 2 * told
    assert "dropped_tools" not in usage(most)
    assert usage(most + 1)["dropped_tools"] == 1
    # Old turns would make room for them, but the last message alone leaves too little.
    assert "dropped_tools" not in usage(most + 1, truncate="auto")
    assert usage(249, truncate="auto")["dropped_tools"] == 1


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "search_1"}}]
)
def test_tools_that_have_to_be_called_must_fit(service, choice):
    tools = many_tools(36)
    if choice != "required":
        tools[1]["function"]["description"] = "long " * 200
    refused = ask(service, messages=SPAIN, tools=tools, tool_choice=choice)
    error = error_of(refused)
    assert (refused.status_code, error["code"]) == (400, "context_length_exceeded")
    assert error["param"] == "messages"


def test_the_log_says_once_that_tools_were_left_out(service):
    lines: list[str] = []
    app = create_app({"m": service}, log=lines.append)
    body = {"messages": SPAIN, "tools": many_tools(36)}
    call(app, *[("POST", CHAT, body)] * 2)
    said = [line for line in lines if "tools" in line]
    assert said == ["m: definitions of tools that do not fit are left out of prompts"]


def test_a_prompt_for_a_title_that_does_not_fit_is_refused_and_not_cut(service):
    task = [{"role": "user", "content": "### Task:\nGenerate a title.\n" + "x" * 600}]
    refused = ask(service, model="m", messages=task, stream=False, max_tokens=1000)
    assert error_of(refused)["code"] == "context_length_exceeded"
