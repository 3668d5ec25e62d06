"""Hand-written rules for the docstring corpus, of uneven quality: some words are telling, others stand everywhere."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from amal_hf.rules import Rule, keyword_rule


WORDS: Mapping[str, list[list[str]]] = MappingProxyType(
    {
        "torch": [["tensor", "tensors", "cuda", "autograd"], ["module", "layer", "gradient"], ["value", "input"]],
        "pandas": [["DataFrame", "Series", "Index", "axis"], ["column", "columns", "dtype"], ["data", "object"]],
        "sympy": [["polynomial", "expression", "symbol", "integral"], ["matrix", "equation"], ["function", "method"]],
        "networkx": [["graph", "node", "nodes", "edge", "edges"], ["path", "list"]],
        "huggingface_hub": [["repo", "repository", "download", "token"], ["file", "files", "model"]],
        "setuptools": [["distribution", "package", "command", "wheel"], ["option", "name", "version"]],
    }
)
"""For each package the words of its rules, the most telling first."""


def docstring_rules(classes: Sequence[str]) -> list[Rule]:
    """The rules for those classes of `docstring_corpus` that are there: its packages depend on what is installed."""
    return [keyword_rule(words, name) for name in classes for words in WORDS.get(name, [])]
