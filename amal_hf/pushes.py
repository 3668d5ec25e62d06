"""Uploads to a repository of the Hub: those under way in the background, and those that did not get there."""

import shutil
import time
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import datasets
from huggingface_hub import CommitInfo, HfApi
from huggingface_hub.errors import HfHubHTTPError

from amal_hf.loggers import logger_of
from amal_hf.portable import make_portable
from amal_hf.run_facts import weights_name


logger = logger_of(__name__)

PICKLES = ["*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt", "*.joblib", "*.distcp", "*.metadata"]
"""Never sent, wherever they come from."""

ADAPTER_CONFIG = "adapter_config.json"
"""What says that a student is adapters to another model."""

STUDENT = [
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*-of-*.safetensors",
    "adapter_model.safetensors",
    ADAPTER_CONFIG,
]
"""Weights, whole, in parts or as adapters: of an earlier student's, one kind would be read in place of another."""

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


def _replaced(push: Push) -> list[str] | None:
    """What of an earlier push is not left beside this one; `upload_folder` keeps what is sent."""
    if push.path_in_repo:  # a checkpoint, in a folder of its own
        return ["*"]
    # Adapters are read before others, and may be to the weights that are there.
    return None if (push.stage / ADAPTER_CONFIG).exists() else STUDENT


class Pushes:
    """What is sent to one repository.

    Args:
        repository: its id.
        private: whether repositories are private that have to be created; `None` leaves it to the Hub.
        folder: the run's, which holds all files whatever becomes of a push.

    Attributes:
        missing: pushes that are still to arrive, by their path in the repository.
    """

    def __init__(self, repository: str, private: bool | None, folder: str) -> None:
        self.repository = repository
        self.private = private
        self.folder = folder
        self.api = HfApi(library_name="amal_hf")
        self.missing: dict[str, Push] = {}
        self._under_way: list[tuple[Push, Future[CommitInfo]]] = []

    @property
    def busy(self) -> bool:
        """Whether any is under way."""
        return any(not job.done() for _, job in self._under_way)

    def begin(self, push: Push, token: str | None, revision: str | None) -> Future[CommitInfo]:
        """Send it in the background, after those that are under way."""
        job: Future[CommitInfo] = self.api.run_as_future(self.send, push, token, revision)
        self._under_way.append((push, job))
        return job

    def finish(self) -> None:
        """Wait for what is under way, and say what failed."""
        wait([job for _, job in self._under_way])
        self.collect()

    def collect(self) -> None:
        """Note what has arrived, report what has not."""
        for push, job in [pair for pair in self._under_way if pair[1].done()]:
            self._under_way.remove((push, job))
            error, kept = job.exception(), self.missing.get(push.path_in_repo)
            if error is not None:
                logger.error("'%s': %s: %s\n%s", push.message, type(error).__name__, error, self._consolation())
            elif kept is not None and kept.source == push.source:
                del self.missing[push.path_in_repo]

    def _consolation(self) -> str:
        return (
            f"This did not get to {self.repository}. Nothing is lost: the files are in {self.folder}, and "
            f"`trainer.push_to_hub()` sends what is missing."
        )

    def send(self, push: Push, token: str | None, revision: str | None) -> CommitInfo:
        """Upload a staged folder, and remove it.

        Raises:
            HfHubHTTPError: the Hub refused; a note says where the files are.
        """
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

    def _upload(self, push: Push, token: str | None, revision: str | None) -> CommitInfo:
        """In one commit, which is tried again where the server failed: the client tries all else again by itself."""

        def upload() -> CommitInfo:
            return self.api.upload_folder(
                repo_id=self.repository,
                folder_path=push.stage,
                path_in_repo=push.path_in_repo or None,
                commit_message=push.message,
                token=token,
                revision=revision,
                ignore_patterns=list(PICKLES),
                delete_patterns=_replaced(push),
            )

        for pause in PAUSES:
            try:
                return upload()
            except HfHubHTTPError as error:
                if error.response.status_code < 500 or "/commit/" not in str(error.response.url):
                    raise
                time.sleep(pause)
        return upload()

    def _send_weights(self, weights: datasets.Dataset, token: str | None) -> None:
        """A dataset of their own, as private as the student; no column of an earlier one is left."""
        name = weights_name(self.repository)
        private = bool(self.private) or bool(self.api.model_info(self.repository, token=token).private)
        self.api.create_repo(name, repo_type="dataset", private=private, exist_ok=True, token=token)
        with TemporaryDirectory(dir=self.folder) as folder:
            file = Path(folder, "data", "train-00000-of-00001.parquet")
            file.parent.mkdir()
            weights.to_parquet(file)
            Path(folder, "README.md").write_text(
                f"---\ntags:\n- amal_hf\n---\n\nThe weight of every training example of {self.repository} for each "
                f"loss, by `example_id`.\n"
            )
            self.api.upload_folder(
                repo_id=name, repo_type="dataset", folder_path=folder, token=token, delete_patterns=["*"]
            )
