"""The pipeline on several machines: speedrun.sh and the recipes, with stand-ins for a cluster."""

import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from torch.distributed import run as torchrun

from nanochat.stages.base_train import BaseTrainConfig
from nanochat.system import config, node_agreement
from nanochat.system.errors import ConfigError, ReportedElsewhere
from tests.node_helpers import ROOT, free_port

STAGES = (
    "tok_train tok_eval base_train base_loss base_eval mid_train chat_sft chat_rl chat_eval".split()
)
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="uses setsid")

# Stands in for the environment's Python: logs its arguments and writes what a stage would.
PYTHON = """#!/usr/bin/env bash
if [ "$1" = -c ]; then exec {python} "$@"; fi
name=$(sed 's/.*-m scripts.\\([a-z_]*\\).*/\\1/' <<<"$*")
trap 'echo "$name saved" >>"$NANOCHAT_BASE_DIR.log"; exit 0' TERM INT
echo "$*" >>"$NANOCHAT_BASE_DIR.log"
[ "$name" != "${{FAILING:-}}" ] || exit 2
while [[ $name =~ ^${{SLOW:-none}}$ ]]; do sleep 0.1; done
case "$*" in *"--node-rank 1"*) exit 0 ;; esac
mkdir -p "$NANOCHAT_BASE_DIR/runs/tiny/$name"
echo '{{}}' >"$NANOCHAT_BASE_DIR/runs/tiny/$name/result.json"
"""
BOOTSTRAP = """
log() {{ printf '%s\\n' "$*" >&2; }}
bootstrap() {{ PYTHON={folder}/python; }}
"""
# Stands in for srun: two nodes are two process groups, each with its own base folder.
SRUN = """#!/usr/bin/env bash
while [[ "$1" == --* ]]; do shift; done
base=$NANOCHAT_BASE_DIR
for node in 0 1; do
    SLURM_NODEID=$node NANOCHAT_BASE_DIR=$base/node$node setsid "$@" &
    echo $! >>"$base/groups"
done
trap 'echo "srun was sent a signal" >>"$base/slurm.log"' TERM
status=0
for job in $(jobs -p); do wait "$job" || status=$?; done
exit "$status"
"""
SCANCEL = """#!/usr/bin/env bash
echo "scancel $*" >>"$NANOCHAT_BASE_DIR/slurm.log"
for group in $(cat "$NANOCHAT_BASE_DIR/groups"); do kill -TERM -- "-$group"; done
"""
SCONTROL = """#!/usr/bin/env bash
if [ "$1" = show ]; then printf '127.0.0.1\\nsecond\\n'; exit; fi
echo "scontrol $*" >>"$NANOCHAT_BASE_DIR/slurm.log"
"""


@pytest.fixture
def cluster(tmp_path):
    """A copy of the scripts, with a Python and a Slurm that only log their arguments."""
    folder = tmp_path / "repository"
    (folder / "scripts").mkdir(parents=True)
    (tmp_path / "base").mkdir()
    shutil.copy(ROOT / "speedrun.sh", folder)
    shutil.copytree(ROOT / "runs", folder / "runs")
    (folder / "scripts" / "bootstrap.sh").write_text(BOOTSTRAP.format(folder=folder))
    programs = {
        "python": PYTHON.format(python=sys.executable),
        "srun": SRUN,
        "scancel": SCANCEL,
        "scontrol": SCONTROL,
    }
    for name, text in programs.items():
        (folder / name).write_text(text)
        (folder / name).chmod(stat.S_IRWXU)
    return folder


