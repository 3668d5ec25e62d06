"""Settings from flags and from files."""

import json
from dataclasses import dataclass, field

import pytest
import yaml

from amal_hf import AMALArguments
from amal_hf.command_line import parse_arguments


@dataclass
class Recipe:
    """Settings of a script."""

    kind: str = field(default="one", metadata={"choices": ["one", "two"]})
    shares: list[float] = field(default_factory=lambda: [0.5])
    rate: float = 1.0
    name: str | None = None
    smoke: bool = False


SETTINGS = {
    "kind": "two",
    "shares": [0.1, 0.2],
    "rate": "3e-4",
    "name": "a name, with = and blanks",
    "smoke": True,
    "output_dir": "out",
    "learning_rate": "2e-5",
    "lr_scheduler_kwargs": {"min_lr": 0.5},
    "hub_model_id": None,
}


@pytest.mark.parametrize(
    ("ending", "write"), [(".yaml", yaml.safe_dump), (".yml", yaml.safe_dump), (".json", json.dumps)]
)
def test_a_file_is_read_as_flags_are(tmp_path, ending, write):
    """With their types, whatever YAML makes of a number."""
    file = tmp_path / f"settings{ending}"
    file.write_text(write(SETTINGS))
    recipe, args = parse_arguments([Recipe, AMALArguments], [str(file)])
    assert recipe == Recipe("two", [0.1, 0.2], 3e-4, "a name, with = and blanks", True)
    assert (args.output_dir, args.learning_rate, args.lr_scheduler_kwargs) == ("out", 2e-5, {"min_lr": 0.5})


def test_lists_of_options_that_take_one_value_or_several(tmp_path):
    """A flag could not say so, and a file can: `report_to` is a name, or a list of names."""
    for names in (["tensorboard", "none"], []):
        (tmp_path / "settings.yaml").write_text(
            yaml.safe_dump({"output_dir": "out", "report_to": names, "shares": []})
        )
        recipe, args = parse_arguments([Recipe, AMALArguments], [str(tmp_path / "settings.yaml")])
        assert (recipe.shares, args.report_to, args.output_dir) == ([], names, "out")


def test_flags_after_a_file_take_the_place_of_what_it_says(tmp_path):
    """One value, a list, a list that no flag could have given; what is not said again stays."""
    settings = {**SETTINGS, "report_to": ["tensorboard", "none"]}
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(settings))
    flags = ["--rate", "2", "--shares", "0.7", "--smoke", "false", "--report_to", "trackio"]
    recipe, args = parse_arguments([Recipe, AMALArguments], [str(tmp_path / "settings.yaml"), *flags])
    assert recipe == Recipe("two", [0.7], 2.0, "a name, with = and blanks", False)
    assert (args.report_to, args.learning_rate) == (["trackio"], 2e-5)


def test_help_shows_the_scripts_own_flags_and_where_the_others_are(capsys):
    """There are some two hundred of `Trainer`."""
    shown = []
    for flag in ("--help", "--help_all"):
        with pytest.raises(SystemExit):
            parse_arguments([Recipe, AMALArguments], [flag])
        shown.append(capsys.readouterr().out)
    assert "--smoke" in shown[0] and "--help_all lists them" in shown[0] and "--learning_rate" not in shown[0]
    assert "--smoke" in shown[1] and "--learning_rate" in shown[1] and "--meta_interval" in shown[1]


@pytest.mark.parametrize("wrong", [{"kind": "three"}, {"unknown": 1}, {"unknown": []}, {"rate": "fast"}])
def test_what_no_flag_would_take_is_refused(tmp_path, wrong):
    """Before any work."""
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(wrong))
    with pytest.raises((SystemExit, ValueError)):
        parse_arguments([Recipe], [str(tmp_path / "settings.yaml")])


def test_a_file_without_settings_is_refused(tmp_path):
    """A list is none."""
    (tmp_path / "settings.yaml").write_text("- a\n- b\n")
    with pytest.raises(ValueError, match="should hold settings"):
        parse_arguments([Recipe], [str(tmp_path / "settings.yaml")])
