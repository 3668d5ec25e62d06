"""Commentaries as artefacts: what was learned about a dataset, stored beside it and reused for new students.

    commentary = Commentary.learned_by(trainer, encoder="sentence-transformers/all-MiniLM-L6-v2")
    commentary.push_to_hub("me/my-dataset")                       # into the dataset's own repository
    method = Commentary.from_pretrained("me/my-dataset").method_for(student, train, embeddings)
    AMALTrainer(student, args, train_dataset=train, method=method)    # learns nothing any more, needs no meta set

References:
    Teaching with Commentaries, arXiv:2011.03037.
"""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from huggingface_hub import HfApi, hf_hub_download
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from amal_hf.batch_policies.batch_policy import BatchPolicy
from amal_hf.batch_policies.label_blend import LabelBlend
from amal_hf.batch_policies.token_mask import AttentionMask, TokenMask
from amal_hf.columns import dataset_fingerprint, find_text_columns
from amal_hf.loggers import logger_of
from amal_hf.method import Method
from amal_hf.model_labels import label_names
from amal_hf.policies.commentary_network import CommentaryNetwork
from amal_hf.policies.fixed_weights import FixedWeights
from amal_hf.policies.frozen import Frozen, fill, tensors_of


logger = logger_of(__name__)

SCHEMA_NAME, TENSORS_NAME = "commentary.json", "commentary.safetensors"
"""The two files of a commentary."""

MASKS: dict[str, type[TokenMask]] = {kind.__name__: kind for kind in (TokenMask, AttentionMask)}

FORMAT = 1
"""Raised when a file written now could not be read as before."""


@dataclass(frozen=True)
class Schema:
    """What one must know to reuse a commentary.

    Attributes:
        kind: the class that learned.
        arguments: what it was made with, beside data.
        labels: names of the classes, in their order.
        losses: names of the losses that it was learned with.
        columns: which columns of the training set `dataset` stands for.
        dataset: `dataset_fingerprint` of the training rows.
        horizon: optimizer steps of the run (or of one short run) that it was learned over; for people. Progress is
            a share, so a commentary can be reused over any number.
        encoder: where the embeddings or token vectors came from; for people, nothing is loaded from there.
        format: of these files.
    """

    kind: str
    arguments: dict[str, Any]
    labels: list[str]
    losses: list[str]
    columns: list[str]
    dataset: str
    horizon: int
    encoder: str
    format: int = FORMAT


