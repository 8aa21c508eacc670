"""What an installation without the optional packages is told."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from nanochat.data import hub
from nanochat.data.tasks import common
from nanochat.data.text_decoding import TextReading
from nanochat.server.app import create_app
from nanochat.stages import chat_web
from nanochat.system import config, wandb_run
from nanochat.system.errors import UserError

ROOT = Path(__file__).parent.parent
UNUSED: Any = None


def stream_from_the_hub() -> None:
    next(hub.hub_documents(hub.parse_name("hf:org/name"), TextReading()))


def serve() -> None:
    cfg = config.parse(chat_web.ChatWebConfig, [], stage="chat_web")
    chat_web.serve(cfg, UNUSED, {"m": UNUSED})


CASES = {
    "wandb": ("wandb", "wandb", lambda: wandb_run.log_in("p")),
    "task": ("datasets", "hub", lambda: common.load_rows("org/name", split="train")),
    "text": ("datasets", "hub", stream_from_the_hub),
    "app": ("fastapi", "serve", lambda: create_app(UNUSED)),
    "chat_web": ("uvicorn", "serve", serve),
}


@pytest.mark.parametrize("case", CASES)
def test_a_missing_package_is_named_with_the_extra_that_installs_it(case, monkeypatch):
    package, extra, use = CASES[case]
    monkeypatch.setitem(sys.modules, package, None)  # importing it now raises ImportError
    with pytest.raises(UserError) as caught:
        use()
    assert package in str(caught.value)
    assert f"pip install 'nanochat[{extra}]'" in str(caught.value)


@pytest.mark.parametrize(
    ("capabilities", "takes"),
    [("9.0\n9.0", True), ("10.0", True), ("7.5\n9.0", True), ("8.9", False), ("12.0", False)],
)
def test_setup_installs_the_extra_gpu_only_for_gpus_that_its_kernels_are_made_for(
    tmp_path, capabilities, takes
):
    tool = tmp_path / "nvidia-smi"
    script = "set -euo pipefail; source scripts/bootstrap.sh; takes_flash_attention"
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    for answer, expected in ((f"echo '{capabilities}'", takes), ("exit 9", False)):
        tool.write_text(f"#!/bin/sh\n{answer}\n")
        tool.chmod(0o755)
        done = subprocess.run(["bash", "-c", script], cwd=ROOT, env=env)
        assert (done.returncode == 0) == expected


def test_the_extra_gpu_is_pinned_and_for_linux_only():
    """Its packages change their calls between releases, and have no wheels elsewhere."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for requirement in extras["optional-dependencies"]["gpu"]:
        name, _, marker = requirement.partition(";")
        assert "==" in name
        assert "sys_platform == 'linux'" in marker
    assert "gpu" not in extras["optional-dependencies"]["all"][0]
