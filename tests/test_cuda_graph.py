"""Recording a step: buffers, fallback and, with a stand-in for the recorder, equal results.

What a CUDA graph itself does is torch's business: the tests marked `card` run where there is one.
"""

import contextlib
import itertools
from types import SimpleNamespace

import pytest
import torch
from conftest import FAST_AUGMENT, FAST_SEARCH, checkpoint_of, equal

import augment
import genotypes as gt
import search
from comparing import training
from config import CompareConfig
from data_sets import loaders
from data_sets.options import DataOptions
from devices import cuda_graph, pick


def stand_in(log):
    """As cuda_graph.record: computes nothing when it records, and the inputs of a replay are those
    buffers whatever batch the caller holds."""

    def record(step, inputs):
        log.append("record")

        def replay():
            log.append("replay")
            return step(*inputs)

        return replay

    return record


def test_the_first_call_runs_the_second_records_all_others_replay(monkeypatch):
    log, seen = [], []
    monkeypatch.setattr(cuda_graph, "record", stand_in(log))

    def step(X, y):
        seen.append((X.tolist(), X.data_ptr()))
        return X + y, y

    graphed = cuda_graph.Graphed(step, pytest.fail)
    batches = [(torch.full((2,), float(i)), torch.ones(2)) for i in range(4)]
    results = [graphed(*batch)[0].tolist() for batch in batches]
    assert log == ["record", "replay", "replay", "replay"]
    assert results == [[i + 1.0] * 2 for i in range(4)]
    assert [values for values, _ in seen] == [batch[0].tolist() for batch in batches]
    assert len({address for _, address in seen[1:]}) == 1  # fixed buffers
    assert all(batch[0].tolist() == [i] * 2 for i, batch in enumerate(batches))

    # another shape cannot go into the buffers
    assert graphed(torch.zeros(3), torch.ones(3))[0].tolist() == [1.0] * 3
    assert log.count("replay") == 3


def test_what_cannot_be_recorded_runs_and_says_why_once(monkeypatch):
    def refuse(step, inputs):
        step(*inputs)
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(cuda_graph, "record", refuse)
    warnings = []
    graphed = cuda_graph.Graphed(lambda X: (X + 1,), warnings.append)
    results = [graphed(torch.full((2,), float(i)))[0].tolist() for i in range(4)]
    assert results == [[i + 1.0] * 2 for i in range(4)]
    assert len(warnings) == 1
    assert warnings[0].endswith("(operation not permitted when stream is capturing more)")


@pytest.mark.parametrize("fails", [False, True])
def test_a_generator_draws_on_behind_a_recording_that_failed(fails, monkeypatch):
    """With stand-ins: torch's generator counts as recording until a recording ends well."""
    events, on_card = [], SimpleNamespace(is_cuda=True)

    class Generator:
        def clone_state(self):
            return "as it was"

        def graphsafe_set_state(self, state):
            events.append(state)

    def step(X):
        if fails:
            raise RuntimeError("operation not permitted when stream is capturing")
        return X

    nothing = contextlib.nullcontext
    for name, value in (
        ("CUDAGraph", lambda: SimpleNamespace(replay=lambda: events.append("replay"))),
        ("default_generators", [Generator()]),
        ("current_device", lambda: 0),
        ("current_stream", lambda: None),
        ("stream", lambda stream: nothing()),
        ("graph", lambda graph, capture_error_mode: nothing()),
    ):
        monkeypatch.setattr(torch.cuda, name, value)
    if fails:
        with pytest.raises(RuntimeError, match="not permitted"):
            cuda_graph.record(step, [on_card])
    else:
        assert cuda_graph.record(step, [on_card])() == on_card
    assert events == (["as it was"] if fails else ["replay"])


