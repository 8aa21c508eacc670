"""OpenAI's Python client, unmodified, against a running server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any, Literal

import pytest
from pydantic import BaseModel

from nanochat.engine import Engine
from nanochat.server.app import create_app
from tests.engine_helpers import TOKENIZER, random_model, scripted_engine
from tests.server_helpers import listening, serving

openai = pytest.importorskip("openai")
HELLO: Any = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    random = Engine(random_model(3, sequence_length=512), TOKENIZER, slots=4)
    with (
        serving(scripted_engine({"hi": "Hello, 😀!"})) as first,
        serving(random) as second,
        listening(create_app({"scripted": first, "random": second})) as address,
    ):
        yield f"{address}/v1"


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[Any]:
    with openai.OpenAI(base_url=url, api_key="unused", max_retries=0) as opened:
        yield opened


def test_chat_completions_whole_and_streamed(client):
    assert [model.id for model in client.models.list()] == ["scripted", "random"]
    settings = {"model": "scripted", "messages": HELLO, "logprobs": True, "top_logprobs": 2}
    answer = client.chat.completions.create(**settings)
    assert answer.choices[0].message.content == "Hello, 😀!"
    entries = answer.choices[0].logprobs.content
    assert bytes(b for entry in entries for b in entry.bytes).decode() == "Hello, 😀!"
    assert answer.usage.prompt_tokens_details.cached_tokens == 0
    options = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(client.chat.completions.create(**settings, **options))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "Hello, 😀!"
    assert chunks[-1].usage.total_tokens == answer.usage.total_tokens
    with client.chat.completions.stream(**settings) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.content == "Hello, 😀!"
    assert len(final.choices[0].logprobs.content) == len(entries)


def test_the_asynchronous_client_streams_two_answers_at_once(url):
    async def ask(client: Any) -> str:
        stream = await client.chat.completions.create(model="scripted", messages=HELLO, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def both() -> list[str]:
        async with openai.AsyncOpenAI(base_url=url, api_key="unused") as client:
            return await asyncio.gather(ask(client), ask(client))

    assert asyncio.run(both()) == ["Hello, 😀!"] * 2


def test_text_completions(client):
    settings = {"model": "random", "prompt": ["a", "b"], "max_tokens": 3, "seed": 1}
    whole = client.completions.create(**settings, logprobs=2, echo=True)
    assert [choice.text[0] for choice in whole.choices] == ["a", "b"]
    assert len(whole.choices[0].logprobs.tokens) == 4
    streamed = list(client.completions.create(**settings, stream=True))
    texts = [
        "".join(c.choices[0].text for c in streamed if c.choices[0].index == i) for i in (0, 1)
    ]
    assert texts == [choice.text[1:] for choice in whole.choices]


def test_errors_are_openais(client):
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-9", messages=HELLO)
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="random", messages=HELLO, store=True)
    assert (refused.value.type, refused.value.param) == ("invalid_request_error", "store")


class Person(BaseModel):
    """What the model is to fill in."""

    name: Literal["Ann", "Bo"]
    old: bool


def test_parsed_answers(client):
    pytest.importorskip("llguidance")
    settings = {"model": "random", "messages": HELLO, "response_format": Person, "seed": 1}
    parsed = client.chat.completions.parse(**settings).choices[0].message.parsed
    assert isinstance(parsed, Person) and parsed.name in ("Ann", "Bo")
    with client.chat.completions.stream(**settings) as stream:
        assert stream.get_final_completion().choices[0].message.parsed == parsed


def test_a_function_is_called_and_its_result_answered(client):
    pytest.importorskip("llguidance")
    tool = openai.pydantic_function_tool(Person, name="greet")
    settings: dict[str, Any] = {"model": "random", "tools": [tool], "seed": 1, "max_tokens": 60}
    first = client.chat.completions.parse(messages=HELLO, tool_choice="required", **settings)
    message = first.choices[0].message
    (call,) = message.tool_calls
    assert isinstance(call.function.parsed_arguments, Person)
    with client.chat.completions.stream(
        messages=HELLO, tool_choice="required", **settings
    ) as stream:
        (again,) = stream.get_final_completion().choices[0].message.tool_calls
    assert again.function.arguments == call.function.arguments
    result = {"role": "tool", "tool_call_id": call.id, "content": json.dumps({"said": "hello"})}
    dumped = [*HELLO, message.to_dict(), result]
    last = client.chat.completions.create(messages=dumped, tool_choice="none", **settings)
    assert last.choices[0].message.tool_calls is None
    assert last.choices[0].message.content
