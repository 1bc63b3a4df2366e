"""The folder of a run, searchs/NAME or augments/NAME, and everything written into it.

    config.json      flags, versions, device, start time
    NAME.log         what the terminal said, without the bars, and the details of each epoch
    metrics.jsonl    one JSON object per phase and epoch
    alphas.jsonl     search: softmax(alpha), weights of edges and the genotype after each epoch
    genotype.json    search: of the best epoch, and genotype-last.json;  augment: its cell
    summary.json     the size of the final network, the time for pictures, the next command
    checkpoint.pt    the last epoch, with all that resuming needs;  previous.pt  the one before
    best.pt          the checkpoint of the best epoch
    plots/           the drawings: of each epoch of a search, of the cell of a training
    report.html      everything above to look at (report.py)
    tb/              TensorBoard events
    .lock            while the run goes on: its process holds it
    .start           under torchrun: which start began the run, for a restart to find it

Files that matter are written to a temporary name and then renamed. checkpoint.pt is the one that
is believed: best.pt, genotype.json and config.json are written anew from it by --resume.
"""

import errno
import json
import os
import platform
import re
import shutil
import subprocess
import time
from contextlib import contextmanager, suppress

import filelock
import numpy
import torch
import torchvision

from console import interrupts
from devices import processes
from records import files, reader
from tracking import checkpoint

EARLIER = "before-overwrite"  # NAME.before-overwrite: the run that --overwrite replaces


def versions():
    """Versions of everything that has a part in the numbers."""
    here = os.path.dirname(os.path.abspath(__file__))
    try:
        commit = subprocess.run(
            ["git", "-C", here, "rev-parse", "--short", "HEAD"], capture_output=True, text=True
        ).stdout.strip()
    except OSError:  # no git on this machine
        commit = ""
    return {
        "repository": commit or "unknown",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": numpy.__version__,
    }


ROOT_SECONDS = 60  # to wait for others who take, move or give back a folder at this moment


# --- locks --------------------------------------------------------------------------------------


class _Lock:
    """A lock on a folder, held until `release` or the end of this process. Raises filelock.Timeout
    where another process holds it for longer than `seconds`."""

    def __init__(self, folder, seconds, name=files.LOCK):
        self._lock = filelock.FileLock(os.path.join(folder, name))
        self._lock.acquire(timeout=seconds, poll_interval=0.01)
        self._file = self._named()

    def _named(self):
        """Which file its name means now; None where there is none."""
        try:
            found = os.stat(self._lock.lock_file)
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino

    def has_its_file(self):
        """Whether nobody has removed the file meanwhile. Without it another process can lock."""
        return self._named() == self._file

    def release(self):
        """Release it and remove its file while it is held. Who waits for it finds that the file is
        gone and makes a new one; filelock looks from 3.21 on, and removes none itself from 3.29.7
        on: two removals could take the file of the next holder."""
        if self.has_its_file():
            with suppress(OSError):  # Windows: somebody waits for it
                os.remove(self._lock.lock_file)
        self._lock.release()


@contextmanager
def _names_of(root):
    """Folders in `root` are taken, moved and given back by one process at a time."""
    os.makedirs(root, exist_ok=True)
    try:
        lock = _Lock(root, ROOT_SECONDS)
    except filelock.Timeout:
        text = f"{root} is locked by another process; try again when that is over"
        raise ValueError(text) from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def hold_group(root, names):
    """Hold a name for several runs in `root`, the first of `names` that no process holds; yields
    it. `names` may look for folders that are there: nobody makes one meanwhile. Raises ValueError
    where all are held."""
    try:
        with _names_of(root):
            name, lock = _first_free(root, names)
        try:
            yield name
        finally:
            lock.release()
    finally:
        with suppress(OSError):
            os.rmdir(root)  # if nothing else is in it


def _first_free(root, names):
    for name in names:
        with suppress(filelock.Timeout):
            return name, _Lock(root, 0, f".{name}{files.LOCK}")
    raise ValueError(
        f"the searches {name} are going on; wait for their end, stop them, or choose another --name"
    )


def require_ended(root, name):
    """Raise ValueError where a run holds the folder `name`."""
    folder = RunFolder(root, name)
    if os.path.isdir(folder.path):
        folder.hold()
        folder.release()


@contextmanager
def set_up(cfg, resumes_from=files.CHECKPOINTS, group=processes.ALONE):
    """The RunFolder of a run that is being set up. Where that fails or is stopped by a signal,
    everything is put back as it was. `resumes_from` as in RunFolder. Of several processes, `group`,
    the first has the folder."""
    if group.is_main:
        _require_kept(cfg)
    kind = RunFolder if group.is_main else OtherFolder
    folder = kind(cfg.ROOT, cfg.name, resumes_from)
    try:
        folder.signals.__enter__()
        yield folder
        folder.signals.wait()  # from here on the run looks after them
    except BaseException:
        folder.give_back()
        folder.signals.__exit__()
        raise


