"""The chat server: OpenAI's format, batching, error responses, clients that disconnect.

Most tests call the application in process; streaming and disconnects go through a real uvicorn.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import torch

from nanochat.engine import Engine
from nanochat.engine.sampling import SamplingOptions
from nanochat.server.app import STATIC, create_app
from nanochat.server.service import EngineService, Origin
from nanochat.tokenizer.conversation import render_prompt
from tests.engine_helpers import TOKENIZER, random_model, scripted_engine
from tests.server_helpers import CHAT, HELLO, ask, call, chunks, listening, serving, wait_for


@pytest.fixture(scope="module")
def service() -> Iterator[EngineService]:
    tool = "It is [python_start]6*7[python_end][output_start]42[output_end]42."
    with serving(scripted_engine({"hi": "Hello, 😀!", "sum": tool})) as running:
        yield running


def test_a_complete_answer_has_openais_format(service):
    begin = int(time.time())
    response = ask(service, temperature=0)
    body = response.json()
    assert response.status_code == 200
    assert body.pop("id").startswith("chatcmpl-")
    assert begin <= body.pop("created") <= time.time()
    written = len("Hello, 😀!".encode()) + 1
    assert body == {
        "object": "chat.completion",
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello, 😀!"},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": 6,
            "completion_tokens": written,
            "total_tokens": written + 6,
            "prompt_tokens_details": {"cached_tokens": 0},
        },
    }


def test_a_streamed_answer_has_openais_format(service):
    response = ask(service, stream=True, stream_options={"include_usage": True})
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["x-accel-buffering"] == "no"
    *parts, last_piece, usage, done = chunks(response)
    assert done == "[DONE]"
    assert len({part["id"] for part in [*parts, usage]}) == 1
    assert {part["object"] for part in [*parts, usage]} == {"chat.completion.chunk"}
    assert parts[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    texts = [part["choices"][0]["delta"]["content"] for part in parts[1:]]
    assert "".join(texts) == "Hello, 😀!"
    assert "😀" in texts
    assert last_piece["choices"][0]["delta"] == {}
    assert last_piece["choices"][0]["finish_reason"] == "stop"
    assert usage["choices"] == []
    assert usage["usage"]["prompt_tokens"] == 6
    assert "usage" not in chunks(ask(service, stream=True))[-2]


def test_tool_activity_is_returned_only_on_request(service):
    messages = [{"role": "user", "content": "sum"}]
    message = ask(service, messages=messages).json()["choices"][0]["message"]
    assert message == {"role": "assistant", "content": "It is 42."}
    shown = ask(service, messages=messages, tool_activity=True).json()["choices"][0]["message"]
    assert shown["content"] == "It is 42."
    assert shown["tool_activity"] == [
        {"type": "text", "text": "It is "},
        {"type": "python", "text": "6*7"},
        {"type": "python_output", "text": "42"},
        {"type": "text", "text": "42."},
    ]
    quiet = chunks(ask(service, messages=messages, stream=True))
    assert not any("tool_activity" in c["choices"][0]["delta"] for c in quiet[:-1])
    deltas = [
        c["choices"][0]["delta"]
        for c in chunks(ask(service, messages=messages, stream=True, tool_activity=True))[:-1]
    ]
    code = [d["tool_activity"]["text"] for d in deltas if "tool_activity" in d]
    assert "".join(code) == "6*742"
    assert "".join(d.get("content", "") for d in deltas) == "It is 42."


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ([], None, "the body: Input should be a valid dictionary"),
        ({"messages": None}, "messages", "messages: Field required"),
        ({"messages": []}, "messages", "at least 1 item"),
        ({"messages": ["hi"]}, "messages[0]", "message 1 is not an object with role and content"),
        (
            {"messages": [{"role": "tool", "content": "1"}]},
            "messages[0].tool_call_id",
            "message 1 (tool) answers no call: tool_call_id is None",
        ),
        (
            {"messages": [{"role": "critic", "content": "1"}]},
            "messages[0].role",
            "message 1 has role 'critic', expected system, developer, user or assistant",
        ),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content", "got 3"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "text": ""}]}]},
            "messages[0].content[0].type",
            "message 1 (user): content has a part of type 'image_url'; known are text",
        ),
        ({"messages": [{"role": "user", "content": ""}]}, "messages[0].content", "is empty"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages", 'of role "user"'),
        (
            {"messages": [*HELLO, {"role": "assistant", "tool_calls": [{"id": "1"}]}]},
            "messages[1].tool_calls[0]",
            "a call needs an id and a function with name and arguments, a JSON object as text, got",
        ),
        (
            {"messages": [*HELLO, {"role": "assistant", "content": "x", "weight": 0.5}]},
            "messages[1].weight",
            "must be 0 (not learned) or 1",
        ),
        ({"temperature": "hot"}, "temperature", "should be a valid number, got 'hot'"),
        ({"temperature": 2.1}, "temperature", "less than or equal to 2, got 2.1"),
        ({"temperature": True}, "temperature", "got True"),
        ({"top_p": 1.5}, "top_p", "less than or equal to 1, got 1.5"),
        ({"top_p": -1}, "top_p", "greater than or equal to 0, got -1"),
        ({"top_k": -2}, "top_k", "greater than or equal to 0, got -2"),
        ({"top_k": True}, "top_k", "a valid integer, got True"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1, got 0"),
        ({"max_tokens": 1.5}, "max_tokens", "got 1.5"),
        ({"n": 99}, "n", "less than or equal to 8, got 99"),
        ({"seed": "x"}, "seed", "a valid integer, got 'x'"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop", "at most 4 items"),
        ({"stop": [3]}, "stop[0]", "a valid string, got 3"),
        ({"stream": "yes"}, "stream", "should be a valid boolean, got 'yes'"),
        ({"stream_options": "x"}, "stream_options", "got 'x'"),
        ({"min_p": 1.5}, "min_p", "less than or equal to 1, got 1.5"),
        ({"presence_penalty": 9}, "presence_penalty", "less than or equal to 2, got 9"),
        ({"logit_bias": {"x": 1}}, "logit_bias.x", "should match pattern"),
        ({"logit_bias": {"1": 101}}, "logit_bias.1", "less than or equal to 100, got 101"),
        ({"logit_bias": {"265": 1}}, "logit_bias", "no token 265; the vocabulary has 265"),
        ({"logprobs": 1}, "logprobs", "should be a valid boolean, got 1"),
        ({"top_logprobs": 3}, "top_logprobs", "needs logprobs: true"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "less than or equal to 20"),
        ({"temprature": 1}, "temprature", "there is no such field; did you mean temperature?"),
        ({"store": True}, "store", "answers are not stored; only False is accepted, got True"),
        ({"truncate": "middle"}, "truncate", "'error' or 'auto', got 'middle'"),
    ],
)
def test_errors_name_the_field_its_value_and_the_rule(service, body, param, message):
    full = {"messages": HELLO, **body} if isinstance(body, dict) else body
    response = call(create_app({"m": service}), ("POST", CHAT, full))[0]
    error = response.json()["error"]
    assert response.status_code == 400
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert message in error["message"]


def test_invalid_json_large_bodies_and_wrong_paths_are_rejected(service):
    app = create_app({"m": service})

    async def send() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app=app)
        json_headers = {"content-type": "application/json"}
        async with httpx.AsyncClient(
            transport=transport, base_url="http://test", headers=json_headers
        ) as client:
            return [
                await client.post(CHAT, content=b"{oops"),
                await client.post(CHAT, content=b"[" * 100_000),
                await client.post(CHAT, content=b" " * 2_000_000),
                await client.get(CHAT),
                await client.get("/v1/nothing"),
                await client.get("/v1/models/other"),
                await client.head("/health"),
            ]

    responses = asyncio.run(send())
    assert responses.pop().status_code == 200
    assert [r.status_code for r in responses] == [400, 400, 413, 405, 404, 404]
    assert all(set(r.json()["error"]) == {"message", "type", "param", "code"} for r in responses)
    assert responses[-1].json()["error"]["code"] == "model_not_found"


def test_null_means_the_default(service):
    nulls = {"stop": None, "n": None, "stream_options": None}
    answer = ask(service, temperature=0, **nulls).json()
    assert answer["choices"][0]["message"]["content"] == "Hello, 😀!"


def test_wrong_paths_and_methods_are_told_the_right_ones(service):
    app = create_app({"m": service})
    paths = ("/chat/completions", "/completions", "/api/chat")
    for response in call(app, *(("POST", path, {}) for path in paths)):
        assert response.status_code == 404
        assert (
            "no such path; the API has /v1/chat/completions" in response.json()["error"]["message"]
        )
    for method, path, allowed in (("GET", CHAT, "POST"), ("POST", "/v1/models", "GET")):
        response = call(app, (method, path, {}))[0]
        assert (response.status_code, response.headers["allow"]) == (405, allowed)


@pytest.mark.parametrize(
    ("given", "same_as"),
    [
        ({"top_k": -1}, {"top_k": 0}),
        ({"top_p": 0}, {"temperature": 0}),
        ({"max_tokens": -1, "max_completion_tokens": -1}, {"max_tokens": None}),
        ({"max_tokens": 3.0}, {"max_tokens": 3}),
        ({"n": 2.0, "seed": 1e3}, {"n": 2, "seed": 1000}),
        ({"stop": ""}, {}),
        ({"stop": ["", "b"]}, {"stop": "b"}),
        ({"top_logprobs": 0, "logprobs": False}, {}),
    ],
)
def test_values_that_clients_send_for_none_or_as_floats_are_understood(given, same_as):
    with serving(Engine(random_model(3), TOKENIZER, slots=4)) as running:
        base = {"seed": 7, "temperature": 1.5, "max_tokens": 9}
        answers = [ask(running, **{**base, **more}).json() for more in (given, same_as)]
    assert answers[0]["choices"] == answers[1]["choices"]


def test_an_answer_goes_on_with_the_assistants_last_message_and_does_not_repeat_it(service):
    said = [*HELLO, {"role": "assistant", "content": "Hello, "}]
    reply = ask(service, messages=said).json()
    assert reply["choices"][0]["message"]["content"] == "😀!"
    assert reply["usage"]["prompt_tokens"] == len(render_prompt(said, TOKENIZER))
    pieces = [
        c["choices"][0]["delta"] for c in chunks(ask(service, messages=said, stream=True))[:-1]
    ]
    assert "".join(piece.get("content", "") for piece in pieces) == "😀!"


def test_openapi_json_describes_every_route_and_field(service):
    schema = call(create_app({"m": service}), ("GET", "/openapi.json", None))[0].json()
    assert set(schema["paths"]) == {
        CHAT,
        "/v1/completions",
        "/v1/models",
        "/v1/models/{name}",
        "/tokenize",
        "/detokenize",
        "/health",
        "/metrics",
    }
    assert set(schema["paths"][CHAT]["post"]["responses"]) == {"200", "default"}
    fields = schema["components"]["schemas"]["ChatRequest"]["properties"]
    assert fields["n"] == {
        "anyOf": [{"type": "integer", "minimum": 1, "maximum": 8}, {"type": "null"}],
        "title": "N",
        "description": "number of answers",
        "default": 1,
    }
    assert {kind["type"] for kind in fields["stop"]["anyOf"]} == {"string", "array", "null"}


def test_models_health_and_the_page_are_served_with_safe_headers(service):
    app = create_app({"org/m": service}, defaults=SamplingOptions(temperature=0.5))
    paths = ["/v1/models", "/v1/models/org/m", "/health", "/", "/chat/app.js", "/shared/style.css"]
    responses = call(app, *(("GET", path, None) for path in paths))
    assert [r.status_code for r in responses] == [200] * 6
    card = responses[0].json()["data"][0]
    assert card == responses[1].json()
    assert (card["id"], card["object"], card["owned_by"]) == ("org/m", "model", "nanochat")
    assert (card["max_model_len"], card["defaults"]["temperature"]) == (256, 0.5)
    assert responses[2].json() == {
        "status": "ok",
        "in_flight": 0,
        "models": [
            {
                "id": "org/m",
                "dtype": "float32",
                "device": "cpu",
                "slots": 4,
                "slots_in_use": 0,
                "waiting": 0,
                "max_model_len": 256,
                "deterministic": service.stats().deterministic,
            }
        ],
    }
    for response in responses:
        assert response.headers["content-security-policy"].startswith("default-src 'self'")
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["cache-control"] == "no-cache"


def test_several_models_are_served_side_by_side_and_unknown_ones_are_refused():
    origin = Origin(run="r", stage="base_train", step=9, chat=False)
    with (
        serving(scripted_engine({"hi": "one"})) as first,
        serving(scripted_engine({"hi": "two"}), origin=origin) as second,
    ):
        app = create_app({"r": first, "r:base": second})
        asked = [{"messages": HELLO, **more} for more in ({}, {"model": "r"}, {"model": "r:base"})]
        answers = call(app, *(("POST", CHAT, body) for body in asked))
        assert [a.json()["model"] for a in answers] == ["r", "r", "r:base"]
        said = [a.json()["choices"][0]["message"]["content"] for a in answers]
        assert said == ["one", "one", "two"]
        cards = call(app, ("GET", "/v1/models", None))[0].json()["data"]
        assert [card["id"] for card in cards] == ["r", "r:base"]
        known = {key: cards[1][key] for key in ("run", "stage", "step", "chat", "dtype")}
        assert known == {
            "run": "r",
            "stage": "base_train",
            "step": 9,
            "chat": False,
            "dtype": "float32",
        }
        unknown = ({"messages": HELLO, "model": "gpt-9"}, {"text": "a", "model": "gpt-9"})
        for path, body in zip((CHAT, "/tokenize"), unknown, strict=True):
            refused = call(app, ("POST", path, body))[0]
            assert refused.status_code == 404
            assert refused.json()["error"] == {
                "message": "there is no model 'gpt-9'; this server has r, r:base",
                "type": "invalid_request_error",
                "param": "model",
                "code": "model_not_found",
            }


def test_logprobs_are_those_of_the_text_and_of_every_token_on_request():
    model = random_model(3)
    with serving(Engine(model, TOKENIZER, slots=4)) as service:
        text_only = {str(token): -100 for token in range(256, TOKENIZER.vocab_size)}
        body = {"max_tokens": 8, "logprobs": True, "top_logprobs": 3, "logit_bias": text_only}
        body |= {"seed": 1, "temperature": 1.5}
        choice = ask(service, **body).json()["choices"][0]
        content = choice["logprobs"]["content"]
        text = b"".join(bytes(entry["bytes"]) for entry in content).decode("utf-8", "replace")
        assert choice["logprobs"]["refusal"] is None and text == choice["message"]["content"]
        tokens = render_prompt(HELLO, TOKENIZER)
        for entry in content:
            logits = model(torch.tensor([tokens]))[0, -1, : TOKENIZER.vocab_size]
            expected = logits.detach().float().log_softmax(-1)
            top = expected.topk(3)
            assert entry["logprob"] == pytest.approx(float(expected[entry["id"]]), abs=1e-3)
            assert [t["id"] for t in entry["top_logprobs"]] == top.indices.tolist()
            assert entry["rank"] == 1 + int((expected > expected[entry["id"]]).sum())
            assert entry["token"] == TOKENIZER.decode([entry["id"]])
            tokens.append(entry["id"])
        streamed = chunks(ask(service, **body, stream=True))[:-1]
        pieces = [c["choices"][0]["logprobs"] for c in streamed]
        assert [e for p in pieces if p for e in p["content"]] == content
        bare = ask(service, **{**body, "top_logprobs": None}).json()["choices"][0]["logprobs"]
        assert [e["top_logprobs"] for e in bare["content"]] == [[]] * len(content)


def test_with_tool_activity_the_special_tokens_have_logprobs_too(service):
    body = {"messages": [{"role": "user", "content": "sum"}], "logprobs": True}
    names = {}
    for shown in (False, True):
        choice = ask(service, **body, tool_activity=shown).json()["choices"][0]
        entries = choice["logprobs"]["content"]
        names[shown] = "".join(entry["token"] for entry in entries)
        streamed = chunks(ask(service, **body, tool_activity=shown, stream=True))[:-1]
        pieces = [c["choices"][0]["logprobs"] for c in streamed]
        assert [e for p in pieces if p for e in p["content"]] == entries
    assert names[False] == "It is 42."
    assert names[True] == "It is <|python_start|>6*7<|python_end|>42.<|assistant_end|>"


def test_tokenize_and_detokenize_show_what_the_model_reads(service):
    said = [*HELLO, {"role": "assistant", "content": "Hé"}]
    text, prompt, begun = call(
        create_app({"m": service}),
        ("POST", "/tokenize", {"text": "é<|bos|>"}),
        ("POST", "/tokenize", {"messages": said}),
        ("POST", "/tokenize", {"messages": HELLO, "prefill": "Hé"}),
    )
    assert text.json()["count"] == 9 and text.json()["max_model_len"] == 256
    first = {"id": 0xC3, "text": "\ufffd", "bytes": [0xC3], "special": False}
    assert text.json()["tokens"][0] == first
    assert prompt.json() == begun.json()
    ids = [token["id"] for token in prompt.json()["tokens"]]
    assert ids == render_prompt(said, TOKENIZER)
    assert [t["text"] for t in prompt.json()["tokens"] if t["special"]] == [
        "<|bos|>",
        "<|user_start|>",
        "<|user_end|>",
        "<|assistant_start|>",
    ]
    joined, outside, neither = call(
        create_app({"m": service}),
        ("POST", "/detokenize", {"tokens": ids}),
        ("POST", "/detokenize", {"tokens": [1, 99999]}),
        ("POST", "/tokenize", {}),
    )
    assert joined.json() == {"text": TOKENIZER.decode(ids)}
    assert outside.json()["error"]["param"] == "tokens[1]"
    assert "there is no token 99999; the vocabulary has 265" in outside.json()["error"]["message"]
    assert "give either text or messages" in neither.json()["error"]["message"]


def test_sampling_settings_reach_the_engine_and_seeds_are_reproducible():
    with serving(Engine(random_model(3), TOKENIZER, slots=8)) as service:
        settings = {"temperature": 1.3, "top_k": 0, "max_tokens": 12, "seed": 5}
        texts = [
            [
                c["message"]["content"]
                for c in ask(service, **{**settings, **more}).json()["choices"]
            ]
            for more in ({}, {}, {"seed": 6}, {"n": 3}, {"stop": ["\n"], "top_p": 0.1})
        ]
        assert texts[0] == texts[1] != texts[2]
        assert len(texts[3]) == len(set(texts[3])) == 3
        assert texts[3][0] == texts[0][0]
        first, again = (ask(service, temperature=0, max_tokens=5).json() for _ in range(2))
        assert first["choices"] == again["choices"]
        assert first["usage"]["completion_tokens"] <= 5
        assert ask(service, max_completion_tokens=2).json()["usage"]["completion_tokens"] <= 2


def test_several_choices_are_streamed_concurrently(service):
    parts = chunks(ask(service, stream=True, n=2))[:-1]
    for index in (0, 1):
        own = [p["choices"][0] for p in parts if p["choices"][0]["index"] == index]
        assert "".join(c["delta"].get("content", "") for c in own) == "Hello, 😀!"
        assert own[-1]["finish_reason"] == "stop"


def test_system_and_consecutive_messages_are_merged(service):
    seen: list[list[int]] = []
    engine = service.ready_engine()
    submit = engine.submit

    def spy(request: Any) -> int:
        seen.append(request.prompt)
        return submit(request)

    engine.submit = spy  # type: ignore[method-assign,assignment]
    try:
        parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
        tool = [{"type": "python", "text": "1"}, {"type": "python_output", "text": "1"}]
        messages = [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": parts},
            {"role": "user", "content": "<|assistant_end|>"},
            {"role": "assistant", "content": tool},
            {"role": "user", "content": "hi"},
        ]
        assert ask(service, messages=messages).status_code == 200
    finally:
        engine.submit = submit  # type: ignore[method-assign]
    expected = render_prompt(
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "ab\n\n<|assistant_end|>"},
            {"role": "assistant", "content": tool},  # type: ignore[typeddict-item]
            {"role": "user", "content": "hi"},
        ],
        TOKENIZER,
    )
    assert seen == [expected]
    assert seen[0].count(TOKENIZER.special_id("<|assistant_end|>")) == 1


def test_a_conversation_longer_than_the_context_is_refused_or_loses_old_turns_on_request():
    system = {"role": "system", "content": "Be brief."}
    turns = [
        {"role": role, "content": f"{i} " + "x" * 50}
        for i in range(20)
        for role in ("user", "assistant")
    ]
    with serving(scripted_engine({"hi": "a" * 500})) as service:
        refused = ask(service, messages=[system, *turns, *HELLO])
        error = refused.json()["error"]
        assert (refused.status_code, error["code"]) == (400, "context_length_exceeded")
        assert error["param"] == "messages"
        assert error["message"].startswith("the messages take 2197 tokens; send fewer, or trunc")
        body = ask(service, messages=[system, *turns, *HELLO], truncate="auto").json()
        kept = [system, *turns[-2:], *HELLO]
        assert body["usage"]["prompt_tokens"] == len(render_prompt(kept, TOKENIZER))
        assert body["usage"]["dropped_messages"] == 38
        assert body["choices"][0]["finish_reason"] == "length"
        assert body["usage"]["total_tokens"] <= 257
        long = [{"role": "user", "content": "y" * 5000}]
        for truncate in ("error", "auto"):
            answer = ask(service, messages=long, max_tokens=3, truncate=truncate)
            assert answer.json()["error"]["code"] == "context_length_exceeded"
        assert "dropped_messages" not in ask(service).json()["usage"]
        assert ask(service, truncate="auto").json()["usage"]["dropped_messages"] == 0


def test_the_status_is_503_while_the_model_loads_and_after_it_failed():
    gate = threading.Event()
    failed: list[bool] = []

    def load() -> Engine:
        gate.wait(10)
        raise ValueError("no such weights")

    service = EngineService(load, on_failure=lambda: failed.append(True))
    service.start()
    app = create_app({"m": service})
    for response in call(app, ("GET", "/health", None), ("POST", CHAT, {"messages": HELLO})):
        assert response.status_code == 503
        assert response.json()["error"]["message"].startswith("the model is loading")
        assert response.headers["retry-after"] == "1"
    gate.set()
    wait_for(lambda: failed)
    response = call(app, ("GET", "/health", None))[0]
    assert response.status_code == 503
    assert "no such weights" in response.json()["error"]["message"]
    service.stop()


def test_requests_are_batched_and_too_many_are_rejected():
    # Different texts, because identical ones share a row.
    texts = [[{"role": "user", "content": letter}] for letter in "abcde"]
    engine = scripted_engine(dict.fromkeys("abcde", "a" * 30), delay_s=0.002)
    with serving(engine, max_in_flight=3) as service:
        app = create_app({"m": service})
        responses = call(app, *[("POST", CHAT, {"messages": text}) for text in texts])
        assert sorted(r.status_code for r in responses) == [200, 200, 200, 429, 429]
        busy = next(r for r in responses if r.status_code == 429)
        assert busy.json()["error"]["type"] == "rate_limit_error"
        assert busy.headers["retry-after"] == "1"
        never = ask(service, n=4)
        assert never.status_code == 400
        assert never.json()["error"]["message"] == "a request may ask for 3 answers, not 4"
        assert max(seen.rows for seen in engine.model.calls) == 3  # type: ignore[attr-defined,union-attr]
        wait_for(lambda: engine.idle)
        assert service.in_flight == 0


def test_a_failed_engine_step_gives_500_and_the_server_continues():
    engine = scripted_engine({"hi": "fine"})
    with serving(engine) as service:
        good = engine.model.script  # type: ignore[union-attr]

        def broken(text: list[int]) -> int:
            raise RuntimeError("secret detail")

        engine.model.script = broken  # type: ignore[union-attr,assignment]
        failed = ask(service)
        assert failed.status_code == 500
        assert failed.json()["error"]["type"] == "server_error"
        assert "secret" not in failed.text
        streamed = chunks(ask(service, stream=True))
        assert streamed[-2]["error"]["type"] == "server_error" and streamed[-1] == "[DONE]"
        engine.model.script = good  # type: ignore[union-attr]
        assert ask(service).json()["choices"][0]["message"]["content"] == "fine"


def test_over_a_real_connection_tokens_arrive_one_by_one():
    engine = scripted_engine({"hi": "a" * 20})
    script, received = engine.model.script, threading.Semaphore(2)  # type: ignore[union-attr]

    def waiting(text: list[int]) -> int:
        """No token before the client has those that come more than two before it."""
        token = script(text)
        if token == ord("a"):
            received.acquire()
        return token

    engine.model.script = waiting  # type: ignore[union-attr,assignment]
    with serving(engine) as service, listening(create_app({"m": service})) as url:
        body = {"messages": HELLO, "stream": True}
        with httpx.stream("POST", url + CHAT, json=body, timeout=20) as response:
            lines = 0
            for line in response.iter_lines():
                if "content" in line:
                    lines += 1
                    received.release()
        assert lines == 21


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_disconnects_frees_the_engine(stream):
    engine = scripted_engine({"hi": "a" * 240}, delay_s=0.05)
    with serving(engine) as service, listening(create_app({"m": service})) as url:
        body = {"messages": HELLO, "stream": stream}
        with (
            contextlib.suppress(httpx.ReadTimeout),
            httpx.stream("POST", url + CHAT, json=body, timeout=0.5) as response,
        ):
            next(response.iter_lines())
        wait_for(lambda: engine.idle and service.in_flight == 0)
        assert len(engine.model.calls) < 240  # the answer was left unfinished
        assert httpx.get(url + "/health").json()["in_flight"] == 0


def test_the_page_loads_nothing_from_other_hosts_and_never_inserts_html():
    files = [path for path in STATIC.rglob("*") if path.is_file()]
    texts = {
        path.relative_to(STATIC).as_posix(): path.read_text(encoding="utf-8") for path in files
    }
    assert {"index.html", "chat/app.js", "shared/style.css"} <= set(texts)
    for name, text in texts.items():
        text = text.replace("http://www.w3.org/", "")  # names of XML vocabularies
        outside = re.findall(r"(?:https?:|[\"'(])//[\w-]+\.\w*", text)
        assert not outside or name.endswith(".svg"), f"{name} mentions {outside}"
    script = "".join(text for name, text in texts.items() if name.endswith(".js"))
    for unsafe in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert unsafe not in script
    for name in (name for name in texts if name.endswith(".html")):
        assert "<script>" not in texts[name] and " style=" not in texts[name]
