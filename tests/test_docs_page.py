"""The API's documentation in a browser: made from the schema, and able to send what it shows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from nanochat.server.access import Access
from nanochat.server.app import create_app
from tests import browser
from tests.engine_helpers import scripted_engine
from tests.server_helpers import CHAT, serving

KEY = "right"


@pytest.fixture(scope="module")
def page() -> Iterator[Any]:
    with (
        browser.chromium() as chromium,
        serving(scripted_engine({"What is 12 times 3?": "36"})) as service,
        browser.serving(create_app({"m": service}, access=Access(keys=(KEY,)))) as url,
    ):
        opened = chromium.new_page(base_url=url, viewport={"width": 320, "height": 700})
        opened.errors = []
        opened.on("pageerror", lambda error: opened.errors.append(str(error)))
        opened.goto("/docs")
        opened.wait_for_selector(".operation >> nth=7")
        yield opened


def test_every_operation_and_field_of_the_schema_is_shown(page):
    schema = page.request.get("/openapi.json").json()
    operations = [
        (method.upper(), path) for path, methods in schema["paths"].items() for method in methods
    ]
    shown = page.locator(".operation h2").all_inner_texts()
    assert [tuple(text.split()) for text in shown] == operations
    chat = page.locator("#post-v-chat-completions")
    fields = schema["components"]["schemas"]["ChatRequest"]["properties"]
    names = chat.locator("> .fields > div > dt").all_inner_texts()
    assert {name.removesuffix("required").strip() for name in names} == set(fields)
    assert names[0].startswith("messages")
    temperature = chat.locator("> .fields > div").filter(has_text="temperature")
    assert "number from 0 to 2" in temperature.inner_text()
    assert "default: see /v1/models" in temperature.inner_text()
    assert page.evaluate("document.documentElement.scrollWidth") == 320


def test_a_request_can_be_tried_with_the_servers_key(page):
    chat = page.locator("#post-v-chat-completions")
    chat.locator(".try > summary").click()
    curl = chat.locator(".try pre").first
    assert f"{CHAT} \\\n  -H 'Content-Type: application/json'" in curl.inner_text()
    chat.get_by_role("button", name="Send").click()
    answer = chat.locator(".try pre").last
    answer.get_by_text("invalid_api_key").wait_for()
    page.get_by_label("API key").fill(KEY)
    page.get_by_label("API key").blur()
    page.locator("#python").get_by_text('model="m"').wait_for()
    assert "-H 'Authorization: Bearer KEY'" in curl.inner_text()
    chat.get_by_role("button", name="Send").click()
    answer.get_by_text('"content": "36"').wait_for()
    assert page.errors == []
