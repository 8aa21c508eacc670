"""One call of speedrun.sh on a folder of its own, and what is left when it has ended."""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faults import descendants

from nanochat import checkpoint_manager
from nanochat.report.data import STAGES as STAGES_OF_REPORT

ROOT = Path(__file__).parent.parent
TRAINING = ("base_train", "mid_train", "chat_sft", "chat_rl")
STAGES = tuple(STAGES_OF_REPORT)
LONGEST_S = 900.0
TIMED = {"speed", "data wait share", "share spent sampling"}  # of the machine, not of the run
# The environment has just been set up, by rehearsal.sh or for the tests.
BOOTSTRAP = """log() {{ printf '%s\\n' "$*" >&2 || true; }}
bootstrap() {{ PYTHON='{python}'; }}
"""


@dataclass
class Place:
    """A base folder, and the script that fills it."""

    folder: Path
    preset: Path
    ranks: int
    hub: str

    @property
    def run(self) -> Path:
        """The run's folder."""
        return self.folder / "base" / "runs" / "speedrun"

    def script(self) -> Path:
        """speedrun.sh in a checkout made of links, whose environment is this Python's."""
        checkout = self.folder / "checkout"
        (checkout / "scripts").mkdir(parents=True, exist_ok=True)
        for name in ("speedrun.sh", "nanochat", "scripts/__init__.py"):
            if not (checkout / name).exists():
                (checkout / name).symlink_to((ROOT / name).resolve())
        text = BOOTSTRAP.format(python=sys.executable)
        (checkout / "scripts" / "bootstrap.sh").write_text(text)
        return checkout / "speedrun.sh"

    def environment(self) -> dict[str, str]:
        """Everything from the server, nothing from elsewhere, and no GPU."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "NANOCHAT_"))}
        return {
            **kept,
            "NANOCHAT_BASE_DIR": str((self.folder / "base").resolve()),
            "NANOCHAT_MIRROR": f"{self.hub}/mirror",
            "HF_ENDPOINT": self.hub,
            "HF_HOME": str((self.folder / "hf").resolve()),
            "HTTPS_PROXY": "http://127.0.0.1:9",  # nobody listens there
            "NO_PROXY": "127.0.0.1,localhost",
            "TORCHINDUCTOR_CACHE_DIR": str((self.folder.parent / "compiled").resolve()),
            "CUDA_VISIBLE_DEVICES": "",
            "PRESET": str(self.preset.resolve()),
            "PROCESSES": str(self.ranks),
            "PYTHONUNBUFFERED": "1",
        }


class Attempt:
    """speedrun.sh at work; its output is collected, and printed if `show`."""

    def __init__(self, place: Place, *, show: bool) -> None:
        self.place = place
        self.lines: list[str] = []
        self.start_s = time.monotonic()
        command = ["bash", str(place.script()), "--no-serve"]
        self.process = subprocess.Popen(
            command,
            env=place.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, args=(show,), daemon=True)
        self._reader.start()

    def _read(self, show: bool) -> None:
        assert self.process.stdout is not None
        with (self.place.folder / "output.log").open("a", encoding="utf-8") as log:
            for line in self.process.stdout:
                self.lines.append(line.rstrip("\n"))
                seconds = time.monotonic() - self.start_s
                log.write(f"{seconds:6.1f} {line}")
                log.flush()
                if show or line.startswith("== "):
                    print(f"{seconds:6.1f} {line}", end="", flush=True)

    def finish(self) -> int:
        """Wait for the end; the exit status. Raises: SystemExit if it does not end."""
        try:
            status = self.process.wait(LONGEST_S)
        except subprocess.TimeoutExpired:
            raise SystemExit(f"{self.place.folder}: no end after {LONGEST_S:.0f} s") from None
        self._reader.join(5)
        return status

    def saw(self, pattern: str) -> bool:
        """Whether a line of its output matches."""
        return any(re.search(pattern, line) for line in self.lines)

    def is_running(self, word: str) -> bool:
        """Whether one of its processes has the word in its command line."""
        return any(_runs(pid, word) for pid in descendants(self.process.pid))

    def launcher(self) -> int | None:
        """The pid of torchrun, while there is one."""
        found = [p for p in descendants(self.process.pid) if _runs(p, "nanochat.system.launcher")]
        return found[0] if found else None

    def workers(self) -> list[int]:
        """The pids of torchrun's processes."""
        launcher = self.launcher()
        return [p for p in descendants(launcher) if _runs(p, "scripts.")] if launcher else []

    def resumed_at(self, stage: str) -> str:
        """Where a stage went on in this attempt, as its output says."""
        lines = self.lines
        if f"== {stage}: already complete" in lines:
            return "complete"
        for line in lines:
            found = re.match(rf"resuming {stage} from .*step_0*(\d+)", line)
            if found:
                return f"step {found[1]}"
        started = f"== {stage}" in lines or (stage == "report" and self.saw("report.html$"))
        return "its start" if started else "not reached"


def _runs(pid: int, word: str) -> bool:
    try:
        return word in Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return False


def step_of(place: Place, stage: str) -> int:
    """The last step that a training stage has logged."""
    with_step = re.findall(r'"step": ?(\d+)', _text(place.run / stage / "metrics.jsonl"))
    return int(with_step[-1]) if with_step else 0


def problems(place: Place) -> list[str]:
    """What is missing after a run that should be complete."""
    found = [
        f"{place.folder.name}: no {stage}/result.json"
        for stage in STAGES
        if not (place.run / stage / "result.json").exists()
    ]
    report = _text(place.run / "report.html")
    missing = [title for title, _ in STAGES_OF_REPORT.values() if title not in report]
    if missing:
        found.append(f"{place.folder.name}: report.html does not have {', '.join(missing)}")
    return found


def compare(first: Place, second: Place, stage: str) -> str:
    """ "equal", or what differs between two runs' results of a stage."""
    pair = [_results(place, stage) for place in (first, second)]
    names = [name for name in pair[0] | pair[1] if pair[0].get(name) != pair[1].get(name)]
    return f"DIFFERENT: {', '.join(names[:3])}" if names or not pair[0] else "equal"


def _results(place: Place, stage: str) -> dict[str, Any]:
    """Everything of a stage that must not depend on interruptions, by name."""
    section = _section(place, stage)
    rows = section.get("results", [])
    found = {f"{row.get('stage', '')} {row['name']}".strip(): row["value"] for row in rows}
    found = {name: value for name, value in found.items() if name not in TIMED}
    if stage == "tok_train":
        found["tokenizer"] = section.get("settings", {}).get("tokenizer_sha256")
    if stage in TRAINING:
        last = checkpoint_manager.latest(place.run / stage)
        for name in ("model.safetensors", "optimizer.safetensors") if last else ():
            found[name] = hashlib.sha256((last / name).read_bytes()).hexdigest()
    return found


def _section(place: Place, stage: str) -> dict[str, Any]:
    """A stage's section of the report; empty if it has none yet."""
    return json.loads(_text(place.run / stage / "result.json") or "{}")


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""
