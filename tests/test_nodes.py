"""Several machines without a shared file system: only the first has checkpoints and tokenizer."""

import contextlib
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from nanochat import checkpoint_manager, tokenizer
from nanochat.data import Batch, StreamBatches
from nanochat.stages import base_train
from nanochat.system.errors import DataError
from nanochat.system.metrics import read_rows
from tests.node_helpers import (
    ROOT,
    TINY,
    Node,
    free_port,
    two_networks,
    two_ports,
    write_chats,
    write_texts,
)
from tests.test_downloads import Server, parquet

pytestmark = [
    pytest.mark.skipif(not dist.is_available(), reason="torch without distributed"),
    pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc"),
]
CHAT = (
    "--run tiny --tokens-per-step 64 --device-batch-size 4 --no-compile --log-every 1 --device cpu "
    "--threads 1 --data chats.jsonl"
).split()


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in read_rows(folder / "metrics.jsonl") if "loss" in row]


def give_tokenizer(node: Node, texts: list[str]) -> None:
    tokenizer.save(tokenizer.train_char(texts), node.base / "tokenizers/tiny/tokenizer.json")


def on_both(nodes: list[Node], *args: str) -> list[tuple[int, str]]:
    """Run a stage on both machines to its end; exit status and output of each."""
    port = free_port()
    launched = [node.start(port, nodes[0].address, list(args)) for node in nodes]
    return [(each.finish(), each.said) for each in launched]


@pytest.fixture
def nodes(tmp_path):
    """Two machines in separate networks, or on separate ports where namespaces are refused."""
    with contextlib.ExitStack() as stack:
        try:
            found = stack.enter_context(two_networks(tmp_path))
        except (OSError, subprocess.CalledProcessError) as error:
            warnings.warn(f"no network namespaces here ({error}): two ports of one", stacklevel=1)
            found = stack.enter_context(two_ports(tmp_path))
        yield found
        for launched in [each for node in found for each in node.launched]:
            launched.kill()


@pytest.mark.slow
def test_two_machines_train_are_killed_and_resume_like_one_process(nodes, tmp_path, monkeypatch):
    for node in nodes:
        texts = write_texts(node.folder)
        write_chats(node.folder / "chats.jsonl")
    give_tokenizer(nodes[0], texts)
    args = ["-m", "scripts.base_train", "--", *TINY, "--save-every", "4"]

    port = free_port()
    launched = [node.start(port, nodes[0].address, args) for node in nodes]
    launched[0].wait_for("step_000008\n")
    for each in launched:
        each.kill()
    folder = nodes[0].base / "runs/tiny/base_train"
    assert not (folder / "result.json").exists()

    for status, output in on_both(nodes, *args, "--resume"):
        assert status == 0, output[-3000:]
    assert (folder / "result.json").exists()
    assert {path.name for path in nodes[1].base.iterdir()} == {"data", "tokens"}

    alone = tmp_path / "alone"
    write_texts(alone)
    shutil.copytree(nodes[0].base / "tokenizers", alone / "base/tokenizers")
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(alone / "base"))
    monkeypatch.chdir(alone)
    base_train.main(TINY)
    expected = losses(alone / "base/runs/tiny/base_train")
    assert len(expected) == 16
    # weights are kept in float32, so sums over ranks differ from sums within one in the last bits
    assert losses(folder) == pytest.approx(expected, rel=1e-5)

    for status, output in on_both(nodes, "-m", "scripts.mid_train", "--", *CHAT):
        assert status == 0, output[-3000:]
    assert checkpoint_manager.latest(nodes[0].base / "runs/tiny/mid_train") is not None
    assert not (nodes[1].base / "runs").exists()


@dataclass(frozen=True)
class Case:
    """A stage on two ranks, by default each on its own machine."""

    port: int
    args: list[str]
    one_machine: bool = False  # both ranks are processes of one launcher
    swapped: bool = False  # the machines swap ranks
    fails_at: int | None = None  # the step whose rows rank 1 fails to make


