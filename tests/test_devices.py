"""Where a network runs: devices, precision, memory layout."""

import json
import logging
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import FAST_SEARCH, ends_in_one_line, log_of
from torch import nn

import augment
import compare
import config
import search
from comparing import workers
from comparing.workers import Setting
from config import PredictConfig, SearchConfig
from console.terminal import plural
from devices import launch, layout, pick, processes
from devices.pick import Device

CPU = Device(torch.device("cpu"))


@pytest.fixture
def cards(monkeypatch):
    """Pretend to have so many CUDA cards."""

    def pretend(n):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: n > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: n)

    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    return pretend


def test_pick_device(cards, monkeypatch):
    cards(0)
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
        (0, "cuda", None, "--device cuda: torch sees no CUDA GPU"),
        (0, "auto", "x", "--gpus x: torch sees no CUDA GPU"),
        (0, "mps", None, "no MPS device"),
        (2, "auto", "2", "no such card; this machine has 0..1"),
        (2, "auto", "x", "no such card"),
        (2, "auto", "-1", "no such card"),
        (2, "auto", "all", "this needs one GPU; pick one of 0..1"),
        (2, "auto", "0,1", "this needs one GPU"),
        (2, "auto", "1,01", "--gpus 1,01 names a card twice"),
        (2, "auto", "0,2", "no such card; this machine has 0..1"),
        (2, "cpu", "0", "contradicts --device cpu"),
    ],
)
def test_a_device_that_is_not_there(cards, n, device, gpus, message):
    cards(n)
    with pytest.raises(ValueError, match=message):
        pick.pick_device(device, gpus)


def test_each_of_several_processes_gets_a_card_of_its_own(cards):
    def card(rank, gpus=None, device="auto", n=2):
        group = SimpleNamespace(size=n, local_rank=rank, local_size=n)
        return pick.pick_device(device, gpus, group)

    cards(4)
    assert [card(rank).index for rank in (0, 1)] == [0, 1]
    assert [card(rank, "3,1").index for rank in (0, 1)] == [3, 1]
    assert card(1, "all", "cuda").index == 1
    assert card(1, device="cpu") == torch.device("cpu")
    for gpus, text in ((None, "there are 4; start fewer"), ("0,2", "there are 2 in --gpus 0,2;")):
        with pytest.raises(ValueError, match=f"5 processes on this machine need .* {text}"):
            card(0, gpus, n=5)
    cards(0)
    assert card(1) == torch.device("cpu")


def test_processes_of_their_own_are_spread_over_the_named_cards(cards, monkeypatch):
    cards(4)
    assert pick.spread_cards() == pick.spread_cards(gpus="all") == [0, 1, 2, 3]
    assert pick.spread_cards("cuda", "3,1") == [3, 1]
    assert pick.spread_cards("cpu") == []
    for device, gpus in (("cpu", "1"), ("auto", "4"), ("cuda", "1,1")):
        with pytest.raises(ValueError, match=f"--gpus {gpus}"):
            pick.spread_cards(device, gpus)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    setting = Setting(None, None, "cuda", cards=(3, 1))
    indices = [workers.to_device(setting, slot).torch_device.index for slot in range(3)]
    assert indices == [3, 1, 3]
    cards(0)
    assert pick.spread_cards() == []
    with pytest.raises(ValueError, match="torch sees no CUDA GPU"):
        pick.spread_cards(gpus="0")


def test_several_cards_start_a_process_each(cards, monkeypatch, here):
    cards(2)
    started = []
    monkeypatch.setattr(launch, "start", lambda *args: started.append(args))
    for script, needed in ((search, []), (augment, ["--genotype", "PDARTS"])):
        for gpus in ("all", "0,1"):
            script.main([*needed, "--gpus", gpus])
            assert started.pop() == (f"{script.__name__}.py", [*needed, "--gpus", gpus], 2)
    Path("searchs/s").mkdir(parents=True)
    Path("searchs/s/config.json").write_text(json.dumps({"flags": {"gpus": "0,1"}}))
    assert launch.wanted(SearchConfig(["--name", "s", "--resume"])) == 2
    assert launch.wanted(SearchConfig(["--name", "s", "--resume", "--gpus", "1"])) == 1
    assert launch.wanted(SearchConfig(["--name", "s", "--resume", "--device", "cpu"])) == 1
    monkeypatch.setenv("RANK", "0")  # one of those that were started
    assert launch.wanted(SearchConfig(["--gpus", "all"])) == 1


