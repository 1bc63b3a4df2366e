"""predict.py: the class of images of any kind, as CSV."""

import csv
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from apple import on_apple
from conftest import ends_in_one_line
from PIL import Image

import genotypes as gt
import predict
from data_sets import named
from data_sets.transforms import transforms
from models.augment_cnn import AugmentCNN
from tracking.trained_network import DeployedNetwork

ROOT = Path(__file__).parent.parent
FROM = ["--from", "augments/a"]


def digit(index):
    """Image (1, 8, 8), uint8, of the test split."""
    return named.Digits(train=False)[index][0]


def rows_of(text):
    return list(csv.DictReader(io.StringIO(text)))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Digits of the test split in a folder with a sub-folder, as PNG."""
    folder = tmp_path_factory.mktemp("pictures") / "in"
    (folder / "more").mkdir(parents=True)
    for i in range(5):
        name = f"more/{i}.png" if i > 2 else f"{i}.png"
        Image.fromarray(digit(i)[0].numpy()).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture
def there(finished_augment, monkeypatch):
    """The folder that holds augments/a is the current one."""
    monkeypatch.chdir(finished_augment[0])
    return finished_augment[0]


def test_the_probabilities_are_the_networks_own(there, pictures, capsys):
    returned = predict.main([str(pictures), *FROM, "--batch_size", "2"])
    rows = rows_of(capsys.readouterr().out)
    assert rows == returned
    names = ["0.png", "1.png", "2.png", "more/3.png", "more/4.png"]
    assert [row["file"] for row in rows] == [str(pictures / name) for name in names]
    # the network and the transform of the test split, by themselves
    state = torch.load("augments/a/checkpoint.pt", weights_only=True)
    net = AugmentCNN(8, 1, 2, 10, 3, True, gt.from_str(state["genotype"])).eval()
    net.load_state_dict(state["model"])
    transform = transforms(named.spec("digits"), train=False)
    for i, row in enumerate(rows):
        wanted = net(transform(digit(i)).unsqueeze(0))[0].softmax(1)[0]
        shown = [float(row[name]) for name in "0123456789"]
        assert shown == pytest.approx(wanted.tolist(), abs=2e-6)
        assert sum(shown) == pytest.approx(1, abs=1e-5)
        assert row["class"] == str(int(wanted.argmax()))


def test_files_and_folders_are_classified_in_the_order_of_the_command_line(there, pictures, capsys):
    (wanted,) = predict.main([str(pictures / "1.png"), *FROM])
    capsys.readouterr()
    paths = [pictures / "more", pictures / "1.png", pictures / "0.png", pictures / "more/4.png"]
    predict.main([*map(str, paths), *FROM, "--batch_size", "3"])
    rows = rows_of(capsys.readouterr().out)
    names = ["more/3.png", "more/4.png", "1.png", "0.png", "more/4.png"]
    assert [row["file"] for row in rows] == [str(pictures / name) for name in names]
    assert rows[1] == rows[4]
    for c in "0123456789":
        assert float(rows[2][c]) == pytest.approx(float(wanted[c]), abs=2e-6)


def test_into_a_file_from_the_best_epoch(there, pictures, tmp_path, capsys):
    out = tmp_path / "p.csv"
    words = [str(pictures / "0.png"), "--from", "augments/a/best.pt", "--out", str(out)]
    returned = predict.main(words)
    assert rows_of(out.read_text(encoding="utf-8-sig")) == returned
    assert len(returned) == 1
    assert capsys.readouterr().out == f"{out}: 1 image classified by augments/a/best.pt\n"
    assert os.listdir(tmp_path) == ["p.csv"]


def test_any_image_is_brought_to_the_networks_kind(there, tmp_path, capsys):
    grey = np.repeat(np.repeat(digit(0)[0].numpy(), 4, 0), 4, 1)  # 32x32: resized back
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
    rows = {os.path.basename(row["file"]): row for row in predict.main([str(tmp_path), *FROM])}
    assert set(rows) == set(kinds)
    for name in set(kinds) - {"wide.png"}:
        for c in "0123456789":
            assert float(rows[name][c]) == pytest.approx(float(rows["grey.png"][c]), abs=1e-3), name


def test_a_broken_image_costs_one_line_and_the_others_go_on(there, pictures, tmp_path, capsys):
    whole = (pictures / "0.png").read_bytes()
    for name, content in (
        ("a.png", whole),
        ("b.png", whole[: len(whole) // 2]),
        ("c.png", b""),
        ("d.png", b"not an image"),
        ("e.png", whole),
    ):
        (tmp_path / name).write_bytes(content)
    out = tmp_path / "out.csv"
    # a file that is named is tried, whatever its ending
    paths = [str(tmp_path), str(pictures / "notes.txt")]
    for words in ([], ["--out", str(out)]):
        with pytest.raises(SystemExit) as caught:
            predict.main([*paths, *FROM, *words])
        assert caught.value.code == 1
        said = capsys.readouterr()
        rows = rows_of(out.read_text(encoding="utf-8-sig") if words else said.out)
        assert [os.path.basename(row["file"]) for row in rows] == ["a.png", "e.png"]
        *lines, last = said.err.splitlines()
        pattern = r"predict\.py: .*/([\w.]+) cannot be read \(.+\)"
        broken = [re.fullmatch(pattern, line)[1] for line in lines]
        assert broken == ["b.png", "c.png", "d.png", "notes.txt"]
        assert last == "predict.py: 4 of 6 images cannot be read"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="has no such files")
def test_a_pipe_among_the_images_is_left_out_and_said(tmp_path, capsys):
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    os.mkfifo(tmp_path / "b.png")
    assert predict.images_of(str(tmp_path)) == [str(tmp_path / "a.png")]
    said = f"predict.py: left out in {tmp_path}: 1 .png (a pipe or a device)\n"
    assert capsys.readouterr().err == said


def test_no_readable_image_at_all_leaves_the_head_of_the_table(there, tmp_path, capsys):
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(SystemExit) as caught:
        predict.main([str(tmp_path / "a.png"), *FROM])
    assert caught.value.code == 1
    said = capsys.readouterr()
    assert said.out == "file,class,0,1,2,3,4,5,6,7,8,9\n"
    assert re.fullmatch(r"predict\.py: .*a\.png cannot be read \(.+\)\n", said.err)


def test_no_data_set_is_needed(there, pictures, tmp_path):
    wanted = predict.main([str(pictures / "0.png"), *FROM])
    state = torch.load("augments/a/checkpoint.pt", weights_only=True)
    state["flags"] = {**state["flags"], "dataset": "gone", "data_path": "/nowhere"}
    torch.save(state, tmp_path / "moved.pt")
    found = predict.main([str(pictures / "0.png"), "--from", str(tmp_path / "moved.pt")])
    assert found == wanted


def test_apples_gpus_have_no_float64(there, pictures, monkeypatch):
    wanted = predict.main([str(pictures), *FROM])
    forward = DeployedNetwork.forward
    monkeypatch.setattr(DeployedNetwork, "forward", lambda self, X: on_apple(forward(self, X)))
    with pytest.raises(TypeError, match="float64"):
        on_apple(torch.ones(1)).double()
    assert predict.main([str(pictures), *FROM]) == wanted


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("nothere --from augments/a", "nothere: there is no such file or folder"),
        ("searchs/s/tb --from augments/a", "searchs/s/tb: no image in this folder"),
        ("p.png nothere --from augments/a --out x.csv", "nothere: there is no such file"),
        ("p.png --from searchs/s", "searchs/s/checkpoint.pt is the supernet of a search"),
        ("p.png --from nothere", "there is no file or folder nothere"),
        ("p.png --from p.png", "p.png is damaged or no checkpoint"),
        ("p.png --from augments/a --gpus 0 --device cpu", "--gpus 0 picks a CUDA card and"),
    ],
)
def test_what_cannot_be_classified_ends_in_one_line(there, pictures, words, message):
    image = str(pictures / "0.png")
    text = ends_in_one_line(predict.main, words.replace("p.png", image).split())
    assert f"predict.py: {message.replace('p.png', image)}" in text


def test_a_disk_that_is_full_leaves_no_half_file(there, pictures, tmp_path, monkeypatch):
    def full(*args):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "replace", full)
    words = [str(pictures), *FROM, "--out", str(tmp_path / "x.csv")]
    assert "No space left" in ends_in_one_line(predict.main, words, code=1)
    assert os.listdir(tmp_path) == []


def test_predict_as_a_process(there, pictures):
    done = subprocess.run(
        [sys.executable, ROOT / "predict.py", str(pictures), *FROM], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert len(rows_of(done.stdout)) == 5
