"""Memory: what a network needs, sizes that are refused, memory that runs out or grows."""

import contextlib
import errno
import gc
import io
import math
import random
import time
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conftest import CPU, FAST_AUGMENT, FAST_SEARCH, SMALL_SEARCH, ends_in_one_line, log_of

import augment
import check_ops
import genotypes as gt
import search
from config import AugmentConfig, SearchConfig
from console import errors
from console.terminal import byte_size
from data_sets import named
from devices import memory as device_memory
from models import augment_cnn, memory, ops, stems
from models.search_cnn import SearchCNNController
from tracking.budget import Budget

GIB = 2**30
DARTS = gt.load("DARTS_V2")


def cells_of(cfg):
    if hasattr(cfg, "primitives"):
        return memory.supernet_cells(cfg)
    return memory.genotype_cells(DARTS, cfg)


# --- the estimate -------------------------------------------------------------------------------


def network(cfg, C_in, size):
    """(network, what is called for the logits of a batch)."""
    if isinstance(cfg, SearchConfig):
        net = SearchCNNController(
            C_in, cfg.init_channels, 10, cfg.layers, F.cross_entropy, cfg.n_nodes,
            cfg.stem_multiplier, cfg.primitives, stem=stems.pick(cfg.stem, size),
        )  # fmt: skip
        return net, net
    spec = named.DataSpec("x", C_in, size, tuple("0123456789"), (0,) * C_in, (1,) * C_in)
    net = augment_cnn.build(spec, cfg, DARTS)
    net.drop_path_prob(0.1)
    return net, lambda X: net(X)[0]


def bytes_kept(net, call, X):
    """Bytes that a pass over X really keeps for the backward pass, storage by storage."""
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        out = call(X)
    known = {t.untyped_storage().data_ptr() for t in (X, *net.parameters(), *net.buffers())}
    found = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}
    del out
    return sum(n for pointer, n in found.items() if pointer not in known)


@pytest.mark.parametrize(
    ("words", "C_in", "size"),
    [
        ("--layers 3 --init_channels 8", 3, (32, 32)),
        ("--layers 4 --init_channels 4 --n_nodes 2", 1, (9, 7)),
        ("--layers 2 --init_channels 8 --stem imagenet", 3, (96, 100)),
        ("--layers 1 --init_channels 4 --n_nodes 2 --primitives all", 3, (16, 16)),
        ("--layers 3 --init_channels 8 --primitives skip_connect,max_pool_3x3", 3, (16, 16)),
        ("--genotype DARTS_V2 --layers 8 --init_channels 16", 3, (32, 32)),
        ("--genotype DARTS_V2 --layers 5 --init_channels 8 --stem imagenet", 3, (96, 96)),
    ],
)
def test_the_estimate_is_right_within_a_factor_of_two(words, C_in, size):
    cfg = (AugmentConfig if "genotype" in words else SearchConfig)(words.split())
    need = memory.estimate(cfg, cells_of(cfg), C_in, size)
    net, call = network(cfg, C_in, size)
    real = bytes_kept(net, call, torch.randn(2, C_in, *size)) / 2
    assert 0.5 < need.maps / real < 2
    weights = sum(p.numel() for name, p in net.named_parameters() if "aux" not in name)
    copies = 4 if isinstance(cfg, SearchConfig) else 3
    assert 0.5 < need.weights / (4 * weights) / copies < 1.1


def test_every_op_is_in_the_estimate_and_strange_ones_count_nothing(monkeypatch):
    for name in ops.OPS:
        learns = memory.op_weights(name, 8, 2, True) > 0
        assert (memory.op_maps(name, 2, True) > 1) == learns, name
    monkeypatch.setitem(ops.OPS, "strange", lambda C, stride, affine: 1 / 0)
    assert memory.op_maps("strange", 1, False) == memory.op_weights("strange", 8, 1, False) == 0


def test_the_estimate_draws_no_random_number():
    memory.op_maps.cache_clear()
    before = torch.get_rng_state()
    memory.op_maps("sep_conv_5x5", 1, False)
    assert torch.equal(before, torch.get_rng_state())


# --- what is refused ----------------------------------------------------------------------------

