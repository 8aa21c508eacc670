"""What is wrong between a driver, a GPU and torch, and the preset that suits a machine."""

import contextlib
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from nanochat.stages import doctor
from nanochat.system import compiler, device, distributed, failures, machine
from nanochat.system.config import RunOptions
from nanochat.system.errors import ConfigError, Stopped
from nanochat.training.stage_opening import LoopOptions, Stage

GPU = torch.device("cuda", 0)
# torch 2.15 for CUDA 13.2, and the build for CUDA 12.6
CUDA_13 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]
CUDA_12_6 = ["sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90"]
OPEN_DRIVER = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build\n"
NEW_DRIVER = OPEN_DRIVER.replace("570.86.15", "580.65.06")
DRIVER = (
    "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\n"
)


@dataclass
class Card:
    """What torch says of a GPU."""

    name: str
    gigabytes: float
    capability: tuple[int, int]
    arch: str = ""

    def properties(self) -> SimpleNamespace:
        major, minor = self.capability
        return SimpleNamespace(
            name=self.name,
            total_memory=int(self.gigabytes * 1e9),
            major=major,
            minor=minor,
            gcnArchName=self.arch,
        )


H100 = Card("NVIDIA H100 80GB HBM3", 85.0, (9, 0))
A100 = Card("NVIDIA A100-SXM4-80GB", 85.1, (8, 0))
A100_40 = Card("NVIDIA A100-SXM4-40GB", 42.4, (8, 0))
RTX_4090 = Card("NVIDIA GeForce RTX 4090", 25.3, (8, 9))
V100 = Card("Tesla V100-SXM2-32GB", 34.1, (7, 0))
RTX_8000 = Card("Quadro RTX 8000", 90.0, (7, 5))  # with more memory than it has
B200 = Card("NVIDIA B200", 191.0, (10, 0))


