"""Who may import whom: a file imports only from lower levels, so that it can be read without those above it."""

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import amal_hf


PACKAGE = Path(amal_hf.__file__).parent

LEVELS = [
    {"shapes"},
    {"batch_rows", "student_states", "tensor_of"},
    {
        "divergences",
        "tokens",
        "text_limit",
        "command_line",
        "top_logits",
        "generators",
        "processes",
        "random_numbers",
        "own_adam",
        "last_scores",
        "card_facts",
        "intervals",
        "predicted",
        "columns",
    },
    {
        "loggers",
        "scores",
        "class_counts",
        "clean_probe",
        "central_differences",
        "model_labels",
        "router_loss",
        "noisy_labels",
        "calibration",
        "probably_right",
        "labelled_features",
        "task",
        "label_column",
        "splits",
    },
    {"wrong_labels", "out_of_fold", "shown_states", "label_order", "checkpoints", "losses", "data"},
    {"cross_entropy"},
    {
        "directions",
        "tangents",
        "last_layer",
        "teachers",
        "teacher_cache",
        "teacher_inputs",
        "students",
        "noise",
        "rules",
        "aggregation",
        "demo",
        "demo_rules",
        "metrics",
        "translation",
        "demo_translation",
        "latency",
        "card_check",
        "portable",
        "precision",
        "sharded",
        "shared_rows",
        "drawn_rows",
        "grouped_rows",
        "ragged",
        "plots.style",
        "state",
        "policies",
        "policies.policy",
        "policies.store",
        "policies.row_file",
        "policies.row_log",
        "policies.bayes_mixture",
        "policies.bayes_share",
        "policies.bounds",
        "policies.inward_softmax",
        "policies.slope_memory",
        "policies.source_gain",
        "policies.delayed",
        "policies.commentary_network",
        "policies.example_table",
        "policies.fixed_weights",
        "policies.heuristics",
        "policies.loss_network",
        "policies.meta_weight_net",
        "policies.network_policy",
        "policies.per_loss_network",
        "policies.rectified_slopes",
        "policies.shared_weights",
        "policies.state_network",
        "policies.surface",
        "policies.teacher_belief",
        "policies.frozen",
    },
    {
        "plots.accuracy_against_seconds",
        "plots.blends",
        "plots.clean_against_flipped",
        "plots.masks",
        "plots.rule_weights",
        "plots.weight_against",
        "plots.weight_history",
        "example_notes",
        "weight_histograms",
        "distillation",
        "robust_losses",
        "corrected_loss",
        "cage",
        "dawid_skene",
        "compiled",
        "undisturbed",
        "lost_process",
        "rule_losses",
        "rule_summary",
        "steps",
        "batch_policies",
        "batch_policies.batch_policy",
        "batch_policies.label_blend",
        "batch_policies.token_mask",
        "cards",
    },
    {"plots", "rewinds", "adjoints", "spear", "weak_splits", "open_teachers", "weight_warnings"},
    {"trajectories", "run_record", "collator"},
    {"method", "problem_type", "label_checks", "first_batch"},
    {
        "mixture",
        "meta",
        "meta_set",
        "logs",
        "generator_checks",
    },
    {"recorder", "run_figures", "student_inputs", "token_mixture"},
    {"learner", "methods", "report", "arguments", "commentary", "skipped_steps", "memory", "weights", "run_facts"},
    {"pushes", "without_source"},
    {"checks", "data_checks", "mixing"},
    {"resumable", "run_outputs", "publishing"},
    {"numbered_rows"},
    {"meta_steps"},
    {"trainer"},
    {"seq2seq", "label_weights"},
    {"embedded_rows"},
    {"kept_rows", "answered_rows"},
]
"""Lowest first. `__init__` is above all and imported by none."""

