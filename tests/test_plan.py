"""What a run will take, as it is printed, and the work that its time is made of."""

import dataclasses
import re
from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from nanochat.gpt import GPTConfig
from nanochat.optim import muon
from nanochat.optim.scaling import scaled_plan
from nanochat.stages import base_train, plan
from nanochat.system import compiler, memory
from nanochat.system import device as devices
from nanochat.system.errors import ConfigError
from nanochat.training import model_size, run_plan, time_plan
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
        minutes = 60 * hours(text, "base_train")[1]
        return float(re.search(r"memory +([\d.]+) GB", text)[1]), minutes

    kept, again = figures(""), figures("--checkpoint-activations")
    assert again[0] < 0.7 * kept[0]
    assert again[1] == pytest.approx(kept[1] * 4 / 3, rel=0.05)


@pytest.mark.slow
def test_auto_plans_with_the_memory_of_this_machine(capsys, monkeypatch):
    if torch.cuda.is_available():
        pytest.skip("the machine's own memory would be the GPU's")
    assert "16 rows of 64 tokens" in printed(capsys, f"{UNCOMPILED} --device-batch-size auto")
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


# --- GPUs


def hours(text: str, stage: str) -> list[float]:
    """At best, likely and at worst, of a row of the table of times."""
    line = next(line for line in text.splitlines() if line.strip().startswith(f"{stage} "))
    found = re.findall(r"\b(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:([\d.]+)s)?\b", line.split(stage)[1])
    parts = [[float(x or 0) for x in row] for row in found if any(row)]
    return [24 * d + h + m / 60 + s / 3600 for d, h, m, s in parts][:3]


