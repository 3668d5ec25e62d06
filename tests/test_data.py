"""Readers, splits and fingerprints."""

import json
from collections import Counter

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value

from amal_hf.columns import dataset_fingerprint, find_text_columns
from amal_hf.data import read_dataset
from amal_hf.splits import complete_splits, normalise_text, overlap, split_dataset


def write_wrench(folder, tokenwise=False):
    """A WRENCH folder of three splits, two classes and two rules."""
    rows = {
        "7": {"label": 1, "weak_labels": [-1, 1], "data": {"text": "buy now"}},
        "3": {"label": 0, "weak_labels": [0, -1], "data": {"text": "a song"}},
    }
    if tokenwise:
        rows = {"7": {"label": [0, 1], "weak_labels": [[-1, 1], [0, -1]], "data": {"text": ["to", "Rome"]}}}
    for name in ("train", "valid", "test"):
        (folder / f"{name}.json").write_text(json.dumps(rows))
    (folder / "label.json").write_text(json.dumps({"0": "HAM", "1": "SPAM"}))
    return folder


@pytest.mark.parametrize("column", ["text", "sentence2"])
def test_a_text_that_is_null_is_refused(tmp_path, column):
    """With its place, before a tokenizer fails on it; one that is empty is a text."""
    other = {"sentence1": "a"} if column == "sentence2" else {}
    rows = [{**other, column: text, "label": "x"} for text in ("a", "", None, "b")]
    for name, kept in (("train", rows[:2]), ("test", rows)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, kept)))
    with pytest.raises(ValueError, match=f"Split 'test' has 1 rows whose '{column}' is null, the first is row 2"):
        read_dataset(tmp_path)
    (tmp_path / "test.jsonl").unlink()
    assert read_dataset(tmp_path)["train"][column] == ["a", ""]


@pytest.mark.parametrize(
    ("name", "content"), [("A.CSV", "text,label\na,x\nb,y\n"), ("A.TSV", "text\tlabel\na\tx\nb\ty\n")]
)
def test_a_table_is_known_by_its_ending_in_capitals(tmp_path, name, content):
    """As some systems write it."""
    (tmp_path / name).write_text(content)
    assert read_dataset(tmp_path / name)["train"]["text"] == ["a", "b"]


@pytest.mark.parametrize("name", ["train.jsonl", "train.csv"])
def test_an_empty_file_is_named(tmp_path, name):
    """Where reading it would end in an error of the reader's own."""
    (tmp_path / name).touch()
    for source in (tmp_path, tmp_path / name):
        with pytest.raises(ValueError, match=f"{name} is empty"):
            read_dataset(source)


def labelled(count, classes=3, duplicates=0):
    """Numbered texts with labels in turn; the last `duplicates` rows repeat the first texts in capitals."""
    texts = [f"text {i}" for i in range(count)]
    texts[count - duplicates :] = [text.upper() for text in texts[:duplicates]]
    features = Features({"text": Value("string"), "label": ClassLabel(num_classes=classes)})
    return Dataset.from_dict({"text": texts, "label": [i % classes for i in range(count)]}, features=features)


def test_wrench_folder(tmp_path):
    """Ids, texts, named classes and votes arrive under their columns, for later code finds them by these names."""
    dataset = read_dataset(write_wrench(tmp_path))
    assert list(dataset) == ["train", "validation", "test"]
    assert dataset["train"][0] == {"id": "7", "text": "buy now", "label": 1, "weak_labels": [-1, 1]}
    assert dataset["train"].features["label"].names == ["HAM", "SPAM"]
    assert dataset["train"].features["weak_labels"] == List(Value("int16"))


def test_wrench_folder_of_labelled_tokens(tmp_path):
    """A label and a row of votes a token stay aligned with the tokens, under names that token classification uses."""
    row = read_dataset(write_wrench(tmp_path, tokenwise=True))["train"][0]
    assert row == {"id": "7", "tokens": ["to", "Rome"], "labels": [0, 1], "weak_labels": [[-1, 1], [0, -1]]}


