"""Arguments of a script: from flags, or from a YAML or JSON file that is read as if it were flags, and flags."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser


_HELP_ALL = "--help_all"
_ALL = f"Every option of AMALArguments, and so of TrainingArguments, is a flag as well: {_HELP_ALL} lists them."

ENDINGS = (".yaml", ".yml", ".json")


def parse_arguments(classes: Sequence[type], command_line: Sequence[str]) -> tuple[Any, ...]:
    """One object of each dataclass.

    Args:
        classes: dataclasses, their fields being the flags.
        command_line: flags; or the name of a file, whose values get the types and the checks that flags have, and
            flags that take the place of some of them.

    `--help` shows the flags of the first dataclass, `--help_all` those of all.

    Raises:
        ValueError: the file holds no settings, or one that is unknown.
        SystemExit: a value that its flag would not take, or help was asked for.
    """
    given, epilog = list(command_line), None
    if given in (["-h"], ["--help"]) and len(classes) > 1:
        # The script's own flags would be lost among those of `Trainer`.
        given, classes, epilog = ["--help"], classes[:1], _ALL
    elif given == [_HELP_ALL]:
        given = ["--help"]
    parser = HfArgumentParser(list(classes), epilog=epilog)  # type: ignore[arg-type]  # its own alias is too narrow
    if given and given[0].endswith(ENDINGS):
        given = [*_as_flags(Path(given[0]), parser), *given[1:]]
    return tuple(parser.parse_args_into_dataclasses(given))


def refuse_resuming(args: Any) -> None:
    """Refuse a flag of `TrainingArguments` that `Trainer` leaves to scripts, in one that does nothing with it.

    Args:
        args: of the run.

    Raises:
        ValueError: it is to go on from a checkpoint.
    """
    if args.resume_from_checkpoint is not None:
        raise ValueError(
            f"--resume_from_checkpoint: this script trains all its models from the beginning, got "
            f"{args.resume_from_checkpoint!r}. Leave it out; trainer.train(resume_from_checkpoint=...) goes on."
        )


def _as_flags(file: Path, parser: HfArgumentParser) -> list[str]:
    """Settings as flags; a list that no flag could take, an empty one or one of an option of one value, as default."""
    settings = (json.loads if file.suffix == ".json" else yaml.safe_load)(file.read_text(encoding="utf-8"))
    if not isinstance(settings, dict):
        raise ValueError(f"{file} should hold settings, a name and a value each, but holds {type(settings).__name__}.")
    flags: list[str] = []
    for name, value in settings.items():
        if isinstance(value, list) and _no_flag_takes(value, name, parser):
            parser.set_defaults(**{name: value})
        elif isinstance(value, list):
            flags += [f"--{name}", *map(str, value)]
        elif value is not None:
            flags.append(f"--{name}={json.dumps(value) if isinstance(value, dict) else value}")
    return flags


def _no_flag_takes(value: list[Any], name: str, parser: HfArgumentParser) -> bool:
    return any(action.dest == name and (not value or action.nargs is None) for action in parser._actions)