def test_a_step_on_a_cpu_is_not_recorded():
    """On a machine with a card nothing else would say so: the graph would be empty."""
    warnings, seen = [], []
    graphed = cuda_graph.Graphed(lambda X: seen.append(X.tolist()) or (X,), warnings.append)
    for i in range(3):
        graphed(torch.full((1,), float(i)))
    assert seen == [[0.0], [1.0], [2.0]]
    assert ["the batch is not on a CUDA card" in text for text in warnings] == [True]


@pytest.mark.parametrize("script", [search, augment])
def test_a_run_is_the_same_with_graphs(script, here, monkeypatch):
    log = []
    monkeypatch.setattr(cuda_graph, "record", stand_in(log))
    words = {search: FAST_SEARCH, augment: [*FAST_AUGMENT, "--genotype", "DARTS_V2"]}[script]
    off = script.main([*words, "--epochs", "2"])
    assert not log
    on = script.main([*words, "--epochs", "2", "--cuda_graphs"])
    assert log == ["record", "replay"] * 2  # two steps an epoch; its learning rate is recorded
    assert equal(checkpoint_of(off)["model"], checkpoint_of(on)["model"])


@pytest.mark.parametrize("drop_path", [0.0, 0.5])
def test_a_training_in_memory_is_the_same_with_graphs(drop_path, monkeypatch):
    """A candidate of a comparison: recorded once; with drop path, which grows, once an epoch."""
    log = []
    monkeypatch.setattr(cuda_graph, "record", stand_in(log))
    options = DataOptions.from_config(CompareConfig(["DARTS_V2", "--subset", "0.2", "--seed", "1"]))
    recipe = training.Recipe(epochs=2, layers=3, init_channels=2, drop_path_prob=drop_path)
    scores = {}
    for graphs in (False, True):
        device = pick.Device(torch.device("cpu"), graphs=graphs)
        data = loaders.search_data(options)
        scores[graphs] = training.train(gt.PUBLISHED["DARTS_V2"], data, recipe, 3, device)
        assert bool(log) is graphs
    for score in itertools.chain(*scores.values()):
        del score["seconds"]
    assert scores[True] == scores[False]
    assert log.count("record") == (3 if drop_path else 2)  # of training and of scoring


@pytest.mark.card
def test_a_search_step_on_a_card_is_the_same_with_graphs(here, capsys):
    words = [*FAST_SEARCH, "--no-tf32"]
    off, on = (checkpoint_of(search.main([*words, *more])) for more in ([], ["--cuda_graphs"]))
    assert "cannot be recorded" not in capsys.readouterr().out
    for key, value in off["model"].items():
        torch.testing.assert_close(value, on["model"][key], rtol=1e-2, atol=1e-3)


@pytest.mark.card
def test_a_training_on_a_card_is_the_same_with_graphs():
    options = DataOptions.from_config(CompareConfig(["DARTS_V2", "--subset", "0.2"]))
    recipe = training.Recipe(epochs=3, layers=3, init_channels=2, drop_path_prob=0.0)
    torch.backends.cudnn.allow_tf32 = False
    losses = []
    for graphs in (False, True):
        device = pick.Device(torch.device("cuda"), graphs=graphs)
        cell, data = gt.PUBLISHED["DARTS_V2"], loaders.search_data(options)
        losses.append([s["loss"] for s in training.train(cell, data, recipe, 3, device)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)
    assert len(set(losses[1])) == 3  # each epoch has its learning rate, and is scored


@pytest.mark.card
def test_what_a_card_cannot_record_runs_and_says_why_once():
    warnings, results = [], []
    graphed = cuda_graph.Graphed(lambda X: (X * X.sum().item(),), warnings.append)
    for i in range(4):
        results.append(graphed(torch.full((2,), float(i), device="cuda"))[0].tolist())
    assert results == [[2.0 * i * i] * 2 for i in range(4)]
    assert len(warnings) == 1
    torch.manual_seed(3)
    drawn = torch.rand(2, device="cuda").tolist()  # a failed recording would refuse
    torch.manual_seed(3)
    assert torch.rand(2, device="cuda").tolist() == drawn