@pytest.mark.parametrize("names", [{"0": "HAM", "2": "SPAM"}, {"HAM": 0, "SPAM": 1}])
def test_wrench_folder_with_a_gap_in_its_classes(tmp_path, names):
    """Class names must cover every number, or all classes after the gap would get a wrong name."""
    write_wrench(tmp_path)
    (tmp_path / "label.json").write_text(json.dumps(names))
    with pytest.raises(ValueError, match="0 to 1"):
        read_dataset(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.jsonl", '{"text": "NA", "intent": "play"}\n{"text": "\\"null, he said", "intent": "ask"}\n'),
        ("rows.csv", 'text,intent\nNA,play\n"""null, he said",ask\n'),
        ("rows.tsv", 'text\tintent\nNA\tplay\n"null, he said\task\n'),
    ],
)
def test_table_files_keep_awkward_texts(tmp_path, name, content):
    """Texts such as NA or with a lone quote survive in every format: pandas would drop one and stop at the other."""
    (tmp_path / name).write_text(content)
    train = read_dataset(tmp_path / name)["train"]
    assert train["text"][:] == ["NA", '"null, he said']
    assert train.features["label"].names == ["ask", "play"]
    assert train["label"][:] == [1, 0]


@pytest.mark.parametrize(("name", "between"), [("rows.csv", ","), ("rows.tsv", "\t")])
def test_a_delimiter_at_the_end_of_each_line_is_no_column(tmp_path, name, between):
    """Columns stay what the head says; where the head has no name for names of rows, these are left out."""
    lines = ["text,label", "hello,play,", "you there,ask,"]
    (tmp_path / name).write_text("\n".join(lines).replace(",", between))
    train = read_dataset(tmp_path / name)["train"]
    assert train["text"][:] == ["hello", "you there"] and train["label"][:] == [1, 0]
    (tmp_path / name).write_text("\n".join(["text,label", "1,hello,play", "2,you there,ask"]).replace(",", between))
    train = read_dataset(tmp_path / name)["train"]
    assert train["text"][:] == ["hello", "you there"] and train["label"][:] == [1, 0]


@pytest.mark.parametrize("second", ["So long, all,ask", "So long,ask"])
@pytest.mark.parametrize("first", ["Hello, you,play", "Hello, you, there,play"])
def test_a_comma_without_quotes_is_not_lost(tmp_path, first, second):
    """What stands before a text's own comma would pass for the name of a row, and be left out of every text."""
    (tmp_path / "a.csv").write_text("\n".join(["text,label", first, second]))
    with pytest.raises(ValueError, match="Quote texts"):
        read_dataset(tmp_path / "a.csv")


def test_folder_of_tables_shares_its_classes(tmp_path):
    """Classes are numbered over all splits together, or a class missing from one split would shift the others."""
    (tmp_path / "train.csv").write_text("sentence,label\na,zebra\nb,ant\n")
    (tmp_path / "dev.csv").write_text("sentence,label\nc,zebra\nd,\n")
    dataset = read_dataset(tmp_path)
    assert set(dataset) == {"train", "validation"}
    assert dataset["validation"].features["label"].names == ["ant", "zebra"]
    assert dataset["validation"]["label"][:] == [1, -1]


def test_label_file_names_the_numbers_of_a_folder(tmp_path):
    """With label.json numbers keep their meaning even where a class is absent, and an unknown one is refused."""
    (tmp_path / "label.json").write_text(json.dumps({"0": "a", "1": "b", "2": "c"}))
    (tmp_path / "train.jsonl").write_text('{"text": "x", "label": 2}\n{"text": "y", "label": -1}\n')
    train = read_dataset(tmp_path)["train"]
    assert train.features["label"].names == ["a", "b", "c"]
    assert train["label"][:] == [2, -1]
    (tmp_path / "train.jsonl").write_text('{"text": "x", "label": 3}\n')
    with pytest.raises(ValueError, match="'3'"):
        read_dataset(tmp_path)


def test_numbers_without_names_are_classes_in_their_order(tmp_path):
    """Sentiment written -1, 0, 1 has three classes; reading -1 as unlabelled would quietly lose the negative ones."""
    (tmp_path / "a.csv").write_text("text,label\nbad,-1\nso,0\ngood,1\n")
    train = read_dataset(tmp_path / "a.csv")["train"]
    assert train.features["label"].names == ["-1", "0", "1"]
    assert train["label"][:] == [0, 1, 2]