def outcome(case: Case, rank: int, folder: Path) -> str:
    """What a rank of a case raises, in its process."""
    machine = rank != case.swapped
    os.chdir(folder / f"node{int(machine)}")
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK="0",
        WORLD_SIZE="2",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(case.port),
        GROUP_RANK="0" if case.one_machine else str(rank),
        TORCHELASTIC_USE_AGENT_STORE="True",  # as torchrun has it: the store outlives a rank
        TORCHELASTIC_RESTART_COUNT="0",
        NANOCHAT_BASE_DIR=str(folder / f"node{int(machine)}" / "base"),
    )
    steps, original = itertools.count(1), StreamBatches.next_step

    def next_step(self: StreamBatches) -> list[Batch]:
        if rank == 1 and next(steps) == case.fails_at:
            raise DataError("these rows are torn")
        return original(self)

    StreamBatches.next_step = next_step
    try:
        base_train.main([*TINY, *case.args])
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        StreamBatches.next_step = original
    return "done"


def rank_process(rank: int, cases: dict[str, Case], folder: str) -> None:
    torch.set_num_threads(1)
    found = {}
    for name, case in cases.items():
        found[name] = outcome(case, rank, Path(folder))
    (Path(folder) / f"rank{rank}.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def endings(tmp_path_factory) -> dict[str, list[str]]:
    """By case, what each rank ended with."""
    folder = tmp_path_factory.mktemp("endings")
    nodes = [Node(folder / f"node{i}", "127.0.0.1", "lo") for i in range(2)]
    for node in nodes:
        texts = write_texts(node.folder)
        (node.folder / "other").mkdir()
    give_tokenizer(nodes[0], texts)
    write_texts(nodes[0].folder / "here")
    for node, animal in zip(nodes, ("cat", "dog"), strict=True):
        write_texts(node.folder / "other", animal)
    stores = [dist.TCPStore("127.0.0.1", 0, is_master=True) for _ in range(7)]
    args = {
        "no tokenizer": {"args": ["--tokenizer", "missing"]},
        "reported once": {"args": ["--tokenizer", "missing"], "one_machine": True},
        "data here only": {"args": ["--data", "here/texts.jsonl"]},
        "other data": {"args": ["--data", "other/texts.jsonl"]},
        "torn": {"args": ["--save-every", "2"], "fails_at": 5},
        "swapped": {"args": ["--resume"], "swapped": True},
        "fine": {"args": ["--resume"]},
    }
    cases = {
        name: Case(port=store.port, **options)
        for store, (name, options) in zip(stores, args.items(), strict=True)
    }
    mp.spawn(rank_process, args=(cases, str(folder)), nprocs=2)
    ranks = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]
    return {name: [rank[name] for rank in ranks] for name in cases}


def texts_of(ending: list[str]) -> list[str]:
    return [text.replace(socket.gethostname(), "HOST") for text in ending]


@pytest.mark.slow
def test_what_the_first_machine_lacks_is_the_same_error_on_all(endings):
    first, second = texts_of(endings["no tokenizer"])
    assert first.startswith("ConfigError: no tokenizer 'missing' in ")
    assert second == first


@pytest.mark.slow
def test_processes_of_one_machine_report_an_error_once(endings):
    texts = texts_of(endings["reported once"])
    assert texts.count("ReportedElsewhere: ") == 1
    assert sum(text.startswith("ConfigError: no tokenizer 'missing'") for text in texts) == 1


@pytest.mark.slow
def test_data_that_one_machine_lacks_is_named_with_the_machine(endings):
    for text in texts_of(endings["data here only"]):
        assert text.startswith("RankError: rank 1 on HOST failed: ")
        assert "here/texts.jsonl" in text


@pytest.mark.slow
def test_machines_with_different_data_do_not_train_together(endings):
    for text in texts_of(endings["other data"]):
        assert text.startswith(
            "DataError: rank 1 on HOST has different data from rank 0 on HOST: its data is "
        )


