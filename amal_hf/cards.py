"""The model card: facts in, Markdown with the Hub's metadata out.

Rendering is a pure function of the facts (`card_facts.py`) and of the template `card.md` beside this file, so that a
card can be made again from the JSON that is kept with it, byte for byte.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from importlib.resources import files
from pathlib import PurePosixPath
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, StrictUndefined


EXAMPLES = {
    "text-classification": "The text to classify",
    "token-classification": "The text whose words to classify",
    "image-classification": "picture.jpg",
    "audio-classification": "sound.wav",
    "automatic-speech-recognition": "sound.wav",
    "fill-mask": "The text with a [MASK] in it",
}
"""What the snippet reads where no example was given."""


def render_card(facts: Mapping[str, Any]) -> ModelCard:
    """A card from `RunFacts.plain()`, or from the JSON that was written of it."""
    # A name that is missing is an error here, where it would be an empty place in `ModelCard.from_template`.
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=False)
    environment.filters |= {
        "number": _number,
        "cell": _cell,
        "caption": _caption,
        "linked": lambda name: _link(name, ""),
        "linked_data": lambda name: _link(name, "datasets/"),
    }
    template = environment.from_string((files("amal_hf") / "card.md").read_text(encoding="utf-8"))
    # Of cards that were written before there were these.
    usual = {"weighed": facts["learned"], "shared": False, "changes": "", "changes_learned": False, "best_step": 0}
    facts = {**usual, "loads_with": facts["architecture"], "configured": {}, "vocabulary": 0, **facts}
    example = facts["details"]["example"] or EXAMPLES.get(facts["task"], "The text to begin with")
    compared = facts["details"]["comparison"]
    table = None if compared is None else _table(compared)
    classes = _model_kwargs(facts["configured"])
    told = {
        "example": _quoted(example),
        "configured": f", model_kwargs={classes}" if classes else "",
        "keywords": f", **{classes}" if classes else "",
        "table": table,
    }
    body = template.render(**{**facts, **told})
    return ModelCard(f"---\n{metadata(facts).to_yaml()}\n---\n\n{body.strip()}\n")


def names_of(facts: Mapping[str, Any]) -> list[str]:
    """What others have named or written, as it stands in the card: repository, classes, losses, rules, training
    examples, and all that the card was told.
    """
    shown = [entry[key] for entry in (*facts["lowest"], *facts["highest"]) for key in ("label", "text")]
    named = [facts["repo_id"], facts["repo_id"].split("/")[-1], *facts["labels"], *_words(facts["details"])]
    losses = [*(loss["name"] for loss in facts["losses"]), *(entry["loss"] for entry in facts["weights"])]
    return [form(name) for name in (*named, *shown, *losses) for form in (str, _cell)]


def _words(told: Any) -> Iterator[str]:
    """All strings in plain data."""
    if isinstance(told, str):
        yield told
    elif isinstance(told, Mapping | list):
        for part in told.values() if isinstance(told, Mapping) else told:
            yield from _words(part)


def metadata(facts: Mapping[str, Any]) -> ModelCardData:
    """What the Hub reads of a card.

    The teacher has a key of its own: among base models it would read as one that was merged.
    """
    details = facts["details"]
    distilled = ["distillation"] if facts["distilled"] else []
    results = _results(facts)
    own: dict[str, Any] = {
        "base_model_relation": ("adapter" if facts["library"] == "peft" else "finetune")
        if facts["base_model"]
        else None,
        "teacher_model": facts["teachers"] or None,
        "co2_eq_emissions": _emissions(details, facts["hardware"]),
    }
    return ModelCardData(
        language=details["language"] or None,
        license=details["license"] or None,
        library_name=facts["library"],
        pipeline_tag=facts["task"] or None,
        base_model=facts["base_model"] or None,
        datasets=details["dataset_tags"] or None,
        metrics=sorted({result.metric_type for result in results}) or None,
        tags=["amal_hf", *distilled, *details["tags"]],
        model_name=(details["model_name"] or facts["repo_id"].split("/")[-1]) if results else None,
        eval_results=results or None,
        **{key: value for key, value in own.items() if value is not None},
    )


def _table(compared: Mapping[str, Any]) -> list[list[str]]:
    """The cells of the comparison, headings first; without the columns in which nothing was measured."""
    columns = [["", *(_cell(row["name"]) for row in compared["rows"])]]
    columns[0] = [f"**{cell}**" if cell == _cell(compared["student"]) else cell for cell in columns[0]]
    cells: dict[str, Callable[[Mapping[str, Any]], str]] = {
        compared["metric"]: _score,
        "seeds": lambda row: str(row["seeds"]),
        "parameters": lambda row: f"{_number(row['parameters'] / 1e6)} M" if row["parameters"] else "",
        "MB": lambda row: _number(row["megabytes"]),
        "ms, one at a time": lambda row: _pair(row["ms_batch_1"]),
        "ms, 32 at a time": lambda row: _pair(row["ms_batch_32"]),
        "training, s": lambda row: _number(row["train_seconds"]),
    }
    for heading, cell in cells.items():
        column = [cell(row) for row in compared["rows"]]
        if any(column):
            columns.append([heading, *column])
    return [list(line) for line in zip(*columns, strict=True)]


def _score(row: Mapping[str, Any]) -> str:
    between = "" if row["interval"] is None else f" ({' to '.join(map(_number, row['interval']))})"
    return _number(row["value"]) + between


def _pair(values: list[float] | None) -> str:
    return "" if values is None else " / ".join(map(_number, values))


def _results(facts: Mapping[str, Any]) -> list[EvalResult]:
    """The student's scores for the model index: the comparison's if there is one, otherwise the last evaluation's."""
    details = facts["details"]
    compared = details["comparison"]
    if compared is not None:
        value = next(row["value"] for row in compared["rows"] if row["name"] == compared["student"])
        scores, split, data = {compared["metric"]: value}, compared["split"], compared["dataset"]
    else:
        losses = {"loss", *(f"{name}_loss" for name in facts.get("evaluation_sets", ()))}
        scores = {name: value for name, value in facts["evaluation"].items() if name not in losses}
        split, data = "evaluation", ""
    tags = details["dataset_tags"]
    name = data or details["dataset"] or (tags[0] if tags else "")
    if not name or not facts["task"]:
        return []
    return [
        EvalResult(
            task_type=facts["task"],
            dataset_type=tags[0] if tags else "custom",
            dataset_name=name,
            dataset_config=details["dataset_args"] or None,
            dataset_split=split,
            metric_type=metric,
            metric_value=score,
        )
        for metric, score in scores.items()
    ]


