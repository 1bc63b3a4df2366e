"""Signals and Ctrl-C: one line that fits what is on disk, the right exit code, nothing lost."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from conftest import CPU, FAST_SEARCH, checkpoint_of, ends_in_one_line, log_of
from data_helpers import make, options
from fault_helpers import copy_of
from torch._utils import ExceptionWrapper

import augment
import evaluate
import predict
import search
import utils
from console import errors, interrupts
from data_sets import image_files, loaders
from tracking import checkpoint
from tracking.run import Run
from tracking.run_folder import RunFolder

ROOT = Path(__file__).parent.parent
posix = pytest.mark.skipif(os.name != "posix", reason="has no such signals")


@pytest.fixture(autouse=True)
def heard():
    """The tests hear SIGHUP, also where they were started with nohup."""
    number = getattr(signal, "SIGHUP", None)
    before = number and signal.signal(number, signal.SIG_DFL)
    yield
    if number:
        signal.signal(number, before)


def send(name):
    os.kill(os.getpid(), getattr(signal, name))


# --- signals ------------------------------------------------------------------------------------


@posix
@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGUSR1", 143), ("SIGHUP", 129)])
def test_the_first_signal_is_remembered_and_the_second_stops_at_once(name, code):
    before = signal.getsignal(getattr(signal, name))
    with interrupts.StopSignals() as signals:
        signals.wait()
        assert signals.number is None
        send(name)
        assert signals.number == getattr(signal, name)
        with pytest.raises(interrupts.Stopped, match=f"stopped by {name} at once") as caught:
            send(name)
        assert interrupts.exit_code(caught.value) == code
    assert signal.getsignal(getattr(signal, name)) == before


@posix
def test_what_torchrun_repeats_is_no_second_signal(monkeypatch):
    """A terminal or Slurm signals torchrun and its processes, and torchrun passes it on to them."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with interrupts.StopSignals() as signals:
        signals.wait()
        send("SIGTERM")
        send("SIGTERM")
        assert signals.number == signal.SIGTERM
        monkeypatch.setattr(interrupts, "ECHO", 0.0)  # some seconds later
        with pytest.raises(interrupts.Stopped, match="stopped by SIGTERM at once"):
            send("SIGTERM")


@posix
@pytest.mark.parametrize("torchrun", [True, False])
def test_a_second_ctrl_c_that_torchrun_repeats_does_not_cut_the_last_line(torchrun, monkeypatch):
    if torchrun:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    before = signal.getsignal(signal.SIGINT)
    try:
        with interrupts.caught(), pytest.raises(KeyboardInterrupt):
            interrupts._on_ctrl_c(signal.SIGINT, None)
        wanted = signal.SIG_IGN if torchrun else signal.SIG_DFL
        assert signal.getsignal(signal.SIGINT) == wanted
    finally:
        signal.signal(signal.SIGINT, before)


@posix
def test_before_the_run_begins_the_first_signal_stops_it_and_others_do_not_disturb():
    before = signal.getsignal(signal.SIGTERM)
    with interrupts.StopSignals():
        with pytest.raises(interrupts.Stopped, match="stopped by SIGTERM before the run began"):
            send("SIGTERM")
        send("SIGTERM")  # while everything is put back as it was
        with interrupts.StopSignals():  # of another
            pass
    assert signal.getsignal(signal.SIGTERM) == before


@posix
@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
@pytest.mark.parametrize("word", ["", "--overwrite", "--resume"])
def test_a_signal_while_images_are_read_leaves_everything_as_it_was(
    here, undisturbed, monkeypatch, name, word
):
    if word:
        copy_of(undisturbed[0], "searchs/s")
    files = {path: path.is_dir() or path.read_bytes() for path in Path().rglob("*")}

    def stop(*args):
        assert os.path.exists("searchs/s/.lock")  # the folder is taken
        send(name)
        send(name)

    monkeypatch.setattr(loaders, "search_data", stop)
    words = ["--name", "s", *([word] if word else [])]
    words = words if word == "--resume" else [*FAST_SEARCH, *words]
    text = ends_in_one_line(search.main, words, code=143)
    assert text == f"search.py: stopped by {name} before the run began"
    assert {path: path.is_dir() or path.read_bytes() for path in Path().rglob("*")} == files
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@posix
def test_a_signal_between_the_set_up_and_the_first_step_is_not_lost(here, monkeypatch):
    write = RunFolder.write_config

    def then_stop(*args):
        write(*args)
        send("SIGTERM")

    monkeypatch.setattr(RunFolder, "write_config", then_stop)
    text = ends_in_one_line(search.main, [*FAST_SEARCH, "--name", "s"], code=143)
    assert "stopped by SIGTERM after step 1 of epoch 1; go on with" in text


