"""The report page: one file that opens from disk, to look through a run's training examples by their weights.

The page holds its data as one JSON block of columns and draws only the rows in view, so that a hundred thousand
examples are searched, filtered and sorted at once. It fetches nothing and runs no script but its own: a content
security policy names both script and style by their hash, so that text of an example can never act.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from amal_hf.rule_summary import RuleSummary
from amal_hf.run_figures import Picture, can_draw, pictures
from amal_hf.run_record import Rules, RunRecord
from amal_hf.shapes import IGNORED


DECIMALS = 4
"""Of weights and losses on the page; more would double its size."""


def write_report(record: RunRecord, path: str | Path, results: Sequence[Mapping[str, Any]] = ()) -> Path:
    """Write the page. It contains the training examples, so share it only where these may go.

    Args:
        record: of the run.
        path: of the file, usually `report.html`.
        results: rows of a table to show first, as plain values by column: compared methods and their scores.

    Returns:
        The path.
    """
    drawn = list(pictures(record)) if can_draw() else []
    page = (
        _environment()
        .get_template("report.html")
        .render(
            title=f"{record.settings.get('method', 'A run')} on {len(record.ids):,} examples",
            settings={name: shown(value) for name, value in record.settings.items()},
            columns=list(dict.fromkeys(name for row in results for name, value in row.items() if shown(value))),
            results=[{name: shown(value) for name, value in row.items()} for row in results],
            figures=[(picture.caption, _as_url(picture)) for picture in drawn],
            rules=rule_table(record),
            data=page_data(record),
        )
    )
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(page, encoding="utf-8")
    return target


def page_data(record: RunRecord) -> dict[str, Any]:
    """The examples as columns of plain values, `None` for NaN."""
    return {
        "ids": _exact(record.ids),
        "texts": record.texts,
        "classes": record.classes,
        "labels": _as_classes(record.labels),
        "truth": _as_classes(record.truth),
        "guesses": _as_classes(record.guesses),
        "losses": list(record.weights),
        "numbers": {title: _as_numbers(values) for title, values in _numbers(record).items()},
        "rules": None if record.rules is None else _fired(record.rules),
    }


_LARGEST_EXACT = 2**53 - 1


def _exact(ids: Sequence[Any]) -> list[Any]:
    """Whole numbers that a browser would round as text: it has 53 bits for them."""
    return [str(one) if isinstance(one, int) and abs(one) > _LARGEST_EXACT else one for one in ids]


def rule_table(record: RunRecord) -> list[dict[str, str]]:
    """A line for every rule, the least believed first; empty without rules."""
    ranked = sorted(record.rule_summaries(), key=lambda entry: (np.isnan(entry.lift), entry.lift))
    return [
        {name: shown(getattr(entry, name)) for name in RuleSummary._fields if name != "classes"} for entry in ranked
    ]


def shown(value: Any) -> str:
    """A value as a person reads it: four digits of a number, an interval as two, nothing for what is not known."""
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return ""
    if isinstance(value, list | tuple):
        return " to ".join(map(shown, value))
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _numbers(record: RunRecord) -> dict[str, NDArray[Any]]:
    """All columns of numbers that hold anything, by their heading."""
    columns = {
        **{f"weight: {name}": values for name, values in record.weights.items()},
        **{f"loss: {name}": values for name, values in record.losses.items()},
        **({} if record.student is None else {"student: p(label)": record.student}),
        **{f"{name}: p(label)": values for name, values in record.teachers.items()},
    }
    return {title: values for title, values in columns.items() if np.isfinite(values).any()}


def _fired(rules: Rules) -> dict[str, Any]:
    """For each rule the rows that it votes on, with votes and weights: most rules are silent on most rows."""
    rows = [np.flatnonzero(votes >= 0) for votes in rules.votes.T]
    return {
        "names": rules.names,
        "rows": [places.tolist() for places in rows],
        "votes": [votes[places].tolist() for votes, places in zip(rules.votes.T, rows, strict=True)],
        "weights": [_as_numbers(own[places]) for own, places in zip(rules.weights.T, rows, strict=True)],
    }


def _as_classes(values: NDArray[Any] | None) -> list[int] | None:
    """Classes as whole numbers, -1 for none."""
    if values is None or not np.isfinite(values).any():
        return None
    known: list[int] = np.nan_to_num(values, nan=IGNORED).astype(np.int64).clip(min=-1).tolist()
    return known


def _as_numbers(values: NDArray[Any]) -> list[float | None]:
    rounded = np.round(values.astype(np.float64), DECIMALS)
    return [value if np.isfinite(value) else None for value in rounded.tolist()]


def _as_url(picture: Picture) -> str:
    file = BytesIO()
    picture.figure.savefig(file, format="png", dpi=130)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(loader=jinja2.PackageLoader("amal_hf"), autoescape=True, trim_blocks=True)
    # `tojson` escapes what could end the block that it stands in; other alphabets stay as they are.
    environment.policies["json.dumps_kwargs"] = {
        "ensure_ascii": False,
        "separators": (",", ":"),
        "allow_nan": False,
        "default": str,
    }
    parts = {
        kind: Path(__file__).with_name("templates").joinpath(f"report.{kind}").read_text("utf-8")
        for kind in ("css", "js")
    }
    environment.globals |= {kind: Markup(text) for kind, text in parts.items()}
    environment.globals |= {f"{kind}_hash": _hash(text) for kind, text in parts.items()}
    return environment


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
