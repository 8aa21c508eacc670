"""The page: conversations, branches, two tabs, what the browser stores, and who can use it.

Each test has a browser context of its own, and so a storage of its own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nanochat.server.app import create_app
from nanochat.server.service import EngineService
from tests.browser import chromium, serving
from tests.engine_helpers import scripted_engine

ANSWERS = {
    "hi": "Hello!",
    "sum": "It is [python_start]6*7[python_end][output_start]42[output_end]forty-two.",
    "story": "# A cat\n\nIt sat on **the mat**.\n\n- one\n\n| a | b |\n|---|---|\n| 1 | 2 |\n",
    "long": "word " * 40,
}
CHAT = "**/v1/chat/completions"
MESSAGE = ".message"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A server of a fast model and a slow one."""
    services = {
        name: EngineService(lambda delay_s=delay_s: scripted_engine(ANSWERS, delay_s=delay_s))
        for name, delay_s in (("tiny:sft", 0.0), ("tiny:rl", 0.02))
    }
    for service in services.values():
        service.start()
    try:
        with serving(create_app(services)) as address:
            yield address
    finally:
        for service in services.values():
            service.stop()


@pytest.fixture
def context(browser, url) -> Iterator[Any]:
    """A browser context whose pages must not report an error."""
    made = browser.new_context(base_url=url, bypass_csp=True, reduced_motion="reduce")
    made.set_default_timeout(60_000)
    errors: list[str] = []
    made.on("weberror", lambda error: errors.append(str(error.error)))
    yield made
    made.close()
    assert errors == []


@pytest.fixture
def page(context) -> Any:
    return opened(context)


def opened(context: Any, path: str = "/") -> Any:
    page = context.new_page()
    page.goto(path)
    connected(page)
    return page


def connected(page: Any) -> None:
    """Wait until the page has found the server; before, nothing can be sent."""
    page.locator("#choose-model-name:not(:empty)").wait_for()


def ask(page: Any, text: str) -> None:
    """Ask and wait for the end of the answer."""
    connected(page)
    page.locator("#input").fill(text)
    page.keyboard.press("Enter")
    idle(page)


def idle(page: Any) -> None:
    page.locator(".message.assistant").last.wait_for()
    page.locator("#send-button[aria-label^=Send]").wait_for()


def shown(page: Any) -> list[str]:
    """The texts of the messages on the screen."""
    return [text.strip() for text in page.locator(f"{MESSAGE} .body").all_inner_texts()]


def titles(page: Any) -> list[str]:
    return page.locator("#list .title").all_inner_texts()


def press(page: Any, name: str) -> None:
    """Click the last button of this accessible name."""
    page.get_by_role("button", name=name, exact=True).last.click()


def menu(page: Any, title: str, entry: str) -> None:
    page.get_by_role("button", name=f"Actions for {title}").click()
    page.get_by_role("menuitem", name=entry).click()


def bodies(page: Any) -> list[Any]:
    """The requests for answers that the page sends from now on."""
    sent: list[Any] = []
    page.on(
        "request",
        lambda r: sent.append(r.post_data_json) if r.url.endswith("chat/completions") else None,
    )
    return sent


def test_conversations_are_kept_listed_and_found(page):
    ask(page, "hi")
    press(page, "New chat")
    assert shown(page) == []
    ask(page, "story")
    assert titles(page) == ["story", "hi"]
    page.reload()
    page.locator(MESSAGE).first.wait_for()
    assert shown(page)[0] == "story"
    page.locator("#search").fill("HELLO")
    page.locator("#list .title", has_text="story").wait_for(state="detached")
    assert titles(page) == ["hi"]
    page.get_by_role("button", name="hi", exact=True).click()
    page.locator(MESSAGE, has_text="Hello!").wait_for()
    assert shown(page) == ["hi", "Hello!"]
    page.locator("#search").fill("")
    page.locator("#list .title", has_text="story").wait_for()
    menu(page, "story", "Rename")
    page.keyboard.type("A tale")
    page.keyboard.press("Enter")
    menu(page, "hi", "Pin")
    assert titles(page) == ["hi", "A tale"]
    menu(page, "hi", "Delete")
    assert (titles(page), shown(page)) == (["A tale"], [])
    press(page, "Undo")
    page.locator(MESSAGE, has_text="Hello!").wait_for()
    assert titles(page) == ["hi", "A tale"]
    page.go_back()
    page.locator("#welcome").wait_for()


