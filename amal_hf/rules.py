"""Rules (labelling functions) and their votes.

1. A rule reads a row and votes for a class, or abstains. `@rule` makes one of any Python function; `keyword_rule` and
   `regex_rule` are ready-made.
2. `apply_rules` writes the votes of all rules into the column `weak_labels`, one number a rule, -1 for abstaining:
   the form in which WRENCH folders have them.
3. Votes made elsewhere come in by `add_votes`: a matrix (also of snorkel's `L`), or a `.npy` or `.npz` file;
   `votes_of_table` makes such a matrix of a long table of (row, rule, vote).
"""

import re
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from datasets import Dataset, Features, List, Value
from numpy.typing import NDArray

from amal_hf.columns import replace_column
from amal_hf.loggers import logger_of
from amal_hf.model_labels import class_names
from amal_hf.shapes import ABSTAIN, VOTES


logger = logger_of(__name__)

Row: TypeAlias = Mapping[str, Any]
Vote: TypeAlias = int | str | None
"""A class by number or name; `None` or -1 abstains."""

_FAILED = "_failed_rules"


@dataclass(frozen=True)
class Rule:
    """A labelling function and its name."""

    name: str
    function: Callable[[Row], Vote]

    def __call__(self, row: Row) -> Vote:
        """The vote on a row."""
        return self.function(row)


def rule(function: Callable[[Row], Vote]) -> Rule:
    """Makes a rule of a function, under the function's name.

    Example:
        >>> @rule
        ... def mentions_price(row):
        ...     return "spam" if "$" in row["text"] else None
        >>> mentions_price({"text": "only $5"})
        'spam'
    """
    return Rule(getattr(function, "__name__", "rule"), function)


def keyword_rule(words: Iterable[str], label: Vote, column: str = "text", name: str | None = None) -> Rule:
    """A rule that votes `label` where one of the words stands as a whole word, in any case.

    Raises:
        ValueError: no words, or an empty one, which would be found everywhere.
    """
    listed = [words] if isinstance(words, str) else list(words)
    if not listed or not all(listed):
        raise ValueError(f"keyword_rule: needs words, none of them empty, got {listed}.")
    pattern = r"(?<!\w)(?:" + "|".join(re.escape(word) for word in listed) + r")(?!\w)"
    return regex_rule(pattern, label, column, name or f"keyword_{listed[0]}")


def regex_rule(pattern: str, label: Vote, column: str = "text", name: str | None = None) -> Rule:
    """A rule that votes `label` where the pattern is found, in any case.

    Raises:
        ValueError: the pattern is empty, and would be found everywhere, or is not a regular expression.
    """
    if not pattern:
        raise ValueError("regex_rule: the pattern is empty and would be found in every text. Give it some text.")
    try:
        compiled = re.compile(pattern, re.IGNORECASE)
    except re.error as error:
        raise ValueError(f"regex_rule: {pattern!r} is not a regular expression: {error}.") from error
    return Rule(name or f"regex_{pattern}", lambda row: label if compiled.search(row[column]) else None)


def apply_rules(
    dataset: Dataset,
    rules: Sequence[Rule | Callable[[Row], Vote]],
    classes: Sequence[str] | None = None,
    num_proc: int | None = None,
) -> Dataset:
    """The dataset with the votes of all rules in column `weak_labels`.

    Rules run anew at every call: a cache would not see that a function they call has changed. A rule that raises an
    exception abstains on that row; how often is warned of, with the first traceback.

    Args:
        dataset: rows as the rules read them.
        rules: rules, or plain functions.
        classes: names of the classes. Default: those of the column `label`.
        num_proc: processes to share the rows among.

    Raises:
        ValueError: no rules, two of one name, no classes, or a vote that is not one of them.
    """
    named = [entry if isinstance(entry, Rule) else rule(entry) for entry in rules]
    names = [entry.name for entry in named]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"apply_rules: needs rules, each with a name of its own; got {names}.")
    known = _class_names(dataset, classes)
    if not len(dataset):
        return replace_column(dataset, VOTES, [], List(Value("int16")))
    voted = dataset.map(
        _votes_of_row,
        fn_kwargs={"rules": named, "classes": known},
        num_proc=num_proc,
        features=Features({**dataset.features, VOTES: List(Value("int16")), _FAILED: List(Value("int32"))}),
        load_from_cache_file=False,
        desc="applying rules",
    )
    _warn_of_failures(voted, named)
    votes = np.asarray(voted.with_format(None)[VOTES][:], dtype=np.int64)
    return add_votes(voted.remove_columns([VOTES, _FAILED]), votes, classes=len(known))


