"""Partial channels with edge normalisation (PC-DARTS), and the auxiliary skip (DARTS-)."""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from alpha_gradient import batches, exact, relative_error, smooth, supernet, trained_sgd
from conftest import FAST_SEARCH, checkpoint_of, ends_in_one_line, lines, log_of
from hypothesis import given, settings
from hypothesis import strategies as st

import genotypes as gt
import plot_alphas
import search
from architect import Architect
from config import SearchConfig
from models import memory, ops
from models.fan import Fan
from records import alphas

XI = 0.05


# --- partial channels ---------------------------------------------------------------------------


def test_one_part_is_darts_bit_for_bit():
    """The same parameters in the same order, drawn from the same random numbers."""
    plain, net = supernet(), supernet(partial_channels=1, auxiliary_skip=False)
    a, b = plain.state_dict(), net.state_dict()
    assert list(a) == list(b)
    assert not [name for name in b if "beta" in name]
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert net.edge_weights() == {}
    X = batches()[0]
    mix = [
        [F.softmax(alpha, -1) for alpha in table] for table in (net.alpha_normal, net.alpha_reduce)
    ]
    assert torch.equal(net(X), plain.net(X, *mix))


@pytest.mark.parametrize("K", [1, 2, 4])
def test_the_ops_have_the_weights_of_one_channel_in_k(K):
    C, n_nodes = 8, 3
    net = supernet(C=C, n_nodes=n_nodes, n_layers=4, partial_channels=K)
    wanted = 0
    for cell, width in zip(net.net.cells, (8, 16, 32, 32), strict=True):
        for edge in [(i, j) for i in range(n_nodes) for j in range(i + 2)]:
            stride = 2 if cell.reduction and edge[1] < 2 else 1
            for name in gt.PRIMITIVES:
                op = ops.OPS[name](width // K, stride, affine=False)
                wanted += sum(p.numel() for p in op.parameters())
    assert sum(p.numel() for n, p in net.named_weights() if ".fans." in n) == wanted
    n_edges = 2 + 3 + 4
    assert sum(a.numel() for a in net.alphas()) == 2 * n_edges * (8 + (K > 1))
    assert [tuple(b.shape) for n, b in net.named_alphas() if n.startswith("beta")] == (
        2 * [(2,), (3,), (4,)] if K > 1 else []
    )


def test_the_edge_weights_are_shares_of_a_node():
    net = supernet(n_nodes=3, partial_channels=2)
    with torch.no_grad():
        for _, beta in net.named_alphas():
            beta.normal_()
    for cell, betas in (("normal", net.beta_normal), ("reduce", net.beta_reduce)):
        for weights, beta in zip(net.edge_weights()[cell], betas, strict=True):
            assert weights.tolist() == pytest.approx(gt.softmax(beta.tolist()))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("C", "groups"), [(6, 2), (6, 3), (8, 4)])
def test_shuffled_channels_alternate_between_the_groups_and_keep_the_layout(
    memory_format, C, groups
):
    x = torch.arange(float(C)).view(1, C, 1, 1).expand(2, C, 5, 4)
    y = ops.shuffle(x.contiguous(memory_format=memory_format), groups)
    wanted = [g * (C // groups) + c for c in range(C // groups) for g in range(groups)]
    assert y[1, :, 3, 2].tolist() == wanted
    assert y.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("size", [(4, 4), (5, 7), (1, 1)])
def test_what_bypasses_the_ops_has_the_size_of_what_goes_through(size):
    x = torch.randn(2, 3, *size)
    for stride in (1, 2):
        wanted = ops.OPS["max_pool_3x3"](3, stride, affine=False)(x).shape
        assert ops.bypass(x, stride).shape == wanted
    assert ops.bypass(x, 2)[0, 0, 0, 0] == x[0, 0, :2, :2].max()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 3))
def test_edges_are_ranked_by_edge_weight_times_op(seed, k):
    """Against every subset of k edges of each node."""
    torch.manual_seed(seed)
    alphas = [torch.randn(n, 8) for n in (2, 3, 4)]
    betas = [F.softmax(torch.randn(n), -1) for n in (2, 3, 4)]
    real = len(gt.PRIMITIVES) - 1  # "none" is the last
    gene = []
    for alpha, beta in zip(alphas, betas, strict=True):
        strength = (F.softmax(alpha.double(), -1)[:, :real].max(-1).values * beta.double()).tolist()
        subsets = itertools.combinations(range(len(strength)), min(k, len(strength)))
        best = max(subsets, key=lambda subset: sum(strength[j] for j in subset))
        gene.append([(gt.PRIMITIVES[int(alpha[j, :real].argmax())], j) for j in best])
    assert gt.parse(alphas, k, edge_weights=betas) == gene


