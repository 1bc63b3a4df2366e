"""Save a matplotlib figure."""

import os

from records.files import atomic


def save(fig, out, dpi=120):
    """Write a figure in one piece, in the format that the ending of `out` names."""
    with atomic(out) as temporary:
        fig.savefig(temporary, dpi=dpi, format=os.path.splitext(out)[1].removeprefix(".") or None)
    return out
