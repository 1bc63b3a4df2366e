"""evaluate.py: the scores of a trained network, once more."""

import os
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest
import torch
from apple import on_apple
from conftest import CPU, TINY_AUGMENT, checkpoint_of, ends_in_one_line, lines, run_in
from data_helpers import make

import augment
import evaluate
import utils
from config import EvaluateConfig
from data_sets import image_files
from models import ops
from tracking import trained_network


@pytest.fixture
def there(finished_augment, monkeypatch):
    """The folder that holds augments/a is the current one."""
    monkeypatch.chdir(finished_augment[0])
    return finished_augment[0]


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    """A folder with pets/, images in three parts, and augments/p, trained on them."""
    folder = tmp_path_factory.mktemp("pets")
    make(folder / "pets", ("train", "val"), n=4)
    make(folder / "pets", ("test",), n=3)  # `make` draws the same images in every part
    words = ["--dataset", "pets", "--genotype", "PDARTS", "--batch_size", "4", "--epochs", "1"]
    run_in(folder, augment.main, [*TINY_AUGMENT, *words, "--name", "p"])
    return folder


def test_both_checkpoints_score_what_their_training_logged(there, tmp_path, monkeypatch, capsys):
    shutil.copytree(there, tmp_path / "w")
    monkeypatch.chdir(tmp_path / "w")
    shutil.copy("augments/a/previous.pt", "augments/a/best.pt")  # not the epoch of the last
    records = {r["epoch"]: r for r in lines("augments/a/metrics.jsonl") if r["phase"] == "val"}
    tree = sorted(Path().rglob("*"))
    last, best = "augments/a/checkpoint.pt", "augments/a/best.pt"
    for run, paths in (("augments/a", [last, best]), (best, [best]), (last, [last])):
        found = evaluate.main([run])
        said = capsys.readouterr().out.splitlines()
        by_class, said = said[1::2], said[::2]
        assert len(found) == len(said) == len(by_class) == len(paths)
        assert all(line.startswith("    per class: ") for line in by_class)
        for path, result, line in zip(paths, found, said, strict=True):
            epoch = torch.load(path, weights_only=True)["epoch"]
            record = records[epoch]
            for name in ("loss", "top1", "top5"):
                assert result[name] == pytest.approx(record[name], rel=1e-5)
            also = ", picked on the test split: quote the last" if path != paths[0] else ""
            assert line == (
                f"{path}, epoch {epoch}{also}, digits test split: top1 {record['top1']:.2%} top5 "
                f"{record['top5']:.2%} loss {record['loss']:.4f} (training logged top1 "
                f"{record['top1']:.2%})"
            )
    assert sorted(Path().rglob("*")) == tree  # nothing is written


def test_a_last_epoch_that_is_the_best_is_scored_once(finished_augment, tmp_path, capsys):
    run = tmp_path / "a"
    shutil.copytree(finished_augment[0] / "augments" / "a", run)
    shutil.copy(run / "checkpoint.pt", run / "best.pt")
    assert len(evaluate.main([str(run)])) == 1
    line, _ = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{run}/checkpoint.pt, epoch ")
    assert ", which is the best, too, digits test split: top1 " in line


def test_the_last_line_of_a_training_is_a_command_that_runs(there, finished_augment):
    _, out = finished_augment
    command = out.strip().splitlines()[-1]
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "training logged top1" in done.stdout


def test_the_score_does_not_depend_on_how_it_is_computed(there):
    (wanted,) = evaluate.main(["augments/a/checkpoint.pt"])
    words = ["--batch_size", "7", "--workers", "0", "--device", "cpu"]
    (found,) = evaluate.main(["augments/a/checkpoint.pt", *words])
    for name in ("loss", "top1", "top5"):
        assert found[name] == pytest.approx(wanted[name], rel=1e-4)


