"""Folders of one's own images: what is found in them, what is refused, and both scripts on them."""

import json
import math
import os
import pickle
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import lines
from data_helpers import keep_findings, make, options, write  # noqa: F401, a fixture
from PIL import Image

import augment
import evaluate
import predict
import search
import utils
from data_sets import cache, image_files, image_folder, loaders, named, splits
from models import augment_cnn
from tracking import trained_network

SEARCH = ["--layers", "2", "--init_channels", "2", "--n_nodes", "1", "--batch_size", "4",
          "--epochs", "1", "--workers", "0"]  # fmt: skip
AUGMENT = ["--layers", "2", "--init_channels", "2", "--batch_size", "4", "--epochs", "1",
           "--workers", "0"]  # fmt: skip


def folder(root, **changes):
    """DataOptions of an image folder."""
    small = {"dataset": "folder", "data_path": str(root), "batch_size": 4, "workers": 0}
    return options(**{**small, **changes})


def searched(root, **changes):
    return loaders.search_data(folder(root, **changes))


def trained(root, **changes):
    return loaders.augment_data(folder(root, cutout_length=None, **changes))


def loaded(root, part, **changes):
    """The data set of one part."""
    return image_folder.load(part, folder(root, **changes), cache.CacheBudget(2)).dataset


def images(loader):
    """The ImageFiles below a loader."""
    return splits.source(loader.dataset)


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
    X, y = next(iter(data.val))
    assert X.shape == (4, 3, 6, 9)
    wanted = np.asarray(Image.open(tmp_path / "test/a/00.png")) / 255
    wanted = (wanted - data.spec.mean) / data.spec.std
    np.testing.assert_allclose(X[0].permute(1, 2, 0), wanted, atol=1e-5)
    assert [len(y) for _, y in data.val] == [4] * 7 + [2]
    assert searched(tmp_path).spec == data.spec


def test_every_kind_of_file_in_nested_folders(tmp_path, caplog):
    kinds = ("png", "jpg", "JPEG", "jfif", "webp", "bmp", "TIFF", "gif", "ppm", "jp2")
    for name in ("cat", "dog"):
        for i, kind in enumerate(kinds):
            how = {"format": "JPEG"} if kind == "jfif" else {}
            write(tmp_path / "train" / name / f"more {i % 2}" / f"{i}.{kind}", **how)
    (tmp_path / "train/cat/readme.txt").write_text("not an image")
    (tmp_path / "train/cat/sheet.PDF").write_text("nor this")
    (tmp_path / "train/dog/sheet.pdf").write_text("nor this")
    (tmp_path / "train/cat/.hidden.png").write_text("nor this")
    write(tmp_path / "train/loose.png")
    data = trained(tmp_path)
    assert len(data.train.dataset) + len(data.val.dataset) == 20
    left_out = [text for text in caplog.messages if "left out" in text]
    root = tmp_path / "train"
    wanted = f"left out in {root}: 2 .pdf, 1 .txt, 1 outside the class folders"
    assert left_out == [wanted]  # once, though training and held-out images lie there


def test_copies_that_a_notebook_left_are_not_trained_on(tmp_path):
    make(tmp_path, ("train",), n=12)
    for i in range(6):
        write(tmp_path / f"train/cat/.ipynb_checkpoints/{i:02}-checkpoint.png")
    (tmp_path / "train/.ipynb_checkpoints").mkdir()
    data = trained(tmp_path)
    assert data.spec.classes == ("cat", "dog")
    assert len(data.train.dataset) + len(data.val.dataset) == 24


def test_links_in_class_folders(tmp_path):
    make(tmp_path / "pets", ("train",), n=12)
    (tmp_path / "pets/train/cat/loop").symlink_to(".")
    (tmp_path / "pets/train/cat/up").symlink_to("..")
    assert searched(tmp_path / "pets", test_portion=0.25).class_counts == (9, 9)
    (tmp_path / "links").mkdir()
    for name in ("cat", "dog"):
        (tmp_path / "links" / name).symlink_to(tmp_path / "pets/train" / name)
    assert searched(tmp_path / "links", test_portion=0.25).class_counts == (9, 9)