def add_votes(dataset: Dataset, votes: NDArray[Any] | str | Path, classes: int | None = None) -> Dataset:
    """The dataset with votes made elsewhere in column `weak_labels`.

    Args:
        dataset: n rows.
        votes: an (n, m) matrix of class numbers, -1 for abstaining, such as snorkel's `L`; or a `.npy` or `.npz` file
            of one. Files are never unpickled.
        classes: how many there are. Default: those of the column `label`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another number of rows, votes outside the classes, or a file that would have to be unpickled.
    """
    matrix = _load(Path(votes)) if isinstance(votes, (str, Path)) else np.asarray(votes)
    if matrix.ndim != 2 or len(matrix) != len(dataset):
        raise ValueError(
            f"Votes should be a matrix with one row for each of the {len(dataset)} rows of the dataset and one column "
            f"for each rule, but have the shape {matrix.shape}."
        )
    count = len(_class_names(dataset, None)) if classes is None else classes
    check_votes(matrix, count)
    if not (matrix != ABSTAIN).any():
        logger.warning("All %d rules abstain on all %d rows.", matrix.shape[1], len(matrix))
    return replace_column(dataset, VOTES, matrix.astype(np.int64).tolist(), List(Value("int16")))


def votes_of_table(rows: Iterable[tuple[Any, str, int]], ids: Sequence[Any]) -> tuple[NDArray[np.int64], list[str]]:
    """A matrix of votes from a long table, as annotation tools and crowds give them.

    Args:
        rows: (task, worker, class number), in any order; of a worker's several votes on a task the last counts.
        ids: the tasks in the order of the dataset.

    Returns:
        Votes `(n, m)` and the m workers, sorted.

    Raises:
        ValueError: a task that is not among `ids`, or stands there twice.
    """
    table = list(rows)
    places = {task: place for place, task in enumerate(ids)}
    if len(places) < len(ids):
        twice = next(task for place, task in enumerate(ids) if places[task] != place)
        raise ValueError(f"Every task should be one row of the dataset; {twice!r} is more than one.")
    workers = sorted({worker for _, worker, _ in table})
    columns = {worker: column for column, worker in enumerate(workers)}
    votes = np.full((len(ids), len(workers)), ABSTAIN, dtype=np.int64)
    for task, worker, vote in table:
        if task not in places:
            raise ValueError(f"The table has a vote of {worker!r} on task {task!r}, which is not in the dataset.")
        votes[places[task], columns[worker]] = vote
    return votes, workers


def all_votes(rows: Any, column: str) -> list[Any]:
    """The column of votes; rows of a dataset, or of another that was joined to it, may lack them.

    Raises:
        ValueError: some do.
    """
    votes: list[Any] = rows.with_format(None)[column][:] if isinstance(rows, Dataset) else rows[column][:]
    if silent := sum(vote is None for vote in votes):
        raise ValueError(
            f"Column '{column}' holds nothing for {silent} of {len(votes)} rows, as if they came from a dataset that "
            f"has no such column. Rows on which no rule has voted have a list of {ABSTAIN}, one for each rule."
        )
    return votes


