"""Kill training at random moments, resume it, and compare the result with an undisturbed run.

python benchmarks/faults.py --kills 200 --folder /tmp/faults     # continues if it was interrupted
python benchmarks/faults.py --kills 8 --stages chat_rl --ranks 1

Every stage trains a tiny model on one thread, in float32, on one rank and on two, with built-in
faults (see faulty_stage.py): non-finite steps, single and five in a row, which make the run go back
to a checkpoint, and saves that fail because the disk is full. Half of the kills (SIGKILL to all
ranks) come at any time, half while a checkpoint is being written. After each kill, the newest
checkpoint that the run had reported as saved must exist and be valid. Then, one time in three, it
is damaged (a byte flipped, a file truncated or removed), and the run must resume from the previous
one. At the end, weights, optimizer and metrics (except times) must equal those of the undisturbed
run bit for bit. One time in five the run is asked to stop (SIGTERM to one rank) instead of being
killed; that does not count as a kill.
"""

import argparse
import contextlib
import hashlib
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from nanochat import checkpoint_manager, tokenizer
from nanochat.system.metrics import MEASURED, read_rows

ROOT = Path(__file__).parent.parent
STAGES = ("base_train", "mid_train", "chat_sft", "chat_rl")
COMMON = (
    "--no-compile --device cpu --dtype float32 --threads 1 --log-every 3 --save-every 5 "
    "--eval-every 10".split()
)
MODEL = "--depth 1 --width 32 --heads 2 --sequence-length 64 --tokens-per-step 512 --tokens 30720"
CHAT = "--tokens-per-step 128 --epochs 3"
RL = "--steps 40 --eval-items 2 --prompts-per-step 2 --samples-per-prompt 2 --max-new-tokens 4"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200, help="total number of kills [200]")
    parser.add_argument("--most", type=int, default=6, help="most kills per run, at least 2 [6]")
    parser.add_argument("--stages", nargs="+", default=list(STAGES), choices=STAGES)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--folder", type=Path, help="kept, so it can be continued; default: temporary"
    )
    given = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = given.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        os.environ["NANOCHAT_BASE_DIR"] = str(folder)
        prepare(folder)
        log = folder / "kills.jsonl"
        done = len(log.read_text().splitlines()) if log.exists() else 0
        cases = [Case(stage, ranks) for stage in given.stages for ranks in given.ranks]
        for case in cases:
            case.reference()
        for number in itertools.count():
            if done >= given.kills and number >= len(cases):
                break
            case = cases[number % len(cases)]
            for kill in case.disturb(random.Random(f"{given.seed} {done} {number}"), given.most):
                done += 1
                with log.open("a") as file:
                    file.write(json.dumps(kill) + "\n")
            print(
                f"{done:,} of {given.kills:,} kills: {case} ended like the undisturbed run",
                flush=True,
            )
        kills = [json.loads(line) for line in log.read_text().splitlines()]
        in_saves = sum(kill["in_save"] for kill in kills)
        damaged = sum(kill["damaged"] is not None for kill in kills)
        print(
            f"{done:,} kills, {in_saves:,} of them while saving, {damaged:,} followed by damage to "
            "the newest checkpoint: nothing lost, all results identical"
        )


def prepare(folder: Path) -> None:
    """Write texts, conversations, problems and a character tokenizer."""
    if (folder / "tokenizers" / "t" / "tokenizer.json").exists():
        return
    texts = [f"The cat number {i} sat on the mat and saw {i * 7} mice.\n" * 4 for i in range(80)]
    chats = [
        {
            "messages": [
                {"role": "user", "content": f"cat {i}"},
                {"role": "assistant", "content": f"mat {i}"},
            ]
        }
        for i in range(120)
    ]
    problems = [
        {"question": f"{i} + 1", "answer": f"<<{i}+1={i + 1}>> #### {i + 1}"} for i in range(90)
    ]
    (folder / "gsm8k").mkdir(parents=True, exist_ok=True)
    for name, rows in (
        ("texts.jsonl", [{"text": text} for text in texts]),
        ("chats.jsonl", chats),
        ("gsm8k/train.jsonl", problems),
        ("gsm8k/test.jsonl", problems[:10]),
    ):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    everything = "".join(texts) + json.dumps(chats) + json.dumps(problems)
    tokenizer.save(
        tokenizer.train_char([everything]), folder / "tokenizers" / "t" / "tokenizer.json"
    )


