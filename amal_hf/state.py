"""The file of a checkpoint that holds what a method has learned.

Written whole or not at all, read only if it belongs to this run.
"""

import os
from typing import Any

import torch


STATE_NAME = "amal.pt"
"""The file in a checkpoint."""

IDENTITY = ("method", "policy", "losses", "examples", "weights_in_memory")
"""What must be the same in a checkpoint and in the run that resumes from it."""


def save_state(state: dict[str, Any], path: str) -> None:
    """Write tensors and plain values to `path`. A run that is killed meanwhile leaves the old file or none."""
    unfinished = f"{path}.tmp"
    with open(unfinished, "wb") as file:  # given a name, torch 2.8 says nothing of a small file on a full disk
        torch.save(state, file)
    os.replace(unfinished, path)


def load_state(path: str, present: dict[str, Any]) -> dict[str, Any]:
    """Read what `save_state` wrote, if it fits the run whose state is `present`.

    Raises:
        FileNotFoundError: the checkpoint holds no such file.
        ValueError: the file is damaged, or comes from another method, other losses or a training set of another size.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"{path} is missing: the checkpoint was written without losses or method (or with save_only_model=True, "
            "or published without hub_include_weights=True). Resume with the arguments it was trained with, or start "
            "anew."
        )
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes the reader fail in any way
        raise ValueError(f"{path} is damaged ({error!r}). Resume from an earlier checkpoint.") from error
    state.setdefault("policy", present["policy"])  # of checkpoints that were written before there was this
    for key in IDENTITY:
        if state.get(key) != present[key]:
            raise ValueError(
                f"{path} was written for {key} = {state.get(key)}, this run has {key} = {present[key]}. Resume with "
                f"what it was trained with."
            )
    return state
