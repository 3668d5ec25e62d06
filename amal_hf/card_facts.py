"""What a model card says, as plain data: nothing here knows a trainer, a template or a server."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Contender:
    """A row of a comparison: one model, or the mean over several seeds. What was not measured stays `None`.

    Attributes:
        name: of the row.
        value: of the comparison's metric.
        interval: its lower and upper end.
        seeds: runs that the value is the mean of.
        parameters: of the model.
        megabytes: of its weights on disk.
        ms_batch_1: milliseconds a sentence, one at a time: median and 95th percentile.
        ms_batch_32: the same, 32 at a time.
        train_seconds: of training.
    """

    name: str
    value: float
    interval: tuple[float, float] | None = None
    seeds: int = 1
    parameters: int | None = None
    megabytes: float | None = None
    ms_batch_1: tuple[float, float] | None = None
    ms_batch_32: tuple[float, float] | None = None
    train_seconds: float | None = None


@dataclass(frozen=True)
class Comparison:
    """The student beside its teacher and its controls, scored on the same rows.

    Attributes:
        rows: in the order of the table.
        student: name of the row that the card is of.
        metric: id of the metric on the Hub, as "accuracy".
        dataset: what the rows were scored on, in words.
        split: which part of it.
        interval: what the intervals are.
        hardware: on which time was taken.

    Raises:
        ValueError: no row, or not exactly one, has the student's name.
    """

    rows: tuple[Contender, ...]
    student: str
    metric: str = "accuracy"
    dataset: str = ""
    split: str = "test"
    interval: str = "95 % bootstrap interval over the test rows"
    hardware: str = ""

    def __post_init__(self) -> None:
        names = [row.name for row in self.rows]
        if names.count(self.student) != 1:
            raise ValueError(
                f"Comparison: student='{self.student}' must be the name of one row; the rows are {names}."
            )


@dataclass(frozen=True)
class CardDetails:
    """What a card can only be told. Whatever is left out does not appear.

    The first nine are the options of `Trainer.create_model_card`, under their names there.

    Attributes:
        model_name: title; the repository's name by default.
        language: ISO 639 codes of the text.
        license: of the student, as SPDX id. It has to honour those of teacher and data.
        tags: more tags.
        finetuned_from: Hub id of the checkpoint the student started from; taken from its configuration by default. A
            path is left out, here and under `teachers`.
        tasks: the pipeline tag, where the student's class does not tell.
        dataset_tags: Hub ids of the training data.
        dataset: the training data in words.
        dataset_args: its configuration.
        teachers: Hub ids or names; those of the distillation losses by default.
        teacher_license: of the teacher.
        data_license: of the training data.
        limits: further sentences on what the student is not for.
        example: an input for the snippet.
        command: what to type to train it again.
        comparison: the table.
        shown_examples: how many examples of lowest and of highest weight to show. They are training data: 0 by
            default.
        co2_grams: emitted in training.
        co2_source: how that was measured.
    """

    model_name: str = ""
    language: tuple[str, ...] = ()
    license: str = ""
    tags: tuple[str, ...] = ()
    finetuned_from: str = ""
    tasks: str = ""
    dataset_tags: tuple[str, ...] = ()
    dataset: str = ""
    dataset_args: str = ""
    teachers: tuple[str, ...] = ()
    teacher_license: str = ""
    data_license: str = ""
    limits: tuple[str, ...] = ()
    example: str = ""
    command: str = ""
    comparison: Comparison | None = None
    shown_examples: int = 0
    co2_grams: float | None = None
    co2_source: str = ""


@dataclass(frozen=True)
class RunFacts:
    """All that a card is rendered from. `asdict` of it is JSON.

    Attributes:
        repo_id: where the student is, or the name of its folder.
        details: what the card was told.
        architecture: class of the student.
        task: pipeline tag; empty if unknown.
        library: `library_name` on the Hub.
        base_model: Hub id of the checkpoint it started from; empty if unknown.
        teachers: names of the teachers, as far as they may be published.
        distilled: whether there were any.
        parameters: of the student.
        labels: its classes; empty for students that write text.
        losses: name and description of each.
        method: what is known of how weights were learned, by name.
        learned: whether weights were.
        shared: whether these are the same for all examples.
        weighed: whether weights were others than those of a fixed mixture.
        changes: what changed the examples themselves; empty for nothing.
        changes_learned: whether it learned how in this run.
        rows: of every set.
        hyperparameters: by name.
        steps: optimizer steps.
        best_step: of which the student is, where it is the best of several and not the last; 0 for the last.
        evaluation: the last evaluation's scores.
        evaluation_sets: names of the sets, if there are several; scores begin with them.
        weights: of each column of losses its mean, 5th and 95th percentile.
        lowest, highest: training examples, if they are to be shown.
        figures: files, relative to the card.
        citations: BibTeX.
        versions: of the libraries.
        hardware: on which it was trained.
        weights_dataset: repository of the weights of every example, if they are published.
        loads_with: class of `transformers` that loads the student.
        configured: what a pipeline must be told of its classes, as the files of adapters do not say it.
        vocabulary: how many words it has, if the model below its adapters has another number of them; 0 otherwise.
    """

    repo_id: str
    details: CardDetails
    architecture: str
    task: str = ""
    library: str = "transformers"
    base_model: str = ""
    teachers: list[str] = field(default_factory=list)
    distilled: bool = False
    parameters: int = 0
    labels: list[str] = field(default_factory=list)
    losses: list[dict[str, str]] = field(default_factory=list)
    method: dict[str, Any] = field(default_factory=dict)
    learned: bool = False
    shared: bool = False
    weighed: bool = False
    changes: str = ""
    changes_learned: bool = False
    rows: dict[str, int] = field(default_factory=dict)
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    steps: int = 0
    best_step: int = 0
    evaluation: dict[str, float] = field(default_factory=dict)
    evaluation_sets: list[str] = field(default_factory=list)
    weights: list[dict[str, Any]] = field(default_factory=list)
    lowest: list[dict[str, Any]] = field(default_factory=list)
    highest: list[dict[str, Any]] = field(default_factory=list)
    figures: list[str] = field(default_factory=list)
    citations: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    hardware: str = ""
    weights_dataset: str = ""
    loads_with: str = "AutoModel"
    configured: dict[str, Any] = field(default_factory=dict)
    vocabulary: int = 0

    def plain(self) -> dict[str, Any]:
        """As dictionaries, lists, strings and numbers: what is written beside the card, and rendered.

        Raises:
            ValueError, TypeError: a number that is not finite, or something that is not plain data.
        """
        return json.loads(json.dumps(asdict(self), allow_nan=False))
