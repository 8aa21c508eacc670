"""The chat in the terminal, sampling from the command line, and starting the chat server."""

from __future__ import annotations

import errno
import io
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from nanochat import checkpoint_manager
from nanochat.stages import chat_cli, chat_web, sample
from nanochat.system import storage
from nanochat.system.errors import CheckpointError, ConfigError
from tests.engine_helpers import TOKENIZER, random_model, scripted_engine

ROOT = Path(__file__).parent.parent
ANSWERS = {
    "hi": "Hello!",
    "sum": "It is [python_start]6*7[python_end][output_start]42[output_end]42.",
    "loop": "abc" * 30,
    "escape": "\x1bcbold\x07",
    "two\nlines": "I see.",
}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A base folder with a run that has a base and a chat checkpoint."""
    folder = tmp_path_factory.mktemp("base")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NANOCHAT_BASE_DIR", str(folder))
        for stage, seed in (("base_train", 1), ("chat_sft", 2)):
            model = random_model(seed)
            checkpoint_manager.save(
                storage.stage_dir("demo", stage),
                7,
                weights=checkpoint_manager.copy_of_weights(model),
                config=model.config,
                tokenizer_=TOKENIZER,
                optimizer_state={},
                state={},
            )
    return folder


def run_script(base: Path, *args: str, text: str | None = None) -> subprocess.CompletedProcess:
    environment = {**os.environ, "NANOCHAT_BASE_DIR": str(base), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", *args, "--dtype", "float32", "--threads", "1"],
        cwd=ROOT,
        env=environment,
        input=text,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=120,
    )


def talk(monkeypatch, capsys, *lines: str, **options) -> tuple[str, chat_cli.Chat]:
    """Type lines into a chat with the scripted engine; return what it printed."""
    monkeypatch.setenv("NANOCHAT_BASE_DIR", "/nonexistent")
    chat = chat_cli.Chat(scripted_engine(ANSWERS), chat_cli.ChatCliConfig(**options))
    remaining = list(lines)

    def type_line(prompt: str) -> str:
        if not remaining:
            raise EOFError
        return remaining.pop(0)

    monkeypatch.setattr("builtins.input", type_line)
    chat_cli.chat_loop(chat)
    return capsys.readouterr().out, chat


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


def test_commands_clear_regenerate_and_set(monkeypatch, capsys):
    lines = ["hi", "/clear", "/regen", "hi", "/regen", "/set temperature 0.25", "/set top_k none"]
    out, chat = talk(monkeypatch, capsys, *lines, "/set max_new_tokens 3", "hi", "/help", "/what")
    assert out.count("Hello!\n") == 3
    assert "(no message to answer again)" in out
    assert "Hel [cut off at the token limit]" in out
    assert "temperature 0.25  top_k none  top_p none  max_new_tokens 3" in out
    assert "/regen             answer the last message again" in out
    assert "unknown command /what; /help lists the commands" in out
    assert chat.sampling.temperature == 0.25
    assert len(chat.messages) == 4


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/set temperature -1", "--temperature must be from 0 to 100, got -1.0"),
        ("/set temperature hot", "--temperature must be a number, got 'hot'"),
        ("/set max_new_tokens 0", "--max-new-tokens must be at least 1, got 0"),
        ("/set warmth 3", "'warmth'; choose from temperature, top_k, top_p, max_new_tokens"),
        ("/set one", "use /set NAME VALUE"),
    ],
)
def test_an_invalid_option_is_reported_and_the_chat_continues(monkeypatch, capsys, line, message):
    out, _ = talk(monkeypatch, capsys, line, "hi")
    assert message in out
    assert out.endswith("Hello!\n\n")


def test_the_system_prompt_is_used_and_removed(monkeypatch, capsys):
    out, chat = talk(monkeypatch, capsys, "/system Be brief.", "hi", "/system", "hi")
    assert chat.system is None
    # the scripted engine knows "hi" only without a system prompt before it
    assert out.startswith("(system: Be brief.)\n?\n(system: none)\n")


def test_messages_can_span_lines_and_control_characters_in_answers_are_escaped(monkeypatch, capsys):
    out, _ = talk(monkeypatch, capsys, "two\\", "lines", "/clear", "escape")
    assert out.startswith("I see.\n")
    assert r"\x1bcbold\x07" in out
    assert "\x1b" not in out


def test_ctrl_c_stops_the_answer_and_keeps_the_chat(monkeypatch, capsys):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", "/nonexistent")
    chat = chat_cli.Chat(scripted_engine(ANSWERS), chat_cli.ChatCliConfig())
    step, steps = chat.engine.step, []

    def interrupted_step() -> list:
        steps.append(1)
        if len(steps) == 6:
            os.kill(os.getpid(), signal.SIGINT)
        return step()

    monkeypatch.setattr(chat.engine, "step", interrupted_step)
    chat_cli.answer(chat, "loop")
    out = capsys.readouterr().out
    assert re.fullmatch(r"abcab?c? \[stopped\]\n", out)
    assert chat.engine.idle
    text = out.removesuffix(" [stopped]\n")
    assert chat.messages[-1]["content"] == [{"type": "text", "text": text}]
    chat_cli.answer(chat, "hi")
    assert capsys.readouterr().out == "Hello!\n"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_at_the_prompt_does_not_quit(monkeypatch, capsys):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", "/nonexistent")
    chat = chat_cli.Chat(scripted_engine(ANSWERS), chat_cli.ChatCliConfig())
    results = iter([KeyboardInterrupt, "hi", EOFError])

    def type_line(prompt: str) -> str:
        result = next(results)
        if isinstance(result, str):
            return result
        raise result

    monkeypatch.setattr("builtins.input", type_line)
    chat_cli.chat_loop(chat)
    assert capsys.readouterr().out == "  (/quit or Ctrl-D to quit)\nHello!\n\n"


@pytest.mark.parametrize("end", [EOFError(), OSError(errno.EIO, "Input/output error")])
def test_a_line_that_is_no_text_does_not_quit_and_a_terminal_that_is_gone_does(
    monkeypatch, capsys, end
):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", "/nonexistent")
    chat = chat_cli.Chat(scripted_engine(ANSWERS), chat_cli.ChatCliConfig())
    lines = iter([UnicodeDecodeError("utf-8", b"caf\xe9", 3, 4, "unexpected end of data"), end])

    def type_line(prompt: str) -> str:
        raise next(lines)

    monkeypatch.setattr("builtins.input", type_line)
    chat_cli.chat_loop(chat)
    assert capsys.readouterr().out == "error: this line is not utf-8 text\n\n"


@pytest.mark.slow
def test_one_shot_prints_the_answer_only_from_a_flag_or_from_stdin(base, monkeypatch, capsys):
    args = ["--run", "demo", "--temperature", "0", "--max-new-tokens", "9"]
    pipe = run_script(base, "scripts.chat_cli", *args, text="What?\n")
    assert (pipe.returncode, pipe.stderr) == (0, "")
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(base))
    args += ["--dtype", "float32", "--threads", "1"]
    chat_cli.main([*args, "-p", "What?"])
    answer = capsys.readouterr().out
    assert pipe.stdout == answer != "\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(" \n"))
    with pytest.raises(ConfigError, match="stdin is empty; pipe a question in, or use --prompt"):
        chat_cli.main(args)


def test_sample_continues_a_prompt_with_a_base_model_reproducibly(base, monkeypatch, capsys):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(base))
    args = ["--run", "demo", "--stage", "base_train", "--prompt", "Once", "--num-samples", "3"]
    args += ["--max-new-tokens", "12", "--dtype", "float32", "--threads", "1", "--temperature"]
    outs = []
    for temperature, seed in (("1", "1"), ("1", "1"), ("1", "2"), ("0", "1")):
        sample.main([*args, temperature, "--seed", seed])
        outs.append(capsys.readouterr().out)
    assert outs[0] == outs[1] != outs[2]
    stage = args.index("--stage")
    sample.main([*args[:stage], *args[stage + 2 :], "1", "--seed", "1"])
    assert capsys.readouterr().out == outs[0]  # without --stage, sample prefers the base model
    texts = re.split(r"--- \d\n", outs[0])[1:]
    assert len(set(texts)) == 3
    assert all(text.startswith("Once") for text in texts)
    assert len(set(re.split(r"--- \d\n", outs[3])[1:])) == 1
    sample.main(["--run", "demo", "--max-new-tokens", "5", "--dtype", "float32"])
    assert "---" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("main", "args", "error", "message"),
    [
        (sample.main, ["--run", "none"], CheckpointError, "nanochat base_train --run none"),
        (chat_cli.main, ["--run", "none"], CheckpointError, "has no chat_rl or chat_sft or mid"),
        (chat_web.main, ["--run", "none"], CheckpointError, "in {base}/runs/none; train one with"),
        (sample.main, ["--checkpoint", "/no/where"], CheckpointError, "no such folder"),
        (sample.main, ["--checkpoint", "{base}"], CheckpointError, "is not a checkpoint"),
        (
            sample.main,
            ["--run", "demo", "--top-p", "2"],
            ConfigError,
            "--top-p must be from 0 to 1 or none",
        ),
        (sample.main, ["--run", "demo", "--num-samples", "0"], ConfigError, "must be at least 1"),
        (sample.main, ["--run", "demo", "--prompt", "x" * 99], ConfigError, "has 100 tokens"),
        (sample.main, ["--run", "demo", "--stage", "x"], ConfigError, "--stage must be one of"),
        (chat_web.main, ["--run", "demo", "--port", "70000"], ConfigError, "got 70000"),
        (chat_web.main, ["--run", "demo", "--host", "256.1.1.1"], ConfigError, "check --host"),
    ],
)
def test_user_errors_are_one_line(base, monkeypatch, main, args, error, message):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(base))
    with pytest.raises(error) as caught:
        main([*(arg.format(base=base) for arg in args), "--dtype", "float32"])
    assert message.format(base=base) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_error_for_a_port_in_use_suggests_another_port(base, monkeypatch):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(base))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError) as caught:
            chat_web.main(["--run", "demo", "--port", str(port), "--dtype", "float32"])
    assert str(caught.value) == (
        f"cannot listen on port {port}: it is in use; try another port, such as --port {port + 1}"
    )


@pytest.mark.slow
def test_chat_web_serves_until_ctrl_c(base):
    environment = {**os.environ, "NANOCHAT_BASE_DIR": str(base), "OMP_NUM_THREADS": "1"}
    args = ["scripts.chat_web", "--run", "demo", "--port", "0", "--dtype", "float32"]
    with subprocess.Popen(
        [sys.executable, "-m", *args], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline().startswith("model: demo/chat_sft step 7 on cpu")
            address = re.search(r"http://127\.0\.0\.1:\d+", server.stdout.readline())
            assert address is not None
            with urllib.request.urlopen(address[0] + "/v1/models") as response:
                assert b'"id":"demo"' in response.read()
            with urllib.request.urlopen(address[0]) as response:
                assert b"nanochat" in response.read()
            server.send_signal(signal.SIGINT)
            assert server.wait(60) == 0
        finally:
            server.kill()
