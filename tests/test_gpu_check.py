"""The check of a GPU machine, rehearsed on a CPU: every part runs, and what fails is said."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BENCHMARKS = ROOT / "benchmarks"


def run_check(*words, **env):
    return subprocess.run(
        ["bash", str(BENCHMARKS / "gpu_check.sh"), *words],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", **env},
    )


@pytest.fixture
def gpu_check(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu_check

    return gpu_check


@pytest.mark.slow
def test_the_rehearsal_runs_every_part_and_writes_the_tables(tmp_path):
    done = run_check("--device", "cpu", "--no-compile", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr + (tmp_path / "gpu_check.log").read_text()
    text = (tmp_path / "gpu_check.md").read_text()
    assert done.stdout.strip() == text.strip()
    assert "`bash benchmarks/gpu_check.sh --device cpu --no-compile`" in text
    for title in ("Training steps", "Generation by the engine", "Attention compared with float64"):
        assert f"### {title}\n" in text
    for line in ("| 2 | 1 | bf16 | no | blocks | 2 | 256 |", "| 2 | 1 | fp8 | no | blocks | 2 |"):
        assert line in text
    assert "tests marked gpu: 0 passed, 0 failed" in text
    assert text.count("| ok |") == 4 + 6  # attention cases, parts
    found = json.loads((tmp_path / "gpu_check.json").read_text())
    training = [row for row in found["rows"] if row["table"] == "training" and "pass_ms" in row]
    for row in training:
        assert row["tokens_per_s"] == pytest.approx(
            row["tokens_per_step"] / row["step_ms_p50"] * 1e3
        )
        assert row["skipped"] == 0
    decoding = [row for row in found["rows"] if row["table"] == "decoding"]
    assert [row["batch"] for row in decoding] == [1, 3]
    assert not {"gpu_check.md", "gpu_check.json", "gpu_check.log"} - {
        p.name for p in tmp_path.iterdir()
    }


@pytest.mark.slow
def test_without_a_gpu_one_line_says_so(tmp_path):
    done = run_check("--out", str(tmp_path / "new"), CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 1
    assert done.stderr.startswith("gpu_check: no CUDA GPU here (torch ")
    assert done.stderr.strip().endswith("--device cpu rehearses all parts at tiny sizes")
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_a_part_that_fails_or_takes_too_long_is_recorded_and_the_rest_goes_on(
    tmp_path, gpu_check, monkeypatch
):
    parts = [
        gpu_check.Part("train 2 int3", 120, 0),
        gpu_check.Part("fp8", 0.2, 0),
        gpu_check.Part("decode 2", 120, 1e9),
        gpu_check.Part("decode 2", 120, 0),
    ]
    monkeypatch.setattr(sys, "argv", ["gpu_check"])
    given = gpu_check.parse(["--device", "cpu", "--no-compile"])
    facts = dict.fromkeys("date device torch python command commit said".split(), "x")
    statuses = gpu_check.check(parts, tmp_path, facts, given)
    failed, cut, skipped, after = (row["status"] for row in statuses)
    assert failed == "failed: AssertionError: int3"
    assert cut == "cut short after 0.2 s"
    assert skipped.startswith("skipped: ")
    assert after == "ok"
    text = (tmp_path / "gpu_check.md").read_text()
    assert "| train 2 int3 | failed: AssertionError: int3 |" in text
    assert "### Generation by the engine\n" in text


def test_wrong_attention_is_called_wrong(gpu_check, monkeypatch, tmp_path):
    import gpu_kernels
    import torch
    from gpu_common import TINY, Work

    from nanochat.gpt import attention

    work = Work(
        device=torch.device("cpu"),
        scale=TINY,
        compiled=False,
        deadline_s=float("inf"),
        path=tmp_path / "rows.jsonl",
    )
    attend = attention.attend

    def one_too_few(q, k, v, *, window, **options):
        return attend(q, k, v, window=window and window - 1, **options)

    monkeypatch.setattr(attention, "attend", one_too_few)
    gpu_kernels.check_attention(work)
    rows = [row for row in gpu_check.read_rows(work.path) if row["table"] == "attention"]
    assert [row["verdict"] for row in rows] == ["ok", "WRONG", "ok", "WRONG"]


def test_a_missing_tokenizer_extension_gets_a_stand_in(gpu_check, monkeypatch):
    import gpu_common

    monkeypatch.setattr(gpu_common.PathFinder, "find_spec", lambda name, path: None)
    monkeypatch.setitem(sys.modules, gpu_common.EXTENSION, None)  # put back as it was, later
    assert gpu_common.without_extension()
    assert sys.modules[gpu_common.EXTENSION].PATTERNS == ()