@posix
def test_what_was_ignored_stays_ignored_as_under_nohup():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interrupts.StopSignals() as signals:
            send("SIGHUP")
            assert signals.number is None
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_run_in_another_thread_or_on_another_system_installs_what_it_can(monkeypatch):
    before = signal.getsignal(signal.SIGTERM)

    def enter():
        with interrupts.StopSignals():
            seen.append(signal.getsignal(signal.SIGTERM))

    seen = []
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [before]
    monkeypatch.setattr(interrupts.StopSignals, "NAMES", ("SIGTERM", "SIGNONE"))
    enter()
    assert seen[1] != before
    assert signal.getsignal(signal.SIGTERM) == before


@posix
@pytest.mark.parametrize(("name", "code"), [("SIGUSR1", 143), ("SIGHUP", 129)])
def test_every_signal_saves_and_has_its_exit_code(open_run, name, code):
    run = open_run()
    run.spec = loaders.named.spec("digits")
    send(name)
    with pytest.raises(interrupts.Stopped) as caught:
        run.step_done(1, 1, utils.Meter(CPU))
    assert interrupts.exit_code(caught.value) == code
    again = errors.command("search.py", "--name", "digits", "--resume")
    text = f"stopped by {name} after step 1 of epoch 1; go on with {again}"
    assert run.farewell(caught.value) == text
    assert checkpoint_of("searchs/digits")["inside"]["step"] == 1


@posix
def test_a_signal_after_the_epoch_was_saved_saves_nothing_more(here, monkeypatch):
    saves, save = [], checkpoint.save

    def saved(state, path, previous=None):
        saves.append(os.path.basename(path))
        save(state, path)
        send("SIGTERM") if path.endswith("checkpoint.pt") and len(saves) <= 2 else None

    monkeypatch.setattr(checkpoint, "save", saved)
    text = ends_in_one_line(search.main, [*FAST_SEARCH, "--epochs", "2"], code=143)
    assert "stopped by SIGTERM after epoch 1; go on with" in text
    assert sorted(saves) == ["best.pt", "checkpoint.pt"]


@posix
def test_a_second_signal_while_the_run_saves_keeps_what_was_saved_before(here, monkeypatch):
    words = [*FAST_SEARCH, "--batch_size", "16", "--checkpoint_minutes", "1e-9", "--name", "s"]
    write = torch.save

    def slow(state, *args):
        if state["inside"] and state["inside"]["step"] == 2:
            send("SIGTERM")
            send("SIGTERM")
        write(state, *args)

    monkeypatch.setattr(torch, "save", slow)
    text = ends_in_one_line(search.main, words, code=143)
    assert "stopped by SIGTERM at once; go on with" in text
    assert checkpoint_of("searchs/s")["inside"]["step"] == 1
    assert log_of("searchs/s").splitlines()[-1] == text.removeprefix("search.py: ")


# --- loader processes ---------------------------------------------------------------------------


@posix
def test_a_signal_to_the_whole_group_leaves_the_loader_processes_to_the_run(tmp_path):
    words = [*FAST_SEARCH, "--epochs", "999", "--workers", "2", "--name", "s", "--print_freq", "1"]
    run = subprocess.Popen(
        [sys.executable, ROOT / "search.py", *words],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        for line in run.stdout:
            if line.startswith("epoch 2 step"):
                break
        os.killpg(run.pid, signal.SIGTERM)
        _, err = run.communicate(timeout=120)
        assert run.returncode == 143, err
        assert err.startswith("search.py: stopped by SIGTERM after step ")
        assert err.count("\n") == 1
        assert log_of(tmp_path / "searchs/s").splitlines()[-1] == err.strip()[len("search.py: ") :]
        with pytest.raises(ProcessLookupError):  # nobody is left of the group
            os.killpg(run.pid, 0)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)
        run.stdout.close()
        run.stderr.close()
        run.wait()