@pytest.mark.slow
def test_a_rank_that_fails_between_collectives_ends_all_with_its_reason(endings):
    other, own = texts_of(endings["torn"])
    assert own == "DataError: these rows are torn"
    assert other == "RankError: rank 1 on HOST failed: these rows are torn"


@pytest.mark.slow
def test_a_machine_with_checkpoints_must_be_the_first(endings):
    for text in texts_of(endings["swapped"]):
        assert text.startswith("ConfigError: HOST has ")
        assert "step_000004, but rank 0 is on HOST, which has no checkpoint of base_train" in text
    assert texts_of(endings["fine"]) == ["done", "done"]


PREPARE = """
import logging, sys, time
from pathlib import Path
from nanochat import tokenizer
from nanochat.data import DataOptions, open_data
from nanochat.data.token_stream import TokenStream
base = Path(sys.argv[1])
encoder = tokenizer.train_char(["Some text of 0123456789."])
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
(base / f"ready{sys.argv[2]}").touch()
while len(list(base.glob("ready*"))) < 2:
    time.sleep(0.001)
data = open_data(DataOptions(data="climbmix", shards=3), base=base)
stream = TokenStream(data, "train", encoder, 32, seed=1, base=base)
print("rows", stream.rows_per_epoch, int(stream.rows(0, 50).sum()))
"""


@pytest.mark.slow
def test_processes_of_one_machine_download_and_encode_each_shard_once(tmp_path):
    server = Server()
    for index in (*range(3), 6542):
        name = f"karpathy/climbmix-400b-shuffle/resolve/main/shard_{index:05d}.parquet"
        texts = [f"Some text of shard {index}, number {i}." for i in range(20_000)]
        server.files[f"/datasets/{name}"] = parquet(texts)
    env = {**os.environ, "HF_ENDPOINT": server.url, "no_proxy": "127.0.0.1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PREPARE, str(tmp_path), str(i)],
            env={**env, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    output = [process.communicate(timeout=120)[0].splitlines() for process in processes]
    assert output[0][-1] == output[1][-1]
    assert output[0][-1].startswith("rows ")
    encoded = sorted(line for lines in output for line in lines if line.startswith("encoding "))
    assert encoded == [f"encoding shard_{index:05d}.parquet" for index in range(3)]
    assert sorted(path for path, _, _ in server.seen) == sorted(server.files)
    server.http.shutdown()


TORN = """
import os
from nanochat.data import StreamBatches
from nanochat.stages import base_train
from nanochat.system import config
from nanochat.system.errors import DataError
original = StreamBatches.next_step
def next_step(self):
    if os.environ["RANK"] == "1":
        raise DataError("these rows are torn")
    return original(self)
StreamBatches.next_step = next_step
config.cli(base_train.main)
"""


@pytest.mark.slow
def test_under_torchrun_the_reason_of_one_rank_is_one_line_and_all_end(tmp_path):
    texts = write_texts(tmp_path)
    node = Node(tmp_path, "127.0.0.1", "lo")
    give_tokenizer(node, texts)
    (tmp_path / "torn.py").write_text(TORN)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*command, "torn.py", "--", *TINY],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "NANOCHAT_BASE_DIR": str(node.base)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode != 0
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr[-3000:]
    assert errors[0].endswith("these rows are torn")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the kernel of Linux tells them")
def test_processes_whose_launcher_is_killed_save_and_end(tmp_path):
    texts = write_texts(tmp_path)
    node = Node(tmp_path, "127.0.0.1", "lo")
    give_tokenizer(node, texts)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    endless = [*TINY, "--tokens", "256000000", "--val-rows", "4"]
    process = subprocess.Popen(
        [*command, "-m", "nanochat.stages.base_train", "--", *endless],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "NANOCHAT_BASE_DIR": str(node.base)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step 3/"):
            break
    process.kill()
    rest = process.stdout.read()  # until the last of them has closed it
    assert "base_train stopped at step " in rest
    assert list((node.base / "runs" / "tiny" / "base_train").glob("step_*/meta.json"))
