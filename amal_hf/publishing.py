"""`Trainer` with this package's way to the Hub.

- A card of its own (`cards.py`), and only the student, its tokenizer, the card and the figures: what else lies in
  `output_dir` stays there.
- No pickle and no token in anything that is published; checkpoints go out as safetensors and JSON (`portable.py`).
- What is sent is a copy, so that a run may go on, and remove checkpoints, while it is under way.
- A push that fails while training is reported and remembered; `push_to_hub()` sends what is missing.
"""

import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
from huggingface_hub import CommitInfo, create_repo
from torch.distributed.fsdp import StateDictType
from transformers import TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_utils import HubStrategy, SaveStrategy

from amal_hf.card_check import check_card
from amal_hf.card_facts import CardDetails
from amal_hf.cards import names_of, render_card
from amal_hf.checkpoints import FILES_NAME
from amal_hf.loggers import logger_of
from amal_hf.mixing import MixingTrainer
from amal_hf.policies.frozen import save_policy
from amal_hf.policies.row_log import SEGMENTS
from amal_hf.portable import SAVED
from amal_hf.pushes import ADAPTER_CONFIG, Push, Pushes
from amal_hf.run_facts import FIGURES, gather
from amal_hf.run_figures import TRAINING_TEXTS
from amal_hf.state import STATE_NAME


logger = logger_of(__name__)

CARD_NAME, FACTS_NAME = "README.md", "card.json"
"""The card, and the facts that it can be rendered from again."""


def reach_hub(args: TrainingArguments) -> None:
    """Create the repository of a run that is to be pushed, if it does not exist; nothing without `push_to_hub`.

    `Trainer` does so when it is made. A script that makes the published one last, after hours of others, asks first.

    Raises:
        HfHubHTTPError, OSError: the Hub cannot be reached, or refuses.
    """
    if args.push_to_hub and args.process_index == 0:
        name = args.hub_model_id or Path(args.output_dir or "").absolute().name
        create_repo(name, token=args.hub_token, private=args.hub_private_repo, exist_ok=True)


