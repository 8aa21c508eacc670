"""Running the server: what it logs and counts, its limits, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import resource
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from nanochat.server import connections, guard
from nanochat.server.app import create_app
from nanochat.server.connections import create_server
from nanochat.server.listen import AddressOptions, listen, url_of
from nanochat.server.service import EngineService
from nanochat.stages.chat_web import ChatWebConfig, serve
from nanochat.system import config
from tests.engine_helpers import scripted_engine
from tests.server_helpers import CHAT, HELLO, call, error_of, send, serving, wait_for

BODY = {"messages": HELLO}


@pytest.fixture(scope="module")
def service() -> Iterator[EngineService]:
    with serving(scripted_engine({"hi": "Hello!"})) as running:
        yield running


def test_a_request_makes_one_line_of_log_whatever_is_in_it(service):
    lines: list[str] = []
    app = create_app({"m": service}, log=lines.append)
    send(app, "POST", CHAT, json=BODY)
    send(app, "GET", "/a%0Ab%1b[31m")
    send(app, "GET", "/" + "x" * 5000)
    send(app, "GET", "/health")
    send(app, "GET", "/metrics")
    assert len(lines) == 3  # those that monitors repeat are left out unless they fail
    when = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
    assert re.fullmatch(
        when + r"  127\.0\.0\.1  POST /v1/chat/completions  200  \d+ ms  6\+7 tokens", lines[0]
    )
    assert re.fullmatch(when + r"  127\.0\.0\.1  GET /a%0Ab%1B%5B31m  404  \d+ ms", lines[1])
    assert len(lines[2]) < 300


def test_metrics_are_prometheus_text_with_totals_and_latencies_per_model():
    with serving(scripted_engine({"hi": "Hello!"})) as first:
        loading = EngineService(lambda: scripted_engine({}))  # never started: it has no figures
        app = create_app({'a"b': first, "loading": loading})
        for _ in range(2):
            assert send(app, "POST", CHAT, json=BODY).status_code == 200
        send(app, "POST", CHAT, json={})
        send(app, "GET", "/guess/1")
        response = send(app, "GET", "/metrics")
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    lines = response.text.splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    model = '{model_name="a\\"b"}'
    assert values[f"nanochat_prompt_tokens_total{model}"] == "12"
    assert values[f"nanochat_generation_tokens_total{model}"] == "14"
    assert values[f"nanochat_num_requests_running{model}"] == "0"
    assert values[f"nanochat_time_to_first_token_seconds_count{model}"] == "2"
    assert values[f"nanochat_inter_token_latency_seconds_count{model}"] == "12"
    name = "nanochat_e2e_request_latency_seconds_bucket"
    buckets = [int(value) for key, value in values.items() if key.startswith(name)]
    assert buckets == sorted(buckets)
    assert buckets[-1] == 2
    stopped = '{model_name="a\\"b",finished_reason="stop"}'
    assert values[f"nanochat_request_success_total{stopped}"] == "2"
    counted = "nanochat_http_requests_total"
    assert values[f'{counted}{{path="{CHAT}",status="200"}}'] == "2"
    assert values[f'{counted}{{path="{CHAT}",status="400"}}'] == "1"
    assert values[f'{counted}{{path="other",status="404"}}'] == "1"
    kinds = [line.split()[2] for line in lines if line.startswith("# TYPE")]
    assert len(kinds) == len(set(kinds))
    assert "loading" not in response.text


def test_a_client_has_at_most_its_share_of_the_answers_in_flight():
    engine = scripted_engine({"hi": "a" * 40}, delay_s=0.002)
    with serving(engine, max_in_flight=8, max_per_client=2) as service:
        app = create_app({"m": service})
        responses = call(app, *[("POST", CHAT, BODY)] * 3, ("POST", CHAT, {**BODY, "n": 3}))
        assert sorted(r.status_code for r in responses) == [200, 200, 400, 429]
        busy = next(r for r in responses if r.status_code == 429)
        assert "2 of this client's 2 answers are in progress" in busy.json()["error"]["message"]
        assert call(app, ("POST", CHAT, BODY))[0].status_code == 200


def test_one_client_may_have_half_of_the_answers_where_others_can_connect():
    def limit(*args: str) -> int:
        return config.parse(ChatWebConfig, list(args), stage="chat_web").max_per_client

    assert limit() == 64
    assert limit("--host", "0.0.0.0", "--max-in-flight", "9") == 5
    assert limit("--max-in-flight-per-client", "3") == 3


def test_a_body_that_does_not_arrive_is_given_up(service, monkeypatch):
    monkeypatch.setattr(guard, "BODY_S", 0.01)
    lines: list[str] = []
    app = create_app({"m": service}, log=lines.append)
    sent: list[Any] = []

    async def collect(message: Any) -> None:
        sent.append(message)

    async def half(messages: list[Any]) -> None:
        async def receive() -> Any:
            return messages.pop(0) if messages else await asyncio.Event().wait()

        headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": CHAT, "headers": headers}
        scope |= {"query_string": b"", "client": ("10.0.0.9", 1), "server": None}
        await app(scope, receive, collect)

    begun = {"type": "http.request", "body": b"{", "more_body": True}
    asyncio.run(half([begun]))
    assert sent[0]["status"] == 408
    assert "the body took more than" in json.loads(sent[1]["body"])["error"]["message"]
    asyncio.run(half([begun, {"type": "http.disconnect"}]))
    assert "10.0.0.9  POST /v1/chat/completions  499" in lines[1]


@contextlib.contextmanager
def real_server(app: Any) -> Iterator[tuple[str, int]]:
    """The server as the stage runs it, in a thread; yields its address."""
    with listen(AddressOptions(port=0)) as listener:
        server = create_server(app, [], drain_s=0)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            wait_for(lambda: server.started)
            yield listener.getsockname()
        finally:
            server.should_exit = True
            thread.join(10)


HALF_A_HEAD = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
HALF_A_BODY = (
    b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Content-Length: 99\r\n\r\n{"
)


def begin_request(address: tuple[str, int], half: bytes = HALF_A_HEAD) -> socket.socket:
    connection = socket.create_connection(address, timeout=20)
    connection.sendall(half)
    return connection


def closed(connection: socket.socket) -> bool:
    """Wait for the server's next byte, or for its closing the connection."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def test_too_many_half_open_connections_do_not_keep_others_out(service, monkeypatch):
    monkeypatch.setattr(connections, "limits", lambda: (3, 8))
    with real_server(create_app({"m": service})) as address:
        held = [begin_request(address, half) for half in [HALF_A_HEAD, HALF_A_BODY] * 4]
        held.append(begin_request(address))
        assert httpx.get(f"http://127.0.0.1:{address[1]}/health").status_code == 200
        assert all(closed(connection) for connection in held[:6])
        held[8].sendall(b"\r\n")  # the last is still open
        assert held[8].recv(12) == b"HTTP/1.1 200"


