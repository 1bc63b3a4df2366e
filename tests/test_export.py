"""export.py: a trained network as a file for other programs."""

import importlib.util
import json
import os
import shutil

import pytest
import torch
from conftest import ends_in_one_line
from torch import nn

import export
import genotypes as gt
from data_sets import named
from models import ops
from models.augment_cnn import AugmentCNN
from tracking.trained_network import DeployedNetwork, TrainedNetwork


@pytest.fixture
def there(finished_augment, monkeypatch):
    """The folder that holds augments/a is the current one."""
    monkeypatch.chdir(finished_augment[0])
    return finished_augment[0]


@pytest.fixture
def quick_format(monkeypatch):
    """--format pt2 writes four bytes, at once, and reading them gives the network."""
    networks = []

    def write(net, images, metadata):
        networks.append(net)
        return b"data"

    monkeypatch.setitem(export.FORMATS, "pt2", (write, lambda data: networks[-1], ()))


def load_exported(form, path):
    """(function of images in [0, 1], what the file says of itself), by the other library alone."""
    if form == "onnx":
        import onnx
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        metadata = {p.key: p.value for p in onnx.load(path).metadata_props}
        for key in ("classes", "mean", "std", "size"):
            metadata[key] = json.loads(metadata[key])
        return lambda x: torch.from_numpy(session.run(None, {"images": x.numpy()})[0]), metadata
    files = {"metadata.json": ""}
    with export.quiet():
        if form == "torchscript":
            net = torch.jit.load(path, _extra_files=files)
        else:
            net = torch.export.load(path, extra_files=files).module()
    return lambda x: net(x).detach(), json.loads(files["metadata.json"])


@pytest.mark.parametrize("form", ["onnx", "torchscript", "pt2"])
def test_an_exported_network_computes_what_the_trained_one_does(there, form, tmp_path, capsys):
    path = str(tmp_path / f"digits.{form}")
    assert export.main(["augments/a", "--format", form, "--out", path]) == path
    out = capsys.readouterr().out.splitlines()[-1]
    assert out.startswith(f"{path}: {form}, ")
    assert "batches of 1, 2 and 5 images differ" in out
    assert os.listdir(tmp_path) == [f"digits.{form}"]

    net, metadata = load_exported(form, path)
    assert metadata["classes"] == list("0123456789")
    assert "until it covers 8x8 pixels, cut off" in metadata["resize"]
    assert (metadata["mean"], metadata["std"], metadata["size"]) == ([0.3054], [0.3753], [8, 8])
    state = torch.load("augments/a/checkpoint.pt", weights_only=True)
    assert metadata["genotype"] == state["genotype"]
    own = AugmentCNN(8, 1, 2, 10, 3, True, gt.from_str(state["genotype"])).eval()
    own.load_state_dict(state["model"])
    for N in (1, 3, 7, 64):
        images = torch.rand(N, 1, 8, 8)
        with torch.no_grad():
            wanted = own((images - 0.3054) / 0.3753)[0]
        torch.testing.assert_close(net(images), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("run", "out"),
    [
        ("augments/b", "augments/b/b.pt2"),
        ("augments/b/", "augments/b/b.pt2"),
        ("augments/b/best.pt", "augments/b/best.pt2"),
        ("augments/b/checkpoint.pt", "augments/b/checkpoint.pt2"),
    ],
)
def test_without_out_the_file_lies_beside_the_checkpoint(
    there, tmp_path, monkeypatch, quick_format, run, out
):
    shutil.copytree("augments/a", tmp_path / "augments" / "b")
    monkeypatch.chdir(tmp_path)
    before = set(os.listdir("augments/b"))
    assert export.main([run, "--format", "pt2"]) == out
    assert (tmp_path / out).read_bytes() == b"data"
    assert set(os.listdir("augments/b")) - before == {os.path.basename(out)}


@pytest.mark.parametrize("form", export.FORMATS)
def test_the_default_name_is_that_of_the_run_also_from_within_its_folder(here, form):
    (here / "digits").mkdir()
    assert export.default_out("digits", form) == f"digits/digits.{form}"
    assert export.default_out("digits.pt", form) == f"digits.{form}"
    os.chdir("digits")
    assert os.path.normpath(export.default_out(".", form)) == f"digits.{form}"


