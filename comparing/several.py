"""search.py --seeds N: the same search from several seeds, a process each. And what follows
behind one search or several: the comparison.

The paper's authors did so by hand: four searches, each cell trained briefly, the best one kept. The
searches are ordinary ones in searchs/NAME-seedK, and each can be looked at and resumed by itself.
"""

import contextlib
import glob
import itertools
import os
import re
import signal
import subprocess
import sys
import tempfile
import time

from tqdm import tqdm

import genotypes as gt
from console import errors, interrupts
from console.terminal import plural
from data_sets import loaders
from devices import pick, processes
from records import comparison, files, reader
from tracking import run_folder, search_log

LEAST_RANDOM = 4  # random cells to compare with
# said anew for each search
OWN = ("seeds", "seed", "name", "resume", "overwrite", "quiet", "compare")
# said to compare.py, too; and when it goes on
ALSO = ("quick", "quiet", "device", "gpus", "workers", "amp", "cuda_graphs", "seed", "subset")
FREE = ("quiet", "device", "gpus", "workers", "cuda_graphs", "data_path", "ops", "cache_gb")
OF_A_PROCESS = ("gpus", "threads")  # each search may have been given its own
POLL = 0.3  # seconds


def _seeds(cfg):
    return range(cfg.seed, cfg.seed + cfg.seeds)


def _name(base, seed):
    return f"{base}-seed{seed}"


class Table:
    """What the searches have come to, a row each time that another twentieth of all epochs is
    finished: of each search its last epoch and the accuracy of its supernet."""

    ROWS = 20

    def __init__(self, names, n_epochs):
        """names {seed: folder in searchs/}, of searches of `n_epochs` each"""
        self.names, self.total = names, n_epochs * len(names)
        self.shown, self.start, self.before = 0, time.perf_counter(), None

    def header(self):
        cells = [
            f"{'epochs':>9}",
            *(f"{f'seed {seed}':>12}" for seed in self.names),
            f"{'left':>9}",
        ]
        return " ".join(cells)

    def update(self):
        """The number of finished epochs, and the row for it as text; None where none is due."""
        scores = [reader.scores(os.path.join(files.SEARCHES, n)) for n in self.names.values()]
        done = sum(map(len, scores))
        self.before = done if self.before is None else self.before  # by an earlier call
        if done * self.ROWS // self.total <= self.shown * self.ROWS // self.total:
            return done, None
        self.shown = done
        seconds = (time.perf_counter() - self.start) / max(done - self.before, 1)
        left = tqdm.format_interval(seconds * (self.total - done))
        cells = [f"{max(s)} {s[max(s)]:.2%}" if s else "-" for s in scores]
        return done, " ".join(
            [f"{f'{done}/{self.total}':>9}", *(f"{cell:>12}" for cell in cells), f"{left:>9}"]
        )


def _folders(cfg, base):
    """Every folder that these searches and their comparison make."""
    searches = [os.path.join(files.SEARCHES, _name(base, seed)) for seed in _seeds(cfg)]
    return [*searches, os.path.join(files.COMPARISONS, base)]


def _free_names(cfg):
    base = loaders.default_run_name(cfg.dataset, cfg.data_path)
    for n in itertools.count(1):
        name = base if n == 1 else f"{base}-{n}"
        if not any(map(os.path.exists, _folders(cfg, name))):
            yield name


def hold_name(cfg):
    """A context that holds the name of these searches, said or free."""
    names = [cfg.name] if cfg.name else _free_names(cfg)
    return run_folder.hold_group(files.SEARCHES, names)


