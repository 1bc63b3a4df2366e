"""Several processes compute what one does: gradients, weights, scores, whole runs."""

import contextlib
import copy
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from alpha_gradient import relative_error, supernet
from conftest import (
    CPU,
    FAST_AUGMENT,
    FAST_OPS,
    TINY_SEARCH,
    checkpoint_of,
    ends_in_one_line,
    lines,
    log_of,
    made_once,
)
from process_helpers import CAN_FORK, environment, free_port, in_processes, run_together
from process_work import (
    CASES,
    OPS,
    N,
    alpha_gradient,
    answers_to_score,
    eigenvalue,
    lose,
    problem,
    work,
    work_of_three,
)

import compare
import evaluate
import genotypes as gt
import search
import utils
from architect import Architect
from console import one_voice
from data_sets import shares, shuffled
from devices import processes
from devices.parts import Parts
from models.search_cnn import SearchCNNController

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """What each of two processes has found."""
    return made_once(tmp_path_factory, "processes", lambda folder: in_processes(2, work, folder))


@pytest.mark.parametrize("i", range(len(CASES)), ids=["-".join(map(str, case)) for case in CASES])
def test_gradients_are_those_of_one_process_on_the_whole_batch(together, i):
    wanted = alpha_gradient(CASES[i])
    most = 1e-10 if CASES[i][0] == "float64" else 1e-5
    for found in together:
        found = found["gradients"][i]
        for key in ("second", "first", "w"):
            assert relative_error(found[key], wanted[key]) < most, key
    assert sum(found["gradients"][i]["n"] for found in together) == N


def test_accumulated_gradients_of_several_processes(together):
    wanted = alpha_gradient(CASES[0])
    for found in together:
        assert relative_error(found["accumulated"]["second"], wanted["second"]) < 1e-10


def test_the_eigenvalue_is_that_of_the_whole_batch(together):
    for found in together:
        assert found["eigenvalue"] == pytest.approx(eigenvalue(), rel=1e-6)


def test_synchronised_statistics_are_those_of_the_whole_batch(together):
    i = CASES.index(("float64", "difference", True, False))
    wanted = alpha_gradient(CASES[i])["buffers"]
    for found in together:
        for a, b in zip(found["gradients"][i]["buffers"], wanted, strict=True):
            assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)


def test_all_processes_hold_the_same_bits_after_steps(together):
    first = together[0]["steps"]["state"]
    parameters = [
        name for name, _ in supernet(torch.float32, C=2, primitives=OPS).named_parameters()
    ]
    for found in together[1:]:
        for name in parameters:
            assert torch.equal(first[name], found["steps"]["state"][name]), name
    assert together[0]["steps"]["bytes"] > 0


def test_three_processes_compute_what_one_does(tmp_path):
    together = in_processes(3, work_of_three, tmp_path)
    wanted = alpha_gradient(CASES[-1])
    for found in together:
        for key in ("second", "first", "w"):
            assert relative_error(found["gradients"][key], wanted[key]) < 1e-10, key
    assert sum(found["gradients"]["n"] for found in together) == N
    test_scores_count_every_image_once(together)


def test_scores_count_every_image_once(together):
    logits, y = answers_to_score()
    answers = utils.Answers()
    answers.add(logits, y)
    wanted = utils.evaluate(lambda X: X, [(logits, y)], CPU)
    for found in together:
        assert found["scores"]["lists"] == answers.lists()
        for key in ("loss", "top1", "top5"):
            assert found["scores"]["scores"][key] == pytest.approx(wanted[key], rel=1e-6)


def test_what_processes_tell_each_other(together):
    size = len(together)
    for found in together:
        assert list(found["most"]) == [size - 1, 5, 0]
        assert (found["gathered"], found["from main"]) == (list(range(size)), 0)


# --- gradient accumulation in one process -------------------------------------------------------


@pytest.mark.parametrize(("i", "n"), [(0, 2), (1, 7), (2, 3), (3, 2), (5, 3)])
def test_accumulated_gradients_are_those_of_the_large_batch(i, n):
    wanted, found = alpha_gradient(CASES[i]), alpha_gradient(CASES[i], n=n)
    for key in ("second", "first", "w"):
        assert relative_error(found[key], wanted[key]) < 1e-10
    assert found["n"] == N


