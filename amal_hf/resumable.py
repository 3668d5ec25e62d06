"""`Trainer` that a run can be killed in at any moment: only whole checkpoints count; `checkpoints.py` says which."""

import os
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from transformers.trainer_jit_checkpoint import JITCheckpointCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from amal_hf.checkpoints import checkpoint_to_resume, named_failure, seal, unseal
from amal_hf.learner import WeightLearner
from amal_hf.lost_process import lost_process_advice
from amal_hf.mixing import MixingTrainer
from amal_hf.state import STATE_NAME, load_state, save_state


class SavedAfterSteps(JITCheckpointCallback):
    """Saves what a signal has asked for when the step under way is over: within it, its meta step would come twice.

    Args:
        given: the callback of `Trainer`, which it takes the place of.
    """

    def __init__(self, given: JITCheckpointCallback) -> None:
        super().__init__()
        self.trainer, self.jit_manager = given.trainer, given.jit_manager

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        """Nothing yet."""

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Nothing yet."""


class ResumableTrainer(MixingTrainer):
    """`Trainer` with checkpoints that hold what the method has learned and are noted as whole.

    With `mixes` off it is `Trainer`.
    """

    _learner: WeightLearner | None

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """`Trainer`'s; `resume_from_checkpoint=True` takes the newest whole checkpoint.

        Raises:
            ValueError: the checkpoint to resume from is not whole.
        """
        if self.mixes:
            resume_from_checkpoint = checkpoint_to_resume(resume_from_checkpoint, str(self.args.output_dir))
        with lost_process_advice() if self.mixes else nullcontext():
            return super().train(resume_from_checkpoint, *args, **kwargs)

    def _save_after_steps(self) -> None:
        """Have a signal's checkpoint wait for the end of a step."""
        given = self.pop_callback(JITCheckpointCallback)
        if isinstance(given, JITCheckpointCallback):
            self.add_callback(SavedAfterSteps(given))

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list[Any], Any]:
        """`Trainer`'s; none where a run is resumed from its end within an epoch, after which `Trainer` would go on."""
        if self.mixes and self._is_over():
            return [], None
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        if not self.mixes:
            super()._save_checkpoint(model, trial)
            return
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        folder = os.path.join(self._get_output_dir(trial=trial), name)
        with named_failure(folder):
            if self.args.should_save:
                unseal(folder)
            super()._save_checkpoint(model, trial)

    def _save_rng_state(self, output_dir: str) -> None:
        """The last files but one; `Trainer` writes its own state after these, and only then removes old ones."""
        super()._save_rng_state(output_dir)
        if self.mixes:
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                seal(output_dir)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if not self.mixes:
            return
        if self.args.should_save:
            self.mixture.record.save_files(output_dir)
        state = self._state()  # on all processes, as each may have something to tell
        if self.args.should_save:
            save_state(state, os.path.join(output_dir, STATE_NAME))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if self.mixes and checkpoint is not None:
            state = load_state(os.path.join(checkpoint, STATE_NAME), self._state())
            self.mixture.load_state_dict(state["mixture"])
            self.mixture.record.load_files(checkpoint)
            if self.method.batch_policy is not None:
                self.method.batch_policy.load_state_dict(state["batch_policy"])
            if self._learner is not None:
                self._learner.load_state_dict(state["learner"])
            if self._is_over():
                self._load_rng_state(checkpoint)  # `Trainer` does so at its first step, and there is none

    def _is_over(self) -> bool:
        return 0 < self.state.max_steps <= self.state.global_step

    def _state(self) -> dict[str, Any]:
        return {
            "method": self.method.name,
            "losses": self.mixture.names,
            "examples": self.mixture.record.size,
            "policy": type(self.method.policy).__name__,
            "weights_in_memory": self.mixture.record.in_memory,
            "mixture": self.mixture.state_dict(),
            "batch_policy": {} if self.method.batch_policy is None else self.method.batch_policy.state_dict(),
            "learner": {} if self._learner is None else self._learner.state_dict(),
        }