@pytest.mark.slow
@pytest.mark.parametrize(("gpu", "tflops"), [("T4", 8.1), ("V100", 15.7)])
def test_float32_is_costed_at_the_speed_of_float32(capsys, gpu, tflops):
    text = printed(capsys, f"--depth 12 --gpu {gpu} --dtype float32 --device-batch-size 1")
    assert f"of {tflops:.0f} TFLOP/s" in text
    at_the_peak = 1.156e9 * 7.97e8 / (tflops * 1e12) / 3600
    assert all(1.2 * at_the_peak < x < 2.5 * at_the_peak for x in hours(text, "base_train"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("gpu", "products"),
    [("T4", "float16"), ("V100", "float16"), ("GTX 1080 Ti", "float32"), ("A100", "bfloat16")],
)
def test_a_gpu_is_planned_for_in_the_dtype_that_it_trains_in(capsys, gpu, products):
    plan.main(["--depth", "4", "--gpu", gpu])
    assert f"estimated for 1 x {gpu} in {products}" in capsys.readouterr().out


@pytest.mark.slow
def test_too_little_memory_is_a_warning_with_a_remedy_that_works(capsys):
    text = printed(capsys, "--depth 12 --gpu T4 --device-batch-size 32")
    rows = re.search(r"warning: T4 has 17.2 GB.* use --device-batch-size (\d+), or auto", text)[1]
    assert "warning" not in printed(capsys, f"--depth 12 --gpu T4 --device-batch-size {rows}")
    text = printed(capsys, "--depth 32 --gpu T4 --device-batch-size 1")
    assert "use --checkpoint-activations, or a smaller --depth" in text


@pytest.mark.slow
def test_the_speedrun_is_planned_with_every_stage_for_less_than_60_dollars(capsys):
    text = printed(capsys, "--preset speedrun --gpus 8 --gpu H100")
    for stage in "base_train base_loss mid_train chat_sft chat_rl chat_eval together".split():
        best, likely, worst = hours(text, stage)
        assert best < likely < worst
    assert "warning" not in text
    assert "in fp8, at $24.00 an hour; not measured on a GPU" in text
    assert hours(text, "together")[1] * 24 < 60
    dearer = printed(capsys, "--preset speedrun --gpus 8 --gpu H100 --dollars-per-gpu-hour 6")
    assert "at $48.00 an hour" in dearer


@pytest.mark.slow
def test_without_fp8_units_the_speedrun_is_planned_in_bfloat16(capsys):
    text = printed(capsys, "--preset speedrun --gpus 8 --gpu A100")
    assert "in bfloat16" in text


@pytest.mark.parametrize(
    ("gpu", "closest"), [("4090", "RTX 4090"), ("h100", "H100"), ("a card of my own", "H100, A100")]
)
def test_a_gpu_without_a_data_sheet_is_refused_with_those_of_a_similar_name(gpu, closest):
    with pytest.raises(
        ConfigError, match=rf"^--gpu {gpu}: no data sheet.* closest are .*{closest}"
    ):
        plan.main(["--depth", "4", "--gpu", gpu])


@pytest.mark.slow
def test_a_dtype_that_a_gpu_lacks_has_no_time(capsys):
    plan.main("--depth 4 --gpu V100 --dtype bfloat16 --device-batch-size 1".split())
    assert "unknown: there is no figure for V100 in bfloat16" in capsys.readouterr().out


def test_fp8_auto_in_a_plan_is_what_training_would_do():
    def fp8_of(gpu: str) -> bool:
        return plan.resolve({"fp8": "auto", "depth": 22, "gpu": gpu})["fp8"]

    assert [fp8_of(gpu) for gpu in ("H100", "MI355X", "MI300X", "A100")] == [True, True] + [
        False
    ] * 2


@pytest.mark.parametrize(
    ("name", "dollars"),
    [
        ("NVIDIA H100 PCIe", 3.0),
        ("NVIDIA A100-SXM4-40GB", 1.6),
        ("NVIDIA A10G", None),
        ("NVIDIA GeForce RTX 3090", 0.25),
        ("NVIDIA GeForce RTX 3090 Ti", None),
    ],
)
def test_a_price_is_found_by_the_drivers_name_of_a_gpu(name, dollars):
    assert run_plan.price(name) == dollars


def test_a_laptops_card_is_taken_to_be_slower_than_its_namesake_and_not_for_unknown(monkeypatch):
    monkeypatch.setattr(devices, "choose_device", lambda name: torch.device("cuda"))
    card = SimpleNamespace(total_memory=int(6.37e9))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    for name, tflops in (
        ("NVIDIA GeForce GTX 1060 with Max-Q Design", 0.6 * 4.4),
        ("NVIDIA GeForce GTX 1060 6GB", 4.4),
        ("a new one", None),
    ):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        gpu = model_size.of_this_machine({"dtype": "float32"}, 1)
        assert gpu.peak_flops == (tflops and pytest.approx(tflops * 1e12))


# --- --depth auto

CARDS = {"GTX 1060": 6, "RTX 3060": 12, "T4": 16, "RTX 4090": 24, "H100": 80}


@pytest.mark.slow
def test_each_card_gets_the_largest_model_that_it_holds_and_trains_in_the_time(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # another one is planned for
    values = {"sequence_length": 2048, "max_hours": 4}
    depths = []
    for name, memory_gb in CARDS.items():
        gpu = model_size.of_sheet(name)
        assert gpu.memory_bytes == memory_gb * 2**30
        depth = model_size.largest_depth(values, gpu)
        sizes = GPTConfig(depth=depth)
        assert model_size.rows_fitting(sizes, gpu, most=1) == 1
        assert base_hours(sizes, gpu) <= 4
        larger = GPTConfig(depth=depth + 2)
        assert base_hours(larger, gpu) > 4 or not model_size.rows_fitting(larger, gpu, most=1)
        depths.append(depth)
    assert depths == sorted(depths)
    assert depths[-1] >= 16


def base_hours(sizes: GPTConfig, gpu: model_size.Gpu) -> float:
    machine = run_plan.Machine(peak_flops=gpu.peak_flops, count=1, products=gpu.products)
    return run_plan.training(sizes, scaled_plan(sizes).tokens, machine).likely / 3600


def test_memory_decides_where_time_does_not():
    large = model_size.Gpu(memory_bytes=80 * 2**30, dtype=torch.bfloat16, peak_flops=1e18)
    small = dataclasses.replace(large, memory_bytes=2 * 2**30)
    values = {"sequence_length": 256, "vocab_size": 1000}
    assert model_size.largest_depth(values, small) < model_size.largest_depth(values, large) == 32


def test_a_resumed_run_keeps_its_depth_whatever_the_gpu_has_now(tmp_path, monkeypatch):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    folder = tmp_path / "runs" / "mine" / "base_train"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"options": {"depth": 10}}')
    gpu = model_size.Gpu(memory_bytes=2**40, dtype=torch.bfloat16, peak_flops=1e18)
    resolve = model_size.resolver(lambda values: gpu, "base_train")
    values = {"depth": "auto", "run": "mine", "sequence_length": 64, "vocab_size": 100}
    assert resolve({**values, "resume": True})["depth"] == 10
    assert resolve(values)["depth"] == 32
    assert resolve({**values, "depth": 8, "resume": True})["depth"] == 8


def test_depth_auto_without_a_gpu_asks_for_a_number(monkeypatch):
    monkeypatch.setattr(devices, "choose_device", lambda name: torch.device("cpu"))
    with pytest.raises(ConfigError, match=r"--depth auto: .* but the device is cpu; give a number"):
        base_train.main(["--depth", "auto"])


def test_the_processes_that_will_train_share_this_machine(capsys, monkeypatch):
    monkeypatch.setattr(devices, "peak_flops", lambda device, dtype: 8e9)
    alone = plan.find_machine(plan.PlanConfig(dtype="float32"))
    four = plan.find_machine(plan.PlanConfig(dtype="float32", processes=4))
    assert (alone.count, alone.peak_flops) == (1, 8e9)
    assert (four.count, four.peak_flops) == (4, 2e9)
    text = printed(capsys, f"{UNCOMPILED} --processes 4")
    assert "4 rows of 64 tokens, once a step" in text
    assert f"of base training on 4 processes of {four.name} (" in text
    with pytest.raises(ConfigError, match="--processes 4 is about this machine; --gpus says"):
        plan.main("--processes 4 --gpus 8".split())


def test_the_processes_on_a_machines_gpus_are_counted_instead_of_the_gpus(monkeypatch):
    seen = []
    monkeypatch.setattr(model_size, "of_this_machine", lambda values, count: seen.append(count))
    monkeypatch.setattr(model_size, "resolver", lambda gpu: lambda values: gpu(values) or values)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    plan.resolve({"processes": "4"})
    plan.resolve({})
    assert seen == [4, 8]
