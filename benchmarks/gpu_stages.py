"""Parts of gpu_check that run the package's own commands, and a step of reinforcement learning.

python benchmarks/gpu_stages.py base_train ...    # a stage; needs no compiled tokenizer
"""

import importlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from gpu_common import EXTENSION, Skipped, Work, without_extension

from nanochat.system import device as devices
from nanochat.system.metrics import read_rows

POCKET = "tok_train base_train mid_train chat_sft chat_rl chat_eval".split()
# Few steps: that the stages run on this device is what is asked.
POCKET_FLAGS = {
    "tok_train": "--pocket-characters 2000000",
    "base_train": "--pocket-characters 2000000 --tokens {tokens} --val-rows 16",
    "mid_train": "--conversations {conversations}",
    "chat_sft": "--conversations {conversations}",
    "chat_rl": "--steps 2 --eval-items 8 --prompts-per-step 4 --samples-per-prompt 4",
    "chat_eval": "--stages chat_rl --max-items 8",
}


def check_resuming(work: Work) -> None:
    """Kill base training (SIGKILL) after its first checkpoint, resume it, and compare the ends."""
    with tempfile.TemporaryDirectory() as folder:
        flags = _base_train_flags(work, Path(folder), steps=24)
        flags += "--save-every 8 --log-every 1".split()
        _run_stage(work, folder, "base_train", [*flags, "--run", "unbroken"])
        killed_at = _kill_after_a_save(work, folder, [*flags, "--run", "killed"])
        _run_stage(work, folder, "base_train", [*flags, "--run", "killed", "--resume"])
        ends = [_losses(folder, run) for run in ("unbroken", "killed")]
    # Kernels that add in any order make the last bits of a GPU's gradients differ from run to run.
    difference = abs(ends[0][-1] - ends[1][-1])
    work.add("stages", what="killed and resumed", killed_at=killed_at, difference=difference)
    assert len(ends[0]) == len(ends[1]), "rows of metrics are missing"


def check_ranks(work: Work) -> None:
    """Train on all GPUs of this machine, and on one; compare the first steps.

    The only part in which processes send each other gradients and weights.
    Raises: Skipped if there is only one GPU.
    """
    ranks = min(8, torch.cuda.device_count()) if work.device.type == "cuda" else 2
    if ranks < 2:
        raise Skipped("there is only one GPU")
    with tempfile.TemporaryDirectory() as folder:
        flags = _base_train_flags(work, Path(folder), steps=24)
        flags += "--eval-every 8 --sample-every 12 --save-every 8 --log-every 1".split()
        begin_s = time.perf_counter()
        _run_stage(work, folder, "base_train", [*flags, "--run", "all"], ranks=ranks)
        seconds = time.perf_counter() - begin_s
        _run_stage(work, folder, "base_train", [*flags, "--run", "one"])
        losses = [_losses(folder, run) for run in ("all", "one")]
    # Rounding grows from step to step; a sum over ranks that is wrong shows at once.
    pairs = list(zip(*losses, strict=True))[:6]
    difference = max(abs(together - alone) for together, alone in pairs)
    work.note(f"trained on {ranks} at a time")
    work.add("stages", what="all GPUs and one", seconds=seconds, difference=difference)


def check_float32(work: Work) -> None:
    """Train in float32, for which few attention kernels are made."""
    with tempfile.TemporaryDirectory() as folder:
        flags = _base_train_flags(work, Path(folder), steps=6)
        flags += "--dtype float32 --log-every 1 --run float32".split()
        _run_stage(work, folder, "base_train", flags)
        losses = _losses(folder, "float32")
    work.add("stages", what="float32", first_loss=losses[0], last_loss=losses[-1])