@dataclass
class Case:
    """One stage on a number of ranks."""

    stage: str
    ranks: int

    def __str__(self) -> str:
        return f"{self.stage} on {self.ranks}"

    def folder(self, run: str) -> Path:
        return Path(os.environ["NANOCHAT_BASE_DIR"], "runs", run, self.stage)

    def command(self, run: str) -> list[str]:
        base = Path(os.environ["NANOCHAT_BASE_DIR"])
        args = [*COMMON, "--run", run, "--resume"]
        if self.stage == "base_train":
            args += [*MODEL.split(), "--tokenizer", "t", "--data", str(base / "texts.jsonl")]
            args += ["--device-batch-size", "4", "--val-rows", "4"]
        else:
            before = STAGES[STAGES.index(self.stage) - 1]
            args += ["--source", str(Case(before, 1).folder(undisturbed(1)))]
            args += ["--device-batch-size", "4"]
            if self.stage == "chat_rl":
                args.remove("--no-compile")
                args += [*RL.split(), "--tasks", f"gsm8k={base / 'gsm8k'}"]
            else:
                args += [*CHAT.split(), "--data", str(base / "chats.jsonl")]
        script = str(ROOT / "benchmarks" / "faulty_stage.py")
        if self.ranks == 1:
            return [sys.executable, script, self.stage, *args]
        launch = ["torch.distributed.run", "--standalone", f"--nproc_per_node={self.ranks}"]
        return [sys.executable, "-m", *launch, script, "--", self.stage, *args]

    def start(self, run: str) -> subprocess.Popen:
        (self.folder(run).parent).mkdir(parents=True, exist_ok=True)
        with (self.folder(run).parent / f"{self.stage}.log").open("a") as log:
            return subprocess.Popen(
                self.command(run),
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
                start_new_session=True,
            )

    def finish(self, run: str) -> None:
        if self.start(run).wait() != 0:
            log = (self.folder(run).parent / f"{self.stage}.log").read_text()
            raise SystemExit(f"{self} failed in run {run}:\n{log[-3000:]}")

    def reference(self) -> None:
        """Run this case undisturbed, after the stages before it on one rank."""
        before = [Case(stage, 1) for stage in STAGES[: STAGES.index(self.stage)]]
        for case in [*before, self]:
            if not (case.folder(undisturbed(case.ranks)) / "result.json").exists():
                case.finish(undisturbed(case.ranks))

    def disturb(self, dice: random.Random, most: int) -> list[dict]:
        """Train to the end with up to `most` kills; returns a record of each kill.

        Raises: SystemExit if a checkpoint is lost or the result differs.
        """
        run = f"killed{self.ranks}"
        folder = self.folder(run)
        shutil.rmtree(folder, ignore_errors=True)
        log = folder.parent / f"{self.stage}.log"
        log.unlink(missing_ok=True)
        kills = []
        for _ in range(dice.randint(2, most)):
            process, in_save = self.start(run), dice.random() < 0.5
            delay_s = dice.uniform(0, 0.02) if in_save else dice.uniform(1, 9)
            wait_for_save = dice.randint(1, 4)
            in_save = in_save and await_saving(folder, process, wait_for_save)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(delay_s)
            ended = process.poll() is not None
            asked = not ended and dice.random() < 1 / 5
            if asked:
                os.kill(self.worker(process), signal.SIGTERM)
                process.wait()
                ended = (folder / "result.json").exists()
            kill_all(process)
            if ended:
                break
            step = self.newest(run, log)
            if asked:
                continue
            kill = {"case": str(self), "in_save": in_save, "step": step, "damaged": None}
            if dice.random() < 1 / 3 and len(checkpoint_manager.steps(folder)) > 1:
                kill["damaged"] = damage(checkpoint_manager.latest(folder), dice)
                log.write_text("")  # the damaged checkpoint is no longer expected to be valid
            kills.append(kill)
        self.finish(run)
        expected, found = self.end(undisturbed(self.ranks)), self.end(run)
        for name in expected:
            if expected[name] != found[name]:
                raise SystemExit(f"{self}: {name} differs from the undisturbed run: see {folder}")
        return kills

    def worker(self, process: subprocess.Popen) -> int:
        """The pid of a training process: torchrun's first child, once it has one."""
        children = descendants(process.pid)
        return children[0] if self.ranks > 1 and children else process.pid

    def newest(self, run: str, log: Path) -> int:
        """The step of the newest valid checkpoint; 0 if the run has not reported a save.

        Raises: SystemExit if it is older than the last one that the run reported as saved.
        """
        lines = log.read_text().splitlines() if log.exists() else []
        prefixes = ("saved ", "back to ")  # going back discards the checkpoints after that one
        logged = [line.removeprefix(p) for line in lines for p in prefixes if line.startswith(p)]
        if not logged:
            return 0
        expected = Path(logged[-1].partition(",")[0])
        valid, _ = checkpoint_manager.newest_valid(self.folder(run))
        if valid is None or valid < expected:
            raise SystemExit(f"{self}: {expected} was saved and is lost")
        return checkpoint_manager.step_of(valid)

    def end(self, run: str) -> dict[str, str]:
        """Everything that must be equal at the end, by name."""
        last = checkpoint_manager.latest(self.folder(run))
        assert last is not None
        rows = [
            {key: value for key, value in row.items() if key not in MEASURED}
            for row in read_rows(self.folder(run) / "metrics.jsonl")
        ]
        files = {
            name: (last / name).read_bytes()
            for name in ("model.safetensors", "optimizer.safetensors")
        }
        found = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
        return {"checkpoint": last.name, **found, "metrics": json.dumps(rows)}