def _require_kept(cfg):
    """Raise ValueError where --overwrite would remove what the run starts from: one that fails
    afterwards could not be started again."""
    if not (cfg.overwrite and cfg.name):
        return
    folder = os.path.join(cfg.ROOT, cfg.name)
    flags = ("genotype", "init_from", "ops", "data_path")
    sources = [(f"--{name}", getattr(cfg, name, None)) for name in flags]
    sources += [("this comparison", source) for source in getattr(cfg, "candidates", ())]
    for name, source in sources:
        path = os.path.realpath(source or "")
        within = f"{path}{os.sep}".startswith(f"{os.path.realpath(folder)}{os.sep}")
        if source and within and os.path.exists(path):
            raise ValueError(
                f"--overwrite would remove {folder}, which {name} starts from; choose another "
                f"--name"
            )


class RunFolder:
    """Takes or holds the folder of one run, and writes its files.

    name      None until a name is taken
    earlier   where --overwrite has moved the run that had the name before; None: nowhere
    source    which of its checkpoints a run goes on from
    findings  what was found out while it was taken or restored, to warn of
    signals   interrupts.StopSignals: who holds a folder must hear that it shall end
    """

    def __init__(self, root, name=None, resumes_from=files.CHECKPOINTS):
        """`resumes_from` are files, any of which means that --resume can go on."""
        self.root, self.resumes_from = root, resumes_from
        self.call(name)
        self.earlier = None
        self.findings = []
        self.source = None
        self.signals = interrupts.StopSignals()
        self._lock = None
        self._is_new = False

    def call(self, name):
        """Be the folder of this name."""
        self.name = name
        self.path = os.path.join(self.root, name or "")
        self.plot_path = self.file(files.PLOTS)

    def file(self, name):
        """Path of a file in this folder."""
        return os.path.join(self.path, name)

    def has_checkpoint(self):
        """Whether there is something to go on from: an epoch, or a training of a comparison."""
        return any(os.path.exists(self.file(name)) for name in self.resumes_from)

    def earlier_runs(self):
        """Where runs are that --overwrite moved aside and did not remove yet, the latest first."""
        pattern = re.compile(rf"{re.escape(f'{self.name}.{EARLIER}')}(?:-(\d+))?")
        found = {int(m[1] or 1): m[0] for m in map(pattern.fullmatch, os.listdir(self.root)) if m}
        return [os.path.join(self.root, found[n]) for n in sorted(found, reverse=True)]

    def advise_earlier(self):
        """What to do with the latest of them, behind a sentence; "" where there is none. It is left
        where the run that was to replace it was killed before it had something to show."""
        earlier = self.earlier_runs() if os.path.isdir(self.root) else []
        if not earlier:
            return ""
        return f"; the run that had the name before is in {earlier[0]}: move it back, or resume it"

    # --- taking it ------------------------------------------------------------------------------

    def take(self, default_name, overwrite):
        """Make the folder, in one step, and hold it; without a name `default_name`, numbered where
        that is taken. Returns its name. Raises ValueError where the folder exists and may not be
        overwritten."""
        if self.name is not None and os.path.exists(self.path):
            self._check_may_overwrite(overwrite)
        with _names_of(self.root):
            if self.name is None:
                self.call(_make_free(self.root, default_name))
            else:
                if os.path.exists(self.path):
                    self._check_may_overwrite(overwrite)
                    self._move_earlier()
                os.mkdir(self.path)
            self._is_new = True
            self._lock = _Lock(self.path, 0)
        if start := processes.start_of_all():
            files.write_text(self.file(files.START), start)
        return self.name

    def _check_may_overwrite(self, overwrite):
        if not overwrite:
            go_on = ", go on with --resume," if self.has_checkpoint() else ""
            raise ValueError(
                f"{self.path} exists; choose another --name{go_on} or replace it with --overwrite"
            )
        if not os.path.isfile(self.file(files.CONFIG)) and not self._is_barely_made():
            raise ValueError(f"{self.path} is no run folder (no {files.CONFIG}); not overwritten")

    def _is_barely_made(self):
        """Whether a run was killed before it wrote its first file."""
        names = [files.TEMPORARY.sub(r"\1", name) for name in os.listdir(self.path)]
        return set(names) <= {files.LOCK, files.CONFIG, files.START}

    def _move_earlier(self):
        self.hold()  # nobody else does
        self.release()  # Windows moves no folder with an open file
        for left in self.earlier_runs():
            text = "is left of an --overwrite that was broken off; remove it if it is not needed"
            self.findings.append(f"{left} {text}")
        self.earlier = os.path.join(self.root, _free_name(self.root, f"{self.name}.{EARLIER}"))
        files.replace(self.path, self.earlier)

    def hold(self):
        """Hold a folder that is there. Raises ValueError where a run holds it."""
        try:
            self._lock = _Lock(self.path, 0)
        except filelock.Timeout:
            raise ValueError(
                f"{self.path} belongs to a run that is going on; wait for its end, stop it, or "
                f"choose another --name"
            ) from None

    def resume(self):
        """Hold the folder of a run that goes on. Raises OSError where what it writes line by line,
        or must read, is no file."""
        log = f"{self.name}.log"
        for name in (files.CONFIG, files.METRICS, files.ALPHAS, files.SUMMARY, log, files.LOCK):
            files.require_regular(self.file(name))
        with _names_of(self.root):
            self.hold()

    def require_held(self):
        """Raise OSError where the lock that is held has lost its file: the folder is being deleted,
        or another run could take it. To be called before something is written."""
        if self._lock is not None and not self._lock.has_its_file():
            text = "it was removed; the folder may be gone, or another run's"
            raise FileNotFoundError(errno.ENOENT, text, self.file(files.LOCK))

    def release(self):
        """Let others have the folder."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def give_back(self):
        """Release the folder; one that is new is removed, and the earlier one gets its name back.
        Where nothing was taken nothing is done."""
        if not self._is_new:
            self.release()
            return
        with _names_of(self.root):
            self.release()
            shutil.rmtree(self.path, ignore_errors=True)
            if self.earlier is not None:
                files.replace(self.earlier, self.path)
        with suppress(OSError):
            os.rmdir(self.root)  # if nothing else is in it

    def drop_earlier(self):
        """Remove the run that --overwrite replaces, now that this one has something to show."""
        if self.earlier is not None:
            shutil.rmtree(self.earlier, ignore_errors=True)
            self.earlier = None

    # --- its files ------------------------------------------------------------------------------

    def write_config(self, flags, device_name):
        """config.json; of a run that goes on, all but the flags is kept if it can be read."""
        kept = reader.read_config(self.path)
        record = {
            "flags": flags,
            "versions": kept["versions"] or versions(),
            "device": kept.get("device", device_name),
            "start_time": kept.get("start_time", time.strftime("%Y-%m-%d %H:%M:%S")),
        }
        files.write_json(self.file(files.CONFIG), record)

    def append(self, name, record):
        """One JSON object as one line at the end of a .jsonl file."""
        self.require_held()
        files.append_line(self.file(name), json.dumps(record))

    def update_summary(self, **values):
        """Put values into summary.json, beside those that stand there."""
        self.require_held()
        path = self.file(files.SUMMARY)
        files.write_json(path, {**reader.read_object(path), **values})

    def all_warnings(self, said):
        """The warnings that were `said` in this call, behind those of earlier ones in summary.json,
        each once."""
        before = reader.read_summary(self.path).get("warnings", [])
        return list(dict.fromkeys([*before, *said]))

    def keep_epochs(self, last):
        """Drop records of epochs after `last`, which a resumed run will write again, and whatever
        is no record."""
        for name in (files.METRICS, files.ALPHAS):
            path = self.file(name)
            if os.path.exists(path):
                wanted = {"epoch": lambda epoch: reader.is_count(epoch) and epoch <= last}
                kept = [r for r in reader.read_lines(path) if reader.fits(r, wanted)]
                if kept:
                    files.write_text(path, "".join(json.dumps(r) + "\n" for r in kept))
                else:
                    os.remove(path)

    def missing_epochs(self, name, last):
        """The epochs up to `last` that a .jsonl file has no record of."""
        epochs = {r.get("epoch") for r in reader.read_lines(self.file(name))}
        return sorted(set(range(1, last + 1)) - epochs)

    def save(self, state, is_best):
        """Write checkpoint.pt, keeping the one before, and, for the best epoch so far, best.pt."""
        self.require_held()
        path = self.file(files.CHECKPOINT)
        checkpoint.save(state, path, previous=self.file(files.PREVIOUS))
        if is_best:
            checkpoint.save(state, self.file(files.BEST))
        if state["inside"] is None:  # an epoch is finished
            self.drop_earlier()


class OtherFolder(RunFolder):
    """The same folder for a process that writes nothing: the first one takes, holds and fills it,
    perhaps on another machine."""

    def _nothing(self, *args, **words):
        pass

    take = resume = hold = release = give_back = drop_earlier = _nothing
    write_config = append = update_summary = keep_epochs = save = _nothing


def begun_by(root, start):
    """The name of the run in `root` that this start of torchrun has begun, the latest; None where
    it has begun none."""
    found = []
    for name in os.listdir(root) if os.path.isdir(root) else ():
        path = os.path.join(root, name, files.START)
        with suppress(OSError, ValueError), open(path, encoding="utf-8") as file:
            if file.read() == start:
                found.append((os.path.getmtime(path), name))
    return max(found)[1] if found else None


def _make_free(root, name):
    """Make the folder `name`, or name-2, name-3, ...: the first that is not there. One step tells
    whether it is and makes it."""
    free, n = name, 1
    while True:
        try:
            os.mkdir(os.path.join(root, free))
            return free
        except FileExistsError:
            n += 1
            free = f"{name}-{n}"


def _free_name(root, name):
    free, n = name, 1
    while os.path.exists(os.path.join(root, free)):
        n += 1
        free = f"{name}-{n}"
    return free
