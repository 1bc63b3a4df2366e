"""Which folders are training, validation and test part, and which class folders are none."""

import re

import pytest
from data_helpers import keep_findings, make, options, write  # noqa: F401, a fixture

from data_sets import image_parts, loaders

SMALL = {"dataset": "folder", "batch_size": 4, "workers": 0}


def searched(root, **changes):
    return loaders.search_data(options(**SMALL, data_path=str(root), **changes))


def refused(root):
    with pytest.raises(ValueError) as caught:  # noqa: PT011, every caller reads the message
        searched(root)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("names", "part"),
    [
        ("train training Training TRAIN train_set training_set trainset seg_train train2017 "
         "images_train train_data traindata train-images imgs.train", "train"),
        ("val valid validation Validation dev eval valid_set val2017 evaluation devset", "val"),
        ("test testing Testing TEST test_set seg_test testset test-images", "test"),
        ("pred seg_pred predictions prediction", "pred"),
        ("cat trainer latest contest trainings_day train_car testis valley dev_ops data set "
         "images 1 2017 evil protest", None),
    ],
)  # fmt: skip
def test_parts_by_their_names(names, part):
    for name in names.split():
        assert image_parts.part_of(name) == part, name


def relative(root):
    return {part: str(path)[len(str(root)) + 1 :] for part, path in image_parts.find(root).items()}


@pytest.mark.parametrize(
    ("folders", "parts"),
    [
        # T2-4
        (["Training", "Testing"], {"train": "Training", "test": "Testing"}),
        (["train", "dev"], {"train": "train", "val": "dev"}),
        # T2-3
        (["training_set/training_set", "test_set/test_set"],
         {"train": "training_set/training_set", "test": "test_set/test_set"}),
        (["seg_train/seg_train", "seg_test/seg_test"],
         {"train": "seg_train/seg_train", "test": "seg_test/seg_test"}),
        (["train/train", "valid", "eval_images"], None),
        (["train", "training", "val"], {"train": "train", "val": "val"}),
    ],
)  # fmt: skip
def test_the_parts_of_a_folder(tmp_path, folders, parts):
    make(tmp_path, folders, n=5)
    if parts is None:
        with pytest.raises(ValueError, match="several folders .* val part: eval_images, valid"):
            image_parts.find(str(tmp_path))
    else:
        assert relative(tmp_path) == parts
        assert searched(tmp_path).class_counts == (5, 5)


def test_a_folder_beside_train_that_is_not_read_is_named(tmp_path, caplog):
    make(tmp_path, ["seg_train/seg_train", "seg_test/seg_test", "extra"])
    write(tmp_path / "seg_pred/seg_pred/1.png")
    (tmp_path / ".hidden").mkdir()
    searched(tmp_path)
    said = [text for text in caplog.messages if text.startswith("not read in")]
    assert len(said) == 1
    assert ": extra, seg_pred; read are seg_test, seg_train, by their names" in said[0]


def test_class_folders_that_look_like_parts_are_refused(tmp_path):
    make(tmp_path / "a/train", ["train", "val"])
    wanted = "look like parts of a data set; wanted is D/train/<class>/<images>"
    assert f"the class folders train, val of {tmp_path}/a/train {wanted}" in refused(tmp_path / "a")
    make(tmp_path / "b/train", ["."])
    make(tmp_path / "b/train", ["more"])
    assert f"the class folders more of {tmp_path}/b/train {wanted}" in refused(tmp_path / "b")
    make(tmp_path / "c", ["test", "val"])
    assert "has val, test but no train/<class>/<images>; if" in refused(tmp_path / "c")


def test_classes_that_stand_a_folder_deeper_are_named(tmp_path, caplog):
    make(tmp_path / "one", ["PetImages"])
    text = refused(tmp_path / "one")
    assert "has one class only, PetImages, which holds cat, dog; there must be two or more" in text
    assert f"did you mean {tmp_path}/one/PetImages?" in text
    make(tmp_path / "two", ["day 1", "day 2"])
    assert searched(tmp_path / "two").spec.classes == ("day 1", "day 2")
    assert "holds the folders cat, dog; if these are the classes, wanted is" in caplog.text
    caplog.clear()
    write(tmp_path / "two/day 1/1.png")
    searched(tmp_path / "two")
    assert "holds the folders" not in caplog.text


def test_a_search_finds_classes_that_only_another_part_has(tmp_path):
    make(tmp_path, ("train", "val"))
    write(tmp_path / "val/emu/00.png")
    assert re.search("val has classes that the training images have not: emu", refused(tmp_path))