def check_votes(votes: NDArray[Any], classes: int) -> None:
    """Refuse votes that are not class numbers.

    Raises:
        ValueError: says which row and rule.
    """
    if not np.issubdtype(votes.dtype, np.number) or not np.array_equal(votes, np.round(votes)):
        raise ValueError(f"Votes should be whole numbers, but are of type {votes.dtype}.")
    wrong = np.argwhere((votes < ABSTAIN) | (votes >= classes))
    if len(wrong):
        place = tuple(int(i) for i in wrong[0])
        raise ValueError(
            f"Votes should be classes from 0 to {classes - 1}, or {ABSTAIN} to abstain; row {place[0]} has "
            f"{int(votes[place])} by rule {place[-1]} ({len(wrong)} such votes)."
        )


def check_some_vote(votes: NDArray[Any]) -> None:
    """Refuse rules that never say anything.

    Raises:
        ValueError: all of them abstain everywhere.
    """
    if not (votes != ABSTAIN).any():
        raise ValueError("All rules abstain on every row: there is nothing to learn from. Look at what they read.")


def _votes_of_row(row: Row, rules: list[Rule], classes: list[str]) -> dict[str, list[int]]:
    votes, failed = [], []
    for number, entry in enumerate(rules):
        try:
            vote = entry(row)
        except Exception:
            # One odd row must not end a run over millions; it is counted, and shown.
            failed.append(number)
            vote = None
        votes.append(_number(vote, classes, entry.name))
    return {VOTES: votes, _FAILED: failed}


def _number(vote: Vote, classes: list[str], name: str) -> int:
    if vote is None:
        return ABSTAIN
    if isinstance(vote, str):
        if vote in classes:
            return classes.index(vote)
    elif not isinstance(vote, bool | np.bool_) and vote in range(ABSTAIN, len(classes)):  # nor are 0.7 and NaN
        return int(vote)
    raise ValueError(
        f"Rule '{name}' voted {vote!r}, which is not one of the classes {classes} (or their numbers). Return None to "
        f"abstain."
    )


def _warn_of_failures(voted: Dataset, rules: list[Rule]) -> None:
    failures = [(row, number) for row, failed in enumerate(voted.with_format(None)[_FAILED]) for number in failed]
    if not failures:
        return
    row, number = failures[0]
    try:
        rules[number](voted[row])
        shown = "(it did not happen again)"
    except Exception:
        shown = traceback.format_exc()
    logger.warning(
        "Rules failed on %d votes and abstain there; rules: %s. The first, '%s' on row %d:\n%s",
        len(failures),
        sorted({rules[n].name for _, n in failures}),
        rules[number].name,
        row,
        shown,
    )


def _class_names(dataset: Dataset, classes: Sequence[str] | None) -> list[str]:
    if classes is not None:
        return list(classes)
    if names := class_names(dataset):
        return names
    raise ValueError(
        f"The classes that rules vote for are not known: the dataset has no column 'label' of classes (it has "
        f"{dataset.column_names}). Pass them as `classes`."
    )


def _load(file: Path) -> NDArray[Any]:
    if not file.is_file():
        raise FileNotFoundError(f"There is no file {file} of votes.")
    if file.suffix not in (".npy", ".npz"):
        raise ValueError(
            f"Votes are read from .npy and .npz files; {file.name} is neither. A pickle could run any code when it is "
            f"opened: save the matrix with numpy.save."
        )
    try:
        loaded = np.load(file, allow_pickle=False)
        arrays = [loaded] if isinstance(loaded, np.ndarray) else [loaded[name] for name in loaded.files]
    except ValueError as error:
        raise ValueError(f"{file.name} is not a plain matrix of numbers: {error}.") from error
    if len(arrays) != 1:
        raise ValueError(f"{file.name} should hold one matrix of votes, but holds {len(arrays)}.")
    matrix: NDArray[Any] = arrays[0]
    return matrix
