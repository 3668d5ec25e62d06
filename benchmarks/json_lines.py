"""Finished runs as lines of JSON: several processes may add to one file."""

import json
from pathlib import Path
from typing import Any, TypeAlias


Record: TypeAlias = dict[str, Any]


def append(file: Path, *records: Record) -> None:
    """Write them down, all at once."""
    with file.open("a") as lines:
        lines.write("".join(json.dumps(record) + "\n" for record in records))


def read(file: Path) -> list[Record]:
    """All that are there."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
