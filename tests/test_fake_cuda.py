"""Training and generation compile for an NVIDIA GPU, checked on a machine without one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROGRAM = ROOT / "benchmarks" / "fake_cuda"
LINEARS = 6  # of a layer
DEPTH = 2

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def run(*checks: str, capability: str = "9.0") -> dict[str, dict]:
    """The program's answers by check; skips where there can be no fake device."""
    done = subprocess.run(
        [sys.executable, str(PROGRAM), *checks],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            "FAKE_CUDA_CAPABILITY": capability,
        },
    )
    if done.returncode == 4:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr[-5000:]
    return {found["check"]: found for found in json.loads(done.stdout)}


FP8 = f"train depth={DEPTH} precision=fp8"
SDPA = f"train depth={DEPTH} attention=sdpa lower=0"
FP32 = f"train depth={DEPTH} precision=fp32 lower=0"

FA3 = f"train depth={DEPTH} attention=fa3 lower=0"
DECODE = f"recordings depth={DEPTH}"
FP16 = f"train depth={DEPTH} precision=fp16 lower=0"
PARTS = "train depth=8 parts=1 lower=0"
TRAINING = [FP8, SDPA, FP32, FA3, FP16, PARTS]


@pytest.fixture(scope="module")
def found() -> dict[str, dict]:
    """Checks on an H100 and a T4; importing the compiler takes seconds in each process."""
    hopper = run("faults", FP8, SDPA, FP32, FA3, PARTS, DECODE)
    return {**hopper, **run(FP16, capability="7.5")}


def test_each_fault_that_is_looked_for_would_be_found(found):
    faults = found["faults"]
    assert "graph_break" in faults["breaks"][0]
    assert faults["recompiles"] == 1
    assert faults["copies"] == ["_to_copy cuda:0 -> cpu"]
    assert faults["copies_without_waiting"] == []
    assert len(faults["waits"]) == 2  # to the host and back
    assert "value" not in faults  # there are none to be read


@pytest.mark.parametrize("check", TRAINING)
def test_a_step_has_no_graph_breaks_and_is_never_compiled_again(found, check):
    step = found[check]
    assert step["graph_breaks"] == []
    assert step["recompiles"] == 0
    # Several GPUs: the embedding, four times two layers, the loss.
    assert step["parts"] == (6 if check == PARTS else 1)
    assert step["forward"]["graphs"] == step["backward"]["graphs"] == step["parts"]
    assert step["update"]["graphs"] == 4  # shapes of matrices
    assert step["graphs"] == step["parts"] + step["update"]["graphs"]
    assert all(step[part]["dynamic"] == 0 for part in ("forward", "backward", "update"))


@pytest.mark.parametrize("check", TRAINING)
def test_the_host_waits_for_nothing_but_the_figures_of_the_step_before(found, check):
    step = found[check]
    assert step["waits"] == []
    assert all(step[part]["waits"] == [] for part in ("forward", "backward", "update"))
    assert step["lag"] == [0, 1]  # 0 after the first step, which is logged


@pytest.mark.parametrize("check", TRAINING)
def test_every_parameter_gets_a_gradient_in_float32(found, check):
    step = found[check]
    assert step["without_gradient"] == step["wrong_gradients"] == []
    assert step["gradient_dtypes"] == ["torch.float32"]


def test_fp8_multiplies_three_times_in_8_bits_for_each_linear_layer(found):
    step = found[FP8]
    assert step["forward"]["scaled_mm"] == DEPTH * LINEARS
    assert step["backward"]["scaled_mm"] == 2 * DEPTH * LINEARS
    assert found[SDPA]["forward"]["scaled_mm"] == 0


def test_float32_is_never_given_to_a_kernel_that_takes_half_precision_only(found):
    step = found[FP32]
    assert step["forward"]["half_only_in_float32"] == 0
    assert step["backward"]["half_only_in_float32"] == 0
    assert sum(step["forward"]["attention"].values()) > 0


def test_flash_attention_3_computes_every_layer_where_it_is_installed(found):
    assert found[FA3]["attention"] == "fa3"
    assert found[FA3]["forward"]["attention"] == {"fake_cuda.fa3.default": DEPTH}
    assert found[FA3]["backward"]["attention"] == {"fake_cuda.fa3_backward.default": DEPTH}


def test_a_turing_gpu_trains_in_float16_without_bfloat16_or_flash_attention(found):
    step = found[FP16]
    assert step["attention"] == "sdpa"
    for part in ("forward", "backward"):
        assert "torch.float16" in step[part]["dtypes"]
        assert all("efficient" in name for name in step[part]["attention"])
    for part in ("forward", "backward", "update"):
        assert "torch.bfloat16" not in step[part]["dtypes"]


def test_a_decoding_step_can_be_recorded_and_its_host_never_waits(found):
    step = found[DECODE]
    assert step["waits_recorded"] == step["waits"] == []
    assert step["rows"] == [4]  # three slots decode
    assert step["recordings"] == 2  # 40 steps from position 370 cross one limit of the keys


def test_code_is_generated_for_every_graph_and_calls_no_cpu_kernel(found):
    for part in ("forward", "backward", "update"):
        assert all(found[FP8][part]["generated"])
        assert found[FP8][part]["calls"]["triton"] > 0
        assert not [name for name in found[FP8][part]["calls"] if name.startswith("cpp_")]


def test_full_layers_take_cudnn_and_windows_the_varlen_kernel_on_hopper(found):
    names = " ".join(found[FP8]["forward"]["attention"])
    assert "varlen" in names and "cudnn" in names
