"""Turn the drawings of a search into one animation per cell.

    python gif_maker.py searchs/NAME [--fps 3] [--out DIR]

Writes normal.gif and reduce.gif: one frame per finished epoch, in order.
"""

import argparse
import os
import re
import sys

import imageio.v3 as iio
import numpy as np


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


def make_gif(plot_path, cell, path, fps=3):
    """Write the animation of one cell to `path`; returns the number of frames.

    Raises ValueError if there is no drawing of it. The last frame is held for three seconds.
    """
    frames = frames_of(plot_path, cell)
    if not frames:
        raise ValueError(f"no drawings EPxx-{cell}.png in {plot_path}; was an epoch finished?")
    images = [iio.imread(file, mode="RGB") for _, file in frames]
    height, width = np.max([image.shape[:2] for image in images], axis=0)
    durations = [1000 / fps] * (len(images) - 1) + [3000]  # milliseconds
    if len(images) == 1:  # Pillow takes a list for an animation only
        durations = 3000
    temporary = f"{path}.tmp.gif"
    try:
        iio.imwrite(
            temporary,
            [pad(image, height, width) for image in images],
            plugin="pillow", duration=durations, loop=0,
        )  # fmt: skip
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)
    return len(images)


def make_gifs(run_path, out=None, fps=3):
    """normal.gif and reduce.gif of a run folder; returns their paths. Errors as `make_gif`."""
    plot_path = os.path.join(run_path, "plots")
    if not os.path.isdir(plot_path):
        raise ValueError(f"{run_path} is no run folder of a search: it has no folder plots")
    out = run_path if out is None else out
    os.makedirs(out, exist_ok=True)
    paths = [os.path.join(out, f"{cell}.gif") for cell in ("normal", "reduce")]
    for cell, path in zip(("normal", "reduce"), paths, strict=True):
        make_gif(plot_path, cell, path, fps)
    return paths


def main(argv=None):
    parser = argparse.ArgumentParser("gif_maker.py", description=__doc__.split("\n\n")[0])
    parser.add_argument("run", metavar="searchs/NAME", help="run folder of a search")
    parser.add_argument("--fps", type=float, default=3, help="epochs per second (default: 3)")
    parser.add_argument("--out", help="folder to write to (default: the run folder)")
    args = parser.parse_args(argv)
    if not 0 < args.fps <= 50:
        parser.error(f"--fps {args.fps}: a GIF shows above 0 and up to 50 frames per second")
    try:
        print("\n".join(make_gifs(args.run, args.out, args.fps)))
    except (ValueError, OSError) as error:
        sys.exit(f"gif_maker.py: {error}")


if __name__ == "__main__":
    main()
