"""Turn the drawings of a search into one animation per cell.

    python gif_maker.py searchs/NAME [--fps 3] [--out DIR]

Writes normal.gif and reduce.gif: one frame per finished epoch, in order, the last one held. A band
above the drawing says the epoch and the accuracy and shows how far the search has come.
"""

import argparse
import os
import re
import sys

import imageio.v3 as iio
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from records import palette, reader
from records.files import atomic

HOLD = 3000  # milliseconds that the last frame stays
BAND = 46  # pixels of the band above the drawing
COLORS = 64  # of a frame: few make small files, but with 24 the legend loses colors


def frames_of(plot_path, cell):
    """Drawings of `cell` ("normal" or "reduce") in the folder, as (epoch, path) in epoch order."""
    found = []
    for file in os.listdir(plot_path) if os.path.isdir(plot_path) else ():
        match = re.fullmatch(rf"EP(\d+)-{cell}\.png", file)
        if match:
            found.append((int(match[1]), os.path.join(plot_path, file)))
    return sorted(found)


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
        pen.rectangle((14, BAND - 10, done, BAND - 7), fill=palette.HELD)
    return np.asarray(image)


def make_gif(plot_path, cell, path, fps=3, scores=None, n_epochs=None):
    """Write the animation of one cell to `path`; returns the number of frames.

    scores    {epoch: accuracy} of the finished epochs; others get no frame (None: all are finished)
    n_epochs  epochs that the search was to have

    Raises ValueError if there is no drawing of a finished epoch.
    """
    frames = frames_of(plot_path, cell)
    if scores:
        frames = [(epoch, file) for epoch, file in frames if epoch in scores]
    if not frames:
        raise ValueError(f"no drawings EPxx-{cell}.png in {plot_path}; was an epoch finished?")
    images = [iio.imread(file, mode="RGB") for _, file in frames]
    height, width = np.max([image.shape[:2] for image in images], axis=0)
    pictures = []
    for (epoch, _), image in zip(frames, images, strict=True):
        top = band(int(width), epoch, n_epochs, (scores or {}).get(epoch))
        frame = Image.fromarray(np.vstack([top, pad(image, height, width)]))
        # no dithering: it is seen on flat areas, and does not compress
        frame = frame.quantize(COLORS, dither=Image.Dither.NONE)
        pictures.append(np.asarray(frame.convert("RGB")))
    durations = [1000 / fps] * (len(images) - 1) + [HOLD]  # milliseconds
    if len(images) == 1:  # Pillow takes a list for an animation only
        durations = HOLD
    with atomic(path) as temporary:
        iio.imwrite(
            temporary, pictures, extension=".gif", plugin="pillow", duration=durations, loop=0
        )
    return len(images)


def make_gifs(run_path, out=None, fps=3):
    """normal.gif and reduce.gif of a run folder; returns their paths. Errors as `make_gif`."""
    plot_path = os.path.join(run_path, "plots")
    if not os.path.isdir(plot_path):
        raise ValueError(f"{run_path} is no run folder of a search: it has no folder plots")
    out = run_path if out is None else out
    os.makedirs(out, exist_ok=True)
    flags = reader.read_object(os.path.join(run_path, reader.CONFIG)).get("flags", {})
    paths = [os.path.join(out, f"{cell}.gif") for cell in ("normal", "reduce")]
    for cell, path in zip(("normal", "reduce"), paths, strict=True):
        make_gif(plot_path, cell, path, fps, reader.scores(run_path), flags.get("epochs"))
    return paths


def main(argv=None):
    parser = argparse.ArgumentParser("gif_maker.py", description=__doc__.split("\n\n")[0])
    parser.add_argument("run", metavar="searchs/NAME", help="run folder of a search")
    parser.add_argument("--fps", type=float, default=3, help="epochs per second (default: 3)")
    parser.add_argument("--out", help="folder to write to (default: the run folder)")
    args = parser.parse_args(argv)
    if not 0 < args.fps <= 50:
        parser.exit(
            2,
            f"gif_maker.py: --fps {args.fps}: a GIF shows above 0 and up to 50 frames per second\n",
        )
    try:
        print("\n".join(make_gifs(args.run, args.out, args.fps)))
    except (ValueError, OSError) as error:
        sys.exit(f"gif_maker.py: {error}")


if __name__ == "__main__":
    main()