class PublishingTrainer(MixingTrainer):
    """`Trainer` that publishes safely; the base of `AMALTrainer`.

    Attributes:
        card_details: what its card is told; set it at any time, or pass the same names to `create_model_card` or
            `push_to_hub`.
    """

    args: Any
    hub_model_id: Any
    card_details: CardDetails = CardDetails()
    _pushes: Pushes
    _staged_folders: int = 0
    _student_files: frozenset[str] = frozenset()

    # ---- the card ----

    def create_model_card(self, details: CardDetails | None = None, **told: Any) -> None:  # type: ignore[override]
        """Write `README.md`, and `card.json` with the facts that it was rendered from.

        Args:
            details: what the card cannot know.
            told: single fields of it instead; those of `Trainer.create_model_card` are among them.

        Raises:
            ValueError: the Hub would refuse it, or there is no student, as after a search; says why.
            TypeError: a field that `CardDetails` does not have.
        """
        self._check_student()
        details = _told(self.card_details if details is None else details, told)
        if self.is_world_process_zero():
            self._write_card(gather(self, details).plain())
        self.card_details = details

    def _check_student(self) -> None:
        if self.model is None:
            raise ValueError(
                "There is no student to describe or to publish: a search over hyperparameters keeps none. Set the "
                "arguments to the best run's (`setattr(trainer.args, name, value)`), and call train()."
            )

    def _write_card(self, facts: dict[str, Any]) -> None:
        folder = Path(self.args.output_dir)
        card = render_card(facts)
        check_card(str(card), folder, names_of(facts))
        card.save(folder / CARD_NAME)
        (folder / FACTS_NAME).write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    def example_weights(self) -> datasets.Dataset:
        """The weights of all training examples."""
        raise NotImplementedError

    # ---- pushing ----

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Create the repository, if it does not exist.

        Raises:
            ValueError: checkpoints of a sharded student are to be published, which would need pickles.
        """
        if self.is_fsdp_enabled and "checkpoint" in self.args.hub_strategy:
            raise ValueError(
                "Under FSDP checkpoints hold pickles, which are not published, and could not be resumed from the Hub. "
                "Use hub_strategy='every_save' or 'end'."
            )
        if private is not None:
            self.args.hub_private_repo = private  # where older transformers look for it
        super().init_hf_repo(token)
        self._pushes = Pushes(self.hub_model_id, self.args.hub_private_repo, str(self.args.output_dir))

    def push_to_hub(  # type: ignore[override]
        self,
        commit_message: str = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **told: Any,
    ) -> "CommitInfo | Future[CommitInfo] | None":
        """Publish student, tokenizer, card and figures; and the checkpoints that earlier pushes did not bring.

        With `hub_include_weights=True` also what the method has learned (`weights/policy.safetensors`, for `Frozen`,
        unless it reads clean rows) and the weight of every example (a dataset `<repository>-weights`).

        Args:
            commit_message: of the commit.
            blocking: wait for it; otherwise a future of it is returned.
            token: instead of `args.hub_token` and the one of `hf auth login`.
            revision: branch; `args.hub_revision` by default.
            private: whether repositories are private that have to be created. Weights are in any case if the
                student's is.
            told: fields of `CardDetails`, or `details=` all of them.

        Raises:
            ValueError: the card is not fit to be published, or there is no student, as after a search.
            HfHubHTTPError: the Hub refused; the files in `args.output_dir` are complete.
        """
        self._check_student()
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        stage = self._saved_student()
        try:
            self._card_and_repository(token, private, told)
            self._finish_current_push()
            token, revision = token or self.args.hub_token, revision or self.args.hub_revision
            if not self.is_world_process_zero():
                return None
            self._add_to_student(stage)
            for missing in list(self._pushes.missing.values()):
                self._send_again(missing, token, revision)
        except BaseException:
            shutil.rmtree(stage, ignore_errors=True)
            raise
        push = Push(stage, "", commit_message, weights=self.example_weights() if self._shows_weights() else None)
        return (self._pushes.send if blocking else self._pushes.begin)(push, token, revision)

    def _saved_student(self) -> Path:
        """The student in a folder of its own, from which it is sent, and in the run's."""
        folder, stage = Path(self.args.output_dir), Path(self.args.output_dir, "_push-0")
        if self.is_world_process_zero():
            shutil.rmtree(stage, ignore_errors=True)
        # All processes take part in saving; what is sent is what was saved, and nothing else of the folder.
        with self._gathered():
            self.save_model(str(stage), _internal_call=True)
        if self.is_world_process_zero():
            shutil.copytree(stage, folder, dirs_exist_ok=True)
        return stage

    def _card_and_repository(self, token: str | None, private: bool | None, told: dict[str, Any]) -> None:
        """The repository comes when nothing of the card can be refused any more; then the card names it."""
        self.create_model_card(**told)
        if self.hub_model_id is None:
            self._open_repository(token, private)
            self.create_model_card()
        elif private is not None:
            self._pushes.private = private

    def _open_repository(self, token: str | None, private: bool | None) -> None:
        try:
            self.init_hf_repo(token, private)
        except OSError as error:  # the Hub refused, or was not reached
            error.add_note(
                f"The student is saved in {self.args.output_dir}, with its card. Once `hf auth login` or `hub_token` "
                f"gives a token that may write, push_to_hub() sends it."
            )
            raise

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Send a checkpoint's student, and the checkpoint itself where the strategy says so; in the background."""
        strategy = self.args.hub_strategy
        if not self.is_world_process_zero() or strategy == HubStrategy.END:
            return
        source, message = Path(checkpoint_folder), self._progress_message()
        if not self._student_files:  # a student that is kept cut is published at the end
            return
        pushes = [Push(source, "", message, source)]
        if strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            name = "last-checkpoint" if strategy == HubStrategy.CHECKPOINT else source.name
            pushes.append(Push(source, name, f"{message}, checkpoint", source))
            self._pushes.missing[name] = pushes[-1]
        if not self.args.hub_always_push and self._pushes.busy:
            return
        self._pushes.collect()
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        for push in pushes:
            staged = replace(push, stage=self._staged(source, whole=push.path_in_repo != ""))
            # The token is taken now: while the next checkpoint is written, the arguments have none.
            self._pushes.begin(staged, self.args.hub_token, self.args.hub_revision)

    def _progress_message(self) -> str:
        by_epoch = self.args.save_strategy == SaveStrategy.EPOCH
        done = f"epoch {int(self.state.epoch or 0)}" if by_epoch else f"step {self.state.global_step}"
        return f"Training in progress, {done}"

    def _finish_current_push(self) -> None:
        """Wait for what is under way, and say what failed. `Trainer` calls this at the end of training."""
        if self.hub_model_id is not None:
            self._pushes.finish()

    def _send_again(self, push: Push, token: str | None, revision: str | None) -> None:
        """A checkpoint that did not get there, if it still exists."""
        if push.source is None or not push.source.is_dir():
            logger.warning("%s is no longer here, so it is not sent to %s.", push.source, self.hub_model_id)
        else:
            self._pushes.send(replace(push, stage=self._staged(push.source, whole=True)), token, revision)
        del self._pushes.missing[push.path_in_repo]

    @contextmanager
    def _gathered(self) -> Iterator[None]:
        """Within the block a student that is cut over processes is saved whole, whatever its checkpoints are."""
        plugin = self.accelerator.state.fsdp_plugin if self.is_fsdp_enabled else None
        kind = None if plugin is None else plugin.state_dict_type
        if plugin is None or kind == StateDictType.FULL_STATE_DICT:
            yield
            return
        plugin.set_state_dict_type("FULL_STATE_DICT")
        try:
            yield
        finally:
            plugin.set_state_dict_type(kind)

    # ---- what is sent ----

    def _shows_weights(self) -> bool:
        return self.mixes and self.args.hub_include_weights

    def _add_to_student(self, stage: Path) -> None:
        """The card and what it shows, and the policy if it is to be shown."""
        folder = Path(self.args.output_dir)
        for name in (CARD_NAME, FACTS_NAME):
            shutil.copy(folder / name, stage / name)
        _name_base(stage, self.card_details.finetuned_from)
        if (folder / FIGURES).is_dir():
            shutil.copytree(folder / FIGURES, stage / FIGURES, ignore=shutil.ignore_patterns(TRAINING_TEXTS))
        policy = self.method.policy if self._shows_weights() else None
        # The rows of a table in a file are those of the dataset; what reads clean rows is of use to this run alone.
        if policy is not None and policy.learns and not policy.reads_clean_states:
            rows = policy.rows()
            if rows is None or rows.in_memory:
                save_policy(policy, stage / "weights" / "policy.safetensors")

    def _staged(self, source: Path, whole: bool) -> Path:
        """A copy of a checkpoint, or of the student in it; by links, which take neither time nor room."""
        left_out = {TRAINING_ARGS_NAME, CARD_NAME, FILES_NAME}
        if not self._shows_weights():
            left_out |= {STATE_NAME, *(file.name for file in source.glob(SEGMENTS))}
        if not whole:
            left_out |= {file.name for file in source.iterdir()} - self._student_files
        self._staged_folders += 1
        stage = Path(self.args.output_dir, f"_push-{self._staged_folders}")
        shutil.rmtree(stage, ignore_errors=True)
        shutil.copytree(source, stage, copy_function=_link, ignore=lambda *_: left_out)
        return stage

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """As `Trainer` does, but without the token: it keeps all arguments in a file beside the student."""
        token, self.args.hub_token = self.args.hub_token, None
        try:
            super()._save(output_dir, state_dict)
        finally:
            self.args.hub_token = token
        if not self.is_world_process_zero():
            return
        folder = Path(output_dir or self.args.output_dir)
        written = {file.name for file in folder.iterdir() if file.suffix not in SAVED}
        of_run = {STATE_NAME, TRAINER_STATE_NAME, *(file.name for file in folder.glob(SEGMENTS))}
        self._student_files = frozenset(written - of_run)


