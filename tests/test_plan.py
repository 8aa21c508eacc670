"""What a run will take, as it is printed, and the work that its time is made of."""

import re

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from nanochat.gpt import GPTConfig
from nanochat.optim import muon
from nanochat.stages import plan
from nanochat.system import compiler, memory
from nanochat.system.errors import ConfigError
from nanochat.training import time_plan
from nanochat.training.memory_plan import StepPlan

SMALL = "--depth 2 --sequence-length 64 --vocab-size 300 --dtype float32 --tokens-per-step 1024"
UNCOMPILED = f"{SMALL} --no-compile"


def printed(capsys, args: str) -> str:
    plan.main(args.split())
    return capsys.readouterr().out


def test_the_memorys_parts_add_up_to_what_is_asked_for(capsys):
    text = printed(capsys, UNCOMPILED)
    total = float(re.search(r"memory +([\d.]+) GB", text)[1])
    parts = re.findall(r"^ +(\w+) +([\d.]+) +([\d.]+)$", text, re.MULTILINE)
    names = "weights gradients optimizer activations logits workspace checkpoint heap process"
    assert [name for name, *_ in parts] == names.split()
    assert sum(float(peak) for _, peak, _ in parts) == pytest.approx(total, abs=0.01)
    assert "16 rows of 64 tokens, once a step" in text


def test_a_gpu_without_bfloat16_is_planned_in_float32_at_its_own_peak(capsys):
    assert "of 8.10 TFLOP/s" in printed(capsys, f"{SMALL} --gpu T4")
    bare = SMALL.replace("--dtype float32", "")
    assert "of 15.70 TFLOP/s" in printed(capsys, f"{bare} --gpu V100")
    assert "of 989.00 TFLOP/s" in printed(capsys, f"{bare} --gpu H100")


def test_a_plan_for_this_machine_is_compiled_where_that_works(capsys, monkeypatch):
    def memory_lines(args: str) -> str:
        return printed(capsys, args).partition("memory")[2].partition("time")[0]

    monkeypatch.setattr(memory, "resident_bytes", lambda: 0)
    monkeypatch.setattr(compiler, "probe", lambda device: compiler.Failure("no g++", "install it"))
    assert memory_lines(SMALL) == memory_lines(UNCOMPILED)
    monkeypatch.setattr(compiler, "probe", lambda device: None)
    assert memory_lines(SMALL) != memory_lines(UNCOMPILED)


@pytest.mark.slow
def test_layers_computed_again_take_less_memory_and_more_time(capsys):
    def figures(args: str) -> tuple[float, float]:
        text = printed(capsys, f"--depth 12 --gpu H100 --device-batch-size 8 {args}")
        seconds = re.search(r"about (?:(\d+)h)?(\d+)m", text)
        hours, minutes = (int(x or 0) for x in seconds.groups())
        return float(re.search(r"memory +([\d.]+) GB", text)[1]), 60 * hours + minutes

    kept, again = figures(""), figures("--checkpoint-activations")
    assert again[0] < 0.7 * kept[0]
    assert again[1] == pytest.approx(kept[1] * 4 / 3, abs=1)


@pytest.mark.slow
def test_auto_plans_with_the_memory_of_this_machine_only(capsys, monkeypatch):
    if torch.cuda.is_available():
        pytest.skip("the machine's own memory would be the GPU's")
    assert "16 rows of 64 tokens" in printed(capsys, f"{UNCOMPILED} --device-batch-size auto")
    with pytest.raises(ConfigError, match="auto plans for this machine only"):
        plan.main("--gpu H100 --device-batch-size auto".split())
    monkeypatch.setattr(memory, "memory_left", lambda: 0)
    with pytest.raises(ConfigError, match="not even one row fits"):
        plan.main(f"{UNCOMPILED} --device-batch-size auto".split())
    monkeypatch.setattr(memory, "memory_left", lambda: None)
    with pytest.raises(ConfigError, match="does not say how much memory is free; give a number"):
        plan.main(f"{UNCOMPILED} --device-batch-size auto".split())


def test_the_work_of_orthogonalising_is_what_torch_counts():
    config = GPTConfig(depth=2, width=64, heads=2, vocab_size=50, sequence_length=32)
    with FlopCounterMode(display=False) as counter:
        for shape, count in (((64, 64), 4), ((256, 64), 1), ((64, 256), 1)):
            muon.polar_express(torch.ones(2 * count, *shape), torch.float32)
    assert time_plan.muon_flops(config) == counter.get_total_flops()


def test_a_step_that_was_timed_takes_what_is_planned_within_a_third():
    """389 ms at 0.40 TFLOP/s: see benchmarks/HISTORY.md, the pocket model on two cores."""
    config = GPTConfig(depth=4, sequence_length=256, vocab_size=1040)
    step = StepPlan(rows=16, length=256, dtype=torch.bfloat16)
    planned = time_plan.seconds_per_step(config, step, passes=1, peak_flops=0.40e12)
    assert planned == pytest.approx(0.389, rel=0.3)


def test_more_passes_cost_their_tokens_and_the_optimizer_once():
    config = GPTConfig(depth=4, sequence_length=256, vocab_size=1040)
    step = StepPlan(rows=4, length=256, dtype=torch.float32)
    one, two, three = (
        time_plan.seconds_per_step(config, step, passes=n, peak_flops=1e11) for n in (1, 2, 3)
    )
    assert three - two == pytest.approx(two - one)
    assert two < 2 * one
