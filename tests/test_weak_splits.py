"""Splits for learning from rules: nothing stands in two of them, and labels stand only where they may be seen."""

import logging

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value, concatenate_datasets

from amal_hf.shapes import TRUE_LABEL, VOTES
from amal_hf.weak_splits import weak_splits


FEATURES = Features(
    {"text": Value("string"), "label": ClassLabel(names=["no", "yes"]), "weak_labels": List(Value("int8"))}
)


def rows(first, count):
    texts = [f"text {number}" for number in range(first, first + count)]
    votes = [[number % 2, -1] for number in range(count)]
    return Dataset.from_dict(
        {"text": texts, "label": [n % 2 for n in range(count)], "weak_labels": votes}, features=FEATURES
    )


def data(**more):
    return DatasetDict(train=rows(0, 60), validation=rows(100, 20), test=rows(200, 20), **more)


def texts(split):
    return set(split["text"][:])


@pytest.mark.parametrize("given", [False, True], ids=["drawn", "given"])
def test_no_text_stands_in_two_splits(given):
    """Rows of L are taken out of the unlabelled ones, wherever they come from; the meta set is no part of dev."""
    splits = weak_splits(data(labeled=rows(10, 8)) if given else data(), labelled=8)
    held = [splits[name] for name in ("labelled", "unlabelled", "meta", "validation", "test")]
    assert [len(split) for split in held] == [8, 52, 10, 10, 20]
    assert len(set.union(*map(texts, held))) == 100
    assert texts(splits["train"]) == texts(splits["labelled"]) | texts(splits["unlabelled"])


def test_labels_stand_only_on_labelled_rows():
    """Training rows carry -100 elsewhere; the truth stays in a column of its own."""
    splits = weak_splits(data(), labelled=8)
    labels, truth = splits["train"]["label"][:], splits["train"][TRUE_LABEL][:]
    assert labels[:8] == truth[:8] and set(labels[8:]) == {-100} and set(truth) == {0, 1}


def test_classes_keep_their_names():
    """A teacher is matched by them, and training rows can be joined to clean ones, as these are wanted last."""
    splits = weak_splits(data(), labelled=8)
    train, meta = splits["train"], splits["meta"]
    assert train.features["label"] == train.features[TRUE_LABEL] == meta.features["label"]
    joined = concatenate_datasets([train, meta])
    assert joined["label"][:] == train["label"][:] + meta["label"][:]
    again = joined.filter(lambda row: row["label"] < 0).map(lambda row: {"text": row["text"].upper()})
    assert set(again["label"][:]) == {-100} and len(again) == 52


def test_texts_of_another_column():
    """A text goes by the name that it is called by."""
    given = data().rename_column("text", "headline")
    with pytest.raises(ValueError, match="text_columns"):
        weak_splits(given, labelled=8)
    splits = weak_splits(given, labelled=8, text_columns=["headline"])
    assert len(set().union(*(split["headline"][:] for split in splits.values()))) == 100


def test_copies_of_held_out_texts_are_dropped(caplog):
    """A training row that stands in the test set, in another case, is no training row; how many is said."""
    spoilt = data()
    spoilt["train"] = spoilt["train"].map(lambda row, i: {"text": "TEXT  205"} if i < 2 else row, with_indices=True)
    with caplog.at_level(logging.INFO):
        splits = weak_splits(spoilt, labelled=8)
    assert "text 205" not in {text.lower().replace("  ", " ") for text in texts(splits["train"])}
    assert "were dropped" in caplog.text


def test_the_meta_set_may_be_the_validation_set_when_asked(caplog):
    """Only on request, never without a warning, and without what stands in the test set."""
    with caplog.at_level(logging.WARNING):
        splits = weak_splits(data(), labelled=8, meta_is_validation=True)
    assert texts(splits["meta"]) == texts(splits["validation"]) and len(splits["meta"]) == 20
    assert "biased" in caplog.text
    spoilt = DatasetDict(train=rows(0, 60), validation=rows(195, 20), test=rows(200, 20))
    splits = weak_splits(spoilt, labelled=8, meta_is_validation=True)
    assert texts(splits["meta"]) == texts(splits["validation"]) and len(splits["meta"]) == 5


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: weak_splits(DatasetDict(train=rows(0, 5))), "no split"),
        (lambda: weak_splits(data(labeled=rows(195, 8))), "3 of 8 labelled rows are in the test set"),
        (lambda: weak_splits(data(labeled=rows(0, 60))), "nothing is left"),
    ],
    ids=["missing", "overlap", "empty"],
)
def test_bad_input(build, message):
    """Said before training, with numbers."""
    with pytest.raises(ValueError, match=message):
        build()