def test_a_request_that_is_never_completed_is_given_up(service, monkeypatch):
    monkeypatch.setattr(connections, "HEAD_S", 0.05)
    with real_server(create_app({"m": service})) as address:
        silent = socket.create_connection(address, timeout=20)
        assert closed(silent)
        assert closed(begin_request(address))


def test_a_client_that_does_not_read_is_given_up(monkeypatch):
    monkeypatch.setattr(connections, "STALLED_S", 0.05)
    gave_up = threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": bytes(50_000_000)})
        gave_up.set()

    with real_server(app) as address:
        connection = begin_request(address)
        connection.sendall(b"\r\n")
        assert gave_up.wait(20)


def test_limits_stay_below_the_limit_on_open_files():
    kept, waiting = connections.limits()
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert 0 < kept + 3 * waiting < files


@pytest.mark.parametrize("drain_s", [20.0, 0.0])
def test_sigterm_finishes_the_answers_or_ends_them_with_an_error_event(drain_s, capsys):
    """The whole stage in this process, whose main thread takes the signal as a server's does."""
    assert threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    engine = scripted_engine({"hi": "a" * 60})
    script, go_on = engine.model.script, threading.Event()  # type: ignore[union-attr]

    def waiting(text: list[int]) -> int:
        if len(text) > 20:
            go_on.wait(20 if drain_s else 0.05)
        return script(text)

    engine.model.script = waiting  # type: ignore[union-attr,assignment]
    seen: dict[str, Any] = {}

    def client(url: str) -> None:
        with httpx.stream("POST", url + CHAT, json={**BODY, "stream": True}, timeout=20) as answer:
            texts = answer.iter_text()
            text = next(texts)
            with httpx.Client(base_url=url) as kept_open:
                wait_for(lambda: "content" in text)
                os.kill(os.getpid(), signal.SIGTERM)
                if drain_s:
                    wait_for(lambda: kept_open.get("/health").status_code == 503)
                    seen["new"] = kept_open.post(CHAT, json=BODY)
                    go_on.set()
            seen["text"] = text + "".join(texts)

    cfg = ChatWebConfig(address=AddressOptions(port=0), drain_s=drain_s)
    with listen(cfg.address) as listener:
        url = url_of(cfg.address, listener)

        def load() -> Any:
            thread.start()
            return engine

        def after_start() -> None:
            wait_for(lambda: httpx.get(url + "/health").status_code == 200)
            client(url)

        thread = threading.Thread(target=after_start, daemon=True)
        serve(cfg, listener, {"m": load})  # returns: a process would exit with 0
        thread.join(20)
    *parts, done = events_of(seen["text"])
    assert done == "[DONE]"
    printed = capsys.readouterr().out
    assert "answers in progress: 1, for at most" in printed
    assert f"POST {CHAT}  200" in printed
    if drain_s:
        assert parts[-1]["choices"][0]["finish_reason"] == "stop"
        assert seen["new"].status_code == 503
        assert "the server is stopping" in error_of(seen["new"])["message"]
    else:
        assert parts[-1]["error"]["message"].startswith("the server is stopping")
    assert signal.getsignal(signal.SIGTERM) == before


def events_of(text: str) -> list[Any]:
    """The parsed events of a stream's text, with "[DONE]" left as it is."""
    lines = [x.removeprefix("data: ") for x in text.split("\n\n") if x.startswith("data")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]
