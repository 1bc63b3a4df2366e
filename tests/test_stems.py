"""The stems, the ImageNet form against the official counts, and images of any size."""

import pytest
import torch
import torch.nn.functional as F

import genotypes as gt
import utils
from architect import Architect
from config import SearchConfig
from models import stems
from models.augment_cnn import AugmentCNN
from models.search_cnn import SearchCNNController

# counted on the official implementation: ImageNet form, C 48, 14 cells, 1000 classes, 224x224
PUBLISHED_COUNTS = {
    "DARTS_V1": (4_510_432, 505_864_704),
    "DARTS_V2": (4_718_752, 529_911_552),
    "PC_DARTS_cifar": (5_270_560, 571_137_408),
    "PDARTS": (4_944_352, 542_819_328),
}
OPS = ["sep_conv_3x3", "dil_conv_5x5", "max_pool_3x3", "skip_connect", "none"]
SIZES = [7, 8, 15, 28, 32, 33, 96, (32, 64)]


def test_no_published_genotype_escapes_the_table():
    assert set(PUBLISHED_COUNTS) == set(gt.PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED_COUNTS)
def test_parameters_and_multiply_adds_of_the_official_imagenet_network(name):
    with torch.device("meta"):
        net = AugmentCNN(224, 3, 48, 1000, 14, True, gt.PUBLISHED[name], stem="imagenet")
    params, multiply_adds = PUBLISHED_COUNTS[name]
    assert utils.count_params(net, auxiliary=False) == params
    assert utils.multiply_adds(net, 3, (224, 224)) == multiply_adds
    pool = net.aux_head.net[1]  # on 7x7 the official window
    assert (pool.kernel_size, pool.stride) == ((5, 5), (2, 2))


@pytest.mark.parametrize(
    ("stem", "size", "wanted"),
    [
        ("auto", (32, 32), "cifar"), ("auto", (95, 300), "cifar"), ("auto", (96, 96), "imagenet"),
        ("auto", (224, 224), "imagenet"), ("cifar", (224, 224), "cifar"),
        ("imagenet", (32, 32), "imagenet"),
    ],
)  # fmt: skip
def test_which_stem_is_taken(stem, size, wanted):
    assert stems.pick(stem, size) == wanted


def test_an_unknown_stem_is_named():
    with pytest.raises(ValueError, match="unknown stem 'resnet'; known: cifar, imagenet"):
        stems.build("resnet", 3, 4, 3)


@pytest.mark.parametrize("size", [(224, 224), (7, 7), (33, 50), (1, 9)])
@pytest.mark.parametrize("C", [1, 2, 5])
def test_the_imagenet_stem_reduces_by_eight(size, C):
    stem = stems.build("imagenet", 3, C, 3)
    s0, s1 = stem.eval()(torch.randn(2, 3, *size))
    assert s0.shape == (2, C, *(-(-side // 4) for side in size))
    assert s1.shape == (2, C, *(-(-side // 8) for side in size))
    assert stems.map_size(size, stem) == tuple(s1.shape[2:])
    convs = [m for m in stem.modules() if isinstance(m, torch.nn.Conv2d)]
    assert all(m.bias is None and m.stride == (2, 2) for m in convs)


def test_the_cifar_stem_keeps_the_size_of_the_image():
    stem = stems.build("cifar", 3, 4, 3)
    s0, s1 = stem(torch.randn(2, 3, 9, 7))
    assert s0 is s1
    assert s0.shape == (2, 12, 9, 7)
    assert stems.map_size((9, 7), stem) == (9, 7)


@pytest.mark.parametrize(
    ("size", "stem"),
    [*((size, "auto") for size in SIZES), (7, "imagenet"), (15, "imagenet")],
    ids=str,
)
def test_one_step_of_search_and_augment_at_any_size(size, stem):
    torch.manual_seed(0)
    H, W = (size, size) if isinstance(size, int) else size
    stem = stems.pick(stem, (H, W))
    X, y = torch.randn(2, 3, H, W), torch.tensor([0, 1])
    net = SearchCNNController(3, 2, 2, 3, F.cross_entropy, 2, primitives=OPS, stem=stem)
    w_optim = torch.optim.SGD(net.weights(), 0.025, momentum=0.9)
    Architect(net).unrolled_backward(X, y, X, y, 0.1, w_optim)
    assert all(alpha.grad.isfinite().all() for alpha in net.alphas())
    assert any(alpha.grad.abs().max() > 0 for alpha in net.alphas())
    net.loss(X, y).backward()
    torch.nn.utils.clip_grad_norm_(net.weights(), 5)
    w_optim.step()
    assert net.loss(X, y).isfinite()

    net = AugmentCNN((H, W), 3, 2, 2, 3, True, net.genotype(), stem=stem).train()
    optim = torch.optim.SGD(net.parameters(), 0.025)
    logits, aux_logits = net(X)
    assert logits.shape == aux_logits.shape == (2, 2)
    (F.cross_entropy(logits, y) + F.cross_entropy(aux_logits, y)).backward()
    torch.nn.utils.clip_grad_norm_(net.parameters(), 5)
    optim.step()
    assert net(X)[0].isfinite().all()


def test_the_imagenet_form_says_that_it_ignores_the_multiplier():
    for words, size, said in (
        ([], (224, 224), "imagenet stem"),
        (["--stem_multiplier", "2"], (224, 224), "imagenet stem (which ignores --stem_multiplier)"),
        (["--stem_multiplier", "2"], (32, 32), "cifar stem"),
        (["--stem", "imagenet", "--stem_multiplier", "5"], (32, 32), "--stem_multiplier)"),
    ):
        assert stems.describe(SearchConfig(words), size).endswith(said)