class Commentary:
    """Learned weights over training time, blends of label pairs, or masks of tokens; with their schema.

    Args:
        schema: see there.
        tensors: what was learned, by name.
    """

    def __init__(self, schema: Schema, tensors: Mapping[str, Tensor]) -> None:
        self.schema = schema
        self.tensors = dict(tensors)

    @classmethod
    def learned_by(cls, trainer: Any, encoder: str = "") -> "Commentary":
        """What an `AMALTrainer` has learned with `commentaries(...)`.

        Args:
            trainer: after `train()`.
            encoder: where its embeddings or token vectors came from.

        Raises:
            ValueError: its method is none of the three kinds.
        """
        policy = trainer.method.batch_policy or trainer.method.policy
        if not isinstance(policy, CommentaryNetwork | LabelBlend | TokenMask):
            raise ValueError(
                f"Commentary: method '{trainer.method.name}' learns with {type(policy).__name__}; a commentary comes "
                f"from CommentaryNetwork, LabelBlend or TokenMask. Use save_policy for other policies."
            )
        columns = _content_columns(trainer.train_dataset)
        schema = Schema(
            kind=type(policy).__name__,
            arguments=policy.arguments(),
            labels=label_names(trainer.model.config),
            losses=list(trainer.mixture.names),
            columns=columns,
            dataset=dataset_fingerprint(trainer.train_dataset, columns) if columns else "",
            horizon=trainer.method.restart_every or trainer.state.max_steps,
            encoder=encoder,
        )
        return cls(schema, {name: value.detach().cpu() for name, value in tensors_of(policy).items()})

    # ---- files ----

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `commentary.json` and `commentary.safetensors`."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        save_file({name: value.contiguous() for name, value in self.tensors.items()}, Path(folder) / TENSORS_NAME)
        (Path(folder) / SCHEMA_NAME).write_text(json.dumps(asdict(self.schema), indent=1) + "\n")

    def push_to_hub(
        self,
        repo_id: str,
        *,
        repo_type: str = "dataset",
        path_in_repo: str = "commentary",
        private: bool | None = None,
        token: str | None = None,
    ) -> str:
        """Upload the two files, by default into the repository of the dataset itself; gives the address."""
        api = HfApi(token=token)
        api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            commit = api.upload_folder(
                repo_id=repo_id,
                repo_type=repo_type,
                folder_path=folder,
                path_in_repo=path_in_repo,
                commit_message=f"{self.schema.kind} learned with amal_hf",
            )
        return str(commit.commit_url)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        repo_type: str = "dataset",
        path_in_repo: str = "commentary",
        revision: str | None = None,
        token: str | None = None,
    ) -> "Commentary":
        """Read a commentary from a folder or the Hub.

        Raises:
            FileNotFoundError: the folder holds none.
            ValueError: the files are damaged, or of a later format.
        """
        if Path(source).is_dir():
            files = [Path(source) / name for name in (SCHEMA_NAME, TENSORS_NAME)]
            missing = [file.name for file in files if not file.is_file()]
            if missing:
                raise FileNotFoundError(f"Commentary: {source} has no {' and no '.join(missing)}. Save one there.")
        else:
            files = [
                Path(
                    hf_hub_download(
                        str(source),
                        f"{path_in_repo}/{name}".lstrip("/"),
                        repo_type=repo_type,
                        revision=revision,
                        token=token,
                    )
                )
                for name in (SCHEMA_NAME, TENSORS_NAME)
            ]
        return cls(_read_schema(files[0]), _read_tensors(files[1]))

    # ---- reuse ----

    def method_for(self, student: Any, train_dataset: Any, data: Tensor | None = None) -> Method:
        """The commentary as a method for a new student, of any architecture and length of training.

        Args:
            student: a classifier of the same labels.
            train_dataset: what it will be trained on; a warning tells if its content is not what was commented on.
            data: for weights, the embeddings `(N, d)` of these rows (`embed_texts`); for masks, the table of token
                vectors `(V, d)`, both from the same encoder as before; for blends, nothing.

        Raises:
            ValueError: another label map, or data that is missing or not needed.
        """
        schema = self.schema
        names = label_names(student.config)
        if names != schema.labels:
            raise ValueError(
                f"Commentary: learned for the labels {schema.labels}, and the student has {names}. Order counts: set "
                f"id2label and label2id of the student, or learn a commentary for these labels."
            )
        self._warn_of_other_rows(train_dataset)
        if (data is None) == (schema.kind != LabelBlend.__name__):
            wanted = "no data" if schema.kind == LabelBlend.__name__ else f"data from the encoder '{schema.encoder}'"
            raise ValueError(f"Commentary: {schema.kind} needs {wanted}; got {_shape(data)}.")
        if schema.kind == CommentaryNetwork.__name__ and data is not None:
            return Method(
                "commentary", Frozen(CommentaryNetwork(data, **schema.arguments), self.tensors, schema.losses)
            )
        policy: BatchPolicy = (
            LabelBlend(**schema.arguments) if data is None else MASKS[schema.kind](data, **schema.arguments)
        )
        fill(policy, self.tensors, "Commentary: the data do not fit.", "Use data from the same encoder.")
        policy.freeze()
        return Method("commentary", FixedWeights(), batch_policy=policy)

    def _warn_of_other_rows(self, train_dataset: Any) -> None:
        columns = self.schema.columns
        if (
            not columns
            or not isinstance(train_dataset, Dataset)
            or not set(columns) <= set(train_dataset.column_names)
        ):
            return
        found = dataset_fingerprint(train_dataset, columns)
        if found != self.schema.dataset:
            logger.warning(
                "The commentary was learned on other training rows (fingerprint %s of columns %s; these have %s). "
                "What it says about them is a guess from what they resemble.",
                self.schema.dataset,
                columns,
                found,
            )


def _content_columns(dataset: Any) -> list[str]:
    """The columns that make a row what it is: texts and labels, or token ids if there is no text."""
    if not isinstance(dataset, Dataset):
        return []
    present = dataset.column_names
    try:
        texts = list(find_text_columns(present))
    except ValueError:
        texts = [name for name in ("input_ids",) if name in present]
    return texts + [name for name in ("label", "labels") if name in present]


def _read_schema(file: Path) -> Schema:
    try:
        schema = Schema(**json.loads(file.read_text()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"Commentary: {file} is not a schema of format {FORMAT}: {error}.") from error
    known = {CommentaryNetwork.__name__, LabelBlend.__name__, *MASKS}
    if schema.format != FORMAT or schema.kind not in known:
        raise ValueError(
            f"Commentary: {file} has format {schema.format} and kind {schema.kind!r}; expected format {FORMAT} and "
            f"one of {sorted(known)}. Update amal_hf."
        )
    return schema


def _read_tensors(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except SafetensorError as error:
        raise ValueError(f"Commentary: {file} is not a safetensors file: {error}.") from error


def _shape(data: Tensor | None) -> str:
    return "none" if data is None else f"a tensor of shape {tuple(data.shape)}"
