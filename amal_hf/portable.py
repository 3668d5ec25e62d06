"""Checkpoints without pickles: what `torch.save` wrote becomes safetensors with a JSON file beside it, and back.

A pickle can run code where it is opened, so none is published. `checkpoint_from_hub` turns a published checkpoint into
one that `trainer.train(resume_from_checkpoint=...)` goes on from, to the bit.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import snapshot_download
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_pt_utils import safe_globals

from amal_hf.checkpoints import seal


SAVED = (".pt", ".pth")
"""Endings of what `torch.save` wrote: optimizer, scheduler, random generators, gradient scaler, learned weights."""

FORMAT = "amal_hf state 1"
"""Marks the JSON files that belong to such a state."""


def make_portable(folder: Path) -> None:
    """Replace every saved state in a folder by `name.json` and, if it holds tensors, `name.safetensors`.

    Raises:
        TypeError: a state holds something that is neither a tensor nor plain data.
    """
    _point_to_best(folder, lambda path: path.name)
    for file in sorted(path for path in folder.iterdir() if path.suffix in SAVED):
        with safe_globals():
            state = torch.load(file, map_location="cpu", weights_only=True)
        tensors: dict[str, Tensor] = {}
        plain = pack(state, tensors)
        content = {"format": FORMAT, "file": file.name, "state": plain}
        file.with_suffix(".json").write_text(json.dumps(content))
        if tensors:
            save_file(tensors, file.with_suffix(".safetensors"))
        file.unlink()


def make_resumable(folder: Path) -> None:
    """The way back: files that `Trainer` reads, in place of the portable ones."""
    for file in sorted(folder.glob("*.json")):
        content = json.loads(file.read_text(encoding="utf-8"))  # a tokenizer's is among them
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            continue
        beside = file.with_suffix(".safetensors")
        state = _state(content["state"], beside)
        with open(folder / Path(content["file"]).name, "wb") as saved:  # given a name, torch.save may hide a full disk
            torch.save(state, saved)
        file.unlink()
        beside.unlink(missing_ok=True)


def _state(packed: Any, beside: Path) -> Any:
    """With its tensors copied: Windows removes no file as long as tensors are mapped from it."""
    return unpack(packed, load_file(beside) if beside.is_file() else {})


def checkpoint_from_hub(
    repo_id: str,
    output_dir: str | Path,
    *,
    checkpoint: str = "last-checkpoint",
    revision: str | None = None,
    token: str | None = None,
) -> str:
    """Fetch a published checkpoint; gives the folder for `trainer.train(resume_from_checkpoint=...)`.

    Args:
        repo_id: to which a run was pushed with `hub_strategy="checkpoint"` or `"all_checkpoints"`.
        output_dir: of the run that goes on; the checkpoint becomes `checkpoint-<step>` in it.
        checkpoint: the folder in the repository.
        revision: branch or commit.
        token: if the one of `hf auth login` does not do.

    Raises:
        FileNotFoundError: the repository has no such checkpoint.
        FileExistsError: this step's checkpoint is here already.
    """
    fetched = Path(snapshot_download(repo_id, allow_patterns=f"{checkpoint}/*", revision=revision, token=token))
    state = fetched / checkpoint / TRAINER_STATE_NAME
    if not state.is_file():
        raise FileNotFoundError(
            f"{repo_id} has no checkpoint in '{checkpoint}'. One is there after training with push_to_hub=True and "
            f"hub_strategy='checkpoint' (or 'all_checkpoints', which calls them checkpoint-<step>)."
        )
    target = Path(output_dir, f"checkpoint-{json.loads(state.read_text())['global_step']}")
    if target.exists():
        raise FileExistsError(f"{target} is here already: resume from it, or move it away to fetch the published one.")
    # Written under another name first: a fetch that is interrupted leaves no half of a checkpoint.
    unfinished = target.with_name(f"_{target.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.copytree(fetched / checkpoint, unfinished)
    make_resumable(unfinished)
    _point_to_best(unfinished, lambda path: str(target.with_name(path.name)))
    seal(unfinished)
    unfinished.rename(target)
    return str(target)


def _point_to_best(folder: Path, name: Callable[[Path], str]) -> None:
    """Rewrite where the best checkpoint is: a path of one machine is of no use on another, and nobody's business."""
    file = folder / TRAINER_STATE_NAME
    state = json.loads(file.read_text()) if file.is_file() else {}
    if state.get("best_model_checkpoint"):
        state["best_model_checkpoint"] = name(Path(state["best_model_checkpoint"]))
        file.unlink()  # it may be a link to the checkpoint's own
        file.write_text(json.dumps(state, indent=2, sort_keys=True) + "\n")


def pack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Nested plain data for JSON; its tensors and arrays are put into `tensors`, each under a number.

    Raises:
        TypeError: something else.
    """
    if isinstance(value, Tensor | np.ndarray):
        kind = "tensor" if isinstance(value, Tensor) else "array"
        name = str(len(tensors))
        # A copy of its own: safetensors refuses tensors that share memory.
        tensors[name] = torch.as_tensor(value).detach().clone().contiguous()
        return {kind: name}
    if isinstance(value, Mapping):
        return {"dict": [[pack(key, tensors), pack(inner, tensors)] for key, inner in value.items()]}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [pack(inner, tensors) for inner in value]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"A checkpoint holds {type(value).__name__}, which cannot be published without a pickle.")


def unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What `pack` was given."""
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "dict":
        return {unpack(key, tensors): unpack(inner, tensors) for key, inner in content}
    if kind in ("list", "tuple"):
        inner = [unpack(part, tensors) for part in content]
        return inner if kind == "list" else tuple(inner)
    # Of their own again: what was read from one file shares memory, which `torch.save` refuses.
    tensor = tensors[content].clone()
    return tensor if kind == "tensor" else tensor.numpy()