@pytest.fixture
def nvidia(monkeypatch, tmp_path):
    """A machine with NVIDIA GPUs; calling it says what torch and the driver make of them."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(machine, "NVIDIA_NODE", tmp_path)
    monkeypatch.setattr(machine, "NVIDIA_VERSION", tmp_path / "version")

    def describe(cards=(), *, usable=True, driver=DRIVER, cuda="13.2", built=CUDA_13):
        def refuse() -> None:
            raise RuntimeError("CUDA initialization: CUDA unknown error. This may be due to")

        (tmp_path / "version").write_text(driver)
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(torch.version, "hip", None)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: usable)
        monkeypatch.setattr(torch.cuda, "init", refuse)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(cards))
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: built)
        monkeypatch.setattr(
            torch.cuda,
            "get_device_properties",
            lambda which: cards[getattr(which, "index", which)].properties(),
        )

    return describe


# --- a GPU that torch cannot use


@pytest.mark.parametrize("counted", [0, 8])  # by NVML, which needs no CUDA
def test_a_driver_too_old_for_torch_ends_the_run_rather_than_training_on_the_cpu(nvidia, counted):
    nvidia([H100] * counted, usable=False)
    with pytest.raises(ConfigError, match=r"^the NVIDIA driver 535.104.05 is too old") as error:
        device.choose_device(None)
    text = str(error.value)
    assert "whose CUDA 13.2 needs 580 or later" in text
    assert "TORCH=auto bash speedrun.sh --setup-only" in text
    assert "--device cpu" in text
    with pytest.raises(ConfigError, match=r"^--device cuda: the NVIDIA driver 535"):
        device.choose_device("cuda")
    assert device.choose_device("cpu").type == "cpu"


def test_a_gpu_that_cuda_refuses_for_another_reason_is_named_with_it(nvidia):
    nvidia(usable=False, driver=OPEN_DRIVER, cuda="12.8")
    with pytest.raises(ConfigError) as error:
        device.choose_device(None)
    assert "(driver 570.86.15, CUDA 12.8): CUDA initialization: CUDA unknown error;" in str(
        error.value
    )


def test_gpus_whose_switch_nobody_runs_are_told_from_others(nvidia, monkeypatch):
    def refuse() -> None:
        raise RuntimeError(
            "Unexpected error from cudaGetDeviceCount(). Did you run some cuda functions before "
            "calling NumCudaDevices() that might have already set an error? Error 802: system not "
            "yet initialized"
        )

    nvidia([H100] * 8, usable=False, driver=NEW_DRIVER)
    monkeypatch.setattr(torch.cuda, "init", refuse)
    with pytest.raises(ConfigError, match="systemctl start nvidia-fabricmanager") as error:
        machine.gpus()
    assert "CUDA 13.2): Error 802: system not yet initialized; start" in str(error.value)


def test_the_driver_is_asked_of_nvidia_smi_where_the_kernel_does_not_say(
    nvidia, monkeypatch, tmp_path
):
    nvidia(driver="")
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 560.94\necho 560.94\n")
    program.chmod(0o755)
    monkeypatch.setattr(machine.shutil, "which", lambda name: str(program))
    assert machine.driver_version() == "560.94"
    program.write_text("#!/bin/sh\necho no devices were found\nexit 6\n")
    assert machine.driver_version() is None
    monkeypatch.setattr(machine.shutil, "which", lambda name: None)
    assert machine.driver_version() is None


@pytest.mark.parametrize("hidden", ["", "-1", "NoDevFiles"])
def test_a_gpu_that_the_user_hides_is_left_alone(nvidia, monkeypatch, hidden):
    nvidia(usable=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert device.choose_device(None).type == "cpu"


def test_a_machine_without_a_gpu_trains_on_its_cpu(nvidia, monkeypatch):
    nvidia(usable=False)
    monkeypatch.setattr(machine, "NVIDIA_NODE", Path("/dev/absent"))
    assert device.choose_device(None).type == "cpu"
    assert machine.gpus() == []


def test_a_cpu_build_beside_an_nvidia_gpu_says_so_and_trains(nvidia, caplog):
    nvidia(usable=False, cuda=None)
    with distributed.session(RunOptions(dtype="float32", run="x")) as run:
        assert run.device.type == "cpu"
    assert "warning: torch " in caplog.text
    assert "leaves this machine's NVIDIA GPU idle; install one for it (TORCH=auto" in caplog.text
    caplog.clear()
    with distributed.session(RunOptions(dtype="float32", run="x", device="cpu")):
        pass
    assert caplog.text == ""


def test_amd_gpus_that_rocm_refuses_end_the_run(nvidia, monkeypatch, tmp_path):
    nvidia(usable=False, cuda=None)
    monkeypatch.setattr(torch.version, "hip", "7.2.1")
    monkeypatch.setattr(machine, "AMD_NODE", tmp_path)
    with pytest.raises(
        ConfigError, match=r"cannot use this machine's AMD GPU \(ROCm 7.2.1\): CUDA"
    ):
        device.choose_device(None)
    monkeypatch.setattr(machine, "AMD_NODE", tmp_path / "absent")
    assert device.choose_device(None).type == "cpu"


def test_the_doctor_says_why_a_gpu_is_not_used(nvidia, monkeypatch, capsys):
    monkeypatch.setattr(compiler, "probe", lambda device: None)

    def found() -> str:
        doctor.main([])
        text = capsys.readouterr().out
        assert "ok device            cpu: " in text
        return text

    nvidia(usable=False)
    text = found()
    assert "(CUDA 13.2, driver 535.104.05)\n" in text
    assert "!! GPU               not used: the NVIDIA driver 535.104.05 is too old for tor" in text
    assert "-> install a build for it (TORCH=auto bash speedrun.sh --setup-only in" in text
    nvidia(usable=False, cuda=None)
    assert "!! GPU               not used: torch " in found()
    nvidia(usable=False, cuda="13.2", driver=NEW_DRIVER)
    text = found()
    assert "(driver 580.65.06, CUDA 13.2): CUDA initialization: CUDA unknown error\n" in text
    assert "-> see whether nvidia-smi works" in text


# --- a GPU that torch has no kernels for


@pytest.mark.parametrize(
    ("card", "built", "build"),
    [
        (V100, CUDA_13, "cu126"),
        (Card("Tesla P100-PCIE-16GB", 17, (6, 0)), CUDA_13, "cu126"),
        (Card("NVIDIA GeForce GTX 1080 Ti", 11.7, (6, 1)), CUDA_13, "cu126"),
        (B200, CUDA_12_6, "cu128"),
        (H100, ["sm_90a_no", "sm_80", "sm_100"], "auto"),
        (Card("a newer Hopper", 100, (9, 1)), ["sm_90a"], "auto"),
    ],
)
def test_a_gpu_that_torch_is_not_built_for_is_refused_with_the_build_to_take(
    nvidia, card, built, build
):
    nvidia([card], built=built)
    problem = machine.unsupported_gpu(GPU)
    assert problem.startswith(
        f"{card.name} has compute capability {card.capability[0]}.{card.capability[1]}, but torch "
    )
    assert f"built for {' '.join(built)};" in problem
    assert f"TORCH={build} bash speedrun.sh" in problem
    with pytest.raises(ConfigError, match="has compute capability"):
        machine.gpus()


@pytest.mark.parametrize(
    ("capability", "built"),
    [
        ((8, 9), CUDA_13),  # by sm_86 and sm_80
        ((8, 7), ["sm_80"]),
        ((10, 3), CUDA_13),  # B300, by sm_100
        ((12, 1), CUDA_13),
        ((12, 0), ["sm_90", "compute_90"]),
        ((9, 0), ["sm_90a"]),
        ((7, 0), CUDA_12_6),
        ((3, 5), []),  # torch does not say
    ],
)
def test_a_gpu_runs_code_of_its_major_version_and_what_its_driver_translates(
    nvidia, capability, built
):
    nvidia([Card("a GPU", 24, capability)], built=built)
    assert machine.unsupported_gpu(GPU) is None


def test_an_old_gpu_beside_others_can_be_left_out(nvidia, monkeypatch):
    old = Card("NVIDIA GeForce GT 710", 2.1, (3, 5))
    nvidia([RTX_4090, old, RTX_4090])
    with pytest.raises(ConfigError, match=r"^NVIDIA GeForce GT 710 .*; CUDA_VISIBLE_DEVICES=0,2"):
        machine.gpus()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(ConfigError, match=r"^NVIDIA GeForce GT 710 .* trains on the CPU$"):
        machine.gpus()
    nvidia([old], built=CUDA_13)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    with pytest.raises(ConfigError, match=r"trains on the CPU$"):
        machine.gpus()


def test_an_amd_gpu_is_looked_up_by_the_name_of_its_architecture(nvidia, monkeypatch):
    built = ["gfx90a", "gfx942:sramecc+:xnack-"]
    nvidia(
        [
            Card("AMD Instinct MI300X", 206, (9, 4), "gfx942:sramecc+:xnack-"),
            Card("AMD Radeon", 2, (10, 3), "gfx1036"),
        ],
        cuda=None,
        built=built,
    )
    monkeypatch.setattr(torch.version, "hip", "7.2.1")
    assert machine.unsupported_gpu(GPU) is None
    assert "AMD Radeon (gfx1036) is not among" in machine.unsupported_gpu(torch.device("cuda", 1))


def start(monkeypatch, *, dtype: str) -> list[object]:
    """What a session with a GPU sets: the allocator's settings, and the precision of float32."""
    found: list[object] = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda which: None)
    monkeypatch.setattr(torch._C, "_accelerator_setAllocatorSettings", found.append)
    monkeypatch.setattr(device, "product_error", lambda *_: None)
    with distributed.session(RunOptions(dtype=dtype, run="x")):
        found.append(torch.get_float32_matmul_precision())
    assert torch.get_float32_matmul_precision() == "highest"
    return found


