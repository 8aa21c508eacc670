"""Two machines made of processes: launchers of their own, folders of their own, one network."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parent.parent
TINY = (
    "--run tiny --depth 1 --width 32 --heads 2 --sequence-length 32 --tokens-per-step 256 "
    "--device-batch-size 4 --tokens 4096 --no-compile --log-every 1 --device cpu --val-rows 4 "
    "--threads 1 --dtype float64 --data texts.jsonl"
).split()


@dataclass
class Node:
    """A machine: its folder, its address, and how a command is started on it."""

    folder: Path
    address: str
    interface: str
    prefix: list[str] = field(default_factory=list)
    launched: list["Launched"] = field(default_factory=list)

    @property
    def base(self) -> Path:
        return self.folder / "base"

    def start(self, port: int, master: str, words: list[str]) -> "Launched":
        """torchrun on this machine, one process, meeting the other machine's."""
        # torchrun knows the host of the meeting by its name only; these addresses have none.
        is_host = int(self.address == master)
        launch = (
            "--nnodes 2 --nproc-per-node 1 --rdzv-backend c10d --rdzv-id test "
            f"--rdzv-endpoint {master}:{port} --rdzv-conf is_host={is_host} "
            f"--local-addr {self.address}"
        )
        command = [sys.executable, "-m", "torch.distributed.run", *launch.split(), *words]
        env = {
            **os.environ,
            "NANOCHAT_BASE_DIR": str(self.base),
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": self.interface,
        }
        process = subprocess.Popen(
            [*self.prefix, *command],
            cwd=self.folder,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.launched.append(Launched(process))
        return self.launched[-1]


class Launched:
    """A launcher at work; what it and its processes say is collected."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._news:
                self.lines.append(line)
                self._news.notify_all()

    @property
    def said(self) -> str:
        return "".join(self.lines)

    def wait_for(self, words: str, timeout_s: float = 120) -> None:
        with self._news:
            found = self._news.wait_for(lambda: words in self.said, timeout_s)
        assert found, self.said[-3000:]

    def finish(self, timeout_s: float = 200) -> int:
        status = self.process.wait(timeout_s)
        self._reader.join(10)
        return status

    def kill(self) -> None:
        """End the launcher and its processes at once, as when the machine loses its power."""
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        workers = [int(word) for word in path.read_text().split()] if path.exists() else []
        for pid in (self.process.pid, *workers):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(30)


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def write_texts(folder: Path, animal: str = "cat") -> list[str]:
    """The same text wherever it is written."""
    texts = [f"The {animal} number {i} sat and saw {i * 7} mice.\n" * 8 for i in range(60)]
    folder.mkdir(parents=True, exist_ok=True)
    rows = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (folder / "texts.jsonl").write_text(rows)
    return texts


def write_chats(path: Path) -> None:
    def message(role: str, content: str) -> dict[str, str]:
        return {"role": role, "content": content}

    rows = [
        {"messages": [message("user", f"cat {i}"), message("assistant", f"mice {i}")]}
        for i in range(80)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@contextlib.contextmanager
def two_ports(folder: Path) -> Iterator[list[Node]]:
    """Two machines that share this one's network, each with an address of its own in it."""
    yield [Node(folder / f"node{i}", f"127.0.0.{i + 1}", "lo") for i in range(2)]


@contextlib.contextmanager
def two_networks(folder: Path) -> Iterator[list[Node]]:
    """Two network namespaces that see each other over a cable and nothing else.

    Raises: OSError or CalledProcessError where that is not allowed.
    """
    names = [f"nano{os.getpid()}n{i}" for i in range(2)]
    cables = [f"nc{os.getpid()}{i}" for i in range(2)]
    with contextlib.ExitStack() as stack:
        for name in names:
            _ip("netns", "add", name)
            stack.callback(_ip, "netns", "del", name)
        _ip("link", "add", cables[0], "type", "veth", "peer", "name", cables[1])
        for i, (name, cable) in enumerate(zip(names, cables, strict=True)):
            _ip("link", "set", cable, "netns", name)
            _ip("-n", name, "addr", "add", f"10.77.0.{i + 1}/24", "dev", cable)
            _ip("-n", name, "link", "set", cable, "up")
            _ip("-n", name, "link", "set", "lo", "up")
        yield [
            Node(folder / f"node{i}", f"10.77.0.{i + 1}", cables[i], ["ip", "netns", "exec", name])
            for i, name in enumerate(names)
        ]


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
