"""A run: its folder, its log, its TensorBoard events and its state, put together."""

import contextlib
import itertools
import logging
import logging.handlers
import os
import time

import report
import utils
from console import errors, interrupts
from console.log import Log, SilentLog
from console.terminal import visible
from data_sets import splits
from data_sets.named import DataSpec
from data_sets.options import DataOptions
from devices.processes import Lost
from devices.step_guard import ALPHA
from records import files
from tracking import checkpoint, estimate, resume
from tracking.board import Board
from tracking.inside import Inside

RATES = {"w_optim": "w_lr", "optim": "lr", "alpha_optim": "alpha_lr"}  # flags of the optimizers

NO_EPOCH = {"epoch": 0, "top1": None, "genotype": None}  # the last finished epoch, before the first


def load_and_listen(load, options):
    """(`load(options)`, what it said to the log "darts.data")."""
    logger, memory = logging.getLogger("darts.data"), logging.handlers.MemoryHandler(10**6)
    logger.setLevel(logging.INFO)
    logger.addHandler(memory)
    try:
        data = load(options)
    finally:
        logger.removeHandler(memory)
    return data, [visible(record.getMessage()) for record in memory.buffer]


class Run:
    """One call of search.py or augment.py. A context manager: nothing is written before it is
    entered.

    Of several processes (device.group) each has a Run; the first alone writes and speaks.

    files        the folder (tracking.run_folder.RunFolder)
    log          what it says (console.log.Log)
    board        TensorBoard (tracking.board.Board)
    best, last   {"epoch", "top1", "genotype"} of the best and of the last finished epoch
    stopped      why the run has ended before its last epoch, or None
    chosen       what a search recommends in place of its best, as `best`, or None
    selection    how it was chosen, if not by alpha
    """

    def __init__(self, cfg, device, default_name, folder, state=None, advice=None):
        """
        cfg           a config.SearchConfig or AugmentConfig; gets a name here if it has none
        device        a devices.pick.Device
        default_name  what a run without --name is called, numbered where that is taken
        folder        the RunFolder, taken here unless the run goes on (run_folder.set_up)
        state         the checkpoint to go on from (resume.to_resume)
        advice        () -> what to do if memory runs out, in words

        Raises ValueError when the folder exists, without --resume or --overwrite.
        """
        self.cfg, self.device, self.state, self.files = cfg, device, state, folder
        self.group = device.group
        self.advice, self.signals = advice, folder.signals
        self.log = (Log if self.group.is_main else SilentLog)(cfg.quiet, cfg.print_freq)
        self.board = Board()
        self.parts = {}  # what has a state_dict, by name
        self.findings = []  # what was found out about the data, for the log
        self.images = {}  # which images were read: {part: splits.fingerprint}
        self.n_steps = self.top_k = 0
        self.spec = None  # the DataSpec of the images
        self.loaders = []  # of the data (None: not there), whose processes end with the run
        self.best, self.last = {**NO_EPOCH, "top1": -1.0, "warmup": True}, dict(NO_EPOCH)
        self.stopped = self.chosen = None
        self.selection = ""
        self._first_steps = estimate.FirstSteps()
        self.inside = None  # the Inside of an epoch that is under way
        self.saved, self.saved_at = "", time.monotonic()  # what was saved last, in words, and when
        if state is not None:
            self.best = state["best"]
            self.stopped, self.chosen = state["stopped"], state["chosen"]
            self.last = {key: state[key] for key in ("epoch", "top1", "genotype")}
        else:
            cfg.name = self.group.from_main(lambda: folder.take(default_name, cfg.overwrite))
            folder.call(cfg.name)

    @property
    def recommended(self):
        """{"epoch", "top1", "genotype"} of the cell that a search recommends."""
        return self.chosen or self.best

    def stop(self, why, chosen):
        """End the run with the epoch that is being recorded; recommend what `chosen` holds."""
        self.stopped = why
        self.chosen = {key: chosen[key] for key in NO_EPOCH}

    @property
    def first_epoch(self):
        return 1 if self.state is None else self.state["epoch"] + 1

    @property
    def first_step(self):
        """How many training steps of the whole run were done before this call."""
        inside = self.state and self.state["inside"]
        return (self.first_epoch - 1) * self.n_steps + (inside["step"] if inside else 0)

    def load_data(self, load):
        """`load`(DataOptions of this run) -> its data. What it logs is kept for the log."""
        self.cfg.require_images()
        roots = sorted((files.SEARCHES, files.TRAININGS), key=lambda root: root != self.cfg.ROOT)
        options = DataOptions.from_config(
            self.cfg,
            known_spec=self.state and DataSpec.from_dict(self.state["data"]),
            cache_files=tuple(os.path.join(root, ".images.json") for root in roots),
            may_shrink_batch="batch_size" not in self.cfg.said,
            pin_memory=self.device.is_cuda,
            share=(self.group.rank, self.group.size),
            local_size=self.group.local_size,
        )
        data, self.findings = self.group.one_by_one(lambda: load_and_listen(load, options))
        self.group.require_same(
            data.images, "the processes read different images; give all of them the same files"
        )
        self.n_steps, self.top_k = len(data.train), min(5, len(data.spec.classes))
        self._check_images(data.images)
        self.spec = data.spec
        self.loaders = [data.train, data.alpha, data.val, data.test]
        return data

    def _check_images(self, images):
        """Raise ValueError where a run goes on with other images, unless that was said."""
        self.images = images
        before = images if self.state is None else self.state["images"]
        differences = splits.differences(before, images)
        if not differences:
            return
        text = f"these are not the images that the run began with: {'; '.join(differences)}"
        if self.state["epoch"] >= self.cfg.epochs:
            raise ValueError(f"{text}, and it has finished; put them back, or start a new run")
        if not self.cfg.new_split:
            raise ValueError(
                f"{text}; put them back, start a new run, or go on with --new_split, which divides "
                f"them anew: images that were held out may be trained on"
            )
        if self.state["inside"] is not None:
            raise ValueError(
                f"{text}, and it was saved inside an epoch, which cannot go on with others; put "
                f"them back, or start a new run"
            )
        self.files.findings.append(
            f"{text}; they are divided anew (--new_split), so images that were held out may be "
            f"trained on, and scores before and after do not compare"
        )

    def track(self, **parts):
        """Save `parts` with every epoch; resuming, put them and the random generators back."""
        self.parts = parts
        if self.state is not None:
            path = self.files.file(files.CHECKPOINT)
            for name, part in parts.items():
                checkpoint.load_state(part, self.state[name], path)
            if self.state["inside"] is not None:
                self.inside = Inside(**self.state["inside"])
            self.saved = str(self.inside or f"epoch {self.last['epoch']}")
        self._set_random()
        self.require_alike(ValueError)

    def _set_random(self):
        """Put the random generators back to the state of the checkpoint, that of this process where
        there are as many as then. Else those other than the first draw anew."""
        states = [] if self.state is None else [self.state["rng"], *self.state["rng_others"]]
        if states and len(states) != self.group.size:
            self.findings.append(
                f"saved by {len(states)} process{'es' * (len(states) > 1)}, goes on with "
                f"{self.group.size}: the batches stay, random changes of images and what blocks "
                f"draw (dropout, drop path) are new"
            )
        if states and (self.group.is_main or len(states) == self.group.size):
            path = self.files.file(files.CHECKPOINT)
            checkpoint.set_rng_state(states[self.group.rank], path)
        elif not self.group.is_main:  # whatever a block draws, as dropout does, is its own
            seed = self.cfg.seed + 1_000_003 * self.group.rank + 7919 * self.first_step
            utils.seed_everything(seed % 2**32)

    def require_alike(self, error=Lost):
        """Raise `error` where the processes hold other weights than each other."""
        if self.group.size > 1:
            text = "the processes no longer hold the same weights"
            self.group.require_same(checkpoint.digest(self.parts["model"]), text, error)

    def __enter__(self):
        try:
            self._open()
        except BaseException:
            self._close(self.files.give_back)
            raise
        return self

    def _open(self):
        self.signals.__enter__()  # again, if the folder was set up under them
        self.signals.wait()
        self.saved_at = time.monotonic()
        if self.group.is_main:
            self._open_files()

    def _open_files(self):
        flags, device_name = self.cfg.flags(), self.device.name
        if self.state is None:
            self.files.write_config(flags, device_name)
        else:
            resume.restore_files(self.files, self.state, self.cfg, device_name)
        self.log.open(self.files.file(f"{self.files.name}.log"))
        path = self.files.file(files.TENSORBOARD)
        self.board.open(path, flags, self.first_step, warn=self.log.warn)
        for finding in self.files.findings:
            self.log.warn(finding)
        if self.files.earlier is not None:
            self.log.info(
                f"the earlier run of this name is in {self.files.earlier} until the first epoch is "
                f"finished"
            )
        if self.state is not None:
            self.record_state()

    def record_state(self, state="running", text=""):
        """Into summary.json, for the page: "running", "finished" or "broken off", why, the command
        that goes on with the run, and all warnings."""
        self.files.update_summary(
            warnings=self.files.all_warnings(self.log.warnings),
            state={"is": state, "text": text, "command": self._go_on()},
        )

    def _record_end(self, text):
        """That the run has been broken off, in summary.json and on the page if there is one."""
        with contextlib.suppress(Exception):  # whatever it is, the run has a better reason to end
            self.record_state("broken off", text)
            if self.group.is_main and os.path.exists(self.files.file(files.REPORT)):
                with contextlib.suppress(Exception):  # the page has those that there are
                    report.draw_figures(self.files.path)  # they may be of an earlier epoch
                report.write(self.files.path)

    def __exit__(self, kind, error, traceback):
        try:
            self.log.close_bars()
            if error is not None:
                found = errors.ending(error, self)
                text = found[0] if found else f"stopped by {kind.__name__}: {error}"
                with contextlib.suppress(OSError):  # the disk is full, perhaps
                    self.log.detail(text)  # the terminal gets it from errors
                self._record_end(text)
            else:
                self.group.close()
        finally:
            self._close(self.files.release)

    def _close(self, leave):
        """Close all that is open, then `leave` the folder; each, whatever becomes of the others."""
        with contextlib.ExitStack() as stack:
            stack.callback(self.signals.__exit__)
            stack.callback(leave)
            stack.callback(self.log.close)
            stack.callback(self.board.close)
            for loader in (found for found in self.loaders if found is not None):
                stack.callback(loader.close)

    def farewell(self, error):
        """The last line of a run that this KeyboardInterrupt ended: what to do next."""
        return f"{str(error) or 'interrupted'}{self.way_on(getattr(error, 'saved', False))}"

    def way_on(self, known=False):
        """What to do after the run has ended early, behind a verb; `known`: it was said already
        what has been saved."""
        if not self.files.has_checkpoint():
            return f" before anything was saved; {self._start_again()}"
        there = f" after {self.saved}" if self.saved and not known else ""
        return f"; go on{there} with {self._go_on()}"

    def _start_again(self):
        text = "start again"
        if os.path.exists(self.files.path):
            text += ", with --overwrite to keep the name"
        if self.files.earlier is not None:
            text += f"; the earlier run of this name is in {self.files.earlier}"
        return text

    def _go_on(self, *words):
        return errors.command(self.cfg.PROG, "--name", self.files.name, "--resume", *words)

    def not_finite(self, error):
        """A NotFinite in one line: where it was seen, what to change, how to go on."""
        where = f"epoch {min(self.last['epoch'] + 1, self.cfg.epochs)}"
        if error.step:
            where += f", step {error.step} of {self.n_steps}"
        rates = [
            f"--{name} {self.parts[part].param_groups[0]['lr']:.3g}"
            for part, name in RATES.items()
            if part in self.parts
        ]
        clip = "w_grad_clip" if "w_optim" in self.parts else "grad_clip"
        lower = [rates[0].split()[0], f"--{clip} {getattr(self.cfg, clip)}"]
        lower += ["--alpha_lr"] if error.what == ALPHA else []
        text = f"{error} ({where}; learning rate now {', '.join(rates)}); lower "
        text += ", ".join(lower[:-1]) + f" or {lower[-1]}"
        if not self.files.has_checkpoint():
            skip = ", or leave such steps out with --on_nan skip" if error.step else ""
            return f"{text}{skip}; nothing was saved; {self._start_again()}"
        text += f"; the checkpoint of {self.saved} is kept"
        if not error.step:
            return text
        return f"{text}, go on from there without such steps: {self._go_on('--on_nan', 'skip')}"

    # --- epochs ---------------------------------------------------------------------------------

    def epochs(self):
        """The numbers of the epochs still to do, counted from 1, with progress bars."""
        done = 0 if self.inside is None else self.inside.step
        self.log.open_bars(self.first_epoch, self.cfg.epochs, self.n_steps, done)
        for epoch in range(self.first_epoch, self.cfg.epochs + 1):
            if self.stopped:
                break
            yield epoch
            self.stop_if_asked()
        self.log.close_bars()

    def meter(self, guard):
        """A Meter for the training pass of an epoch whose updates `guard`, a StepGuard, decides;
        resumed inside the epoch, both go on from where they were saved."""
        meter = utils.Meter(self.device, "training loss", guard)
        if self.inside is not None:
            meter.load_state_dict(self.inside.meter)
        return meter

    def steps(self, batches):
        """Yield (step, batch) of an epoch, counted from 1; resumed inside it, of what is left."""
        done = 0 if self.inside is None else self.inside.step
        yield from enumerate(itertools.islice(batches, self.n_steps - done), start=done + 1)

    def step_done(self, epoch, step, meter):
        """One training step is done: move the bars on, show the running means if it is time, which
        is the only wait for the device, save if it is time, stop if that was asked for."""
        global_step = (epoch - 1) * self.n_steps + step
        minutes = self.cfg.checkpoint_minutes
        late = bool(minutes) and time.monotonic() - self.saved_at >= 60 * minutes
        asked = self.signals.number or 0
        show, late, asked = self.group.most(self.log.due(global_step), late, asked)
        if show:
            means = meter.means()
            self.log.step(epoch, step, self.n_steps, means, self.top_k)
            if global_step % self.cfg.print_freq == 0:
                self.board.scalars("running", means, global_step)
        self.log.advance(epoch)
        seconds = self._first_steps.step_done(meter.means)
        if seconds is not None:
            left = self.n_steps * self.cfg.epochs - global_step
            self.log.info(estimate.describe(seconds, left, epoch <= getattr(self.cfg, "warmup", 0)))
        self.inside = Inside(epoch, step, meter)
        if late:
            self._save(is_best=False)
        self._stop(asked)

    def stoppable(self, batches):
        """`batches` to score, between which the run can be stopped."""
        for batch in batches:
            yield batch
            self.stop_if_asked()

    def stop_if_asked(self):
        """Save and raise interrupts.Stopped, if a signal has asked for it, any of the processes. To
        be called where nothing has changed since the last training step, or since the epoch was
        saved."""
        (asked,) = self.group.most(self.signals.number or 0)
        self._stop(asked)

    def _stop(self, asked):
        if asked:
            if self.inside is not None and self.saved != str(self.inside):
                self._save(is_best=False)
            raise interrupts.Stopped(asked, f"after {self.saved}", saved=True)

    def trained(self, epoch, meter):
        """The means of an epoch's training, `meter.result()`; says which steps were left out. From
        here on the processes have the same BatchNorm statistics, too."""
        result = meter.result()
        self.group.average_buffers(self.parts.get("model"))
        if result.get("left_out"):
            self.log.warn(f"epoch {epoch}: left out, since not finite: {meter.guard.describe()}")
        return result

    def record_epoch(self, epoch, lr, train, val, genotype):
        """Both phases of an epoch to metrics.jsonl and TensorBoard, with its genotype as text.
        Updates `best` and `last`; returns whether the epoch is the best so far."""
        for phase, values in (("train", train), ("val", val)):
            record = {"phase": phase, "epoch": epoch, "step": epoch * self.n_steps, "lr": lr}
            self.files.append(files.METRICS, {**record, **values})
            # by what they are, in the order of the alphabet, which is TensorBoard's
            for group, name in (("accuracy", "top1"), ("loss", "loss"), ("top5", "top5")):
                self.board.scalars(group, {phase: values[name]}, epoch * self.n_steps)
        self.board.scalars("rate", {"lr": lr}, epoch * self.n_steps)
        self.last = {"epoch": epoch, "top1": val["top1"], "genotype": genotype}
        warmup = val.get("warmup", False)  # a cell that alpha had no part in is a stopgap
        before = (not self.best.get("warmup"), self.best["top1"])
        is_best = (not warmup, val["top1"]) >= before  # of equal scores the later epoch
        if is_best:
            self.best = {**self.last, "warmup": True} if warmup else self.last
        return is_best

    def save(self, is_best):
        """Write the checkpoint of the epoch that is finished."""
        self.inside = None
        self.require_alike()
        self._save(is_best)

    def _save(self, is_best):
        if self.inside is not None:
            self.group.average_buffers(self.parts.get("model"))
        rng, *others = self.group.gather(checkpoint.rng_state())
        states = {name: part.state_dict() for name, part in self.parts.items()}
        states["inside"] = None if self.inside is None else self.inside.state_dict()
        rest = {"flags": self.cfg.flags(), "data": self.spec.to_dict(), "images": self.images}
        rest |= {"best": self.best, **self.last, "stopped": self.stopped, "chosen": self.chosen}
        self.saved = ""  # not known until it is written
        self.files.save({**states, "rng": rng, "rng_others": others, **rest}, is_best)
        self.saved = str(self.inside or f"epoch {self.last['epoch']}")
        self.saved_at = time.monotonic()
