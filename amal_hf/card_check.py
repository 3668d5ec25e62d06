"""Whether a model card would stand on the Hub: an offline stand-in for its validation, which needs the server.

Stricter in one point: what a reader would stumble over (an empty section, a picture that is not there) is an error.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard
from huggingface_hub.errors import HFValidationError
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from huggingface_hub.utils._validators import validate_repo_id


RELATIONS = ("adapter", "finetune", "merge", "quantized")
"""The relations to a base model that the Hub knows; there is none for distillation."""

_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]+)*|code|multilingual")
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
_UNFILLED = re.compile(r"more information needed|\bnone\b *\||\bnan\b|\bundefined\b|\{\{|\{%", re.IGNORECASE)
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{16,}")
_LINK = re.compile(r"!?(?<!\\)\[[^\]\n]*\]\(([^)\s]*)\)")
_CODE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def check_card(text: str, folder: str | Path | None = None, given: Iterable[str] = ()) -> None:
    """Refuse a card that the Hub or its readers could not make sense of.

    Args:
        text: the whole card.
        folder: what it will be published with; the files it shows must be there.
        given: names and texts in it, as they stand there, that may say whatever they like.

    Raises:
        ValueError: names everything that is wrong.
    """
    problems = [
        *_problems_of_metadata(text),
        *_problems_of_body(_body(text), None if folder is None else Path(folder), given),
    ]
    if _TOKEN.search(text):
        problems.append("something in it looks like an access token")
    if problems:
        listed = "\n".join(f"- {problem}" for problem in problems)
        raise ValueError(f"The model card is not fit to be published:\n{listed}\nChange what the card was told.")


def _without(body: str, given: Iterable[str]) -> str:
    """The text with a word in the place of everything given, the longest first."""
    for part in sorted(filter(None, set(given)), key=len, reverse=True):
        body = re.sub(rf"(?<!\w){re.escape(part)}(?!\w)", "(given)", body)
    return body


def _body(text: str) -> str:
    block = REGEX_YAML_BLOCK.search(text)
    return text if block is None else text[block.end() :]


# ---- metadata ----


def _problems_of_metadata(text: str) -> Iterator[str]:
    block = REGEX_YAML_BLOCK.search(text)
    if block is None:
        yield "it does not begin with a block of metadata between two lines of ---"
        return
    try:
        data = yaml.safe_load(block[2])
        ModelCard(text)
    except (yaml.YAMLError, ValueError) as error:
        yield f"its metadata cannot be read: {error}"
        return
    if not isinstance(data, dict):
        yield f"its metadata should be keys with values, and is {type(data).__name__}"
        return
    yield from _problems_of_fields(data)
    yield from _problems_of_index(data.get("model-index", []))
    for path, value in _leaves(data):
        if isinstance(value, float) and not math.isfinite(value):
            yield f"{path} is {value}; leave out what was not measured"


def _problems_of_fields(data: dict[str, Any]) -> Iterator[str]:
    for keys, fits, otherwise in _FIELDS:
        for key in keys:
            yield from (f"{key}: {value!r} {otherwise}" for value in _list(data.get(key)) if not fits(value))
    relation = data.get("base_model_relation")
    if relation is not None and (relation not in RELATIONS or "base_model" not in data):
        yield f"base_model_relation: {relation!r} must be one of {RELATIONS} and stand beside base_model"
    grams = data.get("co2_eq_emissions", {}).get("emissions", 0)
    if not _is_number(grams) or grams < 0:
        yield f"co2_eq_emissions: {grams!r} is no number of grams"


def _problems_of_index(index: Any) -> Iterator[str]:
    """Values; that a result is complete, reading the metadata has shown."""
    metrics = [metric for model in _list(index) for result in model["results"] for metric in result["metrics"]]
    for metric in metrics:
        value = metric["value"]
        if not _is_number(value):
            yield f"model-index: the value of {metric['type']} is {value!r}, not a number"


def _list(value: Any) -> list[Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _leaves(value: Any, path: str = "metadata") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}")
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _leaves(inner, f"{path}[{number}]")
    else:
        yield path, value


def is_repository(name: Any) -> bool:
    """Whether the Hub could have a repository of this name."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def is_language(name: Any) -> bool:
    """Whether the Hub knows a language by this name: ISO 639 codes, as 'en'."""
    return isinstance(name, str) and _LANGUAGE.fullmatch(name) is not None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _matches(pattern: re.Pattern[str]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and pattern.fullmatch(value) is not None


_FIELDS: tuple[tuple[tuple[str, ...], Callable[[Any], bool], str], ...] = (
    (("language",), is_language, "is no ISO 639 code, as 'en'"),
    (("license",), _matches(_LICENSE), "is no licence id in lower case, as 'apache-2.0'"),
    (("base_model", "datasets"), is_repository, "is no repository of the Hub, as 'owner/name'"),
    (("library_name", "pipeline_tag"), _matches(_NAME), "is no id in lower case, as 'text-classification'"),
    (("tags", "metrics"), _matches(re.compile(r"(?s).*\S.*")), "is no word"),
)
"""Keys of the metadata, what each of their values must be, and what is said of one that is not."""


# ---- body ----


def _problems_of_body(body: str, folder: Path | None, given: Iterable[str]) -> Iterator[str]:
    prose = _CODE.sub("(code)", body)
    for match in _UNFILLED.finditer(_without(prose, given)):
        yield f"it says '{match[0]}'; leave out what is not known"
    yield from _empty_sections(prose)
    for target in _LINK.findall(prose):
        if (
            not target.startswith(("https://", "http://", "#"))
            and folder is not None
            and not (folder / target).is_file()
        ):
            yield f"it shows {target!r}, which is not in {folder}"
        if not target:
            yield "it has a link to nowhere"
    if body.count("```") % 2:
        yield "a block of code has no end"


def _empty_sections(prose: str) -> Iterator[str]:
    lines = [line for line in prose.splitlines() if line.strip()]
    for line, following in zip(lines, [*lines[1:], "# end"], strict=True):
        level, after = _heading(line), _heading(following)
        if level and after and after <= level:
            yield f"the section '{line.lstrip('# ')}' is empty"


def _heading(line: str) -> int:
    found = re.match(r"(#+) ", line)
    return len(found[1]) if found else 0
