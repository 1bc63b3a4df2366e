"""Make the pictures of the README from a finished run.

    python search.py --quick --name digits
    python scripts/readme_pictures.py searchs/digits

The chart of the comparison that --quick ends with is that of compares/digits. Writes to assets/.
The picture of the page is taken by a headless Chromium ($CHROMIUM, or the one on the PATH), driven
by playwright.
"""

import os
import shutil
import sys
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from console import interrupts

if __name__ == "__main__":
    interrupts.end_in_one_line()

from PIL import Image
from playwright.sync_api import sync_playwright

import visualize
from console import errors
from console.parser import Parser
from console.terminal import command
from records import files

ASSETS = Path(visualize.__file__).resolve().parent / "assets"
COMPARISON = "quick-comparison.png"
COPIES = {
    "normal.gif": "quick-normal.gif",
    files.CURVES: "quick-curves.png",
    files.ALPHA_FIGURE: "quick-alphas.png",
}


def screenshots(page_path, program):
    """The top of the page on a laptop in daylight, and on a phone in the dark, side by side."""
    shots = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        for width, scheme in ((1160, "light"), (420, "dark")):
            context = browser.new_context(
                viewport={"width": width, "height": 1000}, color_scheme=scheme
            )
            page = context.new_page()
            page.goto(page_path.resolve().as_uri())
            shots.append(ASSETS / f"report-{scheme}.png")
            page.screenshot(path=shots[-1])
        browser.close()
    pictures = [Image.open(shot).convert("RGB") for shot in shots]
    both = Image.new("RGB", (sum(p.width for p in pictures) + 20, 1000), "white")
    both.paste(pictures[0], (0, 0))
    both.paste(pictures[1], (pictures[0].width + 20, 0))
    for shot in shots:
        shot.unlink()
    return both


@command
def main(argv=None):
    parser = Parser("readme_pictures.py", description=__doc__.split("\n\n")[0])
    parser.add_argument("run", metavar="searchs/NAME", type=Path, help="a finished search")
    args = parser.parse_args(argv)
    with errors.usage_errors("readme_pictures.py"):
        program = os.environ.get("CHROMIUM") or shutil.which("chromium")
        if program is None:
            raise OSError("no chromium on the PATH or in $CHROMIUM")
        visualize.main([str(args.run), "--out", str(ASSETS)])
        for cell in files.CELLS:
            os.replace(ASSETS / f"{cell}.png", ASSETS / f"quick-{cell}.png")
            (ASSETS / f"{cell}.gv").unlink()
        for source, target in COPIES.items():
            shutil.copyfile(args.run / source, ASSETS / target)
        compared = args.run.parents[1] / files.COMPARISONS / args.run.name
        shutil.copyfile(compared / files.COMPARISON, ASSETS / COMPARISON)
        both = screenshots(args.run / files.REPORT, program)
        both.save(ASSETS / "report.png", optimize=True)  # all colors: a legend has few pixels
        for name in (COPIES[files.CURVES], COPIES[files.ALPHA_FIGURE], COMPARISON):
            picture = Image.open(ASSETS / name).convert("RGB")
            picture.quantize(64, dither=Image.Dither.NONE).save(ASSETS / name, optimize=True)


if __name__ == "__main__":
    main()