NEIGHBOURS = {
    ("last_layer", "tangents"),
    ("top_logits", "tokens"),
    ("teachers", "teacher_cache"),
    ("teachers", "teacher_inputs"),
    ("teacher_cache", "teacher_inputs"),
    ("aggregation", "rules"),
    ("demo_rules", "rules"),
    ("logs", "mixture"),
    ("batch_policies.label_blend", "batch_policies.batch_policy"),
    ("batch_policies.token_mask", "batch_policies.batch_policy"),
}
"""The few imports within a level; besides, policies may import one another."""

NEVER = {("trainer", "methods")}
"""A method is passed to the trainer, which knows none."""

MATHEMATICS = {
    "shapes",
    "batch_rows",
    "student_states",
    "central_differences",
    "processes",
    "sharded",
    "divergences",
    "tokens",
    "top_logits",
    "task",
    "losses",
    "cross_entropy",
    "class_counts",
    "clean_probe",
    "wrong_labels",
    "cage",
    "spear",
    "rule_losses",
    "robust_losses",
    "corrected_loss",
    "distillation",
    "directions",
    "tangents",
    "last_layer",
    "state",
    "mixture",
    "meta",
    "meta_set",
    "logs",
    "example_notes",
    "student_inputs",
    "token_mixture",
    "learner",
    "recorder",
    "steps",
    "rewinds",
    "adjoints",
    "trajectories",
}
"""Takes tensors and closures, never a model class, a trainer or a configuration; so do the policies."""

FILES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}
MODULES = sorted(FILES.keys() - {"__init__"})
every_module = pytest.mark.parametrize("module", MODULES)


def imported_names(module):
    """Everything a file imports anywhere, functions included, as dotted names."""
    for node in ast.walk(ast.parse(FILES[module].read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import; write it out, so that it can be checked"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(module):
    """The package's modules that a file imports."""
    for name in imported_names(module):
        if name == "amal_hf" or name.startswith("amal_hf."):
            inner = name.removeprefix("amal_hf").removeprefix(".")
            yield inner if inner in FILES else inner.rpartition(".")[0] or "__init__"


def level(module):
    found = [number for number, names in enumerate(LEVELS) if module in names]
    assert found, f"{module} has no level yet: add it to LEVELS in this file"
    return found[0]


def may_import(module, other):
    if other == "__init__" or (module, other) in NEVER:
        return False
    among_policies = module.startswith("policies.") and other.startswith("policies.")
    return level(other) < level(module) or (module, other) in NEIGHBOURS or among_policies


def is_mathematics(module):
    return module in MATHEMATICS or module.startswith(("policies", "batch_policies"))


@every_module
def test_a_file_imports_only_from_lower_levels(module):
    """The levels are the reading order of the package; an import upwards would tie a formula to the trainer that uses
    it.
    """
    level(module)
    assert not [other for other in own_imports(module) if not may_import(module, other)]


@every_module
def test_mathematics_knows_no_trainer(module):
    """What computes weights takes tensors and closures, so nothing of `transformers` is imported there, and `Trainer`
    only from the checks upwards.
    """
    names = list(imported_names(module))
    if is_mathematics(module):
        assert not [name for name in names if name.split(".")[0] in {"transformers", "accelerate", "datasets"}]
    if level(module) < level("checks"):
        assert not [name for name in names if name in {"transformers.Trainer", "transformers.trainer.Trainer"}]


def test_the_map_of_files_is_whole():
    """Whoever looks for a thing by CONTRIBUTING.md finds every file, and none that is gone."""
    text = (PACKAGE.parent / "CONTRIBUTING.md").read_text()
    named = set(re.findall(r"(?<![\w/])(\w+)\.py", text.split("## Where things are")[1].split("docs/  ")[0]))
    files = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    assert files - named == set()
    assert named - files - {path.stem for path in PACKAGE.rglob("*.py")} == set()


def test_no_import_cycles():
    """Also within a level: a cycle makes two files one."""
    graph = {module: set(own_imports(module)) for module in MODULES}
    assert sum(map(len, graph.values())) > 20
    TopologicalSorter(graph).prepare()
