"""Options convert to and from flags, TOML and JSON; wrong values raise a clear error."""

import json
import sys
from dataclasses import dataclass

import pytest

from nanochat.system import config
from nanochat.system.config import RunOptions, nested, option
from nanochat.system.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Shape of a thing."""

    width: int = option(8, "channels")
    hidden: int = option(3, "not a flag")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the stage does."""

    common: RunOptions = nested(RunOptions)
    shape: Shape = nested(Shape, without=("hidden",))
    learning_rate: float = option(0.1, "per step")
    steps: int | None = option(None, "steps; none: all")
    compile: bool = option(True, "compile it")
    kind: str = option("a", "which", choices=("a", "b"))
    origin: tuple[str, ...] = option((), "whence; may be repeated")


def parse(*args: str) -> Options:
    return config.parse(Options, list(args), stage="thing")


def test_defaults_then_preset_then_flags(tmp_path):
    preset = tmp_path / "p.toml"
    preset.write_text("[common]\nseed = 7\n[thing]\nwidth = 16\nlearning-rate = 1\n")
    got = parse("--preset", str(preset), "--width", "32")
    assert (got.common.seed, got.shape.width, got.learning_rate) == (7, 32, 1.0)
    assert got.shape.hidden == 3


def test_flags_of_every_type():
    got = parse("--steps", "1_000", "--no-compile", "--kind", "b", "--run", "x")
    assert (got.steps, got.compile, got.kind, got.common.run) == (1000, False, "b", "x")
    assert parse("--steps", "none").steps is None


def test_a_flag_that_may_be_repeated_makes_a_list(tmp_path):
    preset = tmp_path / "p.toml"
    preset.write_text('[thing]\norigin = ["x", "y"]\n')
    assert parse().origin == ()
    assert parse("--origin", "a", "--origin", "b,c").origin == ("a", "b,c")
    assert parse("--preset", str(preset)).origin == ("x", "y")
    assert parse("--preset", str(preset), "--origin", "z").origin == ("z",)
    again = config.as_args(parse("--origin", "a", "--origin", "b"), ["origin"])
    assert again == ["--origin", "a", "--origin", "b"]
    with pytest.raises(ConfigError, match=r"--origin must be a list of readable .*, got \[3\]"):
        config.from_dict(Options, {"origin": [3]})


def test_json_round_trip():
    options = parse("--steps", "5", "--width", "9", "--origin", "a")
    values = json.loads(json.dumps(config.to_dict(options)))
    assert "hidden" not in values
    assert config.from_dict(Options, values) == options
    with pytest.raises(ConfigError, match="no option 'depth'"):
        config.from_dict(Options, {"depth": 1})


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--steps", "many"], "--steps must be a whole number or none, got 'many'"),
        (["--learning-rate", "x"], "--learning-rate must be a number"),
        (["--kind", "c"], "--kind must be one of a, b, got 'c'"),
        (["--no-such"], "unrecognized arguments: --no-such; nanochat thing --help"),
        (["--hidden", "2"], "unrecognized arguments"),
        (["--preset", "nowhere"], "no such preset; use one of"),
        (["--run", "a/b"], "--run must be a plain name"),
    ],
)
def test_a_wrong_value_is_named_with_its_remedy(args, message):
    with pytest.raises(ConfigError, match=message):
        parse(*args)


def test_an_unknown_key_in_a_preset_is_an_error(tmp_path):
    preset = tmp_path / "p.toml"
    preset.write_text("[thing]\nwidht = 16\n")
    with pytest.raises(ConfigError, match="has no option 'widht'"):
        parse("--preset", str(preset))


def test_a_users_mistake_ends_with_one_line_and_status_2(capsys):
    def main() -> None:
        raise ConfigError("--x must be\n smaller")

    with pytest.raises(SystemExit) as end:
        config.cli(main)
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: --x must be smaller\n"


def test_a_full_disk_ends_with_one_line_and_status_2(capsys):
    def main() -> None:
        raise OSError(28, "No space left on device", "/somewhere/file")

    with pytest.raises(SystemExit) as end:
        config.cli(main)
    assert end.value.code == 2
    assert "no space left on the disk while writing /somewhere/file" in capsys.readouterr().err


def test_help_names_every_flag_with_its_default(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x"])
    with pytest.raises(SystemExit):
        parse("--help")
    text = capsys.readouterr().out
    assert "--learning-rate X" in text
    assert "per step [0.1]" in text
    assert "--no-compile" in text