def undisturbed(ranks: int) -> str:
    """The name of the run that is never killed."""
    return f"whole{ranks}"


def descendants(pid: int) -> list[int]:
    """All child processes, recursively; empty if the process has ended."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid for child in map(int, children) for pid in (child, *descendants(child))]


def kill_all(process: subprocess.Popen) -> None:
    """SIGKILL a process and its descendants: torchrun's workers are in separate sessions."""
    pids = [*descendants(process.pid), process.pid]
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()
    while any(is_alive(pid) for pid in pids):
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    """Whether a process is still running; an orphan may remain a zombie for a while."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def damage(checkpoint: Path | None, dice: random.Random) -> str:
    """Damage one file of a checkpoint like a bad disk would; returns a description."""
    assert checkpoint is not None
    path = dice.choice(sorted(checkpoint.iterdir()))
    kind = dice.choice(("flipped", "cut", "removed"))
    data = bytearray(path.read_bytes())
    if kind == "flipped":
        data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
        path.write_bytes(data)
    elif kind == "cut":
        path.write_bytes(data[: dice.randrange(len(data))])
    else:
        path.unlink()
    return f"{path.name} {kind}"


def await_saving(folder: Path, process: subprocess.Popen, count: int) -> bool:
    """Wait until the `count`-th checkpoint is being written; False if the process ended."""
    seen: set[str] = set()
    while process.poll() is None:
        found = (path.name for path in folder.glob(".step_*"))
        seen.update(name for name in found if not name.endswith("removed_"))
        if len(seen) >= count:
            return True
        time.sleep(0.0005)
    return False


if __name__ == "__main__":
    main()
