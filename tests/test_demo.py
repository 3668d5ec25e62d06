"""The teacher and the corpus that need no model hub."""

import hashlib
import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path

import pytest

from amal_hf.columns import dataset_fingerprint
from amal_hf.demo import MASK, TEACHER_PACKAGE, TEACHER_SHA256, demo_teacher_path, docstring_corpus
from amal_hf.demo_rules import WORDS, docstring_rules
from amal_hf.splits import overlap


COLUMNS = ["text", "label"]
SUBJECTS = {"torch": "tensor", "numpy": "array", "pandas": "frame", "sympy": "symbol", "networkx": "graph"}
LETTERS = "abcdefghijklmnopqrst"


def write_package(folder, name, sentences):
    """A package whose only module holds the sentences, and stops anyone who imports it."""
    package = folder / name
    package.mkdir()
    paragraphs = "\n\n".join(sentences)
    (package / "module.py").write_text(f'"""{paragraphs}"""\n\nraise RuntimeError("imported")\n', encoding="utf-8")
    return package


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Replaces what is installed by packages under `tmp_path`: five toy ones, each with twenty sentences."""

    def locate(name):
        spec = ModuleSpec(name, None, is_package=True)
        spec.submodule_search_locations = [str(tmp_path / name)]
        return spec if (tmp_path / name).is_dir() else None

    monkeypatch.setattr("amal_hf.demo.find_spec", locate)
    for name, subject in SUBJECTS.items():
        sentences = [f"The {name} library makes one more {subject} called {letter}." for letter in LETTERS]
        write_package(tmp_path, name, sentences)
    return tmp_path


def small_corpus(seed=0):
    """Four classes of ten rows."""
    return docstring_corpus(max_classes=4, rows={"train": 24, "test": 16}, seed=seed)


def every_text(corpus):
    """The texts of all splits."""
    return [text for split in corpus.values() for text in split["text"]]


@pytest.mark.skipif(find_spec(TEACHER_PACKAGE) is None, reason="needs the extra 'demo'")
def test_teacher_is_the_official_one_and_is_not_imported():
    """The folder holds a loadable model, and checking it runs none of the package's code, which nobody vouches for."""
    folder = demo_teacher_path()
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {file.name for file in folder.iterdir()}
    assert not {TEACHER_PACKAGE, "sentence_transformers"} & set(sys.modules)


def test_teacher_with_other_weights_is_refused(installed):
    """Weights with another sum are refused with both sums: they could be anything, and go no further."""
    (installed / TEACHER_PACKAGE / "model").mkdir(parents=True)
    (installed / TEACHER_PACKAGE / "model" / "model.safetensors").write_bytes(b"something else")
    found = hashlib.sha256(b"something else").hexdigest()
    with pytest.raises(ValueError, match=TEACHER_SHA256) as caught:
        demo_teacher_path()
    assert found in str(caught.value) and "reinstall" in str(caught.value)


def test_teacher_not_installed(installed):
    """Without the package the error names the command that brings it."""
    with pytest.raises(ImportError, match=r"pip install 'amal_hf\[demo\]'"):
        demo_teacher_path()


def test_corpus_reads_without_importing(installed):
    """Classes are the first packages found, evenly; their modules would raise if they were run."""
    corpus = small_corpus()
    labels = corpus["train"].features["label"]
    assert labels.names == ["torch", "pandas", "sympy", "networkx"]
    assert {split: len(rows) for split, rows in corpus.items()} == {"train": 24, "test": 16}
    assert [sum(label == code for label in corpus["train"]["label"]) for code in range(4)] == [6, 6, 6, 6]
    for row in corpus["train"]:
        assert SUBJECTS[labels.int2str(row["label"])] in row["text"]


def test_corpus_masks_names(installed):
    """Every name of every class is masked, in any case and inside words: else the task would be to read the name."""
    extra = ["See PyTorch, NumPy and np before HuggingFace datasets are of any use here.", "FILENAME is what it says."]
    for file in installed.glob("*/module.py"):
        subject = SUBJECTS[file.parent.name]
        texts = [f"A {subject} {letter} goes with TorchScript or pandas or nx." for letter in LETTERS]
        file.write_text('"""' + "\n\n".join(texts + extra) + '"""')
    texts = every_text(small_corpus())
    assert all(text.endswith(f"goes with {MASK} or {MASK} or {MASK}.") for text in texts)


