"""The wheel: what it holds, and that it works without the checkout in a folder of a user's own."""

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow
BIN = "Scripts" if sys.platform == "win32" else "bin"


def run(*command: str | Path, cwd: Path, **env: str) -> str:
    """What a command prints; it must succeed."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command, cwd=cwd, env={**kept, **env}, capture_output=True, text=True, encoding="utf-8"
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    if maturin := shutil.which("maturin"):
        run(maturin, "build", "--release", "--out", folder, cwd=ROOT)
    elif uv := shutil.which("uv"):
        run(uv, "build", "--wheel", "--out-dir", folder, cwd=ROOT)
    else:
        pytest.skip("neither maturin nor uv is on the PATH to build the wheel with")
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """A virtual environment with the wheel, and with what the tests' environment has besides."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, with_pip=True)
    python = folder / BIN / "python"
    run(python, "-m", "pip", "install", "-q", "--no-index", "--no-deps", wheel, cwd=folder)
    packages = run(
        python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder
    )
    # The .pth files in these folders are not read, so an editable nanochat there stays unseen.
    others = [path for path in sys.path if Path(path).name == "site-packages"]
    (Path(packages.strip()) / "dependencies.pth").write_text("\n".join(others))
    return folder


@pytest.fixture
def user_folder(tmp_path) -> Path:
    """A folder whose modules are named like those of our checkout."""
    for name in ("scripts", "tasks", "tokenizer"):
        (tmp_path / f"{name}.py").write_text('OWNER = "the user"\n')
    (tmp_path / "text.txt").write_text("The cat sat on the mat, and the rat sat on the cat. " * 200)
    return tmp_path


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    assert "-cp311-abi3-" in wheel.name
    names = [name for name in zipfile.ZipFile(wheel).namelist() if not name.endswith("/")]
    tops = {name.split("/")[0] for name in names}
    assert tops == {"nanochat", next(top for top in tops if top.endswith(".dist-info"))}
    found = {name for name in names if name.startswith("nanochat/")}
    binary = {name for name in found if name.startswith("nanochat/tokenizer/_rustbpe.")}
    assert len(binary) == 2  # the library and its types
    assert {
        "nanochat/py.typed",
        "nanochat/presets/pocket.toml",
        "nanochat/pocket/events.txt",
        "nanochat/report/report.css",
        "nanochat/server/static/index.html",
    } <= found
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "nanochat"]
    tracked = {name for name in run(*listing, cwd=ROOT).splitlines() if (ROOT / name).exists()}
    assert found - binary == tracked - binary


def test_the_users_modules_are_not_hidden_and_ours_come_from_the_wheel(installed, user_folder):
    code = "import nanochat, scripts, tasks; print(nanochat.__file__, scripts.OWNER, tasks.OWNER)"
    printed = run(installed / BIN / "python", "-c", code, cwd=user_folder)
    assert Path(printed.split()[0]).is_relative_to(installed)
    assert printed.split(maxsplit=1)[1] == "the user the user\n"


@pytest.mark.parametrize(
    ("command", "printed"),
    [
        ("nanochat --help", "tok_train"),
        ("nanochat doctor", "Rust tokenizer    built"),
        ("nanochat tok_train --data text.txt --run mine --vocab-size 300", "300"),
        ("nanochat chat_web --help", "--port"),
        ("nanochat scaling_laws --dry-run --budgets 1e9 --sizes 1x32 --ratios none", "1x32"),
        ("python -m nanochat.stages report --help", "--run"),
    ],
)
def test_a_stage_runs_in_the_users_folder(command, printed, installed, user_folder):
    program, *args = command.split()
    environment = {"NANOCHAT_BASE_DIR": str(user_folder / "base")}
    assert printed in run(installed / BIN / program, *args, cwd=user_folder, **environment)
