"""Save a matplotlib figure."""

import os

from records.files import atomic_write


def save(fig, out, dpi=120):
    """Write a figure in one piece, in the format that the ending of `out` names.

    Raises ValueError for an ending that matplotlib does not know.
    """
    ending = os.path.splitext(out)[1].removeprefix(".").lower()
    known = fig.canvas.get_supported_filetypes()
    if ending not in known:
        raise ValueError(f"{out}: the ending is none of {', '.join(sorted(known))}")
    with atomic_write(out) as temporary:
        fig.savefig(temporary, dpi=dpi, format=ending)
    return out
