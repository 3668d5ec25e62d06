"""Several processes must come to what one comes to: plain data parallelism, FSDP2, and checkpoints between them.

All jobs of one number of processes run in one set of processes, since starting these costs more than the jobs.
"""

import multiprocessing
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import process_cases
import pytest
import torch

from amal_hf import last_checkpoint


def _grid(names, accumulations=(1, 3), **more):
    return {f"{n}, {a}": {"method": n, "accumulation": a, "rows": 22, **more} for n in names for a in accumulations}


PLAIN = _grid(("table", "network", "reweighting"))  # 22 rows in batches of 8: a ragged end
EVEN = {"even": {"method": "table", "accumulation": 1, "rows": 24}}
OTHER = {
    **_grid(
        (
            "independent",
            "bayes mixture",
            "mean one",
            "above average",
            "neumann",
            "last layer",
            "published",
            "trajectory",
            "memory",
            "reweighting, window",
            "selection",
        ),
        (3,),
        num_train_epochs=3,
    ),
    **_grid(("delayed",), (3,), num_train_epochs=6),  # weights are learned in three steps, and used from the fourth on
}
SHUFFLED = {
    "random": {"method": "table", "rows": 22, "train_sampling_strategy": "random", "num_train_epochs": 2},
    # two passes of three steps to learn in, then two that are drawn
    "drawn": {"method": "drawn", "rows": 22, "train_sampling_strategy": "random", "num_train_epochs": 4},
    "drawn anew": {"method": "drawn anew", "rows": 22, "train_sampling_strategy": "random", "num_train_epochs": 4},
    "dispatched": {"method": "table", "rows": 22, "accelerator_config": {"dispatch_batches": True}},
    "split": {"method": "table", "rows": 22, "accelerator_config": {"split_batches": True}},
    "fewer rows than processes": {"method": "network", "rows": 3},
    "tokens of each process": {"method": "table", "rows": 22, "average_tokens_across_devices": False},
}
STREAMS = {f"stream, {how}": {"method": "table", "rows": 22, "dispatch": how} for how in (True, False)}
RESUMED = {
    "resumed": {"method": "table", "rows": 22},
    "resumed trajectory": {"method": "trajectory", "rows": 22, "num_train_epochs": 3},
    "resumed window": {"method": "memory", "rows": 22, "num_train_epochs": 3},
    "resumed window, sharded": {
        "method": "memory",
        "rows": 22,
        "num_train_epochs": 3,
        "sharded": "SHARDED_STATE_DICT",
    },
    "resumed, in a file": {"method": "table", "rows": 22, "in_file": True},
    "resumed, drawn": {"method": "drawn", "rows": 22, "train_sampling_strategy": "random", "num_train_epochs": 3},
    "resumed, drawn anew": {
        "method": "drawn anew",
        "rows": 22,
        "train_sampling_strategy": "random",
        "num_train_epochs": 4,
        "sharded": "FULL_STATE_DICT",
    },
    "resumed, full": {"method": "network", "rows": 22, "sharded": "FULL_STATE_DICT"},
    "resumed, sharded": {"method": "table", "rows": 22, "sharded": "SHARDED_STATE_DICT"},
}


IN_FILE = {f"{n}, in a file": {**PLAIN[n], "in_file": True} for n in ("table, 1", "network, 1")}
# Plain gradient descent, since Adam's first steps divide small gradients by themselves and leave their rounding.
SGD = {"method": "table", "accumulation": 3, "rows": 22, "optim": "sgd", "learning_rate": 0.1}
HALF = {"bf16": SGD, "bf16, FSDP2": {**SGD, "sharded": "FULL_STATE_DICT"}}


def _jobs(function, cases):
    return {name: (function, arguments) for name, arguments in cases.items()}


def _sharded(cases):
    return {f"{name}, FSDP2": {**case, "sharded": "FULL_STATE_DICT"} for name, case in cases.items()}