def test_links_that_lead_nowhere_are_broken_images_and_pipes_none(tmp_path):
    make(tmp_path, ("train", "test"))
    os.mkfifo(tmp_path / "train/cat/pipe.png")  # reading it would wait for ever
    assert searched(tmp_path).class_counts == (10, 10)
    (tmp_path / "train/cat/gone.png").symlink_to("nowhere.png")
    text = refused(tmp_path)
    assert "1 of 21 image files" in text
    assert "cat/gone.png ([Errno 2] No such file or directory)" in text
    assert searched(tmp_path, bad_images="skip").class_counts == (10, 10)


@pytest.mark.parametrize("name", [b"train/cat/caf\xe9.png", b"train/caf\xe9/00.png"])
def test_file_names_that_are_not_utf8(tmp_path, name):
    make(tmp_path, ("train", "test"))
    path = os.fsencode(tmp_path) + b"/" + name
    os.makedirs(os.path.dirname(path), exist_ok=True)
    os.rename(tmp_path / "train/cat/00.png", path)
    text = refused(tmp_path)
    assert r"caf\xe9" in text
    assert "is not UTF-8; rename it" in text


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
def test_modes_are_converted_and_logged(tmp_path, modes, C_in, said, caplog):
    for name in ("cat", "dog"):
        for i in range(8):
            write(tmp_path / "train" / name / f"{i}.png", mode=modes[i % len(modes)])
    data = searched(tmp_path)
    assert data.spec.C_in == C_in
    assert next(iter(data.train))[0].shape == (4, C_in, 8, 8)
    converted = [text for text in caplog.messages if "converted to " in text]
    assert len(converted) == (said is not None)
    assert said is None or said in converted[0]
    other = 4 - C_in
    data = searched(tmp_path, in_channels=other)
    assert data.spec.C_in == len(data.spec.mean) == other
    assert next(iter(data.val))[0].shape == (4, other, 8, 8)


def test_images_of_several_sizes_take_the_median_and_input_size_another(tmp_path, caplog):
    make(tmp_path, n=4, size=(12, 10))
    for i in range(3):
        write(tmp_path / "train/cat" / f"large{i}.png", (40, 80))
    write(tmp_path / "train/dog/small.png", (3, 5))
    data = searched(tmp_path)
    assert data.spec.size == (12, 10)
    assert "scaled and cut to 12x10: 3 images of 2 other sizes" in caplog.text
    assert searched(tmp_path, input_size=[7, 9]).spec.size == (7, 9)
    X, _ = next(iter(searched(tmp_path, input_size=[7, 9]).train))
    assert X.shape == (4, 3, 7, 9)


def test_a_search_never_opens_what_is_held_out(tmp_path):
    make(tmp_path / "a", ("train", "val", "test"))
    make(tmp_path / "b")
    train, held = (loaded(tmp_path / "b", part).files for part in ("train", "held-out"))
    assert len(held) == 4
    assert not set(train) & set(held)
    for file in [*(tmp_path / "a/val").rglob("*.png"), *(tmp_path / "a/test").rglob("*.png"),
                 *(tmp_path / "b/train" / file for file in held)]:  # fmt: skip
        file.write_text("no image: who opens it fails")
    assert len(searched(tmp_path / "a").spec.classes) == 2
    data = searched(tmp_path / "b")
    assert set(data.held_out_files) == set(held)
    for root in ("a", "b"):
        with pytest.raises(ValueError, match="cannot be read"):
            trained(tmp_path / root)


