"""Which torch and which Python bootstrap.sh installs; its programs are stand-ins."""

import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="bash")

# Installs files with the names that torch's builds have. $PROBE is what the check at the end gives.
UV = """#!/usr/bin/env bash
echo "uv $*" >>"$LOG"
packages=$ROOT/.venv/lib/python3.12/site-packages
case "$1 $2" in
    "python find") [ -n "${PYTHON_FOUND:-}" ] && echo "$PYTHON_FOUND" ;;
    "python install") exit "${NO_DOWNLOADS:-0}" ;;
    "pip list") printf '%s==1\\n' numpy torch nvidia-cublas cuda-toolkit triton torchtune ;;
    "pip uninstall") rm -rf "$packages"/torch-* ;;
    "pip install")
        build=$(sed 's|.*whl/\\([^ ]*\\).*|\\1|' <<<"$*")
        mkdir -p "$packages/torch-2.14.0${PYPI:-+$build}.dist-info"
        ;;
    sync*)
        case "$*" in *"--extra gpu"*) [ -z "${NO_EXTRA:-}" ] || exit 1 ;; esac
        mkdir -p "$packages" "$ROOT/.venv/bin"
        case "$*" in *"package torch "*) ;; *) mkdir -p "$packages/torch-2.15.0.dist-info" ;; esac
        printf '#!/bin/sh\\nexit %s\\n' "${PROBE:-0}" >"$ROOT/.venv/bin/python"
        chmod +x "$ROOT/.venv/bin/python"
        ;;
esac
"""
LOCK = """
[[package]]
name = "nvidia-cublas"
[[package]]
name = "cuda-toolkit"
"""