def test_a_comparison_follows_behind_several_processes(here, monkeypatch):
    """The first of them knows which, and hands it over to the program that has started them."""
    monkeypatch.setenv("WORLD_SIZE", "1")
    compared, environ = [], dict(os.environ)
    numbers = [getattr(signal, n) for n in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, n)]
    handlers = [*map(signal.getsignal, numbers)]

    def elastic_launch(config, program):
        def run(script, *words):
            logging.disable(logging.NOTSET)  # which a process of its own would not see
            for number in numbers:  # so does torch, and leaves them
                signal.signal(number, lambda *_: None)
            for rank in "10":  # in turn, and each as if it were alone
                with monkeypatch.context() as patch:
                    patch.setenv("RANK", rank)
                    search.main([*words, "--name", "s" if rank == "0" else "other"])

        return run

    monkeypatch.setattr("torch.distributed.launcher.api.elastic_launch", elastic_launch)
    monkeypatch.setattr(launch, "wanted", lambda cfg: 1 if processes.under_torchrun() else 2)
    monkeypatch.setattr(compare, "main", compared.append)
    search.main([*FAST_SEARCH, "--compare", "3"])
    assert [words[:3] for words in compared] == [["searchs/s", "--random", "3"]]
    assert config.CompareConfig(compared.pop()).name == "s"
    assert "Before that it is compared with 3 random cells" in log_of("searchs/s")
    search.main([*FAST_SEARCH, "--overwrite"])
    assert "Train it with" in log_of("searchs/s")
    # torchrun itself waits for nothing
    monkeypatch.setenv("RANK", "0")
    search.main([*FAST_SEARCH, "--name", "t", "--compare", "3"])
    assert not compared
    assert "compare.py searchs/t --random 3" in log_of("searchs/t")
    monkeypatch.delenv("RANK")
    assert dict(os.environ) == environ
    assert [*map(signal.getsignal, numbers)] == handlers


def test_the_device_of_a_run_that_goes_on_may_be_another():
    cfg = SearchConfig(["--name", "s", "--resume", "--device", "cpu"])
    cfg.resume_from({"gpus": "0,1", "device": "auto"})
    assert (cfg.device, cfg.gpus) == ("cpu", None)
    cfg = SearchConfig(["--name", "s", "--resume", "--gpus", "1"])
    cfg.resume_from({"gpus": None, "device": "cpu"})
    assert (cfg.device, cfg.gpus) == ("auto", "1")
    cfg = SearchConfig(["--name", "s", "--resume"])
    cfg.resume_from({"gpus": "0,1", "device": "cuda"})
    assert (cfg.device, cfg.gpus) == ("cuda", "0,1")


def test_the_device_of_a_run_is_set_up_by_its_flags(cards, monkeypatch):
    cards(0)
    threads = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    cfg = SearchConfig(["--amp", "bf16", "--threads", "3"])
    assert pick.prepare_device(cfg) == Device(torch.device("cpu"), "bf16")
    # a command without --amp runs in full precision
    assert pick.prepare_device(PredictConfig(["x", "--from", "y"])) == CPU
    assert threads == [3]


@pytest.mark.parametrize(("words", "allowed"), [([], True), (["--no-tf32"], False)])
def test_a_card_is_made_current_and_tf32_allowed_or_not(cards, monkeypatch, words, allowed):
    cards(2)
    current = []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    cudnn, matmul = SimpleNamespace(), SimpleNamespace()
    monkeypatch.setattr(torch.backends, "cudnn", cudnn)
    monkeypatch.setattr(torch.backends, "cuda", SimpleNamespace(matmul=matmul))
    device = pick.prepare_device(SearchConfig(["--gpus", "1", *words]))
    assert device == Device(torch.device("cuda", 1), "off")
    assert device.is_cuda
    assert current == [torch.device("cuda", 1)]
    assert (cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32) == (True, allowed, allowed)