def test_the_same_images_are_held_out_whatever_the_seed_and_the_place(tmp_path):
    for root in ("here", "there"):
        make(tmp_path / root, n=15)
    held = []
    for root, seed in (("here", 0), ("here", 7), ("there", 1)):
        data = trained(tmp_path / root, seed=seed)
        assert data.val_name == "held-out"
        held.append(images(data.val).files)
        assert held[-1] == sorted(data.held_out_files)
        assert not set(held[-1]) & set(images(data.train).files)
        assert [f.split("/")[0] for f in held[-1]] == ["cat"] * 3 + ["dog"] * 3
        again = searched(tmp_path / root, seed=seed)
        assert sorted(again.held_out_files) == held[-1]
    assert held[0] == held[1] == held[2]
    # other images hardly change it: those that were held out still are
    (tmp_path / "here/train/cat/00.png").unlink()
    changed = images(trained(tmp_path / "here").val).files
    assert len(set(changed) & set(held[0])) >= 5


def test_classes_directly_in_the_folder_are_a_training_part(tmp_path):
    make(tmp_path, parts=("",))
    data = trained(tmp_path)
    assert (len(data.train.dataset), len(data.val.dataset)) == (16, 4)


def test_val_scores_every_epoch_and_test_the_end(tmp_path):
    data = trained(make(tmp_path / "both", ("train", "val", "test")))
    assert data.val_name == "val"
    assert images(data.val).root == str(tmp_path / "both/val")
    assert images(data.test).root == str(tmp_path / "both/test")
    data = trained(make(tmp_path / "val", ("train", "valid")))
    assert (data.val_name, data.test) == ("val", None)
    # ImageNet's test images have no labels
    make(tmp_path / "net", ("train", "val"))
    write(tmp_path / "net/test/00.png")
    assert trained(tmp_path / "net").test is None


def test_imagenet_layout_has_its_own_size_and_statistics(tmp_path):
    make(tmp_path, ("train", "val"), n=4, size=(10, 12))
    data = searched(tmp_path, dataset="imagenet", batch_size=2)
    assert data.spec.size == (224, 224)
    assert data.spec.mean == (0.485, 0.456, 0.406)
    assert next(iter(data.train))[0].shape == (2, 3, 224, 224)


def test_subset_is_a_seeded_portion_of_every_class(tmp_path):
    make(tmp_path, ("train", "test"), n=20)
    files = [images(searched(tmp_path, subset=0.3, seed=seed).train).files for seed in (0, 0, 1)]
    assert [f.split("/")[0] for f in files[0]] == ["cat"] * 6 + ["dog"] * 6
    assert files[0] == files[1] != files[2]
    assert len(trained(tmp_path, subset=0.3).val.dataset) == 40


# --- what is refused, in one line ---------------------------------------------------------------