def test_answering_again_and_editing_keep_the_old_messages(page):
    ask(page, "hi")
    sent = bodies(page)
    press(page, "Answer again")
    idle(page)
    assert page.locator(".assistant .count").inner_text() == "2/2"
    assert [len(body["messages"]) for body in sent] == [1]
    assert sent[0]["truncate"] == "auto"
    assert isinstance(sent[0]["seed"], int)
    press(page, "Previous version")
    assert page.locator(".assistant .count").inner_text() == "1/2"
    page.get_by_role("button", name="Edit the question").click()
    page.locator(".editing textarea").fill("sum")
    press(page, "Ask")
    page.locator(MESSAGE, has_text="forty-two").wait_for()
    idle(page)
    assert page.locator(".user .count").inner_text() == "2/2"
    assert [part.split() for part in shown(page)[1:]] == [
        ["It", "is", "Calculator", "6*7", "=", "42", "forty-two."]
    ]
    page.locator(".user").get_by_role("button", name="Previous version").click()
    assert shown(page) == ["hi", "Hello!"]
    page.reload()
    page.locator(MESSAGE).first.wait_for()
    assert (shown(page), page.locator(".assistant .count").inner_text()) == (
        ["hi", "Hello!"],
        "1/2",
    )


def test_a_failed_question_can_be_retried_and_is_not_sent_again(page):
    ask(page, "hi")
    sent = bodies(page)
    page.route(CHAT, lambda route: route.fulfill(status=500, json={"error": {"message": "boom"}}))
    ask(page, "sum")
    ask(page, "long")
    assert page.locator(".failure:visible").all_inner_texts() == ["boom\nTry again"] * 2
    assert page.locator(".unsent:visible").count() == 2
    page.unroute(CHAT)
    ask(page, "story")
    page.reload()
    page.locator(".failure:visible").first.wait_for()
    connected(page)
    assert [m["content"] for m in sent[-1]["messages"] if m["role"] == "user"] == ["hi", "story"]
    page.locator(".failure:visible button").first.click()
    page.locator(MESSAGE, has_text="forty-two").wait_for()
    idle(page)
    assert page.locator(".failure:visible").count() == 1


def test_a_reload_in_the_middle_keeps_what_was_received_and_continues_it(page):
    page.evaluate("localStorage.setItem('nanochat.settings', '{\"models\": [\"tiny:rl\"]}')")
    page.reload()
    page.locator("#choose-model-name", has_text="tiny:rl").wait_for()
    page.locator("#input").fill("long")
    page.keyboard.press("Enter")
    page.locator(MESSAGE, has_text="word word word word word word word word word").wait_for()
    page.reload()
    page.locator(".meta", has_text="interrupted").wait_for()
    assert 1 <= shown(page)[1].count("word") < 40
    connected(page)
    sent = bodies(page)
    press(page, "Continue the answer")
    idle(page)
    assert [m["role"] for m in sent[0]["messages"]] == ["user", "assistant"]
    assert shown(page)[1].startswith("word")