def test_a_session_refuses_a_gpu_without_kernels_and_more_processes_than_gpus(nvidia, monkeypatch):
    nvidia([V100])
    with pytest.raises(ConfigError, match=r"^Tesla V100-SXM2-32GB has compute capability 7.0"):
        start(monkeypatch, dtype="float32")
    with pytest.raises(ConfigError, match=r"^this machine has 1 GPU\(s\) for 1 processes"):
        distributed._prepare_gpu(torch.device("cuda"), 1)
    with pytest.raises(ConfigError, match=r"^--device cuda:1: this machine has 1 GPU\(s\), co"):
        distributed._prepare_gpu(torch.device("cuda:1"), 0)


@pytest.mark.parametrize(("asked", "used"), [("cuda", 0), ("cuda:1", 1)])
def test_the_gpu_of_a_process_is_the_current_one_however_it_was_chosen(
    nvidia, monkeypatch, asked, used
):
    """Else the event after a step's figures would be another GPU's, and they be read too early."""
    nvidia([V100, V100], built=CUDA_12_6)
    current = []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "")
    assert distributed._prepare_gpu(torch.device(asked), 0) == torch.device("cuda", used)
    assert current == [torch.device("cuda", used)]


@pytest.mark.parametrize("name", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_segments_of_gpu_memory_expand_unless_the_user_chose_otherwise(nvidia, monkeypatch, name):
    for each in distributed.ALLOCATOR_SETTINGS:
        monkeypatch.delenv(each, raising=False)
    nvidia([V100], built=CUDA_12_6)
    assert start(monkeypatch, dtype="float32") == ["expandable_segments:True", "highest"]
    monkeypatch.setenv(name, "max_split_size_mb:512")
    assert start(monkeypatch, dtype="float32") == ["highest"]


def test_segments_that_the_driver_cannot_expand_stay_as_they_are(nvidia, monkeypatch):
    for each in distributed.ALLOCATOR_SETTINGS:
        monkeypatch.delenv(each, raising=False)
    nvidia([V100], built=CUDA_12_6)
    settings: list[str] = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda which: None)
    monkeypatch.setattr(torch._C, "_accelerator_setAllocatorSettings", settings.append)

    def product_error(*_: object) -> str | None:
        expands = settings[-1] == "expandable_segments:True"
        return "CUDA driver error: operation not supported" if expands else None

    monkeypatch.setattr(device, "product_error", product_error)
    with distributed.session(RunOptions(dtype="float32", run="x")):
        pass
    assert settings == ["expandable_segments:True", "expandable_segments:False"]


