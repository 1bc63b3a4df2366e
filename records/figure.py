"""Save a matplotlib figure."""

import os

from records import fonts
from records.files import atomic_write


def save(fig, out, dpi=120):
    """Write a figure in one piece, in the format that the ending of `out` names.

    Letters come from a font of the system that has them; one that none has becomes a question mark.
    Raises ValueError for an ending that matplotlib does not know.
    """
    ending = os.path.splitext(out)[1].removeprefix(".").lower()
    known = fig.canvas.get_supported_filetypes()
    if ending not in known:
        raise ValueError(f"{out}: the ending is none of {', '.join(sorted(known))}")
    use_fonts(fig)
    with atomic_write(out) as temporary:
        fig.savefig(temporary, dpi=dpi, format=ending)
    return out


def epoch_axis(axes):
    """Name the x axis and give it whole ticks, also where there is one epoch alone."""
    from matplotlib.ticker import MaxNLocator  # here: what saves no figure needs none

    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    first, last = axes.dataLim.intervalx
    if first == last:
        axes.set_xlim(first - 0.9, last + 0.9)


def use_fonts(fig):
    """Give every text of a figure fonts that have its letters."""
    for text in fig.findobj(lambda artist: hasattr(artist, "set_fontfamily")):
        if text.get_text().isascii():
            continue
        families, missing = fonts.families(text.get_text())
        text.set_fontfamily(families)
        text.set_text(fonts.plain(text.get_text(), lambda letter, gone=missing: letter not in gone))
