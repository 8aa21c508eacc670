"""The description of a checkpoint, meta.json: read into types and checked before it is believed.

Owns: the names of a checkpoint's files, and what meta.json may say. Does not own: writing it, the
weights and the choice of a checkpoint (store.py).
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanochat.system import storage
from nanochat.system.errors import CheckpointError, DamagedCheckpointError, DataError

FORMAT_VERSION = 1
WEIGHTS, OPTIMIZER, TOKENIZER, META = (
    "model.safetensors",
    "optimizer.safetensors",
    "tokenizer.json",
    "meta.json",
)
STEP_NAME = r"step_([0-9]+)"
# The keys of meta.json and their types, besides the sha256 of all of them.
META_TYPES = {
    "format": int,
    "step": int,
    "model": dict,
    "tokenizer_sha256": str,
    "state": dict,
    "files": dict,
}


@dataclass(frozen=True)
class Meta:
    """What meta.json says of a checkpoint whose files, as far as checked, are as it says.

    model: fields of GPTConfig. state: what training resumes from.
    """

    step: int
    model: dict[str, Any]
    tokenizer_sha256: str
    state: dict[str, Any]


def read_meta(path: Path, files: Sequence[str] = (WEIGHTS, OPTIMIZER, TOKENIZER)) -> Meta:
    """A checkpoint's meta.json, after checking the hashes of its files.

    files: those to check; what is not going to be read need not be.
    Raises: DamagedCheckpointError naming the file that is missing or altered; CheckpointError for
    what is whole, but was not written by this version.
    """
    try:
        found = storage.read_json(path / META, "checkpoint description")
    except (DataError, OSError) as error:
        raise DamagedCheckpointError(str(error), path) from None
    meta = _checked(found, path)
    with ThreadPoolExecutor(max(1, len(files)), thread_name_prefix="hash") as threads:
        for _ in threads.map(lambda name: _check_file(path, name, meta["files"][name]), files):
            pass  # raises what a thread raised
    return Meta(meta["step"], meta["model"], meta["tokenizer_sha256"], meta["state"])


def _check_file(path: Path, name: str, digest: str) -> None:
    try:
        intact = storage.sha256_of(path / name) == digest
    except FileNotFoundError:
        intact = False
    except (DataError, OSError) as error:
        raise DamagedCheckpointError(f"{path / name} cannot be read: {error}", path) from None
    if not intact:
        raise DamagedCheckpointError(f"{path / name} is missing or altered", path)


def _checked(meta: dict[str, Any], path: Path) -> dict[str, Any]:
    """The content of meta.json, if it is what `save` writes.

    What its own sha256 does not match is damaged, and an older checkpoint may take its place. What
    it does match was written so: by another version or program. Setting that aside as damaged
    would lose it, so it is refused.
    """
    version = meta.get("format")
    if type(version) is int and version != FORMAT_VERSION:  # its sha256 may be another one, too
        raise CheckpointError(
            f"{path} has format {version}, this version reads {FORMAT_VERSION}; train it again, or "
            "use the version that wrote it"
        )
    digest = meta.pop("sha256", None)
    # The first version wrote no digest.
    if digest != digest_of(meta) and (digest is not None or set(meta) != set(META_TYPES)):
        raise DamagedCheckpointError(f"{path / META} is altered", path)
    problem = _problem(meta, path)
    if problem is None:
        return meta
    if digest is None:
        raise DamagedCheckpointError(f"{path / META}: {problem}", path)
    raise CheckpointError(f"{path / META}: {problem}; it is not a checkpoint of this version")


def _problem(meta: dict[str, Any], path: Path) -> str | None:
    """What in a description is not as `save` writes it."""
    for key, kind in META_TYPES.items():
        if type(meta.get(key)) is not kind:
            return f"{key!r} is missing or not a JSON {'object' if kind is dict else kind.__name__}"
    unknown = sorted(set(meta) - set(META_TYPES))
    if unknown:
        return f"unknown key {unknown[0]!r}"
    # Exactly these names: any other could lead out of the folder, and what is not listed is not
    # hashed.
    files = meta["files"]
    if set(files) != {WEIGHTS, OPTIMIZER, TOKENIZER}:
        return f"'files' must be {WEIGHTS}, {OPTIMIZER} and {TOKENIZER}, not {sorted(files)}"
    named = re.fullmatch(STEP_NAME, path.name)
    if meta["step"] < 0 or (named and int(named[1]) != meta["step"]):
        return f"it is of step {meta['step']}, the folder's name says otherwise"
    return None


def digest_of(meta: Mapping[str, Any]) -> str:
    """The sha256 of a description, independent of the order and layout of its JSON."""
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()