ABSURD = [
    "--n_nodes 999999999", "--layers 100000", "--layers 999", "--init_channels 1000000",
    "--init_channels 2147483647", "--stem_multiplier 1000000000", "--input_size 100000",
    "--input_size 2147483647", "--batch_size 1000000000", "--print_freq 9223372036854775808",
    "--cutout_length 9223372036854775808", "--seed 18446744073709551616", "--w_lr 1e300",
    "--epochs 99999999999999999999", "--workers 100000", "--threads 100000",
]  # fmt: skip


@pytest.mark.parametrize("words", ABSURD)
def test_an_absurd_size_is_refused_before_anything_is_built(here, monkeypatch, words):
    monkeypatch.setattr(device_memory, "host", lambda: 16 * GIB)
    for name in ("build_supernet", "loaders", "check_ops"):  # nothing is read, built or tried
        monkeypatch.setattr(search, name, None)
    if words == "--layers 999":
        words += " --init_channels 512"
    start = time.process_time()
    text = ends_in_one_line(search.main, words.split())
    assert time.process_time() - start < 5  # of a building that would take minutes
    assert "at most" in text or "from 1e-30 to 1e30" in text or "16.0 GiB" in text
    assert words.split()[0] in text


def test_a_training_is_refused_too(here, monkeypatch):
    monkeypatch.setattr(device_memory, "host", lambda: 16 * GIB)
    words = ["--genotype", "DARTS_V2", "--init_channels", "100000"]
    text = ends_in_one_line(augment.main, words)
    assert "--init_channels 100000" in text
    assert "TiB of memory at least, and cpu has 16.0 GiB" in text
    assert " would fit" in text


def data(C_in, size, batch_size):
    return SimpleNamespace(spec=SimpleNamespace(C_in=C_in, size=size), batch_size=batch_size)


@pytest.mark.parametrize(
    ("config", "words", "images", "gib"),
    [
        # the paper's setting fits a card of 12 GB, a search at 224x224 with batch 64 a card of 16
        (SearchConfig, "", (3, (32, 32), 64), 11),
        (SearchConfig, "--order 1", (3, (32, 32), 64), 11),
        (AugmentConfig, "--genotype DARTS_V2", (3, (32, 32), 96), 11),
        (SearchConfig, "", (3, (224, 224), 64), 15),
        (AugmentConfig, "--genotype DARTS_V2 --layers 14 --init_channels 48",
         (3, (224, 224), 64), 15),
        # a laptop, and a machine of a single GB
        (SearchConfig, "--quick", (1, (8, 8), 32), 1),
        (AugmentConfig, "--genotype DARTS_V2 --quick", (1, (8, 8), 64), 1),
    ],
)  # fmt: skip
def test_what_runs_is_never_refused(monkeypatch, config, words, images, gib):
    monkeypatch.setattr(device_memory, "host", lambda: gib * GIB)
    cfg = config(words.split())
    Budget(cfg).check(CPU, cells_of)
    Budget(cfg).check(CPU, cells_of, data(*images))


@pytest.mark.parametrize(
    ("words", "asked", "fitting"),
    [
        # what the run would really take: the default batch, not the least possible one
        (
            "--init_channels 1000000",
            "--batch_size 64, --init_channels 1000000,",
            "--init_channels ",
        ),
        # no flag alone
        ("--init_channels 1000 --n_nodes 100 --layers 1000", "--batch_size 64,", "--batch_size "),
        # the size of images that nobody has looked at is not named
        ("--dataset folder --init_channels 1000000", "--stem_multiplier 3; ", "--init_channels "),
    ],
)
def test_before_images_are_read_all_that_is_named_holds(monkeypatch, words, asked, fitting):
    monkeypatch.setattr(device_memory, "host", lambda: 16 * GIB)
    with pytest.raises(ValueError, match=" would fit$") as caught:
        Budget(SearchConfig(words.split())).check(CPU, cells_of)
    text, found = str(caught.value).removesuffix(" would fit").split("by the estimate ")
    assert asked in text
    assert found.startswith(fitting)
    cfg = SearchConfig([*words.split(), *found.replace(",", "").split()])
    size = (1, 1) if cfg.dataset == "folder" else (8, 8)
    need = memory.estimate(cfg, cells_of(cfg), 1, size)
    assert need.total(cfg.batch_size) <= 16 * GIB


