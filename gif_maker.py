"""Turn the drawings of a search into one animation per cell.

    python gif_maker.py searchs/NAME [--fps 3] [--out DIR]

Writes normal.gif and reduce.gif: one frame per finished epoch, in order; the last one stays longer.
A band above the drawing shows the epoch, the accuracy and how far the search has come.
"""

from console import interrupts

if __name__ == "__main__":
    interrupts.end_in_one_line()  # from here on, also while torch is imported

import os
import re

import imageio.v3 as iio
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from console import errors
from console.parser import Parser, number, out_folder
from console.terminal import command
from records import palette, reader
from records.files import CELLS, PLOTS, atomic_write

LAST_FRAME = 3000  # milliseconds that the last frame stays
BAND = 46  # pixels of the band above the drawing
COLORS = 64  # of a frame: few make small files, but with 24 the legend loses colors


def frames_of(plot_path, cell):
    """Drawings of `cell` ("normal" or "reduce") in the folder, as (epoch, path) in epoch order."""
    found = []
    for file in os.listdir(plot_path) if os.path.isdir(plot_path) else ():
        match = re.fullmatch(rf"EP(\d+)-{cell}\.png", file)  # as files.drawing writes it
        if match:
            found.append((int(match[1]), os.path.join(plot_path, file)))
    return sorted(found)


def read_frame(path):
    """A PNG file as (H, W, 3). Raises OSError if it is damaged."""
    try:
        return iio.imread(path, mode="RGB")
    except Exception as error:  # a damaged file makes Pillow raise many things
        raise OSError(f"{path} is no readable picture: {errors.one_line(error)}") from error


def pad(image, height, width):
    """Center an (h, w, 3) image on a white one of (height, width, 3); nothing is stretched."""
    h, w = image.shape[:2]
    top, left = (height - h) // 2, (width - w) // 2
    canvas = np.full((height, width, 3), 255, np.uint8)
    canvas[top : top + h, left : left + w] = image
    return canvas


def band(width, epoch, n_epochs=None, top1=None):
    """(BAND, width, 3): "epoch 3 of 50", the accuracy (0 to 1), and a line that grows."""
    image = Image.new("RGB", (width, BAND), "white")
    pen = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=18)  # comes with Pillow, whatever the system has
    text = f"epoch {epoch}" + (f" of {n_epochs}" if n_epochs else "")
    pen.text((14, 8), text, fill=palette.INK, font=font)
    if top1 is not None:
        score = f"supernet {top1:.2%}"
        if 42 + pen.textlength(text + score, font=font) < width:
            pen.text((width - 14, 8), score, fill=palette.INK, font=font, anchor="ra")
    if n_epochs:
        pen.rectangle((14, BAND - 10, width - 15, BAND - 7), fill="#e4e4e4")
        done = 14 + round((width - 29) * min(1.0, epoch / n_epochs))
        pen.rectangle((14, BAND - 10, done, BAND - 7), fill=palette.VAL)
    return np.asarray(image)


def make_gif(plot_path, cell, path, fps=3, scores=None, n_epochs=None):
    """Write the animation of one cell to `path`; returns the number of frames.

    scores    {epoch: accuracy} of the finished epochs; others get no frame (None: all are finished)
    n_epochs  epochs that the search was to have

    Raises ValueError if there is no drawing of a finished epoch, OSError if one is damaged.
    """
    frames = frames_of(plot_path, cell)
    if scores:
        frames = [(epoch, file) for epoch, file in frames if epoch in scores]
    if not frames:
        raise ValueError(f"no drawings EPxx-{cell}.png in {plot_path}; was an epoch finished?")
    images = [read_frame(file) for _, file in frames]
    height, width = np.max([image.shape[:2] for image in images], axis=0)
    pictures = []
    for (epoch, _), image in zip(frames, images, strict=True):
        top = band(int(width), epoch, n_epochs, (scores or {}).get(epoch))
        frame = Image.fromarray(np.vstack([top, pad(image, height, width)]))
        # no dithering: it is seen on flat areas, and does not compress
        frame = frame.quantize(COLORS, dither=Image.Dither.NONE)
        pictures.append(np.asarray(frame.convert("RGB")))
    durations = [1000 / fps] * (len(images) - 1) + [LAST_FRAME]  # milliseconds
    if len(images) == 1:  # Pillow takes a list for an animation only
        durations = LAST_FRAME
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with atomic_write(path) as temporary:
        iio.imwrite(
            temporary, pictures, extension=".gif", plugin="pillow", duration=durations, loop=0
        )
    return len(images)


def make_gifs(run_path, out=None, fps=3):
    """normal.gif and reduce.gif of a run folder; returns their paths. Errors as `make_gif`."""
    plot_path = os.path.join(run_path, PLOTS)
    if not os.path.isdir(plot_path):
        raise ValueError(f"{run_path} is no run folder of a search: it has no folder {PLOTS}")
    out = run_path if out is None else out
    n_epochs = reader.read_config(run_path)["flags"].get("epochs")
    paths = {cell: os.path.join(out, f"{cell}.gif") for cell in CELLS}
    for cell, path in paths.items():
        make_gif(plot_path, cell, path, fps, reader.scores(run_path), n_epochs)
    return list(paths.values())


def frames_per_second(text):
    # a GIF counts hundredths of a second: from 2 to 65,535 of them a frame
    return number(text, float, "a number from 0.01 to 50", lambda x: 0.01 <= x <= 50)


@command
def main(argv=None):
    parser = Parser("gif_maker.py", description=__doc__.split("\n\n")[0])
    parser.add_argument("run", metavar="searchs/NAME", help="run folder of a search")
    parser.add_argument("--fps", type=frames_per_second, default=3.0, help="epochs per second")
    parser.add_argument(
        "--out", type=out_folder, help="folder to write to (default: the run folder)"
    )
    args = parser.parse_args(argv)
    with errors.usage_errors("gif_maker.py"):
        print("\n".join(make_gifs(args.run, args.out, args.fps)))


if __name__ == "__main__":
    main()
