"""Eight seeded kills over all four stages: every run goes on to the very same end."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="kills process groups")
def test_eight_kills_lose_nothing_and_change_nothing(tmp_path):
    words = [str(ROOT / "benchmarks" / "faults.py"), "--kills", "8", "--most", "2", "--ranks", "1"]
    done = subprocess.run(
        [sys.executable, *words, "--folder", str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for stage in ("base_train", "mid_train", "chat_sft", "chat_rl"):
        assert f"{stage} on 1 ended like the undisturbed run" in done.stdout
    found = re.match(r"(\d+) kills, \d+ of them while saving", done.stdout.splitlines()[-1])
    assert found is not None
    assert int(found[1]) >= 8