def test_where_the_memory_is_unknown_nothing_is_refused(monkeypatch):
    monkeypatch.setattr(device_memory, "host", lambda: None)
    budget = Budget(SearchConfig(["--init_channels", "1000000"]))
    budget.check(CPU, cells_of)
    assert "--init_channels 1000000" in budget.advice()


def test_a_value_that_fits_by_the_estimate_is_not_refused(monkeypatch):
    monkeypatch.setattr(device_memory, "host", lambda: 2 * GIB)
    images = data(3, (32, 32), 512)
    with pytest.raises(ValueError, match=" would fit$") as caught:
        Budget(SearchConfig([])).check(CPU, cells_of, images)
    fitting = str(caught.value).rsplit("by the estimate ", 1)[1].removesuffix(" would fit")
    for words in fitting.split(" or "):
        name, value = words.split()
        batch = int(value) if name == "--batch_size" else 512
        size = (int(value),) * 2 if name == "--input_size" else (32, 32)
        Budget(SearchConfig(words.split())).check(CPU, cells_of, data(3, size, batch))
    assert "--batch_size" in fitting


def test_a_batch_in_parts_or_shared_by_processes_needs_less_at_once(monkeypatch):
    monkeypatch.setattr(device_memory, "host", lambda: 4 * GIB)
    images = data(3, (32, 32), 512)
    with pytest.raises(ValueError, match="needs .* of memory at least"):
        Budget(SearchConfig([])).check(CPU, cells_of, images)
    Budget(SearchConfig(["--accumulate", "32"])).check(CPU, cells_of, images)
    shared = CPU._replace(group=SimpleNamespace(size=32))
    Budget(SearchConfig([])).check(shared, cells_of, images)


def test_the_memory_of_this_machine_is_known(monkeypatch):
    n = device_memory.host()
    assert n is None or 2**27 < n < 2**50
    assert device_memory.available(CPU) == n
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1, 80 * GIB))
    card = CPU._replace(torch_device=torch.device("cuda", 0))
    assert device_memory.available(card) == 80 * GIB


@pytest.mark.parametrize(
    ("n", "text"),
    [(0, "0 bytes"), (1536, "1.5 KiB"), (200 * GIB, "200 GiB"), (2**61, "2,097,152 TiB")],
)
def test_bytes_in_words(n, text):
    assert byte_size(n) == text


# --- memory that runs out -----------------------------------------------------------------------