def test_fractional_labels_are_regression(tmp_path):
    """Floats stay numbers, in the precision of losses: as classes they would make one class a value."""
    (tmp_path / "a.csv").write_text("sentence1,sentence2,label\na,b,0.5\nc,d,4.25\n")
    train = read_dataset(tmp_path / "a.csv")["train"]
    assert train.features["label"] == Value("float32")
    assert find_text_columns(train.column_names) == ("sentence1", "sentence2")


def test_edited_file_is_read_anew(tmp_path):
    """A file changed between two calls gives its new rows: a cache keyed on the name would serve stale ones."""
    file = tmp_path / "a.jsonl"
    for text in ("first", "second text"):
        file.write_text(json.dumps({"text": text, "label": "x"}) + "\n")
        assert read_dataset(file)["train"]["text"][:] == [text]


def test_hub_id_goes_to_datasets(monkeypatch):
    """Anything that is no path is left to `load_dataset` with its configuration; splits and labels are normalised."""
    features = Features({"question": Value("string"), "coarse_label": ClassLabel(names=["a", "b"])})
    rows = Dataset.from_dict({"question": ["who?"], "coarse_label": [1]}, features=features)
    calls = []
    monkeypatch.setattr("amal_hf.data.load_dataset", lambda *args: calls.append(args) or DatasetDict({"dev": rows}))
    dataset = read_dataset("someone/questions", config="small")
    assert calls == [("someone/questions", "small")]
    assert dataset["validation"].features["label"].names == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "message"),
    [("phrase,label\na,b\n", "phrase.*text_columns"), ("text,tag\na,b\n", "tag.*label_column")],
)
def test_columns_not_found(tmp_path, content, message):
    """The error shows the columns there are and the parameter to name one, so that one try more is enough."""
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_dataset(tmp_path / "a.csv")
    options = {"text_columns": ["phrase"]} if "phrase" in content else {"label_column": "tag"}
    assert read_dataset(tmp_path / "a.csv", **options)["train"]["label"][:] == [0]


def test_a_file_of_another_kind_is_read_by_its_folder(tmp_path):
    """The reader of `datasets` says that a file is not there which is."""
    file = tmp_path / "rows.parquet"
    Dataset.from_dict({"text": ["a", "b"], "label": ["x", "y"]}).to_parquet(file)
    with pytest.raises(ValueError, match=r"rows\.parquet is none of .*folder"):
        read_dataset(file)
    assert read_dataset(tmp_path)["train"]["label"][:] == [0, 1]


def test_wrong_inputs_say_what_is_wrong(tmp_path):
    """A missing file, a misspelt column and several labels a text are refused by name, not deep inside a library."""
    with pytest.raises(FileNotFoundError, match=r"absent\.csv"):
        read_dataset(tmp_path / "absent.csv")
    (tmp_path / "a.jsonl").write_text('{"text": "x", "label": [0, 1]}\n')
    with pytest.raises(ValueError, match="Several labels"):
        read_dataset(tmp_path / "a.jsonl")
    with pytest.raises(ValueError, match="'txt'"):
        read_dataset(tmp_path / "a.jsonl", text_columns=["txt"])


@pytest.mark.parametrize("seed", range(5))
def test_split_keeps_texts_apart_and_classes_even(seed):
    """A text in two splits makes scores too good, and a small meta set must hold every class: both are ensured."""
    splits = split_dataset(labelled(300, duplicates=60), {"meta": 30, "validation": 0.1}, seed)
    assert list(splits) == ["train", "meta", "validation"]
    assert (len(splits["meta"]), len(splits["validation"])) == (30, 30)
    keys = {name: {normalise_text(text) for text in split["text"]} for name, split in splits.items()}
    assert not keys["train"] & keys["meta"] and not keys["train"] & keys["validation"]
    assert not keys["meta"] & keys["validation"]
    # Stratified in every run of rows, so that a part of a split is fair too.
    assert all(3 <= count <= 5 for count in Counter(splits["meta"]["label"][:12]).values())
    assert all(9 <= count <= 11 for count in Counter(splits["meta"]["label"]).values())
    # Vacuity: the drawn texts did have copies that had to leave the rest.
    assert len(splits["train"]) < 300 - 60


