"""Metrics, checkpoints, devices, and how errors end."""

import os
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import utils
from console import errors
from devices import layout, pick
from tracking import checkpoint


def test_accuracy_counts_the_best_k():
    logits = torch.tensor([[3.0, 2, 1, 0], [0.0, 1, 2, 3], [0.0, 3, 2, 1]])
    y = torch.tensor([0, 2, 0])
    assert [a.item() for a in utils.accuracy(logits, y, (1, 2))] == pytest.approx([1 / 3, 2 / 3])


def test_accuracy_of_ten_classes_lies_between_0_and_1():
    torch.manual_seed(0)
    top1, top5 = utils.accuracy(torch.randn(4, 10), torch.randint(10, (4,)), topk=(1, 5))
    assert 0 <= top1 <= top5 <= 1


@pytest.mark.parametrize("n_classes", [1, 2, 3, 4])
def test_top5_of_few_classes_is_top_of_all(n_classes):
    y = torch.randint(n_classes, (6,))
    _, top5 = utils.accuracy(torch.randn(6, n_classes), y, (1, 5))
    assert top5 == 1


def test_meter_is_a_mean_over_samples_and_not_over_batches():
    torch.manual_seed(0)
    logits, y = torch.randn(10, 6), torch.randint(6, (10,))
    meter = utils.Meter(torch.device("cpu"))
    for part in (slice(0, 7), slice(7, 10)):
        meter.add(F.cross_entropy(logits[part], y[part]), logits[part], y[part])
    result = meter.result()
    top1, top5 = utils.accuracy(logits, y)
    assert result["loss"] == pytest.approx(F.cross_entropy(logits, y).item(), rel=1e-6)
    assert result["top1"] == pytest.approx(top1.item())
    assert result["top5"] == pytest.approx(top5.item())
    assert result["seconds"] > 0
    assert result["images_per_second"] == pytest.approx(10 / result["seconds"])


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_noticed(loss):
    meter = utils.Meter(torch.device("cpu"))
    meter.add(torch.tensor(loss), torch.randn(2, 3), torch.tensor([0, 1]))
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        meter.means()


def test_endless_starts_again():
    batches = utils.endless([1, 2, 3])
    assert [next(batches) for _ in range(7)] == [1, 2, 3, 1, 2, 3, 1]


def test_seeds_and_states_of_all_generators():
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002

    utils.seed_everything(3)
    state, first = checkpoint.rng_state(), draw()
    draw()
    checkpoint.set_rng_state(state)
    assert draw() == first
    utils.seed_everything(3)
    assert draw() == first
    utils.seed_everything(4)
    assert draw() != first


def test_checkpoints_are_read_with_weights_only_and_written_in_one_piece(here, monkeypatch):
    state = {"model": {"w": torch.ones(2)}, "rng": checkpoint.rng_state(), "flags": {"a": None}}
    checkpoint.save_checkpoint(state, "c.pt")
    read = torch.load("c.pt", weights_only=True)
    assert torch.equal(read["model"]["w"], torch.ones(2))
    checkpoint.set_rng_state(checkpoint.load_checkpoint("c.pt")["rng"])

    def full_disk(state, path):
        with open(path, "wb") as file:
            file.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save_checkpoint(state, "c.pt")
    assert os.listdir(".") == ["c.pt"]
    assert torch.load("c.pt", weights_only=True)["flags"] == {"a": None}


def test_files_that_are_no_checkpoints_are_refused_in_one_line(here):
    (here / "text.pt").write_text("hello")
    torch.save([1, 2], "list.pt")
    torch.save({"state_dict": {}}, "other.pt")
    for path in ("text.pt", "list.pt", "other.pt", "missing.pt"):
        with pytest.raises(ValueError, match=path) as caught:
            checkpoint.load_checkpoint(path)
        assert "\n" not in str(caught.value)


# --- devices ------------------------------------------------------------------------------------


@pytest.fixture
def cards(monkeypatch):
    """Pretend to have so many CUDA cards."""

    def pretend(n):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: n > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: n)

    return pretend


