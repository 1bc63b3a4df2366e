"""The final network against published counts, and its auxiliary head and drop path."""

import itertools

import pytest
import torch
from torch import nn
from torchvision.ops import StochasticDepth

import genotypes as gt
import utils
from models.augment_cells import AugmentCell, edge_op
from models.augment_cnn import AugmentCNN, AuxiliaryHead
from models.ops import OPS

# counted on the official implementation: CIFAR form, C 36, 20 cells, 10 classes, 32x32
PUBLISHED_COUNTS = {
    "DARTS_V1": (3_169_414, 500_987_520),
    "DARTS_V2": (3_349_342, 528_359_040),
    "PC_DARTS_cifar": (3_634_678, 556_670_592),
    "PDARTS": (3_433_798, 532_174_464),
}


def network(size=8, genotype=gt.DARTS_V2, n_layers=3, C=4, auxiliary=True, **changes):
    torch.manual_seed(0)
    return AugmentCNN(size, 3, C, 10, n_layers, auxiliary, genotype, **changes)


def test_no_published_genotype_escapes_the_table():
    assert set(PUBLISHED_COUNTS) == set(gt.PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED_COUNTS)
def test_parameters_and_multiply_adds_of_the_official_implementation(name):
    net = network(32, gt.PUBLISHED[name], n_layers=20, C=36)
    params, multiply_adds = PUBLISHED_COUNTS[name]
    assert utils.count_params(net, auxiliary=False) == params
    assert utils.multiply_adds(net, 3, (32, 32)) == multiply_adds


def test_the_auxiliary_head_of_darts_v2_has_476426_parameters():
    net = network(32, n_layers=20, C=36)
    assert utils.count_params(net) - utils.count_params(net, auxiliary=False) == 476_426
    assert utils.count_params(net.aux_head) == 476_426


def test_the_auxiliary_pooling_is_the_official_one_on_8x8():
    pool = AuxiliaryHead((8, 8), 4, 10).net[1]
    x = torch.randn(1, 4, 8, 8)
    official = nn.AvgPool2d(5, stride=3, padding=0, count_include_pad=False)
    assert torch.equal(pool(x), official(x))


def test_the_auxiliary_pooling_leaves_2x2_of_any_map_and_reads_all_of_it():
    for side in range(1, 40):
        pool = AuxiliaryHead((side, 8), 1, 10).net[1]
        x = torch.ones(1, 1, side, 8, requires_grad=True)
        y = pool(x)
        assert y.shape == (1, 1, 2, 2)
        torch.testing.assert_close(y, torch.ones(1, 1, 2, 2))
        y.sum().backward()
        assert (x.grad > 0).all()


@pytest.mark.parametrize("size", [1, 2, 5, 16, 17, 48, 224, (7, 30)], ids=str)
def test_auxiliary_logits_for_small_large_and_oblong_images(size):
    # tests/test_stems.py takes whole steps at more sizes
    net = network(size, C=2).train()
    shape = (size, size) if isinstance(size, int) else size
    logits, aux_logits = net(torch.randn(2, 3, *shape))
    assert logits.shape == aux_logits.shape == (2, 10)


def test_auxiliary_logits_only_while_training():
    X = torch.randn(2, 3, 8, 8)
    net = network()
    assert net.eval()(X)[1] is None
    assert network(auxiliary=False).train()(X)[1] is None
    assert not hasattr(network(auxiliary=False), "aux_head")


@pytest.mark.parametrize("n_layers", [1, 2, 3, 5, 20])
def test_any_depth(n_layers):
    logits, aux_logits = network(n_layers=n_layers, C=2).train()(torch.randn(2, 3, 8, 8))
    assert logits.shape == aux_logits.shape == (2, 10)


def test_the_concat_list_decides_the_output():
    genotype = gt.DARTS_V2._replace(normal_concat=[3, 5], reduce_concat=[2])
    cell = AugmentCell(genotype, 6, 6, 4, reduction_p=False, reduction=False)
    assert cell.C_out == 8
    assert cell(torch.randn(2, 6, 8, 8), torch.randn(2, 6, 8, 8)).shape == (2, 8, 8, 8)
    assert network(genotype=genotype)(torch.randn(2, 3, 8, 8))[0].shape == (2, 10)


