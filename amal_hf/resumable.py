"""`Trainer` that a run can be killed in at any moment: only whole checkpoints count; `checkpoints.py` says which."""

import os
from typing import Any

from torch import nn
from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from amal_hf.checkpoints import checkpoint_to_resume, named_failure, seal, unseal


class ResumableTrainer(Trainer):
    """`Trainer` with checkpoints that are noted as whole; with `mixes` off it is `Trainer`."""

    mixes: bool = False

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """`Trainer`'s; `resume_from_checkpoint=True` takes the newest whole checkpoint.

        Raises:
            ValueError: the checkpoint to resume from is not whole.
        """
        if self.mixes:
            resume_from_checkpoint = checkpoint_to_resume(resume_from_checkpoint, str(self.args.output_dir))
        return super().train(resume_from_checkpoint, *args, **kwargs)

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