def _name_base(stage: Path, known: str) -> None:
    """Adapters name the model that they belong to; a folder of this machine is of no use to those who load them."""
    file = stage / ADAPTER_CONFIG
    if not file.is_file():
        return
    config = json.loads(file.read_text(encoding="utf-8"))
    base = config["base_model_name_or_path"]
    if base and not Path(base).is_dir():
        return
    if known:
        file.write_text(json.dumps({**config, "base_model_name_or_path": known}, indent=2), encoding="utf-8")
        return
    logger.warning(
        "The adapters are published, but the model that they belong to %s, so that nobody else can load them. "
        "push_to_hub(finetuned_from='organisation/model') names it by its Hub id; "
        "model.merge_and_unload().push_to_hub(...) publishes both in one.",
        f"is a folder of this machine, {base}" if base else "has no name",
    )


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copy2(source, target)


def _told(details: CardDetails, told: dict[str, Any]) -> CardDetails:
    """With the fields that were told; scripts written for `Trainer` pass strings for lists, and lists for strings."""
    given = {name: value for name, value in told.items() if value is not None}
    for name, value in given.items():
        if isinstance(getattr(CardDetails, name, None), tuple):
            given[name] = (value,) if isinstance(value, str) else tuple(value)
        elif isinstance(value, list):
            given[name] = ", ".join(value)
    return replace(details, **given)
