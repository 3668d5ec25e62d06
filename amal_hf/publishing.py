"""`Trainer` with this package's way to the Hub.

- A card of its own (`cards.py`), and only the student, its tokenizer, the card and the figures: what else lies in
  `output_dir` stays there.
- No pickle and no token in anything that is published; checkpoints go out as safetensors and JSON (`portable.py`).
- What is sent is a copy, so that a run may go on, and remove checkpoints, while it is under way.
- A push that fails while training is reported and remembered; `push_to_hub()` sends what is missing.
"""

import json
import logging
import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import datasets
from huggingface_hub import CommitInfo, HfApi
from huggingface_hub.errors import HfHubHTTPError
from torch.distributed.fsdp import StateDictType
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_utils import HubStrategy, SaveStrategy

from amal_hf.card_check import check_card
from amal_hf.card_facts import CardDetails
from amal_hf.cards import names_of, render_card
from amal_hf.checkpoints import FILES_NAME
from amal_hf.method import Method
from amal_hf.mixture import Mixture
from amal_hf.policies.frozen import save_policy
from amal_hf.policies.row_log import SEGMENTS
from amal_hf.portable import SAVED, make_portable
from amal_hf.run_facts import FIGURES, gather, weights_name
from amal_hf.run_figures import TRAINING_TEXTS
from amal_hf.state import STATE_NAME


logger = logging.getLogger(__name__)

CARD_NAME, FACTS_NAME = "README.md", "card.json"
"""The card, and the facts that it can be rendered from again."""

PICKLES = ["*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt", "*.joblib", "*.distcp", "*.metadata"]
"""Never sent, wherever they come from."""

PAUSES = (1.0, 5.0)
"""Seconds before a commit that the server failed on is tried again. The client itself retries all but commits."""


@dataclass(frozen=True)
class Push:
    """A folder on its way to the Hub, or what is left to be sent.

    Attributes:
        stage: the copy that is sent; removed afterwards.
        path_in_repo: where to; empty for the root.
        message: of the commit.
        source: the checkpoint that it is a copy of.
        weights: of every example, for a repository of their own.
    """

    stage: Path
    path_in_repo: str
    message: str
    source: Path | None = None
    weights: datasets.Dataset | None = None


