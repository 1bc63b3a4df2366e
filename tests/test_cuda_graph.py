"""Recording a step: buffers, fallback and, with a stand-in for the recorder, equal results.

What a CUDA graph itself does is torch's business and needs a card: the last test runs where one is.
"""

import pytest
import torch
from conftest import FAST_AUGMENT, FAST_SEARCH, checkpoint_of, equal

import augment
import search
from devices import cuda_graph


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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card")
def test_a_search_step_on_a_card_is_the_same_with_graphs(here, capsys):
    words = [*FAST_SEARCH, "--no-tf32"]
    off, on = (checkpoint_of(search.main([*words, *more])) for more in ([], ["--cuda_graphs"]))
    assert "cannot be recorded" not in capsys.readouterr().out
    for key, value in off["model"].items():
        torch.testing.assert_close(value, on["model"][key], rtol=1e-2, atol=1e-3)