ALSO_SHARDED = ("neumann, 3", "memory, 3")
SHARDS = {"shards": {"method": "table", "rows": 24}}
BESIDES = {
    "rules": (process_cases.train_on_rules, {}),
    "tokens": (process_cases.train_on_tokens, {}),
    "labels": (process_cases.train_on_labels, {}),
}


def _one(folders):
    return {
        **BESIDES,
        **_jobs(process_cases.train, {**PLAIN, **EVEN, **OTHER, **SHUFFLED, **IN_FILE}),
        **_jobs(process_cases.train_on_stream, STREAMS),
        **_jobs(process_cases.train_on_shards, SHARDS),
        "teacher": (process_cases.sharded_teacher, {}),
        "sgd": (process_cases.train, SGD),
        "from two": (process_cases.go_on, {"other": folders[2] / "resumed", **RESUMED["resumed"]}),
        "from two, in a file": (
            process_cases.go_on,
            {"other": folders[2] / "resumed, in a file", **RESUMED["resumed, in a file"]},
        ),
        "resumed": (process_cases.resume, RESUMED["resumed"]),
    }


def _two(folders):
    sharded = {**PLAIN, **{name: OTHER[name] for name in ALSO_SHARDED}}
    return {
        **_jobs(process_cases.train, {**PLAIN, **OTHER, **IN_FILE, **_sharded(sharded)}),
        **_jobs(process_cases.resume, RESUMED),
        "split": (process_cases.train, {**SHUFFLED["split"], "per_device_train_batch_size": 8}),
        "teacher": (process_cases.sharded_teacher, {}),
        "label weights": (process_cases.weigh_labels, {}),
        **_jobs(process_cases.train_in_bf16, HALF),
        "saved whole": (process_cases.saved_whole, {}),
    }


def _four(folders):
    return {
        **BESIDES,
        **_jobs(process_cases.train, {**PLAIN, **EVEN, **{k: v for k, v in SHUFFLED.items() if k != "split"}}),
        **_jobs(process_cases.train_on_stream, STREAMS),
        **_jobs(process_cases.train_on_shards, SHARDS),
        "from one": (process_cases.go_on, {"other": folders[1] / "resumed", **RESUMED["resumed"]}),
        **{
            f"from two, {kind}": (
                process_cases.go_on,
                {"other": folders[2] / f"resumed, {kind}", **RESUMED[f"resumed, {kind}"]},
            )
            for kind in ("full", "sharded")
        },
    }


def _run(count, folder, jobs):
    """All jobs in `count` processes, and what each process found."""
    _start(count, folder, jobs)
    return {name: [torch.load(folder / f"{name}-{rank}.pt") for rank in range(count)] for name in jobs}


def _start(count, folder, jobs):
    """All jobs in `count` processes; ended by force if they hang."""
    # Not by fork: this process may have threads, whose locks a child would wait for.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["amal_hf"])
    workers = [context.Process(target=process_cases.work, args=(rank, count, folder, jobs)) for rank in range(count)]
    for worker in workers:
        worker.start()
    end = time.monotonic() + 600  # some 100 s on two quiet cores
    for worker in workers:
        worker.join(max(0, end - time.monotonic()))
    for worker in workers:
        worker.kill()
        worker.join()
    codes = [worker.exitcode for worker in workers]
    assert not any(codes), f"exit codes {codes}; " + "\n".join(_failures(folder))


