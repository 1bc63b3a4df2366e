"""Folders of one's own images: what is found in them, what is refused, and both scripts on them."""

import json
import math
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import equal, lines
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader

import augment
import search
from data_sets import image_folder, loaders, named
from models import augment_cnn

ROOT = Path(__file__).parent.parent
SEARCH = ["--layers", "2", "--init_channels", "2", "--n_nodes", "1", "--batch_size", "4",
          "--epochs", "1", "--workers", "0"]  # fmt: skip
AUGMENT = ["--layers", "2", "--init_channels", "2", "--batch_size", "4", "--epochs", "1",
           "--workers", "0"]  # fmt: skip


def write(path, size=(8, 8), mode="RGB", seed=0, **how):
    """A random image of `size` (H, W)."""
    rng = np.random.default_rng([seed, *path.name.encode()])
    pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    if mode == "I;16":
        image = Image.fromarray(rng.integers(0, 65536, size).astype(np.uint16))
    else:
        image = Image.fromarray(pixels).convert(mode)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **how)


def make(root, parts=("train",), classes=("cat", "dog"), n=10, size=(8, 8), mode="RGB"):
    """root/<part>/<class>/00.png ..., the classes unlike each other by their seed."""
    for part in parts:
        for y, name in enumerate(classes):
            for i in range(n):
                write(root / part / name / f"{i:02}.png", size, mode, seed=y)
    return root


def options(**changes):
    return named.Options(**changes)


def searched(root, **changes):
    return loaders.search_data("folder", str(root), 4, 0.5, 0, 0, options=options(**changes))


def trained(root, **changes):
    return loaders.augment_data("folder", str(root), 4, 0, options=options(**changes))


