"""What a trained network is used for: predict, export, start another training; and the flags a
training takes over from its search."""

import csv
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import FAST_AUGMENT, FAST_SEARCH, TINY_AUGMENT, run_in
from PIL import Image
from torch import nn

import augment
import config
import deploy
import export
import genotypes as gt
import search
from data_sets import loaders, named
from models import ops
from models.augment_cnn import AugmentCNN

ROOT = Path(__file__).parent.parent


def digit(index):
    """(image, class) of the test split."""
    image, y = named.Digits(train=False)[index]
    return image, y


def rows_of(text):
    return list(csv.DictReader(io.StringIO(text)))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Digits of the test split in a folder with a sub-folder, as PNG."""
    folder = tmp_path_factory.mktemp("pictures") / "in"
    (folder / "more").mkdir(parents=True)
    for i in range(5):
        image, _ = digit(i)
        name = f"more/{i}.png" if i > 2 else f"{i}.png"
        Image.fromarray(image[0].numpy()).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture
def there(finished_augment, monkeypatch):
    """The folder that holds augments/a is the current one."""
    monkeypatch.chdir(finished_augment[0])
    return finished_augment[0]


# --- --predict ----------------------------------------------------------------------------------


def test_predict_gives_the_networks_own_probabilities(there, pictures, capsys):
    augment.main(["--predict", str(pictures), "--from", "augments/a", "--batch_size", "2"])
    rows = rows_of(capsys.readouterr().out)
    files = [str(pictures / name) for name in ("0.png", "1.png", "2.png", "more/3.png",
                                               "more/4.png")]  # fmt: skip
    assert [row["file"] for row in rows] == files
    # the network and the transform of the test split, by themselves
    state = torch.load("augments/a/checkpoint.pt", weights_only=True)
    net = AugmentCNN(8, 1, 2, 10, 3, True, gt.from_str(state["genotype"])).eval()
    net.load_state_dict(state["model"])
    transform = loaders.transforms(named.spec("digits"), train=False)
    for i, row in enumerate(rows):
        wanted = net(transform(digit(i)[0]).unsqueeze(0))[0].softmax(1)[0]
        shown = [float(row[name]) for name in "0123456789"]
        assert shown == pytest.approx(wanted.tolist(), abs=2e-6)
        assert sum(shown) == pytest.approx(1, abs=1e-5)
        assert row["class"] == str(int(wanted.argmax()))


def test_predict_one_image_into_a_file_from_the_best_epoch(there, pictures, tmp_path, capsys):
    out = tmp_path / "p.csv"
    words = ["--predict", str(pictures / "0.png"), "--from", "augments/a/best.pt"]
    returned = augment.main([*words, "--out", str(out)])
    rows = rows_of(out.read_text())
    assert len(rows) == len(returned) == 1
    assert [list(row.values()) for row in rows] == [list(row.values()) for row in returned]
    said = capsys.readouterr().out
    assert said == f"{out}: 1 images classified by augments/a/best.pt\n"


def test_predict_brings_any_image_to_the_networks_kind(there, tmp_path, capsys):
    grey = np.repeat(np.repeat(digit(0)[0][0].numpy(), 4, 0), 4, 1)  # 32x32: resized back
    kinds = {
        "grey.png": Image.fromarray(grey),
        "rgb.png": Image.fromarray(grey).convert("RGB"),
        "rgba.png": Image.fromarray(grey).convert("RGBA"),
        "palette.png": Image.fromarray(grey).convert("P"),
        "deep.png": Image.fromarray(grey.astype(np.uint16) * 257),
        "deep.tiff": Image.fromarray(grey.astype(np.uint16) * 257),
        "picture.bmp": Image.fromarray(grey),
        "picture.webp": Image.fromarray(grey).convert("RGB"),
        "CAPITALS.PNG": Image.fromarray(grey),
        "wide.png": Image.fromarray(np.concatenate([grey, grey], axis=1)),
    }
    for name, image in kinds.items():
        image.save(tmp_path / name, **({"lossless": True} if name.endswith("webp") else {}))
    augment.main(["--predict", str(tmp_path), "--from", "augments/a"])
    rows = {os.path.basename(row["file"]): row for row in rows_of(capsys.readouterr().out)}
    assert set(rows) == set(kinds)
    for name in set(kinds) - {"wide.png"}:
        for c in "0123456789":
            assert float(rows[name][c]) == pytest.approx(float(rows["grey.png"][c]), abs=1e-3), name


def test_a_broken_image_costs_one_line_and_the_others_go_on(there, pictures, tmp_path, capsys):
    whole = (pictures / "0.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole)
    (tmp_path / "b.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "c.png").write_bytes(b"")
    (tmp_path / "d.png").write_text("not an image")
    (tmp_path / "e.png").write_bytes(whole)
    out = tmp_path / "out.csv"
    for words in ([], ["--out", str(out)]):
        with pytest.raises(SystemExit) as caught:
            augment.main(["--predict", str(tmp_path), "--from", "augments/a", *words])
        assert caught.value.code == 1
        said = capsys.readouterr()
        rows = rows_of(out.read_text() if words else said.out)
        assert [os.path.basename(row["file"]) for row in rows] == ["a.png", "e.png"]
        lines = said.err.splitlines()
        assert [re.search(r"(\w)\.png cannot be read \(.+\)", line)[1] for line in lines[:3]] == [
            "b", "c", "d",
        ]  # fmt: skip
        assert lines[3:] == ["augment.py: 3 of 5 images cannot be read"]


def test_predict_needs_no_data_set_and_old_checkpoints_are_read(there, pictures, tmp_path, capsys):
    state = torch.load("augments/a/checkpoint.pt", weights_only=True)
    state["flags"] = {**state["flags"], "dataset": "gone", "data_path": "/nowhere"}
    torch.save(state, tmp_path / "moved.pt")
    augment.main(["--predict", str(pictures / "0.png"), "--from", str(tmp_path / "moved.pt")])
    del state["data"]
    for flag in ("stem_multiplier", "init_from", "predict", "export", "trained", "out"):
        del state["flags"][flag]
    torch.save({**state, "flags": {**state["flags"], "dataset": "digits"}}, tmp_path / "old.pt")
    augment.main(["--predict", str(pictures / "0.png"), "--from", str(tmp_path / "old.pt")])
    first, second = (rows_of(part) for part in capsys.readouterr().out.split("file,class")[1:])
    assert first == second


# --- --export -----------------------------------------------------------------------------------


def load_exported(form, path):
    """(function of images in [0, 1], what the file says of itself), by the other library alone."""
    if form == "onnx":
        import onnx
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        about = {p.key: p.value for p in onnx.load(path).metadata_props}
        for key in ("classes", "mean", "std", "size"):
            about[key] = json.loads(about[key])
        return lambda x: torch.from_numpy(session.run(None, {"images": x.numpy()})[0]), about
    files = {"about.json": ""}
    if form == "torchscript":
        with export.quiet():
            net = torch.jit.load(path, _extra_files=files)
        return lambda x: net(x).detach(), json.loads(files["about.json"])
    with export.quiet():
        net = torch.export.load(path, extra_files=files).module()
    return lambda x: net(x).detach(), json.loads(files["about.json"])


@pytest.mark.parametrize("form", ["onnx", "torchscript", "pt2"])
def test_an_exported_network_computes_what_the_trained_one_does(there, form, tmp_path, capsys):
    path = str(tmp_path / f"digits.{form}")
    assert augment.main(["--export", form, "--from", "augments/a", "--out", path]) == path
    out = capsys.readouterr().out.splitlines()[-1]
    assert out.startswith(f"{path}: {form}, ")
    assert "batches of 1, 2 and 5 images differ" in out
    assert os.listdir(tmp_path) == [f"digits.{form}"]

    net, about = load_exported(form, path)
    assert about["classes"] == list("0123456789")
    assert (about["mean"], about["std"], about["size"]) == ([0.3054], [0.3753], [8, 8])
    state = torch.load("augments/a/checkpoint.pt", weights_only=True)
    assert about["genotype"] == state["genotype"]
    own = AugmentCNN(8, 1, 2, 10, 3, True, gt.from_str(state["genotype"])).eval()
    own.load_state_dict(state["model"])
    for N in (1, 3, 7, 64):
        images = torch.rand(N, 1, 8, 8)
        with torch.no_grad():
            wanted = own((images - 0.3054) / 0.3753)[0]
        torch.testing.assert_close(net(images), wanted, rtol=1e-4, atol=1e-4)


class Moody(nn.Module):
    """Adds to the logits something that a trace freezes: the number of images."""

    def __init__(self, C, stride, affine):
        super().__init__()
        self.conv = ops.StdConv(C, C, 3, stride, affine)

    def forward(self, x):
        return self.conv(x) * float(len(x))


def test_a_file_that_computes_something_else_is_not_written(there, tmp_path, capsys, monkeypatch):
    def other(net, images, about):
        return export.to_torchscript(nn.Sequential(net, nn.Hardtanh(-1e-3, 1e-3)), images, about)

    monkeypatch.setitem(export.FORMATS, "torchscript", (other, export.from_torchscript, ()))
    path = tmp_path / "x.pt"
    with pytest.raises(SystemExit) as caught:
        augment.main(["--export", "torchscript", "--from", "augments/a", "--out", str(path)])
    assert caught.value.code == 1
    assert "differs from the trained one by" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


def test_a_block_that_depends_on_the_batch_is_found_out(tmp_path):
    block = Moody(2, 1, True).eval()
    with export.quiet():
        data = export.to_torchscript(block, torch.rand(3, 2, 4, 4), {})
    with pytest.raises(FloatingPointError, match="for a batch of 1"), export.quiet():
        export.difference(block, export.from_torchscript(data), (2, 4, 4))


def test_an_exporter_that_gives_up_says_why_in_one_line(there, tmp_path, capsys, monkeypatch):
    def give_up(*args):
        raise RuntimeError("no such\noperator")

    monkeypatch.setitem(export.FORMATS, "pt2", (give_up, None, ()))
    with pytest.raises(SystemExit) as caught:
        augment.main(["--export", "pt2", "--from", "augments/a", "--out", str(tmp_path / "x.pt2")])
    assert caught.value.code == 1
    text = capsys.readouterr().err
    assert text == (
        "augment.py: --export pt2 cannot write this network (RuntimeError: no such operator); "
        "try another format\n"
    )


def test_a_missing_package_is_named(there, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(export.FORMATS, "onnx", (None, None, ("torch", "no_such_package")))
    with pytest.raises(SystemExit) as caught:
        augment.main(["--export", "onnx", "--from", "augments/a", "--out", str(tmp_path / "x")])
    assert caught.value.code == 2
    assert capsys.readouterr().err == (
        "augment.py: --export onnx needs no_such_package: pip install no_such_package\n"
    )


def test_dilated_convolutions_leave_as_plain_ones():
    spec = named.spec("digits")
    net = AugmentCNN(8, 1, 2, 10, 3, True, gt.PC_DARTS_cifar).eval()
    assert any(isinstance(m, ops.DilatedConv2d) for m in net.modules())
    trained = deploy.Trained("x", net, spec, gt.PC_DARTS_cifar, {}, 1, 0.5)
    own = deploy.Deployed(trained)
    plain = export.portable(own)
    assert not any(isinstance(m, ops.DilatedConv2d) for m in plain.modules())
    assert any(m.dilation == (2, 2) for m in plain.modules() if isinstance(m, nn.Conv2d))
    assert not hasattr(plain.net, "aux_head")
    assert hasattr(own.net, "aux_head")
    images = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(plain(images), own(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--predict x.png", "--predict needs --from, the trained network"),
        ("--export onnx --out x", "--export needs --from"),
        ("--export onnx --from augments/a", "--export needs --out"),
        ("--export tflite --from augments/a --out x", "argument --export: invalid choice"),
        ("--predict x --export onnx --from augments/a", "--predict and --export are two things"),
        ("--genotype PDARTS --from augments/a", "--from and --out belong to"),
        ("--evaluate augments/a --from augments/a", "does not take --from"),
        ("--predict x --from augments/a --lr 1", "--predict trains nothing and does not take --lr"),
        ("--predict x --from augments/a --workers 1", "--predict trains nothing and does not take"),
        ("--export pt2 --from augments/a --out x --device cpu", "does not take --device"),
        ("--predict nothere --from augments/a", "--predict nothere: there is no such file"),
        ("--predict searchs/s/tb --from augments/a", "no image in this folder"),
        ("--predict searchs --from searchs/s", "is a supernet"),
        ("--predict searchs --from nothere", "nothere"),
        ("--export pt2 --from augments/a --out no/x", "--out no/x: there is no folder no"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(there, words, message, capsys, monkeypatch):
    if "searchs" in words.split() and not os.path.exists("searchs/p.png"):
        Image.new("L", (8, 8)).save("searchs/p.png")
    before = sorted(os.listdir())
    with pytest.raises(SystemExit) as caught:
        augment.main(words.split())
    assert caught.value.code == 2
    text = capsys.readouterr().err
    assert message in text
    assert text.count("\n") == 1
    assert sorted(os.listdir()) == before


def test_predict_and_export_as_processes(there, pictures, tmp_path):
    for words in (
        ["--predict", str(pictures), "--from", "augments/a"],
        ["--export", "torchscript", "--from", "augments/a", "--out", str(tmp_path / "x.pt")],
    ):
        done = subprocess.run(
            [sys.executable, ROOT / "augment.py", *words], capture_output=True, text=True
        )
        assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "x.pt").stat().st_size > 10_000


# --- --init_from --------------------------------------------------------------------------------


def state_of(path):
    return torch.load(path, weights_only=True)


def test_init_from_takes_the_network_and_copies_what_fits(there, tmp_path, monkeypatch):
    source = there / "augments" / "a"
    monkeypatch.chdir(tmp_path)
    out = run_in(
        tmp_path, augment.main,
        ["--init_from", str(source), "--name", "b", "--epochs", "1", "--lr", "1e-9",
         "--batch_size", "700", "--weight_decay", "0", "--seed", "5"],
    )  # fmt: skip
    old, new = state_of(source / "checkpoint.pt"), state_of("augments/b/checkpoint.pt")
    assert new["genotype"] == old["genotype"]
    for flag in ("layers", "init_channels", "aux_weight"):
        assert new["flags"][flag] == old["flags"][flag]
    total = len(old["model"])
    assert f"copied {total} of {total} tensors from {source}/checkpoint.pt\n" in out
    for name, tensor in old["model"].items():
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(new["model"][name], tensor, rtol=1e-4, atol=1e-6)


def test_init_from_with_a_genotype_keeps_the_flags_of_the_network(there, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["--init_from", str(there / "augments/a"), "--genotype", str(there / "searchs/s")]
    cfg, _ = augment.take_over(config.AugmentConfig(words), words)
    saved = state_of(there / "augments/a/checkpoint.pt")["flags"]
    for flag in ("layers", "init_channels", "aux_weight", "stem"):
        assert getattr(cfg, flag) == saved[flag], flag
    assert cfg.genotype == words[-1]


def test_out_must_be_a_file_in_a_folder_that_exists(tmp_path):
    deploy.check_out(None)
    deploy.check_out(str(tmp_path / "a.csv"))
    for path, why in ((tmp_path / "no" / "a.csv", "there is no folder"), (tmp_path, "is a folder")):
        with pytest.raises(ValueError, match=why):
            deploy.check_out(str(path))


def test_init_from_with_other_classes_and_channels(there, tmp_path, monkeypatch):
    state = state_of("augments/a/best.pt")
    state["model"]["linear.weight"] = torch.zeros(7, 32)
    state["model"]["linear.bias"] = torch.zeros(7)
    state["model"]["stem.0.weight"] = torch.zeros(6, 3, 3, 3)
    del state["model"]["aux_head.linear.weight"]
    torch.save(state, tmp_path / "other.pt")
    monkeypatch.chdir(tmp_path)
    out = run_in(tmp_path, augment.main, ["--init_from", "other.pt", *FAST_AUGMENT, "--name", "b"])
    total = len(state["model"]) + 1
    assert (
        f"copied {total - 4} of {total} tensors from other.pt; not, and so new: stem.0.weight, "
        f"aux_head.linear.weight, linear.weight, linear.bias\n" in out
    )
    # a resumed run goes on from its own weights, with or without the file it started from
    os.remove("other.pt")
    flags = json.loads(Path("augments/b/config.json").read_text())
    flags["flags"]["epochs"] = 2
    Path("augments/b/config.json").write_text(json.dumps(flags))
    out = run_in(tmp_path, augment.main, ["--name", "b", "--resume"])
    assert "copied" not in out
    assert "     2/2 " in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--init_from searchs/s", "is a supernet, whose weights belong to all ops"),
        ("--init_from nothere", "nothere"),
        ("--init_from augments/a --genotype PDARTS --init_channels 5 --stem_multiplier 2",
         "no tensor agrees in name and shape"),
    ],
)  # fmt: skip
def test_what_init_from_refuses(there, words, message, capsys, monkeypatch):
    if "PDARTS" in words:  # counters have no shape to disagree in
        read = deploy.read

        def without_counters(path):
            state = read(path)
            kept = {k: v for k, v in state["model"].items() if v.dim() == 4 and "linear" not in k}
            return {**state, "model": {k: v for k, v in kept.items() if "aux" not in k}}

        monkeypatch.setattr(deploy, "read", without_counters)
    with pytest.raises(SystemExit) as caught:
        augment.main([*words.split(), "--name", "x"])
    assert caught.value.code == 2
    text = capsys.readouterr().err
    assert message in text
    assert text.count("\n") == 1
    assert not os.path.exists("augments/x")


# --- what a training takes over -----------------------------------------------------------------


def test_the_data_flags_of_a_search_are_taken_over_unless_given(here, monkeypatch):
    monkeypatch.setitem(
        named.SPECS, "mine", named.spec("digits")._replace(name="mine", classes=tuple("ab"))
    )
    real = named.load_split
    monkeypatch.setattr(
        loaders, "load_split",
        lambda name, *args, **kwargs: real("digits", *args, **kwargs),
    )  # fmt: skip
    spec, seen = named.spec, []
    monkeypatch.setattr(named, "spec", lambda name: seen.append(name) or spec("digits"))
    words = ["--dataset", "mine", "--data_path", "there", "--cutout_length", "3"]
    search.main([*FAST_SEARCH, "--epochs", "1", "--name", "s", *words])
    record = json.loads(Path("searchs/s/genotype.json").read_text())
    kept = record["flags"]
    assert (kept["dataset"], kept["data_path"], kept["stem_multiplier"]) == ("mine", "there", 3)

    def trained(*words):
        out = run_in(here, augment.main, [*FAST_AUGMENT, "--overwrite", "--name", "a", *words])
        flags = json.loads(Path("augments/a/config.json").read_text())["flags"]
        return out, [flags[key] for key in ("dataset", "data_path", "cutout_length")]

    for source in ("searchs/s", "searchs/s/genotype-last.json"):
        out, flags = trained("--genotype", source)
        assert flags == ["mine", "there", None]  # cutout is no property of the images
        assert f"from {source}: dataset mine, data_path there\n" in out
    # what is given wins
    out, flags = trained("--genotype", "searchs/s", "--data_path", "here")
    assert flags == ["mine", "here", None]
    assert "from searchs/s: dataset mine\n" in out
    # another data set: nothing of the first one holds
    out, flags = trained("--genotype", "searchs/s", "--dataset", "digits")
    assert flags == ["digits", "./data/", None]
    assert "from searchs/s" not in out
    # neither a published cell nor text takes anything
    assert trained("--genotype", "PDARTS")[1] == ["digits", "./data/", None]
    text = gt.to_str(gt.load("searchs/s"))
    assert trained("--genotype", text)[1] == ["digits", "./data/", None]
    # a search from before genotype.json knew its flags has them in config.json
    Path("searchs/s/genotype.json").write_text(gt.to_json(gt.load("searchs/s")))
    assert trained("--genotype", "searchs/s")[1] == ["mine", "there", None]


def test_every_flag_that_says_what_the_images_are_is_taken_over():
    """Also flags that are added later: whatever the data group holds, less what each training
    decides for itself."""
    flags = config.SearchConfig([]).flags()
    taken = config.data_flags(flags)
    assert {"dataset", "data_path"} <= set(taken)
    assert not set(taken) & {"cutout_length", "seed", "epochs", "layers", "primitives"}
    group = config.flags_of([lambda parser: config.add_data_group(parser, None, "")], flags)
    assert set(group) - set(taken) <= set(config.OF_THE_TRAINING)


def test_about_a_genotype(tmp_path):
    path = tmp_path / "g.json"
    path.write_text(gt.to_json(gt.DARTS_V1, k=2, flags={"dataset": "x"}))
    assert gt.about(path) == {"k": 2, "flags": {"dataset": "x"}}
    path.write_text("[1]")
    for source in (path, tmp_path, "DARTS_V1", gt.to_str(gt.DARTS_V1), "nothing"):
        assert gt.about(source) == {}


def test_sizes_are_counted_once(here, monkeypatch):
    calls = []
    real = augment.utils.multiply_adds
    monkeypatch.setattr(
        augment.utils, "multiply_adds", lambda *args: calls.append(1) or real(*args)
    )
    augment.main([*TINY_AUGMENT, "--batch_size", "700", "--epochs", "1", "--genotype", "PDARTS"])
    assert len(calls) == 1