class DependsOnBatch(nn.Module):
    """Multiplies by something that a trace freezes: the number of images."""

    def __init__(self, C, stride, affine):
        super().__init__()
        self.conv = ops.StdConv(C, C, 3, stride, affine)

    def forward(self, x):
        return self.conv(x) * float(len(x))


def test_a_file_that_computes_something_else_is_not_written(there, tmp_path, monkeypatch):
    def other(net, images, metadata):
        return export.to_torchscript(nn.Sequential(net, nn.Hardtanh(-1e-3, 1e-3)), images, metadata)

    monkeypatch.setitem(export.FORMATS, "torchscript", (other, export.from_torchscript, ()))
    words = ["augments/a", "--format", "torchscript", "--out", str(tmp_path / "x.pt")]
    assert "differs from the trained one by" in ends_in_one_line(export.main, words, code=1)
    assert os.listdir(tmp_path) == []


def test_a_block_that_depends_on_the_batch_is_found_out():
    block = DependsOnBatch(2, 1, True).eval()
    with export.quiet():
        data = export.to_torchscript(block, torch.rand(3, 2, 4, 4), {})
    with pytest.raises(FloatingPointError, match="for a batch of 1"), export.quiet():
        export.difference(block, export.from_torchscript(data), (2, 4, 4))


def test_a_result_that_is_not_finite_is_a_difference():
    net = nn.Flatten()
    assert export.difference(net, net, (2, 2, 2)) == 0
    assert export.difference(net, lambda x: net(x) + 1e-5, (2, 2, 2)) == pytest.approx(
        1e-5, rel=0.1
    )
    with pytest.raises(FloatingPointError, match="by nan"):
        export.difference(net, lambda x: net(x) * float("nan"), (2, 2, 2))


def test_an_exporter_that_gives_up_says_why_in_one_line(there, tmp_path, monkeypatch):
    def give_up(*args):
        raise RuntimeError("no such\noperator")

    monkeypatch.setitem(export.FORMATS, "pt2", (give_up, None, ()))
    words = ["augments/a", "--format", "pt2", "--out", str(tmp_path / "x.pt2")]
    assert ends_in_one_line(export.main, words, code=1) == (
        "export.py: the network cannot be written in this format (RuntimeError: no such operator); "
        "try another --format"
    )
    assert os.listdir(tmp_path) == []


def test_a_missing_package_is_named(there, monkeypatch):
    monkeypatch.setitem(export.FORMATS, "onnx", (None, None, ("torch", "no_such_package")))
    assert ends_in_one_line(export.main, ["augments/a"]) == (
        "export.py: --format onnx needs no_such_package: pip install no_such_package"
    )


def test_the_formats_name_the_packages_that_they_need():
    packages = {name for _, _, names in export.FORMATS.values() for name in names}
    assert packages == {"onnx", "onnxscript", "onnxruntime"}
    assert all(importlib.util.find_spec(name) for name in packages)


def test_dilated_convolutions_leave_as_plain_ones():
    spec = named.spec("digits")
    net = AugmentCNN(8, 1, 2, 10, 3, True, gt.PC_DARTS_cifar).eval()
    assert any(isinstance(m, ops.DilatedConv2d) for m in net.modules())
    own = DeployedNetwork(TrainedNetwork("x", net, spec, gt.PC_DARTS_cifar, {}, 1, 0, 0.5))
    plain = export.portable(own)
    assert not any(isinstance(m, ops.DilatedConv2d) for m in plain.modules())
    assert any(m.dilation == (2, 2) for m in plain.modules() if isinstance(m, nn.Conv2d))
    assert not hasattr(plain.net, "aux_head")
    assert hasattr(own.net, "aux_head")
    assert not any(p.requires_grad for p in plain.parameters())
    images = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(plain(images), own(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ("searchs/s", "searchs/s/checkpoint.pt is the supernet of a search"),
        ("augments/none", "there is no file or folder augments/none"),
        ("augments", "there is no file or folder augments/checkpoint.pt"),
        ("augments/a/config.json", "augments/a/config.json is damaged or no checkpoint"),
    ],
)
def test_what_cannot_be_exported_ends_in_one_line(there, run, message):
    words = [run, "--format", "torchscript"]
    assert f"export.py: {message}" in ends_in_one_line(export.main, words)