@pytest.mark.parametrize("max_skips", [None, 0, 1, 2])
def test_edge_weights_that_are_undecided_change_nothing(max_skips):
    """Nor which skip connection is the weakest: nodes of many inputs have small edge weights."""
    undecided = [[1 / n] * n for n in (2, 3, 4)]
    for seed in range(20):
        torch.manual_seed(seed)
        alphas = [torch.randn(n, 2) for n in (2, 3, 4)]
        words = {"primitives": ["skip_connect", "sep_conv_3x3"], "max_skips": max_skips}
        plain = gt.parse(alphas, **words)
        assert gt.parse(alphas, edge_weights=undecided, **words) == plain


def test_the_genotype_of_the_network_knows_the_edge_weights():
    net = supernet(n_nodes=3, partial_channels=2)
    for kept in ([0, 3], [1, 2]):  # the alphas are nearly equal
        with torch.no_grad():
            net.beta_reduce[2].copy_(torch.tensor([float(j in kept) for j in range(4)]))
        assert [j for _, j in net.genotype().reduce[2]] == kept


@pytest.mark.parametrize("changes", [{"partial_channels": 2}, {"auxiliary_skip": True}])
def test_the_gradient_of_all_architecture_parameters_is_exact(changes):
    net = smooth(supernet(**changes))
    net.fade_skip(2, 4)
    w_optim, data = trained_sgd(net), batches()
    wanted = exact(net, *data, XI, w_optim)
    Architect(net, "exact").unrolled_backward(*data, XI, w_optim)
    assert relative_error([a.grad for a in net.alphas()], wanted) < 1e-10
    if "partial_channels" in changes:
        betas = [a.grad for name, a in net.named_alphas() if name.startswith("beta")]
        assert all(grad.norm() > 0 for grad in betas)


# --- the auxiliary skip -------------------------------------------------------------------------


def with_skip(plain, n_layers=3):
    """The same network with an auxiliary skip on every edge."""
    net = supernet(auxiliary_skip=True, n_layers=n_layers)
    net.load_state_dict(plain.state_dict(), strict=False)
    return net


def test_at_factor_0_the_auxiliary_skip_is_darts():
    plain = supernet()
    net, data = with_skip(plain), batches()
    assert not torch.allclose(net(data[0]), plain(data[0]))
    net.fade_skip(7, 7)
    torch.testing.assert_close(net(data[0]), plain(data[0]), rtol=1e-12, atol=1e-12)
    gradients = []
    for one in (plain, net):
        Architect(one).unrolled_backward(*data, XI, trained_sgd(one, steps=0))
        gradients.append([a.grad for a in one.alphas()])
    assert relative_error(gradients[1], gradients[0]) < 1e-9


def test_the_auxiliary_skip_adds_its_factor_times_the_input_to_every_edge():
    torch.manual_seed(0)
    names = ["max_pool_3x3", "none"]
    fan = Fan(4, 1, 3, [*names, ops.AUXILIARY_SKIP]).double()
    plain = Fan(4, 1, 3, names).double()
    x, mix = torch.randn(2, 4, 5, 5, dtype=torch.float64), torch.rand(3, 2, dtype=torch.float64)
    found = fan(x, torch.cat([mix, torch.full_like(mix[:, :1], 0.3)], dim=1))
    for y, without in zip(found, plain(x, mix), strict=True):
        torch.testing.assert_close(y, without + 0.3 * x)


def test_at_stride_2_the_auxiliary_skip_has_weights_of_its_own():
    net = supernet(auxiliary_skip=True)
    for cell in net.net.cells:
        for fan, stride in zip(cell.fans, cell.strides, strict=True):
            weights = list(fan.ops[ops.AUXILIARY_SKIP].parameters())
            assert bool(weights) == (stride == 2)


def test_the_auxiliary_skip_is_no_choice():
    net = supernet(auxiliary_skip=True)
    plain = supernet()
    assert net.primitives == plain.primitives
    assert [a.shape for a in net.alphas()] == [a.shape for a in plain.alphas()]
    rows = [row for tables in net.mixing().values() for table in tables for row in table]
    assert all(len(row) == len(gt.PRIMITIVES) for row in rows)
    assert "skip_factor" not in net.state_dict()