@pytest.mark.parametrize(
    ("card", "dtype", "override", "expected"),
    [
        (A100, "float32", None, "high"),
        (A100, "float32", "0", "highest"),
        (A100, "bfloat16", None, "highest"),
        (V100, "float32", None, "highest"),
    ],
)
def test_float32_uses_tf32_where_the_gpu_has_it_and_says_so(
    nvidia, monkeypatch, caplog, card, dtype, override, expected
):
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "")
    nvidia([card], built=CUDA_12_6)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda which: card.capability)
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
    if override is not None:
        monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", override)
    with caplog.at_level(logging.INFO):
        assert start(monkeypatch, dtype=dtype) == [expected]
    assert ("float32 products in TF32" in caplog.text) == (expected == "high")


# --- several GPUs


@pytest.mark.parametrize(
    ("backend", "error", "ended"),
    [
        ("nccl", None, True),
        ("nccl", Stopped(), True),
        ("nccl", RuntimeError("CUDA out of memory"), False),
        ("nccl", ConfigError("on this rank only"), False),
        ("nccl", KeyboardInterrupt(), False),
        ("gloo", RuntimeError("not enough memory"), True),
    ],
)
def test_a_process_that_fails_does_not_wait_for_the_others_to_end_their_group(
    monkeypatch, backend, error, ended
):
    found = []
    monkeypatch.setattr(dist, "is_initialized", lambda: True, raising=False)
    monkeypatch.setattr(dist, "get_backend", lambda: backend, raising=False)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: found.append(1), raising=False)
    with contextlib.suppress(BaseException), contextlib.ExitStack() as stack:
        stack.push(distributed._leave_group)
        if error is not None:
            raise error
    assert bool(found) == ended


NCCL = (
    "NCCL error in: ProcessGroupNCCL.cpp:3356, unhandled system error (run with NCCL_DEBUG=INFO "
    "for details), NCCL version 2.30.7\nncclSystemError: System call (e.g. socket, malloc) or "
    "external library call failed or device error. \nLast error:\n"
)


def test_too_little_shared_memory_is_not_taken_for_a_lost_connection():
    refused = "socketPollConnect: connect to 10.0.0.2<41151> returned Connection refused"
    assert failures._is_lost_connection(RuntimeError(NCCL + refused))
    made = "Error while creating shared memory segment /dev/shm/nccl-gRm13f (size 33030528), error"
    error = RuntimeError(NCCL + made)
    assert not failures._is_lost_connection(error)
    assert failures.describe_error(error).endswith("start it with --shm-size=8g or --ipc=host")


# --- the preset


