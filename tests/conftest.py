"""Shared by all tests: small runs, their records, and how a command may end.

A run in a test draws nothing, which is half of its time, unless the test carries
@pytest.mark.pictures.
"""

import contextlib
import copy
import functools
import gc
import io
import json
import os
import re
import shutil
from pathlib import Path

import filelock
import pytest
import torch

import augment
import check_ops
import search
import utils
from comparing.run import Comparison
from config import SearchConfig
from devices.pick import Device
from tracking import estimate, search_log
from tracking.picture_schedule import Pictures
from tracking.run import Run
from tracking.run_folder import RunFolder

torch.set_num_threads(1)  # these networks are too small to share out
HAS_CARD = torch.cuda.is_available()

CPU = Device(torch.device("cpu"))

# the digits
TINY_SEARCH = ["--layers", "3", "--init_channels", "2", "--n_nodes", "2", "--seed", "1"]
TINY_AUGMENT = ["--layers", "3", "--init_channels", "2", "--seed", "1"]
# a tenth of them, two steps; --quick makes the network small that a search counts at its end
_TENTH = ["--subset", "0.1", "--epochs", "1", "--quick"]
_PAPER = ["--order", "2", "--warmup_epochs", "0", "--compare", "0"]  # which --quick has otherwise
SHORT_SEARCH = [*TINY_SEARCH, *_TENTH, *_PAPER, "--batch_size", "32"]  # all ops
FAST_OPS = ["skip_connect", "max_pool_3x3", "sep_conv_3x3", "none"]
FAST_SEARCH = [*SHORT_SEARCH, "--primitives", ",".join(FAST_OPS)]
FAST_AUGMENT = [*TINY_AUGMENT, *_TENTH, "--batch_size", "64"]


# three epochs, of which the second is the best if they are those of `stand_in_epochs`
SMALL_SEARCH = [
    *TINY_SEARCH, "--subset", "0.1", "--epochs", "3", "--batch_size", "32", "--quiet",
    "--primitives", "skip_connect,max_pool_3x3",
]  # fmt: skip


def pytest_configure(config):
    config.addinivalue_line("markers", "pictures: runs of this test draw what they draw")
    config.addinivalue_line("markers", "card: this test needs a CUDA card; the others see none")
    if HAS_CARD:  # results differ in their last digits there, and a run takes it by itself
        torch.cuda.is_available = lambda: False
    utils.multiply_adds = _counted_once(utils.multiply_adds)
    # What was imported stays. Looking for garbage in it took a tenth of the time of small networks.
    gc.freeze()


def _counted_once(count):
    """utils.multiply_adds, which takes half a second for the usual network, for tests that make the
    same ones over and over: equal networks are counted once."""
    known = {}

    @functools.wraps(count)
    def multiply_adds(net, C_in, size):
        key = str(net), C_in, tuple(size)
        if key not in known:
            known[key] = count(net, C_in, size)
        return known[key]

    return multiply_adds


