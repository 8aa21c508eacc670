"""Typed options: one frozen dataclass per stage becomes flags, a TOML section and JSON.

Owns: conversion between such a dataclass and a command line. Does not own: any stage's options.
"""

import argparse
import contextlib
import dataclasses
import difflib
import importlib.resources
import inspect
import os
import sys
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from nanochat.system import console
from nanochat.system.errors import ConfigError, ReportedElsewhere, Stopped, explain
from nanochat.system.options import LIST, FlatField, convert, flat_fields, group_of, nested, option

__all__ = ["convert", "flat_fields", "nested", "option"]

T = TypeVar("T")
MAX_NAME_BYTES = 100  # of a folder; file systems allow 255, and temporary names are longer
MAX_THREADS = 1024  # per process; far beyond that, the system refuses to create threads
REPORT_S = 2.0  # more than a process needs to print why it failed


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Where a stage runs and writes; the same in every stage."""

    run: str = option("default", "name of the run; its files go to $NANOCHAT_BASE_DIR/runs/NAME")
    device: str | None = option(None, "cpu, cuda or mps; none picks the best one available")
    dtype: str | None = option(
        None,
        "compute dtype of matrix products; none: bfloat16 on GPUs from Ampere on, float16 on Volta "
        "and Turing, elsewhere float32 or bfloat16, whichever is faster here. float32 uses the "
        "TF32 cores of GPUs from Ampere on, unless NVIDIA_TF32_OVERRIDE=0 is set",
        choices=("float64", "float32", "bfloat16", "float16"),
    )
    threads: int | None = option(
        None, "CPU threads per process; none divides up the cores", least=1, most=MAX_THREADS
    )
    seed: int = option(1337, "seed of weights, data order and sampling", least=0)
    wandb: str | None = option(None, "Weights & Biases project to log to; none logs to files only")

    def __post_init__(self) -> None:
        check_name("--run", self.run)


def check_name(flag: str, name: str) -> None:
    """Check that a name can be used as a folder name.

    Raises: ConfigError if it cannot.
    """
    if not name or set(name) & set('/\\:*?"<>|') or name[0] == "." or not name.isprintable():
        raise ConfigError(f"{flag} must be a plain name without '/', got {name!r}")
    if len(name.encode()) > MAX_NAME_BYTES:
        raise ConfigError(f"{flag} must be at most {MAX_NAME_BYTES} bytes, got {name[:40]!r}...")


@contextlib.contextmanager
def _errors_of_one_process() -> Iterator[None]:
    """Under torchrun, let one process report a wrong flag: all were given the same flags."""
    try:
        yield
    except ConfigError:
        if os.environ.get("LOCAL_RANK", "0") != "0":
            raise ReportedElsewhere from None
        raise


@_errors_of_one_process()
def parse(
    cls: type[T],
    argv: Sequence[str] | None,
    *,
    stage: str,
    sections: Sequence[str] = (),
    positional: str | None = None,
    resolve: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
) -> T:
    """Build a stage's options from its defaults, then the preset's section, then flags.

    argv: the arguments after the program's name; None takes them from the command line.
    sections: for a tool that examines other stages, the preset sections of those stages; options
        that the tool does not have are ignored.
    positional: the option that may also be given without its flag.
    resolve: replaces values, by name and not yet converted, that depend on others or the machine.
    Raises: ConfigError for an invalid value, or a preset or key that does not exist.
    """
    fields = flat_fields(cls)
    parser = _parser(cls, fields, stage)
    if positional is not None:
        parser.add_argument(positional, nargs="?", help=f"the same as --{positional}")
    args = list(sys.argv[1:] if argv is None else argv)
    if args[:1] == ["--"]:  # separates torchrun's flags from the stage's
        args = args[1:]
    given = vars(parser.parse_args(args))
    preset = given.pop("preset", None)
    values: dict[str, Any] = {}
    for section in ("common", *(sections or (stage,))) if preset else ():
        found = load_preset(preset, section)
        unknown = sorted(set(found) - set(fields))
        if unknown and section == stage:
            raise ConfigError(f"preset {preset}: [{stage}] has no option {unknown[0]!r}")
        values.update({name: value for name, value in found.items() if name in fields})
    values |= given
    return from_dict(cls, values if resolve is None else resolve(values))


def preset_name(argv: Sequence[str] | None) -> str | None:
    """The value of --preset among arguments; None if it is not there."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--preset")
    known, _ = parser.parse_known_args(sys.argv[1:] if argv is None else list(argv))
    return known.preset if isinstance(known.preset, str) else None