def test_two_tabs_see_each_other_and_lose_nothing(context):
    first, second = opened(context), opened(context)
    ask(first, "hi")
    second.locator("#list .title", has_text="hi").click()
    second.locator(MESSAGE, has_text="Hello!").wait_for()
    for turn in range(20):
        for tab in (first, second):
            tab.locator("#input").fill(f"{turn} of tab {'AB'[tab is second]}")
            tab.keyboard.press("Enter")
        for tab in (first, second):
            idle(tab)
    kept = first.evaluate(
        """async () => {
            const { openDatabase } = await import("/chat/database.js");
            const { database } = await openDatabase();
            return (await database.all("nodes")).map(([, node]) => node.content);
        }"""
    )
    asked = {text for text in kept if isinstance(text, str)}
    assert asked == {"hi"} | {f"{turn} of tab {tab}" for turn in range(20) for tab in "AB"}
    assert sum(1 for text in kept if text == [{"type": "text", "text": "?"}]) == 40


def test_two_answers_stand_side_by_side_and_one_goes_on(page):
    page.locator("#choose-model").click()
    page.locator("#compare").check()
    page.keyboard.press("Escape")
    sent = bodies(page)
    ask(page, "hi")
    columns = page.locator(".columns section")
    assert columns.locator(".name").all_inner_texts() == ["tiny:sft", "tiny:rl"]
    assert columns.locator(".body").all_inner_texts() == ["Hello!", "Hello!"]
    assert {body["model"] for body in sent} == {"tiny:sft", "tiny:rl"}
    assert len({body["seed"] for body in sent}) == 1
    page.reload()
    columns.nth(1).get_by_role("button", name="Go on with this answer").click()
    assert page.locator(".assistant .name").all_inner_texts() == ["tiny:rl"]
    assert page.locator(".assistant .count").inner_text() == "2/2"
    connected(page)
    ask(page, "sum")
    assert [m["role"] for m in sent[-1]["messages"]] == ["user", "assistant", "user"]


def test_exports_hold_the_tree_and_imports_are_checked(page, context, tmp_path):
    ask(page, "hi")
    press(page, "Answer again")
    idle(page)
    ask(page, "story")
    saved = {}
    for entry, name in (("Export as JSON", "hi.json"), ("Export as Markdown", "hi.md")):
        with page.expect_download() as download:
            menu(page, "hi", entry)
        assert download.value.suggested_filename == name
        saved[name] = tmp_path / name
        download.value.save_as(saved[name])
    assert (
        saved["hi.md"]
        .read_text("utf-8")
        .startswith("# hi\n\n## You\n\nhi\n\n## tiny:sft\n\nHello!")
    )
    content = json.loads(saved["hi.json"].read_text("utf-8"))
    assert (content["format"], content["version"]) == ("nanochat.conversations", 1)
    assert len(content["conversations"][0]["nodes"]) == 5
    other = context.browser.new_context(base_url=page.url.split("#")[0], bypass_csp=True)
    fresh = opened(other)
    rubbish = [
        ("x", "The file is not JSON"),
        ("{}", "The file is not an export of this page"),
        ('{"format": "nanochat.conversations", "version": 2}', "version 2 of the format"),
        ('{"format": "nanochat.conversations", "version": 1}', "no list of conversations"),
        (
            '{"format": "nanochat.conversations", "version": 1, "conversations": [5]}',
            "no conversation",
        ),
    ]
    for text, reason in rubbish:
        (tmp_path / "rubbish.json").write_text(text)
        fresh.locator("#import-file").set_input_files(tmp_path / "rubbish.json")
        fresh.locator(".notice", has_text=reason).wait_for()
    content["conversations"][0]["nodes"].append({"id": 5})
    saved["hi.json"].write_text(json.dumps(content))
    for _ in range(2):
        fresh.locator("#import-file").set_input_files(saved["hi.json"])
        fresh.locator("#toast", has_text="1 of its entries could not be read").wait_for()
    assert titles(fresh) == ["hi"]
    fresh.locator("#list .title").click()
    fresh.locator(MESSAGE).first.wait_for()
    assert shown(fresh) == shown(page)
    assert fresh.locator(".count:visible").all_inner_texts() == ["2/2"]
    other.close()