@contextlib.contextmanager
def without_pictures():
    """Runs within draw nothing and write no page."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pictures, "_make", lambda *args: None)
        patch.setattr(Comparison, "draw", lambda *args: None)
        yield


@pytest.fixture(autouse=True)
def _pictures(request):
    with contextlib.ExitStack() as stack:
        if not request.node.get_closest_marker("pictures"):
            stack.enter_context(without_pictures())
        yield


@pytest.fixture(autouse=True)
def _cards(request, monkeypatch):
    if request.node.get_closest_marker("card"):
        if not HAS_CARD:
            pytest.skip("no CUDA card")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    elif HAS_CARD:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # of the processes that it starts


@pytest.fixture(autouse=True)
def _no_trial_steps(request, monkeypatch):
    """A search estimates the time of a training at its end: here without training steps."""
    if request.module.__name__ != "test_estimate":
        monkeypatch.setattr(estimate, "seconds_per_step", lambda *args: 0.01)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- runs ---------------------------------------------------------------------------------------


def run_in(folder, main, words):
    """main(words) with `folder` as the current one; returns what it printed."""
    before = os.getcwd()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            main(words)
    finally:
        os.chdir(before)
    return out.getvalue()


def made_once(tmp_path_factory, name, make):
    """What make(folder) returns for a new folder, which all processes of the tests share: the first
    that asks makes it."""
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    path = root / f"{name}.pt"
    with filelock.FileLock(root / f"{name}.lock"):
        if not path.exists():
            (root / name).mkdir(exist_ok=True)
            torch.save(make(root / name), path)
    return torch.load(path, weights_only=False)


@pytest.fixture(scope="session")
def finished_search(tmp_path_factory):
    """(folder that holds searchs/s, what the terminal said) of a search of two epochs of five
    steps, with all pictures."""
    folder = tmp_path_factory.mktemp("search")
    words = ["--subset", "0.5", "--epochs", "2", "--name", "s"]
    out = run_in(folder, search.main, [*TINY_SEARCH, *words])
    return folder, out


@pytest.fixture(scope="session")
def finished_augment(finished_search):
    """(folder that holds augments/a, what the terminal said) of a training of two epochs, with all
    pictures."""
    folder, _ = finished_search
    words = [*TINY_AUGMENT, "--epochs", "2", "--name", "a", "--genotype", "searchs/s"]
    return folder, run_in(folder, augment.main, words)


@contextlib.contextmanager
def stand_in_epochs():
    """Searches train by random gradients and score by chance, which moves all that a checkpoint
    holds and takes no time. They check no op, build one supernet, count no final network, and do
    not wait for the disk: all must be of the same flags."""
    build, built = search.build_supernet, []

    def build_once(*args):
        if not built:
            net = build(*args)
            built.extend([net, copy.deepcopy(net.state_dict()), torch.get_rng_state()])
        net, state, rng_state = built
        net.load_state_dict(state)
        torch.set_rng_state(rng_state)
        return net

    def scores():
        loss, top1 = torch.rand(2).tolist()
        return {"loss": loss, "top1": top1, "top5": 1.0, "seconds": 1.0, "images_per_second": 64.0}

    def train(data, net, architect, optims, epoch, run):
        for parameter in net.parameters():
            parameter.grad = torch.randn_like(parameter)
        optims.w.step()
        optims.alpha.step()
        return scores()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(check_ops, "quick", lambda *args, **kwargs: None)
        patch.setattr(search_log, "final_network", lambda *args: (None, None))
        patch.setattr(search, "build_supernet", build_once)
        patch.setattr(os, "fsync", lambda descriptor: None)
        patch.setattr(search, "train", train)
        patch.setattr(search, "validate", lambda *args: scores())
        yield


@pytest.fixture
def quick_epochs():
    with stand_in_epochs():
        yield


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """(searchs/s of SMALL_SEARCH in some folder, which nothing disturbed; a copy of the same run in
    its second epoch)."""
    folder = tmp_path_factory.mktemp("undisturbed")
    in_second = str(folder / "in-second")
    with stand_in_epochs(), without_pictures():
        validate, epochs = search.validate, []

        def copy_in_second(*args):
            epochs.append(1)
            if len(epochs) == 2:
                shutil.copytree("searchs/s", in_second)
            return validate(*args)

        search.validate = copy_in_second
        run_in(folder, search.main, [*SMALL_SEARCH, "--name", "s"])
    run = str(folder / "searchs" / "s")
    assert scores(run).index(max(scores(run))) == 1
    return run, in_second


@pytest.fixture
def open_run(here):
    """open_run(words, Config) -> a tracking.run.Run of this command line, open, with its bars; it
    has one step an epoch and no data."""
    with contextlib.ExitStack() as stack:

        def make(words=(), Config=SearchConfig):
            cfg = Config(list(words))
            folder = RunFolder(cfg.ROOT, cfg.name)
            run = stack.enter_context(Run(cfg, CPU, "digits", folder))
            run.n_steps, run.top_k = 1, 5
            run.log.open_bars(1, run.cfg.epochs, run.n_steps)
            return run

        yield make


# --- how a command ends -------------------------------------------------------------------------


def ends_in_one_line(main, words, code=2):
    """main(words) ends with this exit code and one line on standard error, which is returned, and
    of which standard output has nothing. Wrong usage (code 2) leaves every file and folder as it
    was, and standard output empty."""

    def tree():
        return {path: path.is_file() and path.stat().st_mtime_ns for path in Path().rglob("*")}

    before = tree()
    with (
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(io.StringIO()) as err,
        pytest.raises(SystemExit) as caught,
    ):
        main(list(words))
    text, shown = err.getvalue(), out.getvalue()
    assert caught.value.code == code, text
    assert text.endswith("\n"), text
    assert text.count("\n") == 1, text
    assert "Traceback" not in text + shown
    assert "stopped by" not in shown
    assert text.strip().split(": ", 1)[-1] not in shown
    if code == 2:
        assert tree() == before
        assert shown == ""
    return text.strip()


def interrupt(script, words, epoch=1):
    """script.main(words), for search or augment, stopped by Ctrl-C in the middle of `epoch`: after
    its training, before its validation. Returns what standard error said."""
    validate, calls = script.validate, []

    def stop(*args):
        calls.append(1)
        if len(calls) == epoch:
            raise KeyboardInterrupt
        return validate(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(script, "validate", stop)
        with contextlib.redirect_stderr(io.StringIO()) as err, pytest.raises(SystemExit) as caught:
            script.main(list(words))
    assert caught.value.code == 130
    assert "Traceback" not in err.getvalue()
    return err.getvalue()


# --- records ------------------------------------------------------------------------------------


def lines(path):
    """The records of a .jsonl file."""
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def scores(run):
    """The top1 of each epoch's validation in a run folder."""
    return [r["top1"] for r in lines(Path(run, "metrics.jsonl")) if r["phase"] == "val"]


def log_of(run):
    """What the log in a run folder says, without the time of day."""
    (path,) = Path(run).glob("*.log")
    text = path.read_text(encoding="utf-8")
    return re.sub(r"^\d\d/\d\d \d\d:\d\d:\d\d \| ", "", text, flags=re.M)


def checkpoint_of(run, name="checkpoint.pt"):
    """The checkpoint of a run folder, as a dict."""
    return torch.load(Path(run, name), weights_only=True)


def equal(a, b):
    """Whether two checkpoints, or parts of them, are the same bit for bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b