@posix
def test_a_loader_process_hears_its_parent_alone():
    given = options(dataset="digits", subset=0.2, batch_size=16, workers=1)
    loader = loaders.search_data(given).train
    batches = iter(loader)
    next(batches)
    (worker,) = loader._iterator._workers
    for name in ("SIGINT", "SIGHUP", "SIGUSR1"):
        os.kill(worker.pid, getattr(signal, name))
    code = f"import os; os.kill({worker.pid}, {int(signal.SIGTERM)})"
    subprocess.run([sys.executable, "-c", code], check=True)
    next(batches)
    assert worker.is_alive()
    batches.close()
    loader._iterator._shutdown_workers()
    assert not worker.is_alive()
    assert worker.exitcode == 0


@pytest.mark.parametrize(
    "text",
    [
        "DataLoader worker (pid(s) 81, 82) exited unexpectedly",
        "DataLoader worker (pid 81) is killed by signal: Killed. ",
        "DataLoader worker (pid 81) is killed by signal: Bus error. It is possible that ...",
        "unable to open shared memory object </torch_81_1> in read-write mode",
        "unable to allocate shared memory(shm) for file </torch_1>: Cannot allocate memory (12)",
    ],
)
def test_a_loader_process_that_died_is_one_line_with_the_way_on(open_run, capsys, text):
    run = open_run(["--name", "s"])
    for saved in (False, True):
        with pytest.raises(SystemExit) as caught, errors.run_errors("search.py", run):
            raise RuntimeError(text)
        said = capsys.readouterr().err
        assert caught.value.code == 1
        assert said.count("\n") == 1
        assert said.startswith("search.py: a loader process died, mostly for want of memory")
        assert "/dev/shm" in said
        assert "fewer --workers, or --workers 0" in said
        assert ("--resume" in said) == saved
        Path(run.files.file("checkpoint.pt")).touch()


def test_an_error_in_a_loader_process_is_its_message(here, capsys):
    try:
        os.stat("pets/cat/1.png")
    except FileNotFoundError:
        wrapped = ExceptionWrapper(where="in DataLoader worker process 0")
    with pytest.raises(SystemExit), errors.run_errors("search.py"):
        wrapped.reraise()
    assert capsys.readouterr().err == (
        "search.py: [Errno 2] No such file or directory: 'pets/cat/1.png'\n"
    )


# --- Ctrl-C -------------------------------------------------------------------------------------


def test_ctrl_c_in_the_first_save_advises_what_is_possible(here, monkeypatch):
    def stop(*args, **words):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save", stop)
    text = ends_in_one_line(search.main, [*FAST_SEARCH, "--name", "s"], code=130)
    wanted = "interrupted before anything was saved; start again, with --overwrite to keep the name"
    assert text == f"search.py: {wanted}"
    assert log_of("searchs/s").splitlines()[-1] == wanted


def test_ctrl_c_inside_the_first_epoch_goes_on_from_the_last_save(here, monkeypatch):
    step_done = Run.step_done

    def stop(run, *where):
        step_done(run, *where)
        if where[:2] == (1, 1):
            run.cfg.checkpoint_minutes = 0
        elif where[:2] == (1, 2):
            raise KeyboardInterrupt

    monkeypatch.setattr(Run, "step_done", stop)
    words = [*FAST_SEARCH, "--name", "s", "--checkpoint_minutes", "1e-9"]
    text = ends_in_one_line(search.main, words, code=130)
    assert text.startswith("search.py: interrupted; go on after step 1 of epoch 1 with ")
    assert text.endswith("search.py --name s --resume")


@pytest.mark.parametrize(
    ("script", "module", "name", "words"),
    [
        (search, loaders, "search_data", FAST_SEARCH),
        (augment, loaders, "augment_data", ["--genotype", "DARTS_V2"]),
        (evaluate, evaluate.trained_network, "load", ["augments/a"]),
        (evaluate, utils, "evaluate", ["augments/a"]),
        (predict, image_files, "find", ["pets", "--from", "augments/a"]),
        (predict, predict, "classify", ["pets", "--from", "augments/a"]),
    ],
)
def test_ctrl_c_outside_the_epochs_is_one_line(
    finished_augment, monkeypatch, script, module, name, words
):
    monkeypatch.chdir(finished_augment[0])
    make(finished_augment[0] / "pets", ("train",), n=1)

    def stop(*args, **words):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, name, stop)
    prog = f"{script.__name__}.py"
    assert ends_in_one_line(script.main, words, code=130) == f"{prog}: interrupted"


