"""The rehearsal of the speedrun: what its parts do, and a small one from start to end."""

import json
import os
import re
import subprocess
import sys

import pytest

from nanochat.evaluation import core_bundle
from nanochat.stages import base_eval
from nanochat.system import distributed
from tests.node_helpers import ROOT

BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture
def parts(monkeypatch):
    """The modules of the rehearsal's server."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import rehearsal_data
    import rehearsal_server

    return rehearsal_data, rehearsal_server


def test_the_bundle_comes_from_the_mirror_if_one_is_set(parts, tmp_path, monkeypatch):
    data, server = parts
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    hub = server.Hub({}, data.mirror_files())
    with server.serve(hub) as url:
        monkeypatch.setenv("NANOCHAT_MIRROR", f"{url}/mirror/")
        folder = base_eval.open_bundle("core", distributed.single_run())
    assert len(core_bundle.read_bundle(folder)) == 22
    assert [line.split()[1] for line in hub.requests] == ["/mirror/eval_bundle.zip"]


@pytest.mark.slow
def test_data_sets_come_from_the_hub_in_their_published_layouts(parts, tmp_path):
    """In a process of its own, as the hub's library reads the address when it is imported."""
    data, server = parts
    hub = server.Hub(data.hub_files(), {})
    script = """
from nanochat.data.tasks.arc import arc
from nanochat.data.tasks.gsm8k import GSM8K
from nanochat.data.tasks.humaneval import HumanEval
from nanochat.data.tasks.mmlu import mmlu
from nanochat.data.tasks.smoltalk import smoltalk
from nanochat.system.console import show_log
show_log()
print(len(smoltalk("train")), len(mmlu("auxiliary_train")), len(mmlu("test")))
print(arc("ARC-Challenge", "train")[0]["messages"][0]["content"].count("- "))
tasks = GSM8K("test"), HumanEval()
for task in tasks:
    answer = task[0]["messages"][1]["content"]
    text = answer if isinstance(answer, str) else "".join(part["text"] for part in answer)
    print(task.evaluate(0, text), task.evaluate(0, ""))
"""
    with server.serve(hub) as url:
        env = {**os.environ, "HF_ENDPOINT": url, "HF_HOME": str(tmp_path), "no_proxy": "*"}
        done = subprocess.run(
            [sys.executable, "-c", script], env=env, capture_output=True, text=True
        )
    assert done.stdout.splitlines() == ["600 300 60", "3", "True False", "True False"]
    assert all(line.startswith("loading ") for line in done.stderr.splitlines()), done.stderr


@pytest.mark.slow
@pytest.mark.skipif(
    "NIGHTLY" not in os.environ, reason="1.5 minutes of one core; NIGHTLY=1 runs it"
)
@pytest.mark.timeout(900)
def test_the_speedrun_passes_a_rehearsal_on_two_ranks(tmp_path):
    """speedrun.sh itself, from the downloads to the report, and nothing said that puzzles."""
    words = ["--ranks", "2", "--no-compile", "--out", str(tmp_path)]
    done = subprocess.run(
        ["bash", str(BENCHMARKS / "rehearsal.sh"), *words],
        env={k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
        | {"PYTHON": sys.executable},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "base_train.depth: " in done.stdout
    output = (tmp_path / "unbroken" / "output.log").read_text()
    assert "chat_eval done in" in output
    # Short rows cut conversations off, and tok_eval cannot have gpt2's vocabulary from here.
    known = "% are cut off after 128 tokens|note: (gpt2|cl100k) is left out"
    lines = [line for line in output.splitlines() if not re.search(known, line)]
    assert not [line for line in lines if re.search("warn|error|Traceback|[*]{9}", line, re.I)]


def test_a_stage_that_ends_with_other_bits_or_figures_is_found(parts, tmp_path):
    import rehearsal_run

    places = [rehearsal_run.Place(tmp_path / name, tmp_path, 2, "") for name in ("a", "b")]
    for place in places:
        folder = place.run / "mid_train"
        (folder / "step_000004").mkdir(parents=True)
        (folder / "step_000004" / "meta.json").write_text("{}")
        for name in ("model.safetensors", "optimizer.safetensors"):
            (folder / "step_000004" / name).write_text(name)
        results = [{"name": "speed", "value": id(place)}, {"name": "val_loss", "value": 1.5}]
        section = {"results": results, "seconds": id(place)}
        (folder / "result.json").write_text(json.dumps(section))
    assert rehearsal_run.compare(*places, "mid_train") == "equal"
    results[1]["value"] = 1.25
    (folder / "result.json").write_text(json.dumps(section))
    (folder / "step_000004" / "optimizer.safetensors").write_text("other")
    found = rehearsal_run.compare(*places, "mid_train")
    assert found.startswith("DIFFERENT: ")
    assert "optimizer.safetensors" in found and "val_loss" in found
    assert rehearsal_run.compare(*places, "chat_rl").startswith("DIFFERENT")
