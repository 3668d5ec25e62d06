"""Which checkpoint of a run is whole, so that one that was being written when the run died is never resumed from.

1. Before a checkpoint is written, what could make an old one of the same step pass for whole is removed.
2. When all but `trainer_state.json` is written, every file is brought to the disk and noted with its size.
3. `Trainer` writes `trainer_state.json`, then removes older checkpoints.

A checkpoint is whole if all noted files are there in their sizes and `trainer_state.json` can be read to its end.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import sort_checkpoints

from amal_hf.loggers import logger_of


logger = logger_of(__name__)

FILES_NAME = "amal_files.json"
"""Names and sizes of a checkpoint's files, `{name: bytes}`."""

PASSING = "checkpoint-is-incomplete.txt"
"""A file that `transformers` puts there while it saves for a signal to end, and takes away afterwards."""


def seal(folder: str | Path) -> None:
    """Note all files of a checkpoint, once they are on the disk."""
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file() and path.name != PASSING)
    for path in files:
        _flush(path)
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
    unfinished = Path(folder, f"{FILES_NAME}.tmp")
    unfinished.write_text(json.dumps(sizes, indent=1) + "\n")
    _flush(unfinished)
    unfinished.replace(Path(folder, FILES_NAME))


def unseal(folder: str | Path) -> None:
    """Declare a checkpoint unfinished, as it is about to be written, perhaps over an older one of the same step."""
    for name in (FILES_NAME, TRAINER_STATE_NAME):
        Path(folder, name).unlink(missing_ok=True)


def fault(folder: str | Path) -> str | None:
    """What is missing from a checkpoint; `None` if it is whole."""
    sizes = _json(Path(folder, FILES_NAME))
    if sizes is None:
        return (
            f"it has no {FILES_NAME}, which is written last: the save was interrupted, or was one without losses and "
            f"method or with save_only_model=True"
        )
    for name, size in sizes.items():
        path = Path(folder, name)
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
    return None if _json(Path(folder, TRAINER_STATE_NAME)) else f"{TRAINER_STATE_NAME} is missing or cut off"


def last_checkpoint(output_dir: str | Path) -> str | None:
    """The newest whole checkpoint of a run, `None` if there is none; warns of newer ones that are not.

    As `transformers.trainer_utils.get_last_checkpoint`, which takes the newest folder whatever is in it.
    """
    for folder in reversed(sort_checkpoints(str(output_dir)) if os.path.isdir(output_dir) else []):
        reason = fault(folder)
        if reason is None:
            return folder
        logger.warning("%s is passed over: %s.", folder, reason)
    return None


def checkpoint_to_resume(asked: str | Path | bool | None, output_dir: str | Path) -> str | None:
    """The folder that `resume_from_checkpoint` means.

    Raises:
        ValueError: the checkpoint that was asked for is not whole, or there is none that is.
    """
    if not asked:
        return None
    if isinstance(asked, (str, os.PathLike)):
        reason = fault(asked) if os.path.isdir(asked) else "there is no such folder"
        if reason is not None:
            raise ValueError(
                f"Checkpoint {asked} cannot be resumed from: {reason}. resume_from_checkpoint=True takes the newest "
                f"whole checkpoint of output_dir."
            )
        return os.fspath(asked)
    found = last_checkpoint(output_dir)
    if found is None:
        raise ValueError(
            f"resume_from_checkpoint=True: {output_dir} holds no whole checkpoint (warnings above name what was "
            f"passed over, and why). Leave resume_from_checkpoint out to start anew."
        )
    return found


@contextmanager
def named_failure(folder: str | Path) -> Iterator[None]:
    """Within the block a checkpoint is written; a failure is raised again saying what it leaves.

    Raises:
        OSError: the disk is full, or whatever else kept it from being written.
    """
    try:
        yield
    # A full disk is an OSError only to Python itself; torch and safetensors have errors of their own for it, and
    # torch's does not say so.
    except (OSError, RuntimeError, SafetensorError) as error:
        free = shutil.disk_usage(Path(folder).parent).free / 2**20
        raise OSError(
            f"Checkpoint {folder} could not be written: {error} ({free:.0f} MB are free on this disk). What is there "
            f"of it is passed over when resuming; earlier checkpoints are as they were. If the disk is full, make "
            f"room (save_total_limit keeps fewer), then train with resume_from_checkpoint=True."
        ) from error


def _flush(path: Path) -> None:
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def _json(path: Path) -> dict[str, int] | None:
    try:
        content: dict[str, int] = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return content