def refused(root, **changes):
    """The one line that a search of `root` ends in."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011, every caller reads the message
        searched(root, **changes)
    text = str(caught.value)
    assert "\n" not in text
    return text


# --- what is found ------------------------------------------------------------------------------


def test_everything_is_found_in_the_training_part(tmp_path):
    make(tmp_path, ("train", "test"), ("b", "a", "c"), size=(6, 9))
    data = trained(tmp_path)
    pixels = np.concatenate([
        np.asarray(Image.open(file)).reshape(-1, 3) / 255
        for file in sorted((tmp_path / "train").rglob("*.png"))
    ])  # fmt: skip
    assert data.spec[:4] == (tmp_path.name, 3, (6, 9), ("a", "b", "c"))
    assert data.spec.mean == pytest.approx(pixels.mean(0), abs=1e-6)
    assert data.spec.std == pytest.approx(pixels.std(0), abs=1e-6)
    assert data.class_counts == (10, 10, 10)
    X, y = next(iter(data.held))
    assert X.shape == (4, 3, 6, 9)
    wanted = np.asarray(Image.open(tmp_path / "test/a/00.png")) / 255
    wanted = (wanted - data.spec.mean) / data.spec.std
    np.testing.assert_allclose(X[0].permute(1, 2, 0), wanted, atol=1e-5)
    assert [len(y) for _, y in data.held] == [4] * 7 + [2]
    assert searched(tmp_path).spec == data.spec


@pytest.mark.parametrize("kind", ["png", "jpg", "JPEG", "webp", "bmp", "tif", "tiff"])
def test_every_kind_of_file_in_nested_folders(tmp_path, kind):
    for name in ("cat", "dog"):
        for i in range(6):
            write(tmp_path / "train" / name / f"more {i % 2}" / f"{i}.{kind}")
    (tmp_path / "train/cat/readme.txt").write_text("not an image")
    (tmp_path / "train/cat/.hidden.png").write_text("nor this")
    data = trained(tmp_path)
    assert len(data.train.dataset) + len(data.held.dataset) == 12
    assert any("1 files in" in note for note in data.notes)


@pytest.mark.parametrize(
    ("modes", "C_in", "said"),
    [
        (["L"], 1, None),
        (["1"], 1, "black and white"),
        (["I;16"], 1, "16 bits become 8"),
        (["LA"], 1, "transparent becomes white"),
        (["L", "RGB"], 3, "converted to RGB"),
        (["P"], 3, "palette"),
        (["RGBA"], 3, "transparent becomes white"),
    ],
)
def test_modes_are_converted_and_said(tmp_path, modes, C_in, said):
    for name in ("cat", "dog"):
        for i in range(8):
            write(tmp_path / "train" / name / f"{i}.png", mode=modes[i % len(modes)])
    data = searched(tmp_path)
    assert data.spec.C_in == C_in
    assert next(iter(data.train))[0].shape == (4, C_in, 8, 8)
    converted = [note for note in data.notes if "converted to " in note]
    assert len(converted) == (said is not None)
    assert said is None or said in converted[0]
    other = 4 - C_in
    data = searched(tmp_path, in_channels=other)
    assert data.spec.C_in == len(data.spec.mean) == other
    assert next(iter(data.held))[0].shape == (4, other, 8, 8)


def test_images_of_several_sizes_take_the_median_and_input_size_another(tmp_path):
    make(tmp_path, n=4, size=(12, 10))
    for i in range(3):
        write(tmp_path / "train/cat" / f"large{i}.png", (40, 80))
    write(tmp_path / "train/dog/small.png", (3, 5))
    data = searched(tmp_path)
    assert data.spec.size == (12, 10)
    assert any("scaled and cut to 12x10" in note for note in data.notes)
    assert searched(tmp_path, input_size=[7, 9]).spec.size == (7, 9)
    X, _ = next(iter(searched(tmp_path, input_size=[7, 9]).train))
    assert X.shape == (4, 3, 7, 9)


def test_a_search_never_opens_what_is_held_out(tmp_path):
    make(tmp_path / "a", ("train", "val", "test"))
    make(tmp_path / "b")
    train, held = (
        image_folder.load("folder", str(tmp_path / "b"), part, options()).raw.files
        for part in ("train", "held-out")
    )
    assert len(held) == 4
    assert not set(train) & set(held)
    for file in [*(tmp_path / "a/val").rglob("*.png"), *(tmp_path / "a/test").rglob("*.png"),
                 *(tmp_path / "b/train" / file for file in held)]:  # fmt: skip
        file.write_text("no image: who opens it fails")
    assert len(searched(tmp_path / "a").spec.classes) == 2
    data = searched(tmp_path / "b")
    assert set(data.held_files) == set(held)
    for root in ("a", "b"):
        with pytest.raises(ValueError, match="are broken"):
            trained(tmp_path / root)


def test_the_same_images_are_held_out_whatever_the_seed_and_the_place(tmp_path):
    for root in ("here", "there"):
        make(tmp_path / root, n=15)
    held = []
    for root, seed in (("here", 0), ("here", 7), ("there", 1)):
        data = loaders.augment_data("folder", str(tmp_path / root), 4, 0, seed=seed)
        assert data.held_name == "held-out"
        held.append(data.held.dataset.raw.files)
        assert held[-1] == sorted(data.held_files)
        assert not set(held[-1]) & set(data.train.dataset.raw.files)
        assert [f.split("/")[0] for f in held[-1]] == ["cat"] * 3 + ["dog"] * 3
        again = loaders.search_data("folder", str(tmp_path / root), 4, 0.5, seed, 0)
        assert sorted(again.held_files) == held[-1]
    assert held[0] == held[1] == held[2]
    # other images hardly change it: those that were held out still are
    (tmp_path / "here/train/cat/00.png").unlink()
    changed = trained(tmp_path / "here").held.dataset.raw.files
    assert len(set(changed) & set(held[0])) >= 5


def test_classes_directly_in_the_folder_are_a_training_part(tmp_path):
    make(tmp_path, parts=("",))
    data = trained(tmp_path)
    assert (len(data.train.dataset), len(data.held.dataset)) == (16, 4)


def test_val_scores_every_epoch_and_test_the_end(tmp_path):
    data = trained(make(tmp_path / "both", ("train", "val", "test")))
    assert data.held_name == "val"
    assert data.held.dataset.raw.root == str(tmp_path / "both/val")
    assert data.test.dataset.raw.root == str(tmp_path / "both/test")
    data = trained(make(tmp_path / "val", ("train", "valid")))
    assert (data.held_name, data.test) == ("val", None)
    # ImageNet's test images have no labels
    make(tmp_path / "net", ("train", "val"))
    write(tmp_path / "net/test/00.png")
    assert trained(tmp_path / "net").test is None


def test_imagenet_layout_has_its_own_size_and_statistics(tmp_path):
    make(tmp_path, ("train", "val"), n=4, size=(10, 12))
    data = loaders.search_data("imagenet", str(tmp_path), 2, 0.5, 0, 0)
    assert data.spec.size == (224, 224)
    assert data.spec.mean == (0.485, 0.456, 0.406)
    assert next(iter(data.train))[0].shape == (2, 3, 224, 224)


def test_subset_is_a_seeded_share_of_every_class(tmp_path):
    make(tmp_path, ("train", "test"), n=20)
    files = [
        loaders.search_data(
            "folder", str(tmp_path), 4, 0.5, seed, 0, options=options(subset=0.3)
        ).train.dataset.raw.files
        for seed in (0, 0, 1)
    ]  # fmt: skip
    assert [f.split("/")[0] for f in files[0]] == ["cat"] * 6 + ["dog"] * 6
    assert files[0] == files[1] != files[2]
    assert len(trained(tmp_path, subset=0.3).held.dataset) == 40


# --- what is refused, in one line ---------------------------------------------------------------


def test_folders_that_cannot_be_trained_on(tmp_path):
    assert "is no folder of images" in refused(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "neither images nor class folders" in refused(tmp_path / "empty")
    write(tmp_path / "loose/train/00.png")
    assert "images but no class folders" in refused(tmp_path / "loose")
    assert "has one class only, cat" in refused(make(tmp_path / "one", classes=("cat",)))
    make(tmp_path / "hollow")
    (tmp_path / "hollow/train/emu").mkdir()
    assert "has no image of class emu" in refused(tmp_path / "hollow")
    make(tmp_path / "test only", parts=("test",))
    assert "has test but no train/" in refused(tmp_path / "test only")
    make(tmp_path / "vehicles", parts=("",), classes=("bus", "car"))
    write(tmp_path / "vehicles/train/00.png")
    assert "has no class folders, but" in refused(tmp_path / "vehicles")


def test_too_few_images(tmp_path):
    make(tmp_path / "few", ("train", "test"), n=3)
    assert "--batch_size 4 is larger than the part" in refused(tmp_path / "few")
    make(tmp_path / "rare", ("train", "test"))
    write(tmp_path / "rare/train/emu/00.png")
    text = refused(tmp_path / "rare")
    assert "class emu has 1 training image(s), and none is left for alpha" in text
    make(tmp_path / "held")
    write(tmp_path / "held/train/emu/00.png")
    assert "class emu has 1 image(s), of which --test_portion 0.2" in refused(tmp_path / "held")


def test_classes_that_differ_between_the_parts(tmp_path):
    make(tmp_path / "more", ("train", "test"))
    write(tmp_path / "more/test/emu/00.png")
    with pytest.raises(ValueError, match="classes that the training images have not: emu"):
        trained(tmp_path / "more")
    make(tmp_path / "less", ("train", "test"), ("cat", "dog", "emu"))
    for file in (tmp_path / "less/test/dog").iterdir():
        file.unlink()
    (tmp_path / "less/test/dog").rmdir()
    data = trained(tmp_path / "less")
    assert any("has no images of class dog; the score leaves" in note for note in data.notes)
    assert sorted({int(y) for _, ys in data.held for y in ys}) == [0, 2]  # not renumbered


def test_broken_files_are_listed_and_refused_or_skipped(tmp_path):
    make(tmp_path, ("train", "test"))
    whole = (tmp_path / "train/cat/03.png").read_bytes()
    (tmp_path / "train/cat/03.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "train/dog/07.png").write_text("<html>not found</html>")
    (tmp_path / "test/dog/01.png").write_bytes(b"")
    notebooks = (str(tmp_path / "notes.json"),)
    text = refused(tmp_path, notebooks=notebooks)
    assert "2 of 20 image files in" in text
    assert "cat/03.png (" in text
    assert "dog/07.png (" in text
    assert "--bad_images skip" in text
    for cache_gb in (1.0, 0.0):  # from memory, and from disk with what is remembered
        data = trained(tmp_path, bad_images="skip", notebooks=notebooks, cache_gb=cache_gb)
        assert len(data.train.dataset) == 18
        assert len(data.held.dataset) == 19
        said = [note for note in data.notes if "broken and skipped" in note]
        assert ["2 of 20" in said[0], "1 of 20" in said[1]] == [True, True]
        assert sum(len(y) for _, y in data.held) == 19
        assert sum(len(y) for _, y in data.train) == 16
    (tmp_path / "train/cat/03.png").write_bytes(whole)
    assert "1 of 20 image files" in refused(tmp_path, notebooks=notebooks)
    for file in (tmp_path / "train/cat").iterdir():
        file.write_text("x")
    assert "among them every image of class cat" in refused(tmp_path, bad_images="skip")


# --- memory, workers, what is remembered --------------------------------------------------------


def test_images_are_the_same_from_memory_and_from_disk(tmp_path):
    make(tmp_path, ("train", "test"), size=(9, 7))
    memory, disk = (searched(tmp_path, cache_gb=gb) for gb in (1.0, 0.0))
    raws = [data.train.dataset.raw for data in (memory, disk)]
    assert [raw.in_memory for raw in raws] == [True, False]
    assert memory.spec == disk.spec
    for i in range(20):
        assert torch.equal(raws[0][i][0], raws[1][i][0])
    assert any("in memory" in note for note in memory.notes)
    assert any("read from disk each time" in note for note in disk.notes)
    # room for the training part alone
    data = trained(tmp_path, cache_gb=20 * 9 * 7 * 3 / 1e9)
    assert data.train.dataset.raw.in_memory
    assert not data.held.dataset.raw.in_memory
    assert loaders.default_workers("folder", in_memory=True) == 0
    assert loaders.default_workers("folder", in_memory=False) >= 1


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a single core
def test_loader_processes_may_be_spawned(tmp_path):
    make(tmp_path, ("train", "test"), n=3)
    views = [trained(tmp_path, cache_gb=gb).held.dataset for gb in (1.0, 0.0)]
    both = ConcatDataset(views)  # one process, whose start takes seconds
    loader = DataLoader(both, 6, num_workers=1, multiprocessing_context="spawn")
    for view, (X, y) in zip(views, loader, strict=True):
        assert torch.equal(X, torch.stack([view[i][0] for i in range(6)]))
        assert y.tolist() == [0] * 3 + [1] * 3


def test_what_was_found_is_remembered_until_the_images_change(tmp_path, monkeypatch):
    make(tmp_path / "d", ("train", "test"))
    calls = []
    for name in ("survey", "decode"):
        real = getattr(image_folder.image_files, name)

        def note(*args, name=name, real=real):
            calls.append(name)
            return real(*args)

        monkeypatch.setattr(image_folder.image_files, name, note)
    notebooks = (str(tmp_path / "runs" / "notes.json"), str(tmp_path / "others.json"))
    specs = [searched(tmp_path / "d", notebooks=notebooks, cache_gb=0.0).spec for _ in range(2)]
    assert calls == ["survey", "decode"]
    assert specs[0] == specs[1]
    # the other script has a notebook of its own, and reads this one
    assert searched(tmp_path / "d", notebooks=notebooks[::-1], cache_gb=0.0).spec == specs[0]
    assert calls == ["survey", "decode"]
    write(tmp_path / "d/train/cat/00.png", seed=5)
    changed = searched(tmp_path / "d", notebooks=notebooks, cache_gb=0.0).spec
    assert calls == ["survey", "decode"] * 2
    assert changed.mean != specs[0].mean
    assert not list((tmp_path / "d").rglob("*.json"))  # nothing is left in the user's folder


def test_a_saved_spec_is_taken_over(tmp_path):
    make(tmp_path, ("train", "test"))
    saved = named.DataSpec("d", 1, (5, 6), ("dog", "cat"), (0.3,), (0.2,))
    spec, loader = loaders.held_data("folder", str(tmp_path), 4, 0, options=options(saved=saved))
    assert spec == saved
    X, y = next(iter(loader))
    assert X.shape == (4, 1, 5, 6)
    assert y.tolist() == [0] * 4  # dogs come first
    image = image_folder.image_files.read(tmp_path / "test/dog/00.png", 1, (5, 6))
    torch.testing.assert_close(X[0], (image / 255 - 0.3) / 0.2)


# --- both scripts -------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """main(words) in an empty folder -> what it printed."""
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path / "runs")

    def call(main, *words):
        capsys.readouterr()
        main([str(word) for word in words])
        return capsys.readouterr().out

    return call


def test_from_a_folder_to_a_score(tmp_path, run):
    make(tmp_path / "my pets", ("train", "val", "test"), size=(6, 9), mode="L")
    out = run(search.main, *SEARCH, "--dataset", "../my pets", "--augment", "light", "--no-hflip",
              "--seed", "5")  # fmt: skip
    assert "my pets: 10 images for w, 10 for alpha, batch 4, w_lr 0.025; grey 6x9, 2 classes" in out
    assert "augmentation light (asked), not mirrored" in out
    assert "top2 100.00%" in out  # two classes: it is called what it is
    assert "top5" not in out
    assert re.search(r"loader [\d,]+ images per second, network [\d,]+", out)
    record = lines("searchs/my-pets/metrics.jsonl")[0]
    rates = [record[f"{what}images_per_second"] for what in ("loader_", "step_", "")]
    assert 1 / rates[0] + 1 / rates[1] == pytest.approx(1 / rates[2])
    assert 0 < record["wait_seconds"] < record["seconds"]
    about = json.loads(Path("searchs/my-pets/genotype.json").read_text())
    assert (about["dataset"], about["size"]) == ("my pets", [6, 9])

    words = shlex.split(out.strip().splitlines()[-1])[2:]
    assert words == ["--genotype", "searchs/my-pets", "--workers", "0"]  # it knows the images
    out = run(augment.main, *words, *AUGMENT)
    assert "augmentation light (asked), not mirrored" in out
    assert "20 training images, 20 val images, grey 6x9" in out
    assert "val accuracy of the last epoch (1)" in out
    tested = re.search(r"test accuracy of the last epoch: ([\d.]+%)", out)[1]
    state = torch.load("augments/my-pets/checkpoint.pt", weights_only=True)

    # scored again by what the checkpoint says, wherever the images are now
    os.rename(tmp_path / "my pets", tmp_path / "moved")
    for part in ("val", "test"):  # dog is the second class still
        for i in range(10):
            os.unlink(tmp_path / f"moved/{part}/cat/{i:02}.png")
        os.rmdir(tmp_path / f"moved/{part}/cat")
    scores = run(augment.main, "--evaluate", "augments/my-pets/checkpoint.pt",
                 "--data_path", "../moved")  # fmt: skip
    assert f"my pets val split: top1 {2 * state['top1'] - _right(state, tmp_path):.2%}" in scores
    assert "my pets test split: top1" in scores
    assert float(tested.rstrip("%")) <= 100


def _right(state, tmp_path):
    """Share of the val cats that the saved network gets right, computed by hand."""
    cfg = augment.AugmentConfig(["--genotype", "DARTS_V2", *AUGMENT])
    spec = named.DataSpec.from_dict(state["data"])
    net = augment_cnn.build(spec, cfg, augment.gt.from_str(state["genotype"]))
    net.load_state_dict(state["model"])
    X = []
    for i in range(10):
        write(tmp_path / "cats" / f"{i:02}.png", (6, 9), "L", seed=0)
        pixels = np.asarray(Image.open(tmp_path / "cats" / f"{i:02}.png")) / 255
        X.append((pixels - spec.mean[0]) / spec.std[0])
    X = torch.tensor(np.stack(X)[:, None], dtype=torch.float32)
    with torch.no_grad():
        return (net.eval()(X)[0].argmax(1) == 0).float().mean().item()


def test_resuming_keeps_what_was_found(tmp_path, run, monkeypatch):
    make(tmp_path / "pets")
    words = [*SEARCH, "--dataset", tmp_path / "pets", "--epochs", "2"]
    run(search.main, *words, "--name", "straight")
    assert len(Path("searchs/straight/held-out.txt").read_text().split()) == 4
    validate, calls = search.validate, []

    def cut_off(*args):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return validate(*args)

    monkeypatch.setattr(search, "validate", cut_off)
    with pytest.raises(SystemExit):
        run(search.main, *words, "--name", "cut")
    monkeypatch.setattr(search, "validate", validate)
    # other statistics now, were they computed anew
    monkeypatch.setattr(image_folder.image_files, "mean_and_std", lambda counts: ((9,) * 3,) * 2)
    os.unlink("searchs/.images.json")
    run(search.main, "--name", "cut", "--resume", "--dataset", tmp_path / "pets")
    states = [
        torch.load(f"searchs/{name}/checkpoint.pt", weights_only=True)
        for name in ("straight", "cut")
    ]
    for key in set(states[0]) - {"flags"}:
        assert equal(states[0][key], states[1][key]), key


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--dataset nope", "unknown data set 'nope'"),
        ("--dataset folder --data_path nope", "nope is no folder of images"),
        ("--dataset one", "one/train has one class only, cat"),
        ("--input_size 8 8 8", "--input_size takes H and W"),
        ("--augment wild", "argument --augment"),
        ("--subset 0", "argument --subset"),
        ("--in_channels 2", "argument --in_channels"),
    ],
)
def test_what_cannot_run_ends_in_one_line(here, words, message, capsys):
    make(here / "one", classes=("cat",))
    for main, more in ((search.main, []), (augment.main, ["--genotype", "DARTS_V2"])):
        with pytest.raises(SystemExit) as caught:
            main([*words.split(), *more])
        assert caught.value.code == 2
        text = capsys.readouterr().err
        assert message in text
        assert text.count("\n") == 1
        assert os.listdir(here) == ["one"]


def test_weights_and_smoothing_reach_the_loss_of_training_alone(tmp_path, run, monkeypatch):
    make(tmp_path / "rare", ("train", "test"), n=9)
    for i in range(3, 9):
        os.unlink(tmp_path / f"rare/train/dog/{i:02}.png")
    flags = ["--label_smoothing", "0.1", "--class_weights", "balanced"]
    seen, real = [], loaders.utils.criterion

    def note(*args):
        seen.append(real(*args))
        return seen[-1]

    monkeypatch.setattr(loaders.utils, "criterion", note)
    out = run(search.main, *SEARCH, "--dataset", "../rare", *flags)
    assert "class dog has 3 training images, cat 9; class weights balanced" in out
    words = shlex.split(out.strip().splitlines()[-1])[2:]
    assert words[:2] == ["--genotype", "searchs/rare"]  # which knows the flags
    out = run(augment.main, *words, *AUGMENT)
    assert "class weights balanced" in out
    logits, y = torch.tensor([[2.0, 0.0], [1.0, 3.0]]), torch.tensor([0, 0])
    log_p = torch.log_softmax(logits, 1)
    weight = torch.tensor([12 / (2 * 9), 12 / (2 * 3)])
    smooth = -(0.9 * weight[0] * log_p[:, 0] + 0.05 * (log_p * weight).sum(1)) / weight[0]
    assert len(seen) == 2
    for criterion in seen:
        assert criterion(logits, y).item() == pytest.approx(smooth.mean().item(), rel=1e-5)
    held = [r for r in lines("augments/rare/metrics.jsonl") if r["phase"] == "val"][0]
    state = torch.load("augments/rare/checkpoint.pt", weights_only=True)
    scored = run(augment.main, "--evaluate", "augments/rare/checkpoint.pt")
    assert f"loss {held['loss']:.4f}" in scored
    assert state["flags"]["class_weights"] == "balanced"
    assert math.isfinite(held["loss"])


def test_a_folder_as_a_process(tmp_path):
    make(tmp_path / "pets", ("train", "test"), n=6)
    search_words = ["--dataset", "pets", *SEARCH, "--batch_size", "3"]
    done = subprocess.run(
        [sys.executable, ROOT / "search.py", *search_words],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    command = shlex.split(done.stdout.strip().splitlines()[-1])
    assert command[2:] == ["--genotype", "searchs/pets", "--workers", "0"]


def test_two_folders_that_look_alike_are_not_taken_for_each_other(tmp_path):
    """Unpacked BMP files may agree in names, sizes and times."""
    keys = []
    for name in ("one", "two"):
        make(tmp_path / name)
        for folder, _, files in os.walk(tmp_path / name):
            for file in files:
                (Path(folder) / file).write_bytes(b"12345678")
                os.utime(Path(folder) / file, (1, 1))
        listed, _ = image_folder.list_files(str(tmp_path / name / "train"))
        keys.append(image_folder.key_of(listed, 3, (8, 8)))
        assert image_folder.key_of(listed, 3, (8, 9)) != keys[-1]
        assert image_folder.key_of(listed, 3, (8, 8)) == keys[-1]
    assert keys[0] != keys[1]


def test_a_class_may_begin_with_an_underscore(tmp_path):
    make(tmp_path / "pets", ("train",), ("cat", "_none", ".hidden", "__MACOSX"))
    listed, _ = image_folder.list_files(str(tmp_path / "pets" / "train"))
    assert listed.classes == ("_none", "cat")


def test_a_training_elsewhere_sees_the_images_of_the_search(tmp_path, run, monkeypatch):
    make(tmp_path / "pets")
    run(search.main, *SEARCH, "--dataset", "../pets", "--test_portion", "0.3", "--no-hflip")
    found = os.path.abspath("searchs/pets")
    monkeypatch.chdir(tmp_path)
    run(augment.main, "--genotype", found, *AUGMENT)
    flags = json.loads(Path("augments/pets/config.json").read_text())["flags"]
    assert (flags["test_portion"], flags["hflip"]) == (0.3, False)
    assert flags["data_path"] == str(tmp_path / "pets")
    held = [Path(f, "held-out.txt").read_text() for f in (found, "augments/pets")]
    assert held[0] == held[1] != ""


def test_what_is_held_out_stands_for_the_whole_class(tmp_path):
    """Not the first files, which may be of one day; and the same ones when others go."""
    make(tmp_path / "pets", ("train",), n=40)
    listed, _ = image_folder.list_files(str(tmp_path / "pets" / "train"))
    train, held = image_folder.hold_out(listed, 0.25)
    assert sorted(train + held) == list(range(80))
    numbers = sorted(int(Path(listed.files[i]).stem) for i in held)
    assert len(held) == 20
    assert numbers[0] < 10 < 30 < numbers[-1]
    fewer = listed.only(sorted(train[:-4] + held))
    again = {fewer.files[i] for i in image_folder.hold_out(fewer, 0.25)[1]}
    assert len(again) == 19
    assert again <= {listed.files[i] for i in held}
