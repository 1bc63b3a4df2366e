"""Networks of torchvision, from scratch, to stand beside the cells.

They were made for images of 224 pixels, which they halve five times. For small images it is
customary to leave out the first halvings: the stem moves by one pixel instead of two, without its
pooling, and so does the first block of MobileNet that halves the map.

BatchNorm follows the batches as quickly as in the networks of the cells. MobileNetV3 has a momentum
of 0.01, with which the statistics of a short training lag so far behind that it scores by chance.
"""

from torch import nn
from torchvision import models

from models.stems import LARGE

BN_MOMENTUM = 0.1  # torch's own


def build(name, spec):
    """The network `name` of `config.BASELINES` for a data set, a named.DataSpec: X (N, C_in, H, W)
    -> logits (N, n_classes)."""
    net = getattr(models, name)(weights=None, num_classes=len(spec.classes))
    _fit_channels(net, spec.C_in)
    if min(spec.size) < LARGE:
        _SMALLER[name](net)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = BN_MOMENTUM
    return net


def _fit_channels(net, C_in):
    """Images of C_in channels."""
    if C_in == 3:
        return
    for module in net.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.Conv2d):  # the first one
                words = {"stride": child.stride, "padding": child.padding, "bias": False}
                setattr(
                    module, name, nn.Conv2d(C_in, child.out_channels, child.kernel_size, **words)
                )
                return


def _no_stride(*blocks):
    """No convolution of these blocks halves the map."""
    for block in blocks:
        for module in block.modules():
            if isinstance(module, nn.Conv2d):
                module.stride = (1, 1)


def _resnet(net):
    net.conv1 = nn.Conv2d(net.conv1.in_channels, 64, 3, padding=1, bias=False)
    net.maxpool = nn.Identity()


def _shufflenet(net):
    _no_stride(net.conv1)
    net.maxpool = nn.Identity()


_SMALLER = {
    "mobilenet_v3_small": lambda net: _no_stride(net.features[0], net.features[1]),
    "mobilenet_v2": lambda net: _no_stride(net.features[0], net.features[2]),
    "shufflenet_v2_x1_0": _shufflenet,
    "resnet18": _resnet,
}