def _emissions(details: Mapping[str, Any], hardware: str) -> dict[str, Any] | None:
    if details["co2_grams"] is None:
        return None
    given = {"emissions": details["co2_grams"], "source": details["co2_source"], "hardware_used": hardware}
    return {key: value for key, value in given.items() if value != ""}


def _number(value: float | None) -> str:
    """Three digits, or all before the point; nothing for what was not measured."""
    if value is None:
        return ""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _cell(text: str) -> str:
    """Text that cannot end a cell of a table, begin a line or be taken for HTML, a link or a picture."""
    flat = " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([|`\[\]])", r"\\\1", flat)


def _quoted(text: Any) -> str:
    """A string of Python, a number or a list of them, that cannot end the block of code that it stands in."""
    return json.dumps(text, ensure_ascii=False).replace("`", "\\u0060")


def _model_kwargs(configured: Mapping[str, Any]) -> str:
    """What a pipeline is told of a student's classes, as a dictionary of Python; empty for nothing."""
    told = {f'"{name}"': _quoted(value) for name, value in configured.items()}
    if "id2label" in configured:
        told['"id2label"'] = f"dict(enumerate({_quoted(configured['id2label'])}))"
    pairs = ", ".join(f"{name}: {value}" for name, value in told.items())
    return f"{{{pairs}}}" if pairs else ""


def _caption(figure: str) -> str:
    return PurePosixPath(figure).stem.replace("_", " ").replace("-", " ")


def _link(name: str, kind: str) -> str:
    return f"[{name}](https://huggingface.co/{kind}{name})" if "/" in name else name
