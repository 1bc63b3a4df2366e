"""Blocks of every kind, and cells of every size, from search.py through augment.py."""

import copy
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import (
    FAST_AUGMENT,
    FAST_SEARCH,
    checkpoint_of,
    ends_in_one_line,
    lines,
    log_of,
    run_in,
    without_pictures,
)
from per_edge import edge_tensors
from torch import nn
from torchvision.ops import StochasticDepth

import augment
import evaluate
import genotypes as gt
import search
import utils
from architect import Architect
from models import ops
from models.augment_cnn import AugmentCNN
from models.fan import Fan
from models.search_cnn import SearchCNNController


def conv(C, stride, affine):
    return ops.StdConv(C, C, 3, stride, affine)


def frozen(C, stride, affine):
    block = conv(C, stride, affine)
    block[1].weight.requires_grad_(False)
    return block


class Unused(nn.Module):
    """Half of its weights take no part."""

    def __init__(self, C, stride, affine):
        super().__init__()
        self.used, self.spare = conv(C, stride, affine), conv(C, stride, affine)

    def forward(self, x):
        return self.used(x)


class Buffered(nn.Module):
    """A running mean of its own, subtracted; moved in training, in place."""

    def __init__(self, C, stride, affine):
        super().__init__()
        self.conv = conv(C, stride, affine)
        self.register_buffer("seen", torch.zeros(C))

    def forward(self, x):
        if self.training:
            with torch.no_grad():
                self.seen.mul_(0.9).add_(x.mean((0, 2, 3)), alpha=0.1)
        return self.conv(x - self.seen.view(1, -1, 1, 1))


class Scaled(nn.Module):
    """A ConvNeXt-like block: LayerNorm, GELU, and a learned scale per channel."""

    def __init__(self, C, stride, affine):
        super().__init__()
        self.conv = nn.Conv2d(C, C, 7, stride, 3, groups=C)
        self.norm = nn.GroupNorm(1, C, affine=affine)
        self.mlp = nn.Sequential(nn.Conv2d(C, 2 * C, 1), nn.GELU(), nn.Conv2d(2 * C, C, 1))
        self.scale = nn.Parameter(torch.full((C, 1, 1), 1e-2))
        self.stride = stride

    def forward(self, x):
        y = self.scale * self.mlp(self.norm(self.conv(x)))
        return x + y if self.stride == 1 else y