def test_split_follows_its_seed():
    """The same seed draws the same rows and another seed others; otherwise no result could be repeated."""
    first, again, other = (split_dataset(labelled(60), {"meta": 9}, seed)["meta"]["text"][:] for seed in (1, 1, 2))
    assert first == again
    assert first != other
    # Files are often sorted, so rows come from all of it and not from its beginning.
    assert {f"text {i}" for i in range(30, 60)} & set(first)


def test_split_with_train_leaves_the_rest_out():
    """A size for train is obeyed, which is how a small training set is drawn."""
    splits = split_dataset(labelled(60), {"test": 12, "train": 24}, seed=0)
    assert {name: len(split) for name, split in splits.items()} == {"train": 24, "test": 12}
    assert list(splits)[0] == "train"


@pytest.mark.parametrize("sizes", [{"meta": 61}, {"meta": 0}, {"meta": 1.5}, {"meta": -0.1}])
def test_split_refuses_impossible_sizes(sizes):
    """A split that cannot be filled is an error, not a shorter split."""
    with pytest.raises(ValueError, match="meta"):
        split_dataset(labelled(60), sizes, seed=0)


@pytest.mark.parametrize("count", [15, 35, 1015])
def test_shares_of_a_whole_add_up_to_it(count):
    """Each rounded by itself would ask for one row more than there are."""
    splits = split_dataset(labelled(count), {"train": 0.8, "validation": 0.1, "test": 0.1}, seed=0)
    assert sum(map(len, splits.values())) == count
    assert len(split_dataset(labelled(60), {"meta": np.int64(3)}, seed=0)["meta"]) == 3


def test_overlap_ignores_case_and_spaces():
    """Rows count as the same text when only case or white space differs, which is how copies usually differ."""
    a = Dataset.from_dict({"text": ["One  two", "three", "four"]})
    b = Dataset.from_dict({"text": ["one two\n", "FOUR"]})
    assert overlap(a, b, ["text"]) == [0, 2]


def test_fingerprint_is_of_the_content(tmp_path):
    """The same rows have the same name from memory or disk; another row, order, column or split has another."""
    rows = labelled(20)
    name = dataset_fingerprint(rows, ["text", "label"])
    rows.save_to_disk(tmp_path / "saved")
    assert dataset_fingerprint(Dataset.load_from_disk(tmp_path / "saved"), ["text", "label"]) == name
    others = (
        rows.select(range(19)),
        rows.select(range(19, -1, -1)),
        rows.map(lambda row: {"label": 2 - row["label"]}),
    )
    names = {dataset_fingerprint(other, ["text", "label"]) for other in others}
    names |= {dataset_fingerprint(rows, ["text"]), dataset_fingerprint(DatasetDict(test=rows), ["text", "label"])}
    assert len(names | {name}) == 6


# ---- missing labels ----


@pytest.mark.parametrize(
    ("train", "test", "names", "codes"),
    [
        (["0", "1"], ["1", ""], ["0", "1"], [1, -1]),
        (["True", "False"], ["True", ""], ["False", "True"], [1, -1]),
        (["1.0", "2.0", "x"], ["x", ""], ["1.0", "2.0", "x"], [2, -1]),
        (["x", "y"], None, ["x", "y"], [-1, -1]),
    ],
    ids=["numbers", "truths", "versions", "no column"],
)
def test_missing_labels_in_one_split(tmp_path, train, test, names, codes):
    """A blank makes a column text in one file and not in another; a test set may have no column of labels at all."""

    def write(name, labels):
        head = "text,label" if labels else "text"
        lines = [f"a {n},{label}" for n, label in enumerate(labels)] if labels else ["a 0", "a 1"]
        (tmp_path / f"{name}.csv").write_text("\n".join([head, *lines]) + "\n")

    write("train", train)
    write("test", test)
    data = read_dataset(tmp_path)
    assert data["test"]["label"][:] == codes
    assert data["train"].features["label"].names == names