def test_every_part_is_scored_and_each_image_decoded_once(pets, monkeypatch, capsys):
    monkeypatch.chdir(pets)
    read, decoded = image_files.read, Counter()

    def count(path, *args):
        decoded[os.path.relpath(path)] += 1
        return read(path, *args)

    monkeypatch.setattr(image_files, "read", count)
    found = evaluate.main(["augments/p"])
    scored = [str(path) for part in ("val", "test") for path in Path("pets", part).rglob("*.png")]
    assert len(scored) == 14
    assert decoded == Counter(scored)  # once for both parts, and no training image

    said = [line.split(":")[0] for line in capsys.readouterr().out.splitlines()[::2]]
    assert said == [
        f"augments/p/checkpoint.pt, epoch 1, which is the best, too, pets {part} split"
        for part in ("val", "test")
    ]
    # what is returned is the score on D/val, as logged after every epoch
    val = [r for r in lines("augments/p/metrics.jsonl") if r["phase"] == "val"][-1]
    for result in found:
        assert result["loss"] == pytest.approx(val["loss"], rel=1e-5)


def test_images_that_were_moved_are_found_by_data_path(pets, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(pets / "pets", "elsewhere")
    shutil.copytree(pets / "augments", "augments")
    state = checkpoint_of("augments/p")
    state["flags"]["data_path"] = str(tmp_path / "pets")
    torch.save(state, "moved.pt")
    text = ends_in_one_line(evaluate.main, ["moved.pt"])
    assert f"evaluate.py: {tmp_path / 'pets'} is no folder of images" in text
    assert "--data_path says where they are now" in text
    (found,) = evaluate.main(["moved.pt", "--data_path", "elsewhere"])
    assert found["top1"] == pytest.approx(state["top1"])


def test_the_images_are_those_of_the_training_unless_said(there):
    trained = trained_network.load("augments/a/checkpoint.pt")
    trained.flags.update(workers=3, cache_gb=0.5, subset=0.3, test_portion=0.4, data_path="there")

    def options(*words):
        return evaluate.data_options(EvaluateConfig(["augments/a", *words]), trained, CPU)

    plain = options()
    assert plain.known_spec == trained.spec
    assert (plain.dataset, plain.data_path, plain.test_portion) == ("digits", "there", 0.4)
    assert (plain.cache_gb, plain.workers, plain.batch_size) == (0.5, None, 96)
    words = "--data_path here --cache_gb 0 --workers 1 --batch_size 5"
    assert options(*words.split()) == plain._replace(
        data_path="here", cache_gb=0, workers=1, batch_size=5
    )


def test_apples_gpus_have_no_float64(there):
    trained = trained_network.load("augments/a/checkpoint.pt")
    loader = [(torch.rand(4, 1, 8, 8), torch.tensor([1, 2, 3, 4]))]
    plain, apple = (
        utils.evaluate(lambda X, kind=kind: kind(trained.net(X)[0]), loader, CPU)
        for kind in (torch.Tensor, on_apple)
    )
    assert [plain[name] for name in ("loss", "top1")] == [apple[name] for name in ("loss", "top1")]


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ("augments/none", "there is no file or folder augments/none"),
        ("augment/a", "there is no file or folder augment/a; did you mean augments/a?"),
        ("augments/a/config.json", "augments/a/config.json is damaged or no checkpoint"),
        ("searchs/s", "searchs/s/checkpoint.pt is the supernet of a search, not a trained network"),
        ("a", "there is no file or folder a; did you mean augments/a?"),
        ("searchs", "there is no file or folder searchs/checkpoint.pt"),
        ("augments/a --batch_size 1", "argument --batch_size"),
        ("augments/a --lr 9", "unrecognized arguments: --lr 9"),
        ("", "the following arguments are required: RUN"),
    ],
)
def test_what_cannot_be_scored_ends_in_one_line(there, run, message):
    assert f"evaluate.py: {message}" in ends_in_one_line(evaluate.main, run.split())


def test_a_network_whose_blocks_were_changed_is_refused(there, monkeypatch):
    for name in set(ops.OPS) - {"none"}:
        monkeypatch.setitem(
            ops.OPS, name, lambda C, stride, affine: ops.SepConv(C, 9, stride, affine)
        )
    text = ends_in_one_line(evaluate.main, ["augments/a"])
    assert "augments/a/checkpoint.pt does not fit the network any more" in text