class Shuffled(nn.Module):
    """Channel shuffle, which torch.fx cannot widen."""

    def __init__(self, C, stride, affine):
        super().__init__()
        self.conv = conv(C, stride, affine)

    def forward(self, x):
        N, C, H, W = x.shape
        return self.conv(x.reshape(N, 2, C // 2, H, W).transpose(1, 2).reshape(N, C, H, W))


def around(*layers):
    """A block: the layers before None, the convolution in its place, the layers after."""

    def block(C, stride, affine):
        at = layers.index(None)
        own = copy.deepcopy(layers)
        return nn.Sequential(*own[:at], *conv(C, stride, affine), *own[at + 1 :])

    return block


BLOCKS = {
    "frozen": frozen,
    "all_frozen": lambda C, stride, affine: conv(C, stride, affine).requires_grad_(False),
    "unused": Unused,
    "ends_in_relu": around(None, nn.ReLU()),
    "ends_in_relu_in_place": around(None, nn.ReLU(inplace=True)),
    "ends_in_sigmoid": around(None, nn.Sigmoid()),
    "no_weights": lambda C, stride, affine: nn.Sequential(nn.MaxPool2d(3, stride, 1), nn.Tanh()),
    "dropout": around(None, nn.Dropout(0.2)),
    "dropout2d_inside": around(nn.Dropout2d(0.2), None),
    "buffered": Buffered,
    "scaled": Scaled,
    "shuffled": Shuffled,
}


@pytest.fixture
def blocks(monkeypatch):
    for name, block in BLOCKS.items():
        monkeypatch.setitem(ops.OPS, name, block)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folder of a search over all of BLOCKS, second order, and of a training of a cell made of all
    of them."""
    folder = tmp_path_factory.mktemp("blocks")
    with pytest.MonkeyPatch.context() as monkeypatch, without_pictures():
        for name, block in BLOCKS.items():
            monkeypatch.setitem(ops.OPS, name, block)
        words = ["--primitives", ",".join([*BLOCKS, "none"]), "--name", "s"]
        run_in(folder, search.main, [*FAST_SEARCH, *words])
        names = list(BLOCKS)
        nodes = [[(a, 0), (b, 1)] for a, b in zip(names[::2], names[1::2], strict=True)]
        concat = range(2, len(nodes) + 2)
        text = gt.to_json(gt.Genotype(nodes, concat, nodes, concat))
        Path(folder / "g.json").write_text(text, encoding="utf-8")
        words = ["--genotype", "g.json", "--drop_path_prob", "0.5", "--epochs", "2", "--name", "a"]
        run_in(folder, augment.main, [*FAST_AUGMENT, *words])
        run_in(folder, evaluate.main, ["augments/a"])
    return folder


def test_every_kind_of_block_is_searched_and_trained(trained, blocks):
    for run in ("searchs/s", "augments/a"):
        assert all(record["loss"] > 0 for record in lines(trained / run / "metrics.jsonl"))
    moved = checkpoint_of(trained / "searchs/s")["model"]["alpha_normal.0"]
    assert moved.shape == (2, len(BLOCKS) + 1)
    assert moved.isfinite().all()
    # the log says of each block that is not widened why
    said = log_of(trained / "searchs/s")
    for name in ("dropout", "dropout2d_inside", "buffered", "scaled", "shuffled"):
        assert f"{name} runs edge by edge, since its block " in said
    assert "scaled runs edge by edge, since its block reads its attribute scale" in said
    assert "ends_in_relu runs edge" not in said


def test_frozen_weights_stay_and_unused_ones_are_kept(trained, blocks):
    state = checkpoint_of(trained / "augments/a")
    flags, genotype = state["flags"], gt.load(trained / "g.json")
    utils.seed_everything(flags["seed"])
    net = AugmentCNN(8, 1, flags["init_channels"], 10, flags["layers"], True, genotype)
    start = net.state_dict()
    for name, parameter in net.named_parameters():
        same = torch.equal(start[name], state["model"][name])
        assert same or parameter.requires_grad, name
        if ".spare." in name:
            # without a gradient SGD leaves it alone
            assert same, name
    assert any(not p.requires_grad for p in net.parameters())


def test_blocks_with_buffers_and_dropout_keep_the_promises_of_the_architect(blocks):
    torch.manual_seed(0)
    net = SearchCNNController(1, 2, 10, 3, F.cross_entropy, 2, primitives=list(BLOCKS))
    sgd = torch.optim.SGD(net.weights(), 0.1)
    X, y = torch.randn(2, 8, 1, 8, 8), torch.randint(10, (2, 8))
    before = {name: t.clone() for name, t in net.state_dict().items()}
    Architect(net).unrolled_backward(X[0], y[0], X[1], y[1], 0.1, sgd)
    for name, tensor in net.state_dict().items():
        assert torch.equal(before[name], tensor), name
    # of all blocks, every alpha gets a gradient
    for alpha in net.alphas():
        assert alpha.grad.isfinite().all()
        assert alpha.grad.ne(0).all()


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("training", [True, False])
def test_the_wide_form_of_every_kind_of_block_equals_the_blocks(blocks, stride, training):
    names = [name for name in BLOCKS if "dropout" not in name or not training]
    torch.manual_seed(0)
    fan = Fan(4, stride, 3, names).train(training)
    edges = [ops.MixedOp(4, stride, names).train(training) for _ in range(3)]
    for e, edge in enumerate(edges):
        missing, unexpected = edge.load_state_dict(edge_tensors(fan, e, edge), strict=False)
        assert not unexpected
        assert all(".spare." in key for key in missing)
    x = torch.randn(4, 4, 7, 6)
    weights = torch.rand(3, len(names))
    for found, edge, row in zip(fan(x, weights), edges, weights, strict=True):
        torch.testing.assert_close(found, edge(x, row), rtol=1e-4, atol=1e-5)


def test_drop_path_drops_every_kind_of_block(blocks):
    names = list(BLOCKS)
    gene = [[(name, 0), (name, 1)] for name in names]
    concat = range(2, len(gene) + 2)
    net = AugmentCNN(8, 1, 2, 10, 3, False, gt.Genotype(gene, concat, gene, concat))
    net.drop_path_prob(0.999999)
    net.train()
    paths = [m for m in net.modules() if isinstance(m, StochasticDepth)]
    assert len(paths) == 3 * 2 * len(names)
    cell = net.cells[0]
    s = torch.randn(2, 6, 8, 8)
    torch.manual_seed(0)
    assert not cell(s, s).any()  # all edges dropped, whatever the block adds at its end
    logits, _ = net.eval()(torch.randn(2, 1, 8, 8))
    assert logits.isfinite().all()


# --- cells and networks of every size -----------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        "--n_nodes 1 --k 1",
        "--n_nodes 1 --k 2 --stem_multiplier 1",
        "--n_nodes 3 --k 4 --init_channels 3",
        "--n_nodes 2 --k 3 --layers 4 --stem_multiplier 5",
        "--n_nodes 4 --k 1 --init_channels 1 --order 1",
        "--layers 1",
        "--layers 2",
        "--layers 1 --order 1",
        "--layers 2 --order 1",
        "--primitives skip_connect",
        "--primitives skip_connect,none,max_pool_3x3",
        "--primitives none,skip_connect,sep_conv_3x3",
        "--primitives sep_conv_3x3,none,avg_pool_3x3",
        "--primitives max_pool_3x3,dil_conv_3x3",
        "--primitives efficient",
    ],
)
def test_every_combination_runs_from_search_through_augment(here, words):
    words = words.split()
    search.main([*FAST_SEARCH, "--name", "s", *words])
    state = checkpoint_of("searchs/s")
    flags = state["flags"]
    record = json.loads(Path("searchs/s/genotype.json").read_text())
    kept = {key: record[key] for key in ("n_nodes", "k", "primitives")}
    assert kept == {key: flags[key] for key in kept}
    assert (record["dataset"], record["size"]) == ("digits", [8, 8])
    if "--primitives" in words:
        assert flags["primitives"] == gt.PRESETS.get(words[1], words[1].split(","))
    assert state["model"]["alpha_normal.0"].shape == (2, len(flags["primitives"]))
    genotype = gt.load("searchs/s")
    for gene in (genotype.normal, genotype.reduce):
        assert [len(edges) for edges in gene] == [
            min(flags["k"], node) for node in range(2, flags["n_nodes"] + 2)
        ]
        assert all(op in flags["primitives"] and op != "none" for op in gt.count_ops(gene))
    assert ("the normal cell is not searched" in log_of("searchs/s")) == (flags["layers"] < 3)
    if flags["layers"] < 3:
        # Adam saw nothing but the weight decay of the normal cell
        seen = {i: s["exp_avg"].abs().max() for i, s in state["alpha_optim"]["state"].items()}
        assert 10 * max(seen[0], seen[1]) < min(seen[2], seen[3])

    augment.main([*FAST_AUGMENT, "--genotype", "searchs/s", "--name", "a"])
    state = checkpoint_of("augments/a")
    assert gt.from_str(state["genotype"]) == genotype
    assert state["model"]["stem.0.weight"].shape[0] == flags["stem_multiplier"] * 2
    assert state["model"]["linear.weight"].shape[1] == 8 * flags["n_nodes"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--k 0", "argument --k: '0' is not a whole number of 1 or more"),
        ("--k 6", "--k 6: with --n_nodes 4 no node has more than 5 inputs to keep; lower --k"),
        ("--k 3 --n_nodes 1", "no node has more than 2 inputs"),
        ("--stem_multiplier 0", "argument --stem_multiplier"),
        ("--n_nodes 0", "argument --n_nodes"),
        ("--primitives none", "at least one op besides 'none'"),
    ],
)
def test_what_makes_no_sense_is_refused_at_once(words, message, here):
    assert message in ends_in_one_line(search.main, words.split())