@pytest.mark.parametrize(
    ("cards", "preset", "reason"),
    [
        ([], "pocket", "no NVIDIA or AMD GPU that torch can use"),
        ([H100] * 8, "speedrun", "8 x NVIDIA H100 80GB HBM3 with 85 GB"),
        ([A100] * 8, "speedrun", "8 x NVIDIA A100-SXM4-80GB with 85 GB"),
        ([B200] * 16, "speedrun", "16 x NVIDIA B200 with 191 GB"),
        ([H100] * 7, "gpu1", "7 x NVIDIA H100 80GB HBM3 with 85 GB; speedrun needs 8 GPUs"),
        ([H100], "gpu1", "1 x NVIDIA H100 80GB HBM3 with 85 GB; speedrun needs 8 GPUs"),
        ([A100_40] * 8, "gpu1", "8 x NVIDIA A100-SXM4-40GB with 42 GB; speedrun needs 70 GB each"),
        ([H100] * 7 + [A100_40], "gpu1", "8 x NVIDIA A100-SXM4-40GB with 42 GB; speedrun needs"),
        ([RTX_4090] * 8, "gpu1", "8 x NVIDIA GeForce RTX 4090 with 25 GB; speedrun needs 70 GB"),
        ([RTX_8000] * 8, "gpu1", "speedrun needs bfloat16, from Ampere on"),
        ([V100] * 4, "gpu1", "needs 8 GPUs and 70 GB each and bfloat16"),
    ],
)
def test_the_preset_is_chosen_by_number_memory_and_architecture(nvidia, cards, preset, reason):
    nvidia(cards, usable=bool(cards), built=CUDA_12_6 + CUDA_13)
    if not cards:
        assert machine.choose_preset([]) == (preset, reason)
        return
    chosen, why = machine.choose_preset(machine.gpus())
    assert chosen == preset
    assert reason in why
    assert machine.for_speedrun("") == f"{len(cards)} {chosen} {why}"
    assert machine.for_speedrun("gpu1") == str(len(cards))


def test_a_preset_for_gpus_needs_one_that_torch_can_use(nvidia, monkeypatch, tmp_path):
    nvidia([H100] * 8, usable=False)
    for preset in ("", "speedrun", "gpu1", "pocket"):
        with pytest.raises(ConfigError, match=r"^the NVIDIA driver 535.104.05 is too old"):
            machine.for_speedrun(preset)
    on_cpu = tmp_path / "my.toml"
    on_cpu.write_text('[common]\ndevice = "cpu"\n')
    assert machine.for_speedrun(str(on_cpu)) == "0"
    nvidia(usable=False, cuda=None)  # a build for CPUs
    with pytest.raises(ConfigError, match=r"^PRESET=gpu1 needs a CUDA GPU: torch \S+ is a build"):
        machine.for_speedrun("gpu1")
    assert machine.for_speedrun("").startswith("0 pocket torch ")
    monkeypatch.setattr(machine, "NVIDIA_NODE", tmp_path / "absent")
    with pytest.raises(ConfigError, match=r"^PRESET=speedrun needs a CUDA GPU: torch finds none"):
        machine.for_speedrun("speedrun")
    assert machine.for_speedrun("") == "0 pocket no NVIDIA or AMD GPU that torch can use"
    assert machine.for_speedrun("pocket") == "0"
    with pytest.raises(ConfigError, match=r"^--preset nothing: no such preset"):
        machine.for_speedrun("nothing")


def test_an_amd_gpu_that_the_build_of_torch_leaves_idle_is_named(nvidia, monkeypatch, tmp_path):
    nvidia(usable=False)
    monkeypatch.setattr(machine, "NVIDIA_NODE", tmp_path / "absent")
    monkeypatch.setattr(machine, "AMD_TOPOLOGY", tmp_path)
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "properties").write_text("cpu_cores_count 64\ngfx_target_version 0\n")
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "properties").write_text("gfx_target_version 90012\n")  # in a Ryzen
    assert machine.for_speedrun("") == "0 pocket no NVIDIA or AMD GPU that torch can use"
    (tmp_path / "1" / "properties").write_text("gfx_target_version 90402\n")  # an MI300X
    idle = r"torch \S+ is not built for ROCm, .* idle; install a build for it \(TORCH=rocm bash"
    assert re.match(f"0 pocket {idle}", machine.for_speedrun(""))
    with pytest.raises(ConfigError, match=f"PRESET=gpu1 needs a CUDA GPU: {idle}"):
        machine.for_speedrun("gpu1")
    monkeypatch.setattr(torch.version, "hip", "7.2")
    assert machine.cpu_build() is None


# --- Apple's GPUs


def test_training_on_mps_is_compiled_only_if_asked_for():
    def wants(kind: str, asked: bool | None, started: bool | None = None) -> bool:
        run = distributed.Run(device=torch.device(kind))
        stage = SimpleNamespace(
            loop=LoopOptions(compile=asked),
            started_with=distributed.StartedWith(compiled=started),
            run=run,
        )
        return Stage.wants_compiling(stage)

    assert not wants("mps", None)
    assert wants("mps", True)
    assert wants("mps", None, started=True)
    assert wants("cpu", None)
    assert wants("cuda", None)
    assert not wants("cuda", False)