class Searches:
    """Several searches that go on at once."""

    def __init__(self, cfg, base):
        """
        cfg   a config.SearchConfig
        base  what the names of the searches begin with; this process holds it (`hold_name`)

        Raises ValueError where a folder is there already, is that of a run that goes on, or
        there is none to go on with.
        """
        self.cfg, self.base = cfg, base
        if cfg.resume:
            self._remember()
        self.names = {seed: _name(base, seed) for seed in _seeds(cfg)}
        self.stderr = {}  # {seed: the file with what its search has said}
        self.errors = {}  # {name of a search: its last line}, of those that failed
        if not (cfg.resume or cfg.overwrite):
            self._require_free()
        for name in self.names.values():  # of searches whose first process was killed, perhaps
            run_folder.require_ended(files.SEARCHES, name)
        self.waiting = list(self.names)  # the seeds of those that are to be run
        if cfg.new_split:
            self._pass_over_finished()
        self.cards = pick.spread_cards(cfg.device, cfg.gpus)
        self.jobs = len(self.cards) or pick.cores()

    def _remember(self):
        """Give `cfg` the flags of the first search that has begun: those that have not begun yet
        are to be like it. They count as said. Raises ValueError where none has begun."""
        cfg, begun = self.cfg, {}
        for path in glob.glob(os.path.join(files.SEARCHES, glob.escape(self.base) + "-seed*")):
            seed = re.fullmatch(r"(\d+)", path.rpartition("-seed")[2])
            if seed and (flags := reader.read_config(path)["flags"]):
                begun[int(seed[1])] = flags
        if not begun:
            raise ValueError(
                f"nothing to resume: no search {self.base}-seed* has begun; start again without "
                f"--resume"
            )
        first = begun[min(begun)]
        flags = {n: v for n, v in first.items() if n == "seed" or n not in OWN + OF_A_PROCESS}
        cfg.resume_from(flags)
        settings = [name for name in ("quick", "paper") if flags.get(name)]
        plain = type(cfg)([f"--{name}" for name in settings])
        lasting = {**cfg.marked(flags, keep="fixed"), **cfg.marked(flags, keep="free")}
        always = ("dataset", *settings)
        said = {n: v for n, v in lasting.items() if n in always or v != getattr(plain, n)}
        cfg.said = {**said, **cfg.said}
        if "compare" not in cfg.said:
            cfg.compare = plain.compare

    def _require_free(self):
        for folder in _folders(self.cfg, self.base):
            if os.path.exists(folder):
                raise ValueError(
                    f"{folder} exists; choose another --name, go on with --resume, or replace all "
                    f"of them with --overwrite"
                )

    def _pass_over_finished(self):
        """Leave out the searches that have finished: they have nothing to divide anew, and would
        refuse other images. Raises ValueError where all have."""
        for seed, name in self.names.items():
            state = reader.state(os.path.join(files.SEARCHES, name))
            if state and state["is"] == "finished":
                self.waiting.remove(seed)
        if not self.waiting:
            raise ValueError(
                f"the searches {self.base} have finished, so there is nothing to divide anew; "
                f"leave --new_split out, or start new ones"
            )

    def _words(self, seed, slot):
        """The command line of one search."""
        cfg, name = self.cfg, self.names[seed]
        goes_on = cfg.resume and self._has_checkpoint(name)
        own = ("gpus", *OWN) if goes_on else ("gpus", *OWN, "new_split")
        words = cfg.words([flag for flag in cfg.said if flag not in own])
        words += ["--name", name, "--seed", str(seed), "--quiet", "--compare", "0"]
        if goes_on:
            words.append("--resume")
        elif _may_overwrite(cfg, os.path.join(files.SEARCHES, name)):
            words.append("--overwrite")
        if self.cards:
            words += ["--gpus", str(self.cards[slot])]
        if not self.cards and "threads" not in cfg.said and self.jobs > 1:
            words += ["--threads", "1"]
        return words

    @staticmethod
    def _has_checkpoint(name):
        path = os.path.join(files.SEARCHES, name)
        return any(os.path.exists(os.path.join(path, file)) for file in files.CHECKPOINTS)

    def _start(self, seed, slot):
        # no pipe, which would fill, since nobody reads it before the end
        self.stderr[seed] = tempfile.TemporaryFile()  # noqa: SIM115
        # in a session of its own: Ctrl-C reaches this process alone, which then asks them to stop
        return subprocess.Popen(
            [sys.executable, os.path.join(errors.ROOT, "search.py"), *self._words(seed, slot)],
            stdout=subprocess.DEVNULL,
            stderr=self.stderr[seed],
            start_new_session=True,
        )

    def run(self):
        """All searches, as many at once as there are cards or cores; returns the folders of those
        that were finished. A KeyboardInterrupt carries what to do next."""
        cfg = self.cfg
        waiting, running, free = self.waiting, {}, list(range(self.jobs))
        bar = tqdm(
            total=cfg.seeds * cfg.epochs, desc=f"{cfg.seeds} searches, epochs", file=sys.stderr,
            dynamic_ncols=True, leave=False, disable=True if cfg.quiet or cfg.resume else None,
        )  # fmt: skip
        table = Table(self.names, cfg.epochs)
        if not cfg.quiet:
            tqdm.write(table.header(), file=sys.stdout)
        with interrupts.StopSignals() as signals:
            signals.wait()
            try:
                while waiting or running:
                    while waiting and free:
                        slot, seed = free.pop(0), waiting.pop(0)
                        running[seed] = slot, self._start(seed, slot)
                    time.sleep(POLL)
                    if not cfg.quiet:
                        done, row = table.update()
                        bar.update(done - bar.n if not bar.disable else 0)
                        if row:
                            tqdm.write(row, file=sys.stdout)
                    for seed, (slot, process) in list(running.items()):
                        if process.poll() is not None:
                            del running[seed]
                            free.append(slot)
                            self._ended(seed, process, cfg.quiet)
                    if signals.number is not None:
                        raise interrupts.Stopped(signals.number)
            except KeyboardInterrupt as error:
                error.args = (f"{str(error) or 'interrupted'}; go on with {self._go_on()}",)
                raise
            finally:
                bar.close()
                self._stop(running)
        return [
            os.path.join(files.SEARCHES, name)
            for name in self.names.values()
            if name not in self.errors
        ]

    def _go_on(self):
        """The command that goes on. What was said is said again, for those that did not begin."""
        said = [flag for flag in self.cfg.said if flag not in ("name", "resume", "overwrite")]
        words = ["--name", self.base, *self.cfg.words(said), "--resume"]
        return errors.command(self.cfg.PROG, *words)

    def _ended(self, seed, process, quiet):
        """A search is over: say so."""
        with self.stderr.pop(seed) as stream:
            stream.seek(0)
            lines = stream.read().decode(errors="replace").strip().splitlines()
        path = os.path.join(files.SEARCHES, self.names[seed])
        if process.returncode:
            self.errors[self.names[seed]] = lines[-1] if lines else f"code {process.returncode}"
            tqdm.write(f"WARNING: {path}: {self.errors[self.names[seed]]}", file=sys.stdout)
        elif not quiet:
            scores = reader.scores(path)
            best = f", best supernet accuracy {max(scores.values()):.2%}" if scores else ""
            sure = reader.read_summary(path).get("how_sure", {}).get("text", "")
            text = f"{path}: {plural(len(scores), 'epoch')}{best}{'; ' if sure else ''}{sure}"
            tqdm.write(text, file=sys.stdout)

    @staticmethod
    def _stop(running):
        """Ask all that still run to save and stop, and wait for them."""
        for _, process in running.values():
            process.send_signal(signal.SIGTERM)
        for _, process in running.values():
            process.wait()


