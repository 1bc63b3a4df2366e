"""The check of blocks: right ones pass, and every mistake is named in words."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import TINY_AUGMENT, TINY_SEARCH
from torch import nn

import augment
import check_ops
import genotypes as gt
import search
from models import ops

ROOT = Path(__file__).parent.parent


class Block(nn.Module):
    """A right block, ReLU, 3x3 convolution, BatchNorm; subclasses do one thing wrong."""

    def __init__(self, C, stride, affine):
        super().__init__()
        self.C, self.stride = C, stride
        self.conv = nn.Conv2d(C, C, 3, stride, 1, bias=False)
        self.bn = nn.BatchNorm2d(C, affine=affine)

    def forward(self, x):
        return self.after(self.bn(self.conv(F.relu(self.before(x)))))

    def before(self, x):
        return x

    def after(self, x):
        return x


class MoreChannels(Block):
    def after(self, x):
        return torch.cat([x, x[:, :1]], dim=1)


class RoundsDown(Block):
    def __init__(self, C, stride, affine):
        super().__init__(C, stride, affine)
        self.conv = nn.Conv2d(C, C, stride, stride)


class KeepsSize(Block):
    def __init__(self, C, stride, affine):
        super().__init__(C, 1, affine)


class Flat(Block):
    def after(self, x):
        return x.flatten(1)


class ScaledNorm(Block):
    def __init__(self, C, stride, affine):
        super().__init__(C, stride, affine)
        self.bn = nn.BatchNorm2d(C)


class Detached(Block):
    def before(self, x):
        return x.detach()


class NoGrad(Block):
    def forward(self, x):
        with torch.no_grad():
            return super().forward(x)


class Rounded(Block):
    def before(self, x):
        return x.round()


class NotANumber(Block):
    def after(self, x):
        return x.log()


class NotANumberBackwards(Block):
    def before(self, x):
        return (x * 0).sqrt() + x


class InPlace(Block):
    def before(self, x):
        return F.relu_(x)


class Doubled(Block):
    def after(self, x):
        return x.double()


class DoubleWeights(Block):
    def __init__(self, C, stride, affine):
        super().__init__(C, stride, affine)
        self.double()


class Pair(Block):
    def after(self, x):
        return x, x


class Raises(Block):
    def before(self, x):
        raise IndexError("no such thing")


class RaisesOnSmallMaps(Block):
    def before(self, x):
        return F.conv2d(x, torch.ones(self.C, 1, 3, 3), groups=self.C)


class Viewed(Block):
    def before(self, x):
        return x.view(len(x), -1).view(x.shape) + 0


class Counts(Block):
    calls = 0

    def after(self, x):
        self.calls += 1
        return x * self.calls


class DropsWhenever(Block):
    def after(self, x):
        return F.dropout(x, 0.5)


class MixesTheBatch(Block):
    def __init__(self, C, stride, affine):
        super().__init__(C, stride, affine)
        self.bn = nn.BatchNorm2d(C, affine=affine, track_running_stats=False)


class MovesInEvaluation(Block):
    def __init__(self, C, stride, affine):
        super().__init__(C, stride, affine)
        self.register_buffer("seen", torch.zeros(()))

    def after(self, x):
        self.seen += 1
        return x


class ReplacesABuffer(MovesInEvaluation):
    def after(self, x):
        if self.training:
            self.seen = self.seen + 1
        return x


class RemembersTheMap(Block):
    def after(self, x):
        self.last = x
        return x


class InAList(Block):
    def __init__(self, C, stride, affine):
        super().__init__(C, stride, affine)
        self.more = [nn.Conv2d(C, C, 1)]

    def after(self, x):
        return self.more[0](x)


class InADict(KeepsSize):
    """The weights are named first, whatever else is wrong."""

    def __init__(self, C, stride, affine):
        super().__init__(C, stride, affine)
        self.more = {"a": (1, [nn.Conv2d(C, C, 1)])}


class ATensor(Block):
    def __init__(self, C, stride, affine):
        super().__init__(C, stride, affine)
        self.scale = torch.ones((), requires_grad=True)

    def after(self, x):
        return self.scale * x


class OnTheCpu(Block):
    def after(self, x):
        return x + torch.ones(1, self.C, 1, 1)


class ZeroWeights(Block):
    def __init__(self, C, stride, affine):
        super().__init__(C, stride, affine)
        self.sqrt = nn.Parameter(torch.zeros(()))

    def after(self, x):
        return x * self.sqrt.sqrt()


SHARED = Block(16, 1, False)

RAISED_AT = check_ops.place(__file__, Raises.before.__code__.co_firstlineno + 1)
WRONG = {
    MoreChannels: "returns 17 channels for 16",
    RoundsDown: "returns 3x3 pixels on maps of 7x6; stride 2 needs 4x3, rounded up",
    KeepsSize: "returns 7x6 pixels on maps of 7x6; stride 2 needs 4x3",
    Flat: "returns the shape (3, 672) on maps of 7x6, where (3, 16, 7, 6) is needed",
    ScaledNorm: "has a BatchNorm (bn) with affine=True; pass it the affine of the block",
    Detached: "passes no gradient to its input",
    NoGrad: "passes no gradient to its input",
    Rounded: "passes a gradient of zero to its input",
    NotANumber: "gives NaN or infinity on maps of 7x6",
    NotANumberBackwards: "gives its input a gradient that is NaN or infinite",
    InPlace: "changes its input in place",
    Doubled: "turns float32 into float64",
    DoubleWeights: "has its weight conv.weight in float64, not in float32",
    Pair: "returns a tuple, not one map",
    Raises: f"IndexError: no such thing ({RAISED_AT})",
    RaisesOnSmallMaps: "returns 5x4 pixels on maps of 7x6; stride 1 needs 7x6",
    Viewed: "fails on maps of 7x6: RuntimeError: view size is not compatible",
    Counts: "gives another result at the second call in evaluation mode",
    DropsWhenever: "gives another result at the second call in evaluation mode",
    MixesTheBatch: "mixes the images of a batch in evaluation mode",
    MovesInEvaluation: "changes a buffer in evaluation mode",
    ReplacesABuffer: "replaces its buffer seen; write into it instead",
    RemembersTheMap: "keeps the map of the last call in last",
    InAList: "holds weights that PyTorch does not see in",
    InADict: "holds weights that PyTorch does not see in more, so they are",
    ATensor: "holds weights that PyTorch does not see in scale, so they are",
    OnTheCpu: "makes a tensor on the CPU while it runs, which fails on a GPU",
    ZeroWeights: "gives sqrt a gradient that is NaN or infinite",
    "a module": (Block(16, 1, False), "is a Block in OPS; write lambda C, stride, affine: ..."),
    "no stride": (lambda C, affine: Block(C, 1, affine), "takes wrong arguments"),
    "another name": (lambda C, stride, norm: Block(C, stride, norm), "takes wrong arguments"),
    "a text": ("sep_conv_3x3", "is a str in OPS; write lambda C, stride, affine: ..."),
    "nothing": (lambda C, stride, affine: None, "gives a NoneType, not an nn.Module"),
    "a function": (lambda C, stride, affine: F.relu, "gives a function, not an nn.Module"),
    "one for all": (lambda C, stride, affine: SHARED, "gives the same weights at every call"),
    "lazy": (lambda C, stride, affine: nn.LazyConv2d(C, 3, stride, 1), "has a lazy layer"),
    "not built": (lambda C, stride, affine: nn.Conv2d(C, C, 0), "cannot be built: "),
}


@pytest.mark.parametrize("wrong", WRONG, ids=lambda w: w if isinstance(w, str) else w.__name__)
def test_what_a_wrong_block_does_wrong(wrong, monkeypatch):
    factory, message = WRONG[wrong] if isinstance(wrong, str) else (wrong, WRONG[wrong])
    monkeypatch.setitem(ops.OPS, "mine", factory)
    with pytest.raises(ValueError, match="the block mine") as caught:
        check_ops.quick(["skip_connect", "mine"], 16)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "check_ops.py mine says more" in str(caught.value)


class Frozen(Block):
    def __init__(self, C, stride, affine):
        super().__init__(C, stride, affine)
        self.conv.weight.requires_grad_(False)


class Unused(Block):
    def __init__(self, C, stride, affine):
        super().__init__(C, stride, affine)
        self.spare = nn.Conv2d(C, C, 1)


class StartsAtZero(Block):
    """A residual branch that starts at zero, as in ReZero: no gradient at first."""

    def __init__(self, C, stride, affine):
        super().__init__(C, stride, affine)
        self.scale = nn.Parameter(torch.zeros(()))

    def after(self, x):
        return self.scale * x


class ReadsValues(Block):
    """Control flow by the values of the map: nothing can trace it."""

    def after(self, x):
        return x if x.isfinite().all() else x.nan_to_num()


def no_weights(C, stride, affine):
    return nn.Sequential(nn.MaxPool2d(3, stride, 1), nn.Sigmoid())


@pytest.mark.parametrize("block", [Block, Frozen, Unused, StartsAtZero, ReadsValues, no_weights])
def test_unusual_blocks_are_right(block, monkeypatch):
    monkeypatch.setitem(ops.OPS, "mine", block)
    check_ops.quick(["mine"], 6)
    assert check_ops.faults_of("mine", [(3, 2, True)], check_ops.SIZES)[0] == {}


def test_remarks(monkeypatch):
    monkeypatch.setitem(ops.OPS, "frozen", Frozen)
    monkeypatch.setitem(ops.OPS, "unused", Unused)
    monkeypatch.setitem(
        ops.OPS, "group", lambda C, s, affine: nn.Sequential(nn.AvgPool2d(1, s, ceil_mode=True),
                                                             nn.GroupNorm(1, C)),
    )  # fmt: skip
    notes = {
        n: check_ops.faults_of(n, [(4, 1, False)], ((3, 3),)) for n in ("frozen", "unused", "group")
    }
    assert [faults for faults, _ in notes.values()] == [{}, {}, {}]
    assert notes["group"][1] == [
        "its GroupNorm has a scale in the supernet, where it competes with alpha"
    ]
    assert notes["frozen"][1] == ["frozen: conv.weight"]
    assert notes["unused"][1] == ["without a gradient, so never trained: spare.bias, spare.weight"]


@pytest.mark.parametrize(
    ("scale", "text"), [(1e-7, "1e-07 times"), (0.9, ""), (300, "3e+02 times")]
)
def test_an_output_of_another_scale_is_noted(monkeypatch, scale, text):
    class Scaled(Block):
        def after(self, x):
            return scale * x

    monkeypatch.setitem(ops.OPS, "mine", Scaled)
    faults, notes = check_ops.faults_of("mine", [(8, 1, False)], check_ops.SIZES)
    assert not faults
    assert len(notes) == bool(text)
    assert text in "".join(notes)


def test_wrong_numbers_of_channels_point_to_the_flag(monkeypatch, capsys):
    monkeypatch.setitem(
        ops.OPS, "grouped", lambda C, stride, affine: nn.Conv2d(C, C, 3, stride, 1, groups=4)
    )
    with pytest.raises(SystemExit):
        check_ops.main(["grouped"])
    out = capsys.readouterr().out
    assert "if it is meant for certain numbers of channels, say --channels 16)" in out
    check_ops.main(["grouped", "--channels", "16", "--threads", "1"])
    assert torch.get_num_threads() == 1
    doubling = lambda C, stride, affine: nn.Conv2d(C, 2 * C, 3, stride, 1)  # noqa: E731
    monkeypatch.setitem(ops.OPS, "doubling", doubling)
    with pytest.raises(SystemExit):
        check_ops.main(["doubling"])
    out = capsys.readouterr().out
    assert "returns 14 channels for 7" in out
    assert "say --channels" not in out  # no number of channels is right


def test_the_quick_part_tries_one_small_size_and_draws_nothing(monkeypatch):
    state, calls, check_op = torch.get_rng_state(), [], check_ops.check_op
    monkeypatch.setattr(check_ops, "check_op", lambda *args: calls.append(args) or check_op(*args))
    check_ops.quick(gt.PRIMITIVES, 16)
    assert torch.equal(state, torch.get_rng_state())
    assert {sizes for *_, sizes in calls} == {((7, 6),)}
    assert len(calls) == 7 * 8  # ops but none; 16 to 64 channels, both strides, affine on and off


# --- the command --------------------------------------------------------------------------------


def test_the_command_says_that_all_ops_are_right(capsys):
    check_ops.main(["--channels", "5"])
    out = capsys.readouterr().out
    rows = {(line.split()[0], line.split()[1]): line for line in out.splitlines()[3:-1]}
    assert set(rows) == {(name, stride) for name in ops.OPS for stride in "12"}
    # the counts by hand: a depthwise and a pointwise convolution, twice, at 32x32 pixels
    params, madds = rows["sep_conv_3x3", "1"].split()[2:4]
    assert int(params) == 2 * (5 * 9 + 5 * 5 + 2 * 5)
    assert float(madds) == pytest.approx(2 * (5 * 9 + 5 * 5) * 32 * 32 / 1e6, abs=0.005)
    assert all(float(x) > 0 for x in rows["sep_conv_3x3", "1"].split()[4:6])
    assert rows["sep_conv_3x3", "2"].endswith("wide")
    assert "left out" in rows["none", "1"]
    assert "16 blocks tried, all right: 5 channels" in out.splitlines()[-1]


def test_the_command_names_what_is_wrong(monkeypatch, capsys):
    monkeypatch.setitem(ops.OPS, "rounds_down", RoundsDown)
    monkeypatch.setitem(ops.OPS, "slices", lambda C, s, affine: nn.Sequential(
        Unused(C, s, affine), nn.Dropout(0.1)))  # fmt: skip
    with pytest.raises(SystemExit) as caught:
        check_ops.main(["rounds_down", "slices", "--channels", "4"])
    assert caught.value.code == 1
    out = capsys.readouterr().out
    assert "rounds_down  WRONG  returns" in out
    assert "stride 2 needs 4x3, rounded up (2 of 4: 4 channels, stride 2, affine off)" in out
    assert "edge by edge: holds a Dropout" in out
    assert "slices       note   without a gradient" in out
    assert "\nedge by edge (only slower, not wrong): slices\n" in out
    line = RoundsDown.__init__.__code__.co_firstlineno - 1
    assert f"rounds_down         defined in {check_ops.place(__file__, line)}\n" in out
    assert "million multiply-adds of one image; ms: milliseconds of a batch" in out
    assert out.splitlines()[-1] == "1 of 2 blocks wrong: rounds_down"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("ghost", "unknown op ghost; known: none, avg_pool_3x3"),
        ("none --channels 0", "argument --channels: '0' is not a whole number"),
        ("none --channels x", "argument --channels: 'x' is not a whole number"),
    ],
)
def test_wrong_words(words, message, capsys):
    with pytest.raises(SystemExit) as caught:
        check_ops.main(words.split())
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_as_a_process(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "check_ops.py", "skip_connect", "--channels", "4"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 block tried, all right" in done.stdout
    assert os.listdir(tmp_path) == []


# --- at the start of a run ----------------------------------------------------------------------


def test_a_bad_block_stops_a_search_at_once_and_leaves_nothing(here, monkeypatch, capsys):
    monkeypatch.setitem(ops.OPS, "mine", KeepsSize)
    with pytest.raises(SystemExit) as caught:
        search.main([*TINY_SEARCH, "--primitives", "skip_connect,mine"])
    assert caught.value.code == 2
    text = capsys.readouterr().err
    assert "search.py: the block mine (4 channels, stride 2, affine off) returns 7x6" in text
    assert text.count("\n") == 1
    assert os.listdir() == []


def test_a_bad_block_stops_a_training_at_once_and_leaves_nothing(here, monkeypatch, capsys):
    monkeypatch.setitem(ops.OPS, "sep_conv_3x3", KeepsSize)
    with pytest.raises(SystemExit) as caught:
        augment.main([*TINY_AUGMENT, "--genotype", "DARTS_V2"])
    assert caught.value.code == 2
    text = capsys.readouterr().err
    assert "augment.py: the block sep_conv_3x3 (4 channels, stride 2, affine on) returns" in text
    assert text.count("\n") == 1
    assert os.listdir() == []


def test_blocks_that_are_not_searched_may_be_wrong(here, monkeypatch):
    monkeypatch.setitem(ops.OPS, "mine", KeepsSize)
    check_ops.quick(["skip_connect", "none"], 4)


def test_every_width_of_a_network_is_tried(monkeypatch):
    """Networks have C, 2C and 4C channels."""

    def narrow(C, stride, affine):
        if C > 8:
            raise RuntimeError("too wide")
        return nn.Conv2d(C, C, 3, stride, 1)

    monkeypatch.setitem(ops.OPS, "mine", narrow)
    with pytest.raises(ValueError, match="the block mine .*too wide"):
        check_ops.quick(["mine"], 4)