def end_of(code, tmp_path, *words):
    """(exit code, standard error) of a Python program of ours."""
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        preexec_fn=hear_ctrl_c, timeout=60,
    )  # fmt: skip
    return done.returncode, done.stderr


def hear_ctrl_c():
    """A shell starts what runs in the background deaf to Ctrl-C, and children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


CTRL_C = "import os, signal; os.kill(os.getpid(), signal.SIGINT)\n"
FIRST_IMPORTS = {
    "torch": ["search", "augment", "evaluate", "predict", "export", "check_ops"],
    "matplotlib": ["plot_alphas", "plot_train_val"],
    "imageio": ["gif_maker"],
    "jinja2": ["report"],
    "graphviz": ["visualize"],
}


NEEDED = {  # wrong flags are answered earlier
    "augment": ["--genotype", "DARTS_V2"], "evaluate": ["a"], "predict": ["x", "--from", "y"],
    "export": ["a"],
}  # fmt: skip


@posix
@pytest.mark.parametrize(
    ("module", "script"), [(m, script) for m, names in FIRST_IMPORTS.items() for script in names]
)
def test_ctrl_c_during_imports_is_one_line(tmp_path, module, script):
    (tmp_path / f"{module}.py").write_text(CTRL_C)  # in the place of the real one
    done = subprocess.run(
        [sys.executable, ROOT / f"{script}.py", *NEEDED.get(script, [])],
        env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True,
        preexec_fn=hear_ctrl_c, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (130, f"{script}.py: interrupted\n")


SCRIPTS = [p.stem for p in ROOT.glob("*.py") if "end_in_one_line()" in p.read_text()]


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_missing_package_is_one_line(here, script):
    path = ROOT / f"{script}.py"
    done = subprocess.run(  # -S: without any installed package
        [sys.executable, "-S", "-E", path], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"{script}.py: the package ")
    assert "pip install -r " in done.stderr
    assert "requirements.txt" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_python_that_is_too_old_is_one_line(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 9, 18, "final", 0))
    with pytest.raises(SystemExit, match=r"needs Python 3\.10 or newer; this is 3\.9\.18, "):
        interrupts.end_in_one_line()


def test_a_missing_module_of_our_own_is_no_missing_package(tmp_path):
    code, said = end_of(BEGIN + "import console.nothing", tmp_path)
    assert code == 1
    assert "Traceback" in said
    assert "ModuleNotFoundError" in said


BEGIN = """
import os, signal, sys, weakref
from console import errors, interrupts
interrupts.end_in_one_line()
sys.argv = ["x.py"]
def ctrl_c(*args):
    os.kill(os.getpid(), signal.SIGINT)
"""


@posix
def test_a_second_ctrl_c_while_the_program_ends_prints_no_traceback(tmp_path):
    code = BEGIN + (
        "class Slow:\n"
        "    def __enter__(self): pass\n"
        "    def __exit__(self, *error): ctrl_c()\n"
        "with errors.run_errors('x.py'), Slow(): ctrl_c()\n"
    )
    assert end_of(code, tmp_path) == (-signal.SIGINT, "")
    code = BEGIN + (
        "import atexit; atexit.register(ctrl_c)\nwith errors.usage_errors('x.py'): ctrl_c()\n"
    )
    assert end_of(code, tmp_path) == (-signal.SIGINT, "x.py: interrupted\n")


@posix
def test_ctrl_c_in_a_callback_of_a_weak_reference_is_not_lost(tmp_path):
    code = BEGIN + (
        "class Thing: pass\n"
        "with errors.run_errors('x.py'):\n"
        "    thing = Thing(); ref = weakref.ref(thing, ctrl_c); del thing\n"
        "    while True: pass\n"
    )
    assert end_of(code, tmp_path) == (130, "x.py: interrupted\n")


@posix
def test_what_a_shell_starts_in_the_background_stays_deaf_to_ctrl_c(tmp_path):
    code = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n" + BEGIN + "ctrl_c()"
    assert end_of(code, tmp_path) == (0, "")
