"""One page about a run, and all its pictures once more.

    python report.py searchs/NAME        also augments/NAME and compares/NAME

Makes every picture of the run folder anew from its records, and report.html: one file that needs
neither a network nor a script, on a laptop or a phone. search.py and augment.py write the page
after every epoch.
"""

from console import interrupts

if __name__ == "__main__":
    interrupts.end_in_one_line()  # from here on, also while torch is imported

import base64
import functools
import os
import re
import time
import urllib.parse
from contextlib import suppress

import jinja2
from markupsafe import Markup, escape
from PIL import Image

import genotypes as gt
import gif_maker
import plot_alphas
import plot_compare
import plot_confusion
import plot_train_val
import visualize
from console import errors
from console.parser import Parser, to_folder_name
from console.terminal import command, complain
from records import alphas, comparison, files, palette, reader, verdict
from records.files import CELLS, KINDS_OF_CELL, drawing

TYPES = {".png": "image/png", ".gif": "image/gif", ".svg": "image/svg+xml"}


def data_uri(path):
    """A picture file as text that a page can hold; None if there is no such file."""
    if not os.path.isfile(path):  # a FIFO or a device may have no end
        return None
    try:
        with open(path, "rb") as stream:
            content = base64.b64encode(stream.read()).decode("ascii")
    except OSError:
        return None
    return f"data:{TYPES[os.path.splitext(path)[1]]};base64,{content}"


def phone_width(path):
    """Pixels that a drawing needs to be read on a phone; wider than the phone, it is moved with the
    finger. 0 if there is no such picture."""
    if not os.path.isfile(path):
        return 0
    try:
        with Image.open(path) as image:
            return round(0.42 * image.width)
    except Exception:  # a damaged one makes Pillow raise many things
        return 0