CHATS = ["5", '{"a":1}', "[1]", '[{"role":"assistant","content":null}]', "{", '"x"']
SETTINGS = ['"x"', "[]", '{"temperature":"hot","models":5,"system":[]}', "null", "{", "5"]
GOOD = {
    "id": "a",
    "conversation": "c",
    "parent": None,
    "created": 1,
    "role": "user",
    "content": "old",
}
RECORD = {"id": "c", "title": "kept", "created": 1}
STORED: list[tuple[list[Any], list[Any]]] = [
    ([{"id": "c"}, {"id": 5, "created": "now"}], [{**GOOD, "parent": "gone"}]),
    ([{**RECORD, "active": {"root": 7, "a": ["b"]}}], [GOOD, {**GOOD, "id": "b", "content": 5}]),
    ([RECORD], [{**GOOD, "parent": "b"}, {**GOOD, "id": "b", "parent": "a"}, {"id": "x"}]),
    ([{**RECORD, "title": {}, "active": 5}], [{**GOOD, "id": 1}, GOOD]),
    ([], [{**GOOD, "role": "assistant", "content": [{"type": "picture"}]}, {**GOOD, "id": "d"}]),
]
FILL = """async ([records, nodes]) => {
    const open = indexedDB.open("nanochat", 1);
    await new Promise((done) => {
        open.onupgradeneeded = () => {
            open.result.createObjectStore("conversations", { keyPath: "id" });
            const nodes = open.result.createObjectStore("nodes", { keyPath: "id" });
            nodes.createIndex("conversation", "conversation");
            open.result.createObjectStore("set_aside", { autoIncrement: true });
        };
        open.onsuccess = done;
    });
    const work = open.result.transaction(["conversations", "nodes"], "readwrite");
    for (const value of records) work.objectStore("conversations").put(value);
    for (const value of nodes) work.objectStore("nodes").put(value);
    await new Promise((done) => { work.oncomplete = done; });
    open.result.close();
}"""


def test_unreadable_storage_is_set_aside_and_the_page_works(context):
    page = context.new_page()
    page.goto("/icon.svg")
    for chat, settings in zip(CHATS, SETTINGS, strict=True):
        for key, value in (("chat", chat), ("settings", settings), ("theme", settings)):
            page.evaluate("(pair) => localStorage.setItem(...pair)", [f"nanochat.{key}", value])
        page.goto("/")
        connected(page)
        page.locator(".notice", has_text="set aside").wait_for()
        assert page.evaluate("localStorage.getItem('nanochat.chat')") is None
    ask(page, "hi")
    with page.expect_download() as download:
        press(page, "Download it")
    values = json.loads(Path(download.value.path()).read_text("utf-8"))["values"]
    assert [value["value"] for value in values] == CHATS


@pytest.mark.parametrize("stored", STORED)
def test_unreadable_records_leave_the_others_readable(context, stored):
    page = context.new_page()
    page.goto("/icon.svg")
    page.evaluate(FILL, stored)
    page.goto("/#c")
    page.locator(".notice", has_text="set aside").wait_for()
    page.locator(MESSAGE, has_text="old").first.wait_for()
    connected(page)
    ask(page, "hi")
    assert shown(page)[-2:] == ["hi", "Hello!"]


def test_other_databases_and_refused_storage_do_not_stop_the_page(context):
    page = context.new_page()
    page.goto("/icon.svg")
    page.evaluate(
        """() => new Promise((done) => {
            const open = indexedDB.open("nanochat", 7);
            open.onsuccess = () => { open.result.close(); done(); };
        })"""
    )
    page.goto("/")
    page.locator(".notice", has_text="newer version").wait_for()
    ask(page, "hi")
    page.reload()
    page.locator(MESSAGE, has_text="Hello!").wait_for()
    refused = context.new_page()
    refused.add_init_script(
        "Object.defineProperty(window, 'indexedDB', { get() { throw new Error('no'); } });"
        "Object.defineProperty(window, 'localStorage', { get() { throw new Error('no'); } });"
    )
    refused.goto("/")
    refused.locator(".notice", has_text="does not let this page store").wait_for()
    ask(refused, "hi")
    assert shown(refused) == ["hi", "Hello!"]


