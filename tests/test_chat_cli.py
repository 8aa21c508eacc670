"""The chat in the terminal, sampling from the command line, and starting the chat server."""

from __future__ import annotations

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
from nanochat.server.service import Origin
from nanochat.stages import chat_cli, chat_web, sample
from nanochat.system import config, storage
from nanochat.system.errors import CheckpointError, ConfigError
from tests.engine_helpers import TOKENIZER, random_model

ROOT = Path(__file__).parent.parent


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


@pytest.mark.slow
def test_one_answer_imports_nothing_that_chatting_does_not_need(base):
    program = """
import sys
from nanochat.stages import chat_cli
chat_cli.main(sys.argv[1:])
parts = {name.removeprefix("nanochat.").split(".")[0] for name in sys.modules if "nanochat" in name}
unneeded = {"training", "data", "optim", "evaluation", "server", "report", "scaling_laws"} & parts
libraries = ("pyarrow", "datasets", "wandb", "fastapi", "pydantic", "torch._inductor")
print(unneeded, [name for name in libraries if name in sys.modules], file=sys.stderr)
"""
    machine = ["--dtype", "float32", "--threads", "1"]
    done = subprocess.run(
        [sys.executable, "-c", program, "--run", "demo", "--max-new-tokens", "1", *machine],
        cwd=ROOT,
        env={**os.environ, "NANOCHAT_BASE_DIR": str(base), "OMP_NUM_THREADS": "1"},
        input="What?\n",
        capture_output=True,
        text=True,
        errors="replace",
        timeout=120,
    )
    note = "note: cut off at the token limit; --max-new-tokens raises it\n"
    assert done.stderr == f"{note}set() []\n"
    assert done.returncode == 0


def one_shot(monkeypatch, capsys, base, *args: str, stdin: str = "") -> tuple[str, str]:
    """What `chat_cli` prints to stdout and to stderr."""
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(base))
    monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
    machine = ["--dtype", "float32", "--threads", "1"]
    short = ["--temperature", "0", "--max-new-tokens", "9"]
    chat_cli.main(["--run", "demo", *machine, *short, *args])
    captured = capsys.readouterr()
    return captured.out, captured.err


def test_one_shot_prints_the_answer_alone_and_notes_on_stderr(base, monkeypatch, capsys):
    answer, notes = one_shot(monkeypatch, capsys, base, "-p", "What?")
    assert answer != "\n"
    assert notes == "note: cut off at the token limit; --max-new-tokens raises it\n"
    assert one_shot(monkeypatch, capsys, base, stdin="What?\n")[0] == answer
    out, notes = one_shot(
        monkeypatch, capsys, base, "-p", "What?", "--stats", "--logprobs", "--no-logprobs"
    )
    assert out == answer
    assert re.match(r"\(9 tokens, [\d,]+ tokens/s; first token after .* 64 tokens\)\nnote", notes)
    out, notes = one_shot(monkeypatch, capsys, base, "-p", "What?", "--logprobs")
    assert out == answer
    assert len(re.findall(r"^ *[\d.]+% +1  ", notes, re.MULTILINE)) == 9  # greedy: the likeliest
    _, notes = one_shot(monkeypatch, capsys, base, "-p", "x" * 99)
    assert notes.startswith(
        "note: this conversation no longer fits the model's 64 tokens: its beginning is left out\n"
    )


@pytest.mark.parametrize(
    ("prompt", "stdin", "question"),
    [
        ("Summarize:", "a text\n", "Summarize:\n\na text"),
        ("Hi", " \n", "Hi"),
        (None, "Hi\n", "Hi"),
    ],
)
def test_stdin_is_added_below_the_prompt(monkeypatch, prompt, stdin, question):
    monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
    assert chat_cli.read_question(prompt) == question


@pytest.mark.parametrize(
    ("prompt", "stdin", "message"),
    [
        ("  ", "a text", "--prompt is empty; give it a question, or leave it out to chat"),
        ("", "", "--prompt is empty; give it a question, or leave it out to chat"),
        (None, " \n", "stdin is empty; pipe a question in, or use --prompt"),
    ],
)
def test_an_empty_question_is_an_error(monkeypatch, prompt, stdin, message):
    monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
    with pytest.raises(ConfigError) as caught:
        chat_cli.read_question(prompt)
    assert str(caught.value) == message


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot tell whether a pipe has text")
def test_waiting_for_stdin_beside_a_prompt_is_told(monkeypatch):
    reader, writer = os.pipe()
    told = []

    def error_line(line: str) -> None:
        told.append(line)
        os.write(writer, b"late")
        os.close(writer)

    monkeypatch.setattr(chat_cli, "STDIN_HINT_S", 0.0)
    monkeypatch.setattr("nanochat.system.console.error_line", error_line)
    with os.fdopen(reader, encoding="utf-8") as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        assert chat_cli.read_question("Hi") == "Hi\n\nlate"
    assert told == ["reading stdin, to add it to --prompt; < /dev/null leaves it out"]


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
    sample.main(["--run", "demo", "--max-new-tokens", "5", "--dtype", "float32", "--stats"])
    captured = capsys.readouterr()
    assert "---" not in captured.out
    speed = r"\(5 tokens in [\d.]+ s, [\d,]+ tokens/s; 1 of the prompt\)\n"
    assert re.fullmatch(speed, captured.err)


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
        (
            chat_web.main,
            ["--run", "demo", "--run", "x/"],
            ConfigError,
            "--run must be a plain name",
        ),
        (
            chat_web.main,
            ["--stages", "base,x"],
            ConfigError,
            "--stages has 'x'; there are base, mi",
        ),
        (
            chat_web.main,
            ["--run", "demo", "--stages", "base,rl"],
            CheckpointError,
            "nanochat chat_rl --run demo",
        ),
        (
            chat_web.main,
            ["--checkpoint", "{base}", "--run", "a", "--run", "b"],
            ConfigError,
            "--checkpoint names one model",
        ),
        (
            chat_web.main,
            ["--stage", "chat_rl", "--stages", "base,rl"],
            ConfigError,
            "give either --stage or --stages",
        ),
        (
            chat_web.main,
            ["--run", "demo", "--host", "256.1.1.1", "--no-api-key"],
            ConfigError,
            "check --host",
        ),
    ],
)
def test_user_errors_are_one_line(base, monkeypatch, main, args, error, message):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(base))
    with pytest.raises(error) as caught:
        main([*(arg.format(base=base) for arg in args), "--dtype", "float32"])
    assert message.format(base=base) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_models_are_named_by_run_and_by_stage_where_a_run_has_several(base, monkeypatch):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(base))

    def ids(*args: str) -> list[str]:
        cfg = config.parse(chat_web.ChatWebConfig, ["--run", "demo", *args], stage="chat_web")
        return list(chat_web.checkpoints(cfg))

    assert ids() == ids("--run", "demo") == ids("--stages", "base") == ["demo"]
    # The first is the default: a run's most trained stage.
    for stages in ("sft,base,sft", "base,sft"):
        assert ids("--stages", stages) == ["demo:sft", "demo:base"]
    cfg = config.parse(chat_web.ChatWebConfig, ["--run", "demo", "--stages", "base"], stage="x")
    (path,) = chat_web.checkpoints(cfg).values()
    expected = Origin(run="demo", stage="base_train", step=7, chat=False)
    assert chat_web.origin(path) == chat_web.origin(path.parent) == expected


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
            assert server.stdout.readline().startswith("model: demo/chat_sft step 7 in float32")
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