class PublishingTrainer(Trainer):
    """`Trainer` that publishes safely; the base of `AMALTrainer`.

    Attributes:
        card_details: what its card is told; set it at any time, or pass the same names to `create_model_card` or
            `push_to_hub`.
    """

    args: Any
    hub_model_id: Any
    card_details: CardDetails = CardDetails()
    mixes: bool = False
    mixture: Mixture
    method: Method
    _api: HfApi
    _private: bool | None
    _under_way: list[tuple[Push, "Future[CommitInfo]"]]
    _missing: dict[str, Push]
    _staged_folders: int = 0
    _student_files: frozenset[str] = frozenset()

    # ---- the card ----

    def create_model_card(self, details: CardDetails | None = None, **told: Any) -> None:  # type: ignore[override]
        """Write `README.md`, and `card.json` with the facts that it was rendered from.

        Args:
            details: what the card cannot know.
            told: single fields of it instead; those of `Trainer.create_model_card` are among them.

        Raises:
            ValueError: the Hub would refuse it; says why.
            TypeError: a field that `CardDetails` does not have.
        """
        details = _told(self.card_details if details is None else details, told)
        if self.is_world_process_zero():
            self._write_card(gather(self, details).plain())
        self.card_details = details

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
        self._api = HfApi(library_name="amal_hf")
        self._private = self.args.hub_private_repo
        self._under_way, self._missing = [], {}

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
        unless it reads clean rows)
        and the weight of every example (a dataset `<repository>-weights`).

        Args:
            commit_message: of the commit.
            blocking: wait for it; otherwise a future of it is returned.
            token: instead of `args.hub_token` and the one of `hf auth login`.
            revision: branch; `args.hub_revision` by default.
            private: whether repositories are private that have to be created. Weights are in any case if the
                student's is.
            told: fields of `CardDetails`, or `details=` all of them.

        Raises:
            ValueError: the card is not fit to be published.
            HfHubHTTPError: the Hub refused; the files in `args.output_dir` are complete.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        folder, stage = Path(self.args.output_dir), Path(self.args.output_dir, "_push-0")
        if self.is_world_process_zero():
            shutil.rmtree(stage, ignore_errors=True)
        # All processes take part in saving; what is sent is what was saved, and nothing else of the folder.
        with self._gathered():
            self.save_model(str(stage), _internal_call=True)
        if self.is_world_process_zero():
            shutil.copytree(stage, folder, dirs_exist_ok=True)
        try:
            self.create_model_card(**told)
            if self.hub_model_id is None:  # not before all is on disk, and nothing of it can be refused any more
                self._open_repository(token, private)
                self.create_model_card()
            elif private is not None:
                self._private = private
            self._finish_current_push()
            token, revision = token or self.args.hub_token, revision or self.args.hub_revision
            if not self.is_world_process_zero():
                return None
            self._add_to_student(stage)
            for missing in list(self._missing.values()):
                self._send_again(missing, token, revision)
        except BaseException:
            shutil.rmtree(stage, ignore_errors=True)
            raise
        push = Push(stage, "", commit_message, weights=self.example_weights() if self._shows_weights() else None)
        if blocking:
            return self._send(push, token, revision)
        job = self._api.run_as_future(self._send, push, token, revision)
        self._under_way.append((push, job))
        return job

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
            self._missing[name] = pushes[-1]
        if not self.args.hub_always_push and any(not job.done() for _, job in self._under_way):
            return
        self._collect()
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        for push in pushes:
            staged = replace(push, stage=self._staged(source, whole=push.path_in_repo != ""))
            # The token is taken now: while the next checkpoint is written, the arguments have none.
            job = self._api.run_as_future(self._send, staged, self.args.hub_token, self.args.hub_revision)
            self._under_way.append((staged, job))

    def _progress_message(self) -> str:
        by_epoch = self.args.save_strategy == SaveStrategy.EPOCH
        done = f"epoch {int(self.state.epoch or 0)}" if by_epoch else f"step {self.state.global_step}"
        return f"Training in progress, {done}"

    def _finish_current_push(self) -> None:
        """Wait for what is under way, and say what failed. `Trainer` calls this at the end of training."""
        if self.hub_model_id is not None:
            wait([job for _, job in self._under_way])
            self._collect()

    def _collect(self) -> None:
        """Note what has arrived, report what has not."""
        for push, job in [pair for pair in self._under_way if pair[1].done()]:
            self._under_way.remove((push, job))
            error, kept = job.exception(), self._missing.get(push.path_in_repo)
            if error is not None:
                self._report(push, error)
            elif kept is not None and kept.source == push.source:
                del self._missing[push.path_in_repo]

    def _report(self, push: Push, error: BaseException) -> None:
        logger.error("'%s': %s: %s\n%s", push.message, type(error).__name__, error, self._consolation())

    def _consolation(self) -> str:
        return (
            f"This did not get to {self.hub_model_id}. Nothing is lost: the files are in {self.args.output_dir}, and "
            f"`trainer.push_to_hub()` sends what is missing."
        )

    def _send_again(self, push: Push, token: str | None, revision: str | None) -> None:
        """A checkpoint that did not get there, if it still exists."""
        if push.source is None or not push.source.is_dir():
            logger.warning("%s is no longer here, so it is not sent to %s.", push.source, self.hub_model_id)
        else:
            self._send(replace(push, stage=self._staged(push.source, whole=True)), token, revision)
        del self._missing[push.path_in_repo]

    def _send(self, push: Push, token: str | None, revision: str | None) -> CommitInfo:
        """Upload a staged folder, and remove it."""
        try:
            make_portable(push.stage)
            done = self._upload(push, token, revision)
            if push.weights is not None:
                self._send_weights(push.weights, token)
        except Exception as error:
            error.add_note(self._consolation())
            raise
        finally:
            shutil.rmtree(push.stage, ignore_errors=True)
        return done

    def _send_weights(self, weights: datasets.Dataset, token: str | None) -> None:
        """A dataset of their own, as private as the student; no column of an earlier one is left."""
        name = weights_name(self.hub_model_id)
        private = bool(self._private) or bool(self._api.model_info(self.hub_model_id, token=token).private)
        self._api.create_repo(name, repo_type="dataset", private=private, exist_ok=True, token=token)
        with TemporaryDirectory(dir=self.args.output_dir) as folder:
            file = Path(folder, "data", "train-00000-of-00001.parquet")
            file.parent.mkdir()
            weights.to_parquet(file)
            Path(folder, CARD_NAME).write_text(
                f"---\ntags:\n- amal_hf\n---\n\nThe weight of every training example of {self.hub_model_id} for each "
                f"loss, by `example_id`.\n"
            )
            self._api.upload_folder(
                repo_id=name, repo_type="dataset", folder_path=folder, token=token, delete_patterns=["*"]
            )

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

    def _upload(self, push: Push, token: str | None, revision: str | None) -> CommitInfo:
        """In one commit, which is tried again where the server failed: the client tries all else again by itself."""

        def upload() -> CommitInfo:
            return self._api.upload_folder(
                repo_id=self.hub_model_id,
                folder_path=push.stage,
                path_in_repo=push.path_in_repo or None,
                commit_message=push.message,
                token=token,
                revision=revision,
                ignore_patterns=list(PICKLES),
                # Nothing that an earlier checkpoint had besides is left beside this one.
                delete_patterns=["*"] if push.path_in_repo else None,
            )

        for pause in PAUSES:
            try:
                return upload()
            except HfHubHTTPError as error:
                if error.response.status_code < 500 or "/commit/" not in str(error.response.url):
                    raise
                time.sleep(pause)
        return upload()

    # ---- what is sent ----

    def _shows_weights(self) -> bool:
        return self.mixes and self.args.hub_include_weights

    def _add_to_student(self, stage: Path) -> None:
        """The card and what it shows, and the policy if it is to be shown."""
        folder = Path(self.args.output_dir)
        for name in (CARD_NAME, FACTS_NAME):
            shutil.copy(folder / name, stage / name)
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
        self._student_files = frozenset(written - {STATE_NAME, TRAINER_STATE_NAME, *map(_name, folder.glob(SEGMENTS))})


def _name(file: Path) -> str:
    return file.name


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