def test_a_batch_in_parts_draws_the_same_masks_in_every_pass():
    """Two dropout masks differ by far more than w+ and w-: the difference would be noise."""

    class Dropping(SearchCNNController):
        def forward(self, X):
            return super().forward(F.dropout(X, 0.5))

    net, sgd, data = problem(torch.float64)
    net.__class__ = Dropping
    found = []
    for hessian in ("difference", "exact"):
        torch.manual_seed(3)
        twin = copy.deepcopy(net)
        architect = Architect(twin, hessian, eps=1e-4, parts=Parts(2))
        first = architect.training_pass(*data[:2])
        direction = [torch.ones_like(w) for w in twin.weights()]
        found.append(architect.compute_hessian(direction, first, *data[:2]))
    assert relative_error(*found) < 1e-2


# --- shares -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_no_image_is_drawn_twice_and_none_is_left_out(size):
    whole = list(shuffled.ShuffledBatches(23, 7, [4]))
    found = [list(shuffled.ShuffledBatches(23, 7, [4], (rank, size))) for rank in range(size)]
    for i, (seed, batch) in enumerate(whole):
        assert sorted(index for part in found for index in part[i][1]) == sorted(batch)
        assert {part[i][0] for part in found} == {seed + rank for rank in range(size)}
    assert {len(part) for part in found} == {len(whole)}


@pytest.mark.parametrize("n", [5, 20, 21, 22, 23, 24, 25])
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_scoring_gives_each_process_as_many_batches_and_every_image_once(n, size):
    found = [list(shares.ScoredBatches(n, 10, (rank, size))) for rank in range(size)]
    assert sorted(i for batches in found for batch in batches for i in batch) == list(range(n))
    assert all(batch for batches in found for batch in batches)
    assert {len(batches) for batches in found} == {len(shares.ScoredBatches(n, 10, (0, size)))}
    # share r of a batch is every size-th image of it
    first = sorted(i for batches in found for i in batches[0])
    assert [batches[0] for batches in found] == [first[rank::size] for rank in range(size)]


# --- what goes wrong between processes ----------------------------------------------------------


@pytest.fixture
def started(monkeypatch):
    """started(**variables): the environment of one of several processes."""

    def start(**variables):
        for name, value in environment(0, 2, free_port(), **variables).items():
            monkeypatch.setenv(name, value)
        return SimpleNamespace(dist_timeout=0.01, said={})

    yield start
    if processes.dist.is_initialized():
        processes.dist.destroy_process_group()


def test_a_process_that_does_not_answer_is_given_up(tmp_path):
    told, _ = in_processes(2, lose, tmp_path)
    assert told == ("another of the 2 processes has not answered for 0.05 minutes (--dist_timeout)")


def test_what_nccl_says_of_its_reason_is_not_lost(monkeypatch):
    def fail(*args, **words):
        raise processes.dist.DistBackendError("NCCL error in: a.cpp:9\nLast error:\nDuplicate GPU")

    monkeypatch.setattr(processes.dist, "all_reduce", fail)
    with pytest.raises(processes.Lost) as caught:
        processes.Processes(0, 2, 0, 2, 10.0).sum([torch.ones(1)])
    assert str(caught.value) == (
        "another of the 2 processes has ended, or NCCL cannot reach it (NCCL error in: a.cpp:9 "
        "Last error: Duplicate GPU)"
    )


@pytest.mark.parametrize("run_id", [None, "none"])
def test_a_process_waits_longer_for_torchrun_which_will_end_it(started, monkeypatch, run_id):
    waited = []
    monkeypatch.setattr(one_voice.time, "sleep", waited.append)
    monkeypatch.setattr(one_voice.signal, "signal", lambda *args: None)
    started(RANK="1", **({"TORCHELASTIC_RUN_ID": run_id} if run_id else {}))
    one_voice.last_line("search.py", "it failed")
    one_voice.last_line("search.py", "stopped by SIGTERM", asked=True)
    assert waited == [one_voice.OF_TORCHRUN if run_id else one_voice.PATIENCE, one_voice.PATIENCE]


