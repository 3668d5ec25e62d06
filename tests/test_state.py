"""A checkpoint's state is there whole or not at all, and only goes into the run it came from."""

import re

import pytest
import torch

from amal_hf.state import load_state, save_state


STATE = {
    "method": "amal",
    "policy": "LossNetwork",
    "losses": ["labels", "teacher"],
    "examples": 3,
    "weights_in_memory": True,
    "mixture": {"policy": {"table": torch.tensor([[0.25, 1.5]]), "moments": {0: {"step": torch.tensor(3.0)}}}},
    "learner": {"steps_taken": 7},
}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "amal.pt"
    save_state(STATE, str(path))
    return path


def test_a_state_comes_back_as_it_was(path):
    """Tensors bit for bit, plain values equal, and no half-written file beside it."""
    state = load_state(str(path), STATE)
    assert state["mixture"]["policy"].pop("table").equal(STATE["mixture"]["policy"]["table"])
    assert state["mixture"]["policy"]["moments"][0]["step"].item() == 3
    assert {key: state[key] for key in state if key != "mixture"} == {k: v for k, v in STATE.items() if k != "mixture"}
    assert [file.name for file in path.parent.iterdir()] == ["amal.pt"]


@pytest.mark.parametrize("share", [0, 0.01, 0.3, 0.6, 0.9, 0.999])
def test_a_torn_file_is_refused(path, share):
    """A disk that ran full leaves part of a file; the message names it and says what to resume from."""
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=re.escape(str(path)) + r" is damaged \(.*earlier checkpoint"):
        load_state(str(path), STATE)


OTHERS = [
    ("method", "amal", "random_weights"),
    ("policy", "LossNetwork", "ExampleTable"),
    ("losses", ["labels", "teacher"], ["labels"]),
    ("examples", 3, None),
    ("weights_in_memory", True, False),
]


@pytest.mark.parametrize(("key", "written", "present"), OTHERS)
def test_the_state_of_another_run_is_refused(path, key, written, present):
    """Weights of other losses or examples would load without complaint where shapes happen to agree; the message names
    both sides.
    """
    expected = re.escape(f"{key} = {written}, this run has {key} = {present}.")
    with pytest.raises(ValueError, match=expected):
        load_state(str(path), {**STATE, key: present})


def test_a_checkpoint_from_before_policies_were_named_is_read(path):
    """What it does not say is not held against it."""
    old = {key: value for key, value in STATE.items() if key != "policy"}
    save_state(old, str(path))
    assert load_state(str(path), STATE)["learner"] == {"steps_taken": 7}


def test_a_missing_file_says_what_to_do(tmp_path):
    """A checkpoint of plain `Trainer` has none; fresh weights in silence would pass for a resumed run."""
    with pytest.raises(FileNotFoundError, match=r"amal\.pt is missing.*save_only_model.*start anew"):
        load_state(str(tmp_path / "amal.pt"), STATE)


def test_an_interrupted_write_leaves_the_old_file(path, monkeypatch):
    """A run killed while writing can still resume from what was there before."""

    def killed(state, file):
        file.write(b"half a")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        save_state({**STATE, "method": "new"}, str(path))
    assert load_state(str(path), STATE)["method"] == "amal"