def test_the_factor_falls_linearly_from_1_to_0():
    net = supernet(auxiliary_skip=True)
    factor = net.skip_factor
    seen = []
    for epoch in range(1, 6):
        net.fade_skip(epoch, 5)
        seen.append(net.skip_factor.item())
    assert seen == [1, 0.75, 0.5, 0.25, 0]
    assert net.skip_factor is factor  # in place


def test_copies_keep_what_they_are():
    net = supernet(auxiliary_skip=True, partial_channels=2)
    net.fade_skip(2, 5)
    twin = copy.deepcopy(net)
    assert torch.equal(net(batches()[0]), twin(batches()[0]))


# --- overrides ----------------------------------------------------------------------------------


@pytest.mark.parametrize("K", [1, 2])
def test_an_edge_can_be_given_other_mixing_weights_or_taken_away(K):
    net = supernet(partial_channels=K, auxiliary_skip=True)
    before = net.mixing()
    row = torch.zeros(8, dtype=torch.float64)
    row[3] = 1
    net.overrides = {("normal", 1, 2): row, ("reduce", 0, 1): None}
    mix, rows = net.mixing(), net._rows(net.mixing())
    assert torch.equal(mix["normal"][1][2], row)
    assert mix["reduce"][0][1].tolist() == [0] * 8
    assert rows["reduce"][0][1].tolist() == [0] * (9 + (K > 1))  # nothing at all passes there
    assert all((r != 0).any() for r in rows["reduce"][0][:1])
    assert torch.equal(mix["normal"][1][:2], before["normal"][1][:2])
    net.overrides = {}
    assert all(
        torch.equal(a, b) for c in before for a, b in zip(before[c], net.mixing()[c], strict=True)
    )


# --- the command --------------------------------------------------------------------------------


def test_a_search_with_both_records_and_resumes_them(here):
    words = [*FAST_SEARCH, "--init_channels", "4", "--epochs", "2", "--partial_channels", "2"]
    run = search.main([*words, "--auxiliary_skip", "--name", "s"])
    state = checkpoint_of(run)["model"]
    assert {name for name in state if name.startswith("beta")} == {
        f"beta_{cell}.{i}" for cell in ("normal", "reduce") for i in (0, 1)
    }
    first, last = lines(f"{run}/alphas.jsonl")
    assert (first["skip_factor"], last["skip_factor"]) == (1, 0)
    for cell in ("normal", "reduce"):
        shares = [gt.softmax(state[f"beta_{cell}.{i}"].tolist()) for i in (0, 1)]
        for found, wanted in zip(last["edge_weights"][cell], shares, strict=True):
            assert found == pytest.approx(wanted)
    text = log_of(run)
    assert "partial channels: 1 of 2" in text
    assert "auxiliary skip: factor 1.00" in text
    assert "auxiliary skip: factor 0.00" in text
    table = plot_alphas.table(last)
    assert "edge weight" in table.splitlines()[0]
    for edge in alphas.edges(last, "normal"):
        share = last["edge_weights"]["normal"][edge["node"]][edge["input"]]
        assert edge["edge_weight"] == share
        assert edge["strength"] == share * edge["weight"]
        assert f"{share:6.4f}" in table


def test_channels_that_cannot_be_shared_out_are_refused_with_those_that_can(here):
    for words, allowed in (
        (["--partial_channels", "3"], "--init_channels 16 it is one of 1, 2, 4, 8"),
        (["--init_channels", "6", "--partial_channels", "6"], "it is one of 1, 2, 3"),
        (["--auxiliary_skip", "--epochs", "1"], "take --epochs 2 or more"),
    ):
        assert allowed in ends_in_one_line(search.main, words)
    with pytest.raises(ValueError, match="3 partial channels do not divide 4 channels"):
        supernet(partial_channels=3)


def test_the_estimate_of_memory_knows_partial_channels_and_the_auxiliary_skip():
    def weights(*words):
        cfg = SearchConfig(["--init_channels", "8", "--layers", "3", *words])
        return memory.estimate(cfg, memory.supernet_cells(cfg), 3, (16, 16))

    plain, partial, skip = (
        weights(),
        weights("--partial_channels", "4"),
        weights("--auxiliary_skip"),
    )
    assert partial.weights < 0.5 * plain.weights
    assert partial.maps < 0.6 * plain.maps
    assert skip.weights > plain.weights