def duration(seconds):
    """Seconds in words: 43 s, 12 min 5 s, 3 h 20 min."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def collect(run_path):
    """Everything the page shows, read from the files of a run folder, as a dict for the template.

    Raises ValueError if no epoch is recorded.
    """
    metrics = reader.read_metrics(run_path)
    config, summary = reader.read_config(run_path), reader.read_summary(run_path)
    flags, network = config["flags"], summary.get("network")
    metadata = reader.keep_fitting(gt.metadata(run_path), {"epoch": reader.is_count})
    is_search = "alpha_lr" in flags
    best = plot_train_val.best_epoch(metrics)
    last = max(metrics["val"] or metrics["train"])
    seconds = reader.epoch_seconds(run_path)
    picture_seconds = summary.get("picture_seconds", 0.0)
    try:
        genotype = gt.load(run_path)
    except (ValueError, OSError):
        genotype = None
    size = metadata.get("size")
    selected = reader.is_selected(run_path)
    pending = flags.get("select") == "perturbation" and not selected
    now = state(run_path, summary)
    # a run that goes on has those of its first end
    at_the_end = summary if now["is"] == "finished" else {}
    return {
        "name": os.path.basename(os.path.abspath(run_path)),
        "kind": "search" if is_search else "training",
        "cell": cell_trained(flags, metadata),
        "dataset": metadata.get("dataset") or flags.get("dataset", "unknown data"),
        "size": size if reader.fits(size, [reader.is_count]) else None,
        "val_name": "alpha half" if is_search else summary.get("val_name", "test"),
        "epoch": last,
        "epochs": flags.get("epochs", last),
        "progress": f"epoch {last} of {flags.get('epochs', last)}",
        "best": best and {"epoch": best[0], "top1": best[1]},
        "last": {phase: found.get(last, {}) for phase, found in metrics.items()},
        "rows": rows(metrics),
        "written": time.strftime("%Y-%m-%d %H:%M"),
        "started": config.get("start_time"),
        "device": config.get("device"),
        "versions": config["versions"],
        "flags": {key: flag_text(value) for key, value in flags.items()},
        "seconds": duration(seconds),
        "throughput": throughput(metrics),
        "picture_seconds": duration(picture_seconds),
        "picture_share": picture_seconds / seconds if seconds else 0.0,
        "network": network,
        "next": summary.get("next"),
        "compared": compared(run_path, genotype) if is_search else None,
        "more": summary.get("more", []),
        "training": summary.get("training"),
        "state": now,
        "warnings": summary.get("warnings", []),
        "verdict": at_the_end.get("verdict"),
        **mistakes(run_path),
        "gradient": summary.get("gradient"),
        "strategies": summary.get("strategies", []),
        "stopped": summary.get("stopped"),
        "how_sure": at_the_end.get("how_sure"),
        "selection": selected and summary.get("selection"),
        "removals": [r for r in summary.get("removals", []) if reader.is_removal(r)],
        "selected": selected,
        "pending": pending,
        "genotype": genotype and gt.to_str(genotype),
        "words": genotype and gt.describe(genotype, network and network["layers"]),
        "cells": cells(run_path, genotype, metadata.get("epoch") if is_search else None)
        if genotype
        else [],
        "edges": edges(run_path, metadata.get("epoch")),
        "curves": data_uri(os.path.join(run_path, files.CURVES)),
        "alphas": data_uri(os.path.join(run_path, files.ALPHA_FIGURE)),
    }


def state(run_path, summary):
    """`reader.state`; of a run whose records tell of its end alone, that it has finished."""
    return reader.state(run_path) or {"is": "finished" if "verdict" in summary else "", "text": "",
                                      "command": ""}  # fmt: skip


def mistakes(run_path):
    """The confusion matrix of a training for the template: its picture, every class with its
    accuracy, the weakest first, and the images that were most surely wrong."""
    found = reader.read_confusion(run_path)
    if found is None:
        return {"confusion": None, "classes": [], "wrong": []}
    rows = zip(found["classes"], *verdict.per_class(found["matrix"]), strict=True)
    classes = [(name, hits, n, hits / n) for name, hits, n in rows if n]
    wrong = [{**item, "picture": data_uri(os.path.join(run_path, files.PLOTS,
              os.path.basename(item["picture"])))} for item in found["wrong"]]  # fmt: skip
    return {
        "confusion": data_uri(os.path.join(run_path, files.CONFUSION_FIGURE)),
        "classes": sorted(classes, key=lambda row: row[3]),
        "wrong": wrong,
    }


def flag_text(value):
    """The value of a flag as the page shows it."""
    return ", ".join(map(str, value)) if isinstance(value, list) else value


def rows(metrics):
    """The epochs as rows of a table: (epoch, training record, validation record or {})."""
    return [(e, r, metrics["val"].get(e, {})) for e, r in metrics["train"].items()]


def throughput(metrics):
    """Training images per second, the mean over all epochs; None where it is not recorded."""
    speeds = [r["images_per_second"] for r in metrics["train"].values() if "images_per_second" in r]
    return sum(speeds) / len(speeds) if speeds else None


def cells(run_path, genotype, epoch):
    """Both cells, of a search as drawn at `epoch`: title, drawing and animation (data: URIs or
    None) with the widths they need on a phone, op counts with colors."""
    found = []
    for cell, name in CELLS.items():
        names = [drawing(cell)]  # of a training, or of a cell that alpha has not chosen
        if reader.is_count(epoch) and not reader.is_selected(run_path):
            names.insert(0, drawing(cell, epoch))  # of a search
        paths = [os.path.join(run_path, files.PLOTS, f"{name}.png") for name in names]
        picture = next(filter(os.path.isfile, paths), paths[-1])
        gif = os.path.join(run_path, f"{cell}.gif")
        counts = gt.count_ops(getattr(genotype, cell))
        found.append({
            "title": name.capitalize(),
            "drawing": data_uri(picture), "drawing_width": phone_width(picture),
            "gif": data_uri(gif), "gif_width": phone_width(gif),
            "counts": [(op, n, palette.color(op)) for op, n in counts.items()],
        })  # fmt: skip
    return found


def edges(run_path, epoch):
    """What each edge has decided at `epoch`, for both cells; [] where no alphas are recorded."""
    try:
        history = reader.read_alphas(run_path)
    except ValueError:
        return []
    if epoch not in {record["epoch"] for record in history}:
        return []
    decided = alphas.decided(history, epoch)
    return [
        {**edge, "cell": KINDS_OF_CELL[cell], "from": gt.input_name(edge["input"]),
         "color": palette.color(edge["op"]),
         "decided": decided.get((cell, edge["node"], edge["input"]), False)}
        for record in history if record["epoch"] == epoch
        for cell in CELLS for edge in alphas.edges(record, cell)
    ]  # fmt: skip


@functools.cache
def template(name="report.html.j2"):
    """A page's template, compiled once."""
    here = os.path.dirname(os.path.abspath(__file__))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(os.path.join(here, "records")), autoescape=True,
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["unbroken"] = unbroken
    environment.filters["breakable"] = breakable
    return environment.get_template(name)


