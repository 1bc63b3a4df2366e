"""A run that is saved inside an epoch goes on from there to the result of the undisturbed run."""

import contextlib
import io
import os
import random
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import (
    CPU,
    FAST_AUGMENT,
    FAST_SEARCH,
    checkpoint_of,
    ends_in_one_line,
    equal,
    lines,
    log_of,
)
from data_helpers import keep_findings, options  # noqa: F401, a fixture

import augment
import evaluate
import export
import search
import utils
from data_sets import loaders, shuffled
from tracking.run import Run

SEARCH = [*FAST_SEARCH, "--batch_size", "16", "--epochs", "2"]  # four steps an epoch, as alpha
DROPOUT = ["--drop_path_prob", "0.4"]
AUGMENT = [*FAST_AUGMENT, "--genotype", "DARTS_V2", "--batch_size", "32", "--epochs", "2", *DROPOUT]
TIMES = {"seconds", "images_per_second", "wait_seconds", "loader_images_per_second",
         "step_images_per_second"}  # fmt: skip


# --- the batches --------------------------------------------------------------------------------


def batches_of(workers, passes=2, **changes):
    """All batches of so many passes over the digits' training half."""
    with contextlib.closing(_loader(workers, **changes)) as loader:
        return [batch for _ in range(passes) for batch in loader]


class _loader:
    """A training loader whose processes end with it."""

    def __init__(self, workers, **changes):
        self.loader = loaders.search_data(
            options(dataset="digits", subset=0.1, batch_size=16, workers=workers, **changes)
        ).train

    def __iter__(self):
        return iter(self.loader)

    def close(self):
        self.loader._iterator = None  # ends the processes


def test_batches_are_the_same_with_loader_processes_and_leave_the_generators_alone():
    before = torch.get_rng_state()
    here, there = batches_of(0), batches_of(2)
    assert equal(before, torch.get_rng_state())
    assert len(here) == len(there) == 8
    assert equal(here, there)
    first, second = here[:4], here[4:]
    assert not equal(first, second)  # each pass is shuffled and augmented anew
    assert not equal(here, batches_of(0, seed=9))


def test_both_halves_are_drawn_apart():
    data = loaders.search_data(options(dataset="digits", subset=0.1, batch_size=16, workers=0))
    draws = [next(iter(loader.batch_sampler)) for loader in (data.train, data.alpha)]
    assert draws[0][0] != draws[1][0]


def test_a_pass_shows_every_image_once():
    sampler = shuffled.ShuffledBatches(20, 5, [1])
    for sampler.n_pass in range(3):
        drawn = list(sampler)
        assert sorted(index for _, indices in drawn for index in indices) == list(range(20))
        assert len({seed for seed, _ in drawn}) == 4
    assert len(list(shuffled.ShuffledBatches(21, 5, [1]))) == 4  # full ones only


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("used", [0, 1, 3, 4, 6])
def test_a_loader_goes_on_where_another_was_left(workers, used):
    wanted = batches_of(0, passes=3)
    with contextlib.closing(_loader(0)) as left:
        endless = utils.endless(left.loader)
        assert equal([next(endless) for _ in range(used)], wanted[:used])
        state = left.loader.state_dict()
    with contextlib.closing(_loader(workers)) as again:
        again.loader.load_state_dict(state)
        endless = utils.endless(again.loader)
        assert equal([next(endless) for _ in range(12 - used)], wanted[used:])


