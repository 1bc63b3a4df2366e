"""List all runs of this folder, show them on one page, remove some.

python runs.py                            state, accuracy, size, date, disk of every run
python runs.py --html                     and runs.html, a page with a picture of each
python runs.py --remove searchs/NAME      asks first; --yes does not
"""

from console import interrupts

if __name__ == "__main__":
    interrupts.end_in_one_line()  # from here on, also while torch is imported

import os
import shutil
import time
import urllib.parse

import jinja2

import genotypes as gt
from console import errors
from console.parser import Parser
from console.terminal import byte_size, command, plural, visible
from records import comparison, files, index, reader

PAGE = "runs.html"
COLUMNS = ("run", "data", "state", "epochs", "accuracy", "of the", "parameters", "started", "disk")
RIGHT = ("accuracy", "parameters", "disk")


def table(rows):
    """The runs as a table, one line each below a header."""
    lines = [COLUMNS]
    for row in rows:
        accuracy = "" if row.top1 is None else f"{row.top1:.2%}"
        params = "" if row.params is None else f"{row.params / 1e6:.3f} M"
        cells = (row.path, row.subject, row.state, row.epochs, accuracy, row.part, params)
        lines.append((*map(visible, cells), row.started[:16], byte_size(row.bytes)))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    aligned = [
        [
            f"{text:>{width}}" if name in RIGHT else f"{text:<{width}}"
            for name, text, width in zip(COLUMNS, line, widths, strict=True)
        ]
        for line in lines
    ]
    return "\n".join("  ".join(line).rstrip() for line in aligned)


def write_page(rows):
    """Write runs.html into the current folder: one card for each run, which links to its page."""
    here = os.path.join(errors.ROOT, "records")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(here), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    cards = [(row, *_links(row.path), byte_size(row.bytes)) for row in rows]
    page = environment.get_template("runs.html.j2").render(
        rows=cards, written=time.strftime("%Y-%m-%d %H:%M")
    )
    files.write_text(PAGE, page + "\n")
    return PAGE


def _links(path):
    """(its page or folder, [its pictures]) as addresses relative to the current folder."""

    def address(*names):
        there = os.path.join(path, *names)
        return urllib.parse.quote(there.replace(os.sep, "/")) if os.path.exists(there) else None

    pictures = (address(files.CURVES), address(files.COMPARISON))
    return address(files.REPORT) or address(), [found for found in pictures if found]


def remove(path, yes):
    """Remove a run folder, if the user says so; returns whether it was. Raises ValueError for what
    is no run folder of the current folder, or one of a run that is going on."""
    path = os.path.normpath(path)
    if os.path.dirname(path) not in index.KINDS or not os.path.isdir(path):
        hint = gt.run_of_that_name(path, *index.KINDS) or "; name one as the list does"
        raise ValueError(f"{visible(path)} is no run{hint}")
    if not os.path.isfile(os.path.join(path, files.CONFIG)) or os.path.islink(path):
        raise ValueError(f"{visible(path)} is no run folder (no {files.CONFIG}); not removed")
    if reader.is_held(path):
        raise ValueError(f"{visible(path)} belongs to a run that is going on; stop it first")
    if not yes:
        size = byte_size(index.size_on_disk(path))
        print(f"remove {visible(path)} ({size}), with its checkpoints? [y/N] ", end="", flush=True)
        try:
            answer = input()
        except EOFError:
            print()
            answer = ""
        if answer.strip().lower() not in ("y", "yes"):
            print(f"{visible(path)} is kept")
            return False
    shutil.rmtree(path)
    print(f"removed {visible(path)}")
    left = comparison.with_candidate(files.COMPARISONS, path)
    if left:
        stay = "stays" if len(left) == 1 else "stay"
        print(f"{', '.join(map(visible, left))} compared its cell, and {stay}")
    return True


@command
def main(argv=None):
    parser = Parser("runs.py", description=__doc__.split("\n\n")[0])
    parser.add_argument("--html", action="store_true", help=f"write {PAGE}, a page of all runs")
    parser.add_argument("--remove", metavar="RUN", nargs="+",
                        help="remove these run folders, such as searchs/NAME")  # fmt: skip
    parser.add_argument("--yes", action="store_true", help="of --remove: do not ask")
    args = parser.parse_args(argv)
    if args.yes and not args.remove:
        parser.error("--yes belongs to --remove and does nothing without")
    with errors.usage_errors("runs.py"):
        for path in args.remove or ():
            remove(path, args.yes)
        if args.remove and not args.html:
            return
        rows = index.find()
        if rows:
            print(table(rows))
            print(f"{plural(len(rows), 'run')}, {byte_size(sum(row.bytes for row in rows))}")
        else:
            print("no runs here; python search.py --quick makes the first")
        if args.html:
            print(write_page(rows))


if __name__ == "__main__":
    main()
