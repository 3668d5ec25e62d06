"""A finished run as plain data: what pictures and the report page are made from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import datasets
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from amal_hf.batch_policies.label_blend import LabelBlend
from amal_hf.batch_policies.token_mask import TokenMask
from amal_hf.columns import find_text_columns
from amal_hf.example_notes import GUESS, STUDENT, group_means
from amal_hf.last_scores import last_scores
from amal_hf.losses import Loss
from amal_hf.model_labels import label_column, label_names
from amal_hf.rule_losses import RuleLosses
from amal_hf.rule_summary import RuleSummary, summarise_rules
from amal_hf.shapes import IGNORED, TRUE_LABEL


SHOWN_TEXTS = 8
"""Texts that are shown under a token mask."""


@dataclass
class Rules:
    """What rules said of every example.

    Attributes:
        names: of the m rules.
        votes: `(N, m)`, a class, or -1 for abstaining.
        weights: `(N, m)`, learned; NaN where a rule abstained or the example was never trained on.
        shares: `(N, m)`, what the initial mixture gives them, shared out among the losses that an example has.
    """

    names: list[str]
    votes: NDArray[np.int64]
    weights: NDArray[np.float32]
    shares: NDArray[np.float32]


@dataclass
class RunRecord:
    """A run, as far as it is known; N training examples.

    Attributes:
        settings: what was run, as words and numbers, by name.
        log_history: `trainer.state.log_history`.
        ids: of the examples, the user's own where there are any.
        weights: `(N,)` of each loss; of a loss of several columns the mean of those that an example has; NaN where it
            has none, or was never trained on.
        losses: `(N,)` their values when an example was last trained on.
        teachers: `(N,)` each teacher's probability of the label.
        student: `(N,)` the student's probability of the label, when last trained on; NaN where unknown.
        guesses: `(N,)` the student's class then; NaN where unknown.
        classes: names of the classes; empty where examples are not of one class.
        labels: `(N,)` classes, -100 for none; `None` where examples are not of one class.
        truth: `(N,)` the true classes, where the data knows them in a column `true_label`.
        rules: of the first `RuleLosses`, if any.
        texts: `(N,)` columns of text by name; only read for the report page.
        shares: `(C, C)`, λ of a `LabelBlend`.
        masked: a few texts as tokens, and what a `TokenMask` keeps of each.
    """

    settings: dict[str, str | int | float]
    log_history: Sequence[Mapping[str, Any]]
    ids: list[Any]
    weights: dict[str, NDArray[np.float32]]
    losses: dict[str, NDArray[np.float32]]
    teachers: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    student: NDArray[np.float32] | None = None
    guesses: NDArray[np.float32] | None = None
    classes: list[str] = field(default_factory=list)
    labels: NDArray[np.int64] | None = None
    truth: NDArray[np.int64] | None = None
    rules: Rules | None = None
    texts: dict[str, list[str]] = field(default_factory=dict)
    shares: NDArray[np.float32] | None = None
    masked: list[tuple[list[str], list[float]]] = field(default_factory=list)

    def rule_summaries(self) -> list[RuleSummary]:
        """What is known of every rule, right being what the truth says, or else the labels; empty without rules."""
        if self.rules is None:
            return []
        truth = self.labels if self.truth is None else self.truth
        return summarise_rules(self.rules.votes, self.rules.names, truth, self.rules.weights, self.rules.shares)


@torch.no_grad()
def record_of(trainer: Any) -> RunRecord:
    """The record of a trainer that has trained with losses or a method; without the texts, which are many.

    Of a training set too large for memory it has no examples.
    """
    if not trainer.mixture.notes.noting:
        return RunRecord(settings_of(trainer), trainer.state.log_history, [], {}, {}, **_changes(trainer))
    ids, columns = _weights(trainer)
    notes = trainer.mixture.notes.of(ids)
    losses = _noted_losses(notes)
    voted = next((loss for loss in trainer.mixture.losses if isinstance(loss, RuleLosses)), None)
    rules = None if voted is None else rules_of(trainer, voted, columns, losses)
    if voted is not None and rules is not None:
        columns[:, _columns_of(voted, trainer)] = rules.weights
    changed = _changes(trainer)
    names = label_names(trainer.model.config) if getattr(trainer.model.config, "num_labels", 0) > 1 else []
    labels = _classes_in(trainer.train_dataset, label_column(trainer.train_dataset)) if names else None
    of_one_class = labels is not None or changed["shares"] is not None or bool(np.isfinite(notes[GUESS]).any())
    return RunRecord(
        settings=settings_of(trainer),
        log_history=trainer.state.log_history,
        ids=ids.tolist() if trainer._given_ids is None else list(trainer._given_ids),
        weights=_where_present(_by_loss(columns, trainer.mixture.groups), losses),
        losses=losses,
        teachers={name.removeprefix("teacher/"): notes[name] for name in notes if name.startswith("teacher/")},
        student=notes[STUDENT],
        guesses=notes[GUESS],
        classes=names if of_one_class else [],
        labels=labels,
        truth=_classes_in(trainer.train_dataset, TRUE_LABEL),
        rules=rules,
        **changed,
    )


def _changes(trainer: Any) -> dict[str, Any]:
    """What a batch policy has learned to change."""
    changes = trainer.method.batch_policy
    return {
        "shares": changes.shares().cpu().numpy() if isinstance(changes, LabelBlend) else None,
        "masked": _masked(changes, trainer) if isinstance(changes, TokenMask) else [],
    }


def present_weights(trainer: Any) -> dict[str, NDArray[np.float32]]:
    """`(N,)`: the weights of each column of losses; NaN where an example is known not to have it.

    There a weight of 0 means nothing, such as that of a label on a row without one, or of a rule that abstained.
    """
    mixture = trainer.mixture
    ids, table = _weights(trainer)
    weights = dict(zip(mixture.names, table.T, strict=True))
    if mixture.notes.noting:
        names, noted = iter(weights), [np.isfinite(losses) for losses in _noted_losses(mixture.notes.of(ids)).values()]
        seen = np.logical_or.reduce(noted)  # by this process: other processes have notes of their own
        for there, columns in zip(noted, mixture.groups.values(), strict=True):
            for name in islice(names, columns):
                weights[name][seen & ~there] = np.nan
    for loss in mixture.losses:
        votes = _votes(trainer.train_dataset, loss) if isinstance(loss, RuleLosses) else None
        if votes is not None:
            for name, of_one in zip(loss.names, votes.T, strict=True):
                weights[name][of_one < 0] = np.nan
    return weights


def _weights(trainer: Any) -> tuple[Tensor, NDArray[np.float32]]:
    """Numbers `(N,)` and weights `(N, K)` of the examples; `example_weights` leaves those of a file in another one."""
    ids, rows = trainer.mixture.record.contents()
    return ids, rows.float().cpu().numpy()


def _noted_losses(notes: dict[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    """By the names of the losses."""
    return {name.removeprefix("loss/"): notes[name] for name in notes if name.startswith("loss/")}


def _votes(rows: Any, loss: RuleLosses) -> NDArray[np.int64] | None:
    """`(N, m)`; `None` where rules vote on tokens, or of a stream."""
    if not isinstance(rows, datasets.Dataset):
        return None
    votes = np.asarray(rows.with_format("numpy")[loss.column][:])
    return votes.astype(np.int64) if votes.ndim == 2 else None


def settings_of(trainer: Any) -> dict[str, str | int | float]:
    """The run in a few words and numbers; nothing of where it ran."""
    args, method = trainer.args, trainer.method
    seconds = [entry["train_runtime"] for entry in trainer.state.log_history if "train_runtime" in entry]
    by_arguments = trainer.given[0] is None and trainer.optimizer_cls_and_kwargs is None
    return {
        "method": method.name,
        "policy": type(method.policy).__name__,
        "losses": ", ".join(trainer.mixture.groups),
        "student": type(trainer.model).__name__,
        "training examples": _length(trainer.train_dataset),
        "meta examples": _length(trainer.meta_dataset),
        "optimizer steps": trainer.state.global_step,
        "examples per step": trainer._train_batch_size * args.gradient_accumulation_steps * args.world_size,
        **({"learning rate": args.learning_rate} if by_arguments else {}),
        "seed": args.seed,
        "training seconds": seconds[-1] if seconds else float("nan"),
        **{f"eval_{name}": value for name, value in last_scores(trainer).items()},
    }


def rules_of(
    trainer: Any, loss: RuleLosses, columns: NDArray[np.float32], losses: dict[str, NDArray[np.float32]]
) -> Rules | None:
    """Votes, weights and initial shares of a loss of rules that vote on whole examples; `None` of others.

    Weights of rules that abstained are NaN. An example has those losses of which a value was noted.
    """
    votes = _votes(trainer.train_dataset, loss)
    if votes is None:
        return None
    own = _columns_of(loss, trainer)
    present = np.repeat(np.isfinite(np.column_stack(list(losses.values()))), list(trainer.mixture.groups.values()), 1)
    present[:, own] = votes >= 0
    initial = trainer.mixture.initial(trainer.args.loss_weights).numpy()
    with np.errstate(divide="ignore"):  # of an example without losses nothing is asked
        shares = initial.sum() * initial[own] / (present @ initial)[:, None]
    weights = np.where(votes < 0, np.float32("nan"), columns[:, own])
    return Rules(list(loss.rules), votes, weights, shares)


def _columns_of(loss: Loss, trainer: Any) -> slice:
    """Where the weights of a loss stand among those of all."""
    first = trainer.mixture.names.index(loss.names[0])
    return slice(first, first + len(loss.names))


def texts_of(rows: Any, tokenizer: Any) -> dict[str, list[str]]:
    """The columns of text; where there are none, what the tokens say, if a tokenizer is known."""
    if not isinstance(rows, datasets.Dataset):
        return {}
    try:
        names = find_text_columns(rows.column_names)
    except ValueError:
        if "input_ids" not in rows.column_names or not hasattr(tokenizer, "batch_decode"):
            return {}
        return {"text": tokenizer.batch_decode(rows["input_ids"][:], skip_special_tokens=True)}
    plain = rows.with_format(None)
    return {name: [_joined(value) for value in plain[name][:]] for name in names}


def _joined(value: Any) -> str:
    if value is None:
        return ""
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _by_loss(columns: NDArray[np.float32], groups: dict[str, int]) -> dict[str, NDArray[np.float32]]:
    table = torch.from_numpy(columns)
    means = group_means(table, table.isfinite(), list(groups.values())).numpy()
    return dict(zip(groups, means.T, strict=True))


def _where_present(
    weights: dict[str, NDArray[np.float32]], losses: dict[str, NDArray[np.float32]]
) -> dict[str, NDArray[np.float32]]:
    """NaN where an example was found not to have a loss, such as one without a label: a weight of 0 means nothing."""
    noted = {name: np.isfinite(values) for name, values in losses.items()}
    return {
        name: np.where(noted[name], values, np.float32("nan")) if noted[name].any() else values
        for name, values in weights.items()
    }


def _masked(mask: TokenMask, trainer: Any) -> list[tuple[list[str], list[float]]]:
    rows, tokenizer = trainer.train_dataset, trainer.processing_class
    if not isinstance(rows, datasets.Dataset) or not hasattr(tokenizer, "convert_ids_to_tokens"):
        return []
    pairs = []
    for ids in rows[:SHOWN_TEXTS]["input_ids"]:
        tokens = torch.as_tensor(ids, device=mask.vectors.device)[None]
        kept = mask.keep(tokens, torch.ones_like(tokens))[0].tolist()
        pairs.append((tokenizer.convert_ids_to_tokens(ids), kept))
    return pairs


def _classes_in(rows: Any, column: str | None) -> NDArray[np.int64] | None:
    """One class an example, from a column; `None` where there is none, or holds something else."""
    if not isinstance(rows, datasets.Dataset) or column not in rows.column_names:
        return None
    if not str(getattr(rows.features[column], "dtype", "")).startswith(("int", "uint")):
        return None
    values = np.asarray(rows.with_format("numpy")[column][:], dtype=np.float64)  # NaN for nothing
    return np.where(values >= 0, values, IGNORED).astype(np.int64)


def _length(rows: Any) -> int | str:
    if rows is None:
        return 0
    return len(rows) if hasattr(rows, "__len__") else "a stream"