def _failures(folder):
    """What went wrong in the processes, the first one first."""
    return [path.read_text() for path in sorted(folder.glob("failed-*.txt"), key=lambda path: path.stat().st_mtime)]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What all processes found, by number of processes and job."""
    folders = {count: tmp_path_factory.mktemp(f"of_{count}") for count in (1, 2, 4)}
    return {count: _run(count, folders[count], jobs(folders)) for count, jobs in ((2, _two), (1, _one), (4, _four))}


def difference(ours, theirs):
    """Relative, in the Euclidean norm."""
    return float((ours - theirs).norm() / theirs.norm())


def assert_equal(ranks, one):
    """What all processes of a run found, and what one process did."""
    assert len(one["gradients"]) >= 1 and all(found["untouched"] for found in (*ranks, one))
    for found in ranks:
        torch.testing.assert_close(found["weights"], ranks[0]["weights"], rtol=0, atol=0, equal_nan=True)
        assert difference(found["weights"], one["weights"]) < 1e-6
        assert difference(found["parameters"], one["parameters"]) < 1e-6
        for ours, theirs in zip(found["gradients"], one["gradients"], strict=True):
            assert difference(ours, theirs) < 1e-6
    torch.testing.assert_close(ranks[0]["losses"], one["losses"], rtol=1e-6, atol=0)
    assert len(one["slopes"]) >= one["learns"]
    for number, (ids, slopes) in enumerate(one["slopes"]):
        ours = [torch.cat(parts) for parts in zip(*(found["slopes"][number] for found in ranks), strict=True)]
        assert ours[0].sort().values.equal(ids.sort().values), "an example was left out, or counted twice"
        assert difference(ours[1][ours[0].argsort(stable=True)], slopes[ids.argsort(stable=True)]) < 1e-6


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("name", PLAIN)
def test_several_processes_come_to_what_one_does(found, name, count):
    """Gradients, slopes, weights, parameters and logged losses: with accumulation, and with a last batch that does not
    come out even.
    """
    assert_equal(found[count][name], found[1][name][0])


@pytest.mark.parametrize("name", OTHER)
def test_so_do_the_other_methods(found, name):
    """Running means, Hessian products, phases between epochs and trajectories hold sums over all processes too."""
    assert_equal(found[2][name], found[1][name][0])


@pytest.mark.parametrize("name", BESIDES)
def test_tokens_and_rules_too(found, name):
    """A repeated example has no tokens, and a loss with a model of its own trains it on all examples."""
    assert_equal(found[4][name], found[1][name][0])
    for ours in found[4][name]:
        assert name != "rules" or difference(ours["cage"], found[1][name][0]["cage"]) < 1e-6


def test_how_many_labels_are_wrong_is_asked_of_all(found):
    """A share of this process's labels alone would weigh examples differently on each."""
    shares = found[1]["labels"][0]["wrong labels"]
    assert 0 < shares[-1] < 0.2
    for ours in found[4]["labels"]:
        assert ours["wrong labels"] == pytest.approx(shares, rel=1e-4)


@pytest.mark.parametrize("name", [*EVEN, *SHUFFLED, *STREAMS, *SHARDS])
def test_rows_are_counted_once_however_they_come(found, name):
    """From a shuffled set, through the first process, from streams and shards; with fewer rows than processes."""
    count = 2 if name == "split" else 4
    assert_equal(found[count][name], found[1][name][0])


@pytest.mark.parametrize("name", [*PLAIN, *ALSO_SHARDED])
def test_students_cut_over_processes_come_to_the_same(found, name):
    """FSDP2: shards are moved and put back bit for bit, and lengths are those of the whole direction."""
    assert_equal(found[2][f"{name}, FSDP2"], found[1][name][0])


@pytest.mark.parametrize("name", IN_FILE)
def test_weights_in_files_too(found, name):
    """Every process keeps a file of its own, and all of them come to the same rows."""
    assert_equal(found[2][name], found[1][name][0])


@pytest.mark.parametrize("name", HALF)
def test_slopes_in_half_precision_are_those_of_float64(found, name):
    """Of a student under bf16 autocast on two processes, and of one that FSDP2 gathers in bf16."""
    ours, exact = found[2][name], found[1]["sgd"][0]
    assert all(each["untouched"] for each in ours)
    assert len(exact["slopes"]) >= 2
    for number, (ids, slopes) in enumerate(exact["slopes"]):
        theirs, found_slopes = (
            torch.cat(parts) for parts in zip(*(each["slopes"][number] for each in ours), strict=True)
        )
        error = difference(found_slopes[theirs.argsort(stable=True)], slopes[ids.argsort(stable=True)])
        assert 2e-4 < error < 2e-2  # rounded to 8 bits, not to 24; a cosine of 0.9998 at least
    assert (ours[0]["weights"] - exact["weights"]).abs().max() < 0.01


