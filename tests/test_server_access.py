"""Whom the server answers: host names, pages of other origins, kinds of bodies, API keys."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from nanochat.server.access import Access
from nanochat.server.app import create_app
from nanochat.server.listen import AddressOptions
from nanochat.server.service import EngineService
from nanochat.system import config
from nanochat.system.errors import ConfigError
from tests.engine_helpers import scripted_engine
from tests.server_helpers import CHAT, HELLO, error_of, send, serving

BODY = {"messages": HELLO}


@pytest.fixture(scope="module")
def service() -> Iterator[EngineService]:
    with serving(scripted_engine({"hi": "Hello!"})) as running:
        yield running


def access(*args: str) -> Access:
    return config.parse(AddressOptions, list(args), stage="chat_web").access()


@pytest.mark.parametrize(
    "host",
    "localhost LOCALHOST:8000 localhost. 127.0.0.1:80 127.0.0.2 [::1]:8000 [::1] box.lan".split(),
)
def test_this_machine_and_allowed_names_may_be_used_in_a_host_header(service, host):
    app = create_app({"m": service}, access=access("--allowed-host", "box.lan"))
    assert send(app, "GET", "/health", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "", "localhost:evil.com", "[localhost", "1.2.3.4"]
)
def test_requests_for_other_host_names_are_rejected(service, host):
    app = create_app({"m": service}, access=access())
    response = send(app, "GET", "/health", headers={"host": host})
    assert response.status_code == 403
    assert error_of(response) == {
        "message": f"host {host!r} is not allowed; use localhost, or start the server with "
        "--allowed-host NAME",
        "type": "permission_error",
        "param": None,
        "code": "host_not_allowed",
    }
    assert response.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ({"content-type": "text/plain"}, "Content-Type is 'text/plain'"),
        ({"content-type": "application/x-www-form-urlencoded"}, "x-www-form-urlencoded'"),
        ({}, "Content-Type is missing"),
    ],
)
def test_a_body_must_be_declared_as_json(service, kind, said):
    app = create_app({"m": service})
    response = send(app, "POST", CHAT, content=json.dumps(BODY), headers=kind)
    assert response.status_code == 415
    assert said in error_of(response)["message"]
    assert "curl: -H 'Content-Type: application/json'" in error_of(response)["message"]
    charset = {"content-type": "application/json; charset=utf-8"}
    answer = send(app, "POST", CHAT, content=json.dumps(BODY), headers=charset)
    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"origin": "http://localhost"}, 200),
        ({"origin": "HTTPS://Friend.example"}, 200),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "http://localhost:3000"}, 403),
        ({"origin": "null"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-origin"}, 200),
    ],
)
def test_pages_of_other_origins_cannot_make_the_model_work(service, headers, status):
    app = create_app({"m": service}, access=access("--cors-origin", "https://friend.example"))
    response = send(app, "POST", CHAT, json=BODY, headers=headers)
    assert response.status_code == status
    if status == 403:
        assert error_of(response)["code"] == "origin_not_allowed"
        assert "access-control-allow-origin" not in response.headers


def test_an_allowed_origin_may_ask_before_and_read_the_answer(service):
    app = create_app(
        {"m": service}, access=access("--cors-origin", "https://a.example", "--api-key", "k")
    )
    asked = {
        "origin": "https://a.example",
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type,x-stainless-os",
    }
    preflight = send(app, "OPTIONS", CHAT, headers=asked)
    assert preflight.status_code == 204
    assert preflight.headers["access-control-allow-origin"] == "https://a.example"
    assert preflight.headers["access-control-allow-headers"].endswith("x-stainless-os")
    assert "POST" in preflight.headers["access-control-allow-methods"]
    key = {"authorization": "Bearer k", "origin": "https://a.example"}
    answer = send(app, "POST", CHAT, json=BODY, headers=key)
    assert answer.headers["access-control-allow-origin"] == "https://a.example"
    assert answer.headers["vary"] == "origin"
    foreign = send(app, "OPTIONS", CHAT, headers={**asked, "origin": "https://b.example"})
    assert foreign.status_code == 403
    everybody = create_app({"m": service}, access=access("--cors-origin", "*"))
    opened = send(everybody, "POST", CHAT, json=BODY, headers={"origin": "null"})
    assert opened.headers["access-control-allow-origin"] == "null"


def test_a_key_is_asked_for_everywhere_but_on_the_pages_and_health(service, monkeypatch):
    monkeypatch.setenv("NANOCHAT_API_KEY", "from-environment")
    app = create_app({"m": service}, access=access("--api-key", "one", "--api-key", "two"))
    for path in ("/", "/health", "/chat/app.js", "/docs", "/openapi.json"):
        assert send(app, "GET", path).status_code == 200, path
    for path in (
        "/v1/models",
        "/metrics",
        "/runs/api",
        "/nothing",
        "/v1/%2e%2e/chat/app.js",
    ):
        assert send(app, "GET", path).status_code == 401, path
    wrong = {"authorization": "Bearer three"}
    for headers, message in (
        ({}, "this server asks for an API key; send the header 'Authorization: Bearer KEY'"),
        (wrong, "this is not an API key of this server; send the header"),
        ({"authorization": "Basic one"}, "not an API key"),
    ):
        refused = send(app, "POST", CHAT, json=BODY, headers=headers)
        assert refused.status_code == 401
        assert refused.headers["www-authenticate"] == "Bearer"
        assert error_of(refused)["code"] == "invalid_api_key"
        assert message in error_of(refused)["message"]
    for key in ("one", "two", "from-environment"):
        right = {"authorization": f"Bearer {key}"}
        assert send(app, "POST", CHAT, json=BODY, headers=right).status_code == 200
    cookie = {"cookie": "theme=dark; nanochat-key=two"}
    assert send(app, "GET", "/v1/models", headers=cookie).status_code == 200


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--host", "0.0.0.0"], "--host 0.0.0.0 lets other machines in; set --api-key"),
        (["--host", "::"], "or --no-api-key to let them in without one"),
        (["--api-key", "x", "--no-api-key"], "--no-api-key contradicts --api-key"),
        (["--api-key", "two words"], "an API key is one word of ASCII characters"),
        (["--cors-origin", "a.example"], "--cors-origin must be like https://example.org"),
        (["--cors-origin", "https://a.example/"], "got 'https://a.example/'"),
        (["--allowed-host", "bücher.example"], "--allowed-host must be as browsers send it, xn--"),
        (["--allowed-host", "a.example:80"], "--allowed-host must be a name without a port"),
    ],
)
def test_options_that_leave_in_doubt_who_may_enter_are_refused(args, message):
    with pytest.raises(ConfigError, match=message):
        access(*args)
    assert access("--host", "127.0.0.2").hosts == ()
    assert access("--host", "0.0.0.0", "--no-api-key").hosts is None