def test_classes_with_gaps(monkeypatch):
    """Rows of a set that names its classes may have none, and splits no column, of sentences or of words."""
    classes, words = ClassLabel(names=["a", "b"]), ["x", "y", "z"]
    sentences = DatasetDict(
        train=Dataset.from_dict(
            {"text": words, "label": [0, None, 1]}, features=Features({"text": Value("string"), "label": classes})
        ),
        test=Dataset.from_dict({"text": words}),
    )
    tags = Features({"tokens": List(Value("string")), "ner_tags": List(classes)})
    tokens = DatasetDict(
        train=Dataset.from_dict({"tokens": [words, words[:1]], "ner_tags": [[0, 1, 1], None]}, features=tags),
        test=Dataset.from_dict({"tokens": [words]}),
    )
    for given, column, train, test in (
        (sentences, "label", [0, -1, 1], [-1] * 3),
        (tokens, "labels", [[0, 1, 1], [-1]], [[-1] * 3]),
    ):
        monkeypatch.setattr("amal_hf.data.load_dataset", lambda *_, found=given: found)
        data = read_dataset("someone/something")
        assert (data["train"][column][:], data["test"][column][:]) == (train, test)
        assert data["test"].features[column] == data["train"].features[column]


@pytest.mark.parametrize("column", ["label", "tag"])
def test_a_training_set_without_labels(tmp_path, column):
    """Rules vote on it; its file may have no column of labels, beside others that do."""
    (tmp_path / "train.csv").write_text("text\na\nb\n")
    for name in ("validation", "test"):
        (tmp_path / f"{name}.csv").write_text(f"text,{column}\na,yes\nb,no\n")
    data = read_dataset(tmp_path, label_column=None if column == "label" else column)
    assert data["train"]["label"][:] == [-1, -1] and data["validation"]["label"][:] == [1, 0]
    assert {tuple(split.features["label"].names) for split in data.values()} == {("no", "yes")}


def test_words_of_a_training_set_without_labels(tmp_path):
    """The same of tokens."""
    lines = {"train": [{"tokens": ["z", "z"]}], "test": [{"tokens": ["x", "y"], "labels": ["A", "B"]}]}
    for name, rows in lines.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    assert read_dataset(tmp_path)["train"]["labels"][:] == [[-1, -1]]


def test_words_of_a_test_set_without_labels(tmp_path):
    """Its file holds tokens alone; each has -1."""
    lines = {"train": [{"tokens": ["x", "y"], "labels": ["A", "B"]}], "test": [{"tokens": ["z"]}]}
    for name, rows in lines.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    assert read_dataset(tmp_path)["test"]["labels"][:] == [[-1]]


def test_the_column_that_was_asked_for_is_the_label(tmp_path):
    """Another one of that name is left out."""
    (tmp_path / "train.csv").write_text("text,label,intent\na,9,buy\nb,9,sell\n")
    data = read_dataset(tmp_path, label_column="intent")["train"]
    assert data.features["label"].names == ["buy", "sell"] and data.column_names == ["text", "label"]


def test_a_split_that_lacks_the_column_has_no_other_labels(tmp_path):
    """Those of a column that was not asked for would be classes beside those that were."""
    (tmp_path / "train.csv").write_text("text,label,intent\na,9,buy\nb,9,sell\n")
    (tmp_path / "test.csv").write_text("text,label\na,9\nb,9\n")
    data = read_dataset(tmp_path, label_column="intent")
    assert data["train"].features["label"].names == ["buy", "sell"] and data["test"]["label"][:] == [-1, -1]


def test_missing_numbers_are_refused(tmp_path):
    """No code could stand for one."""
    (tmp_path / "train.csv").write_text("text,label\na,0.5\nb,\n")
    with pytest.raises(ValueError, match="holds numbers, and 1 rows have none"):
        read_dataset(tmp_path)


def test_texts_may_be_numbers_or_missing():
    """A file may have read them so."""
    assert [normalise_text(text) for text in (12, None, ["A", "b"])] == ["12", "", "a b"]


def test_words_without_a_class_have_none(monkeypatch):
    """Among words that have one."""
    features = Features({"tokens": List(Value("string")), "labels": List(ClassLabel(names=["a", "b"]))})
    given = DatasetDict(train=Dataset.from_dict({"tokens": [["x", "y"]], "labels": [[1, None]]}, features=features))
    monkeypatch.setattr("amal_hf.data.load_dataset", lambda *_: given)
    assert read_dataset("someone/something")["train"]["labels"][:] == [[1, -1]]