def test_an_old_versions_conversation_is_taken_over(context):
    page = context.new_page()
    page.goto("/icon.svg")
    old = [
        {"role": "user", "content": "What?"},
        {"role": "assistant", "content": [{"type": "text", "text": "That."}], "note": "2 tokens"},
    ]
    page.evaluate("(text) => localStorage.setItem('nanochat.chat', text)", json.dumps(old))
    page.goto("/")
    page.locator("#list .title", has_text="What?").click()
    page.locator(MESSAGE).first.wait_for()
    assert shown(page) == ["What?", "That."]
    assert page.locator(".notice").count() == 0


def test_answers_that_cannot_be_drawn_are_shown_as_text(context):
    page = context.new_page()
    throwing = "export const markdown = null; export function markdownView() {"
    throwing += (
        "return { element: document.createElement('p'), update() { throw new Error('deep'); } }; }"
    )
    page.route("**/markdown.js", lambda r: r.fulfill(body=throwing, content_type="text/javascript"))
    page.goto("/")
    connected(page)
    ask(page, "story")
    assert shown(page)[1] == ANSWERS["story"].strip()


def test_the_raw_text_of_an_answer_can_be_seen(page):
    ask(page, "sum")
    press(page, "Show the raw text")
    assert shown(page)[1] == (
        "It is <|python_start|>6*7<|python_end|><|output_start|>42<|output_end|>forty-two."
    )


def test_an_answer_is_seen_as_tokens_and_branches_from_an_alternative(page, tmp_path):
    rows = [
        [0, ord(token), token, -0.1, 1, [[ord(token), token, -0.1], [ord(other), other, -3]], None]
        for token, other in ("IA", "tn", " _")
    ]
    answer = {"role": "assistant", "content": "It ", "model": "tiny:sft", "logprobs": rows}
    nodes = [
        {"id": "q", "parent": None, "created": 1, "role": "user", "content": "sum"},
        {"id": "a", "parent": "q", "created": 2, "seed": 7, **answer},
    ]
    file = {"format": "nanochat.conversations", "version": 1}
    file["conversations"] = [{"id": "c", "title": "sum", "created": 1, "nodes": nodes}]
    (tmp_path / "c.json").write_text(json.dumps(file))
    page.locator("#import-file").set_input_files(tmp_path / "c.json")
    page.locator(MESSAGE).first.wait_for()
    press(page, "Show the tokens' probabilities")
    tokens = page.locator(".token-text .token")
    tokens.nth(1).click()
    sent = bodies(page)
    page.locator(".token-card button").click()
    page.locator(MESSAGE, has_text="In is").wait_for()
    idle(page)
    prefix = {"role": "assistant", "content": [{"type": "text", "text": "In"}]}
    assert (sent[0]["messages"][-1], sent[0]["seed"]) == (prefix, 7)
    assert page.locator(".assistant .count").inner_text() == "2/2"
    press(page, "Show the tokens' probabilities")
    tokens.nth(4).wait_for()
    assert "".join(tokens.all_inner_texts()[:5]) == "In␣is"  # the prefix has its probabilities
    press(page, "Previous version")
    assert tokens.all_inner_texts() == ["I", "t", "␣"]
    press(page, "Next version")
    press(page, "Show the exact prompt")
    page.locator(".prompt-share").wait_for()
    chips = [chip.split()[0] for chip in page.locator(".chip").all_inner_texts()]
    assert chips[-3:] == ["<|assistant_start|>", "I", "n"]