def search(cfg):
    """Run cfg.seeds searches. Returns the command line of compare.py for what they found."""
    with contextlib.ExitStack() as stack:
        with errors.usage_errors(cfg.PROG):
            processes.refuse_torchrun("--seeds")
            searches = Searches(cfg, stack.enter_context(hold_name(cfg)))
            n, base = len(searches.waiting), searches.base
            if not cfg.quiet:
                print(f"{n} searches, {min(n, searches.jobs)} at once: searchs/{base}-seed*")
        with errors.run_errors(cfg.PROG):
            found = searches.run()
        if not found:
            errors.end(cfg.PROG, "no search was finished; the warnings say why", 1, None)
        return compare_words(cfg, base, found)


def _may_overwrite(cfg, path):
    """Whether a folder is there that was asked to be replaced, or in which nothing was finished."""
    return (cfg.overwrite or cfg.resume) and os.path.exists(path)


def _goes_on(path, found):
    """Whether a comparison of the searches in the folders `found` has begun, with the cells that
    these have found now: a search may have been replaced since, or selected anew."""
    if not os.path.exists(os.path.join(path, files.METRICS)):
        return False
    cells = comparison.genotypes(path)
    begun = [search for search in found if search in cells]
    return bool(begun) and all(cells[search] == gt.to_str(gt.load(search)) for search in begun)


def _warn_of_missing(path, found):
    """Name the searches that a comparison was begun without, since they had failed by then."""
    known = comparison.genotypes(path)
    missing = [name for name in found if name not in known]
    if missing:
        print(
            f"WARNING: {path} was begun without {', '.join(missing)}; remove it and say the same "
            f"again to compare all"
        )


def compare_words(cfg, base, found):
    """The command line of compare.py for the searches in the folders `found`, beside random cells:
    goes on with the comparison `base` of these cells, begins it anew, or takes a free name where
    another has that."""
    path = os.path.join(files.COMPARISONS, base)
    if cfg.resume and _goes_on(path, found):
        _warn_of_missing(path, found)
        return ["--name", base, "--resume", *cfg.words([flag for flag in FREE if flag in cfg.said])]
    words = [*found, "--random", str(cfg.compare or max(LEAST_RANDOM, len(found)))]
    words += cfg.words([flag for flag in ALSO if getattr(cfg, flag) != cfg.default(flag)])
    if not os.path.exists(path):
        return [*words, "--name", base]
    known = comparison.genotypes(path)
    is_its = cfg.overwrite or not known.keys().isdisjoint(found)
    if not is_its and not known and reader.is_comparison(path):
        print(
            f"WARNING: {path} is damaged, {files.SUMMARY} does not say whose comparison it was; "
            f"this one takes another name"
        )
    return [*words, "--name", base, "--overwrite"] if is_its else words


# --- one search ---------------------------------------------------------------------------------


def require_comparable(cfg):
    """Raise ValueError where a search with --name would find the folder of its comparison taken at
    its end."""
    if not (search_log.is_compared(cfg) and cfg.name):
        return
    search, path = (os.path.join(root, cfg.name) for root in (files.SEARCHES, files.COMPARISONS))
    if not os.path.exists(path) or (os.path.exists(search) and not (cfg.overwrite or cfg.resume)):
        return  # free; or the search itself will be refused
    is_its = search in comparison.genotypes(path)
    if is_its:
        run_folder.require_ended(files.COMPARISONS, cfg.name)
    if not (cfg.resume or (cfg.overwrite and is_its)):
        raise ValueError(
            f"{path} exists, where --compare records what it finds; choose another --name, remove "
            f"it, or take --compare 0"
        )