def test_labelled_rows_of_the_test_set_are_dropped_when_asked(caplog):
    """A given L that shares three rows with the test set loses them, and how many is said aloud."""
    with caplog.at_level(logging.WARNING):
        splits = weak_splits(data(labeled=rows(195, 8)), drop_overlap=True)
    assert len(splits["labelled"]) == 5
    assert "3 of 8 labelled rows" in caplog.text


def test_labels_of_tokens():
    """Sentences of several lengths whose tokens are labelled: the truth moves, and -100 stands on every token."""
    features = Features({"tokens": List(Value("string")), "labels": List(ClassLabel(names=["O", "Dish", "Price"]))})

    def tagged(first, count):
        sizes = [1 + number % 3 for number in range(first, first + count)]
        words = [[f"word {first + row}"] * size for row, size in enumerate(sizes)]
        return Dataset.from_dict({"tokens": words, "labels": [[2] * size for size in sizes]}, features=features)

    splits = weak_splits(DatasetDict(train=tagged(0, 30), validation=tagged(40, 10), test=tagged(50, 10)), labelled=8)
    truth, labels = splits["train"][TRUE_LABEL][:], splits["train"]["labels"][:]
    assert labels[:8] == truth[:8] and set(sum(truth, [])) == {2} and set(sum(labels[8:], [])) == {-100}
    assert list(map(len, labels)) == list(map(len, splits["train"]["tokens"][:]))


def test_rows_without_labels_are_not_drawn():
    """L, the meta set and the validation set are of rows that have a label; the others are still voted on."""
    some, none = data(), data()
    for name in ("train", "validation"):
        some[name] = some[name].map(lambda row, n: {"label": row["label"] if n % 3 else -1}, with_indices=True)
    none["train"] = none["train"].map(lambda row: {"label": -1})
    splits = weak_splits(some, labelled=6)
    for name in ("labelled", "meta", "validation"):
        assert min(splits[name]["label"]) >= 0
    assert len(splits["unlabelled"]) and all(any(vote >= 0 for vote in row) for row in splits["unlabelled"][VOTES])
    with pytest.raises(ValueError, match="no row of 'train' has a label"):
        weak_splits(none, labelled=6)


def test_unlabelled_rows_need_no_column_of_labels():
    """Beside rows that were labelled by hand; -1 says that the truth is not known, as it does of missing labels."""
    plain, gaps = data(labeled=rows(300, 5)), data(labeled=rows(300, 5))
    plain["train"] = plain["train"].remove_columns("label")
    gaps["train"] = gaps["train"].map(lambda row: {"label": None}, features=gaps["train"].features)
    for given in (plain, gaps):
        train = weak_splits(given)["train"]
        assert set(train["label"][5:]) == {-100} and set(train[TRUE_LABEL][5:]) == {-1}
        assert min(train["label"][:5]) >= 0


def test_sentences_labelled_by_hand_need_no_votes():
    """Rules that vote on words have said nothing of any of theirs."""
    features = {"tokens": List(Value("string")), "labels": List(ClassLabel(names=["O", "Dish"]))}
    voted = {**features, "weak_labels": List(List(Value("int16")))}

    def tagged(first, votes):
        words = [[f"word {number}"] * (1 + number % 3) for number in range(first, first + 8)]
        table = {"tokens": words, "labels": [[1] * len(row) for row in words]}
        if votes:
            table["weak_labels"] = [[[0, -1]] * len(row) for row in words]
        return Dataset.from_dict(table, features=Features(voted if votes else features))

    given = {name: tagged(10 * n, True) for n, name in enumerate(("train", "validation", "test"))}
    train = weak_splits(DatasetDict(given, labeled=tagged(30, False)))["train"]
    assert train["weak_labels"][:2] == [[[-1, -1]], [[-1, -1]] * 2]
    assert train["weak_labels"][8] == [[0, -1]]


def test_rows_labelled_by_hand_need_no_votes():
    """No rule has looked at them, which is as if all had abstained."""
    splits = weak_splits(data(labeled=rows(300, 5).remove_columns("weak_labels")))
    assert splits["train"]["weak_labels"][:5] == [[-1, -1]] * 5


@pytest.mark.parametrize("kind", ["torch", "numpy"])
def test_the_format_of_a_dataset_does_not_matter(kind):
    """Splits whose rows come as tensors or arrays give the training set that plain ones do."""
    given = data(labeled=rows(300, 5).remove_columns("weak_labels"))
    formatted = DatasetDict({name: split.with_format(kind) for name, split in given.items()})
    assert weak_splits(formatted)["train"].with_format(None)[:] == weak_splits(given)["train"][:]