def test_teachers_are_cut_as_well(found):
    """A teacher that fits no single process is the reason to use FSDP2."""
    assert_equal(found[2]["teacher"], found[1]["teacher"][0])
    assert all(ours["teacher_is_cut"] for ours in found[2]["teacher"])


def test_labels_are_weighed_alike_in_all_processes(found):
    """And right and wrong ones are told apart; a run after it is one run still."""
    ours, theirs = found[2]["label weights"]
    assert torch.equal(ours["weights"], theirs["weights"])
    assert torch.equal(ours["parameters"], theirs["parameters"])
    assert ours["weights"][ours["wrong"]].max() < 0.5 < ours["weights"][~ours["wrong"]].min()


def test_a_cut_student_is_published_whole(found):
    """Also where its checkpoints stay cut, as they do afterwards."""
    for rank in found[2]["saved whole"]:
        assert torch.equal(rank["saved"], rank["parameters"])
        assert rank["checkpoints"] == "SHARDED_STATE_DICT"


@pytest.mark.parametrize("name", RESUMED)
def test_an_interrupted_run_equals_the_uninterrupted_one(found, name):
    """On the same number of processes, bit for bit."""
    for ours in found[2][name]:
        for resumed, whole in zip(ours["resumed"], ours["whole"], strict=True):
            torch.testing.assert_close(resumed, whole, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("count", "name", "saved"),
    [
        (1, "from two", (2, "resumed")),
        (1, "from two, in a file", (2, "resumed, in a file")),
        (4, "from one", (1, "resumed")),
        (4, "from two, full", (2, "resumed, full")),
        (4, "from two, sharded", (2, "resumed, sharded")),
    ],
)
def test_weights_survive_a_change_of_the_number_of_processes(found, count, name, saved):
    """Bit for bit, from one to several and back, from whole checkpoints and from sharded ones."""
    written = found[saved[0]][saved[1]][0]["saved"]
    assert written[:, 1:].nan_to_num().std() > 0  # examples not seen yet have none
    for ours in found[count][name]:
        torch.testing.assert_close(ours["loaded"], written, rtol=0, atol=0, equal_nan=True)


def test_a_lost_process_is_an_error_that_says_how_to_go_on(tmp_path):
    """The others neither hang nor overwrite anything: the last checkpoint is whole."""
    _start(2, tmp_path, {"lost": (process_cases.lose_one, {"method": "table", "rows": 40})})
    said = torch.load(tmp_path / "lost-0.pt")["said"]
    assert re.search(r"process 0 got no answer.*another of the 2 processes.*resume_from_checkpoint=True", said)
    assert last_checkpoint(tmp_path / "lost") == str(tmp_path / "lost" / "checkpoint-2")


LAUNCHERS = {
    "python": [],
    "torchrun": ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"],
    "accelerate": [
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        "2",
        "--main_process_port",
        "0",
    ],
}


@pytest.mark.slow
def test_one_script_under_every_launcher(tmp_path):
    """Plain Python, torchrun and `accelerate launch` take the same script as it is, and come to the same weights."""
    script = Path(__file__).with_name("process_cases.py")
    weights = []
    for name, launcher in LAUNCHERS.items():
        (tmp_path / name).mkdir()
        environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo"}
        command = [sys.executable, *launcher, str(script), str(tmp_path / name)]
        subprocess.run(command, check=True, timeout=240, env=environment)
        weights.append(torch.load(tmp_path / name / "weights.pt"))
    assert difference(weights[1], weights[0]) < 1e-6
    assert weights[2].equal(weights[1])
