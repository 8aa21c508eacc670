"""The line in which a stage says where and how it computes."""

import dataclasses
import threading

import pytest
import torch

from nanochat.gpt import GPT, GPTConfig
from nanochat.gpt.attention import Backend
from nanochat.gpt.start_line import start_line
from nanochat.stages import base_loss, base_train
from nanochat.system import compiler
from nanochat.system import device as devices
from nanochat.system.distributed import single_run
from nanochat.training import stage
from tests.test_compiler import NO_OPENMP, TINY

CPU = devices.describe(torch.device("cpu"))


def lines_with(text: str, output: str) -> list[str]:
    return [line for line in output.splitlines() if text in line]


def test_it_names_ranks_device_dtype_attention_and_what_is_missing(monkeypatch):
    config = GPTConfig(vocab_size=16, sequence_length=8, depth=1, width=64)
    model = GPT(config, compute_dtype=torch.bfloat16)
    run = single_run(dtype=torch.bfloat16)
    monkeypatch.setattr(devices, "describe", lambda device: "NVIDIA H100")
    model.attention = Backend("fa4", "")
    assert start_line(run, model) == "NVIDIA H100 | bfloat16 | attention fa4"
    model.attention = Backend("varlen", "", passed_over="not fa4: no package; not fa3: no net")
    line = start_line(dataclasses.replace(run, world_size=8), model, "no fp8 (old)", "compiled")
    assert line == (
        "8 x NVIDIA H100 | bfloat16 | attention varlen (not fa4: no package; not fa3: no net) | "
        "no fp8 (old) | compiled"
    )


@pytest.mark.parametrize(
    ("failure", "flags", "compiled"),
    [
        (None, [], "compiled"),
        (None, ["--no-compile"], "not compiled"),
        (NO_OPENMP, [], f"not compiled ({NO_OPENMP.reason})"),
    ],
)
def test_training_and_evaluation_say_it_once(base, monkeypatch, capsys, failure, flags, compiled):
    monkeypatch.setattr(compiler, "probe", lambda device: failure)
    monkeypatch.setattr(compiler, "_compile", lambda function: function)
    given = ["--data", f"{base}/texts.jsonl", "--dtype", "float32", "--fp8", "auto"]
    base_train.main([*TINY, *given, *flags])
    assert lines_with("attention", capsys.readouterr().out) == [
        f"base_train on {CPU} | float32 | attention blocks | no fp8 (it needs a GPU, the device "
        f"is cpu) | {compiled}"
    ]
    base_loss.main(["--run", "tiny", "--dtype", "float32", "--sample-tokens", "0"])
    (line,) = lines_with("attention", capsys.readouterr().out)
    assert line.startswith("base_loss of ")
    assert line.endswith(f" on {CPU} | float32 | attention blocks")


@pytest.mark.parametrize(("flags", "said"), [([], 1), (["--no-compile"], 0)])
def test_a_first_step_that_takes_long_because_it_is_compiled_says_so_once(
    base, monkeypatch, capsys, flags, said
):
    class AtOnce(threading.Timer):
        """A timer whose time has come when it is started, as where the first step takes long."""

        def start(self) -> None:
            assert (self.interval, self.finished.is_set()) == (5.0, False)
            self.function(*self.args)

    monkeypatch.setattr(compiler, "probe", lambda device: None)
    monkeypatch.setattr(compiler, "_compile", lambda function: function)
    monkeypatch.setattr(stage.threading, "Timer", AtOnce)
    arguments = [*TINY, "--data", f"{base}/texts.jsonl", "--dtype", "float32", *flags]
    base_train.main(arguments)
    lines = capsys.readouterr().out.splitlines()
    about = [number for number, line in enumerate(lines) if line.startswith("compiling the ")]
    assert len(about) == said
    if said:
        assert lines[about[0] - 1].startswith("base_train on ")
        assert lines[about[0] + 1].startswith("step 1/")
