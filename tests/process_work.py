"""What the processes of test_processes.py compute. Imports little: each of them has to,
where they are not forked."""

import time
import warnings
from datetime import timedelta

import torch
import torch.nn.functional as F
from alpha_gradient import XI, batches, supernet, trained_sgd
from torch.distributed import distributed_c10d

import utils
from architect import HESSIANS, Architect
from devices.parts import Parts
from devices.pick import Device
from models import sync_norm
from strategies.eigenvalue import dominant_eigenvalue

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
    ("float32", "forward", False, False),
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


def eigenvalue(group=None, n=1):
    """The dominant eigenvalue in alpha on the batch of alpha, BatchNorm over all of it."""
    net, _, (_, _, X, y) = problem(torch.float64)
    if group is None:
        return dominant_eigenvalue(net, X, y)
    sync_norm.synchronise(net, group)
    return dominant_eigenvalue(net, *share(group, (X, y)), Parts(n, group))


def scores(group):
    """What `utils.evaluate` finds, image by image too."""
    logits, y = answers_to_score()
    device = Device(torch.device("cpu"), group=group)
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
        "eigenvalue": eigenvalue(group),
        "most": group.most(group.rank, 5, -group.rank),
        "gathered": group.gather(group.rank),
        "from main": group.from_main(lambda: group.rank),
    }


def work_of_three(group):
    """The least that shows that nothing counts on two."""
    return {"gradients": alpha_gradient(CASES[-1], group), "scores": scores(group)}


def lose(group):
    """Process 1 says nothing for longer than the others wait; what they are told then."""
    # shorter only from here on: on a busy machine the processes take longer to come together
    group.minutes = 0.05
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its new name is not in every torch that we allow
        distributed_c10d._set_pg_timeout(timedelta(minutes=group.minutes))
    if group.rank == 1:
        time.sleep(60 * group.minutes + 2)
        return ""
    try:
        group.most(1)
    except ConnectionError as error:
        return str(error)
