"""The supernet: its size, its alphas, and its forward pass against a slow reference."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import genotypes as gt
from models import reference
from models.fan import Fan
from models.search_cnn import SearchCNN, SearchCNNController


def supernet(**changes):
    torch.manual_seed(0)
    sizes = {"C_in": 3, "C": 4, "n_classes": 5, "n_layers": 3, **changes}
    return SearchCNNController(criterion=F.cross_entropy, **sizes)


def test_the_papers_supernet_has_1930618_weights():
    net = SearchCNNController(3, 16, 10, 8, F.cross_entropy)
    assert sum(w.numel() for w in net.weights()) == 1_930_618
    assert sum(a.numel() for a in net.alphas()) == 2 * 14 * 8


def test_weights_and_alphas_are_disjoint_and_all():
    net = supernet()
    weights, alphas = set(map(id, net.weights())), set(map(id, net.alphas()))
    assert not weights & alphas
    assert weights | alphas == set(map(id, net.parameters()))
    assert [p for _, p in net.named_alphas()] == net.alphas()
    assert [id(p) for _, p in net.named_weights()] == [id(p) for p in net.weights()]


def test_a_step_of_one_optimizer_leaves_the_other_parameters_alone():
    net = supernet()
    X, y = torch.randn(4, 3, 8, 8), torch.randint(5, (4,))
    for moving, still in ((net.weights(), net.alphas()), (net.alphas(), net.weights())):
        before = [p.detach().clone() for p in still]
        net.zero_grad()
        net.loss(X, y).backward()
        torch.optim.Adam(moving, 0.1).step()
        assert all(torch.equal(p, b) for p, b in zip(still, before, strict=True))


def test_alphas_start_as_small_noise():
    net = supernet(n_nodes=4)
    values = torch.cat([a.flatten() for a in net.alphas()])
    assert values.std().item() == pytest.approx(1e-3, rel=0.15)
    assert abs(values.mean().item()) < 3e-4


@pytest.mark.parametrize("n_layers", [1, 2, 3, 8])
def test_the_number_of_alphas_does_not_depend_on_the_depth(n_layers):
    net = supernet(n_layers=n_layers)
    assert [tuple(a.shape) for a in net.alphas()] == 2 * [(2, 8), (3, 8), (4, 8), (5, 8)]
    kinds = [cell.reduction for cell in net.net.cells]
    assert kinds == [i in (n_layers // 3, 2 * n_layers // 3) for i in range(n_layers)]


def test_every_edge_is_mixed_with_weights_that_sum_to_one():
    net = supernet()
    seen = []
    for module in net.modules():
        if isinstance(module, Fan):
            module.register_forward_pre_hook(lambda _, args: seen.extend(args[1]))
    net(torch.randn(2, 3, 8, 8))
    assert len(seen) == 3 * 14
    for weights in seen:
        assert (weights >= 0).all()
        assert weights.sum().item() == pytest.approx(1, abs=1e-6)


def slow_forward(net, X):
    """Sec. 2.1 and 2.2 with nothing but sums over nodes, edges and ops."""
    s0, s1 = net.net.stem(X)
    for cell in net.net.cells:
        alphas = net.alpha_reduce if cell.reduction else net.alpha_normal
        states = {0: cell.preproc0(s0), 1: cell.preproc1(s1)}
        for node in range(2, net.n_nodes + 2):
            total = 0
            for j in range(node):
                row = alphas[node - 2][j]
                denominator = sum(math.exp(a) for a in row.tolist())
                for o in range(len(net.primitives)):
                    share = math.exp(row[o].item()) / denominator
                    total = total + share * cell.dag[node - 2][j].ops[o](states[j])
            states[node] = total
        s0, s1 = s1, torch.cat([states[n] for n in range(2, net.n_nodes + 2)], dim=1)
    return net.net.linear(s1.mean((2, 3)))


@pytest.mark.parametrize("n_nodes", [1, 2, 4])
@pytest.mark.parametrize("primitives", [gt.PRIMITIVES, gt.PRESETS["efficient"], ["skip_connect"]])
def test_forward_of_the_per_edge_form_equals_the_slow_reference(monkeypatch, n_nodes, primitives):
    # the form of models/reference.py; tests/test_wide.py holds the wide form against that
    monkeypatch.setattr(SearchCNN, "Cell", reference.PerEdgeCell)
    net = supernet(n_nodes=n_nodes, primitives=primitives).double()
    with torch.no_grad():
        for alpha in net.alphas():
            alpha.normal_()
        X = torch.randn(3, 3, 9, 8, dtype=torch.float64)
        torch.testing.assert_close(net(X), slow_forward(net, X), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("n_nodes", [2, 3, 4, 5])
def test_cells_of_any_number_of_nodes_and_tiny_images(n_nodes):
    net = supernet(n_nodes=n_nodes, C=2).train()
    for size in ((1, 1), (8, 9)):  # tests/test_stems.py takes steps at more sizes
        loss = net.loss(torch.randn(4, 3, *size), torch.randint(5, (4,)))
        loss.backward()
        assert loss.isfinite()


def test_norms_in_the_cells_carry_no_scale():
    net = supernet(primitives=gt.PRESETS["all"])
    norms = [m for m in net.net.cells.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) > 50
    assert not any(norm.affine for norm in norms)
    assert net.net.stem[1].affine


@pytest.mark.parametrize(
    "primitives",
    [["skip_connect", "sep_conv_3x3"], ["none", "skip_connect", "sep_conv_3x3"],
     ["sep_conv_3x3", "none", "skip_connect"]],
)  # fmt: skip
def test_none_may_stand_anywhere_or_be_absent(primitives):
    net = supernet(primitives=primitives)
    net.loss(torch.randn(4, 3, 8, 8), torch.randint(5, (4,))).backward()
    with torch.no_grad():
        for alpha in net.alphas():
            alpha.zero_()
            alpha[:, primitives.index("sep_conv_3x3")] = 1
            if "none" in primitives:
                alpha[:, primitives.index("none")] = 2
    genotype = net.genotype()
    assert {op for edges in genotype.normal for op, _ in edges} == {"sep_conv_3x3"}
    assert genotype.normal_concat == [2, 3, 4, 5]


def test_unknown_primitives_are_named_when_the_supernet_is_built():
    with pytest.raises(ValueError, match="unknown op sepconv; known: none, avg_pool_3x3"):
        supernet(primitives=["sepconv", "none"])


def test_a_checkpoint_holds_the_alphas():
    net, twin = supernet(), supernet()
    with torch.no_grad():
        for alpha in net.alphas():
            alpha.normal_()
    twin.load_state_dict(net.state_dict())
    assert twin.genotype() == net.genotype()
    assert all(torch.equal(a, b) for a, b in zip(twin.alphas(), net.alphas(), strict=True))


def test_the_stem_multiplier_sets_the_width_of_the_stem():
    assert supernet(stem_multiplier=1).net.stem[0].out_channels == 4
    assert supernet().net.stem[0].out_channels == 12