def test_forward_equals_the_genotype_word_by_word():
    cell = AugmentCell(gt.DARTS_V2, 4, 4, 4, reduction_p=False, reduction=False).double()
    s0, s1 = torch.randn(2, 2, 4, 8, 8, dtype=torch.float64)
    state = {0: cell.preproc0(s0), 1: cell.preproc1(s1)}
    ops = cell.dag
    state[2] = ops[0][0](state[0]) + ops[0][1](state[1])
    state[3] = ops[1][0](state[0]) + ops[1][1](state[1])
    state[4] = ops[2][0](state[1]) + state[0]
    state[5] = state[0] + ops[3][1](state[2])
    wanted = torch.cat([state[j] for j in (2, 3, 4, 5)], dim=1)
    torch.testing.assert_close(cell(s0, s1), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_genotypes_of_any_shape_train(seed):
    primitives = gt.PRESETS["all"]
    genotype = gt.random_genotype(seed, primitives, n_nodes=seed + 1, k=1 + seed % 3)
    net = network(9, genotype).train()
    net.drop_path_prob(0.3)
    logits, aux_logits = net(torch.randn(2, 3, 9, 9))
    (logits.sum() + aux_logits.sum()).backward()
    grads = [p.grad for p in net.parameters() if p.grad is not None]  # k = 1 may leave an input
    assert len(grads) > 10
    assert all(grad.isfinite().all() for grad in grads)


def test_an_unknown_op_is_named():
    genotype = gt.Genotype([[("nope", 0)]], [2], [[("skip_connect", 0)]], [2])
    with pytest.raises(ValueError, match="normal, node 2: unknown op 'nope'; known: avg_pool"):
        network(genotype=genotype)


def test_norms_have_a_scale_and_pooling_has_no_norm():
    net = network(genotype=gt.DARTS_V1)
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(norm.affine for norm in norms)
    pools = [m for cell in net.cells for m in cell.dag.modules() if isinstance(m, nn.MaxPool2d)]
    assert pools


# --- drop path ----------------------------------------------------------------------------------


def test_drop_path_spares_the_identity_and_nothing_else():
    spared = []
    for name, stride in itertools.product(OPS, (1, 2)):
        drops = [m for m in edge_op(name, 4, stride).modules() if isinstance(m, StochasticDepth)]
        assert len(drops) <= 1
        spared += [] if drops else [(name, stride)]
    assert spared == [("skip_connect", 1)]


def test_the_auxiliary_head_reads_the_cell_at_two_thirds():
    net = network(n_layers=8, C=2).train()
    outputs, read = [], []
    for cell in net.cells:
        cell.register_forward_hook(lambda _, args, out: outputs.append(out))
    net.aux_head.register_forward_pre_hook(lambda _, args: read.append(args[0]))
    net(torch.randn(2, 3, 8, 8))
    assert read[0] is outputs[5]  # 2 * 8 // 3


def test_drop_path_is_per_sample_and_keeps_the_mean():
    torch.manual_seed(0)
    net = network()
    net.drop_path_prob(0.25)
    drop = next(m for m in net.modules() if isinstance(m, StochasticDepth))
    drop.train()
    x = torch.ones(4000, 2, 3, 3)
    y = drop(x)
    per_sample = y.flatten(1)
    assert (per_sample == per_sample[:, :1]).all()  # a sample goes as a whole
    kept = per_sample[:, 0][per_sample[:, 0] != 0]
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / 0.75))
    assert y.mean().item() == pytest.approx(1, abs=0.05)
    assert torch.equal(x, torch.ones_like(x))  # out of place
    assert torch.equal(drop.eval()(x), x)


def test_drop_path_of_probability_zero_changes_nothing():
    net = network().train()
    X = torch.randn(4, 3, 8, 8)
    before = net(X)[0]
    net.drop_path_prob(0.0)
    torch.testing.assert_close(net(X)[0], before)
    net.drop_path_prob(0.5)
    assert not torch.allclose(net(X)[0], before)


# --- counts -------------------------------------------------------------------------------------


class Wrapper(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module


def test_counts_are_the_same_with_a_wrapper_around_the_network():
    net = network()
    for auxiliary in (True, False):
        assert utils.count_params(Wrapper(net), auxiliary) == utils.count_params(net, auxiliary)
    assert utils.count_params(net) == sum(p.numel() for p in net.parameters())


def test_counting_keeps_the_mode():
    for training in (True, False):
        net = network().train(training)
        utils.multiply_adds.__wrapped__(net, 3, (8, 8))  # conftest counts equal networks once
        assert net.training == training


def test_multiply_adds_of_a_convolution_and_a_classifier():
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)
    )
    assert utils.multiply_adds(net, 3, (6, 5)) == 6 * 5 * 8 * 3 * 9 + 80


def test_export_gives_the_same_logits():
    class Logits(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, X):
            return self.net(X)[0]

    net = Logits(network().eval()).eval()
    X = torch.randn(2, 3, 8, 8)
    exported = torch.export.export(net, (X,)).module()
    torch.testing.assert_close(exported(X), net(X))