def check_pocket(work: Work) -> None:
    """Run the stages of the preset pocket, shortened, one after the other."""
    if EXTENSION in sys.modules and without_extension():
        raise Skipped("the compiled tokenizer is not built (uv sync builds it)")
    with tempfile.TemporaryDirectory() as folder:
        for name in POCKET:
            tokens = work.scale.pocket_tokens
            words = POCKET_FLAGS[name].format(tokens=tokens, conversations=tokens // 200).split()
            flags = ["--preset", "pocket", "--run", "pocket", *words]
            if not work.compiled and name in ("base_train", "mid_train", "chat_sft"):
                flags.append("--no-compile")
            begin_s = time.perf_counter()
            _run_stage(work, folder, name, flags)
            work.add("stages", what=f"pocket {name}", seconds=time.perf_counter() - begin_s)
    work.add("stages", what="pocket", complete=True)


def check_rl(work: Work, depth: int) -> None:
    """Time steps of reinforcement learning: 256 answers to 16 prompts, and training on them."""
    import base_training
    import gpu_models

    from nanochat import optim
    from nanochat.gpt import GPTConfig
    from nanochat.optim import OptimConfig
    from nanochat.optim.schedules import StepSettings
    from nanochat.system.distributed import Run
    from nanochat.training.rollouts import RewardTask, RolloutBatches, RolloutOptions
    from nanochat.training.trainer import token_loss

    scale = work.scale
    sizes = GPTConfig(
        depth=depth, sequence_length=scale.sequence_length, vocab_size=scale.vocab_size
    )
    model = gpu_models._model(work, sizes)
    encoder = base_training.char_tokenizer(scale.vocab_size)
    run = Run(device=work.device, compute_dtype=model.compute_dtype)
    optimizer = optim.build(model, OptimConfig(), run, tokens_per_step=2**14)
    options = RolloutOptions(max_new_tokens=scale.rl_tokens, max_rounds=1)
    batches = RolloutBatches(
        model, encoder, cast(RewardTask, _Questions()), options, device_rows=8, run=run, seed=0
    )
    loss_fn = token_loss(model.loss)
    steps_s, sampling_s, tokens = [], [], 0
    for _ in range(3):
        begin_s = time.perf_counter()
        micro_batches = batches.next_step()
        devices.synchronize(work.device)
        sampling_s.append(time.perf_counter() - begin_s)
        factor = torch.tensor(1e-4, device=work.device)
        for i, batch in enumerate(micro_batches):
            with optimizer.accumulate(last=i == len(micro_batches) - 1):
                loss_fn(batch, factor).backward()
        optimizer.step(StepSettings(lr_scale=0.0))
        devices.synchronize(work.device)
        steps_s.append(time.perf_counter() - begin_s)
        if work.late(needed_s=2 * steps_s[-1]):
            break
    found = batches.figures()
    answers = options.prompts_per_step * options.samples_per_prompt
    tokens = found["answer_tokens"] * answers
    work.add(
        "rl",
        depth=depth,
        answers=answers,
        answer_tokens=found["answer_tokens"],
        step_s=statistics.median(steps_s[1:] or steps_s),
        sampling_s=statistics.median(sampling_s[1:] or sampling_s),
        tokens_per_s=tokens / statistics.median(sampling_s[1:] or sampling_s),
        memory_bytes=devices.memory_used(work.device),
    )


class _Questions:
    """Questions to which about half of a random model's answers are right."""

    name, kind = "questions", "generate"

    def __len__(self) -> int:
        return 1000

    def __getitem__(self, index: int) -> Any:
        question = chr(0x4E00 + index % 100) * (20 + index % 60)
        return {
            "messages": [
                {"role": "user", "content": question},
                {"role": "assistant", "content": chr(0x4E00)},
            ]
        }

    def evaluate(self, index: int, text: str) -> bool:
        return self.reward(index, text) > 0

    def reward(self, index: int, text: str) -> float:
        return float(sum(map(ord, text[:8])) % 2)

    def choices(self, index: int) -> list[str]:
        return []


def _base_train_flags(work: Work, folder: Path, *, steps: int) -> list[str]:
    """A short base training on random text, which is written with its tokenizer."""
    import base_training

    length = work.scale.sequence_length // 2
    tokens_per_step = 8 * length
    text = base_training.write_texts(folder, work.scale.text_vocab, 2 * steps * tokens_per_step)
    flags = f"--depth {work.scale.stage_depth} --sequence-length {length} --val-rows 2"
    flags += f" --tokens-per-step {tokens_per_step} --tokens {steps * tokens_per_step}"
    flags += f" --device-batch-size 4 --tokenizer t --data {text}"
    return [*flags.split(), *([] if work.compiled else ["--no-compile"])]


def _command(work: Work, name: str, flags: Sequence[str], ranks: int = 1) -> list[str]:
    device = [] if name in ("tok_train",) else ["--device", work.device.type]
    stage = [__file__, name, "--", *flags, *device]
    launch = f"-m nanochat.system.launcher --standalone --nproc-per-node {ranks}".split()
    return [sys.executable, *(launch if ranks > 1 else []), *stage]


def _run_stage(work: Work, folder: str, name: str, flags: Sequence[str], *, ranks: int = 1) -> None:
    """Run a stage to its end. Raises: RuntimeError with the end of its output if it fails."""
    process = _start(_command(work, name, flags, ranks), folder)
    assert process.stdout is not None
    last = "no output"
    for line in process.stdout:  # at once, as this part may be cut short
        print(line, end="", flush=True)
        last = line.strip() or last
    if process.wait() != 0:
        raise RuntimeError(f"{name} ended with {process.returncode}: {last}")


def _start(command: Sequence[str], folder: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        command,
        env={**os.environ, "NANOCHAT_BASE_DIR": folder, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _kill_after_a_save(work: Work, folder: str, flags: Sequence[str]) -> int:
    """Kill a training two steps after it has saved; returns the last step that it logged."""
    process = _start(_command(work, "base_train", flags), folder)
    metrics = Path(folder, "runs", "killed", "base_train", "metrics.jsonl")
    assert process.stdout is not None
    for line in process.stdout:
        print(line, end="", flush=True)
        if line.startswith("saved "):
            break
    # The stage may go on writing: the pipe is closed only when it has been killed.
    rows = read_rows(metrics)
    while process.poll() is None and len(read_rows(metrics)) < len(rows) + 2:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    if Path(metrics.parent, "result.json").exists():
        raise RuntimeError("training ended before it could be killed")
    return int(read_rows(metrics)[-1]["step"])


def _losses(folder: str, run: str) -> list[float]:
    rows = read_rows(Path(folder, "runs", run, "base_train", "metrics.jsonl"))
    return [row["loss"] for row in rows if "loss" in row]


if __name__ == "__main__":
    without_extension()
    from nanochat.system import config

    module = importlib.import_module(f"nanochat.stages.{sys.argv[1]}")
    config.cli(lambda: module.main(sys.argv[2:]))