def unbroken(text):
    """A text for the page, in which no line ends inside of a flag: browsers break behind dashes."""
    return Markup(re.sub(r"--\w+", r'<span class="flag">\g<0></span>', str(escape(text))))


def breakable(path):
    """A path for the page, in which a line may end behind each folder."""
    return Markup(re.sub(r"[/\\]", r"\g<0><wbr>", str(escape(path))))


def write(run_path):
    """Write report.html into a run folder, in one piece; returns its path."""
    path = os.path.join(run_path, files.REPORT)
    files.write_text(path, template().render(collect(run_path)) + "\n")
    return path


def draw_epochs(run_path, only_missing=False):
    """Draw the recorded epochs of a search into its plots/ again, from alphas.jsonl."""
    scores = reader.scores(run_path)
    dataset = gt.metadata(run_path).get("dataset", "unknown data")
    plot_path = os.path.join(run_path, files.PLOTS)
    have = [visualize.drawn_epochs(plot_path, cell) for cell in CELLS]
    for record in reader.read_alphas(run_path):
        epoch = record["epoch"]
        if not (only_missing and all(epoch in found for found in have)):
            visualize.plot_epoch(record, plot_path, dataset, scores.get(epoch))
    if reader.is_selected(run_path):
        draw_cell(run_path)


def draw_figures(run_path):
    """Draw the curves of a run, and of a search the figure of alpha, anew."""
    plot_train_val.plot_run(run_path)
    if os.path.exists(os.path.join(run_path, files.ALPHAS)):
        plot_alphas.plot_run(run_path)


def draw_search(run_path):
    """Draw all epochs of a search, and both animations, anew."""
    draw_epochs(run_path)
    gif_maker.make_gifs(run_path)


def draw_cell(run_path):
    """Draw the cell of a training, or one that alpha has not chosen, into its plots/ anew."""
    paths = [os.path.join(run_path, files.PLOTS, drawing(cell)) for cell in CELLS]
    caption = gt.metadata(run_path).get("dataset")
    if reader.is_selected(run_path):
        caption = f"{caption}, chosen by removal"
    visualize.plot(gt.load(run_path), *paths, caption)


def cell_trained(flags, metadata):
    """Whose training it is, in words."""
    source = str(flags.get("genotype"))
    if words := comparison.who(metadata):
        return f"{words},"
    if source in gt.PUBLISHED:
        return source
    if gt.is_random(source):
        return "a random cell"
    return "a given cell" if source.startswith("Genotype") else "a found cell"


# --- comparisons --------------------------------------------------------------------------------


def compared(run_path, genotype):
    """What the newest comparison of this search's cell says, {"words", "page", "next", "finished",
    "is_weak"}, or that it has not finished. None where there is none of the cell that the search
    has now."""
    path, name = os.path.split(os.path.abspath(run_path))
    root = os.path.join(os.path.dirname(path), files.COMPARISONS)
    cell, text = os.path.join(files.SEARCHES, name), genotype and gt.to_str(genotype)
    taken = comparison.with_candidate(root, cell)
    of_it = [folder for folder, found in taken.items() if text and found == text]
    if not of_it:
        return None
    folder = max(of_it, key=lambda path: reader.read_config(path).get("start_time") or "")
    name = os.path.basename(folder)
    there = os.path.isfile(os.path.join(folder, files.REPORT))
    address = f"../../{files.COMPARISONS}/{urllib.parse.quote(name)}/{files.REPORT}"
    page = address if there else ""
    summary = reader.read_summary(folder)
    if not (summary.get("finished") and summary.get("next")):
        text = (
            "The comparison has not finished. It will say which cell to train. If it has broken "
            "off, this goes on with it:"
        )
        command = errors.command("compare.py", "--name", name, "--resume")
        return {
            "words": text, "page": page, "next": command, "finished": False, "is_weak": False,
        }  # fmt: skip
    try:
        rows = comparison.read(folder)
    except (ValueError, OSError):  # damaged
        return None
    if comparison.winner(rows) is None:
        return None
    words = [comparison.place_words(rows, cell), comparison.conclusions(rows)[0]]
    if not comparison.is_weak(rows):
        words.append(comparison.chance_words(rows))
    return {
        "words": " ".join(words), "page": page, "next": summary["next"], "finished": True,
        "is_weak": comparison.is_weak(rows),
    }  # fmt: skip


def drawings_of(run_path, row, number):
    """Paths, without their ending, of the drawings of a candidate: normal and reduction cell."""
    name = f"{number:02d}-{to_folder_name(row.name)[:60]}"
    return [os.path.join(run_path, files.PLOTS, f"{name}-{cell}") for cell in CELLS]


