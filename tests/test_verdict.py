"""What an accuracy is worth (records/verdict.py), and what a training says of its mistakes."""

import json
import math
import os
import random
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import CPU, FAST_AUGMENT, log_of
from PIL import Image
from torch.utils.data import Subset, TensorDataset

import augment
import plot_confusion
import utils
from data_sets.splits import Transformed
from records import alphas, reader, verdict
from strategies import steering
from tracking import augment_log, mistakes

PETS = ["cat", "dog", "emu", "fox"]


def test_a_quarter_of_four_classes_is_no_success():
    found = verdict.judge(0.25, [25] * 4, PETS)
    assert not found["better"]
    assert (found["chance"], found["most_frequent"]) == (0.25, 0.25)
    assert found["text"] == (
        "25.00% of 100 images are right, where guessing gets 25.00% (one of 4 classes) and always "
        "naming cat gets 25.00%: no better than guessing"
    )
    assert verdict.judge(0.1, [250] * 4, PETS)["text"].endswith(": worse than guessing")


def test_guessers_are_told_apart_from_the_rest():
    """Of networks that guess, hardly any is called better; of good ones, all are."""
    rng = random.Random(0)

    def better(p, n=100):
        return verdict.judge(sum(rng.random() < p for _ in range(n)) / n, [n // 4] * 4, PETS)

    assert sum(better(0.25)["better"] for _ in range(400)) < 24
    assert all(better(0.6)["better"] for _ in range(100))


def test_the_most_frequent_class_is_what_must_be_beaten():
    counts = [80, 10, 5, 5]
    assert not verdict.judge(0.82, counts, PETS)["better"]
    assert "always naming cat gets 80.00%" in verdict.judge(0.82, counts, PETS)["text"]
    assert verdict.judge(0.95, counts, PETS)["better"]
    # it is wrong more often than that, and yet it knows the rare classes
    found = verdict.judge(0.8, counts, PETS, [62, 9, 5, 4])
    assert found["better"]
    assert "does tell the classes apart" in found["text"]
    assert found["mean_of_classes"] == pytest.approx((62 / 80 + 0.9 + 1 + 0.8) / 4)
    # naming one class alone does not
    assert not verdict.judge(0.8, counts, PETS, [80, 0, 0, 0])["better"]


@pytest.mark.parametrize(
    ("top1", "words"),
    [(1.0, "none is wrong"), (0.97, "far better than guessing, which is wrong 25 times as often"),
     (0.9, "is wrong 7.5 times"), (0.7, ": better than guessing, which is wrong 2.5 times"),
     (0.5, "but not by much: guessing is wrong 1.5 times")],
)  # fmt: skip
def test_how_far_ahead(top1, words):
    assert words in verdict.judge(top1, [250] * 4, PETS)["text"]


def test_the_confusion_matrix_counts():
    rng = np.random.default_rng(0)
    y, p = rng.integers(0, 4, (2, 200)).tolist()
    matrix = verdict.confusion(y, p, 4)
    pairs = Counter(zip(y, p, strict=True))
    assert {(a, b): n for a, row in enumerate(matrix) for b, n in enumerate(row) if n} == pairs
    hits, counts = verdict.per_class(matrix)
    assert sum(hits) == sum(np.equal(y, p))
    assert counts == [y.count(c) for c in range(4)]


def test_classes_and_confusions_in_words():
    matrix = [[8, 2, 0, 0], [0, 4, 0, 0], [0, 0, 0, 0], [1, 0, 0, 1]]
    assert verdict.describe_classes(matrix, PETS) == (
        "per class: fox 50.0% of 2, cat 80.0% of 10, dog 100.0% of 4"  # no image of an emu
    )
    assert verdict.describe_confusions(matrix, PETS) == (
        "most often confused: cat taken for dog (2 of 10), fox taken for cat (1 of 2)"
    )
    assert verdict.describe_confusions([[3, 0], [0, 4]], PETS) == ""
    many = [[int(i == j) for j in range(50)] for i in range(50)]
    many[7][7], many[7][8] = 0, 1
    text = verdict.describe_classes(many, [f"c{i}" for i in range(50)])
    assert text.startswith("the weakest of 50 classes: c7 0.0% of 1, ")
    assert text.count(" of 1") == 12


def test_the_answers_are_those_of_each_image():
    logits, y = torch.randn(10, 3), torch.randint(3, (10,))
    data, answers = TensorDataset(logits, y), utils.Answers()
    loader = torch.utils.data.DataLoader(data, batch_size=4)
    scores = utils.evaluate(lambda X: X, loader, CPU, answers)
    targets, predicted, probability = answers.lists()
    assert targets == y.tolist()
    assert predicted == logits.argmax(1).tolist()
    wanted = [max(math.exp(x) for x in row) / sum(map(math.exp, row)) for row in logits.tolist()]
    assert probability == pytest.approx(wanted, rel=1e-5)
    assert scores["top1"] == pytest.approx(np.mean(np.equal(targets, predicted)))
    wrong = verdict.most_surely_wrong(targets, predicted, probability, most=2)
    unsure = [p for i, p in enumerate(probability) if targets[i] != predicted[i] and i not in wrong]
    assert all(targets[i] != predicted[i] for i in wrong)
    assert min(probability[i] for i in wrong) >= max(unsure, default=0)


class Files:
    """Three images that come from files, as of a folder."""

    files, targets = ["cat/a.png", "cat/b.png", "dog/c.png"], [0, 0, 1]

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return Image.new("RGB", (300, 150), (index, 0, 0)), self.targets[index]


def test_an_image_is_named_by_its_file(tmp_path):
    chosen = Transformed(Subset(Transformed(Files(), None), [2, 0]), None)
    assert [mistakes.name_of(chosen, i) for i in (0, 1)] == ["dog/c.png", "cat/a.png"]
    assert mistakes.name_of(Transformed(TensorDataset(torch.zeros(2)), None), 1) == "image 1"
    for image, size in ((Files()[0][0], (128, 64)), (torch.zeros(1, 8, 8).byte(), (128, 128))):
        mistakes.save_picture(image, tmp_path / "x.png")
        with Image.open(tmp_path / "x.png") as picture:
            assert picture.size == size


def test_one_number_of_steps_is_too_few_in_code_and_docs():
    docs = (Path(__file__).parent.parent / "docs/search-methods.md").read_text()
    page = " ".join(docs.split())
    slow, fast = alphas.fewest_steps(steering.LOWEST), alphas.fewest_steps(steering.HIGHEST)
    assert f"That takes {slow} steps at the paper's `--alpha_lr` of {steering.LOWEST}" in page
    assert f"and {fast} at {steering.HIGHEST}, the most that `auto` takes" in page


# --- of a run -------------------------------------------------------------------------------------


def test_terminal_summary_and_record_of_a_training_agree(finished_augment):
    folder, out = finished_augment
    run = folder / "augments" / "a"
    summary = json.loads((run / "summary.json").read_text())
    judged, found = summary["verdict"], reader.read_confusion(run)
    assert f"verdict on the last epoch: {judged['text']}" in out
    assert judged["text"] in log_of(run)
    assert verdict.describe_classes(found["matrix"], found["classes"]) in out
    hits, counts = verdict.per_class(found["matrix"])
    assert sum(counts) == judged["images"] == 360
    assert sum(hits) / 360 == pytest.approx(judged["accuracy"])
    last = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][-1]
    assert judged["accuracy"] == pytest.approx(last["top1"])
    assert judged["classes"] == {str(c): hits[c] / counts[c] for c in range(10)}
    for step in summary["more"]:
        assert step["command"] in out
    assert [Path(step["command"].split()[1]).name for step in summary["more"]] == [
        "predict.py", "export.py", "compare.py",
    ]  # fmt: skip
    assert len(found["wrong"]) == 8
    for wrong in found["wrong"]:
        assert (run / wrong["picture"]).is_file()
        assert wrong["class"] != wrong["taken_for"]
    assert ("WARNING: the network is no better than guessing" in out) == (not judged["better"])


def test_a_search_says_what_its_supernet_is_worth(finished_search):
    folder, out = finished_search
    summary = json.loads((folder / "searchs/s/summary.json").read_text())
    judged = summary["verdict"]
    assert f"verdict on the supernet: {judged['text']}" in out
    assert judged["chance"] == 0.1
    assert ("WARNING: the supernet is no better than guessing" in out) == (not judged["better"])
    assert "compare.py searchs/s --random 4" in summary["more"][0]["command"]
    assert summary["more"][0]["command"] in out
    assert bool(augment_log.doubt(folder / "searchs/s")) == (not judged["better"])
    # undecided alphas: no word about skip connections
    assert "skip connections" not in out


def test_no_warning_of_skips_beside_an_undecided_alpha():
    ops = ["skip_connect", "pool"]
    genotype = "Genotype(normal=[[('skip_connect', 0), ('skip_connect', 1)]], normal_concat=[2], "
    genotype += "reduce=[[('pool', 0), ('pool', 1)]], reduce_concat=[2])"

    def history(skip):
        rows = [[[skip, 1 - skip]] * 2]
        record = {"primitives": ops, "normal": rows, "reduce": [[[0.1, 0.9]] * 2]}
        return [{**record, "epoch": e, "genotype": genotype} for e in (1, 2, 3)]

    undecided, decided = history(0.51), history(0.9)
    assert alphas.strong_skips(undecided[-1]) == 0
    assert "skip" not in alphas.how_sure(undecided, 3)["text"]
    assert alphas.strong_skips(decided[-1]) == 2
    assert [alphas.fewer_skips(n) for n in (1, 2, 3, 8)] == [0, 1, 2, 2]
    found = alphas.how_sure(decided, 3)
    assert "2 of 2 in the normal cell are decided skip connections" in found["text"]
    assert "--max_skips 1 or for fewer epochs" in found["advice"]  # 2 would change nothing
    assert "longer" not in found["advice"]


def test_the_picture_of_the_matrix(finished_augment, tmp_path, capsys):
    run = str(finished_augment[0] / "augments" / "a")
    found = reader.read_confusion(run)
    fig = plot_confusion.figure(found)
    axes = fig.axes[0]
    rows = [[n / max(sum(row), 1) for n in row] for row in found["matrix"]]
    assert np.allclose(axes.images[0].get_array(), rows)
    assert sum(int(text.get_text()) for text in axes.texts) == 360
    out = str(tmp_path / "c.svg")
    plot_confusion.main([run, "--out", out])
    assert capsys.readouterr().out == f"{out}\n"


@pytest.mark.parametrize(
    "text", ["", "{}", '{"matrix": [[1]], "classes": ["a"], "part": 1, "epoch": 1, "wrong": []}']
)  # fmt: skip
def test_a_record_that_is_not_whole_is_none(tmp_path, text):
    (tmp_path / "confusion.json").write_text(text)
    assert reader.read_confusion(tmp_path) is None


@pytest.mark.parametrize(("better", "warns"), [(False, True), (True, False), (None, False)])
def test_a_training_warns_of_a_cell_whose_search_learned_nothing(
    finished_search, here, capsys, better, warns
):
    shutil.copytree(finished_search[0] / "searchs/s", "searchs/s")
    path = Path("searchs/s/summary.json")
    summary = json.loads(path.read_text())
    summary["verdict"] = {**summary["verdict"], "better": better, "text": "it is as a coin"}
    path.write_text(json.dumps(summary))
    augment.main([*FAST_AUGMENT, "--genotype", "searchs/s", "--dataset", "digits"])
    text = "WARNING: --genotype searchs/s: it is as a coin, so its cell is a matter of chance"
    assert (text in capsys.readouterr().out) == warns
    # the verdict of a training is on its network, whose cell may be a good one
    os.remove("searchs/s/alphas.jsonl")
    assert augment_log.doubt("searchs/s") == ""


@pytest.mark.parametrize(("epochs", "few"), [(2, True), (50, False)])
def test_advice_blames_the_images_only_behind_enough_steps(monkeypatch, epochs, few):
    run = SimpleNamespace(
        n_steps=2, cfg=SimpleNamespace(epochs=epochs), last={"epoch": 1},
        files=SimpleNamespace(path="augments/a"),
    )  # fmt: skip
    data = SimpleNamespace(
        class_counts=[25] * 4, spec=SimpleNamespace(classes=PETS), val_name="held-out"
    )
    by_heart = {"train": {1: {"top1": 0.9}}}
    monkeypatch.setattr(reader, "read_metrics", lambda path: by_heart)
    text = augment_log.advice(run, data)
    assert ("4 steps may be too few, so take more --epochs first; then take more" in text) == few
    assert "90.00% of the training images right" in text
    by_heart["train"][1]["top1"] = 0.25
    assert augment_log.advice(run, data).startswith("it has learned nothing in ")
