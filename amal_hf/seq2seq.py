"""`AMALSeq2SeqTrainer`: `AMALTrainer` that can score what the student writes."""

from typing import Any

from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments

from amal_hf.trainer import AMALTrainer


class AMALSeq2SeqTrainer(AMALTrainer, Seq2SeqTrainer):
    """`AMALTrainer` on top of `transformers.Seq2SeqTrainer`, for students that generate text.

    Every sentence pair has one weight for each loss; a loss is the mean over the target's tokens, and the meta
    objective is that of the labels given the true words so far. Nothing is generated while weights are learned:
    with `AMALSeq2SeqArguments(predict_with_generate=True)` evaluation writes text for `compute_metrics`
    (`translation_metrics`), which serves to choose a model and to report it.

    With losses, method and teacher left out it is `Seq2SeqTrainer`, to the last bit.

    Raises:
        TypeError: a student that does not generate text, such as a classifier, or arguments without the options of
            generation.
    """

    def __init__(self, *trainer_args: Any, **trainer_kwargs: Any) -> None:
        model, args = (
            trainer_kwargs.get(name, trainer_args[place] if len(trainer_args) > place else None)
            for place, name in enumerate(("model", "args"))
        )
        _check_writes(model)
        if args is not None and not isinstance(args, Seq2SeqTrainingArguments):
            raise TypeError(
                f"AMALSeq2SeqTrainer: args must be AMALSeq2SeqArguments, got {type(args).__name__}. It takes the same "
                f"options and those of generation."
            )
        super().__init__(*trainer_args, **trainer_kwargs)
        _check_writes(self.model)  # that `model_init` has made


def _check_writes(model: Any) -> None:
    if model is not None and not (hasattr(model, "can_generate") and model.can_generate()):
        raise TypeError(
            f"AMALSeq2SeqTrainer: {type(model).__name__} does not generate text. Use AMALTrainer, or load the student "
            f"with AutoModelForSeq2SeqLM."
        )