@pytest.fixture
def checkout(tmp_path):
    """A folder with bootstrap.sh and programs that stand in for those it calls."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "bootstrap.sh", tmp_path / "scripts")
    (tmp_path / "uv.lock").write_text(LOCK)
    programs = {
        "uv": UV,
        "rustc": "#!/bin/sh\necho rustc 1.90.0\n",
        "cargo": "#!/bin/sh\n",
        "gcc": "#!/bin/sh\n",
        "nvidia-smi": '#!/bin/sh\n[ -n "$GPUS" ] || { echo NVIDIA-SMI has failed; exit 9; }\n'
        'case "$*" in *driver_version*) printf "$GPUS" ;; *) printf "$GPUS" | sed "s/.*, //" ;;'
        " esac\n",
    }
    for name, text in programs.items():
        program(tmp_path / "bin" / name, text)
    return tmp_path


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(stat.S_IRWXU)
    return path


def run(checkout: Path, gpus: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    """Run bootstrap on a machine with these GPUs, as nvidia-smi lists them."""
    return subprocess.run(
        ["bash", "-c", "set -euo pipefail; source scripts/bootstrap.sh; bootstrap; echo CC=$CC"],
        cwd=checkout,
        env={
            "PATH": f"{checkout}/bin:/usr/bin:/bin",
            "HOME": str(checkout),
            "LOG": str(checkout / "log"),
            "ROOT": str(checkout),
            "GPUS": gpus,
            "CC": "",
            **variables,
        },
        capture_output=True,
        text=True,
        check=False,
    )


def called(checkout: Path) -> str:
    """What uv was called with since the last look."""
    log = checkout / "log"
    text = log.read_text()
    log.write_text("")
    return text


def installed(checkout: Path) -> str:
    found = (checkout / ".venv/lib/python3.12/site-packages").glob("torch-*")
    return ", ".join(each.name for each in found)


LOCKED = "torch-2.15.0.dist-info"
NO_GPU = ""
H100 = "580.65.06, 9.0\\n" * 8
OLD_H100 = "535.104.05, 9.0\\n" * 8


@pytest.mark.parametrize(
    ("gpus", "expected"),
    [
        (NO_GPU, LOCKED),
        (H100, LOCKED),
        ("595.1, 12.0\\n", LOCKED),
        (OLD_H100, "torch-2.14.0+cu128.dist-info"),
        ("570.86.15, 12.0\\n", "torch-2.14.0+cu128.dist-info"),
        ("525.60.13, 7.5\\n", "torch-2.14.0+cu128.dist-info"),
        ("580.65.06, 7.0\\n", "torch-2.14.0+cu126.dist-info"),  # V100
        ("550.54, 6.1\\n", "torch-2.14.0+cu126.dist-info"),  # GTX 1080
        ("580.65.06, 6.1\\n580.65.06, 8.9\\n", LOCKED),  # beside an RTX 4090
        ("580.65.06, 8.9\\n580.65.06, 12.0\\n", LOCKED),
    ],
)
def test_torch_is_the_build_that_the_driver_and_the_gpu_take(checkout, gpus, expected):
    done = run(checkout, gpus)
    assert done.returncode == 0, done.stderr
    assert installed(checkout) == expected
    calls = called(checkout)
    if expected == LOCKED:
        assert "--no-install-package" not in calls
        return
    build = expected.split("+")[1].split(".")[0]
    assert f"--index https://download.pytorch.org/whl/{build} torch>=2.11" in calls
    for package in ("torch", "triton", "nvidia-cublas", "cuda-toolkit", "flash-attn-4"):
        assert f"--no-install-package {package} " in calls
    assert f"with torch from download.pytorch.org/whl/{build}" in done.stderr


def test_a_driver_too_old_for_every_build_is_one_line(checkout):
    done = run(checkout, "470.82.01, 7.5\\n")
    assert done.returncode == 2
    assert done.stderr == (
        "error: the NVIDIA driver 470.82.01 is too old for torch 2.11 or later; update it to 580 "
        "or later (525.60.13 is the least), or set TORCH=cpu to train on the CPU\n"
    )
    assert run(checkout, "470.82.01, 7.5\\n", TORCH="cpu").returncode == 0


@pytest.mark.parametrize(
    ("torch", "expected"),
    [("cpu", "cpu"), ("cu126", "cu126"), ("cu130", "cu130"), ("rocm", "rocm7.2")],
)
def test_a_build_that_is_asked_for_is_taken_and_kept(checkout, torch, expected):
    name = f"torch-2.14.0+{expected}.dist-info"
    assert run(checkout, TORCH=torch).returncode == 0
    assert installed(checkout) == name
    assert run(checkout, H100).returncode == 0
    assert installed(checkout) == name
    assert "pip uninstall" not in called(checkout)


def test_a_build_that_is_not_known_is_refused(checkout):
    done = run(checkout, TORCH="cuda")
    assert done.returncode == 2
    assert "TORCH must be auto, cpu, cu126, cu128, cu130 or rocm, got 'cuda'" in done.stderr


def test_a_build_whose_index_does_not_exist_is_an_error_and_not_pypis(checkout):
    done = run(checkout, TORCH="cu999", PYPI=".1")
    assert done.returncode == 2
    assert "download.pytorch.org/whl/cu999 has no torch 2.11 or later" in done.stderr


def test_the_old_build_is_removed_before_another_one_is_installed(checkout):
    run(checkout)
    called(checkout)
    done = run(checkout, OLD_H100)  # the environment was made where no GPU was
    assert "== torch: the build 'cu128' replaces 'lock'" in done.stderr
    calls = called(checkout).splitlines()
    removed = next(i for i, line in enumerate(calls) if "pip uninstall" in line)
    assert re.search(r"python torch nvidia-cublas cuda-toolkit triton$", calls[removed])
    assert "pip install" in calls[-1]
    assert removed < len(calls) - 1
    assert installed(checkout) == "torch-2.14.0+cu128.dist-info"
    done = run(checkout, H100, TORCH="auto")  # the driver was updated
    assert "== torch: the build 'lock' replaces 'cu128'" in done.stderr
    assert installed(checkout) == LOCKED


def test_what_torch_says_of_the_gpu_ends_the_set_up_and_other_errors_mean_repair(checkout):
    done = run(checkout, PROBE="2")
    assert done.returncode == 2
    assert "broken" not in done.stderr
    done = run(checkout, PROBE="1")
    assert done.returncode == 2
    assert "error: the environment is broken; remove .venv and run again" in done.stderr


def test_a_python_without_headers_is_replaced_by_one_of_uvs(checkout):
    python = program(
        checkout / "python", '#!/bin/sh\ncase "$2" in *Python.h*) exit 1 ;; *) echo 3.12 ;; esac\n'
    )
    done = run(checkout, PYTHON_FOUND=str(python))
    assert done.returncode == 0
    calls = called(checkout)
    assert "uv python install --quiet 3.12\n" in calls
    assert "--locked --managed-python --python 3.12" in calls
    done = run(checkout, PYTHON_FOUND=str(python), NO_DOWNLOADS="1")
    assert done.returncode == 0
    assert "has no Python.h, which torch.compile needs; install it" in done.stderr
    assert "--managed-python" not in called(checkout)
    run(checkout, PYTHON_FOUND=sys.executable)  # has headers, or the next line fails
    assert "python install" not in called(checkout)


def test_hopper_gets_the_attention_kernels_and_does_without_where_they_are_not_to_be_had(checkout):
    run(checkout, "580.65.06, 8.9\\n")
    assert "--extra gpu" not in called(checkout)
    done = run(checkout, H100, NO_EXTRA="1")
    assert "warning: the extra 'gpu' cannot be installed" in done.stderr
    assert done.returncode == 0
    assert installed(checkout) == LOCKED


def test_tritons_compiler_is_cc_where_that_is_all_there_is(checkout):
    assert run(checkout).stdout == "CC=\n"
    # Nothing but what the script needs.
    links = "bash awk sed sort head basename dirname mktemp rm mkdir printf chmod id cat ls"
    for name in links.split():
        found = shutil.which(name)
        if found:
            (checkout / "bin" / name).symlink_to(found)
    shutil.move(checkout / "bin" / "gcc", checkout / "bin" / "cc")
    done = run(checkout, PATH=f"{checkout}/bin")
    assert done.stdout == "CC=cc\n", done.stderr