def test_folders_that_cannot_be_trained_on(tmp_path):
    assert "is no folder of images" in refused(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "neither images nor class folders" in refused(tmp_path / "empty")
    (tmp_path / "run" / "plots").mkdir(parents=True)
    for name in ("config.json", "metrics.jsonl", "summary.json"):
        (tmp_path / "run" / name).touch()
    assert "is the folder of a run; name that of your images" in refused(tmp_path / "run")
    write(tmp_path / "loose/train/00.png")
    assert "images but no class folders" in refused(tmp_path / "loose")
    assert "has one class only, cat" in refused(make(tmp_path / "one", classes=("cat",)))
    make(tmp_path / "hollow")
    (tmp_path / "hollow/train/emu").mkdir()
    write(tmp_path / "hollow/train/emu/00.png")
    (tmp_path / "hollow/train/emu/00.png").rename(tmp_path / "hollow/train/emu/00.txt")
    text = refused(tmp_path / "hollow")
    assert "has no image of class emu; read are PNG, JPEG" in text
    assert "left out are 1 .txt" in text
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


def test_classes_that_differ_between_the_parts(tmp_path, caplog):
    make(tmp_path / "more", ("train", "test"))
    write(tmp_path / "more/test/emu/00.png")
    with pytest.raises(ValueError, match="classes that the training images have not: emu"):
        trained(tmp_path / "more")
    make(tmp_path / "less", ("train", "test"), ("cat", "dog", "emu"))
    for file in (tmp_path / "less/test/dog").iterdir():
        file.unlink()
    (tmp_path / "less/test/dog").rmdir()
    data = trained(tmp_path / "less")
    assert "has no images of class dog; the score leaves" in caplog.text
    assert sorted({int(y) for _, ys in data.val for y in ys}) == [0, 2]  # not renumbered


def test_names_in_two_unicode_forms_are_one_class(tmp_path):
    """A Mac may write é as e and an accent; Linux and Windows keep what they are given."""
    one, two = "caf\u00e9", "cafe\u0301"
    make(tmp_path / "a", ("train",), (one, "dog"))
    make(tmp_path / "a", ("test",), (two, "dog"))
    write(tmp_path / "a/train" / two / "more.png")
    data = trained(tmp_path / "a")
    assert data.spec.classes == (one, "dog")
    assert (data.class_counts, len(data.val.dataset)) == ((11, 10), 20)
    make(tmp_path / "b", ("train",), (one, "dog"))
    make(tmp_path / "c", ("train",), (two, "dog"))
    held_out, prints = zip(*[
        ({name[-6:] for name in data.held_out_files}, data.images)
        for data in (searched(tmp_path / name) for name in "bc")
    ], strict=True)  # fmt: skip
    assert held_out[0] == held_out[1]
    assert prints[0] == prints[1]


def test_the_range_of_16_bits_is_kept_in_the_checkpoint_and_used_by_predict(here, capsys, caplog):
    """T2-5: of two classes that differ by 150 of 4,096 values both became constants."""
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        for name, level in (("dark", 1000), ("light", 1150)):
            for i in range(12):
                path = here / "scans" / part / name / f"{i:02}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = rng.integers(level, level + 20, (8, 8)).astype(np.uint16)
                pixels[0, 0] = 3000
                Image.fromarray(pixels).save(path)
    data = searched(here / "scans")
    assert data.spec.white == 4095
    assert "is 3000: 12 bits are taken for their range" in caplog.text
    augment.main([*AUGMENT, "--dataset", "scans", "--genotype", "DARTS_V2", "--name", "a"])
    trained_net = trained_network.load("augments/a/checkpoint.pt")
    assert trained_net.spec.white == 4095
    test = images(trained(here / "scans").val)
    (_, x), = predict.read_images(["scans/test/light/03.png"], trained_net.spec)  # fmt: skip
    assert torch.equal(x * 255, test[15][0].float())
    assert 70 < float(x[0, 4, 4] * 255) < 74  # 1150 to 1170 of 4095


def test_images_that_are_too_large_are_listed_and_may_be_allowed(tmp_path):
    make(tmp_path, ("train", "test"))
    write(tmp_path / "train/cat/huge.png", (40, 30))
    text = refused(tmp_path, max_megapixels=0.001)
    assert "cat/huge.png (40x30 pixels are above --max_megapixels 0.001)" in text
    assert "broken" not in text
    assert searched(tmp_path, max_megapixels=0.002).class_counts == (11, 10)
    assert searched(tmp_path, max_megapixels=0.001, bad_images="skip").class_counts == (10, 10)


def test_images_of_which_little_is_left_are_counted(tmp_path, caplog):
    make(tmp_path, ("train", "test"), size=(10, 12))
    for i, size in enumerate(((10, 40), (10, 60), (3, 400), (90, 9))):
        write(tmp_path / f"train/cat/odd{i}.png", size)
    searched(tmp_path)
    assert "of 3 images less than a quarter is left, the middle" in caplog.text
    assert "from 10x12 (one has 3x400)" in caplog.text


def test_broken_files_are_listed_and_refused_or_skipped(tmp_path, caplog):
    make(tmp_path, ("train", "test"))
    whole = (tmp_path / "train/cat/03.png").read_bytes()
    (tmp_path / "train/cat/03.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "train/dog/07.png").write_text("<html>not found</html>")
    (tmp_path / "test/dog/01.png").write_bytes(b"")
    cache_files = (str(tmp_path / "cache.json"),)
    text = refused(tmp_path, cache_files=cache_files)
    assert "2 of 20 image files looked at in" in text
    assert "cat/03.png (" in text
    assert "dog/07.png (cannot identify image file)" in text  # and no empty quotes
    assert "--bad_images skip" in text
    for cache_gb in (1.0, 0.0):  # from memory, and from disk with what is remembered
        caplog.clear()
        data = trained(tmp_path, bad_images="skip", cache_files=cache_files, cache_gb=cache_gb)
        assert len(data.train.dataset) == 18
        assert len(data.val.dataset) == 19
        said = [text for text in caplog.messages if "cannot be read and are skipped" in text]
        assert ["2 of 20" in said[0], "1 of 20" in said[1]] == [True, True]
        assert sum(len(y) for _, y in data.val) == 19
        assert sum(len(y) for _, y in data.train) == 16
    (tmp_path / "train/cat/03.png").write_bytes(whole)
    assert "1 of 20 image files" in refused(tmp_path, cache_files=cache_files)
    for file in (tmp_path / "train/cat").iterdir():
        file.write_text("x")
    assert "among them every image of class cat" in refused(tmp_path, bad_images="skip")


# --- memory, workers, what is remembered --------------------------------------------------------


def test_images_are_the_same_from_memory_and_from_disk(tmp_path, caplog):
    make(tmp_path, ("train", "test"), size=(9, 7))
    memory, disk = (searched(tmp_path, cache_gb=gb, workers=None) for gb in (1.0, 0.0))
    pairs = [images(data.train) for data in (memory, disk)]
    assert [pair.in_memory for pair in pairs] == [True, False]
    assert memory.train.num_workers == 0 < disk.train.num_workers
    assert memory.spec == disk.spec
    for i in range(20):
        assert torch.equal(pairs[0][i][0], pairs[1][i][0])
    assert "are in memory" in caplog.messages[0]
    assert caplog.messages[2].endswith(
        "read from disk each time: decoded they take 3.7 KiB, more than the 0 bytes that are left "
        "of --cache_gb"
    )
    # memory for the training part alone
    data = trained(tmp_path, cache_gb=20 * 9 * 7 * 3 / 1e9)
    assert images(data.train).in_memory
    assert not images(data.val).in_memory


def test_loader_processes_may_be_spawned(tmp_path):
    """They get a pickle of the data set."""
    make(tmp_path, ("train", "test"), n=3)
    views = [trained(tmp_path, cache_gb=gb).val.dataset for gb in (1.0, 0.0)]
    views.append(loaders.augment_data(options(input_size=[7, 7], subset=0.5)).train.dataset)
    for view in views:
        again = pickle.loads(pickle.dumps(view))
        assert len(again) == len(view)
        for i in range(6):
            torch.manual_seed(i)
            image, y = view[i]
            torch.manual_seed(i)
            assert torch.equal(again[i][0], image)
            assert again[i][1] == y


def test_what_was_found_is_cached_until_the_images_change(tmp_path, monkeypatch):
    make(tmp_path / "d", ("train", "test"))
    calls = []
    for name in ("survey", "decode"):
        real = getattr(image_files, name)

        def note(*args, name=name, real=real):
            calls.append(name)
            return real(*args)

        monkeypatch.setattr(image_files, name, note)
    cache_files = (str(tmp_path / "runs" / "cache.json"), str(tmp_path / "others.json"))
    specs = [searched(tmp_path / "d", cache_files=cache_files, cache_gb=0.0).spec for _ in range(2)]
    assert calls == ["survey", "decode"]
    assert specs[0] == specs[1]
    # the other script has a cache file of its own, and reads this one
    assert searched(tmp_path / "d", cache_files=cache_files[::-1], cache_gb=0.0).spec == specs[0]
    assert calls == ["survey", "decode"]
    write(tmp_path / "d/train/cat/00.png", seed=5)
    changed = searched(tmp_path / "d", cache_files=cache_files, cache_gb=0.0).spec
    assert calls == ["survey", "decode"] * 2
    assert changed.mean != specs[0].mean
    assert not list((tmp_path / "d").rglob("*.json"))  # nothing is left in the user's folder


def test_nothing_is_found_anew_where_the_spec_is_known(tmp_path):
    make(tmp_path, ("train", "val", "test"))
    spec = named.DataSpec("d", 1, (5, 6), ("dog", "cat"), (0.3,), (0.2,))
    scored = loaders.scored_loaders(folder(tmp_path, known_spec=spec))
    assert list(scored) == ["val", "test"]
    X, y = next(iter(scored["test"]))
    assert X.shape == (4, 1, 5, 6)
    assert y.tolist() == [0] * 4  # dogs come first
    image = image_files.read(tmp_path / "test/dog/00.png", 1, (5, 6))
    torch.testing.assert_close(X[0], (image / 255 - 0.3) / 0.2)
    assert searched(tmp_path, known_spec=spec).spec == spec
    assert trained(tmp_path, known_spec=spec).spec == spec


def test_each_image_is_decoded_once(tmp_path, monkeypatch):
    make(tmp_path, ("train", "val", "test"))
    spec, decoded, read = trained(tmp_path).spec, [], image_files.read

    def note(path, *how):
        decoded.append(path)
        return read(path, *how)

    monkeypatch.setattr(image_files, "read", note)
    for loader in loaders.scored_loaders(folder(tmp_path, known_spec=spec)).values():
        for _ in range(2):
            assert sum(len(y) for _, y in loader) == 20
    assert len(decoded) == len(set(decoded)) == 40
    decoded.clear()
    for _, y in trained(tmp_path).train:
        assert len(y) == 4
    assert len(decoded) == len(set(decoded)) == 60


# --- both scripts -------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """main(words) in an empty folder -> what it printed."""
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path / "runs")

    def call(main, *words):
        capsys.readouterr()
        main([str(word) for word in words])
        out, err = capsys.readouterr()
        assert err == ""
        return out

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
    scores = run(evaluate.main, "augments/my-pets/checkpoint.pt",
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
    words = [*SEARCH, "--dataset", tmp_path / "pets", "--epochs", "2", "--name", "cut"]
    validate, calls = search.validate, []

    def cut_off(*args):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return validate(*args)

    monkeypatch.setattr(search, "validate", cut_off)
    with pytest.raises(SystemExit):
        run(search.main, *words)
    assert len(Path("searchs/cut/held-out.txt").read_text().split()) == 4
    monkeypatch.setattr(search, "validate", validate)
    # other statistics now, were they computed anew
    monkeypatch.setattr(image_files, "mean_and_std", lambda counts: ((9,) * 3,) * 2)
    os.unlink("searchs/.images.json")
    before = torch.load("searchs/cut/checkpoint.pt", weights_only=True)
    run(search.main, "--name", "cut", "--resume", "--dataset", tmp_path / "pets")
    after = torch.load("searchs/cut/checkpoint.pt", weights_only=True)
    assert (before["epoch"], after["epoch"]) == (1, 2)
    assert before["data"] == after["data"]
    assert searched(tmp_path / "pets").spec.mean == (9,) * 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--dataset nope", "unknown data set 'nope'"),
        ("--dataset onn", "did you mean 'one'?"),
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


def test_a_training_elsewhere_has_the_images_and_the_loss_of_its_search(tmp_path, run, monkeypatch):
    make(tmp_path / "rare", n=9)
    for i in range(3, 9):
        os.unlink(tmp_path / f"rare/train/dog/{i:02}.png")
    flags = "--test_portion 0.3 --no-hflip --label_smoothing 0.1 --class_weights balanced"
    losses, real = [], utils.criterion

    def note(*args):
        losses.append(real(*args))
        return losses[-1]

    monkeypatch.setattr(utils, "criterion", note)
    out = run(search.main, *SEARCH, "--dataset", "../rare", *flags.split())
    assert "class dog has 2 training images, cat 6; class weights balanced" in out
    words = shlex.split(out.strip().splitlines()[-1])[2:]
    assert words == ["--genotype", "searchs/rare", "--workers", "0"]  # which knows the flags
    found = os.path.abspath("searchs/rare")
    monkeypatch.chdir(tmp_path)
    out = run(augment.main, "--genotype", found, *AUGMENT)
    assert "class weights balanced" in out
    state = torch.load("augments/rare/checkpoint.pt", weights_only=True)
    flags = {k: state["flags"][k] for k in ("test_portion", "hflip", "data_path", "class_weights")}
    assert flags == {"test_portion": 0.3, "hflip": False, "data_path": str(tmp_path / "rare"),
                     "class_weights": "balanced"}  # fmt: skip
    held_out = [Path(f, "held-out.txt").read_text() for f in (found, "augments/rare")]
    assert held_out[0] == held_out[1] != ""

    # the loss of training, against its definition
    logits, y = torch.tensor([[2.0, 0.0], [1.0, 3.0]]), torch.tensor([0, 0])
    log_p = torch.log_softmax(logits, 1)
    weight = torch.tensor([8 / (2 * 6), 8 / (2 * 2)])
    smooth = -(0.9 * weight[0] * log_p[:, 0] + 0.05 * (log_p * weight).sum(1)) / weight[0]
    assert len(losses) == 3  # the search, the estimate of the training's time, the training
    for criterion in losses:
        assert criterion(logits, y).item() == pytest.approx(smooth.mean().item(), rel=1e-5)
    # scores have neither
    val = [r for r in lines("augments/rare/metrics.jsonl") if r["phase"] == "val"][0]
    assert math.isfinite(val["loss"])
    assert f"loss {val['loss']:.4f}" in run(evaluate.main, "augments/rare/checkpoint.pt")


def test_two_folders_that_look_alike_are_not_taken_for_each_other(tmp_path):
    """Unpacked BMP files may agree in names, sizes and times."""
    keys = []
    for name in ("one", "two"):
        make(tmp_path / name)
        for folder, _, files in os.walk(tmp_path / name):
            for file in files:
                (Path(folder) / file).write_bytes(b"12345678")
                os.utime(Path(folder) / file, (1, 1))
        listed = image_folder.list_files(str(tmp_path / name / "train"))
        keys.append(image_folder.key_of(listed, 3, (8, 8)))
        assert image_folder.key_of(listed, 3, (8, 9)) != keys[-1]
        assert image_folder.key_of(listed, 3, (8, 8)) == keys[-1]
    assert keys[0] != keys[1]


def test_a_class_may_begin_with_an_underscore(tmp_path):
    make(tmp_path / "pets", ("train",), ("cat", "_none", ".hidden", "__MACOSX"))
    listed = image_folder.list_files(str(tmp_path / "pets" / "train"))
    assert listed.classes == ("_none", "cat")


def test_what_is_held_out_stands_for_the_whole_class(tmp_path):
    """Not the first files, which may be of one day; and the same ones when others go."""
    make(tmp_path / "pets", ("train",), n=40)
    listed = image_folder.list_files(str(tmp_path / "pets" / "train"))
    train, held = image_folder.hold_out(listed, 0.25)
    assert sorted([*train, *held]) == list(range(80))
    numbers = sorted(int(Path(listed.files[i]).stem) for i in held)
    assert len(held) == 20
    assert numbers[0] < 10 < 30 < numbers[-1]
    fewer = listed.only(sorted([*train[:-4], *held]))
    again = {fewer.files[i] for i in image_folder.hold_out(fewer, 0.25)[1]}
    assert len(again) == 19
    assert again <= {listed.files[i] for i in held}
