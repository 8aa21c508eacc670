"""The chat in the terminal: messages, /commands, and what a real terminal shows."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from nanochat.engine.sampling import SamplingOptions
from nanochat.stages import chat_cli, chat_commands, chat_view
from nanochat.stages.chat_commands import COMMANDS, Session
from nanochat.stages.chat_session import AnswerOptions, Chat
from nanochat.system import storage, terminal
from tests.engine_helpers import scripted_engine

ROOT = Path(__file__).parent.parent
ANSWERS = {
    "hi": "Hello!",
    "bye": "Farewell!",
    "sum": "It is [python_start]6*7[python_end][output_start]42[output_end]42.",
    "loop": "abc" * 30,
    "escape": "\x1bcbold\x07",
    "two\nlines": "I see.",
    "/etc": "A folder.",
}


@pytest.fixture(autouse=True)
def _plain_surroundings(monkeypatch, tmp_path):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
    for name in ("EDITOR", "VISUAL", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)


def new_session(*, stats: bool = False, **options: Any) -> Session:
    def open_model(path: Path) -> Any:
        raise AssertionError(f"nobody asked for {path}")

    chat = Chat(scripted_engine(ANSWERS), SamplingOptions(), AnswerOptions(**options))
    return Session(chat, "demo", open_model, stats=stats)


def type_lines(monkeypatch, *lines: str | BaseException) -> None:
    """Let `input` return these lines, or raise these errors, and then the end of the input."""
    remaining = list(lines)

    def type_line(prompt: str) -> str:
        line = remaining.pop(0) if remaining else EOFError()
        if isinstance(line, str):
            return line
        raise line

    monkeypatch.setattr("builtins.input", type_line)


def talk(monkeypatch, capsys, *lines: str | BaseException, **options: Any) -> tuple[str, Chat]:
    """Type lines into a chat with the scripted engine; return what it printed."""
    session = new_session(**options)
    type_lines(monkeypatch, *lines)
    chat_cli.chat_loop(session)
    return capsys.readouterr().out, session.chat


def texts(chat: Chat) -> list[str]:
    """The conversation as plain texts."""
    return [
        m["content"] if isinstance(m["content"], str) else "".join(p["text"] for p in m["content"])
        for m in chat.messages
    ]


def test_a_chat_answers_shows_tools_and_keeps_the_conversation(monkeypatch, capsys):
    out, chat = talk(monkeypatch, capsys, "hi", "sum", "/quit", "never read")
    assert out == "Hello!\nIt is [6*7 = 42] 42.\n"
    assert [m["role"] for m in chat.messages] == ["user", "assistant"] * 2
    assert chat.messages[3]["content"] == [
        {"type": "text", "text": "It is "},
        {"type": "python", "text": "6*7"},
        {"type": "python_output", "text": "42"},
        {"type": "text", "text": "42."},
    ]


def test_help_lists_every_command_and_an_unknown_one_points_to_it(monkeypatch, capsys):
    out, _ = talk(monkeypatch, capsys, "/help", "/what", "/etc")
    assert all(re.search(f"^{name} ", out, re.MULTILINE) for name in COMMANDS)
    assert "error: unknown command /what; /help lists the commands\n" in out
    assert "error: unknown command /etc;" in out


@pytest.mark.parametrize(
    ("lines", "sent"),
    [
        (["two\\", "lines"], "two\nlines"),
        (['"""two', "lines", '"""'], "two\nlines"),
        (['"""', "two", 'lines"""'], "two\nlines"),
        (['"""hi"""'], "hi"),
        (['"""/etc"""'], "/etc"),
        ([" /etc"], "/etc"),
        (["two\nlines"], "two\nlines"),  # as readline returns what was pasted
    ],
)
def test_a_message_may_span_lines_or_begin_with_a_slash(monkeypatch, capsys, lines, sent):
    _, chat = talk(monkeypatch, capsys, *lines)
    assert texts(chat) == [sent, ANSWERS[sent]]


def test_control_characters_in_answers_are_escaped(monkeypatch, capsys):
    out, _ = talk(monkeypatch, capsys, "escape")
    assert out == "\\x1bcbold\\x07\n\n"


def test_retry_answers_the_last_message_again_with_other_noise(monkeypatch, capsys):
    out, chat = talk(monkeypatch, capsys, "/retry", "hi", "bye", "/retry", "/regen")
    assert out == "error: there is no message yet\nHello!\nFarewell!\nFarewell!\nFarewell!\n\n"
    assert texts(chat) == ["hi", "Hello!", "bye", "Farewell!"]
    seeds = []
    session = new_session()
    submit = session.chat.engine.submit
    monkeypatch.setattr(
        session.chat.engine, "submit", lambda r: (seeds.append(r.params.seed), submit(r))[1]
    )
    for line in ("hi", "/retry"):
        chat_commands.run_line(session, line)
    assert seeds == [1, 2]


def test_undo_takes_back_whatever_changed_the_conversation_last(monkeypatch, capsys):
    out, chat = talk(monkeypatch, capsys, "hi", "/system Be brief.", "/clear", "/undo", "/undo")
    assert texts(chat) == ["hi", "Hello!"]
    assert chat.system is None
    assert "(undone: /clear; messages of yours now: 1)\n(undone: /system; messages" in out
    out, chat = talk(monkeypatch, capsys, "hi", "/undo", "/undo")
    assert texts(chat) == []
    assert out.endswith("error: there is nothing to undo\n\n")


def test_edit_changes_a_message_and_drops_what_came_after(monkeypatch, capsys):
    lines = ["hi", "bye", "/edit 1", "sum", "/edit", "", "/edit 7", "/edit x"]
    out, chat = talk(monkeypatch, capsys, *lines)
    assert texts(chat) == ["sum", "It is 6*74242."]
    assert "(not changed)\n" in out
    assert "error: there is no message 7; there are 1 to 1\n" in out
    assert "error: use /edit NUMBER, as /show numbers your messages; got 'x'\n" in out


def test_edit_opens_the_editor_with_the_message(monkeypatch, capsys, tmp_path):
    script = tmp_path / "my editor"
    script.write_text('#!/bin/sh\ngrep -q "^hi$" "$2" && echo bye > "$2"\n')
    script.chmod(0o755)
    monkeypatch.setenv("EDITOR", f"'{script}' --wait")
    _, chat = talk(monkeypatch, capsys, "hi", "/edit")
    assert texts(chat) == ["bye", "Farewell!"]
    monkeypatch.setenv("VISUAL", "/no/such/editor")
    out, chat = talk(monkeypatch, capsys, "hi", "/edit")
    assert "error: the editor '/no/such/editor' failed (" in out
    assert texts(chat) == ["hi", "Hello!"]


def test_continue_goes_on_with_an_answer_that_was_cut_off(monkeypatch, capsys):
    lines = ["/continue", "/set max_new_tokens 4", "loop", "/continue", "/set max_new_tokens 512"]
    out, chat = talk(monkeypatch, capsys, *lines, "/continue", "/continue")
    assert "error: there is no answer to go on with\n" in out
    assert "abca [cut off at the token limit; /continue goes on]\nbcab [cut off" in out
    assert chat.messages[1:] == [
        {"role": "assistant", "content": [{"type": "text", "text": "abc" * 30}]}
    ]
    assert out.endswith(" [nothing]\n\n")  # the last one found nothing to add


def test_continue_makes_a_call_again_that_was_cut_off(monkeypatch, capsys):
    lines = ["/set max_new_tokens 8", "sum", "/set max_new_tokens 99", "/continue"]
    out, chat = talk(monkeypatch, capsys, *lines)
    assert "It is [6] [cut off" in out
    assert [part["text"] for part in chat.messages[1]["content"]] == ["It is ", "6*7", "42", "42."]


def test_a_saved_conversation_loads_with_its_system_prompt_and_settings(
    monkeypatch, capsys, tmp_path
):
    file = tmp_path / "chat.json"
    lines = [
        "/set temperature 0.25",
        "/set top_k none",
        "hi",
        "sum",
        "/system Hm.",
        f"/save {file}",
    ]
    out, before = talk(monkeypatch, capsys, *lines)
    assert out.endswith(f"(saved as {file}; /load reads it)\n\n")
    saved = json.loads(file.read_text())
    assert saved["messages"][:2] == [
        {"role": "system", "content": "Hm."},
        {"role": "user", "content": "hi"},
    ]
    out, chat = talk(monkeypatch, capsys, f"/load {file}", f"/save {file}")
    assert (chat.system, texts(chat), chat.settings) == ("Hm.", texts(before), before.settings)
    assert "(system: Hm.)\n1> hi\nHello!\n2> sum\nIt is [6*7 = 42] 42.\n(temperature 0.25  " in out
    assert out.endswith(f"(saved as {file}; /load reads it)\n\n")  # its own file may be replaced


def test_a_conversation_in_openais_form_loads_and_its_last_question_is_answered(
    monkeypatch, capsys, tmp_path
):
    file = tmp_path / "api.json"
    file.write_text('{"messages": [{"role": "user", "content": "hi"}]}')
    out, chat = talk(monkeypatch, capsys, f"/load {file}", "/retry")
    assert "(the last message has no answer; /retry answers it)\nHello!\n" in out
    assert texts(chat) == ["hi", "Hello!"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "is not a readable conversation: it is not a JSON object"),
        ("{", "is not a readable conversation: Expecting property name"),
        ('{"messages": []}', '"messages" must be a list of at least one message, got []'),
        ('{"messages": [{"role": "cat", "content": "x"}]}', "message 1 has role 'cat'"),
        (
            '{"messages": [{"role": "user", "content": "x"}], "settings": {"temperature": -1}}',
            "temperature must be from 0 to 100, got -1.0",
        ),
        (
            '{"messages": [{"role": "user", "content": "x"}], "settings": {"top_k": 3, "a": 1}}',
            "unknown setting 'a'; choose from temperature, top_k, ",
        ),
    ],
)
def test_a_file_that_is_no_conversation_is_named_and_changes_nothing(
    monkeypatch, capsys, tmp_path, content, message
):
    file = tmp_path / "chat.json"
    file.write_text(content)
    out, chat = talk(monkeypatch, capsys, "hi", f"/load {file}")
    assert message in out
    assert out.count("\n") == 3
    assert texts(chat) == ["hi", "Hello!"]
    assert chat.settings == new_session().chat.settings


def test_save_replaces_no_file_that_it_did_not_write(monkeypatch, capsys, tmp_path):
    other = tmp_path / "README.md"
    other.write_text("mine")
    file = tmp_path / "chat.json"
    lines = [f"/save {file}", "hi", f"/save {other}", f"/save {file}", f"/save {file}", "/save"]
    out, _ = talk(monkeypatch, capsys, *lines, f"/save {tmp_path}", f"/load {tmp_path}/no")
    assert out.splitlines() == [
        "error: there is nothing to save yet",
        "Hello!",
        f"error: {other} exists; choose another name, or remove it",
        f"(saved as {file}; /load reads it)",
        f"(saved as {file}; /load reads it)",
        "error: use /save FILE, such as /save chat.json",
        f"error: {tmp_path} exists; choose another name, or remove it",
        f"error: {tmp_path}/no: no such conversation",
        "",
    ]
    assert other.read_text() == "mine"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/set temperature -1", "error: temperature must be from 0 to 100, got -1.0"),
        ("/set temperature hot", "error: temperature must be a number, got 'hot'"),
        ("/set max_new_tokens 0", "error: max_new_tokens must be at least 1, got 0"),
        ("/set warmth 3", "error: unknown setting 'warmth'; choose from temperature, top_k, top_p"),
        ("/set one", "error: use /set NAME VALUE, such as /set temperature 0.5"),
        ("/stats maybe", "error: use /stats on or /stats off, got 'maybe'"),
        ("/model no/such", "error: 'such' is no stage; use one of base, mid, sft, rl"),
        ("/model demo", "error: run 'demo' has no chat_rl or chat_sft or mid_train or base_train"),
        ("/model ..", "error: /model must be a plain name without '/', got '..'"),
        ("/tokens", "error: there are no tokens to show; ask something first"),
        ("/load .", "error: {here} is not a file; name one that /save wrote"),
    ],
)
def test_a_mistake_is_reported_in_a_line_and_the_chat_continues(monkeypatch, capsys, line, message):
    out, _ = talk(monkeypatch, capsys, line, "hi")
    assert out.startswith(message.format(here=Path.cwd()))
    assert out.count("\n") == 3
    assert out.endswith("Hello!\n\n")


def test_model_lists_checkpoints_and_changes_to_one_in_the_conversation(monkeypatch, capsys):
    for stage, step in (("base_train", 3), ("chat_sft", 1), ("chat_sft", 12), ("chat_rl", 5)):
        folder = storage.stage_dir("demo", stage) / f"step_{step:06d}"
        folder.mkdir(parents=True)
        (folder / "meta.json").touch()
    (storage.base_dir() / "runs" / "empty").mkdir()
    session = new_session()
    session.chat.model = "demo/chat_rl step 5"

    def open_model(path: Path) -> tuple[Any, str]:
        name = f"{path.parent.parent.name}/{path.parent.name} step {int(path.name[5:])}"
        return scripted_engine({"bye": f"I am {name}."}), name

    session.open_model = open_model
    type_lines(monkeypatch, "hi", "/model", "/model sft", "bye", "/model demo/base_train", "/retry")
    chat_cli.chat_loop(session)
    assert capsys.readouterr().out.splitlines() == [
        "Hello!",
        "  demo/base_train step 3",
        "  demo/chat_sft step 12",
        "* demo/chat_rl step 5",
        "(model: demo/chat_sft step 12; the conversation stays, /clear starts a new one)",
        "I am demo/chat_sft step 12.",
        "(model: demo/base_train step 3; the conversation stays, /clear starts a new one)",
        "I am demo/base_train step 3.",
        "",
    ]
    assert texts(session.chat)[:3] == ["hi", "Hello!", "bye"]
    for name, step in (("demo", 5), ("demo:rl", 5), ("base", 3), ("chat_sft", 12)):
        chat_commands.run_line(session, f"/model {name}")
        assert session.chat.model.endswith(f" step {step}")
    assert chat_commands.complete("/model ", "demo/chat_s") == ["demo/chat_sft"]


def test_set_lists_every_setting_by_its_name(monkeypatch, capsys):
    out, chat = talk(monkeypatch, capsys, "/set top-k none", "/set nope 1")
    assert out.startswith("(temperature 0.6  top_k none  top_p none")
    assert all(name in out.splitlines()[1] for name in chat.settings)
    assert "max_new_tokens" in chat.settings


def test_the_system_prompt_is_used_shown_and_removed(monkeypatch, capsys):
    lines = ["/system Be brief.", "/system", "hi", "/clear", "/system none", "hi"]
    out, chat = talk(monkeypatch, capsys, *lines)
    assert chat.system is None
    # the scripted engine knows "hi" only without a system prompt before it
    assert out.splitlines() == [
        "(system: Be brief.)",
        "(system: Be brief.)",
        "?",
        "(new conversation)",
        "(system: none)",
        "Hello!",
        "",
    ]


def test_tokens_shows_all_that_the_model_read_and_wrote(monkeypatch, capsys):
    out, _ = talk(monkeypatch, capsys, "hi", "/tokens")
    shown = "".join(re.findall(r"\|(\S+)", out))
    assert shown == (
        "<|bos|><|user_start|>hi<|user_end|><|assistant_start|>Hello!<|assistant_end|>"
    )
    assert "(13 tokens: what the model read and wrote for the last answer)" in out


def test_stats_shows_the_size_of_an_answer(monkeypatch, capsys):
    out, _ = talk(monkeypatch, capsys, "/stats", "hi", "/stats off", "hi")
    pattern = (
        r"\(stats on\)\nHello!\n\(7 tokens, [\d,]+ tokens/s; first token after \d\.\d\d s; "
        r"context 13 of 256 tokens\)\n\(stats off\)\nHello!\n\n"
    )
    assert re.fullmatch(pattern, out), out


def test_logprobs_list_the_tokens_where_there_are_no_colors(monkeypatch, capsys):
    out, _ = talk(monkeypatch, capsys, "hi", logprobs=True)
    rows = out.splitlines()
    assert rows[:2] == ["Hello!", "  prob  rank  token             instead"]
    assert re.match(r"100\.0%     1  'H'               '.*' 0\.0%  ", rows[2])
    assert len(rows) == 10  # each of the 7 tokens, a heading, the answer and the end


def test_a_surprising_token_has_a_background_and_its_line_ends_have_none(monkeypatch):
    monkeypatch.setattr(terminal, "has_colors", lambda stream: True)
    assert chat_view.surprising("sure", 0.9) == "sure"
    assert chat_view.surprising("odd", 0.3) == "\x1b[30;48;5;230modd\x1b[0m"
    assert chat_view.surprising("a\nb", 1e-9) == (
        "\x1b[30;48;5;210ma\x1b[0m\n\x1b[30;48;5;210mb\x1b[0m"
    )


def test_a_conversation_that_no_longer_fits_is_told_once(monkeypatch, capsys):
    lines = ["hi " * 20, "/set max_new_tokens 40", "hi " * 60, "hi " * 30, "/clear", "hi"]
    out, _ = talk(monkeypatch, capsys, *lines)
    told = "(this conversation no longer fits the model's 256 tokens: its beginning is left out;"
    assert out.count(told) == 1
    assert out.index("?\n") < out.index(told)


def test_ctrl_c_stops_the_answer_and_keeps_the_text_so_far(monkeypatch, capsys):
    session = new_session()
    chat = session.chat
    step, steps = chat.engine.step, []

    def interrupted_step() -> list:
        steps.append(1)
        if len(steps) == 6:
            os.kill(os.getpid(), signal.SIGINT)
        return step()

    monkeypatch.setattr(chat.engine, "step", interrupted_step)
    chat_commands.run_line(session, "loop")
    out = capsys.readouterr().out
    assert re.fullmatch(r"abcab?c? \[stopped\]\n", out)
    assert chat.engine.idle
    text = out.removesuffix(" [stopped]\n")
    assert chat.messages[-1]["content"] == [{"type": "text", "text": text}]
    chat_commands.run_line(session, "hi")
    assert capsys.readouterr().out == "Hello!\n"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_answer_stopped_before_its_first_token_changes_nothing(monkeypatch, capsys):
    session = new_session()
    chat_commands.run_line(session, "hi")
    monkeypatch.setattr(
        session.chat.engine, "step", lambda: os.kill(os.getpid(), signal.SIGINT) or []
    )
    chat_commands.run_line(session, "/retry")
    assert capsys.readouterr().out == "Hello!\n [stopped]\n"
    assert texts(session.chat) == ["hi", "Hello!"]


def test_ctrl_c_at_the_prompt_does_not_quit(monkeypatch, capsys):
    out, _ = talk(monkeypatch, capsys, KeyboardInterrupt(), "hi")
    assert out == "  (/quit or Ctrl-D to quit)\nHello!\n\n"


def test_ctrl_c_and_ctrl_d_in_a_command_end_the_command_only(monkeypatch, capsys):
    lines = ["hi", "/edit", KeyboardInterrupt(), "/edit", EOFError(), "bye"]
    out, chat = talk(monkeypatch, capsys, *lines)
    assert out == "Hello!\n\n(interrupted)\n\n(not changed)\nFarewell!\n\n"
    assert texts(chat) == ["hi", "Hello!", "bye", "Farewell!"]


def test_a_second_ctrl_c_ends_the_program(monkeypatch, capsys):
    session = new_session()

    def stuck_step() -> list:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)
        return []

    monkeypatch.setattr(session.chat.engine, "step", stuck_step)
    with pytest.raises(SystemExit) as caught:
        chat_commands.run_line(session, "hi")
    assert caught.value.code == 130
    assert session.chat.engine.idle


@pytest.mark.parametrize("end", [EOFError(), OSError(errno.EIO, "Input/output error")])
def test_a_line_that_is_no_text_does_not_quit_and_a_terminal_that_is_gone_does(
    monkeypatch, capsys, end
):
    bad = UnicodeDecodeError("utf-8", b"caf\xe9", 3, 4, "unexpected end of data")
    out, _ = talk(monkeypatch, capsys, bad, end)
    assert out == "error: this line is not utf-8 text\n\n"


def test_tab_completes_commands_settings_and_files(tmp_path):
    (tmp_path / "chat.json").touch()
    (tmp_path / "chats").mkdir()
    assert chat_commands.complete("", "/re") == ["/retry"]
    assert chat_commands.complete("", "/s") == ["/show", "/save ", "/system ", "/set ", "/stats "]
    assert chat_commands.complete("", "hello") == []
    assert chat_commands.complete("/set ", "max") == ["max_new_tokens "]
    assert chat_commands.complete("/stats ", "o") == ["on", "off"]
    assert chat_commands.complete("/load ", f"{tmp_path}/ch") == [
        f"{tmp_path}/chat.json",
        f"{tmp_path}/chats/",
    ]
    assert chat_commands.complete("/load ", f"{tmp_path}/no/x") == []
    assert chat_commands.complete("hello ", "/re") == []