def test_pick_device(cards, monkeypatch):
    cards(0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert pick.pick_device() == torch.device("cpu")
    assert pick.pick_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert pick.pick_device() == torch.device("mps")
    cards(1)
    assert pick.pick_device() == torch.device("cuda", 0)
    assert pick.pick_device(gpus="all") == torch.device("cuda", 0)
    cards(2)
    assert pick.pick_device("cuda") == torch.device("cuda", 0)
    assert pick.pick_device("auto", "1") == torch.device("cuda", 1)


@pytest.mark.parametrize(
    ("n", "device", "gpus", "message"),
    [
        (0, "cuda", None, "no CUDA GPU"),
        (0, "auto", "0", "no CUDA GPU"),
        (0, "mps", None, "no MPS device"),
        (2, "auto", "2", "no such card; this machine has 0..1"),
        (2, "auto", "x", "no such card"),
        (2, "auto", "all", "a run uses one GPU; pick one of 0..1"),
        (2, "auto", "0,1", "a run uses one GPU"),
        (2, "cpu", "0", "contradicts --device cpu"),
    ],
)
def test_a_device_that_is_not_there(cards, monkeypatch, n, device, gpus, message):
    cards(n)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ValueError, match=message):
        pick.pick_device(device, gpus)


# --- errors -------------------------------------------------------------------------------------


def ends(context, error, capsys):
    with pytest.raises(SystemExit) as caught, context:
        raise error
    return caught.value.code, capsys.readouterr().err


def test_how_errors_end(capsys):
    code, text = ends(errors.usage_errors("search.py"), ValueError("wrong"), capsys)
    assert (code, text) == (2, "search.py: wrong\n")
    code, text = ends(errors.usage_errors("search.py"), OSError("no disk"), capsys)
    assert (code, text) == (1, "search.py: no disk\n")
    code, text = ends(errors.run_errors("search.py"), FloatingPointError("nan"), capsys)
    assert (code, text) == (1, "search.py: nan\n")
    code, text = ends(errors.run_errors("search.py"), OSError("full"), capsys)
    assert (code, text) == (1, "search.py: full\n")
    code, text = ends(errors.run_errors("search.py"), KeyboardInterrupt(), capsys)
    assert (code, text) == (130, text)
    assert text.startswith("\nsearch.py: interrupted before an epoch was finished; start again")
    error = torch.OutOfMemoryError("CUDA out of memory. Tried 2 GiB\nmore")
    code, text = ends(errors.run_errors("search.py"), error, capsys)
    assert code == 1
    assert "lower --batch_size, --init_channels or --layers" in text
    assert text.count("\n") == 1


def test_faults_of_our_own_keep_their_traceback():
    with pytest.raises(ZeroDivisionError), errors.run_errors("search.py"):
        raise ZeroDivisionError
    with pytest.raises(TypeError), errors.usage_errors("search.py"):
        raise TypeError


def test_the_printed_command_runs_in_a_shell(here):
    words = errors.command("visualize.py", "--help")
    done = subprocess.run(words, shell=True, capture_output=True, text=True, check=True)
    assert "GENOTYPE" in done.stdout
    assert errors.command("augment.py", "a b").endswith("augment.py 'a b'")


def test_the_printed_command_uses_this_python(here, monkeypatch):
    # another python first on PATH, even if it is a link to the same file
    os.symlink(sys.executable, "python")
    for path in ("", str(here)):
        monkeypatch.setenv("PATH", path)
        assert errors.command("augment.py").startswith(sys.executable)
    monkeypatch.setenv("PATH", os.path.dirname(sys.executable))
    assert errors.command("augment.py").startswith("python ")


@pytest.mark.parametrize("layout", layout.LAYOUTS)
def test_the_quicker_layout_is_found_and_the_net_is_left_alone(layout, monkeypatch):
    class Slow(torch.nn.Conv2d):
        def forward(self, x):
            right = x.is_contiguous(memory_format=layout.LAYOUTS[layout])
            clock.append(clock[-1] + (1 if right else 2))
            return super().forward(x)

    clock = [0.0]
    monkeypatch.setattr(utils.time, "perf_counter", lambda: clock[-1])
    net = torch.nn.Sequential(Slow(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Dropout())
    before, rng = {k: v.clone() for k, v in net.state_dict().items()}, torch.get_rng_state()
    assert layout.quickest_layout(net, torch.ones(2, 3, 8, 8)) == layout
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), rng)
    assert net[0].weight.grad is None


def test_layouts_by_device_and_by_choice():
    net = torch.nn.Conv2d(3, 4, 3)
    assert layout.pick_layout("auto", net, 2, 3, (8, 8)) == "channels_last"  # a CPU
    assert layout.pick_layout("contiguous", net, 2, 3, (8, 8)) == "contiguous"
    assert layout.pick_layout("auto", net.to("meta"), 2, 3, (8, 8)) == "contiguous"
