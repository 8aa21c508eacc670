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


# The stages of pocket, which take a minute, have tests of their own.
REHEARSED = (
    "train 2 bf16|train 2 fp8|train 2 fp8 768 4|decode 2|attention|resume|ranks|float32|rl 2|tests|"
    "fp8"
).split("|")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_rehearsal_runs_the_parts_and_writes_the_tables(tmp_path):
    only = [word for name in REHEARSED for word in ("--only", name)]
    done = run_check("--device", "cpu", "--no-compile", *only, "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr + (tmp_path / "gpu_check.log").read_text()
    text = (tmp_path / "gpu_check.md").read_text()
    assert done.stdout.strip() == text.strip()
    assert "`bash benchmarks/gpu_check.sh --device cpu --no-compile --only " in text
    for title in ("Training steps", "Generation by the engine", "Attention compared with float64"):
        assert f"### {title}\n" in text
    for line in (
        "| 2 | 512 | 1 | bf16 | no | blocks | 2 | 256 |",
        "| 2 | 512 | 1 | fp8 | no | blocks | 2 |",
        "| 2 | 768 | 1 | fp8 | no | blocks | 4 | 256 |",
        "| killed and resumed: loss against the unbroken run | at most 0.02 apart | 0 | met |",
        "| training on all GPUs: loss against one GPU | at most 0.02 apart | ",
        "| --dtype float32 | trains | loss 4.",
    ):
        assert line in text
    assert "tests marked gpu: 0 passed, 0 failed" in text
    assert "- attention: attention auto: blocks (" in text
    assert text.count("| ok |") == 4 + len(REHEARSED)  # attention cases, parts
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


@pytest.fixture
def gpu_aims(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu_aims

    return gpu_aims


GOOD = [
    {"table": "training", "depth": 24, "precision": "bf16", "vocab_size": 32768, "rows": 16}
    | {"mfu": 0.58, "tokens_per_s": 1e5, "fell_back": False}
    | {"graph_breaks": 0, "recompiles": 0, "waits": 0},
    {"table": "training", "depth": 24, "precision": "fp8", "vocab_size": 32768, "rows": 16}
    | {"mfu": 0.7, "tokens_per_s": 1.2e5, "fell_back": False},
    {"table": "training", "depth": 22, "precision": "fp8", "vocab_size": 49152, "rows": 32}
    | {"mfu": 0.7, "tokens_per_s": 1.5e5, "fell_back": False, "memory_bytes": 70e9},
    {"table": "decoding", "depth": 12, "batch": 1, "tokens_per_s": 320.0},
    {"table": "decoding", "depth": 12, "batch": 64, "tokens_per_s": 9000.0},
    {"table": "attention", "verdict": "ok"},
    {"table": "attention_choice", "backend": "fa3"},
    {"table": "stages", "what": "killed and resumed", "difference": 0.001},
    {"table": "stages", "what": "float32", "last_loss": 5.0},
    {"table": "stages", "what": "pocket base_train", "seconds": 9.0},
    {"table": "stages", "what": "pocket", "complete": True},
    {"table": "rl", "depth": 12, "step_s": 9.0},
    {"table": "stages", "what": "all GPUs and one", "difference": 0.001},
]


def test_good_figures_meet_every_aim_and_none_are_measured_without_rows(gpu_aims):
    assert [verdict for *_, verdict in gpu_aims.verdicts(GOOD)] == ["met"] * len(gpu_aims.AIMS)
    nothing = [verdict for *_, verdict in gpu_aims.verdicts([])]
    assert nothing == ["not measured"] * len(gpu_aims.AIMS)


@pytest.mark.parametrize(
    ("index", "worse", "missed"),
    [
        (0, {"mfu": 0.54}, "depth 24 in bf16, MFU"),
        (1, {"tokens_per_s": 1.14e5}, "depth 24, fp8 against bf16"),
        (1, {"fell_back": True}, "training steps compile"),
        (1, {"graph_breaks": 1}, "graph breaks in a step"),
        (1, {"recompiles": 2}, "compilations after the first 3 steps"),
        (0, {"waits": 3}, "synchronizations in a step"),
        (2, {"rows": 16}, "depth 22, vocabulary 49,152, fp8"),
        (3, {"tokens_per_s": 299.0}, "decoding, depth 12, one row, tokens/s"),
        (4, {"tokens_per_s": 7999.0}, "decoding, depth 12, 64 rows, tokens/s"),
        (5, {"verdict": "WRONG"}, "attention equals float64"),
        (6, {"backend": "sdpa"}, "attention chosen by itself"),
        (7, {"difference": 0.03}, "killed and resumed: loss against the unbroken run"),
        (7, {"difference": float("nan")}, "killed and resumed: loss against the unbroken run"),
        (8, {"last_loss": float("nan")}, "--dtype float32"),
        (10, {"what": "pocket mid_train", "seconds": 1.0}, "all stages of pocket"),
        (12, {"difference": 0.03}, "training on all GPUs: loss against one GPU"),
        (11, {"step_s": 16.0}, "a step of RL, depth 12, 256 answers of 256 tokens"),
    ],
)
def test_a_figure_that_is_not_reached_misses_its_aim_only(
    gpu_aims, gpu_check, index, worse, missed
):
    rows = [*GOOD[:index], {**GOOD[index], **worse}, *GOOD[index + 1 :]]
    assert [name for name, *_, word in gpu_aims.verdicts(rows) if "missed" in word] == [missed]
    assert gpu_check.green([{"status": "ok"}], GOOD)
    assert not gpu_check.green([{"status": "ok"}], rows)
    assert not gpu_check.green([{"status": "skipped: only 3 s left"}], GOOD)


def test_every_part_for_a_gpu_has_an_aim_or_a_table_and_the_first_ten_minutes_the_main_ones(
    gpu_check,
):
    names = [part.name for part in gpu_check.FULL_PARTS]
    assert names[:3] == ["train 24 bf16", "train 24 fp8", "decode 12"]
    assert {name.split()[0] for name in names} == {p.name.split()[0] for p in gpu_check.TINY_PARTS}
    assert sum(part.budget_s for part in gpu_check.FULL_PARTS[:5]) <= 570


@pytest.mark.slow
def test_a_part_without_its_package_says_so_and_is_no_failure(tmp_path, gpu_check, monkeypatch):
    (tmp_path / "pyarrow.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'pyarrow'\", name='pyarrow')\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    part = gpu_check.Part("train 2 bf16", 300, 0)
    status, _ = gpu_check.run_part(part, tmp_path / "log", device="cpu", compiled=False)
    assert status["status"] == "not here: No module named 'pyarrow'"
    assert gpu_check.green([status], [])


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
