"""/v1/completions: text continued as it is, with echo and log-probabilities in the older format."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from nanochat.engine import Engine
from nanochat.server.app import create_app
from nanochat.server.service import EngineService
from tests.engine_helpers import TOKENIZER, random_model, special
from tests.server_helpers import call, chunks, serving

MODEL = random_model(3, sequence_length=128)
TEXT_ONLY = {str(token): -100 for token in range(256, TOKENIZER.vocab_size)}


@pytest.fixture(scope="module")
def service() -> Iterator[EngineService]:
    with serving(Engine(MODEL, TOKENIZER, slots=4)) as running:
        yield running


def complete(service: EngineService, **body: Any) -> Any:
    response = call(create_app({"m": service}), ("POST", "/v1/completions", body))[0]
    return response if body.get("stream") else response.json()


def logprobs_of(tokens: list[int]) -> torch.Tensor:
    """Log-probabilities of the token after each of these, [T, V], by a full forward pass."""
    with torch.no_grad():
        logits = MODEL(torch.tensor([tokens]))[0, :, : TOKENIZER.vocab_size]
    return logits.float().log_softmax(-1)


def test_a_completion_has_openais_format_and_16_tokens(service):
    body = complete(service, prompt="Once", seed=1, logit_bias=TEXT_ONLY)
    assert body["id"].startswith("cmpl-") and body["object"] == "text_completion"
    assert body["model"] == "m"
    (choice,) = body["choices"]
    assert set(choice) == {"index", "text", "logprobs", "finish_reason"}
    assert (choice["index"], choice["logprobs"], choice["finish_reason"]) == (0, None, "length")
    assert body["usage"] == {
        "prompt_tokens": 5,
        "completion_tokens": 16,
        "total_tokens": 21,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


def test_every_prompt_gets_n_answers_in_order_and_text_equals_its_tokens(service):
    settings = {"seed": 1, "n": 2, "max_tokens": 3, "logit_bias": TEXT_ONLY}
    ids = [[TOKENIZER.bos_id, *TOKENIZER.encode(text)] for text in ("one", "three")]
    alone = [complete(service, prompt=text, **settings)["choices"] for text in ("one", "three")]
    texts = [choice["text"] for choices in alone for choice in choices]
    for prompt in (["one", "three"], ids):
        body = complete(service, prompt=prompt, **settings)
        assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
        assert [choice["text"] for choice in body["choices"]] == texts
        assert body["usage"]["prompt_tokens"] == 10
        assert body["usage"]["completion_tokens"] == 12


def test_log_probabilities_of_prompt_and_answer_agree_with_a_full_forward_pass(service):
    settings = {"echo": True, "logprobs": 2, "max_tokens": 4, "seed": 1, "logit_bias": TEXT_ONLY}
    (choice,) = complete(service, prompt="Né?", **settings)["choices"]
    table = choice["logprobs"]
    raw = b"".join(_bytes(name) for name in table["tokens"])
    assert raw.startswith("Né?".encode()) and raw.decode("utf-8", "replace") == choice["text"]
    tokens = [TOKENIZER.bos_id, *raw]  # ids are bytes in this vocabulary
    expected = logprobs_of(tokens)
    scores = [float(expected[i, token]) for i, token in enumerate(tokens[1:])]
    assert table["token_logprobs"] == pytest.approx(scores, abs=1e-3)
    for i, top in enumerate(table["top_logprobs"]):
        likeliest = [*expected[i].topk(2).indices.tolist(), raw[i]]
        assert {_bytes(name) for name in top} == {TOKENIZER.decode_bytes([t]) for t in likeliest}
    assert table["text_offset"][:4] == [0, 1, 1, 2]
    assert table["tokens"][1:3] == ["bytes:\\xc3", "bytes:\\xa9"]


def _bytes(name: str) -> bytes:
    return bytes.fromhex(name[8:]) if name.startswith("bytes:\\x") else name.encode()


@pytest.mark.parametrize("new", [0, 1])
def test_an_evaluation_harness_can_score_given_tokens(service, new):
    """One forward pass: the context's and the continuation's tokens, and `new` sampled ones."""
    context, continuation = [TOKENIZER.bos_id, *b"abc"], list(b"de")
    tokens = context + continuation
    body = {"prompt": [tokens], "temperature": 0, "logprobs": 1, "echo": True, "seed": 1234}
    (choice,) = complete(service, **body, max_tokens=new)["choices"]
    table = choice["logprobs"]
    assert {len(column) for column in table.values()} == {len(tokens) + new}
    assert table["token_logprobs"][0] is None and table["top_logprobs"][0] is None
    end = len(tokens)
    expected = logprobs_of(tokens)
    score = sum(float(expected[i - 1, tokens[i]]) for i in range(len(context), end))
    assert sum(table["token_logprobs"][len(context) : end]) == pytest.approx(score, abs=1e-3)
    for i in range(len(context), end):
        greedy = table["token_logprobs"][i] == max(table["top_logprobs"][i].values())
        assert greedy == (int(expected[i - 1].argmax()) == tokens[i])


def test_without_alternatives_only_the_tokens_have_log_probabilities(service):
    body = complete(service, prompt="a", logprobs=0, max_tokens=2, logit_bias=TEXT_ONLY)
    assert body["choices"][0]["logprobs"]["top_logprobs"] == [None, None]
    end = special("assistant_end")
    body = complete(service, prompt="a", logprobs=0, max_tokens=2, logit_bias={str(end): 100})
    assert body["choices"][0]["logprobs"]["tokens"][0] == "<|assistant_end|>"


def test_streams_add_up_to_the_complete_answer(service):
    settings = {"prompt": ["one", "two"], "seed": 3, "max_tokens": 5, "logit_bias": TEXT_ONLY}
    for more in ({"echo": True}, {"logprobs": 2}):
        whole = complete(service, **settings, **more)["choices"]
        options = {"stream": True, "stream_options": {"include_usage": True}}
        *parts, usage, done = chunks(complete(service, **settings, **more, **options))
        assert done == "[DONE]" and usage["usage"]["completion_tokens"] == 10
        for choice in whole:
            own = [p["choices"][0] for p in parts if p["choices"][0]["index"] == choice["index"]]
            assert "".join(part["text"] for part in own) == choice["text"]
            assert own[-1]["finish_reason"] == choice["finish_reason"]
            tables = [part["logprobs"] for part in own if part["logprobs"]]
            for key, column in (choice["logprobs"] or {}).items():
                assert [item for table in tables for item in table[key]] == column


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({}, "prompt", "Field required"),
        ({"prompt": []}, "prompt", "must be a text, a list of token ids, or a list of at most 64"),
        ({"prompt": 3}, "prompt", "of either, got 3"),
        ({"prompt": [[]]}, "prompt[0]", "has no tokens; start it with <|bos|>"),
        ({"prompt": ["a", [1]]}, "prompt[1]", "must be like the first, got [1]"),
        ({"prompt": [1, "a"]}, "prompt[1]", "must be a token's id, got 'a'"),
        ({"prompt": [1, 265]}, "prompt[1]", "there is no token 265; the vocabulary has 265"),
        ({"prompt": [[1], [True]]}, "prompt[1][0]", "must be a token's id, got True"),
        ({"prompt": "a" * 128}, "prompt", "takes 129 tokens; the context holds 128"),
        ({"prompt": "a", "logprobs": 6}, "logprobs", "less than or equal to 5, got 6"),
        ({"prompt": "a", "suffix": "b"}, "suffix", "does not fill gaps; only '' is accepted"),
        ({"prompt": "a", "best_of": 2}, "best_of", "use n; only 1 is accepted, got 2"),
        ({"prompt": "a", "messages": []}, "messages", "there is no such field"),
        (
            {"prompt": "a", "echo": True, "logprobs": 1, "stream": True},
            "stream",
            "a prompt's log-probabilities are not streamed",
        ),
    ],
)
def test_errors_name_the_field_its_value_and_the_rule(service, body, param, message):
    response = call(create_app({"m": service}), ("POST", "/v1/completions", body))[0]
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param)
    assert message in error["message"]