def test_a_blank_far_down_a_long_table(tmp_path):
    """Tables are read in pieces by default, each with the types of the first: 10,000 numbers, and then a blank."""
    (tmp_path / "a.csv").write_text("text,label\n" + "".join(f"t{i},{i % 3}\n" for i in range(10_500)) + "last,\n")
    train = read_dataset(tmp_path / "a.csv")["train"]
    assert train.features["label"].names == ["0", "1", "2"]
    assert train["label"][-2:] == [10_499 % 3, -1]


def test_a_blank_does_not_change_the_order_of_numbers(tmp_path):
    """It makes text of the column, and as text 10 comes before 2."""
    (tmp_path / "a.csv").write_text("text,label\n" + "".join(f"t{i},{i}\n" for i in range(-1, 12)) + "last,\n")
    train = read_dataset(tmp_path / "a.csv")["train"]
    assert train.features["label"].names == [str(number) for number in range(-1, 12)]
    assert train["label"][:] == [*range(13), -1]


def test_label_file_names_numbers_beside_a_blank(tmp_path):
    """And a class that is called by another's number is that class."""
    (tmp_path / "train.csv").write_text("text,label\na,0\nb,\nc,1\n")
    for names, codes in ((["neg", "pos"], [0, -1, 1]), (["1", "0"], [1, -1, 0])):
        (tmp_path / "label.json").write_text(json.dumps(dict(enumerate(names))))
        train = read_dataset(tmp_path)["train"]
        assert train["label"][:] == codes and train.features["label"].names == names


@pytest.mark.parametrize(
    "content",
    [
        '[{"text": "a", "label": 1}, {"text": "b", "label": 0}]',
        '{"text": "a", "label": 1}\n{"text": "b", "label": 0}\n',
    ],
    ids=["list", "lines"],
)
def test_label_file_beside_a_table(tmp_path, content):
    """A `train.json` that is no object of rows is no WRENCH folder's."""
    (tmp_path / "label.json").write_text(json.dumps({"0": "neg", "1": "pos"}))
    (tmp_path / "train.json").write_text(content)
    train = read_dataset(tmp_path)["train"]
    assert train["label"][:] == [1, 0] and train.features["label"].names == ["neg", "pos"]


def test_wrench_rows_may_lack_a_label_or_votes(tmp_path):
    """No label is -1, and rows labelled by hand have no column of votes, as `weak_splits` takes them."""
    (tmp_path / "label.json").write_text(json.dumps({"0": "neg", "1": "pos"}))
    rows = {"train": {"label": None, "weak_labels": [0, -1]}, "labeled": {"label": 1}}
    for name, row in rows.items():
        (tmp_path / f"{name}.json").write_text(json.dumps({"0": {**row, "data": {"text": name}}}))
    data = read_dataset(tmp_path)
    assert data["train"]["label"][:] == [-1] and data["train"]["weak_labels"][:] == [[0, -1]]
    assert data["labeled"]["label"][:] == [1] and "weak_labels" not in data["labeled"].column_names


@pytest.mark.parametrize("name", ["csv", "jsonl"])
def test_whole_numbers_of_one_split_are_numbers_beside_fractions(tmp_path, name):
    """As classes 0.5 and 1 would be two of as many as there are values."""
    lines = {"train": [0.5, 2.0], "dev": [1, 2]}
    for split, labels in lines.items():
        rows = [f"{split} {n},{label}" for n, label in enumerate(labels)]
        text = "\n".join(["text,label", *rows]) + "\n"
        if name == "jsonl":
            text = "".join(json.dumps({"text": f"{split} {n}", "label": x}) + "\n" for n, x in enumerate(labels))
        (tmp_path / f"{split}.{name}").write_text(text)
    data = read_dataset(tmp_path)
    assert data["train"].features["label"] == data["validation"].features["label"] == Value("float32")
    assert data["validation"]["label"][:] == [1.0, 2.0]