def secret(variable: str) -> str | None:
    """A secret from the environment: on a command line, every user of the machine could read it."""
    return os.environ.get(variable) or None


def gpus_hidden() -> bool:
    """Whether the environment hides every GPU from torch, as CUDA_VISIBLE_DEVICES= does."""
    names = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
    hiding = ("", "-1", "NoDevFiles")  # the last is what Slurm sets for a job without GPUs
    return any(os.environ.get(name) in hiding for name in names)


def load_preset(preset: str, section: str) -> dict[str, Any]:
    """The options in one section of a preset: a stage, or [common] for all stages.

    preset: a name in nanochat/presets, or the path of a TOML file.
    """
    folder = importlib.resources.files("nanochat") / "presets"
    path = Path(preset) if preset.endswith(".toml") else Path(str(folder)) / f"{preset}.toml"
    try:
        sections = tomllib.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"--preset {preset}: {path} is not valid TOML: {error}") from None
    except (OSError, ValueError) as error:
        names = ", ".join(sorted(p.name.removesuffix(".toml") for p in folder.iterdir()))
        reason = f"cannot be read ({error})" if path.exists() else "no such preset"
        raise ConfigError(
            f"--preset {preset}: {reason}; use one of {names}, or give the path of a .toml file"
        ) from None
    loose = [key for key, value in sections.items() if not isinstance(value, dict)]
    if loose:
        raise ConfigError(f"--preset {preset}: {loose[0]!r} is outside any [section]")
    return {key.replace("-", "_"): value for key, value in sections.get(section, {}).items()}


def to_dict(options: Any) -> dict[str, Any]:
    """Options as plain JSON types, nested groups flattened."""
    result: dict[str, Any] = {}
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if "nested" in field.metadata:
            inner = to_dict(value)
            result.update({k: v for k, v in inner.items() if k not in field.metadata["without"]})
        else:
            result[field.name] = value
    return result


def from_dict(cls: type[T], values: dict[str, Any]) -> T:
    """Options from the output of `to_dict`.

    Raises: ConfigError for an unknown key or a value of the wrong type.
    """
    fields = flat_fields(cls)
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise ConfigError(f"{cls.__name__} has no option {unknown[0]!r}")
    return _build(cls, {name: convert(fields[name], value) for name, value in values.items()})


def as_args(options: Any, names: Iterable[str]) -> list[str]:
    """The named options that differ from their defaults, as command-line arguments."""
    values, fields, args = to_dict(options), flat_fields(type(options)), list[str]()
    for name in names:
        if name not in fields or values[name] == fields[name].default:
            continue
        value, flag = values[name], name.replace("_", "-")
        if isinstance(value, tuple):
            args += [word for one in value for word in (f"--{flag}", one)]
        elif isinstance(value, bool):
            args.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            args += [f"--{flag}", "none" if value is None else str(value)]
    return args


def cli(main: Callable[[], None]) -> NoReturn:
    """Run a script's main; a user's mistake becomes one line and exit status 2."""
    console.open_streams()
    try:
        main()
        sys.stdout.flush()
    except Stopped:
        pass
    except ReportedElsewhere:
        time.sleep(REPORT_S)  # torchrun kills all when one exits: let the reporting one exit first
        sys.exit(2)
    except KeyboardInterrupt:
        console.error_line("interrupted")
        sys.exit(130)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and console.reader_left():
            sys.exit(141)
        base = os.environ.get("NANOCHAT_BASE_DIR", "~/.cache/nanochat")
        message = explain(error, base=base)
        if message is None:
            raise
        console.error_line("error: " + " ".join(message.split()))
        sys.exit(2)
    finally:
        console.close_streams()
    sys.exit(0)