def test_a_batch_and_a_precision_go_to_the_device():
    X, y = torch.randn(3, 4), torch.tensor([0, 1, 2])
    meta = Device(torch.device("meta"))
    assert [part.device.type for part in meta.put((X, y))] == ["meta", "meta"]
    net = nn.Linear(4, 2)
    for amp, dtype in (("off", torch.float32), ("bf16", torch.bfloat16)):
        with Device(torch.device("cpu"), amp).autocast():
            assert net(X).dtype == dtype
    assert CPU.name == f"cpu ({plural(torch.get_num_threads(), 'thread')})"
    assert pick.cores() >= 1


def test_autocast_sees_weights_that_changed_within_it():
    """The virtual step of the search changes them: no copy of the old ones may be kept."""
    net, X = nn.Linear(4, 2, bias=False), torch.ones(1, 4)
    with Device(torch.device("cpu"), "bf16").autocast():
        before = net(X)
        with torch.no_grad():
            net.weight.zero_()
        assert before.abs().sum() > 0
        assert net(X).abs().sum() == 0


# --- memory layout ------------------------------------------------------------------------------


@pytest.mark.parametrize("quick", layout.LAYOUTS)
def test_the_quicker_layout_is_found_and_the_net_is_left_alone(quick, monkeypatch):
    class Slow(nn.Conv2d):
        def forward(self, x):
            right = x.is_contiguous(memory_format=layout.LAYOUTS[quick])
            clock.append(clock[-1] + (1 if right else 2))
            return super().forward(x)

    clock = [0.0]
    monkeypatch.setattr(layout.time, "perf_counter", lambda: clock[-1])
    net = nn.Sequential(Slow(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout())
    before, rng = {k: v.clone() for k, v in net.state_dict().items()}, torch.get_rng_state()
    assert layout.quickest_layout(net, torch.ones(2, 3, 8, 8), CPU) == quick
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), rng)
    assert net[0].weight.grad is None


def test_layouts_by_device_and_by_choice():
    net, shape = nn.Conv2d(3, 4, 3), (2, 3, 8, 8)
    assert layout.pick_layout("auto", net, shape, CPU) == "channels_last"
    assert layout.pick_layout("contiguous", net, shape, CPU) == "contiguous"
    meta = Device(torch.device("meta"))
    assert layout.pick_layout("auto", net, shape, meta) == "contiguous"
    assert layout.pick_layout("channels_last", net, shape, meta) == "channels_last"


def test_of_several_processes_the_first_chooses_the_layout():
    """Each by its own clock, they would sum the norm of a gradient in another order."""

    class Second(processes.Alone):
        rank, size = 1, 2

        def from_main(self, make):
            return "contiguous"  # where this one, on a CPU, would take channels last

    data = SimpleNamespace(batch_size=4, spec=SimpleNamespace(C_in=3, size=(8, 8)))
    cfg = SimpleNamespace(layout="auto", compile=False, accumulate=1)
    net = nn.Conv2d(3, 4, 3)
    device = Device(torch.device("cpu"), group=Second())
    assert layout.place(net, device, data, cfg) == "contiguous"
    assert net.weight.is_contiguous()


def test_a_trial_of_layouts_is_made_on_a_card_alone(monkeypatch):
    seen = []
    monkeypatch.setattr(
        layout, "quickest_layout", lambda net, X, *_: seen.append(X.shape) or "contiguous"
    )
    monkeypatch.setattr(Device, "is_cuda", True)
    assert layout.pick_layout("auto", None, (2, 3, 8, 8), CPU) == "contiguous"
    assert seen == [(2, 3, 8, 8)]


def test_compiled_cells_may_have_several_variants_each():
    compiled = []

    class Cell:
        def compile(self):
            compiled.append(self)

    cells = [Cell() for _ in range(20)]
    # its own context: what monkeypatch takes back, this module of torch hides for good
    with torch._dynamo.config.patch(cache_size_limit=8):
        layout.compile_cells(cells)
        assert torch._dynamo.config.cache_size_limit == 160
    assert compiled == cells


def test_without_a_compiler_a_run_ends_at_once_in_one_line(here, monkeypatch):
    """T2-27: torch says so in 110 lines, at the first step."""
    from torch._inductor import cpp_builder, exc

    def none():
        raise exc.InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    text = ends_in_one_line(search.main, [*FAST_SEARCH, "--compile", "--name", "x"])
    assert "--compile needs a C++ compiler" in text
    assert "or leave --compile out" in text
    layout.require_compiler(Device(torch.device("meta")))  # of a GPU nothing is known yet
