"""Several processes compute what one does: gradients, weights, scores."""

import copy

import pytest
import torch
import torch.nn.functional as F
from alpha_gradient import XI, batches, relative_error, supernet, trained_sgd
from conftest import CPU
from process_helpers import in_processes

import utils
from architect import HESSIANS, Architect
from devices.parts import Parts
from models import sync_norm
from models.search_cnn import SearchCNNController

N = 7  # images of a batch: no number of processes divides it
OPS = ["sep_conv_3x3", "max_pool_3x3", "skip_connect", "none"]
WEIGHT = torch.tensor([0.5, 1.0, 2.0, 4.0, 0.1], dtype=torch.float64)  # of the classes


def problem(dtype, training=False, weighted=False):
    """A supernet, its SGD with momentum, and a total batch for w and for alpha."""
    net = supernet(dtype, C=2, primitives=OPS)
    sgd = trained_sgd(net, 1)
    net.train(training)
    if weighted:
        weight = WEIGHT.to(dtype)
        net.criterion = lambda logits, y: F.cross_entropy(logits, y, weight=weight)
    return net, sgd, batches(dtype, N)


def share(group, tensors):
    return [tensor[group.rank :: group.size] for tensor in tensors]


CASES = [
    *(("float64", hessian, False, False) for hessian in HESSIANS),
    *(("float32", hessian, False, False) for hessian in HESSIANS),
    ("float64", "forward", False, True),  # with weights of the classes
    ("float64", "difference", True, False),  # BatchNorm of the whole batch
    ("float64", "exact", True, True),
]


def alpha_gradient(case, group=None, n=1):
    """[alpha's gradient, w's, loss] by unrolled_backward, and by first order."""
    dtype, hessian, training, weighted = case
    net, sgd, data = problem(getattr(torch, dtype), training, weighted)
    words = {"class_weight": WEIGHT if weighted else None}
    if group is not None:
        data = share(group, data)
        words["group"] = group
        if training:
            sync_norm.synchronise(net, group)
    parts = Parts(n, **words)
    architect = Architect(net, hessian, reuse_gradient=True, parts=parts)
    loss, logits = architect.unrolled_backward(*data, XI, sgd)
    found = [*(a.grad for a in net.alphas()), *(w.grad for w in net.weights()), loss]
    buffers = [b.clone() for b in net.buffers()]
    architect.unrolled_backward(*data, 0.0, sgd)
    first = [a.grad.clone() for a in net.alphas()]
    sgd.zero_grad()
    loss, logits = parts.backward(architect._compute, *data[:2], net.weights())
    plain = [*(w.grad for w in net.weights()), loss]
    return {"second": found, "first": first, "w": plain, "buffers": buffers, "n": len(logits)}


def steps(group):
    """Weights and alphas after two search steps on local BatchNorm, whose statistics differ."""
    net, sgd, data = problem(torch.float32, training=True)
    data = share(group, data)
    adam = torch.optim.Adam(net.alphas(), 3e-4)
    parts = Parts(2, group)
    architect = Architect(net, "forward", reuse_gradient=False, parts=parts)
    for _ in range(2):
        architect.unrolled_backward(*data, XI, sgd)
        adam.step()
        sgd.zero_grad()
        parts.backward(architect._compute, *data[:2], net.weights())
        sgd.step()
    return {"state": net.state_dict(), "bytes": group.bytes}


def scores(group):
    """What `utils.evaluate` finds, image by image too."""
    logits, y = answers_to_score()
    device = CPU._replace(group=group)
    loader = [(X[group.rank :: group.size], t[group.rank :: group.size]) for X, t in
              zip(logits.split(10), y.split(10), strict=True)]  # fmt: skip
    answers = utils.Answers()
    found = utils.evaluate(lambda X: X, loader, device, answers)
    return {"scores": found, "lists": answers.lists()}


def answers_to_score():
    torch.manual_seed(5)
    return torch.randn(27, 5), torch.randint(5, (27,))


def work(group):
    return {
        "gradients": [alpha_gradient(case, group) for case in CASES],
        "accumulated": alpha_gradient(CASES[0], group, n=2),
        "steps": steps(group),
        "scores": scores(group),
        "most": group.most(group.rank, 5, -group.rank),
        "gathered": group.gather(group.rank),
        "from main": group.from_main(lambda: group.rank),
    }


@pytest.fixture(scope="module", params=[2, 3])
def together(request, tmp_path_factory):
    """What each process of 2 or 3 has found."""
    return in_processes(request.param, work, tmp_path_factory.mktemp("processes"))


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


@pytest.mark.parametrize(("i", "n"), [(0, 2), (1, 7), (2, 3), (3, 2), (8, 3)])
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