def test_a_file_of_the_terminals_save_is_opened(page, tmp_path):
    called = [{"type": "python", "text": "6*7"}, {"type": "python_output", "text": "42"}]
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "sum"},
        {"role": "assistant", "content": [*called, {"type": "text", "text": "42."}]},
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
        {"role": "assistant", "content": "7."},
        {"role": "tool", "content": "lost"},
    ]
    file = {"messages": messages, "settings": {"temperature": 0.5}, "model": "tiny:rl"}
    (tmp_path / "chat.json").write_text(json.dumps(file))
    page.locator("#import-file").set_input_files(tmp_path / "chat.json")
    page.locator("#toast", has_text="1 of its entries could not be read").wait_for()
    assert [text.split() for text in shown(page)] == [
        ["sum"],
        ["Calculator", "6*7", "=", "42", "42."],  # no list of one item
        ["hi"],
        ["7."],
    ]
    press(page, "New chat")
    page.locator("#import-file").set_input_files(tmp_path / "chat.json")
    page.locator(MESSAGE).first.wait_for()
    assert titles(page) == ["sum"]
    with page.expect_request("**/tokenize") as request:
        press(page, "Show the exact prompt")
    assert request.value.post_data_json["model"] == "tiny:rl"
    assert request.value.post_data_json["messages"][0] == messages[0]


def test_an_empty_answer_beside_others_does_not_lose_the_question(page, tmp_path):
    answer = {"parent": "q", "role": "assistant", "group": "g"}
    nodes = [
        {"id": "q", "parent": None, "created": 1, "role": "user", "content": "hi"},
        {"id": "a", "created": 2, "content": "", "model": "tiny:sft", **answer},
        {"id": "b", "created": 3, "content": "Hello.", "model": "tiny:rl", **answer},
    ]
    record = {"id": "c", "title": "hi", "created": 1, "active": {"q": "a"}, "nodes": nodes}
    file = {"format": "nanochat.conversations", "version": 1, "conversations": [record]}
    (tmp_path / "c.json").write_text(json.dumps(file))
    page.locator("#import-file").set_input_files(tmp_path / "c.json")
    page.locator(".columns section").nth(1).wait_for()
    assert page.locator(".unsent:visible").count() == 0
    sent = bodies(page)
    ask(page, "sum")
    assert [m["role"] for m in sent[0]["messages"]] == ["user", "assistant", "user"]
    page.reload()
    page.locator(MESSAGE, has_text="forty-two").wait_for()
    assert shown(page)[:2] == ["hi", "Hello."]


def test_the_exact_prompt_of_an_answer_is_shown(page):
    ask(page, "hi")
    press(page, "Show the exact prompt")
    page.locator(".prompt-share").wait_for()
    chips = [chip.split() for chip in page.locator(".chip").all_inner_texts()]
    marks = ["<|bos|>", "<|user_start|>", "<|user_end|>", "<|assistant_start|>"]
    assert [text for text, _ in chips if text.startswith("<|")] == marks
    assert page.inner_text(".prompt-share").startswith(f"{len(chips)} tokens, ")


def test_what_is_pressed_before_the_server_answers_is_kept(page):
    ask(page, "hi")
    page.route("**/v1/models", lambda route: route.fulfill(status=503, json={}))
    page.reload()
    page.locator(MESSAGE).first.wait_for()
    press(page, "Answer again")
    page.get_by_text("The server has not answered yet.").wait_for()
    page.get_by_role("button", name="Edit the question").click()
    page.locator(".editing textarea").fill("sum")
    press(page, "Ask")
    assert (shown(page), page.locator(".count:visible").count()) == (["Hello!"], 0)
    page.unroute("**/v1/models")
    page.locator("#choose-model-name:not(:empty)").wait_for()  # it asks again each second
    press(page, "Ask")
    page.locator(MESSAGE, has_text="forty-two").wait_for()
    idle(page)
    assert page.locator(".user .count").inner_text() == "2/2"