def test_corpus_is_prose_of_one_package(installed):
    """Code, headings, lists, fragments, tests, broken files and sentences of several packages are left out."""
    shared = "This sentence about nothing stands in every package."
    for name, subject in SUBJECTS.items():
        junk = [
            shared,
            f">>> This is = code that makes a {subject}.",
            f"    Indented text about a {subject} is an example.",
            f"Returns\n-------\nA heading makes this no plain {subject} sentence.",
            f"Too short, {subject}.",
            f"no sentence about a {subject} without its capital.",
        ]
        good = [f"One :class:`~x.{subject}` **is** better\nthan ``two`` of {letter}." for letter in LETTERS[:10]]
        (installed / name / "module.py").write_text('"""' + "\n\n".join(junk + good) + '"""')
        (installed / name / "broken.py").write_text(f'"""A sentence about a {subject} that does not parse.""" (')
        (installed / name / "tests").mkdir()
        (installed / name / "tests" / "more.py").write_text(f'"""A sentence on a {subject} among the tests."""')
    texts = every_text(small_corpus())
    assert len(texts) == 40
    assert all(text.startswith("One ") and " is better than two of " in text for text in texts), texts


def test_corpus_is_the_same_for_a_seed(installed, monkeypatch):
    """The same packages and seed give the same fingerprint, another seed or another text another one."""
    for name, subject in SUBJECTS.items():
        text = "\n\n".join(f"Another module makes the {subject} called {letter}." for letter in LETTERS)
        (installed / name / "more.py").write_text(f'"""{text}"""')
    first = dataset_fingerprint(small_corpus(), COLUMNS)
    rglob = Path.rglob
    # Another file system may list the files in another order.
    monkeypatch.setattr(Path, "rglob", lambda *args: reversed(list(rglob(*args))))
    assert dataset_fingerprint(small_corpus(), COLUMNS) == first
    assert dataset_fingerprint(small_corpus(seed=1), COLUMNS) != first
    module = installed / "torch" / "module.py"
    module.write_text(module.read_text().replace("makes one", "gives one"))
    (installed / "torch" / "more.py").unlink()
    assert dataset_fingerprint(small_corpus(), COLUMNS) != first


def test_corpus_shrinks_with_the_packages_found(installed):
    """With five packages of ten wanted, all splits are halved and classes stay even; under four there is no corpus."""
    corpus = docstring_corpus(max_classes=10, rows={"train": 60, "test": 40})
    assert {split: len(rows) for split, rows in corpus.items()} == {"train": 30, "test": 20}
    for name in ("torch", "numpy"):
        (installed / name / "module.py").unlink()
    with pytest.raises(ValueError, match="'torch': 0.*'pandas': 20"):
        docstring_corpus(max_classes=10, rows={"train": 60, "test": 40})


def test_corpus_of_this_installation():
    """What is installed here gives six even classes, no text in two splits, and no class's own name in any text."""
    corpus = docstring_corpus(rows={"train": 120, "test": 40})
    names = corpus["train"].features["label"].names
    assert len(names) == 6
    assert [corpus["train"]["label"][:].count(code) for code in range(6)] == [20] * 6
    assert not overlap(corpus["test"], corpus["train"], ["text"])
    texts = every_text(corpus)
    assert not [text for text in texts for name in names if name in text.lower()]
    assert all(7 <= len(text.split()) <= 40 for text in texts)


def test_hand_written_rules_have_names_of_their_own_and_vote_for_their_package():
    """Two or three for each of the six packages, none for a package that is not there."""
    packages = ["torch", "pandas", "sympy", "networkx", "huggingface_hub", "setuptools"]
    rules = docstring_rules(packages)
    assert len({rule.name for rule in rules}) == len(rules) == 15
    assert {rule({"text": "An edge of the graph."}) for rule in rules} == {None, "networkx"}
    assert {rule({"text": " ".join(map(" ".join, WORDS["torch"]))}) for rule in docstring_rules(["torch"])} == {
        "torch"
    }
    assert docstring_rules(["numpy"]) == []