def _build(cls: type[T], values: dict[str, Any]) -> T:
    arguments: dict[str, Any] = {}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        inner = field.metadata.get("nested")
        if inner is not None:
            hidden = field.metadata["without"]
            seen = {name: value for name, value in values.items() if name not in hidden}
            arguments[field.name] = _build(inner, seen)
        elif field.name in values:
            arguments[field.name] = values[field.name]
        elif field.default is dataclasses.MISSING:
            raise ConfigError(f"--{field.name.replace('_', '-')} is required (see --help)")
    return cls(**arguments)


def _parser(cls: type, fields: dict[str, FlatField], stage: str) -> argparse.ArgumentParser:
    parser = _Parser(
        prog=f"nanochat {stage}",
        usage=f"nanochat {stage} [--preset NAME] [--flag value ...]",
        description=inspect.cleandoc(cls.__doc__ or ""),
        epilog=_examples(cls),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument(
        "--preset",
        metavar="NAME",
        help="named settings for every stage (or a TOML file); flags override",
    )
    groups: dict[str, Any] = {}
    own = group_of(cls)
    for field in sorted(fields.values(), key=lambda field: field.group != own):
        if field.group not in groups:
            groups[field.group] = parser.add_argument_group(field.group)
        _add_flag(groups[field.group], field)
    return parser


def _examples(cls: type) -> str:
    """The example commands in the docstring of the module that defines the options."""
    lines = (sys.modules[cls.__module__].__doc__ or "").splitlines()
    found = [line.strip() for line in lines if line.startswith(("nanochat ", "torchrun "))]
    return "\n".join(["Examples:", *(f"  {line}" for line in found)]) if found else ""


def _add_flag(group: Any, field: FlatField) -> None:
    default = "required" if field.default is dataclasses.MISSING else _show(field.default)
    bounds = f"; {field.bounds}" if field.bounds else ""
    text = f"{field.help} [{default}{bounds}]".replace("%", "%%")
    words = field.special.keys() - {"none"}
    if field.kind is bool and words:  # --fp8, --no-fp8 or --fp8 auto
        metavar = "|".join(sorted(words))
        group.add_argument(field.flag, nargs="?", const=True, metavar=metavar, help=text)
        off = "--no-" + field.flag.removeprefix("--")
        group.add_argument(off, dest=field.name, action="store_false", help=f"no {field.flag}")
        return
    if field.kind is bool:
        plain = field.flag.startswith("--no-")  # it has no --no-no- beside it
        action: Any = "store_true" if plain else argparse.BooleanOptionalAction
        group.add_argument(field.flag, action=action, help=text)
        return
    kind = {int: "N", float: "X"}.get(field.kind, "TEXT")
    shown = field.choices or (kind, *(field.special.keys() - {"none"}))
    action = "append" if field.kind == LIST else "store"
    group.add_argument(field.flag, action=action, metavar="|".join(shown), help=text)


def _show(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(value) or "none"
    names = {None: "none", True: "on", False: "off"}
    return names[value] if value is None or isinstance(value, bool) else str(value)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        _, _, unknown = message.partition("unrecognized arguments: ")
        if any(Path(arg).exists() for arg in unknown.split()):
            raise ConfigError(f"{message}; put a file pattern in quotes: --data '*.parquet'")
        flags = [flag for action in self._actions for flag in action.option_strings]
        near = [n for arg in unknown.split() for n in difflib.get_close_matches(arg, flags, 1)]
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(f"{message}; {hint}{self.prog} --help lists the flags")