def test_a_server_with_a_key_is_asked_with_it(context):
    def guarded(route: Any) -> None:
        if route.request.headers.get("authorization") == "Bearer secret":
            route.continue_()
        else:
            error = {"message": "no", "code": "invalid_api_key"}
            route.fulfill(status=401, json={"error": error})

    context.route("**/v1/**", guarded)
    page = context.new_page()
    page.goto("/")
    page.get_by_label("The server asks for its API key").fill("wrong")
    page.keyboard.press("Enter")
    page.get_by_text("does not take this key").wait_for()
    page.get_by_label("The server asks for its API key").fill("secret")
    page.keyboard.press("Enter")
    connected(page)
    ask(page, "hi")
    assert shown(opened(context, page.url)) == ["hi", "Hello!"]


def test_dropped_messages_and_the_context_in_use_are_shown(page):
    for _ in range(2):
        ask(page, "long")
    assert page.locator(".dropped:visible").all_inner_texts() == [
        "The first 2 messages no longer fit and were not sent."
    ]
    assert re.fullmatch(r"\d+ of 256 tokens", page.locator("#context-text").inner_text())
    used = int(page.locator("#context-text").inner_text().split()[0])
    page.locator("#input").fill("hello")  # five tokens more
    page.locator("#context-text", has_text=f"{used + 5} of 256 tokens").wait_for()


def test_nothing_that_the_page_does_is_against_its_security_policy(browser, url):
    strict = browser.new_context(base_url=url)
    said: list[str] = []
    strict.on("console", lambda message: said.append(message.text))
    page = opened(strict)
    ask(page, "story")
    press(page, "Show the tokens' probabilities")
    page.locator(".token-text .token").first.click()
    press(page, "Show the exact prompt")
    page.locator(".prompt-share").wait_for()
    strict.close()
    assert said == []


def test_the_keyboard_is_enough(page):
    page.keyboard.type("hi")  # the box has the focus
    page.keyboard.press("Enter")
    idle(page)
    tab_to(page, lambda name: name == "Answer again")
    page.keyboard.press("Enter")
    idle(page)
    tab_to(page, lambda name: name == "Previous version")
    page.keyboard.press("Enter")
    assert page.locator(".assistant .count").inner_text() == "1/2"
    assert page.evaluate("document.activeElement.ariaLabel") == "Next version"
    tab_to(page, lambda name: name == "Actions for hi")
    page.keyboard.press("Enter")
    for _ in range(4):
        page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    assert titles(page) == []
    tab_to(page, lambda name: name == "Undo")
    page.keyboard.press("Enter")
    assert titles(page) == ["hi"]
    page.keyboard.press("Control+k")
    assert page.evaluate("document.activeElement.id") == "search"


def tab_to(page: Any, wanted: Callable[[str], bool]) -> None:
    for _ in range(60):
        page.keyboard.press("Tab")
        name = page.evaluate(
            "document.activeElement.ariaLabel ?? document.activeElement.textContent"
        )
        if wanted(name):
            return
    raise AssertionError("the Tab key does not reach it")


def test_axe_finds_nothing_at_any_width_in_light_and_dark(page):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    ask(page, "story")
    ask(page, "sum")
    page.locator("#choose-model").click()
    page.locator("#compare").check()
    page.keyboard.press("Escape")
    ask(page, "hi")
    found = []
    for width in (320, 390, 1280):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            found += problems(axe, page, f"chat {width} {scheme}")
            if width == 390:
                page.locator("#toggle-sidebar").click()
                found += problems(axe, page, f"drawer {scheme}")
                page.keyboard.press("Escape")
            if width == 320:
                page.locator("#open-settings").click()
                found += problems(axe, page, f"settings {scheme}")
                page.keyboard.press("Escape")
    assert found == []


def problems(axe: Any, page: Any, where: str) -> list[str]:
    violations = axe.run(page).response["violations"]
    return [f"{where}: {v['id']} {v['nodes'][0]['html'][:200]}" for v in violations]