@pytest.mark.parametrize("word", ["NA", "nan", "null"])
def test_a_word_for_a_missing_number_is_none(tmp_path, word):
    """It would make classes of all the others."""
    (tmp_path / "train.csv").write_text(f"text,label\na,0.5\nb,{word}\n")
    with pytest.raises(ValueError, match="holds numbers, and 1 rows have none"):
        read_dataset(tmp_path)
    (tmp_path / "train.csv").write_text(f"text,label\na,yes\nb,{word}\n")
    assert set(read_dataset(tmp_path)["train"].features["label"].names) == {"yes", word}


def test_texts_of_another_column_are_split_too():
    """A text goes by the name that it is called by."""
    rows = Dataset.from_dict({"headline": [f"text {number}" for number in range(9)]})
    with pytest.raises(ValueError, match="text_columns"):
        split_dataset(rows, {"meta": 2}, seed=0)
    assert len(split_dataset(rows, {"meta": 2}, seed=0, text_columns=["headline"])["meta"]) == 2


def test_what_cannot_be_completed_is_refused():
    """Without a training set, or with a label for every word."""
    words = Dataset.from_dict({"tokens": [["a"]], "labels": [[0]]})
    for data in (DatasetDict(test=words), DatasetDict(train=words)):
        with pytest.raises(ValueError, match="takes a split 'train' with one label a row"):
            complete_splits(data, 1, seed=0)


def test_numbers_are_not_completed(tmp_path):
    """Those below nothing would be taken for rows without a label, and a recipe would have no names of classes."""
    (tmp_path / "a.csv").write_text("text,label\n" + "".join(f"t{i},{i - 5.5}\n" for i in range(12)))
    with pytest.raises(ValueError, match="takes labels that are classes.*float32"):
        complete_splits(read_dataset(tmp_path / "a.csv"), 2, seed=0)


def test_a_blank_far_down_a_wide_table(tmp_path):
    """pandas itself reads in pieces of a number of cells, and the wider a table the sooner comes the second."""
    wide = ",".join(["0"] * 40)
    rows = "".join(f"t{i},{wide},{i % 3}\n" for i in range(17_000))
    head = ",".join(["text", *(f"n{i}" for i in range(40)), "label"])
    (tmp_path / "a.csv").write_text(f"{head}\n{rows}last,{wide},\n")
    train = read_dataset(tmp_path / "a.csv")["train"]
    assert train.features["label"].names == ["0", "1", "2"] and train["label"][-1] == -1
    assert train.features["text"] == Value("string")


def test_numbers_that_are_written_alike_have_one_order(tmp_path):
    """Sets have another order in each run of Python: what is the same number is sorted by its letters."""
    (tmp_path / "a.csv").write_text("text,label\na,1\nb,01\nc,+1\nd,\ne,2\n", encoding="utf-8")
    (tmp_path / "train.tsv").write_text("text\tlabel\na\t--1\nb\t2\n", encoding="utf-8")
    assert read_dataset(tmp_path / "a.csv")["train"].features["label"].names == ["+1", "01", "1", "2"]
    assert read_dataset(tmp_path)["train"].features["label"].names == ["--1", "2"]


def test_names_of_classes_that_look_like_numbers(tmp_path):
    """What `label.json` names is a class, whatever else it might be: "none" is no missing number."""
    (tmp_path / "label.json").write_text(json.dumps(dict(enumerate(["1.5", "2.5", "none"]))))
    (tmp_path / "train.csv").write_text("text,label\na,1.5\nb,none\nc,2.5\n")
    train = read_dataset(tmp_path)["train"]
    assert train["label"][:] == [0, 2, 1]


@pytest.mark.parametrize("label", [{}, {"label": None}, {"label": -1}], ids=["absent", "null", "minus one"])
def test_wrench_tokens_of_a_split_without_labels(tmp_path, label):
    """Texts that are lists have labels of tokens, of which the rows that only rules have seen have none."""
    (tmp_path / "label.json").write_text(json.dumps({"0": "O", "1": "B"}))
    row = {**label, "data": {"text": ["a", "b"]}, "weak_labels": [[-1], [1]]}
    (tmp_path / "train.json").write_text(json.dumps({"0": row}))
    train = read_dataset(tmp_path)["train"]
    assert train["tokens"][:] == [["a", "b"]] and train["labels"][:] == [[-1, -1]]
