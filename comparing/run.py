"""A comparison on disk and in the terminal: its folder, log and progress.

    config.json      flags, versions, device, start time
    NAME.log         what the terminal said, without the bar
    summary.json     who takes part, with their sizes; which images were read; how it stands; the
                     next command and how long that will take
    metrics.jsonl    one JSON object per training: its scores, or why it failed
    genotype.json    the best cell of the rungs that are over
    comparison.png   the chart;  plots/  the drawings of the cells;  report.html  the page

What is finished stands in metrics.jsonl, so --resume goes on behind the last whole line.
"""

import contextlib
import json
import os
import sys
import time

from torch import nn
from tqdm import tqdm

import genotypes as gt
import report
import utils
from comparing import baselines
from comparing.candidates import Candidate
from comparing.training import Recipe
from config import AugmentConfig
from console import errors, interrupts
from console.log import Log
from data_sets import loaders, splits
from data_sets.options import DataOptions
from devices import pick
from models import augment_cnn
from records import comparison, files, reader
from tracking import estimate
from tracking.picture_schedule import attempt
from tracking.run import load_and_listen

RESUMES_FROM = (files.METRICS,)
SHOW_PORTION = 0.03  # of the time: as much may pictures take in the middle of a rung


def to_resume(cfg, folder):
    """Who takes part in the comparison that --resume goes on with, whose flags `cfg` then has, as
    records of summary.json; None without --resume. Raises ValueError where there is none."""
    if not cfg.resume:
        return None
    if not os.path.isdir(folder.path):
        raise ValueError(
            f"no comparison to go on with: {folder.path} does not exist{folder.advise_earlier()}"
        )
    folder.resume()
    if not folder.has_checkpoint():
        raise ValueError(
            f"nothing to resume in {folder.path}: no training was finished; start it again with "
            f"--overwrite{folder.advise_earlier()}"
        )
    flags = reader.read_config(folder.path)["flags"]
    summary = reader.read_object(folder.file(files.SUMMARY))
    if summary.get("checksum") != _checksum(cfg, flags, summary):
        config, of_cells = folder.file(files.CONFIG), folder.file(files.SUMMARY)
        if not flags or "candidates" not in summary:
            what = f"{of_cells if flags else config} is damaged or gone"
        else:
            what = f"{config} or {of_cells} was changed, they do not fit together"
        raise ValueError(
            f"{what}, so nobody knows what the comparison was; start it again with --overwrite"
            f"{folder.advise_earlier()}"
        )
    cfg.resume_from(flags)
    return summary["candidates"]


def _checksum(cfg, flags, summary):
    """Of all that makes a comparison what it is, from its two files."""
    what = [summary.get(key) for key in ("candidates", "images")]
    return comparison.checksum([cfg.marked(flags, keep="fixed"), *what])


def try_again(records):
    """Forget the faults that may be none of the cell: its process was killed, memory ran out.
    Returns [(candidate, fault)]."""
    again = [key for key, record in records.items() if record.get("again")]
    forgotten = [records.pop(key) for key in again]
    return [(record["candidate"], record["fault"]) for record in forgotten]