@pytest.mark.parametrize(
    ("variables", "text"),
    [
        ({}, r"not all of the 2 processes came to 127.0.0.1:\d+ within 0.01 minutes"),
        ({"RANK": "2"}, "RANK 2 of WORLD_SIZE 2: they count from 0 to 1"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two', which is no number"),
        ({"LOCAL_RANK": "-1"}, "LOCAL_RANK is '-1', which is no number"),
    ],
)
def test_an_environment_that_does_not_fit(started, variables, text):
    with pytest.raises(ValueError, match=text):
        processes.join(started(**variables))
    assert processes.here() is processes.ALONE


def test_a_port_that_is_in_use(started):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        cfg = started(MASTER_PORT=str(taken.getsockname()[1]))
        with pytest.raises(ValueError, match=r"is in use by another program; give torchrun anoth"):
            processes.join(cfg)


def test_after_a_restart_nothing_is_found_of_the_processes_before(started, monkeypatch):
    """torchrun keeps its store."""
    port, found = free_port(), []
    store = processes.dist.TCPStore("127.0.0.1", port, 2, True, wait_for_workers=False)

    def join(*args, store, **words):
        found.append(store.check(["address of 1"]))
        store.set("address of 1", "127.0.0.1")
        raise RuntimeError("seen")

    monkeypatch.setattr(processes.dist, "init_process_group", join)
    agent = {"TORCHELASTIC_USE_AGENT_STORE": "True", "MASTER_PORT": str(port)}
    for count in "011":
        with pytest.raises(ValueError, match="seen"):
            processes.join(started(**agent, TORCHELASTIC_RESTART_COUNT=count))
    assert found == [False, False, True]
    del store


def test_one_process_needs_no_others(started):
    assert processes.join(started(WORLD_SIZE="1")) is processes.ALONE


@pytest.mark.parametrize(
    ("script", "words", "what"),
    [(compare, ["--random", "2"], "compare.py"), (search, ["--seeds", "2"], "--seeds")],
)
def test_what_starts_processes_itself_is_not_started_by_torchrun(
    here, monkeypatch, script, words, what
):
    monkeypatch.setenv("RANK", "0")
    text = ends_in_one_line(script.main, [*words, "--quick"])
    assert text.endswith(
        f"{what} starts a process for each of its runs itself; start it without torchrun"
    )
    assert not os.listdir()


def test_one_of_several_processes_speaks(started, capsys, monkeypatch):
    waited = []
    monkeypatch.setattr(one_voice.time, "sleep", waited.append)
    monkeypatch.setattr(one_voice.signal, "signal", lambda *args: None)
    for rank in "01":
        started(RANK=rank)
        one_voice.last_line("search.py", "it failed")
        one_voice.last_line("search.py", "stopped by SIGTERM", asked=True)
    said = capsys.readouterr().err
    assert said.splitlines() == [
        "search.py: it failed", "search.py: stopped by SIGTERM", "search.py: process 1: it failed"
    ]  # fmt: skip
    assert waited == [one_voice.PATIENCE] * 2


# --- whole runs ---------------------------------------------------------------------------------

# a block that sends process 1 the signal that the environment names for each start of torchrun: as
# soon as two epochs are recorded, after a restart three. It reads values, so it is run as it is and
# not rewritten (models/widen.py)
FAULTY = """
import os, signal
from torch import nn

FAULTS = os.environ.get("FAULTS", "").split(",")
START = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))

def epochs():
    if not os.path.exists("searchs/s/alphas.jsonl"):
        return 0
    with open("searchs/s/alphas.jsonl") as file:
        return len(file.readlines())

class Faulty(nn.Module):
    def __init__(self, C, stride, affine):
        super().__init__()
        self.pool = nn.AvgPool2d(3, stride, 1)

    def forward(self, x):
        if x.isfinite().all() and os.environ.get("RANK") == "1" and len(FAULTS) > START:
            if FAULTS[START] and epochs() >= 2 + START:
                number, FAULTS[START] = getattr(signal, FAULTS[START]), ""
                os.kill(os.getpid(), number)
        return self.pool(x)

OPS = {"faulty": Faulty}
"""
SEARCH = [*TINY_SEARCH, "--subset", "0.1", "--epochs", "4", "--batch_size", "15", "--name", "s",
          "--primitives", ",".join([*FAST_OPS, "faulty"]), "--ops", "faulty.py",
          "--quick", "--compare", "0", "--order", "2", "--warmup_epochs", "0"]  # fmt: skip


def torchrun(folder, script, words, n=2, restarts=0, **variables):
    """The finished process of torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={n}"]
    command += [f"--max_restarts={restarts}", f"--master_port={free_port()}", ROOT / script, *words]
    return subprocess.run(
        command, cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """The folder of a search that two processes did, undisturbed, and what they said. Not to be
    written into."""

    def make(folder):
        folder.joinpath("faulty.py").write_text(FAULTY)
        done = torchrun(folder, "search.py", SEARCH)
        assert done.returncode == 0, done.stderr
        return folder, done.stdout

    return made_once(tmp_path_factory, "searched", make)


def test_a_search_by_two_processes_is_one_run(searched):
    folder, said = searched
    assert os.listdir(folder / "searchs") == ["s"] or sorted(os.listdir(folder / "searchs")) == [
        ".lock", "s"
    ]  # fmt: skip
    assert said.count("searchs/s on 2 processes, cpu") == 1
    assert said.count("Train it with") == 1
    state = checkpoint_of(folder / "searchs" / "s")
    assert not [name for name in state["model"] if name.startswith("module.")]
    assert len(state["rng_others"]) == 1
    assert not torch.equal(state["rng"]["torch"], state["rng_others"][0]["torch"])


@pytest.mark.skipif(not CAN_FORK, reason="forks")
def test_what_looks_into_the_supernet_looks_together(tmp_path):
    """Else the processes would part, which is compared at each save, or wait for each other."""
    words = [*TINY_SEARCH, "--subset", "0.1", "--epochs", "4", "--batch_size", "15", "--name", "s",
             "--n_nodes", "1", "--k", "1", "--primitives", "skip_connect,max_pool_3x3",
             "--eigenvalue", "--stop_unchanged", "2", "--select", "perturbation",
             "--checkpoint_minutes", "0.00001"]  # fmt: skip
    assert run_together(tmp_path, search.main, [words] * 2) == [(0, ""), (0, "")]
    run = tmp_path / "searchs" / "s"
    assert gt.metadata(run)["select"] == "perturbation"
    records = lines(run / "alphas.jsonl")
    assert len(records) in (3, 4)
    assert all(record["eigenvalue"] for record in records)
    assert log_of(run).count("(accuracy without each: ") == 2 * 3


def test_a_run_that_loses_a_process_goes_on_by_itself_to_the_same_result(searched, tmp_path):
    """Process 1 gets SIGTERM, after a restart SIGKILL; torchrun restarts them both times."""
    tmp_path.joinpath("faulty.py").write_text(FAULTY)
    done = torchrun(tmp_path, "search.py", SEARCH, restarts=2, FAULTS="SIGTERM,SIGKILL")
    assert done.returncode == 0, done.stderr
    told = done.stderr
    assert told.count("search.py: stopped by SIGTERM after step") == 1, told
    assert told.count("search.py: another of the 2 processes has ended; the run has stopped") == 1
    assert "Traceback" not in log_of(tmp_path / "searchs" / "s")
    found, wanted = (checkpoint_of(f / "searchs" / "s") for f in (tmp_path, searched[0]))
    names = [name for name in wanted["model"] if "running" not in name]
    assert all(torch.equal(found["model"][name], wanted["model"][name]) for name in names)
    assert found["epoch"] == 4


def test_one_process_that_torchrun_starts_anew_goes_on(searched, tmp_path, monkeypatch):
    shutil.copytree(searched[0], tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    os.replace("searchs/s/previous.pt", "searchs/s/checkpoint.pt")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    Path("searchs/s/.start").write_text(processes.start_of_all())
    search.main([*SEARCH, "--quiet"])
    assert checkpoint_of("searchs/s")["epoch"] == 4


def test_a_search_goes_on_with_another_number_of_processes(searched, tmp_path, monkeypatch):
    shutil.copytree(searched[0], tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    os.replace("searchs/s/previous.pt", "searchs/s/checkpoint.pt")
    search.main(["--name", "s", "--resume"])
    assert "saved by 2 processes, goes on with 1: " in log_of("searchs/s")
    assert checkpoint_of("searchs/s")["epoch"] == 4


def test_a_training_by_processes_of_this_program_scores_every_image(tmp_path):
    """As --gpus starts them."""
    folder = tmp_path
    words = [*FAST_AUGMENT, "--genotype", "DARTS_V2", "--name", "a", "--class_weights", "balanced"]
    words += ["--accumulate", "2", "--sync_bn", "--scale_lr"]
    code = f"from devices import launch; launch.start('augment.py', {words}, 2)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "on 2 processes, cpu" in log_of(folder / "augments" / "a")
    with contextlib.chdir(folder):
        (score, *_) = evaluate.main(["augments/a"])
    assert checkpoint_of(folder / "augments" / "a")["top1"] == pytest.approx(score["top1"])
    confusion = json.loads((folder / "augments" / "a" / "confusion.json").read_text())
    assert sum(map(sum, confusion["matrix"])) == 360


@pytest.mark.skipif(not CAN_FORK, reason="forks")
def test_processes_with_other_flags_than_each_other_are_refused(tmp_path):
    words = [["--quick", "--epochs", epochs] for epochs in "12"]
    (code, said), (other_code, echo) = run_together(tmp_path, search.main, words)
    assert said == (
        "search.py: process 1 was started with other flags than process 0: --epochs is 2 there and "
        "1 here; start all with the same command\n"
    )
    assert (code, other_code) == (2, 2)
    assert echo == said.replace("search.py: ", "search.py: process 1: ", 1)  # nobody ended it
    assert os.listdir(tmp_path) == []
