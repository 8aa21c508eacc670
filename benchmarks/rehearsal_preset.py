"""The speedrun preset with smaller sizes, made from the real file when a rehearsal starts.

Owns which keys are reduced. Every other key stays as it is in the file, so that one that a stage
does not know fails in the rehearsal.
"""

import json
import tomllib
from pathlib import Path
from typing import Any

SPEEDRUN = Path(__file__).parent.parent / "nanochat" / "presets" / "speedrun.toml"
Sections = dict[str, dict[str, Any]]


def sizes(ranks: int, *, compiled: bool) -> Sections:
    """What is reduced, and what a CPU is told instead of being asked.

    Building kernels takes longer than all else here, so at most base training does it.
    """
    return {
        # The device and the dtype would be a GPU's; measured, the dtype could differ between runs.
        "common": {
            "device": "cpu",
            "dtype": "float32",
            "device-batch-size": 2,
            "save-every": 6,
            "log-every": 2,
        },
        "tok_train": {"vocab-size": 512, "shards": 2},
        "tok_eval": {"eval-characters": 20_000},
        "base_train": {
            "depth": 2,
            "sequence-length": 128,
            "tokens": 24 * 256 * ranks,
            "tokens-per-step": 256 * ranks,
            "eval-every": 12,
            "sample-every": 12,
            "val-rows": 16,
            "compile": compiled,
        },
        "plan": {"compile": False},
        "base_loss": {"rows": 32, "sample-tokens": 8},
        "base_eval": {"batch-tokens": 4096},
        "mid_train": {"tokens-per-step": 256 * ranks, "epochs": 0.00025 * ranks, "compile": False},
        "chat_sft": {"tokens-per-step": 128 * ranks, "epochs": 0.02 * ranks, "compile": False},
        "chat_rl": {
            "steps": 6,
            "prompts-per-step": ranks,
            "samples-per-prompt": 4,
            "max-new-tokens": 24,
            "eval-items": 16,
            "save-every": 2,
        },
        "chat_eval": {"max-items": 16, "max-new-tokens": 24},
    }


def reduced(out: Path, *, ranks: int, compiled: bool) -> Path:
    """Write the preset, print what differs from the real one, and return its path."""
    sections: Sections = tomllib.loads(SPEEDRUN.read_text(encoding="utf-8"))
    print(f"{SPEEDRUN.name} with smaller sizes for a CPU:")
    for section, values in sizes(ranks, compiled=compiled).items():
        before = sections.setdefault(section, {})
        for key, value in values.items():
            print(f"  {section}.{key}: {_toml(before.get(key, 'not set'))} -> {_toml(value)}")
        before.update(values)
    lines = []
    for section, values in sections.items():
        lines += [f"[{section}]", *(f"{key} = {_toml(value)}" for key, value in values.items()), ""]
    path = out / "speedrun.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def _toml(value: Any) -> str:
    """A value as TOML writes it: of text, numbers and true or false, JSON's form is TOML's too."""
    return json.dumps(value)
