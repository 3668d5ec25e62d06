"""`Trainer` over rows that are known by their number, with columns that losses read beside the student's inputs."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any

import datasets
import torch
from torch import nn

from amal_hf.collator import ExampleCollator, is_stream, numbered, rows_of
from amal_hf.columns import is_transformed
from amal_hf.drawn_rows import DrawnRows, replace_order
from amal_hf.first_batch import check_first_rows
from amal_hf.generators import answers_by_token, takes_keywords, with_decoder_inputs
from amal_hf.grouped_rows import group_alike
from amal_hf.losses import Loss
from amal_hf.mixing import MixingTrainer
from amal_hf.processes import process_count
from amal_hf.ragged import filled, own_part, without_repeats
from amal_hf.random_numbers import generator_of
from amal_hf.shapes import EXAMPLE_ID, REPEATED, Batch, PerExample


_TOKEN_TYPES = "token_type_ids"


class NumberedRowsTrainer(MixingTrainer):
    """`Trainer` whose batches say which rows they have.

    With `mixes` off it is `Trainer`.
    """

    meta_dataset: Any
    model: Any
    train_dataset: Any
    _signature_columns: Any
    _collate: Callable[[list[Any]], Batch]
    _plain_collator: ExampleCollator
    _student_columns: set[str]
    _loss_columns: list[str]
    _teacher_columns: set[str]
    _given_ids: list[Any] | None

    def _number_rows(self) -> None:
        """Have the collator bring numbers and columns of losses, try it on two rows of each set, and number the rows.

        Raises:
            TypeError, ValueError: rows that make no batch to learn from; see `first_batch.py`.
        """
        self._collate = with_decoder_inputs(self.data_collator, self.model)
        self._set_signature_columns_if_needed()
        self.data_collator = ExampleCollator(self._collate, self._loss_columns)
        self._plain_collator = ExampleCollator(self._collate, self._loss_columns, put_back=False)
        policies = (self.method.policy, self.method.batch_policy)
        readers = [_reader(policy) for policy in policies if policy is not None and policy.needs_one_class]
        self._check_first_rows(self.train_dataset, "train_dataset", self.mixture.losses, readers)
        if self.method.learns:
            self._check_first_rows(self.meta_dataset, "meta_dataset", [self.method.objective])
        self.train_dataset, self._given_ids = numbered(self.train_dataset)
        self._numbered = self.train_dataset

    def _check_replaced(self) -> None:
        """Refuse rows that came later.

        Raises:
            ValueError: says what to do instead.
        """
        if self.train_dataset is not self._numbered:
            raise ValueError(
                "AMALTrainer: train_dataset was replaced after the trainer had numbered its rows and opened its "
                "teachers. Make a new AMALTrainer(model=trainer.model, train_dataset=...)."
            )

    def get_train_dataloader(self) -> Any:
        """`Trainer`'s; rows that fill up a batch can be told from others; all may be drawn, or grouped as before."""
        loader = super().get_train_dataloader()
        if not self.mixes:
            return loader
        if self.method.policy.draws:
            rates = partial(self._rates, self._steps_of_pass(loader))
            replace_order(loader, lambda order: DrawnRows(order, rates))
        elif self.args.train_sampling_strategy == "group_by_length" and not is_stream(self.train_dataset):
            numbers = partial(self._random_numbers, self._steps_of_pass(loader))
            replace_order(loader, lambda order: group_alike(order, numbers))
        return filled(loader)

    def get_eval_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        """`Trainer`'s, without the columns that only training losses read: they may hold anything there."""
        with self._collating_plainly():
            return super().get_eval_dataloader(*args, **kwargs)

    def get_test_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        """The same."""
        with self._collating_plainly():
            return super().get_test_dataloader(*args, **kwargs)

    @contextmanager
    def _collating_plainly(self) -> Iterator[None]:
        given = self.data_collator
        if self.mixes and isinstance(given, ExampleCollator):
            self.data_collator = self._plain_collator
        try:
            yield
        finally:
            self.data_collator = given

    def _steps_of_pass(self, loader: Any) -> int:
        return -(-len(loader) // self.args.gradient_accumulation_steps)

    def _random_numbers(self, steps: int) -> torch.Generator:
        """Those of the pass that the run is in, of so many optimizer steps."""
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return generator_of(seed, self.state.global_step // steps)

    def _rates(self, steps: int) -> tuple[PerExample, torch.Generator] | None:
        """How often rows are drawn in the pass that the run is in, of so many optimizer steps; and random numbers.

        Raises:
            ValueError: as the first pass begins, if rows are drawn in none.
        """
        policy, most = self.method.policy, max(self.state.max_steps, 1)
        passes = self.state.global_step // steps
        if passes == 0 and policy.rates((most - 1) // steps * steps / most) is None:
            raise ValueError(
                f"AMALTrainer: {type(policy).__name__}(draw=True) draws rows from the first pass that begins when "
                f"weights are used, and of the {-(-most // steps)} passes of this run none does. Train longer, have "
                f"weights used earlier, or leave draw out."
            )
        began = passes * steps / most
        if policy.wants_rows_at(began):
            self._show_rows(began)
        rates = policy.rates(began)
        return None if rates is None else (rates, self._random_numbers(steps))

    def _show_rows(self, progress: float) -> None:
        """Let the policy see all training rows, which it asks for where rows are drawn."""
        raise NotImplementedError

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """`Trainer`'s, without the columns that only training losses read."""
        if self.mixes:
            own = {EXAMPLE_ID, *self._loss_columns, *self._teacher_columns}
            inputs = {name: value for name, value in inputs.items() if name not in own}
        return super().prediction_step(model, inputs, *args, **kwargs)

    def _without_repeats(self, batch: Batch) -> Batch:
        return without_repeats(batch, self.accelerator, self._train_batch_size, self.mixture.record.size)

    def _whole_training_set(self) -> Iterator[Sequence[Batch]]:
        """In order, as the micro-batches of optimizer steps."""
        batches = self._all_rows(self._train_batch_size)
        while step := list(islice(batches, self.args.gradient_accumulation_steps)):
            yield step

    def _all_rows(self, size: int) -> Iterator[dict[str, Any]]:
        """Training rows in order, so many a batch: this process's part of each."""
        rows, collate = self._rows_and_collator(self.train_dataset, "Training")
        size *= process_count()
        for start in range(0, len(rows), size):
            yield own_part(collate(rows_of(rows, range(len(rows))[start : start + size])))

    def _training_rows(self, most: int) -> Iterator[dict[str, Any]]:
        """So many rows drawn at random, a batch at a time: this process's part of each."""
        rows, collate = self._rows_and_collator(self.train_dataset, "Training")
        drawn = torch.randperm(len(rows), generator=generator_of(self.args.seed))[:most].tolist()
        size = self._train_batch_size * process_count()
        for start in range(0, len(drawn), size):
            yield own_part(collate(rows_of(rows, drawn[start : start + size])))

    def _rows_and_collator(self, rows: Any, name: str) -> tuple[Any, Callable[[list[Any]], Batch]]:
        """A dataset and what makes its batches, as `Trainer` would have them: without columns that nobody reads."""
        if isinstance(rows, datasets.Dataset) and not is_transformed(rows):
            return self._remove_unused_columns(rows, name), self.data_collator
        return rows, self._get_collator_with_removed_columns(self.data_collator, name)

    def _check_first_rows(
        self, dataset: Any, name: str, losses: Sequence[Loss], one_class_readers: Sequence[str] = ()
    ) -> None:
        """Make a batch of two rows, before teachers or training cost anything."""
        if dataset is not None and not is_stream(dataset):
            rows, collate = self._rows_and_collator(dataset, name)
            by_token = answers_by_token(self.model)
            check_first_rows(rows, collate, name, losses, self.mixture.task, by_token, one_class_readers)

    def _set_signature_columns_if_needed(self) -> None:
        """The student's inputs, and what losses and the objective read beside these.

        What a forward takes by `**kwargs` it gets as with `Trainer`, where columns are not removed: of inputs that
        its tokenizer makes.
        """
        if self._signature_columns is None:
            super()._set_signature_columns_if_needed()
            known: list[str] = [*(self._signature_columns or [])]
            if not self.args.remove_unused_columns and takes_keywords(self.model):
                known += getattr(self.processing_class, "model_input_names", [])
            self._student_columns = set(known) - {"label", "label_ids", *self.label_names}
            if self.mixes:
                self._loss_columns = sorted({*self.mixture.columns, *self.method.objective.columns} - set(known))
                # What BERT reads of a pair of texts and DistilBERT does not: which of them a token is of.
                self._teacher_columns = {_TOKEN_TYPES} - set(known) if self.mixture.distillations else set()
                self._signature_columns = [*known, EXAMPLE_ID, REPEATED, *self._loss_columns, *self._teacher_columns]


def _reader(policy: Any) -> str:
    """The name of a policy, or of the one that it only uses."""
    return type(getattr(policy, "policy", policy)).__name__