# --- runs ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def stopped_at(script, moment, number=signal.SIGTERM):
    """Within, this process gets a signal at a moment of a run of `script`: (epoch, step), or
    (epoch, "val") for the middle of a validation."""
    epoch, step = moment
    validate, step_done, calls = script.validate, Run.step_done, []

    def after_step(run, *where):
        if where[:2] == moment:
            os.kill(os.getpid(), number)
        return step_done(run, *where)

    def while_validating(batches, *rest):
        def within():
            for batch in batches:
                yield batch
                if step == "val" and len(calls) == epoch:
                    os.kill(os.getpid(), number)

        calls.append(1)
        return validate(within(), *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(script, "validate", while_validating)
        patch.setattr(Run, "step_done", after_step)
        yield


def stop(script, words, moment, number=signal.SIGTERM):
    """script.main(words), stopped so; returns (exit code, its last line)."""
    with stopped_at(script, moment, number), contextlib.redirect_stderr(io.StringIO()) as err:
        with pytest.raises(SystemExit) as caught:
            script.main(list(words))
    (line,) = err.getvalue().splitlines()
    return caught.value.code, line


def same_result(straight, cut):
    """Both runs ended bit for bit alike: checkpoint and all numbers, but for times."""
    a, b = checkpoint_of(straight), checkpoint_of(cut)
    for key in set(a) - {"flags"}:
        assert equal(a[key], b[key]), key
    a, b = (
        [{k: v for k, v in r.items() if k not in TIMES} for r in lines(Path(run, "metrics.jsonl"))]
        for run in (straight, cut)
    )
    assert a == b
    for name in ("alphas.jsonl", "genotype.json", "genotype-last.json"):
        if Path(straight, name).exists():
            assert Path(straight, name).read_text() == Path(cut, name).read_text()


RUNS = {"search": (search, SEARCH, "searchs"), "augment": (augment, AUGMENT, "augments")}


@pytest.fixture(scope="module", params=RUNS)
def straight(request, tmp_path_factory):
    """(script, words, folder of runs, an undisturbed run)."""
    script, words, root = RUNS[request.param]
    folder = tmp_path_factory.mktemp("straight")
    with contextlib.chdir(folder), pytest.MonkeyPatch.context() as patch:
        patch.setattr("tracking.picture_schedule.Pictures._make", lambda *args: None)
        script.main([*words, "--name", "s"])
    return script, words, root, folder / root / "s"


MOMENTS = [(1, 1), (1, 3), (1, 4), (1, "val"), (2, 1), (2, 2), (2, "val")]


@pytest.mark.parametrize("moment", random.Random(12).sample(MOMENTS, 4))
def test_a_run_stopped_by_a_signal_goes_on_as_if_nothing_had_happened(here, straight, moment):
    script, words, root, undisturbed = straight
    code, line = stop(script, [*words, "--name", "cut"], moment)
    epoch, step = moment
    step = 4 if step == "val" else step
    assert code == 143
    text = f"stopped by SIGTERM after step {step} of epoch {epoch}; go on with "
    assert line.startswith(f"{script.__name__}.py: {text}")
    assert line.endswith(f"{script.__name__}.py --name cut --resume")
    assert log_of(f"{root}/cut").splitlines()[-1] == line.split(": ", 1)[1]
    state = checkpoint_of(f"{root}/cut")
    assert (state["epoch"], state["inside"]["epoch"]) == (epoch - 1, epoch)
    script.main(["--name", "cut", "--resume"])
    same_result(undisturbed, f"{root}/cut")


def test_a_run_stopped_at_every_step_gets_to_the_end(here, straight):
    script, words, root, undisturbed = straight
    for epoch in (1, 2):
        for step in (1, 2, 3, 4):
            again = ["--name", "cut", "--resume"] if (epoch, step) > (1, 1) else []
            stop(script, again or [*words, "--name", "cut"], (epoch, step))
    script.main(["--name", "cut", "--resume"])
    same_result(undisturbed, f"{root}/cut")


def test_a_run_killed_outright_goes_on_from_the_last_save_inside_the_epoch(here, straight):
    script, words, root, undisturbed = straight
    step_done = Run.step_done

    def killed(run, epoch, step, meter):
        if (epoch, step) == (2, 3):
            raise SystemExit(9)  # nothing is saved on the way out
        return step_done(run, epoch, step, meter)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "step_done", killed)
        with pytest.raises(SystemExit):
            script.main([*words, "--name", "cut", "--checkpoint_minutes", "1e-9"])
    assert checkpoint_of(f"{root}/cut")["inside"]["step"] == 2
    script.main(["--name", "cut", "--resume"])
    same_result(undisturbed, f"{root}/cut")


def test_loader_processes_change_nothing(here, straight):
    script, words, root, undisturbed = straight
    stop(script, [*words, "--name", "cut", "--workers", "2"], (2, 3))
    script.main(["--name", "cut", "--resume", "--workers", "2"])
    same_result(undisturbed, f"{root}/cut")


def test_minutes_between_two_saves(open_run, monkeypatch):
    clock, saves = [100.0], []
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    run = open_run(["--checkpoint_minutes", "2"])
    run.spec = loaders.named.spec("digits")
    monkeypatch.setattr(run.files, "save", lambda state, is_best: saves.append(state["inside"]))
    meter = utils.Meter(CPU)
    for step, seconds in enumerate([60, 59, 1, 60, 61, 0], start=1):
        clock[0] += seconds
        run.step_done(1, step, meter)
    assert [inside["step"] for inside in saves] == [3, 5]


def test_without_the_flag_nothing_is_saved_inside_an_epoch(open_run, monkeypatch):
    run = open_run()
    monkeypatch.setattr("time.monotonic", lambda: 1e9)
    run.step_done(1, 1, utils.Meter(CPU))
    assert not os.path.exists(run.files.file("checkpoint.pt"))


def test_a_loss_that_is_not_finite_is_never_saved(open_run, monkeypatch):
    run = open_run(["--checkpoint_minutes", "1e-9"])
    meter = utils.Meter(CPU)
    meter.add(torch.tensor(np.nan), torch.zeros(2, 3), torch.zeros(2, dtype=torch.long))
    with pytest.raises(FloatingPointError):
        run.step_done(1, 2, meter)
    assert not os.path.exists(run.files.file("checkpoint.pt"))


def test_a_meter_goes_on_with_its_sums():
    meter, other = utils.Meter(CPU), utils.Meter(CPU)
    batch = torch.tensor(0.5), torch.tensor([[0.0, 1.0]]), torch.tensor([1])
    meter.add(*batch)
    other.load_state_dict(meter.state_dict())
    for each in (meter, other):
        each.add(torch.tensor(1.5), *batch[1:])
    assert meter.means() == other.means() == {"loss": 1.0, "top1": 1.0, "top5": 1.0}


# --- a network that was saved inside an epoch ---------------------------------------------------


def test_a_network_saved_inside_an_epoch_is_scored_and_exported_as_what_it_is(here, capsys):
    stop(augment, [*AUGMENT, "--name", "a"], (1, 2))
    capsys.readouterr()
    assert len(evaluate.main(["augments/a"])) == 1  # there is no best.pt yet
    said = capsys.readouterr().out
    assert said.startswith("augments/a/checkpoint.pt, step 2 of epoch 1, digits test split: top1")
    assert "(training logged no score there)\n" in said
    export.main(["augments/a", "--format", "torchscript"])
    assert "(step 2 of epoch 1, no score there)" in capsys.readouterr().out


def test_a_flag_that_is_no_number_of_minutes(here):
    for value in ("-1", "nan", "x"):
        words = [*SEARCH, f"--checkpoint_minutes={value}"]
        assert "is not a number of 0 or more" in ends_in_one_line(search.main, words)
