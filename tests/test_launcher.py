"""The end of several processes: what their launcher says, and its status."""

import os
import signal
import subprocess
import sys

import pytest

from tests.node_helpers import ROOT

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="sends signals")

# A process that saves after a signal as a stage does, or ends as the argument says.
PROCESS = r"""
import os, signal, sys, time

def save(*args):
    os.write(1, b"saved\n")
    sys.exit(0)

rank, end = os.environ["RANK"], sys.argv[-1]
if (rank, end) == ("1", "fails"):
    sys.exit("error: no such data")
if (rank, end) == ("1", "is killed"):
    os.kill(os.getpid(), signal.SIGKILL)
if end == "returns":
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
signal.signal(signal.SIGINT, save)
signal.signal(signal.SIGHUP, save)
os.write(1, b"ready\n")
time.sleep(600)
"""


def start(tmp_path, end):
    (tmp_path / "process.py").write_text(PROCESS)
    words = ["--standalone", "--nproc-per-node", "2", "process.py", "--", end]
    return subprocess.Popen(
        [sys.executable, "-m", "nanochat.system.launcher", *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_the_launcher_ends_all_in_one_line(tmp_path, sent):
    launcher = start(tmp_path, "saves")
    assert launcher.stdout is not None
    assert [launcher.stdout.readline() for _ in range(2)] == ["ready\n"] * 2
    launcher.send_signal(sent)
    output, errors = launcher.communicate(timeout=120)
    assert (launcher.returncode, output) == (0, "saved\nsaved\n")
    assert errors == f"{sent.name}: all processes have ended\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    "end, status, said",
    [
        ("returns", 0, ""),
        ("fails", 1, "error: no such data\n"),
        (
            "is killed",
            1,
            "error: the process of rank 1 was killed by SIGKILL; "
            "the machine may be out of memory\n",
        ),
    ],
)
def test_the_launcher_adds_one_line_only_where_a_process_could_not(tmp_path, end, status, said):
    launcher = start(tmp_path, end)
    _, errors = launcher.communicate(timeout=120)
    assert (launcher.returncode, errors) == (status, said)