class Comparison:
    """One call of compare.py. A context manager: nothing is written before it is entered.

    records  {(rung, candidate, seed): line of metrics.jsonl} of all that is finished
    """

    def __init__(self, cfg, folder, known=None):
        """
        cfg     a config.CompareConfig; gets a name here if it has none
        folder  the RunFolder, taken here unless the comparison goes on
        known   the candidates of a comparison that goes on (`to_resume`)
        """
        self.cfg, self.files, self.known = cfg, folder, known
        self.log = Log(cfg.quiet)
        self.signals, self.advice = folder.signals, None
        self.cards = pick.spread_cards(cfg.device, cfg.gpus)
        self.device = "cuda" if self.cards else pick.pick_device(cfg.device).type
        self.candidates = known or []  # records: name, kind, genotype, params, madds, fault
        self.records = comparison.trainings(folder.path) if known else {}
        lost = comparison.n_lines(folder.path) - len(self.records) if known else 0
        if lost:
            folder.findings.append(
                f"{folder.file(files.METRICS)}: {comparison.plural(lost, 'line')} cut or damaged; "
                f"what is missing is trained again"
            )
        reopened = [rung - 1 for (rung, *_), r in self.records.items() if r.get("again")]
        self.rungs = 0  # that are over; pages compare these
        if known and not lost:
            self.rungs = min([reader.read_summary(folder.path).get("rungs", 0), *reopened])
        self.tried_again = try_again(self.records)
        self.findings, self.spec, self.options = [], None, None
        self.n_scored = self.images = self.guessing = None
        self.bar = tqdm(disable=True)
        self._next_show = 0.0  # not before this time of perf_counter
        if known is None:
            folder.take(loaders.default_run_name(cfg.dataset, cfg.data_path), cfg.overwrite)
            cfg.name = folder.name

    # --- setting it up --------------------------------------------------------------------------

    def load_data(self):
        """Open the training set in its two parts, once, so that it is downloaded and known when the
        processes open it. Raises ValueError where a comparison goes on with other images."""
        self.cfg.require_images()
        cfg, roots = self.cfg, (files.COMPARISONS, files.SEARCHES, files.TRAININGS)
        options = DataOptions.from_config(
            cfg,
            cache_files=tuple(os.path.join(root, ".images.json") for root in roots),
            may_shrink_batch="batch_size" not in cfg.said,
            pin_memory=self.device == "cuda",
        )
        if cfg.workers is None and self.device == "cpu":  # the cores are taken
            options = options._replace(workers=0)
        data, self.findings = load_and_listen(loaders.search_data, options)
        batch_size = data.batch_size
        if self.swaps and len(data.val.dataset) < batch_size:  # it is trained on, too
            swapped = options._replace(swapped=True)
            other, self.findings = load_and_listen(loaders.search_data, swapped)
            batch_size = min(batch_size, other.batch_size)
        self.images = {**data.images, "val_portion": cfg.val_portion}
        before = reader.read_object(self.files.file(files.SUMMARY)).get("images")
        if self.known is not None and before != self.images:
            raise ValueError(
                f"these are not the images that the comparison began with; put them back, or start "
                f"a new one{_differences(before, data.images)}"
            )
        self.spec, self.n_scored = data.spec, len(data.val.dataset)
        self.options = options._replace(
            known_spec=data.spec, batch_size=batch_size, cache_gb=options.cache_gb / self.jobs
        )
        self.n_trained = len(data.train.dataset)
        self.guessing = max(data.class_counts) / sum(data.class_counts)

    @property
    def swaps(self):
        """Whether every second training learns from what the others are scored on: not where one
        part is larger than the other."""
        return self.cfg.seeds > 1 and self.cfg.val_portion == 0.5

    @property
    def jobs(self):
        """How many trainings go on at once."""
        usual = {"cuda": len(self.cards), "cpu": pick.cores()}.get(self.device, 1)
        return self.cfg.jobs or usual

    def measure_sizes(self, candidates):
        """Who takes part, with the size of each network; one that cannot be built gets a fault."""
        recipe = Recipe.from_config(self.cfg)
        for c in candidates:
            record = {"name": c.name, "kind": c.kind, "genotype": c.text, "fault": c.fault}
            record |= {"params": None, "madds": None}
            try:
                if not c.fault:
                    net = self._build(c, recipe)
                    record["params"] = utils.count_params(net, auxiliary=False)
                    record["madds"] = utils.multiply_adds(net, self.spec.C_in, self.spec.size)
            except Exception as error:  # a block of one's own may raise anything
                record["fault"] = f"cannot be built: {errors.one_line(error, 200)}"
            self.candidates.append(record)

    def _build(self, candidate: Candidate, recipe):
        if candidate.genotype is None:
            return baselines.build(candidate.name, self.spec)
        return augment_cnn.build(self.spec, recipe, candidate.genotype)

    def __enter__(self):
        cfg, folder = self.cfg, self.files
        try:
            self.signals.__enter__()  # again, if the folder was set up under them
            self.signals.wait()
            if self.known is not None:
                files.remove_temporary(folder.path, files.OWN)
                self._rewrite_records()
            folder.write_config(cfg.flags(), self.device)
            self.write_summary(finished=False, training=None, state=self._state("running"))
            self.log.open(folder.file(f"{folder.name}.log"))
            self.tell_searches()
        except BaseException:
            self._close(folder.give_back)
            raise
        return self

    def _rewrite_records(self):
        lines = "".join(json.dumps(record) + "\n" for record in self.records.values())
        files.write_text(self.files.file(files.METRICS), lines)

    def write_summary(self, **more):
        what = {"candidates": self.candidates, "images": self.images}
        checksum = _checksum(self.cfg, self.cfg.flags(), what)
        more |= {"next": self.next_command(), "rank_by": self.cfg.rank_by, "rungs": self.rungs}
        more |= {"guessing": self.guessing}
        self.files.update_summary(**what, checksum=checksum, **more)

    def __exit__(self, kind, error, traceback):
        try:
            if error is not None:
                found = errors.ending(error, self)
                text = found[0] if found else f"stopped by {kind.__name__}: {error}"
                with contextlib.suppress(OSError):  # the disk is full, perhaps
                    self.log.detail(text)  # the terminal gets it from errors
                    self.files.update_summary(state=self._state("broken off", text))
                    if self.records:
                        self.show()
        finally:
            self._close(self.files.release)

    def _close(self, leave):
        """Close all that is open, then `leave` the folder; each, whatever becomes of the others."""
        with contextlib.ExitStack() as stack:
            for close in (self.signals.__exit__, leave, self.log.close, self.bar.close):
                stack.callback(close)

    def _state(self, state, text=""):
        """For the page: "running", "finished" or "broken off", why, and the command that goes on
        with it."""
        return {"is": state, "text": text, "command": self._go_on()}

    def _go_on(self):
        """The command that goes on with this comparison."""
        return errors.command(self.cfg.PROG, "--name", self.files.name, "--resume")

    # --- while it goes on -----------------------------------------------------------------------

    def stop_if_asked(self):
        """Raise interrupts.Stopped, if a signal has asked for it: what is finished is saved."""
        if self.signals.number is not None:
            where = f"after {self._done()}" if self.records else "at once"
            raise interrupts.Stopped(self.signals.number, where, saved=True)

    def farewell(self, error):
        """The last line of a comparison that this KeyboardInterrupt ended: what to do next."""
        return f"{str(error) or 'interrupted'}{self.way_on(getattr(error, 'saved', False))}"

    def way_on(self, known=False):
        """What to do after it has ended early, behind a verb."""
        if not self.records or not self.files.has_checkpoint():
            keep = ", with --overwrite to keep the name" if os.path.exists(self.files.path) else ""
            if self.files.earlier is not None:
                keep += f"; the earlier comparison of this name is in {self.files.earlier}"
            when = (
                ", and nothing of it is left" if self.records else " before a training was finished"
            )
            return f"{when}; start again{keep}"
        there = "" if known else f" after {self._done()}"
        return f"; go on{there} with {self._go_on()}"

    def _done(self):
        return comparison.plural(len(self.records), "training")

    def keep_records(self, rung, names):
        """Drop the records of a rung that are not of `names`: in a candidate's place stands another
        that was tried again."""
        others = [key for key in self.records if key[0] == rung and key[1] not in names]
        for key in others:
            del self.records[key]
        if others:
            self._rewrite_records()

    def record(self, job, scores=None, fault=None, again=False):
        """A training is over, with its scores or a fault, which --resume tries `again`: keep it,
        and say so."""
        line = {"rung": job.rung, "candidate": job.name, "seed": job.seed, "epochs": job.epochs}
        if fault is None:
            last = scores[-1]
            seconds = sum(score["seconds"] for score in scores)
            line |= {name: last[name] for name in ("top1", "loss", "train_loss")}
            line |= {"seconds": seconds, "scores": scores}
            self.log.info(
                f"rung {job.rung}  {job.name}  seed {job.seed}  {last['top1']:.2%}  loss "
                f"{last['loss']:.4f}, of training {last['train_loss']:.4f}  {seconds:.0f} s"
            )
        else:
            line |= {"fault": fault, "again": again}
            later = "; --resume tries it again" if again else ""
            self.log.warn(f"{job.name} is left out: {fault}{later}")
        line = comparison.sealed(line)
        self.files.append(files.METRICS, line)
        self.records[job.rung, job.name, job.seed] = line
        self.files.drop_earlier()

    def end_rung(self, rung, is_last):
        """Record that a rung is over, and its best cell."""
        self.write_genotype()
        self.rungs = max(self.rungs, rung)
        state = self._state("finished" if is_last else "running")
        self.files.update_summary(rungs=self.rungs, finished=is_last, state=state)

    def tell_searches(self):
        """Say on the pages of the searches that take part how their comparison stands."""
        for c in self.candidates:
            recorded = os.path.isfile(os.path.join(c["name"], files.METRICS))
            if recorded and os.path.dirname(c["name"]) == files.SEARCHES:
                attempt(self.log, "report", lambda path=c["name"]: report.write(path))

    def rows(self):
        records = self.records.values()
        return comparison.ranking(self.candidates, records, self.cfg.rank_by, self.guessing)

    def failed(self, rung):
        """The names of those that were left out in a rung, or before."""
        return {r["candidate"] for r in self.records.values() if "fault" in r and r["rung"] <= rung}

    def open_bar(self, total, what, done=0):
        """A bar over `total` epochs, or trials; in a file there are the lines alone."""
        self.bar.close()
        self.bar = tqdm(
            total=total, initial=done, desc=what, dynamic_ncols=True, file=sys.stderr, leave=False,
            disable=True if self.cfg.quiet else None,
            bar_format="{desc} {percentage:3.0f}%|{bar:16}| {n}/{total} {elapsed}, "
                       "{remaining} left",
        )  # fmt: skip

    def draw(self):
        """The chart, the drawings and the page."""
        attempt(self.log, "report", lambda: report.draw_comparison(self.files.path))

    def show(self):
        """The pictures of what there is so far, and a word on the searches' pages."""
        start = time.perf_counter()
        self.files.update_summary(warnings=self.files.all_warnings(self.log.warnings))
        self.draw()
        self.tell_searches()
        now = time.perf_counter()
        self._next_show = now + (now - start) / SHOW_PORTION

    def show_if_due(self):
        """`show` in the middle of a rung, unless that takes too much of the time."""
        due = time.perf_counter() >= self._next_show
        if due and any(row.rungs for row in self.rows()):
            self.show()

    def write_genotype(self):
        """genotype.json of the best cell, with what a training inherits."""
        best, cfg = comparison.winner(self.rows()), self.cfg
        if best is None:
            return
        flags = cfg.flags()
        inherited = {m: cfg.marked(flags, inherit=m) for m in ("images", "network")}
        text = gt.to_json(
            gt.from_str(best.genotype),
            name=best.name,
            kind=best.kind,
            score=best.last.mean,
            dataset=self.spec.name,
            size=list(self.spec.size),
            primitives=cfg.primitives,
            n_nodes=cfg.n_nodes,
            k=cfg.k,
            flags={**inherited["images"], **inherited["network"]},
        )
        files.write_text(self.files.file(files.GENOTYPE), text + "\n")

    def estimate(self):
        """How long the winner's training will take, for terminal and page. By the next command, in
        this process: those of the trainings must have ended, for their memory."""

        def measured():
            final = AugmentConfig(self._next_words())
            final.inherit(gt.metadata(self.files.path)["flags"])
            # the training takes all images
            n_images = round((self.n_trained + self.n_scored) / self.cfg.subset)
            net = augment_cnn.build(self.spec, final, gt.load(self.files.path))
            about = "about " if self.cfg.subset < 1 else ""
            device, criterion = pick.prepare_device(final), nn.CrossEntropyLoss()
            return estimate.of_training(net, self.spec, final, n_images, criterion, device, about)

        if estimate.say_of_training(self, measured):
            self.draw()

    def _next_words(self):
        words = ["--genotype", self.files.path]
        for name in ("device", "workers"):
            if name in self.cfg.said:
                words += [f"--{name}", str(getattr(self.cfg, name))]
        if "gpus" in self.cfg.said and self.cards:  # a training of its own takes one
            words += ["--gpus", str(self.cards[0])]
        return words + (["--quick"] if self.cfg.quick else [])

    def next_command(self):
        """The complete command that trains the winner."""
        return errors.command("augment.py", *self._next_words())


def _differences(before, images):
    """What differs, in brackets."""
    known = {part: value for part, value in (before or {}).items() if part != "val_portion"}
    try:
        found = splits.differences(known, images)
    except (KeyError, TypeError, AttributeError):  # a damaged summary
        found = []
    return f" ({'; '.join(found)})" if found else ""