CPU_ERROR = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you "
    "tried to allocate 4294967296 bytes. Error code 12 (Cannot allocate memory)"
)
NO_MEMORY = [
    (CPU_ERROR, "asked for 4.0 GiB"),
    (RuntimeError("could not create a primitive"), "(could not create a primitive)"),
    (RuntimeError("std::bad_alloc"), "(std::bad_alloc)"),
    (MemoryError(), "(MemoryError)"),
    (
        MemoryError("Unable to allocate 7.28 TiB for an array with shape (1000,)"),
        "asked for 7.28 TiB",
    ),
    (OSError(errno.ENOMEM, "Cannot allocate memory"), "([Errno 12] Cannot allocate memory"),
    (
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0"),
        "asked for 2.00 GiB",
    ),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), "(CUDA error: CUBLAS"),
    (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"), "(MPS backend"),
]


@pytest.mark.parametrize(("error", "asked"), NO_MEMORY, ids=lambda x: str(x)[:20])
def test_memory_that_runs_out_ends_in_one_line(here, monkeypatch, error, asked):
    """At a seeded moment: in the try-out of the blocks, while the network is built, in a step."""

    def full(*args, **kwargs):
        raise error

    moment = random.Random(str(error)).choice(["build_supernet", "forward", "block"])
    if moment == "block":
        real = ops.SepConv.__init__
        monkeypatch.setattr(
            ops.SepConv, "__init__", lambda s, C, *a: C < 4 and full() or real(s, C, *a)
        )
    elif moment == "forward":
        monkeypatch.setattr(search.Architect, "unrolled_backward", full)
    else:
        monkeypatch.setattr(search, moment, full)
    text = ends_in_one_line(search.main, FAST_SEARCH, code=1)
    assert f"memory {'when it ' * asked.startswith('asked')}{asked}" in text
    assert "--batch_size " in text
    assert "--init_channels 2, --layers 3, --n_nodes 2" in text
    assert "need about" in text
    assert "the block" not in text


def test_memory_that_runs_out_later_says_how_the_run_goes_on(here, quick_epochs):
    validate, epochs = search.validate, []

    def full(*args):
        epochs.append(1)
        if len(epochs) == 2:
            raise CPU_ERROR
        return validate(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "validate", full)
        text = ends_in_one_line(search.main, [*SMALL_SEARCH, "--name", "s"], code=1)
    resume = errors.command("search.py", "--name", "s", "--resume")
    assert "a run that goes on keeps these flags, so free some memory first" in text
    assert text.endswith("; the run has stopped; go on after epoch 1 with " + resume)
    assert log_of("searchs/s").splitlines()[-1] == text.removeprefix("search.py: ")


@pytest.mark.parametrize("where", ["build", "forward", "backward"])
def test_a_block_is_not_blamed_for_it(monkeypatch, where):
    class Full(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 1

        @staticmethod
        def backward(ctx, grad):
            raise CPU_ERROR

    class Mine(ops.StdConv):
        def __init__(self, C, stride, affine):
            if where == "build":
                raise CPU_ERROR
            super().__init__(C, C, 1, stride, affine)

        def forward(self, x):
            if where == "forward":
                raise CPU_ERROR
            return Full.apply(super().forward(x))

    monkeypatch.setitem(ops.OPS, "mine", Mine)
    with pytest.raises(RuntimeError, match="DefaultCPUAllocator"):
        check_ops.quick(["mine"], 4)


@pytest.mark.parametrize(
    "error", [RuntimeError("mat1 and mat2 cannot be multiplied"), OSError(2, "x")]
)
def test_other_errors_are_not_taken_for_it(error):
    assert not errors.is_out_of_memory(error)


def test_a_real_allocation_that_fails_is_recognised():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**58, dtype=torch.uint8)
    assert errors.is_out_of_memory(caught.value)
    assert "262,144 TiB" in errors.out_of_memory(caught.value)
    with pytest.raises((MemoryError, RuntimeError)) as caught:
        bytearray(2**60)
    assert errors.is_out_of_memory(caught.value)


# --- memory that grows --------------------------------------------------------------------------


TINIEST = "--layers 1 --n_nodes 1 --k 1 --primitives skip_connect,sep_conv_3x3"


def test_memory_stays_flat_over_200_steps_and_3_epochs(here, monkeypatch):
    """Tensors alive after each epoch of a search of second order: as many, of as many bytes. The
    reader of resident memory allows for the allocator: a tenth over 200 steps."""
    found = []
    real = search.validate

    def note(*args):
        result = real(*args)
        gc.collect()
        tensors = [x for x in gc.get_objects() if issubclass(type(x), torch.Tensor)]
        found.append((len(tensors), sum(map(n_bytes, tensors)), resident()))
        return result

    monkeypatch.setattr(search, "validate", note)
    words = "--epochs 3 --subset 0.12 --val_portion 0.2 --batch_size 2 --augment none"
    with contextlib.redirect_stdout(io.StringIO()):
        search.main([*FAST_SEARCH, *TINIEST.split(), *words.split()])
    (n1, bytes1, rss1), _, (n3, bytes3, rss3) = found
    assert n3 / n1 <= 1.01
    assert bytes3 / bytes1 <= 1.01
    assert math.isnan(rss1) or rss3 / rss1 < 1.1


def n_bytes(tensor):
    try:
        return tensor.nbytes
    except RuntimeError:  # torch.export in another test leaves some whose sizes are symbols
        return 0


def resident():
    """Bytes of this process in memory; NaN where the system does not say."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1])
    except OSError:
        return math.nan


def test_a_training_keeps_nothing_of_an_epoch_either(here, monkeypatch):
    found, real = [], augment.validate

    def note(*args):
        gc.collect()
        found.append(sum(issubclass(type(x), torch.Tensor) for x in gc.get_objects()))
        return real(*args)

    monkeypatch.setattr(augment, "validate", note)
    augment.main([*FAST_AUGMENT, "--genotype", "DARTS_V2", "--epochs", "3"])
    assert found[-1] / found[1] <= 1.01
