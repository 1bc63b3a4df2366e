"""Going on with a run: the checkpoint that is whole, and the files that are derived from it."""

import glob
import os

from devices import processes
from devices.processes import ALONE
from records import files
from records.reader import is_object, read_object
from tracking import checkpoint, inside, run_folder


def to_resume(cfg, folder, group=ALONE):
    """The checkpoint that --resume goes on from, whose flags `cfg` then has; None without --resume.
    Where torchrun has started the processes anew, they go on with the run that they had begun.

    folder  the run_folder.RunFolder, which is held from here on
    group   the processes that go on together, by what the first of them finds

    Raises ValueError where there is none.
    """
    if group.restarts and not cfg.resume:
        _find_begun(cfg, folder, group)
    if not cfg.resume:
        return None
    state = group.from_main(lambda: _read(cfg, folder))
    cfg.resume_from(state["flags"])
    if cfg.new_split and state["epoch"] >= cfg.epochs:
        raise ValueError(
            f"{folder.path} has finished, so there is nothing to divide anew; leave --new_split "
            f"out, or start a new run"
        )
    return state


def _find_begun(cfg, folder, group):
    """Let `cfg` and `folder` be those of the run that was begun before the restart: resumed, or
    begun once more where nothing was saved."""

    def find():
        name = run_folder.begun_by(cfg.ROOT, processes.start_of_all())
        if name is None:
            return None, False
        folder.call(name)
        return name, folder.has_checkpoint()

    name, saved = group.from_main(find)
    if name is not None:
        folder.call(name)
        cfg.name, cfg.resume, cfg.overwrite = name, saved, not saved


def _read(cfg, folder):
    """The checkpoint in `folder`, which is held from here on."""
    if not folder.has_checkpoint():
        raise ValueError(_nothing_there(folder))
    folder.resume()
    state = _newest(folder)
    kind = checkpoint.kind_of(state)
    if kind != cfg.PROG:
        raise ValueError(f"{folder.path} is a run of {kind}; go on with it by {kind} --resume")
    return state


def _nothing_there(folder):
    """Why nothing can be resumed, and what can be done."""
    if os.path.isdir(folder.path):
        text = f"nothing was saved in {folder.path} to go on from; start again with --overwrite"
    else:
        text = f"no run to go on with: {folder.path} does not exist"
        several = sorted(glob.glob(f"{glob.escape(folder.path)}-seed[0-9]*"))
        if several and folder.root == files.SEARCHES:
            return f"{text}, but {several[0]} does; say --seeds as before to go on with all of them"
    return f"{text}{folder.advise_earlier()}"


def _newest(folder):
    """The last checkpoint that is whole: each file holds all that resuming needs."""
    faults = []
    for name in files.CHECKPOINTS:
        path = folder.file(name)
        if not os.path.exists(path):  # killed between two renames, or before there were two
            continue
        try:
            state = checkpoint.load(path)
        except ValueError as error:
            faults.append(str(error))
            continue
        folder.source = name
        if faults:
            text = f"going on from {name}, after {inside.where(state)}"
            folder.findings.append(f"{'; '.join(faults)}; {text}")
        return state
    text = "no checkpoint is whole; start again with --overwrite"
    raise ValueError(f"{'; '.join(faults)}; {text}")


def restore_files(folder, state, cfg, device_name):
    """Bring every file of the run in line with the checkpoint it goes on from, and remove what a
    killed run has left. What cannot be mended is added to folder.findings."""
    last = state["epoch"]
    files.remove_temporary(folder.path, files.OWN)
    if folder.source != files.CHECKPOINT:  # or the damaged one would become the one before
        checkpoint.save(state, folder.file(files.CHECKPOINT))
    folder.keep_epochs(last)
    names = [files.METRICS, files.ALPHAS] if folder.root == files.SEARCHES else [files.METRICS]
    for name in names:
        if gone := folder.missing_epochs(name, last):
            folder.findings.append(
                f"{folder.file(name)} has no record of epoch {', '.join(map(str, gone))}; the "
                f"pictures leave it out, the result does not depend on it"
            )
    flags, recorded = cfg.flags(), read_object(folder.file(files.CONFIG)).get("flags")
    of_this_call = cfg.marked(flags, keep="never")
    if not is_object(recorded) or {**recorded, **of_this_call} != flags:
        folder.write_config(flags, device_name)
    _restore_best(folder, state)


def _restore_best(folder, state):
    """best.pt of the epoch that the checkpoint calls the best."""
    best, path = state["best"], folder.file(files.BEST)
    if best["epoch"] == 0:  # stopped inside the first epoch
        return
    if best["epoch"] == state["epoch"] and state["inside"] is None:
        checkpoint.save(state, path)
        return
    for candidate in (path, folder.file(files.PREVIOUS)):
        try:
            found = checkpoint.load(candidate)
        except ValueError:
            continue
        same = all(found[key] == best[key] for key in ("epoch", "top1", "genotype"))
        if same and found["inside"] is None:
            if candidate != path:
                checkpoint.save(found, path)
            return
    if os.path.exists(path):
        os.remove(path)
    folder.findings.append(
        f"{path} was damaged or of another epoch, and the weights of epoch {best['epoch']}, the "
        f"best, are lost; it is written again by the next better epoch"
    )