def cells_compared(run_path):
    """[(row, paths of its drawings)] of the cells of a comparison, best first. A name of a drawing
    has the candidate's number on the command line, which stays."""
    rows = comparison.read(run_path)
    numbers = {name: i for i, name in enumerate(comparison.genotypes(run_path), start=1)}
    return [(r, drawings_of(run_path, r, numbers[r.name])) for r in rows if r.genotype and r.last]


def draw_comparison(run_path):
    """The chart, the cells that are not drawn yet, and the page of a comparison; returns its path.
    What cannot be drawn is missing on the page."""
    plot_compare.plot_run(run_path)
    for row, paths in cells_compared(run_path):
        if not all(os.path.isfile(f"{path}.png") for path in paths):
            with suppress(OSError):  # no program to draw with
                visualize.plot(gt.from_str(row.genotype), *paths, row.name)
    return write_comparison(run_path)


def write_comparison(run_path):
    """Write report.html of a comparison, in one piece; returns its path."""
    rows = comparison.read(run_path)
    config, summary = reader.read_config(run_path), reader.read_summary(run_path)
    metadata, best = gt.metadata(run_path), comparison.winner(rows)
    name = os.path.basename(os.path.abspath(run_path))
    finished, size = summary.get("finished", False), metadata.get("size")
    page = template("compare.html.j2").render(
        name=name,
        state=reader.state(run_path) or {"is": "", "text": "", "command": ""},
        progress=comparison.plural(len(comparison.trainings(run_path)), "training"),
        dataset=metadata.get("dataset") or config["flags"].get("dataset", "unknown data"),
        size=size if reader.fits(size, [reader.is_count]) else None,
        device=config.get("device"),
        started=config.get("start_time"),
        written=time.strftime("%Y-%m-%d %H:%M"),
        flags={key: flag_text(value) for key, value in config["flags"].items()},
        versions=config["versions"],
        rows=rows,
        n_waiting=sum(not row.rungs and not row.fault for row in rows),
        decided=bool(best) and summary.get("rungs") != 0,
        warnings=summary.get("warnings", []),
        searched=any(row.kind == comparison.FOUND for row in rows),
        best=best,
        order=comparison.order_words(rows) if best else "",
        by_losses=comparison.ranked_by_losses(rows),
        chance=comparison.chance(rows),
        words=comparison.conclusions(rows, finished) if best else [],
        is_weak=comparison.is_weak(rows),
        next=summary.get("next") if finished else None,
        training=summary.get("training"),
        finished=finished,
        kinds=comparison.KINDS,
        colors=palette.CANDIDATES,
        chart=data_uri(os.path.join(run_path, files.COMPARISON)),
        cells=[
            {
                "name": row.name, "kind": row.kind, "genotype": row.genotype,
                "drawings": [
                    (data_uri(f"{path}.png"), phone_width(f"{path}.png"), title)
                    for path, title in zip(paths, CELLS.values(), strict=True)
                ],
            }
            for row, paths in cells_compared(run_path)
        ],
    )  # fmt: skip
    path = os.path.join(run_path, files.REPORT)
    files.write_text(path, page + "\n")
    return path


def draw_all(run_path):
    """Make every picture of a run anew. One that cannot be made costs a line on standard error."""
    reader.read_metrics(run_path)  # before anything is drawn
    if os.path.exists(os.path.join(run_path, files.ALPHAS)):
        makers = (plot_train_val.plot_run, plot_alphas.plot_run, draw_search)
    else:
        makers = [plot_train_val.plot_run, draw_cell]
        if os.path.exists(os.path.join(run_path, files.CONFUSION)):
            makers.append(plot_confusion.plot_run)
    for maker in makers:
        try:
            maker(run_path)
        except (ValueError, OSError) as error:
            complain(f"report.py: {errors.one_line(error)}")


@command
def main(argv=None):
    parser = Parser("report.py", description=__doc__.split("\n\n")[0])
    parser.add_argument("run", metavar="RUN", help="searchs/NAME, augments/NAME or compares/NAME")
    args = parser.parse_args(argv)
    with errors.usage_errors("report.py"):
        reader.require_folder(args.run, files.SEARCHES, files.TRAININGS, files.COMPARISONS)
        if reader.is_comparison(args.run):
            print(draw_comparison(args.run))
            return
        draw_all(args.run)
        print(write(args.run))


if __name__ == "__main__":
    main()