def submit(cluster: Path, **variables: str) -> subprocess.Popen[str]:
    """Run the script as sbatch does: from a copy in a different folder."""
    copied = cluster.parent / "slurm_script"
    shutil.copy(cluster / "runs" / "slurm.sh", copied)
    (cluster.parent / "base" / "groups").write_text("")
    return subprocess.Popen(
        ["bash", str(copied)],
        env={
            **os.environ,
            "PATH": f"{cluster}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "NANOCHAT_BASE_DIR": str(cluster.parent / "base"),
            "PRESET": "pocket",
            "RUN": "tiny",
            "SLURM_SUBMIT_DIR": str(cluster),
            "SLURM_JOB_NUM_NODES": "2",
            "SLURM_JOB_NODELIST": "first,second",
            "SLURM_JOB_ID": str(free_port() - 20000),
            **variables,
        },
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def commands(cluster: Path, node: int) -> list[str]:
    return (cluster.parent / "base" / f"node{node}.log").read_text().splitlines()


def stages_of(lines: list[str]) -> list[str]:
    return [line.split("-m scripts.")[1].split()[0] for line in lines if "--nnodes" in line]


@pytest.mark.slow
def test_a_slurm_job_saves_before_its_time_limit_is_requeued_and_resumes(cluster):
    job = submit(cluster, SLOW="base_train")
    logs = [cluster.parent / "base" / f"node{node}.log" for node in range(2)]
    while not all(log.exists() and "scripts.base_train" in log.read_text() for log in logs):
        assert job.poll() is None, job.communicate()
        time.sleep(0.05)
    os.kill(job.pid, signal.SIGTERM)
    errors = job.communicate(timeout=60)[1]
    assert job.returncode != 0
    assert "stopped in base_train" in errors
    slurm = (cluster.parent / "base" / "slurm.log").read_text().splitlines()
    assert [line.split()[0:2] for line in slurm] == [
        ["scancel", "--signal=TERM"],
        ["scontrol", "requeue"],
    ]
    for node in range(2):
        assert commands(cluster, node).count("base_train saved") == 1

    for log in logs:
        log.unlink()
    again = submit(cluster)
    errors = again.communicate(timeout=120)[1]
    assert again.returncode == 0, errors
    assert errors.count("tok_train: already complete") == 2
    many = [name for name in STAGES if not name.startswith("tok_")]
    assert [stages_of(commands(cluster, node)) for node in range(2)] == [many, many]
    assert commands(cluster, 0)[-1] == "-m scripts.report --run tiny"
    assert len(commands(cluster, 1)) == len(many)
    check_args(commands(cluster, 1)[0])


@pytest.mark.slow
def test_the_number_of_processes_on_a_machine_can_be_given(cluster):
    base = cluster.parent / "base"
    names = {"RUN": "tiny", "PRESET": "pocket", "PROCESSES": "3", "NANOCHAT_BASE_DIR": str(base)}
    subprocess.run(
        ["bash", str(cluster / "speedrun.sh"), "--no-serve"],
        env={**os.environ, "PYTHONPATH": str(ROOT), **names},
        check=True,
    )
    lines = base.with_name("base.log").read_text().splitlines()
    assert "-m scripts.plan --preset pocket --processes 3" in lines
    launched = [line for line in lines if "nanochat.system.launcher" in line]
    assert len(launched) == len(STAGES) - 2
    assert all(" --nproc-per-node 3 -m scripts." in line for line in launched)


@pytest.mark.parametrize(
    ("name", "value"),
    [("PROCESSES", "0"), ("PROCESSES", "abc"), ("PROCESSES", "08"), ("NODES", "0"), ("NODES", "x")],
)
def test_numbers_of_processes_and_nodes_are_checked_before_the_set_up(name, value):
    done = subprocess.run(
        ["bash", str(ROOT / "speedrun.sh")],
        env={**os.environ, name: value},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr == f"error: {name} must be a whole number from 1 on, got '{value}'\n"


def start_alone(cluster: Path, **variables: str) -> subprocess.Popen[str]:
    """Run speedrun.sh with the preset of one GPU, told to use the CPU, on one machine."""
    gpu1 = (ROOT / "nanochat" / "presets" / "gpu1.toml").read_text()
    preset = cluster / "on_cpu.toml"
    preset.write_text(gpu1.replace("[common]", '[common]\ndevice = "cpu"'))
    base = cluster.parent / "base"
    names = {"RUN": "tiny", "PRESET": str(preset), "NANOCHAT_BASE_DIR": str(base)}
    return subprocess.Popen(
        ["bash", str(cluster / "speedrun.sh"), "--no-serve"],
        env={**os.environ, "PYTHONPATH": str(ROOT), **names, **variables},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_the_download_behind_the_tokenizer_ends_with_the_run(cluster, sent):
    log = cluster.parent / "base.log"
    job = start_alone(cluster, SLOW="(fetch|base_train)")
    while not (log.exists() and "scripts.base_train" in log.read_text()):
        assert job.poll() is None, job.communicate()
        time.sleep(0.05)
    assert "tok_train" in log.read_text()  # it did not wait for the download
    os.killpg(job.pid, sent)
    job.communicate(timeout=60)
    assert job.returncode == 130
    deadline = time.monotonic() + 30
    while "fetch saved" not in log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_a_download_that_fails_does_not_end_the_run(cluster):
    log = cluster.parent / "base.log"
    job = start_alone(cluster, FAILING="fetch")
    errors = job.communicate(timeout=120)[1]
    assert job.returncode == 0, errors
    assert "== the download stopped; base_train fetches the rest" in errors
    assert f"scripts.fetch --preset {cluster}/on_cpu.toml" in log.read_text()
    log.unlink()
    again = start_alone(cluster)
    assert again.wait(timeout=120) == 0
    assert "scripts.fetch" not in log.read_text()  # base training is complete


def check_args(line: str) -> None:
    """The arguments are those that torchrun and the stage take."""
    args = line.split()
    assert args[:2] == ["-m", "nanochat.system.launcher"]
    found = torchrun.get_args_parser().parse_args(args[2:])
    assert (found.nnodes, found.node_rank, found.rdzv_backend) == ("2", 1, "static")
    assert found.rdzv_endpoint.startswith("127.0.0.1:")
    assert found.training_script == "scripts.base_train"
    options = config.parse(BaseTrainConfig, found.training_script_args, stage="base_train")
    assert options.common.run == "tiny"
    assert options.loop.resume


def test_a_mirror_has_complete_checkpoints_and_their_records(tmp_path):
    here, there, back = (tmp_path / name for name in ("here", "there", "back"))
    stage = here / "runs" / "tiny" / "base_train"
    for step in (1, 2, 3):
        folder = stage / f"step_00000{step}"
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_text(str(step))
        if step != 3:  # the third is being written
            (folder / "meta.json").write_text("{}")
    (stage / "metrics.jsonl").write_text("1\n")
    (stage / ".lock").touch()
    (here / "tokenizers" / "tiny").mkdir(parents=True)
    (here / "tokenizers" / "tiny" / "tokenizer.json").write_text("{}")
    (here / "data").mkdir()

    def mirror(source: Path, target: Path) -> set[str]:
        command = ["bash", str(ROOT / "runs" / "mirror.sh"), str(source), str(target)]
        subprocess.run(command, check=True)
        return {str(p.relative_to(target)) for p in target.rglob("*") if p.is_file()}

    top = "runs/tiny/base_train"
    kept = {f"{top}/metrics.jsonl", "tokenizers/tiny/tokenizer.json"}
    second = {f"{top}/step_000002/{name}" for name in ("meta.json", "model.safetensors")}
    first = {name.replace("2/", "1/") for name in second}
    assert mirror(here, there) == kept | first | second
    shutil.rmtree(stage / "step_000001")
    (stage / "metrics.jsonl").write_text("1\n2\n")
    assert mirror(here, there) == kept | second
    assert mirror(there, back) == kept | second
    assert (back / top / "metrics.jsonl").read_text() == "1\n2\n"
    shutil.rmtree(here)
    here.mkdir()
    assert mirror(here, there) == kept | second  # an empty machine takes nothing away


def test_the_sky_recipe_is_one_task_of_several_nodes():
    yaml = pytest.importorskip("yaml")
    task = yaml.safe_load((ROOT / "runs" / "sky.yaml").read_text())
    assert task["num_nodes"] > 1
    assert task["resources"]["use_spot"] is True
    assert task["file_mounts"]["/nanochat-bucket"]["name"] == "${BUCKET}"
    for part in ("setup", "run"):
        subprocess.run(["bash", "-n"], input=task[part], text=True, check=True)


def test_every_recipe_is_a_script_that_bash_reads():
    for path in (ROOT / "runs").glob("*.sh"):
        subprocess.run(["bash", "-n", str(path)], check=True)
        if shutil.which("shellcheck"):
            subprocess.run(["shellcheck", str(path)], check=True)


def test_nodes_get_the_value_of_the_first_and_wait_for_each_other():
    address = f"127.0.0.1:{free_port()}"
    received: dict[int, list[str]] = {rank: [] for rank in range(3)}

    def node(rank: int) -> None:
        for step in range(3):
            value = f"value {step}" if rank == 0 else "mine"
            found = node_agreement.agree(
                f"step {step}", value, nodes=3, rank=rank, address=address, patience_s=30
            )
            received[rank].append(found)

    threads = [threading.Thread(target=node, args=(rank,)) for rank in (1, 2, 0)]
    for thread in threads:
        thread.start()
        time.sleep(0.2)
    with socket.create_connection(("127.0.0.1", int(address.split(":")[1])), 5) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\n")
    for thread in threads:
        thread.join(60)
    assert received == {rank: ["value 0", "value 1", "value 2"] for rank in range(3)}


def test_a_first_node_that_does_not_answer_is_named():
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(ConfigError, match=f"node 0 at {address} did not answer"):
        node_agreement.agree("a stage", "", nodes=2, rank=1, address=address, patience_s=0.1)
    with pytest.raises(ConfigError, match="must be HOST:PORT"):
        node_agreement.agree("a stage", "", nodes=2, rank=1, address="host")


def test_one_of_the_launchers_processes_reports_a_wrong_flag(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(ConfigError, match="--dept"):
        config.parse(BaseTrainConfig, ["--dept", "2"], stage="base_train")
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(ReportedElsewhere):
        config.parse(BaseTrainConfig, ["--dept", "2"], stage="base_train")
